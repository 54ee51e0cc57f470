//! A user's walk through the program: every changing command, with names relative to the working folder.

use crate::{
    dchain::{command, dchain, done},
    foreign::{Scratch, assert_same},
};
use std::path::PathBuf;

fn write(folder: &Scratch, image: &str, what: &str) {
    folder.qemu_io("qcow2", image, &[what]);
}

/// base <- one <- two, made by the program, written by qemu.
fn chain() -> Scratch {
    let folder = Scratch::new();
    let run = |arguments: &[&str]| done(&folder.path(), arguments);
    run(&["create", "-f", "qcow2", "base", "8M"]);
    write(&folder, "base", "write -q -P 1 0 6M");
    run(&["create", "-b", "base", "-F", "qcow2", "one"]);
    write(&folder, "one", "write -q -P 2 1M 1M");
    run(&["snapshot", "one", "two"]);
    write(&folder, "two", "write -q -P 3 1500k 1M");
    folder
}

fn shows(folder: &Scratch, image: &str, truth: &[u8]) {
    folder.qemu_img(&format!("check -q -f qcow2 {image}"));
    assert_same(&folder.flat("qcow2", image), truth, image);
}

#[test]
fn every_changing_command_takes_names_relative_to_the_working_folder() {
    let folder = chain();
    let here = folder.path();
    let truth = folder.flat("qcow2", "two");
    done(&here, &["consolidate", "--yes", "--new", "flat", "two"]);
    shows(&folder, "flat", &truth);
    done(&here, &["convert", "-O", "qcow2", "-c", "two", "packed"]);
    shows(&folder, "packed", &truth);
    std::fs::create_dir(folder.file("there")).unwrap();
    done(&here, &["copy", "--verify", "two", "there"]);
    shows(&folder, "there/two", &truth);
    std::fs::create_dir(folder.file("flattened")).unwrap();
    let flattened = done(&here, &["copy", "--share", "flatten", "--verify", "two", "flattened"]);
    assert!(flattened.out.contains("verified: bytes"), "{}", flattened.out);
    shows(&folder, "flattened/two", &truth);
    done(&here, &["rebase", "-b", "", "packed"]);
    done(&here, &["rebase", "-b", "base", "-F", "qcow2", "flat"]);
    shows(&folder, "flat", &truth);
    done(&here, &["consolidate", "--yes", "--into", "one", "two"]);
    shows(&folder, "two", &truth);
    assert!(!folder.file("one").exists());
    done(&here, &["snapshot", "two", "three"]);
    write(&folder, "three", "write -q -P 9 0 1M");
    done(&here, &["revert", "--yes", "three", "two"]);
    shows(&folder, "three", &truth);
    done(&here, &["resize", "three", "+1M"]);
    done(&here, &["id", "seal", "--chain", "two"]);
    done(&here, &["id", "verify", "two"]);
    let strays: Vec<_> = std::fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(strays.iter().all(|name| !name.to_string_lossy().contains("draft")), "{strays:?}");
}

#[test]
fn a_fold_that_would_harm_a_sibling_names_it() {
    let folder = chain();
    let here = folder.path();
    done(&here, &["snapshot", "one", "sibling"]);
    let run = dchain(&here, &["consolidate", "--yes", "--into", "base", "two"]);
    assert_eq!(run.code, Some(69), "{}{}", run.out, run.err);
    assert!(run.err.contains("sibling"), "{}", run.err);
    let truth = folder.flat("qcow2", "two");
    shows(&folder, "two", &truth);
}

#[test]
fn a_chain_that_was_moved_is_mended_and_one_that_was_changed_is_refused() {
    let folder = chain();
    let here = folder.path();
    let truth = folder.flat("qcow2", "two");
    std::fs::rename(folder.file("base"), folder.file("b")).unwrap();
    std::fs::rename(folder.file("one"), folder.file("o")).unwrap();
    let lost = dchain(&here, &["info", "--backing-chain", "two"]);
    assert_eq!(lost.code, Some(1), "{}{}", lost.out, lost.err);
    done(&here, &["relink", "."]);
    shows(&folder, "two", &truth);
    write(&folder, "b", "write -q -P 77 3M 64k");
    let refused = dchain(&here, &["map", "two"]);
    assert_eq!(refused.code, Some(77), "{}{}", refused.out, refused.err);
    done(&here, &["relink", "--yes", "--accept", "o"]);
    done(&here, &["map", "two"]);
}

/// Begins to fold the whole disk, and kills the job once its journal stands.
fn cut_off(folder: &Scratch) {
    let here = folder.path();
    let mut job = command(&here, &["consolidate", "--yes", "--rate", "512K", "two"]).spawn().unwrap();
    while journal(folder).is_none() {
        assert!(job.try_wait().unwrap().is_none(), "the job ended before it was cut off");
    }
    job.kill().unwrap();
    job.wait().unwrap();
    assert!(journal(folder).is_some(), "the job ended before it was cut off");
}

