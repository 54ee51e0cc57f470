//! The commands that change chains, from end to end: what qemu-img reads at the head stays the same.

use super::{
    dchain::{dchain, done, qemu},
    foreign::{Scratch, assert_same},
};
use std::{fs, path::Path};
use tempfile::{TempDir, tempdir};

/// `base`, `mid` on it, `top` on that, all qcow2, and what `top` shows in `truth.raw`.
fn chain() -> TempDir {
    let folder = tempdir().unwrap();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "base", "8M"]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 4M", "base"]);
    for (parent, child, writes) in [
        ("base", "mid", ["write -P 2 1M 300k", "write -z 2M 128k"]),
        ("mid", "top", ["write -P 3 1100k 64k", "write -P 4 6M 4k"]),
    ] {
        done(at, &["create", "-q", "-f", "qcow2", "-b", parent, "-F", "qcow2", child]);
        qemu(at, "qemu-io", &["-f", "qcow2", "-c", writes[0], "-c", writes[1], child]);
    }
    qemu(at, "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "top", "truth.raw"]);
    folder
}

fn shows_the_truth(folder: &Path, image: &str) {
    qemu(folder, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "truth.raw", image]);
    qemu(folder, "qemu-img", &["check", "-q", "-f", "qcow2", image]);
}

#[test]
fn layers_are_sealed_and_a_change_underneath_is_noticed() {
    let folder = chain();
    let at = folder.path();
    let sealed = done(at, &["id", "seal", "--chain", "--output", "json", "top"]).json();
    let shown = done(at, &["id", "show", "--output", "json", "top"]).json();
    for n in 0..3 {
        assert_eq!(sealed[n]["id"], shown[n]["id"], "layer {n}");
        assert!(sealed[n]["id"].as_str().unwrap().starts_with("c1:"));
    }
    assert_eq!(done(at, &["id", "verify", "--output", "json", "mid"]).json()["matches"], true);
    // Another program writes into the base, as nothing in qemu forbids.
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 4k", "base"]);
    let run = dchain(at, &["map", "top"]);
    assert_eq!(run.code, Some(77), "{}", run.err);
    assert!(run.err.contains("base"), "{}", run.err);
    assert_eq!(dchain(at, &["check", "--lineage", "top"]).code, Some(77));
    assert_eq!(dchain(at, &["id", "verify", "base"]).code, Some(77));
}

#[test]
fn a_chain_is_folded_after_its_plan_was_shown() {
    let folder = chain();
    let at = folder.path();
    let plan = done(at, &["consolidate", "--dry-run", "--output", "json", "top"]).json();
    assert!(
        plan["folded"].as_array().unwrap().len() == 2 && plan["copy-bytes"].as_u64().unwrap() > 300 << 10
    );
    shows_the_truth(at, "top");
    let run = dchain(at, &["consolidate", "top"]);
    assert_eq!(run.code, Some(64), "points in time are lost: {}", run.err);
    let run = done(at, &["consolidate", "--yes", "top"]);
    assert!(run.out.contains("verified: tree"), "{}", run.out);
    shows_the_truth(at, "top");
    assert!(!at.join("mid").exists() && !at.join("base").exists());
}

