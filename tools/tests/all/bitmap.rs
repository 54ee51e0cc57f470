//! Dirty bitmaps that we change and qemu goes on with, and the reverse.

use crate::{
    daemon::Daemon,
    dchain::{dchain, done},
    foreign::Scratch,
};
use serde_json::Value;

fn listed(folder: &Scratch) -> Value {
    let info: Value = serde_json::from_str(&folder.qemu_img("info --output=json disk")).unwrap();
    let ours = done(&folder.path(), &["bitmap", "--output", "json", "disk"]).json();
    let theirs = info["format-specific"]["data"]["bitmaps"].clone();
    let names = |list: &Value, key: &str| -> Vec<(String, u64)> {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|b| (b["name"].as_str().unwrap().to_owned(), b[key].as_u64().unwrap())).collect()
    };
    assert_eq!(names(&ours, "granularity-bytes"), names(&theirs, "granularity"));
    theirs
}

fn change(folder: &Scratch, arguments: &str) {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    done(&folder.path(), &[&["bitmap"], &arguments[..]].concat());
    folder.qemu_img("check -q disk");
}

/// Which parts of the disk qemu says are dirty in a bitmap, read through an export of it.
fn dirty(folder: &Scratch, bitmap: &str) -> Vec<(u64, u64)> {
    let socket = folder.file("socket");
    let mut server = std::process::Command::new("qemu-nbd")
        .current_dir(folder.path())
        .args(["-r", "-f", "qcow2", "-B", bitmap, "-k", socket.to_str().unwrap(), "disk"])
        .spawn()
        .unwrap();
    for _ in 0..6000 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let map = folder.try_run("qemu-img", ["map", "--output=json", "--image-opts", &options]);
    drop(server.kill());
    server.wait().unwrap();
    // It may have gone by itself with its only client.
    drop(std::fs::remove_file(&socket));
    assert!(map.status.success(), "{bitmap}: {}", String::from_utf8_lossy(&map.stderr));
    let map: Value = serde_json::from_slice(&map.stdout).unwrap();
    // What is dirty is shown as a range without data.
    let dirty = map.as_array().unwrap().iter().filter(|e| e["data"] == false);
    dirty.map(|e| (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap())).collect()
}

#[test]
fn qemu_records_into_a_bitmap_of_ours_and_we_merge_what_it_recorded() {
    for options in ["", "-o cluster_size=512", "-o cluster_size=2M,refcount_bits=1"] {
        let folder = Scratch::in_memory();
        folder.qemu_img(&format!("create -q -f qcow2 {options} disk 16M"));
        change(&folder, "--add -g 65536 disk ours");
        folder.qemu_io("qcow2", "disk", &["write -P 1 1M 64k"]);
        folder.qemu_img("bitmap --add -g 512K disk theirs");
        change(&folder, "--disable disk ours");
        folder.qemu_io("qcow2", "disk", &["write -P 2 8M 1k"]);
        change(&folder, "--add -g 4096 disk both");
        change(&folder, "--merge ours disk both");
        change(&folder, "--merge theirs disk both");
        assert_eq!(dirty(&folder, "both"), [(1 << 20, 65536), (8 << 20, 512 << 10)], "{options}");
        assert_eq!(dirty(&folder, "ours"), [(1 << 20, 65536)], "{options}");
        let flags: Vec<_> = listed(&folder).as_array().unwrap().iter().map(|b| b["flags"].clone()).collect();
        assert_eq!(flags, [Value::Array(vec![]), vec!["auto"].into(), vec!["auto"].into()]);
        folder.qemu_img("bitmap --merge ours disk theirs");
        folder.qemu_img("bitmap --remove disk ours");
        change(&folder, "--clear disk both");
        assert_eq!(dirty(&folder, "both"), []);
        change(&folder, "--remove disk both");
        change(&folder, "--remove disk theirs");
        assert!(listed(&folder).is_null());
    }
}

#[test]
fn a_bitmap_is_merged_from_another_image() {
    let folder = Scratch::in_memory();
    folder.qemu_img("create -q -f qcow2 other 16M");
    folder.qemu_img("bitmap --add -g 1M other changes");
    folder.qemu_io("qcow2", "other", &["write -P 1 3M 1k"]);
    folder.qemu_img("create -q -f qcow2 disk 10M");
    change(&folder, "--merge changes --source-file other disk changes");
    assert_eq!(dirty(&folder, "changes"), [(3 << 20, 1 << 20)]);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let folder = Scratch::in_memory();
    folder.qemu_img("create -q -f qcow2 disk 1M");
    folder.qemu_img("create -q -f qcow2 -o compat=0.10 old 1M");
    change(&folder, "--add disk one");
    let before = listed(&folder);
    let refused = [
        (&["--add", "disk", "one"][..], 1, "has a bitmap 'one' already"),
        (&["--clear", "disk", "two"], 1, "has no bitmap 'two'"),
        (&["--add", "-g", "1000", "disk", "two"], 64, "power of two"),
        (&["--add", "old", "one"], 1, "version 2"),
        (&["disk", "one"], 64, ""),
        (&["--add", "disk"], 64, ""),
    ];
    for (arguments, code, text) in refused {
        let run = dchain(&folder.path(), &[&["bitmap"], arguments].concat());
        assert_eq!(run.code, Some(code), "{arguments:?}: {}{}", run.out, run.err);
        assert!(run.err.contains(text), "{arguments:?}: {}", run.err);
    }
    assert_eq!(listed(&folder), before);
    folder.qemu_img("check -q disk");
}

