//! A disk that is known as raw stays raw, whatever its guest writes into it.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};
use serde_json::json;
use std::{fs, os::unix::fs::FileExt, os::unix::fs::MetadataExt};

/// Writes the header of a qcow2 image that names `secret` as its parent into a disk, as a guest can.
fn be_evil(folder: &Scratch, disk: &str) {
    folder.qemu_img("create -q -f raw secret 1M");
    folder.qemu_img("create -q -f qcow2 -F raw -b secret evil 1M");
    let evil = fs::read(folder.file("evil")).unwrap();
    let file = fs::OpenOptions::new().write(true).open(folder.file(disk)).unwrap();
    file.write_all_at(&evil, 0).unwrap();
    fs::remove_file(folder.file("evil")).unwrap();
}

#[track_caller]
fn assert_raw(folder: &Scratch, disk: &str) {
    let info = done(&folder.path(), &["info", "--output", "json", disk]).json();
    assert_eq!((&info["format"], &info["starts-like"]), (&json!("raw"), &json!("qcow2")), "{disk}");
    done(&folder.path(), &["convert", "-O", "raw", disk, "copy"]);
    let (ours, bytes) = (fs::read(folder.file("copy")).unwrap(), fs::read(folder.file(disk)).unwrap());
    assert_same(&ours, &bytes, disk);
    fs::remove_file(folder.file("copy")).unwrap();
}

#[test]
fn a_raw_disk_that_was_made_here_stays_raw_whatever_its_guest_wrote() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 image 4M");
    done(&folder.path(), &["create", "-f", "raw", "disk", "4M"]);
    done(&folder.path(), &["convert", "-O", "raw", "image", "converted"]);
    fs::create_dir(folder.file("store")).unwrap();
    done(&folder.path(), &["copy", "disk", "store"]);
    for disk in ["disk", "converted", "store/disk"] {
        be_evil(&folder, disk);
        assert_raw(&folder, disk);
    }
    let told = done(&folder.path(), &["info", "disk"]).out;
    assert!(told.contains("starts like: qcow2"), "{told}");
    // A person's word counts.
    let stated = done(&folder.path(), &["info", "-f", "qcow2", "--output", "json", "disk"]).json();
    assert_eq!(stated["format"], json!("qcow2"));
    fs::rename(folder.file("disk"), folder.file("renamed")).unwrap();
    assert_raw(&folder, "renamed");
}

#[test]
fn a_raw_disk_that_was_frozen_stays_raw_below_its_child_and_in_the_tree() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f raw disk 4M");
    done(&folder.path(), &["snapshot", "-f", "raw", "disk", "head"]);
    be_evil(&folder, "disk");
    assert_raw(&folder, "disk");
    let tree = done(&folder.path(), &["tree", "--output", "json", "."]).json();
    let found =
        tree.as_array().unwrap().iter().find(|node| node["filename"].as_str().unwrap().ends_with("disk"));
    assert_eq!(found.unwrap()["format"], json!("raw"));
    // What a careless program does: it believes the header that the guest wrote.
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b disk careless");
    let refused = dchain(&folder.path(), &["map", "careless"]);
    assert_eq!(refused.code, Some(77), "{}", refused.out);
    assert!(refused.err.contains("which is known as raw"), "{}", refused.err);
}

#[test]
fn a_layer_that_is_known_as_qcow2_and_lost_its_header_is_not_taken_for_a_raw_disk() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 image 4M");
    done(&folder.path(), &["id", "seal", "image"]);
    let file = fs::OpenOptions::new().write(true).open(folder.file("image")).unwrap();
    file.write_all_at(&[0; 512], 0).unwrap();
    let refused = dchain(&folder.path(), &["info", "image"]);
    assert_eq!(refused.code, Some(65));
    assert!(refused.err.contains("is known as qcow2, but has no such header"), "{}", refused.err);
    done(&folder.path(), &["info", "-f", "raw", "image"]);
}

#[test]
fn a_new_file_that_got_the_number_of_a_raw_disk_is_not_taken_for_it() {
    let folder = Scratch::new();
    for round in 0..20 {
        done(&folder.path(), &["create", "-f", "raw", "disk", "1M"]);
        let number = fs::metadata(folder.file("disk")).unwrap().ino();
        fs::remove_file(folder.file("disk")).unwrap();
        folder.qemu_img("create -q -f qcow2 disk 1M");
        let is_same = fs::metadata(folder.file("disk")).unwrap().ino() == number;
        let info = done(&folder.path(), &["info", "--output", "json", "disk"]).json();
        assert_eq!(info["format"], json!("qcow2"), "round {round}, the same number: {is_same}");
        fs::remove_file(folder.file("disk")).unwrap();
        if is_same {
            break;
        }
    }
}