#[test]
fn a_chain_is_copied_and_what_is_there_is_linked() {
    let folder = chain();
    let at = folder.path();
    done(at, &["id", "seal", "--chain", "top"]);
    fs::create_dir(at.join("there")).unwrap();
    let first = done(at, &["copy", "--verify", "--output", "json", "mid", "there"]).json();
    assert_eq!(first["is-verified"], true);
    let plan = done(at, &["copy", "-n", "--output", "json", "top", "there"]).json();
    let actions: Vec<_> =
        plan["layers"].as_array().unwrap().iter().map(|l| l["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["copy", "link"]);
    done(at, &["copy", "top", "there"]);
    shows_the_truth(at, "there/top");
    fs::create_dir(at.join("flat")).unwrap();
    done(at, &["copy", "--share", "flatten", "top", "flat"]);
    shows_the_truth(at, "flat/top");
}

#[test]
fn differences_are_listed() {
    let folder = chain();
    let list = done(folder.path(), &["diff", "--output", "json", "mid", "top"]).json();
    let found: Vec<_> =
        list.as_array().unwrap().iter().map(|e| (e["offset"].as_u64(), e["length"].as_u64())).collect();
    assert_eq!(found, [(Some(1100 << 10), Some(64 << 10)), (Some(6 << 20), Some(4 << 10))]);
    assert!(done(folder.path(), &["diff", "top", "top"]).out.is_empty());
}

#[test]
fn a_parent_whose_format_is_not_stated_is_stated_by_a_rebase_onto_it() {
    let folder = Scratch::new();
    let here = folder.path();
    folder.qemu_img("create -q -f qcow2 base 1M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 64k"]);
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 other 1M");
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 top 1M");
    clear_stated_format(&folder.file("top"));
    let refused = dchain(&here, &["map", "top"]);
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    assert!(refused.err.contains("hint: dchain rebase -b PARENT -F FMT "), "{}", refused.err);
    // What another one shows is compared with what this one shows: that has to be known first.
    assert_eq!(dchain(&here, &["rebase", "-b", "other", "-F", "qcow2", "top"]).code, Some(77));
    done(&here, &["rebase", "-b", "base", "-F", "qcow2", "top"]);
    let info = done(&here, &["info", "--output", "json", "top"]).json();
    assert_eq!([&info["backing-filename"], &info["backing-filename-format"]], ["base", "qcow2"]);
    assert_same(&folder.flat("qcow2", "top"), &folder.flat("qcow2", "base"), "top");
}

/// Takes the header extension away that states the parent's format, as programs left it out that are old.
fn clear_stated_format(image: &std::path::Path) {
    let mut bytes = std::fs::read(image).unwrap();
    let at = bytes.windows(4).position(|four| four == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    // A kind that nobody knows.
    bytes[at..at + 4].copy_from_slice(b"none");
    std::fs::write(image, bytes).unwrap();
}

#[test]
fn a_layer_of_a_chain_gets_no_data_file_and_none_is_offered() {
    let folder = Scratch::new();
    let here = folder.path();
    let commands: [(&[&str], &[&str]); 4] = [
        (&["snapshot"], &["one", "two"]),
        (&["revert"], &["one", "two"]),
        (&["consolidate"], &["--new", "two", "one"]),
        (&["convert", "--chain", "-O", "qcow2"], &["one", "two"]),
    ];
    for (command, images) in commands {
        let help = done(&here, &[command, &["-o", "help"], images].concat()).out;
        assert!(help.contains("cluster_size") && !help.contains("data_file"), "{command:?}: {help}");
        let run = dchain(&here, &[command, &["-o", "data_file=data"], images].concat());
        assert_eq!((run.code, run.err.contains("in itself")), (Some(64), true), "{command:?}: {}", run.err);
    }
    assert!(done(&here, &["create", "-f", "qcow2", "-o", "help"]).out.contains("data_file"));
}

#[test]
fn help_names_what_tree_draws_and_measure_says_what_it_wants() {
    let here = std::path::Path::new(".");
    assert!(done(here, &["tree", "--help"]).out.contains("--output <human|json|dot|svg>"));
    assert!(done(here, &["map", "--help"]).out.contains("--output <human|json>"));
    let run = dchain(here, &["measure"]);
    assert_eq!((run.code, run.err.contains("--size SIZE")), (Some(64), true), "{}", run.err);
    assert_eq!(dchain(here, &["measure", "--size", "1M", "-f", "raw"]).code, Some(64));
}

/// `base`, and on it `head`, and in the folder inside it that a user made, `vm/child`.
fn far_child() -> Scratch {
    let folder = Scratch::new();
    let here = folder.path();
    fs::create_dir(folder.file("vm")).unwrap();
    folder.qemu_img("create -q -f qcow2 base 1M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 64k"]);
    done(&here, &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "head"]);
    done(&here, &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "vm/child"]);
    folder
}

