//! Folders that qemu and we made, looked over.

use crate::{
    dchain::{Run, dchain, done},
    foreign::Scratch,
};
use serde_json::Value;
use std::process::Command;

fn look(folder: &Scratch, more: &[&str]) -> (Run, Value) {
    let run = dchain(&folder.path(), &[&["lint", "--output", "json", "--rate", "1M"], more, &["."]].concat());
    let json = run.json();
    (run, json)
}

/// Kind and file of each finding.
fn kinds(folder: &Scratch, json: &Value) -> Vec<(String, String)> {
    let findings = json["findings"].as_array().unwrap().iter();
    let short = |path: &str| path.strip_prefix(folder.path().to_str().unwrap()).unwrap()[1..].to_owned();
    findings.map(|f| (f["kind"].as_str().unwrap().to_owned(), short(f["image"].as_str().unwrap()))).collect()
}

fn pair(kind: &str, file: &str) -> (String, String) {
    (kind.to_owned(), file.to_owned())
}

#[test]
fn each_fault_of_a_folder_is_found_under_its_name() {
    let folder = Scratch::in_memory();
    let here = folder.path();
    std::fs::create_dir(folder.file("golden")).unwrap();
    folder.qemu_img("create -q -f qcow2 golden/base 4M");
    folder.qemu_img("create -q -f qcow2 base 4M");
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 one");
    folder.qemu_img("create -q -f qcow2 -b one -F qcow2 two");
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 other");
    folder.qemu_img("create -q -f qcow2 -b golden/base -F qcow2 near");
    folder.qemu_img(&format!(
        "create -q -f qcow2 -b {} -F qcow2 far",
        folder.file("golden/../golden/base").display()
    ));
    folder.qemu_img("create -q -f qcow2 -u -b gone -F qcow2 lost 1M");
    folder.qemu_img("rebase -u -b nbd://localhost/x -F raw far");
    std::fs::write(folder.file("broken"), b"QFI\xfb but nothing else").unwrap();
    done(&here, &["bitmap", "--add", "other", "changes"]);
    // Killed while it was open: nobody knows what the bitmap missed.
    let crash = ["-f", "qcow2", "-c", "write -q 0 64k", "-c", "abort"];
    let crashed = Command::new("qemu-io").args(crash).arg(folder.file("other")).output().unwrap();
    assert!(!crashed.status.success());
    let (run, json) = look(&folder, &["--max-depth", "2"]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    let found = kinds(&folder, &json);
    for (kind, file) in [
        ("missing-parent", "lost"),
        ("unreadable", "broken"),
        ("foreign-reference", "far"),
        ("siblings-at-risk", "base"),
        ("long-chain", "two"),
        ("stale-bitmap", "other"),
        ("unsealed", "one"),
        ("unsealed", "base"),
    ] {
        assert!(found.contains(&pair(kind, file)), "{kind} {file}: {found:?}");
    }
    assert_eq!(found.len(), 8, "{found:?}");
    assert_eq!((&json["schema"], &json["images"]), (&1.into(), &7.into()));
    std::fs::remove_file(folder.file("lost")).unwrap();
    std::fs::remove_file(folder.file("broken")).unwrap();
    let (run, json) = look(&folder, &[]);
    assert_eq!(run.code, Some(0), "{json}");
}

#[test]
fn copies_of_one_layer_and_layers_that_nothing_needs_are_told() {
    let folder = Scratch::new();
    let here = folder.path();
    done(&here, &["create", "-f", "qcow2", "base", "4M"]);
    folder.qemu_io("qcow2", "base", &["write -P 1 1M 1M"]);
    done(&here, &["snapshot", "base", "top"]);
    done(&here, &["id", "seal", "--chain", "top"]);
    std::fs::copy(folder.file("base"), folder.file("copy")).unwrap();
    let (_, json) = look(&folder, &[]);
    let found = kinds(&folder, &json);
    assert_eq!(found, [pair("duplicate", "base"), pair("duplicate", "copy")]);
    std::fs::remove_file(folder.file("copy")).unwrap();
    done(&here, &["create", "-f", "qcow2", "plain", "4M"]);
    done(&here, &["snapshot", "plain", "gone"]);
    std::fs::remove_file(folder.file("gone")).unwrap();
    let (run, json) = look(&folder, &[]);
    assert_eq!((run.code, kinds(&folder, &json)), (Some(0), vec![pair("orphan", "plain")]));
}

/// What lint says of a chain is what `consolidate` plans, and no less comes back than was said.
#[test]
fn what_folding_gives_back_is_what_consolidate_gives_back() {
    let folder = Scratch::new();
    let here = folder.path();
    let held = || {
        let blocks = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(folder.file(name)).map_or(0, |file| file.blocks() * 512)
        };
        ["base", "one", "two"].map(blocks).iter().sum::<u64>()
    };
    folder.qemu_img("create -q -f qcow2 base 16M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 8M"]);
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 one");
    folder.qemu_io("qcow2", "one", &["write -q -P 2 1M 6M"]);
    folder.qemu_img("create -q -f qcow2 -b one -F qcow2 two");
    folder.qemu_io("qcow2", "two", &["write -q -P 3 2M 8M"]);
    let (_, json) = look(&folder, &[]);
    let chain = json["foldable"][0].clone();
    let plan = done(&here, &["consolidate", "-n", "--output", "json", "two"]).json();
    assert_eq!((&chain["top"], &chain["into"]), (&plan["top"], &plan["target"]));
    assert_eq!((&chain["copy-bytes"], &chain["need-bytes"]), (&plan["copy-bytes"], &plan["need-bytes"]));
    assert_eq!(chain["milliseconds"], 9000, "9 MiB at 1 MiB a second");
    assert_eq!(json["rate"]["probe-bytes"], Value::Null);
    let before = held();
    done(&here, &["consolidate", "--yes", "two"]);
    let said = chain["gives-back-bytes"].as_u64().unwrap();
    let came = before - held();
    assert!(said > 0 && came >= said && came < said + (3 << 20), "{said} was said, {came} came back");
    let measured = dchain(&here, &["lint", "."]);
    assert!(measured.out.contains("1 images: 0 errors"), "{}", measured.out);
}

#[test]
fn a_running_disk_is_looked_at_without_a_lock() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 4M");
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 top");
    let held = deltachain::io::Host::open(
        &deltachain::io::real::RealHost::new(),
        &folder.file("top"),
        deltachain::io::Access::Write,
    );
    let (run, json) = look(&folder, &[]);
    assert_eq!(run.code, Some(0), "{json}");
    assert_eq!(json["foldable"].as_array().unwrap().len(), 1);
    drop(held);
}
