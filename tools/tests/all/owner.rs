//! Whose a disk is, and who may use it, after other files took its place.

use crate::{
    dchain::{done, qemu},
    foreign::Scratch,
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
};

fn mode(folder: &Scratch, name: &str) -> u32 {
    fs::metadata(folder.file(name)).unwrap().mode() & 0o777
}

fn set_mode(folder: &Scratch, name: &str, mode: u32) {
    fs::set_permissions(folder.file(name), Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_private_disk_stays_private_and_keeps_its_owner() {
    let folder = Scratch::new();
    let at = folder.path();
    qemu(&at, "qemu-img", &["create", "-q", "-f", "qcow2", "base", "1M"]);
    qemu(&at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 1 0 64k", "base"]);
    set_mode(&folder, "base", 0o664);
    done(&at, &["snapshot", "base", "top"]);
    assert_eq!(mode(&folder, "top"), 0o664, "a snapshot");
    set_mode(&folder, "top", 0o600);
    done(&at, &["snapshot", "top", "next"]);
    assert_eq!(mode(&folder, "next"), 0o600, "a snapshot of a private disk");
    // Only root gives files away.
    let gives = std::os::unix::fs::chown(folder.file("next"), Some(12345), Some(54321)).is_ok();
    let owner = || {
        let next = fs::metadata(folder.file("next")).unwrap();
        (next.uid(), next.gid())
    };
    let before = owner();
    assert_eq!(before == (12345, 54321), gives);
    done(&at, &["revert", "--yes", "next", "top"]);
    assert_eq!((mode(&folder, "next"), owner()), (0o600, before), "after going back");
    fs::create_dir(folder.file("store")).unwrap();
    set_mode(&folder, "top", 0o444);
    done(&at, &["copy", "next", "store"]);
    assert_eq!(mode(&folder, "store/base"), 0o664, "copies");
    assert_eq!(mode(&folder, "store/top"), 0o444, "copies");
    assert_eq!(mode(&folder, "store/next"), 0o600, "copies");
    set_mode(&folder, "top", 0o644);
    done(&at, &["consolidate", "--yes", "next"]);
    assert_eq!((mode(&folder, "next"), owner()), (0o600, before), "a consolidated disk");
    assert!(!folder.file("base").exists());
}