/// Base and delta, written by qemu under bitmaps: one in both, one in the base alone, one that stood still there.
fn recorded_chain(folder: &Scratch) {
    folder.qemu_img("create -q -f qcow2 base 16M");
    folder.qemu_img("bitmap --add -g 64k base both");
    folder.qemu_img("bitmap --add -g 1M base below");
    folder.qemu_img("bitmap --add -g 64k base past");
    folder.qemu_io("qcow2", "base", &["write -P 1 1M 64k"]);
    folder.qemu_img("bitmap --disable base past");
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 disk");
    folder.qemu_img("bitmap --add -g 512k disk both");
    folder.qemu_img("bitmap --add -g 64k disk above");
    folder.qemu_io("qcow2", "disk", &["write -P 2 8M 64k"]);
}

#[test]
fn a_fold_keeps_the_bitmaps_as_qemus_commit_and_its_merge_of_bitmaps_would() {
    let (folder, theirs) = (Scratch::in_memory(), Scratch::in_memory());
    recorded_chain(&folder);
    recorded_chain(&theirs);
    // The base's recording bitmaps are told of what the commit writes; those of the delta are merged by hand.
    theirs.qemu_img("commit -q -d disk");
    theirs.qemu_img("bitmap --merge both -b disk base both");
    theirs.qemu_img("bitmap --add -g 64k --merge above -b disk base above");
    std::fs::rename(theirs.file("base"), theirs.file("disk")).unwrap();
    let run = done(&folder.path(), &["consolidate", "--yes", "--output", "json", "disk"]);
    let plan = run.json()["plan"].clone();
    let lines = ["both", "above"].map(|name| format!("{}: {name}", folder.file("disk").display()));
    assert_eq!(plan["bitmaps-merged"], serde_json::json!(lines), "{plan}");
    assert_eq!(plan["bitmaps-lost"], serde_json::json!([]), "{plan}");
    folder.qemu_img("check -q disk");
    for name in ["both", "below", "past", "above"] {
        assert_eq!(dirty(&folder, name), dirty(&theirs, name), "{name}");
    }
    let list = listed(&folder);
    let flags =
        |name: &str| list.as_array().unwrap().iter().find(|b| b["name"] == name).unwrap()["flags"].clone();
    assert_eq!(["both", "below", "above"].map(|name| flags(name) == serde_json::json!(["auto"])), [true; 3]);
    assert_eq!(flags("past"), serde_json::json!([]));
    // qemu goes on recording where we left off.
    folder.qemu_io("qcow2", "disk", &["write -P 3 15M 64k"]);
    assert_eq!(dirty(&folder, "above"), [(8 << 20, 65536), (15 << 20, 65536)]);
}

#[test]
fn a_resized_image_keeps_its_bitmaps_as_qemu_keeps_them() {
    for (from, to) in [("8M", "12352k"), ("8M", "3136k")] {
        let folder = Scratch::in_memory();
        folder.qemu_img(&format!("create -q -f qcow2 disk {from}"));
        for arguments in ["--add disk on", "--add disk off"] {
            folder.qemu_img(&format!("bitmap {arguments}"));
        }
        let writes =
            ["-f", "qcow2", "-c", "write 64k 64k", "-c", "write 3M 128k", "-c", "write 7M 1M", "disk"];
        assert!(folder.try_run("qemu-io", writes).status.success());
        folder.qemu_img("bitmap --disable disk off");
        std::fs::copy(folder.file("disk"), folder.file("ours")).unwrap();
        folder.qemu_img(&format!("resize -q --shrink disk {to}"));
        let theirs = ["on", "off"].map(|name| dirty(&folder, name));
        let flags = listed(&folder);
        std::fs::rename(folder.file("ours"), folder.file("disk")).unwrap();
        let run = done(&folder.path(), &["resize", "--yes", "--output", "json", "disk", to]);
        assert_eq!(run.json()["bitmaps-kept"], serde_json::json!(["on", "off"]));
        assert_eq!(
            (listed(&folder), ["on", "off"].map(|name| dirty(&folder, name))),
            (flags, theirs),
            "{to}"
        );
        folder.qemu_img("check -q disk");
        let plan = done(&folder.path(), &["resize", "-n", "disk", "0"]);
        assert!(plan.out.contains("the bitmap 'on' cannot have that size"), "{}", plan.out);
    }
}

/// The whole regions that a disk of 1 GiB is marked in.
const REGION: u64 = 16 << 20;

#[test]
fn a_bitmap_outlives_kills_of_the_daemon_and_qemu_goes_on_with_it() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 disk 1G");
    folder.qemu_img("bitmap --add -g 64k disk daily");
    let write = |daemon: &Daemon, at: &str| {
        folder.qemu_io("raw", &daemon.uri("vm"), &[&format!("write -q -P 2 {at} 64k")]);
    };
    let mut wanted = Vec::new();
    for at in [100_u64, 101, 700] {
        let daemon = Daemon::start(&folder, &["vm=disk"]);
        write(&daemon, &format!("{at}M"));
        // SIGKILL.
        drop(daemon);
        let region = (at << 20) / REGION * REGION;
        if wanted.last().is_none_or(|(start, _)| *start != region) {
            wanted.push((region, REGION));
        }
        assert_eq!(listed(&folder)[0]["flags"], serde_json::json!(["auto"]));
        assert_eq!(dirty(&folder, "daily"), wanted);
    }
    // qemu finds a bitmap that it can record in.
    folder.qemu_io("qcow2", "disk", &["write -q -P 3 900M 64k"]);
    wanted.push((900 << 20, 64 << 10));
    assert_eq!(dirty(&folder, "daily"), wanted);
    // A stop in order adds no more than what was written.
    let daemon = Daemon::start(&folder, &["vm=disk"]);
    write(&daemon, "950M");
    assert!(daemon.stop().0.success());
    wanted.push((950 << 20, 64 << 10));
    assert_eq!(dirty(&folder, "daily"), wanted);
}
