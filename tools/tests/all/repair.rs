//! `dchain repair` after a real stranger's write: qemu-io into a base that a child lies on.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};
use serde_json::json;
use std::{fs, os::unix::fs::FileExt};

/// A sealed base with a child, and what both show.
fn scene(options: &str) -> (Scratch, [Vec<u8>; 2]) {
    let folder = Scratch::new();
    folder.qemu_img(&format!("create -q -f qcow2 {options} base 8M"));
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 3M", "write -q -P 2 5M 64k"]);
    done(&folder.path(), &["id", "seal", "base"]);
    done(&folder.path(), &["snapshot", "base", "child"]);
    folder.qemu_io("qcow2", "child", &["write -q -P 3 1M 64k"]);
    let views = ["base", "child"].map(|image| folder.flat("qcow2", image));
    (folder, views)
}

fn assert_repaired(folder: &Scratch, views: &[Vec<u8>; 2]) {
    done(&folder.path(), &["check", "--lineage", "--data", "child"]);
    let base = done(&folder.path(), &["check", "--lineage", "--data", "base"]);
    assert!(base.out.contains("it is what c1:"), "{}", base.out);
    for (image, view) in ["base", "child"].iter().zip(views) {
        assert_same(&folder.flat("qcow2", image), view, image);
        folder.qemu_img(&format!("check -q {image}"));
    }
}

#[test]
fn a_base_that_qemu_wrote_is_put_back_from_a_copy_in_another_format() {
    for options in ["", "-o cluster_size=2M", "-o cluster_size=4k,extended_l2=off", "-o compat=0.10"] {
        let (folder, views) = scene(options);
        folder.qemu_img("convert -f qcow2 -O raw base copy.raw");
        folder.qemu_io(
            "qcow2",
            "base",
            &["write -q -P 9 130k 1k", "write -q -z 5M 64k", "write -q -P 9 7M 512"],
        );
        let lineage = dchain(&folder.path(), &["check", "--lineage", "child"]);
        assert_eq!(lineage.code, Some(77), "{options}: {}", lineage.out);
        let arguments = ["repair", "base", "--from", "copy.raw"];
        let plan = done(&folder.path(), &[&arguments[..], &["-n", "--output", "json"]].concat()).json();
        let leaves = json!([[2 << 16, 1 << 16], [5 << 20, 1 << 16], [7 << 20, 1 << 16]]);
        assert_eq!((&plan["restored"], &plan["unproven"]), (&leaves, &json!([])), "{options}");
        let unasked = dchain(&folder.path(), &arguments);
        assert_eq!(unasked.code, Some(64), "a script has to say --yes: {}", unasked.err);
        let run = done(&folder.path(), &[&arguments[..], &["--yes"]].concat());
        assert!(run.out.contains("192 KiB put back; proven"), "{}", run.out);
        assert_repaired(&folder, &views);
        let again = done(&folder.path(), &arguments);
        assert!(again.err.contains("nothing differs"), "{}", again.err);
    }
}

#[test]
fn a_chain_serves_as_the_copy_and_what_it_does_not_show_is_named() {
    let (folder, views) = scene("");
    // The copy is a chain whose head shows something else in one place, where the base was not touched.
    folder.qemu_img("convert -f qcow2 -O qcow2 -c base older");
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b older newer");
    folder.qemu_io("qcow2", "newer", &["write -q -P 7 2M 64k"]);
    folder.qemu_io("qcow2", "base", &["write -q -P 9 0 4k"]);
    let arguments = ["repair", "base", "--from", "newer", "--yes"];
    done(&folder.path(), &arguments);
    assert_repaired(&folder, &views);
    folder.qemu_io("qcow2", "base", &["write -q -P 9 0 4k", "write -q -P 9 2100k 4k"]);
    let before = folder.flat("qcow2", "base");
    let refused = dchain(&folder.path(), &arguments);
    assert_eq!(refused.code, Some(77));
    assert!(refused.err.contains("not proven: 65536 bytes at 0x200000"), "{}", refused.err);
    assert_same(&folder.flat("qcow2", "base"), &before, "nothing is written");
    let partial = dchain(&folder.path(), &[&arguments[..], &["--partial"]].concat());
    assert_eq!(partial.code, Some(77));
    assert!(partial.out.contains("64 KiB put back; still in doubt"), "{}", partial.out);
    assert_eq!(dchain(&folder.path(), &["check", "--lineage", "child"]).code, Some(77));
    done(&folder.path(), &["repair", "base", "--from", "older", "--yes"]);
    assert_repaired(&folder, &views);
}

