//! Whose a disk is, and who may use it, after other files took its place.

use crate::{
    dchain::{Run, done, qemu},
    foreign::Scratch,
};
use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::CommandExt,
    },
    process::Command,
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

#[test]
fn links_to_what_is_closed_and_to_themselves_do_not_hide_a_folder() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 1M");
    fs::create_dir(folder.file("closed")).unwrap();
    fs::write(folder.file("closed/secret"), "secret").unwrap();
    symlink("closed/secret", folder.file("link")).unwrap();
    symlink("itself", folder.file("itself")).unwrap();
    // Whoever runs it must be able to: it may be built where only root looks.
    fs::copy(env!("CARGO_BIN_EXE_dchain"), folder.file("dchain")).unwrap();
    set_mode(&folder, "closed", 0);
    set_mode(&folder, "", 0o755);
    let mut tree = Command::new(folder.file("dchain"));
    tree.args(["tree", "."]).current_dir(folder.path());
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        tree.uid(65534);
    }
    let run = Run::from(tree.output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(
        run.out.contains("base (qcow2") && run.out.contains("unreadable: ") && run.out.contains("/link: "),
        "{}",
        run.out
    );
    set_mode(&folder, "closed", 0o755);
}