fn journal(folder: &Scratch) -> Option<PathBuf> {
    let notes = std::fs::read_dir(folder.file(".dchain")).into_iter().flatten();
    let mut paths = notes.map(|entry| entry.unwrap().path());
    paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("consolidate-"))
}

#[test]
fn a_fold_that_was_cut_off_is_given_up_under_whatever_name_its_disk_has() {
    let folder = chain();
    let here = folder.path();
    let truth = folder.flat("qcow2", "two");
    cut_off(&folder);
    std::fs::rename(folder.file("two"), folder.file("renamed")).unwrap();
    done(&here, &["map", "renamed"]);
    let called = dchain(&here, &["consolidate", "--yes", "two"]);
    assert!(called.code == Some(1) && called.err.contains("renamed by now"), "{}", called.err);
    std::fs::rename(folder.file("base"), folder.file("elsewhere")).unwrap();
    let lost = dchain(&here, &["consolidate", "--abandon", "renamed"]);
    assert!(lost.code == Some(1) && lost.err.contains("give it its name back"), "{}", lost.err);
    std::fs::rename(folder.file("elsewhere"), folder.file("base")).unwrap();
    let plan = done(&here, &["consolidate", "--abandon", "-n", "--output", "json", "renamed"]).json();
    assert_eq!(plan["top"], folder.file("renamed").to_str().unwrap());
    let file = journal(&folder).unwrap();
    let refused = dchain(&here, &["map", "base"]);
    assert!(refused.code == Some(69) && refused.err.contains(file.to_str().unwrap()), "{}", refused.err);
    let unasked = dchain(&here, &["consolidate", "--abandon", "renamed"]);
    assert!(unasked.code == Some(64) && journal(&folder).is_some(), "{}", unasked.err);
    done(&here, &["consolidate", "--abandon", "--yes", file.to_str().unwrap()]);
    assert_eq!(journal(&folder), None);
    shows(&folder, "renamed", &truth);
    let none = dchain(&here, &["consolidate", "--abandon", "renamed"]);
    assert!(none.code == Some(1) && none.err.contains("cut off"), "{}", none.err);
    done(&here, &["consolidate", "--yes", "renamed"]);
    shows(&folder, "renamed", &truth);
}

#[test]
fn a_journal_that_nobody_can_read_can_be_removed_by_its_name() {
    let folder = chain();
    let here = folder.path();
    let truth = folder.flat("qcow2", "two");
    std::fs::create_dir_all(folder.file(".dchain")).unwrap();
    let file = folder.file(".dchain/consolidate-0123456789abcdef.journal");
    std::fs::write(&file, b"nothing that could be read").unwrap();
    let refused = dchain(&here, &["map", "two"]);
    assert!(refused.code == Some(65) && refused.err.contains(file.to_str().unwrap()), "{}", refused.err);
    assert!(refused.err.contains("--abandon"), "{}", refused.err);
    let name = file.to_str().unwrap();
    let unasked = dchain(&here, &["consolidate", "--abandon", name]);
    assert_eq!(unasked.code, Some(64), "{}", unasked.err);
    done(&here, &["consolidate", "--abandon", "--yes", name]);
    done(&here, &["map", "two"]);
    shows(&folder, "two", &truth);
}

#[test]
fn nothing_is_reshaped_around_a_fold_that_was_cut_off_until_it_is_ended() {
    let folder = chain();
    let here = folder.path();
    let truth = folder.flat("qcow2", "two");
    cut_off(&folder);
    for refused in [
        &["snapshot", "two", "three"][..],
        &["revert", "--yes", "two", "one"],
        &["rebase", "-b", "base", "-F", "qcow2", "two"],
        &["resize", "two", "+1M"],
        &["map", "base"],
    ] {
        let run = dchain(&here, refused);
        assert_eq!(run.code, Some(69), "{refused:?}: {}{}", run.out, run.err);
        assert!(run.err.contains("cut off"), "{refused:?}: {}", run.err);
    }
    done(&here, &["map", "two"]);
    done(&here, &["consolidate", "--yes", "two"]);
    shows(&folder, "two", &truth);
}

#[test]
fn a_folded_layer_that_got_another_child_meanwhile_is_not_removed() {
    let folder = chain();
    let here = folder.path();
    cut_off(&folder);
    // qemu asks nobody.
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b one stranger");
    let run = dchain(&here, &["consolidate", "--yes", "two"]);
    assert_eq!(run.code, Some(69), "{}{}", run.out, run.err);
    assert!(run.err.contains("stranger") && folder.file("one").exists(), "{}", run.err);
    std::fs::remove_file(folder.file("stranger")).unwrap();
    done(&here, &["consolidate", "--yes", "two"]);
    assert!(!folder.file("one").exists());
}