#[test]
fn a_child_in_another_folder_keeps_its_parent() {
    let folder = far_child();
    let here = folder.path();
    let child = folder.file("vm/child").display().to_string();
    let refused = dchain(&here, &["consolidate", "--yes", "--into", "base", "head"]);
    assert_eq!((refused.code, refused.err.contains(&child)), (Some(69), true), "{}", refused.err);
    // It is not its disk's own, either.
    let refused = dchain(&here, &["consolidate", "--yes", "head"]);
    assert_eq!((refused.code, refused.err.contains(&child)), (Some(69), true), "{}", refused.err);
    let tree = done(&here, &["tree", "."]).out;
    assert!(tree.contains(&format!("── {child} (")) && tree.contains("── head ("), "{tree}");
    let lint = done(&here, &["lint", "--output", "json", "."]).json();
    let at_risk = lint["findings"].as_array().unwrap().iter().find(|f| f["kind"] == "siblings-at-risk");
    assert!(at_risk.is_some_and(|finding| finding["about"].to_string().contains(&child)), "{lint}");
    fs::remove_file(folder.file("head")).unwrap();
    let resize = ["resize", "--yes", "base", "2M"];
    // Both folders moved as one: the note leads from the one to the other still.
    fs::create_dir(folder.file("moved")).unwrap();
    for name in ["base", "vm", ".dchain"] {
        fs::rename(folder.file(name), folder.file(&format!("moved/{name}"))).unwrap();
    }
    let refused = dchain(&folder.file("moved"), &resize);
    assert_eq!(
        (refused.code, refused.err.contains("/moved/vm/child lies on it")),
        (Some(69), true),
        "{}",
        refused.err
    );
    // A note that leads to nothing, or to another one's child, is none.
    fs::rename(folder.file("moved/vm/child"), folder.file("moved/vm/renamed")).unwrap();
    assert_eq!(dchain(&folder.file("moved"), &resize).code, Some(69));
    folder.try_run("qemu-img", ["rebase", "-q", "-u", "-b", "", "moved/vm/renamed"]);
    done(&folder.file("moved"), &resize);
    fs::remove_dir_all(folder.file("moved/vm")).unwrap();
    done(&folder.file("moved"), &["resize", "--yes", "base", "3M"]);
}

#[test]
fn every_command_that_puts_a_child_into_another_folder_notes_it() {
    let commands: [(&[&str], &str); 4] = [
        (&["snapshot", "base", "vm/new"], "vm/new"),
        (&["rebase", "-b", "base", "-F", "qcow2", "vm/child"], "vm/child"),
        (&["consolidate", "--into", "base", "--new", "vm/new", "head"], "vm/new"),
        (&["relink", "--map", "lost=base", ".", "vm"], "vm/child"),
    ];
    for (command, made) in commands {
        let folder = far_child();
        let here = folder.path();
        fs::remove_dir_all(folder.file(".dchain/elsewhere")).unwrap();
        if command[0] == "relink" {
            folder.qemu_img("rebase -q -u -b lost -F qcow2 vm/child");
        }
        let allowed = [command, &["--allow-dir", here.to_str().unwrap()]].concat();
        let stated = if command[0] == "relink" { &[][..] } else { &["-f", "qcow2"] };
        done(&here, &[&allowed[..], stated].concat());
        if made != "vm/child" {
            fs::remove_file(folder.file("vm/child")).unwrap();
        }
        fs::remove_file(folder.file("head")).unwrap();
        let refused = dchain(&here, &["resize", "--yes", "base", "2M"]);
        assert_eq!(
            (refused.code, refused.err.contains(made)),
            (Some(69), true),
            "{command:?}: {}",
            refused.err
        );
    }
}
