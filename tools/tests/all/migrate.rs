//! Disks that go to another folder while clients of NBD use them. qemu writes, and qemu says what is there afterwards.

use super::{
    control::{MIB, answer, ask, disk, expected},
    daemon::Daemon,
    foreign::{Scratch, assert_same},
};
use serde_json::{Value, json};
use std::fs;

/// `top` on `base`, 16 MiB of ones, of which twos hide 8; and `other` on `base`; and an empty folder.
fn disks() -> Scratch {
    let folder = disk();
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base other");
    folder.qemu_io("qcow2", "other", &["write -q -P 2 0 8M"]);
    fs::create_dir(folder.file("store")).unwrap();
    folder
}

fn serve(folder: &Scratch) -> Daemon {
    Daemon::start_with(folder, &["vm=top", "other=other"], &["--control", "unix:c", "--state", "state"])
}

fn write(folder: &Scratch, daemon: &Daemon, disk: &str, commands: &[&str]) {
    folder.qemu_io("raw", &daemon.uri(disk), commands);
}

#[test]
fn two_disks_on_one_base_go_to_another_folder_under_their_clients() {
    let folder = disks();
    let daemon = serve(&folder);
    let plan = answer(&folder, "migrate -n --disk vm store");
    assert!(plan["unsealed"][0].as_str().unwrap().ends_with("/base"), "{plan}");
    let ids: Vec<u64> = ["vm", "other"]
        .map(|disk| {
            answer(&folder, &format!("migrate --disk {disk} --detach --rate 16M store"))["id"]
                .as_u64()
                .unwrap()
        })
        .into();
    write(&folder, &daemon, "vm", &["write -q -P 7 0 1M", "write -q -z 12M 1M", "flush"]);
    write(&folder, &daemon, "other", &["write -q -P 5 1M 1M"]);
    let busy = ask(&folder, "snapshot --disk vm");
    assert!(busy.code == Some(69) && busy.err.contains("job 1 is on it"), "{}", busy.err);
    for id in &ids {
        // It may have ended by now.
        ask(&folder, &format!("job speed {id} 0"));
        let job = answer(&folder, &format!("job wait {id}"));
        assert_eq!((job["kind"].as_str(), &job["error"]), (Some("migrate"), &Value::Null), "{job}");
    }
    write(&folder, &daemon, "vm", &["write -q -P 9 20M 64k"]);
    assert!(daemon.stop().0.success());
    // The base was brought once, for both.
    let mut names: Vec<_> =
        fs::read_dir(folder.file("store")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".dchain", "base", "other", "top"]);
    for (name, writes) in [
        ("store/top", &[(0, MIB, 7), (12 * MIB, MIB, 0), (20 * MIB, 64 << 10, 9)][..]),
        ("store/other", &[(MIB, MIB, 5)]),
    ] {
        assert_same(&folder.flat("qcow2", name), &expected(writes), name);
        folder.qemu_img(&format!("check -q {name}"));
    }
    assert!(
        !folder.file("top").exists() && folder.file("top.moved").exists() && folder.file("base").exists()
    );
    // A configuration that still names the old heads is told the new ones.
    let daemon = serve(&folder);
    assert!(answer(&folder, "disk show vm")["path"].as_str().unwrap().ends_with("/store/top"));
    assert!(daemon.stop().0.success());
}

#[test]
fn a_daemon_that_is_killed_goes_on_moving_and_cancel_keeps_the_disk_where_it_is() {
    let folder = disks();
    let daemon = serve(&folder);
    let id = answer(&folder, "migrate --disk vm --detach --rate 8M --yes --remove-source store")["id"]
        .as_u64()
        .unwrap();
    write(&folder, &daemon, "vm", &["write -q -P 7 0 1M", "flush"]);
    drop(daemon);
    let daemon = serve(&folder);
    write(&folder, &daemon, "vm", &["write -q -P 8 7M 2M", "flush"]);
    let cancelled = ask(&folder, &format!("job cancel {id}"));
    assert!(cancelled.out.contains("the disk stays where it is"), "{}{}", cancelled.out, cancelled.err);
    let writes = [(0, MIB, 7), (7 * MIB, 2 * MIB, 8)];
    assert!(answer(&folder, "disk show vm")["path"].as_str().unwrap().ends_with("/top"));
    let moved = ask(&folder, "migrate --disk vm --yes --remove-source store");
    assert!(moved.code == Some(0) && moved.out.contains("migrate of vm: done"), "{}{}", moved.out, moved.err);
    assert!(daemon.stop().0.success());
    assert_same(&folder.flat("qcow2", "store/top"), &expected(&writes), "the disk");
    // `other` lies on the base still.
    assert!(!folder.file("top").exists() && folder.file("base").exists());
}

#[test]
fn a_store_that_is_no_folder_of_this_host_is_refused() {
    let folder = disks();
    let _daemon = serve(&folder);
    let refused = ask(&folder, "migrate --disk vm ssh://host/store");
    assert!(
        refused.code == Some(64) && refused.err.contains("hint: dchain snapshot --disk"),
        "{}",
        refused.err
    );
    for store in ["nothing", "base", "."] {
        let refused = ask(&folder, &format!("migrate --disk vm {store}"));
        assert!(refused.code.is_some_and(|code| code != 0 && code != 70), "{store}: {}", refused.err);
    }
}

/// A point in time that only the old head has must not go with it.
#[test]
fn an_old_head_with_internal_snapshots_stays_whatever_was_asked() {
    let folder = disks();
    folder.qemu_img("snapshot -c before top");
    let daemon = serve(&folder);
    let plan = answer(&folder, "migrate -n --disk vm --remove-source store");
    assert!(plan["lost"][0].as_str().unwrap().ends_with("top: snapshot before"), "{plan}");
    assert_eq!(plan["removed"], json!([]), "{plan}");
    let moved = ask(&folder, "migrate --disk vm --yes --remove-source store");
    assert!(moved.code == Some(0) && moved.err.contains("not taken along"), "{}{}", moved.out, moved.err);
    assert!(daemon.stop().0.success());
    assert_same(&folder.flat("qcow2", "store/top"), &expected(&[]), "the disk");
    folder.qemu_img("snapshot -a before top.moved");
    assert!(folder.file("base").exists() && !folder.file("top").exists());
}
