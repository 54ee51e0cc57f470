//! Chains carried to another folder: what is there already is linked, and the result reads the same.

use crate::{
    dchain::{command, done},
    foreign::{Scratch, assert_same},
};
use deltachain::{
    base::{Error, ErrorKind},
    chain::{Chain, Opening, Policy},
    disk::Disk,
    format::Format,
    io::{Access, Host, real::RealHost},
    job::{
        Progress,
        copy::{Copy, Placed, Report, Request, Share},
        seal,
    },
    store::Ledger,
};
use std::{fs, path::Path, sync::Arc};

fn host() -> Arc<dyn Host> {
    Arc::new(RealHost::new())
}

fn ledger() -> Ledger {
    Ledger::new(host(), None)
}

fn opening(folder: &Scratch) -> Opening {
    let policy = Policy { allowed: vec![folder.path()], ..Policy::default() };
    Opening::reading().with_format(Some(Format::Qcow2)).with_policy(policy).with_ledger(ledger())
}

/// base <- c1 <- c2 <- c3, with data and zeros in each.
pub(super) fn chain() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 4M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 3M"]);
    let mut parent = "base".to_owned();
    for n in 1..=3 {
        folder.qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {parent} c{n}"));
        let write = format!("write -q -P {} {}k 90k", n + 1, n * 500);
        folder.qemu_io("qcow2", &format!("c{n}"), &[&write, &format!("write -q -z {}k 70k", n * 800)]);
        parent = format!("c{n}");
    }
    folder
}

fn seal_below(folder: &Scratch, image: &str) {
    let writing = opening(folder).with_access(Access::Write);
    let layers = seal::open_layers(&host(), &folder.file(image), &writing).unwrap();
    seal::seal(&ledger(), &layers, &Progress::default()).unwrap();
}

fn copy(source: &Scratch, top: &str, target: &Scratch, share: Share) -> Result<Report, Error> {
    let request = Request { share, verify: true, ..Request::default() };
    let paths = (source.file(top), target.path());
    Copy::prepare(&host(), &ledger(), (&paths.0, &paths.1), &opening(source), request)?
        .run(&Progress::default())
}

fn copied(report: &Report) -> Vec<String> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let copies = report.plan.layers.iter().filter_map(|placed| match placed {
        Placed::Copy { to, .. } => Some(name(to)),
        Placed::Link { .. } | Placed::Convert { .. } => None,
    });
    copies.collect()
}

fn check_all(target: &Scratch, images: &[&str]) {
    for image in images {
        target.qemu_img(&format!("check -q -f qcow2 {image}"));
    }
}

#[test]
fn cid_3_every_layer_is_copied_where_nothing_is_there() {
    let (source, target) = (chain(), Scratch::new());
    let before = source.flat("qcow2", "c3");
    let report = copy(&source, "c3", &target, Share::Allow).unwrap();
    assert_eq!(copied(&report), ["c3", "c2", "c1", "base"]);
    assert!(report.is_verified);
    assert_eq!(report.head, target.file("c3"));
    check_all(&target, &["base", "c1", "c2", "c3"]);
    assert_same(&target.flat("qcow2", "c3"), &before, "the copied chain");
    let chain = Chain::open(&host(), &report.head, &opening(&target)).unwrap();
    assert_eq!(chain.layers().len(), 4);
    assert!(fs::read_dir(target.path()).unwrap().all(|e| {
        let name = e.unwrap().file_name().to_string_lossy().into_owned();
        !name.contains("draft")
    }));
}

#[test]
fn cid_4_a_base_that_is_there_under_another_name_is_linked() {
    let (source, target) = (chain(), Scratch::new());
    seal_below(&source, "c3");
    // Another format option, another name, another folder: the content is what counts.
    let flat = target.file("golden");
    source.qemu_img(&format!("convert -f qcow2 -O qcow2 -o cluster_size=4k base {}", flat.display()));
    seal_below(&target, "golden");
    let before = source.flat("qcow2", "c3");
    let report = copy(&source, "c3", &target, Share::Allow).unwrap();
    assert_eq!(copied(&report), ["c3", "c2", "c1"]);
    assert!(matches!(report.plan.layers.last(), Some(Placed::Link { to, .. }) if *to == flat));
    check_all(&target, &["c1", "c2", "c3"]);
    assert!(target.qemu_img("info -U --output=json c1").contains("\"backing-filename\": \"golden\""));
    assert_same(&target.flat("qcow2", "c3"), &before, "linked to golden");
    assert!(report.copied_bytes + report.shared_bytes <= report.plan.copy_bytes);
}