#[test]
fn qemu_m8_a_base_that_a_sibling_was_committed_into_is_put_back() {
    let (folder, views) = scene("");
    folder.qemu_img("convert -f qcow2 -O qcow2 base copy");
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base sibling");
    folder.qemu_io("qcow2", "sibling", &["write -q -P 9 7M 512"]);
    folder.qemu_img("commit -q sibling");
    assert_eq!(dchain(&folder.path(), &["check", "--lineage", "child"]).code, Some(77));
    done(&folder.path(), &["repair", "base", "--from", "copy", "--yes"]);
    assert_repaired(&folder, &views);
}

#[test]
fn a_raw_base_is_put_back_too() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f raw base 4M");
    folder.qemu_io("raw", "base", &["write -q -P 1 1M 1M"]);
    done(&folder.path(), &["id", "seal", "-f", "raw", "base"]);
    done(&folder.path(), &["snapshot", "-f", "raw", "base", "child"]);
    folder.qemu_img("convert -f raw -O qcow2 base copy");
    let view = folder.flat("qcow2", "child");
    folder.qemu_io("raw", "base", &["write -q -P 9 3M 64k", "write -q -z 1M 4k"]);
    assert_eq!(dchain(&folder.path(), &["check", "--lineage", "child"]).code, Some(77));
    done(&folder.path(), &["repair", "-f", "raw", "base", "--from", "copy", "--yes"]);
    done(&folder.path(), &["check", "--lineage", "child"]);
    assert_same(&folder.flat("qcow2", "child"), &view, "child");
}

#[test]
fn rot_that_no_time_stamp_tells_is_found_by_reading_and_put_back() {
    let (folder, views) = scene("");
    folder.qemu_img("convert -f qcow2 -O qcow2 base copy");
    let base = fs::OpenOptions::new().read(true).write(true).open(folder.file("base")).unwrap();
    let (bytes, then) =
        (fs::read(folder.file("base")).unwrap(), base.metadata().unwrap().modified().unwrap());
    let at = bytes.windows(4096).position(|part| part.iter().all(|byte| *byte == 2)).unwrap();
    base.write_all_at(&[0xff], at as u64 + 99).unwrap();
    base.set_modified(then).unwrap();
    drop(base);
    done(&folder.path(), &["check", "--lineage", "child"]);
    let found = dchain(&folder.path(), &["check", "--data", "base"]);
    assert_eq!(found.code, Some(2));
    assert!(found.out.contains("differs: 65536 bytes at 0x500000"), "{}", found.out);
    done(&folder.path(), &["repair", "base", "--from", "copy", "--yes"]);
    assert_repaired(&folder, &views);
}

#[test]
fn a_raw_base_that_was_replaced_by_another_file_is_put_back_on_its_childrens_word() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f raw base 4M");
    folder.qemu_io("raw", "base", &["write -q -P 1 1M 1M"]);
    done(&folder.path(), &["id", "seal", "-f", "raw", "base"]);
    done(&folder.path(), &["snapshot", "-f", "raw", "base", "child"]);
    let view = folder.flat("qcow2", "child");
    folder.qemu_img("convert -f raw -O qcow2 base copy");
    fs::copy(folder.file("base"), folder.file("older")).unwrap();
    folder.qemu_io("raw", "older", &["write -q -P 9 3M 64k"]);
    fs::rename(folder.file("older"), folder.file("base")).unwrap();
    let refused = dchain(&folder.path(), &["check", "--lineage", "child"]);
    assert_eq!(refused.code, Some(77));
    assert!(refused.err.contains("it has no record"), "{}", refused.err);
    let run = done(&folder.path(), &["repair", "-f", "raw", "base", "--from", "copy", "--yes"]);
    assert!(run.out.contains("64 KiB put back; proven"), "{}", run.out);
    done(&folder.path(), &["check", "--lineage", "--data", "child"]);
    assert_same(&folder.flat("qcow2", "child"), &view, "child");
    let shown = done(&folder.path(), &["id", "show", "child"]).out;
    assert!(shown.contains("base: c1:") && shown.contains(", trusted"), "{shown}");
}
