//! `dchain copy --remove-source` on chains that qemu made: the sources go, and nothing that somebody needs.

use crate::{
    dchain::{dchain, done, qemu},
    foreign::{Scratch, assert_same},
};
use std::fs;

/// base, middle and top in `vm`; an empty `store`.
fn scene() -> (Scratch, Vec<u8>) {
    let folder = Scratch::new();
    for name in ["vm", "store"] {
        fs::create_dir(folder.file(name)).unwrap();
    }
    let vm = folder.file("vm");
    let io = |image: &str, command: &str| qemu(&vm, "qemu-io", &["-f", "qcow2", "-c", command, image]);
    qemu(&vm, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=base.data", "base", "8M"]);
    io("base", "write -q -P 1 0 3M");
    for (parent, child, command) in
        [("base", "middle", "write -q -P 2 1M 64k"), ("middle", "top", "write -q -P 3 2M 64k")]
    {
        qemu(&vm, "qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", parent, child]);
        io(child, command);
    }
    let view = flat(&folder, "vm", "top");
    (folder, view)
}

/// What qemu shows. It looks for data files in the working folder.
fn flat(folder: &Scratch, of: &str, image: &str) -> Vec<u8> {
    let place = folder.file(of);
    qemu(&place, "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image, "../flat"]);
    fs::read(folder.file("flat")).unwrap()
}

fn names(folder: &Scratch, of: &str) -> Vec<String> {
    let entries = fs::read_dir(folder.file(of)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".dchain");
    names.sort();
    names
}

/// qemu-img leaves no word beside a parent that there are children of it elsewhere.
#[test]
fn a_source_that_an_image_of_the_target_lies_on_stays() {
    let (folder, view) = scene();
    let (store, clone) = (folder.file("store"), ["-b", "../vm/middle", "clone"]);
    qemu(&store, "qemu-img", &[&["create", "-q", "-f", "qcow2", "-F", "qcow2"], &clone[..]].concat());
    let arguments = ["copy", "--yes", "--share", "deny", "--remove-source", "vm/top", "store"];
    let plan = done(&folder.path(), &[&arguments[..], &["-n"]].concat());
    assert!(plan.out.contains("stays: ") && plan.out.contains("clone lies on it, too"), "{}", plan.out);
    done(&folder.path(), &arguments);
    assert_eq!(names(&folder, "vm"), ["base", "base.data", "middle"]);
    assert_same(&flat(&folder, "store", "top"), &view, "top");
}

#[test]
fn a_moved_chain_is_whole_at_the_target_and_gone_at_the_source() {
    let (folder, view) = scene();
    let arguments = ["copy", "--remove-source", "vm/top", "store"];
    let unasked = dchain(&folder.path(), &arguments);
    assert_eq!(unasked.code, Some(64), "a script has to say --yes");
    let plan = done(&folder.path(), &[&arguments[..], &["-n", "--output", "json"]].concat()).json();
    assert_eq!(plan["removed"].as_array().unwrap().len(), 4, "{plan}");
    assert_eq!(names(&folder, "store"), Vec::<String>::new());
    let run = done(&folder.path(), &[&arguments[..], &["--yes"]].concat());
    assert!(run.out.contains("verified: bytes"), "{}", run.out);
    assert_eq!(names(&folder, "vm"), Vec::<String>::new());
    assert_eq!(names(&folder, "store"), ["base", "base.data", "middle", "top"]);
    assert_same(&flat(&folder, "store", "top"), &view, "top");
    qemu(&folder.file("store"), "qemu-img", &["check", "-q", "top"]);
}

#[test]
fn a_chain_that_is_named_from_its_own_folder_is_moved_and_every_plan_names_whole_paths() {
    let (folder, view) = scene();
    let vm = folder.file("vm");
    let plan = done(&vm, &["copy", "--remove-source", "top", "../store", "-n", "--output", "json"]).json();
    let removed = plan["removed"].as_array().unwrap();
    assert!(removed.iter().all(|file| file.as_str().unwrap().starts_with('/')), "{plan}");
    done(&vm, &["copy", "--remove-source", "--yes", "top", "../store"]);
    assert_eq!(names(&folder, "vm"), Vec::<String>::new());
    assert_same(&flat(&folder, "store", "top"), &view, "top");
}

#[test]
fn what_a_sibling_needs_stays_and_the_plan_says_so() {
    let (folder, view) = scene();
    let vm = folder.file("vm");
    qemu(&vm, "qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "sibling"]);
    qemu(&vm, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 9 5M 64k", "sibling"]);
    let sibling = flat(&folder, "vm", "sibling");
    let run = done(&folder.path(), &["copy", "--remove-source", "--yes", "vm/top", "store"]);
    assert!(run.err.contains("stays: ") && run.err.contains("sibling lies on it, too"), "{}", run.err);
    assert_eq!(names(&folder, "vm"), ["base", "base.data", "sibling"]);
    assert_same(&flat(&folder, "vm", "sibling"), &sibling, "sibling");
    assert_same(&flat(&folder, "store", "top"), &view, "top");
}

#[test]
fn a_disk_that_others_lie_on_is_not_moved_and_neither_is_a_flat_copy() {
    let (folder, _) = scene();
    let refused = dchain(&folder.path(), &["copy", "--remove-source", "--yes", "vm/middle", "store"]);
    assert_eq!(refused.code, Some(69), "{}", refused.err);
    assert!(refused.err.contains("top lies on it, too"), "{}", refused.err);
    let flat = ["copy", "--remove-source", "--share", "flatten", "--yes", "vm/top", "store"];
    assert_eq!(dchain(&folder.path(), &flat).code, Some(64));
    assert_eq!(names(&folder, "store"), Vec::<String>::new());
    assert_eq!(names(&folder, "vm"), ["base", "base.data", "middle", "top"]);
}

#[test]
fn where_something_is_in_the_way_no_hint_says_to_remove_an_image() {
    let (folder, _) = scene();
    let at = folder.path();
    done(&at, &["bitmap", "--add", "vm/top", "day"]);
    let hint = |arguments: &[&str]| {
        let run = dchain(&at, arguments);
        assert_eq!(run.code, Some(1), "{}", run.err);
        run.err.split_once("hint: ").map(|(_, hint)| hint.to_owned()).unwrap_or_default()
    };
    assert_eq!(hint(&["bitmap", "--add", "vm/top", "day"]), "");
    assert_eq!(hint(&["bitmap", "--remove", "vm/top", "night"]), "");
    assert_eq!(hint(&["consolidate", "--abandon", "vm/top"]), "");
    assert!(hint(&["copy", "vm/top", "nowhere"]).contains("mkdir nowhere"));
    assert!(hint(&["convert", "--chain", "-O", "qcow2", "vm/top", "nowhere"]).contains("mkdir nowhere"));
    done(&at, &["copy", "vm/top", "store"]);
    fs::write(folder.file("store/top"), "another").unwrap();
    assert!(hint(&["copy", "vm/top", "store"]).contains("choose another folder"));
    assert_eq!(
        hint(&["convert", "--chain", "-O", "qcow2", "vm/top", "store"]).trim(),
        "choose another folder"
    );
}

#[test]
fn a_source_stays_if_a_file_that_cannot_be_read_may_lie_on_it() {
    let (folder, view) = scene();
    fs::write(folder.file("vm/broken"), b"QFI\xfb and no version").unwrap();
    let arguments = ["copy", "--remove-source", "--yes", "vm/top", "store"];
    let refused = dchain(&folder.path(), &arguments);
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    assert!(refused.err.contains("broken: might lie on a layer"), "{}", refused.err);
    assert!(refused.err.contains("hint: --ignore-unread"), "{}", refused.err);
    assert_eq!(names(&folder, "store"), Vec::<String>::new());
    done(&folder.path(), &[&arguments[..], &["--ignore-unread"]].concat());
    assert_eq!(names(&folder, "vm"), ["broken"]);
    assert_same(&flat(&folder, "store", "top"), &view, "top");
}

#[test]
fn a_source_stays_whose_data_another_image_needs() {
    let (folder, _) = scene();
    let vm = folder.file("vm");
    qemu(&vm, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=other.data", "other", "8M"]);
    qemu(&vm, "qemu-img", &["amend", "-q", "-f", "qcow2", "-o", "data_file=base.data", "other"]);
    let run = done(&folder.path(), &["copy", "--remove-source", "--yes", "vm/top", "store"]);
    assert!(run.err.contains("other keeps its bytes there"), "{}", run.err);
    assert_eq!(names(&folder, "vm"), ["base", "base.data", "other", "other.data"]);
}

#[test]
fn layers_of_one_name_get_names_that_stay_the_same() {
    let folder = Scratch::new();
    let here = folder.path();
    for name in ["a", "b", "there", "raw"] {
        fs::create_dir(folder.file(name)).unwrap();
    }
    folder.qemu_img("create -q -f qcow2 b/vm.qcow2 1M");
    folder.qemu_io("qcow2", "b/vm.qcow2", &["write -q -P 1 0 128k"]);
    folder.qemu_img("create -q -f qcow2 -b ../b/vm.qcow2 -F qcow2 a/vm.qcow2");
    folder.qemu_io("qcow2", "a/vm.qcow2", &["write -q -P 2 0 64k"]);
    let allowed = folder.file("b").display().to_string();
    let copy = |command: &[&str]| {
        let run =
            done(&here, &[command, &["--output", "json", "-f", "qcow2", "--allow-dir", &allowed]].concat())
                .json();
        let layers = if run["plan"].is_null() { &run["layers"] } else { &run["plan"]["layers"] };
        let name = |n: usize| layers[n]["to"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        (name(0), name(1))
    };
    let planned = copy(&["copy", "--dry-run", "a/vm.qcow2", "there"]);
    let sum = planned.1.strip_prefix("vm-").and_then(|rest| rest.strip_suffix(".qcow2"));
    assert!(planned.0 == "vm.qcow2" && sum.is_some_and(|sum| sum.len() == 8), "{planned:?}");
    assert_eq!(copy(&["copy", "--verify", "a/vm.qcow2", "there"]), planned);
    assert_eq!(copy(&["copy", "a/vm.qcow2", "there"]), planned, "it is there already");
    assert_eq!(copy(&["convert", "--chain", "-O", "qcow2", "a/vm.qcow2", "raw"]), planned);
    for name in ["there/vm.qcow2", "raw/vm.qcow2"] {
        let info = folder.qemu_img(&format!("info {name}"));
        assert!(info.contains(&format!("backing file: {} ", planned.1)), "{info}");
        assert!(folder.flat("qcow2", name) == folder.flat("qcow2", "a/vm.qcow2"), "{name}");
    }
}