#[test]
fn cid_10_a_flat_image_stands_in_for_a_chain() {
    let (source, target) = (chain(), Scratch::new());
    seal_below(&source, "c3");
    source.qemu_img(&format!("convert -f qcow2 -O qcow2 c2 {}", target.file("flat").display()));
    seal_below(&target, "flat");
    let before = source.flat("qcow2", "c3");
    let report = copy(&source, "c3", &target, Share::ChildOnly).unwrap();
    assert_eq!(copied(&report), ["c3"]);
    assert_same(&target.flat("qcow2", "c3"), &before, "linked to a flat image");
}

#[test]
fn cid_6_an_image_that_was_written_since_it_was_sealed_is_not_linked() {
    let (source, target) = (chain(), Scratch::new());
    seal_below(&source, "c3");
    source.qemu_img(&format!("convert -f qcow2 -O qcow2 base {}", target.file("golden").display()));
    seal_below(&target, "golden");
    target.qemu_io("qcow2", "golden", &["write -q -P 99 1M 4k"]);
    let report = copy(&source, "c3", &target, Share::Allow).unwrap();
    assert_eq!(copied(&report), ["c3", "c2", "c1", "base"]);
    let alone = Scratch::new();
    assert_eq!(copy(&source, "c3", &alone, Share::ChildOnly).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn cid_3_deny_copies_every_layer_even_if_it_is_there() {
    let (source, target) = (chain(), Scratch::new());
    seal_below(&source, "c3");
    source.qemu_img(&format!("convert -f qcow2 -O qcow2 base {}", target.file("golden").display()));
    seal_below(&target, "golden");
    let report = copy(&source, "c3", &target, Share::Deny).unwrap();
    assert_eq!(copied(&report), ["c3", "c2", "c1", "base"]);
}

#[test]
fn cid_7_a_copy_that_was_stopped_goes_on_and_copies_nothing_twice() {
    let (source, target) = (chain(), Scratch::new());
    let before = source.flat("qcow2", "c3");
    let paths = (source.file("c3"), target.path());
    let prepare = || {
        Copy::prepare(&host(), &ledger(), (&paths.0, &paths.1), &opening(&source), Request::default())
            .unwrap()
    };
    let progress = Progress::default();
    progress.cancel();
    let stopped = prepare().run(&progress).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Interrupted);
    let seen: Vec<_> = ["base", "c1", "c2", "c3"].into_iter().filter(|n| target.file(n).exists()).collect();
    assert!(seen.is_empty(), "{seen:?}");
    let again = prepare();
    assert!(again.plan().is_resumed);
    again.run(&Progress::default()).unwrap();
    assert_same(&target.flat("qcow2", "c3"), &before, "after the second run");
    // All is whole: there is nothing left to do.
    let again = prepare();
    assert!(again.plan().is_there && !again.plan().is_resumed);
    assert_eq!(again.run(&Progress::default()).unwrap().copied_bytes, 0);
}

#[test]
fn cid_8_a_copied_chain_goes_on_being_believed_and_a_changed_parent_is_noticed() {
    let (source, target) = (chain(), Scratch::new());
    copy(&source, "c3", &target, Share::Allow).unwrap();
    let head = target.file("c3");
    let chain = Chain::open(&host(), &head, &opening(&target)).unwrap();
    assert!(chain.standings().iter().skip(1).all(|s| s.known.trust == deltachain::store::Trust::Trusted));
    assert!(chain.size() > 0);
    drop(chain);
    target.qemu_io("qcow2", "c1", &["write -q -P 9 0 4k"]);
    let error = Chain::open(&host(), &head, &opening(&target)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
}

/// A golden image is found among hundreds of other files, by how its ID starts; the index that helps with that is no image.
#[test]
fn cid_9_id_find_names_the_images_that_show_an_id() {
    let folder = Scratch::new();
    let here = folder.path();
    std::fs::create_dir(folder.file("store")).unwrap();
    for number in 0..300 {
        std::fs::write(folder.file(&format!("store/{number}.txt")), "").unwrap();
    }
    done(&here, &["create", "-f", "qcow2", "store/golden.qcow2", "4M"]);
    folder.qemu_io("qcow2", "store/golden.qcow2", &["write -P 1 1M 1M"]);
    done(&here, &["convert", "-O", "raw", "store/golden.qcow2", "store/twin.raw"]);
    let sealed = done(&here, &["id", "seal", "store/golden.qcow2"]).out;
    done(&here, &["id", "seal", "store/twin.raw"]);
    let at = sealed.find("c1:").unwrap();
    let found = done(&here, &["id", "find", &sealed[at..at + 12], "store"]).out;
    let names: Vec<&str> = found.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let store = folder.file("store").canonicalize().unwrap();
    assert_eq!(names, ["golden.qcow2", "twin.raw"].map(|name| store.join(name).display().to_string()));
    let indexes = std::fs::read_dir(store.join(".dchain")).unwrap();
    assert!(indexes.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("index-")));
    assert!(!done(&here, &["tree", "store"]).out.contains("index-"));
}

#[test]
fn cid_3_child_only_copies_the_head_alone_and_nothing_without_its_parent() {
    let (source, target) = (chain(), Scratch::new());
    seal_below(&source, "c3");
    assert_eq!(copy(&source, "c3", &target, Share::ChildOnly).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!target.file("c3").exists());
    assert_eq!(copied(&copy(&source, "c2", &target, Share::Allow).unwrap()), ["c2", "c1", "base"]);
    seal_below(&target, "c2");
    assert_eq!(copied(&copy(&source, "c3", &target, Share::ChildOnly).unwrap()), ["c3"]);
    assert_same(&target.flat("qcow2", "c3"), &source.flat("qcow2", "c3"), "the head on its parent's copy");
}

#[test]
fn cid_3_flatten_makes_one_image_and_moves_nothing_when_it_is_asked_again() {
    let (source, target) = (chain(), Scratch::new());
    let folder = target.path();
    let flatten = ["copy", "--share", "flatten", "--verify", "c3", folder.to_str().unwrap()];
    assert!(done(&source.path(), &flatten).out.contains("verified: bytes"));
    assert_same(&target.flat("qcow2", "c3"), &source.flat("qcow2", "c3"), "flat");
    let chain = Chain::open(&host(), &target.file("c3"), &opening(&target)).unwrap();
    assert_eq!(chain.layers().len(), 1);
    assert!(done(&source.path(), &flatten).out.contains("there already, nothing was moved"));
}

#[test]
fn cid_6_an_image_whose_record_lies_is_hashed_and_not_linked() {
    let (source, target) = (chain(), Scratch::new());
    seal_below(&source, "c3");
    source.qemu_img(&format!("convert -f qcow2 -O qcow2 base {}", target.file("golden").display()));
    seal_below(&target, "golden");
    // The same record, in another file, over other bytes: nothing noted on this host speaks against it.
    let mut bytes = fs::read(target.file("golden")).unwrap();
    fs::remove_file(target.file("golden")).unwrap();
    let at = bytes.windows(512).position(|run| run.iter().all(|byte| *byte == 1)).unwrap();
    bytes[at + 100] = 2;
    fs::write(target.file("forged"), bytes).unwrap();
    let report = copy(&source, "c3", &target, Share::Allow).unwrap();
    assert_eq!(copied(&report), ["c3", "c2", "c1", "base"]);
}

#[test]
fn cid_5_a_copy_that_others_wait_for_leaves_nothing_of_its_leases_and_turns() {
    let (source, target) = (chain(), Scratch::new());
    source.qemu_img("create -q -f qcow2 -b c2 -F qcow2 other");
    let (here, folder) = (source.path(), target.path());
    let begin = |top| command(&here, &["copy", "-q", top, folder.to_str().unwrap()]).spawn().unwrap();
    for mut copy in ["c3", "other", "c3"].map(begin) {
        assert!(copy.wait().unwrap().success());
    }
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".dchain", "base", "c1", "c2", "c3", "other"]);
    for left in [folder.join(".dchain/leases"), folder.join(".dchain/turns"), here.join(".dchain/leases")] {
        assert_eq!(fs::read_dir(&left).unwrap().count(), 0, "{}", left.display());
    }
    for image in ["c3", "other"] {
        assert_same(&target.flat("qcow2", image), &source.flat("qcow2", image), image);
    }
}
