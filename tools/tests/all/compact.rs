//! Images that qemu filled, compacted by us, read and checked by qemu again.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};
use std::os::unix::fs::MetadataExt;

fn allocated(folder: &Scratch, image: &str) -> u64 {
    std::fs::metadata(folder.file(image)).unwrap().blocks() * 512
}

/// `head` on `base`: 1 MiB of data, 2 MiB of stored zeros over data, 1 MiB compressed of which half are zeros, zeros at the end.
fn folder(options: &str) -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 8M");
    folder.qemu_io("qcow2", "base", &["write -P 9 0 5M"]);
    folder.qemu_img(&format!("create -q -f qcow2 {options} -b base -F qcow2 head 10M"));
    let pack = |at: u64, byte: u64| format!("write -c -P {byte} {at}k 512k");
    let writes =
        ["write -P 1 0 1M", "write -P 0 1M 2M", &pack(3072, 2), &pack(3584, 0), "write -P 0 9728k 512k"];
    folder.qemu_io("qcow2", "head", &writes);
    folder
}

#[test]
fn stored_zeros_go_back_to_the_host_and_the_view_stays() {
    for options in ["", "-o extended_l2=on,cluster_size=32k"] {
        let folder = folder(options);
        let (before, view) = (allocated(&folder, "head"), folder.flat("qcow2", "head"));
        let answer = done(&folder.path(), &["compact", "--output", "json", "head"]).json();
        folder.qemu_img("check -q head");
        assert_same(&folder.flat("qcow2", "head"), &view, options);
        let after = allocated(&folder, "head");
        assert!(before - after >= (5 << 19) - 65536, "{options}: {before} -> {after}");
        assert_eq!(answer["released-bytes"], before - after);
        assert_eq!(answer["zeroed-bytes"], 3 << 20, "{options}");
        let again = done(&folder.path(), &["compact", "--output", "json", "head"]).json();
        assert_eq!((&again["zeroed-bytes"], &again["released-bytes"]), (&0.into(), &0.into()), "{options}");
    }
}

#[test]
fn version_2_says_zero_only_where_nothing_lies_below() {
    let folder = folder("-o compat=0.10");
    let view = folder.flat("qcow2", "head");
    let answer = done(&folder.path(), &["compact", "--output", "json", "head"]).json();
    assert_eq!(answer["zeroed-bytes"], 1 << 19);
    folder.qemu_img("check -q head");
    assert_same(&folder.flat("qcow2", "head"), &view, "version 2");
}

#[test]
fn clusters_that_were_freed_in_the_middle_and_at_the_end_go_back() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 disk 16M");
    folder.qemu_io("qcow2", "disk", &["write -P 1 0 8M"]);
    // Freed without telling the host.
    let discard = ["-f", "qcow2", "-d", "ignore", "-c", "write -z 2M 6M", "disk"];
    assert!(folder.try_run("qemu-io", discard).status.success());
    folder.qemu_img("snapshot -c before disk");
    folder.qemu_io("qcow2", "disk", &["write -P 2 0 2M"]);
    folder.qemu_img("snapshot -d before disk");
    let (before, view) = (allocated(&folder, "disk"), folder.flat("qcow2", "disk"));
    done(&folder.path(), &["compact", "disk"]);
    folder.qemu_img("check -q disk");
    assert_same(&folder.flat("qcow2", "disk"), &view, "compacted");
    let after = allocated(&folder, "disk");
    assert!(after < 3 << 20, "{before} -> {after}");
}

#[test]
fn a_raw_image_gets_holes_where_zeros_are() {
    let folder = Scratch::new();
    let mut bytes = vec![0; 8 << 20];
    bytes[(3 << 20) + 5] = 1;
    std::fs::write(folder.file("disk.raw"), &bytes).unwrap();
    done(&folder.path(), &["compact", "-f", "raw", "disk.raw"]);
    assert!(allocated(&folder, "disk.raw") <= 8192);
    assert_same(&std::fs::read(folder.file("disk.raw")).unwrap(), &bytes, "raw");
}

#[test]
fn a_plan_changes_nothing_and_a_parent_is_refused() {
    let folder = folder("");
    let before = std::fs::read(folder.file("head")).unwrap();
    let plan = done(&folder.path(), &["compact", "-n", "--output", "json", "head"]).json();
    assert_eq!(plan["allocated-bytes"], allocated(&folder, "head"));
    assert_eq!(plan["read-bytes"], 9 << 19);
    assert_same(&std::fs::read(folder.file("head")).unwrap(), &before, "planned");
    let run = dchain(&folder.path(), &["compact", "base"]);
    assert_eq!(run.code, Some(69), "{}", run.err);
    assert!(run.err.contains("lies on it"), "{}", run.err);
}

#[test]
fn an_image_whose_refcounts_are_too_low_keeps_its_bytes() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 disk 1M");
    folder.qemu_io("qcow2", "disk", &["write -P 1 0 1M"]);
    let view = folder.flat("qcow2", "disk");
    // The refcounts of the last clusters say free.
    let mut bytes = std::fs::read(folder.file("disk")).unwrap();
    let block = u64::from_be_bytes(bytes[0x10000..0x10008].try_into().unwrap());
    let at = usize::try_from(block).unwrap() + 10 * 2;
    bytes[at..at + 20].fill(0);
    std::fs::write(folder.file("disk"), &bytes).unwrap();
    let run = dchain(&folder.path(), &["compact", "disk"]);
    assert_eq!(run.code, Some(65), "{}{}", run.out, run.err);
    assert_same(&folder.flat("qcow2", "disk"), &view, "refused");
}
