//! Snapshots, reverts and rebases on chains that qemu made; and what qemu does not notice (its failures are
//! numbered as in ARCHITECTURE.md).

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{Error, ErrorKind, GuestOffset},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, faulty::SimHost, real::RealHost},
    job::{
        Progress,
        consolidate::{Consolidation, Pace, Request},
        create::{NewImage, create},
        rebase::{NewParent, Rebase},
        snapshot::{Revert, snapshot},
    },
    store::Ledger,
};
use std::{path::Path, sync::Arc};

fn host() -> Arc<dyn Host> {
    Arc::new(RealHost::new())
}

fn opening() -> Opening {
    Opening::reading().with_format(Some(Format::Qcow2)).with_ledger(Ledger::new(host(), None))
}

fn open(path: &Path) -> Result<Chain, Error> {
    Chain::open(&host(), path, &opening())
}

/// base <- middle <- top, with data, zeros and holes in each; the sizes differ.
fn family() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 3M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 2M"]);
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base middle 2500k");
    folder.qemu_io(
        "qcow2",
        "middle",
        &["write -q -P 2 300k 200k", "write -q -z 1M 128k", "write -q -P 3 2200k 9k"],
    );
    folder.qemu_img("create -q -f qcow2 -o cluster_size=4k -F qcow2 -b middle top 4M");
    folder.qemu_io(
        "qcow2",
        "top",
        &["write -q -P 4 350k 3k", "write -q -z 900k 20k", "write -q -P 5 3900k 50k"],
    );
    folder
}

fn take(folder: &Scratch, top: &str, new: &str) -> Result<(), Error> {
    snapshot(&host(), &folder.file(top), &folder.file(new), &[], &opening()).map(drop)
}

fn rebase(folder: &Scratch, image: &str, parent: Option<&str>) -> Result<(), Error> {
    let parent = parent.map(|p| NewParent { path: folder.file(p), format: Format::Qcow2 });
    let rebase = Rebase::prepare(
        &host(),
        &folder.file(image),
        &opening().with_access(deltachain::io::Access::Write),
        parent.as_ref(),
    )?;
    rebase.run(&Progress::default()).map(drop)
}

fn check(folder: &Scratch, image: &str) {
    folder.qemu_img(&format!("check -q -f qcow2 {image}"));
}

#[test]
fn a_snapshot_shows_what_its_parent_shows_and_qemu_boots_it() {
    let folder = family();
    let before = folder.flat("qcow2", "top");
    take(&folder, "top", "head").unwrap();
    for image in ["top", "head"] {
        check(&folder, image);
    }
    assert_same(&folder.flat("qcow2", "head"), &before, "the new head");
    folder.qemu_io("qcow2", "head", &["write -q -P 9 0 1M"]);
    let chain = open(&folder.file("head")).unwrap();
    assert_eq!(chain.layers().len(), 4);
    assert_same(&folder.flat("qcow2", "top"), &before, "the frozen layer");
    assert_eq!(take(&folder, "top", "head").unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn a_revert_starts_again_from_the_layer_and_names_what_is_given_up() {
    let folder = family();
    let middle = folder.flat("qcow2", "middle");
    let revert = Revert::prepare(&host(), &folder.file("top"), &folder.file("middle"), &opening()).unwrap();
    assert_eq!((revert.plan().layer.clone(), revert.plan().left.len()), (folder.file("middle"), 0));
    revert.run(&host(), &[]).unwrap();
    check(&folder, "top");
    assert_same(&folder.flat("qcow2", "top"), &middle, "after the revert");
    let wrong =
        Revert::prepare(&host(), &folder.file("middle"), &folder.file("base"), &opening()).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Busy, "another image lies on it: {wrong}");
    assert!(wrong.to_string().contains("top"), "{wrong}");
}

#[test]
fn a_rebase_onto_an_ancestor_keeps_the_view() {
    let folder = family();
    let before = folder.flat("qcow2", "top");
    rebase(&folder, "top", Some("base")).unwrap();
    check(&folder, "top");
    assert!(folder.qemu_img("info -U --output=json top").contains("\"backing-filename\": \"base\""));
    assert_same(&folder.flat("qcow2", "top"), &before, "on base");
    assert_eq!(open(&folder.file("top")).unwrap().layers().len(), 2);
    rebase(&folder, "top", None).unwrap();
    check(&folder, "top");
    assert_same(&folder.flat("qcow2", "top"), &before, "alone");
    assert_eq!(open(&folder.file("top")).unwrap().layers().len(), 1);
}

#[test]
fn qemu_m9_a_rebase_onto_an_unrelated_image_keeps_the_view() {
    let folder = family();
    folder.qemu_img("create -q -f qcow2 other 5M");
    folder.qemu_io("qcow2", "other", &["write -q -P 1 1M 1M", "write -q -P 7 0 1M", "write -q -P 7 2M 3M"]);
    let before = folder.flat("qcow2", "top");
    rebase(&folder, "top", Some("other")).unwrap();
    check(&folder, "top");
    assert_same(&folder.flat("qcow2", "top"), &before, "on another base");
    let onto_itself = rebase(&folder, "top", Some("top")).unwrap_err();
    assert_eq!(onto_itself.kind(), ErrorKind::Invalid, "{onto_itself}");
}

#[test]
fn qemu_m7_a_parent_that_was_written_is_refused_with_a_diagnosis() {
    let folder = family();
    take(&folder, "top", "head").unwrap();
    open(&folder.file("head")).unwrap();
    folder.qemu_io("qcow2", "top", &["write -q -P 66 0 4k"]);
    let error = open(&folder.file("head")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy);
    let said = error.to_string();
    assert!(
        said.contains("head") && said.contains("top") && said.contains("opened it for writing"),
        "{said}"
    );
}

#[test]
fn qemu_m8_the_sibling_of_a_committed_child_is_refused() {
    let folder = family();
    take(&folder, "middle", "one").unwrap();
    take(&folder, "middle", "two").unwrap();
    folder.qemu_io("qcow2", "one", &["write -q -P 33 0 64k"]);
    open(&folder.file("two")).unwrap();
    folder.qemu_img("commit -q -f qcow2 one");
    let error = open(&folder.file("two")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
}

#[test]
fn qemu_m10_a_commit_across_a_middle_layer_is_noticed() {
    let folder = family();
    take(&folder, "middle", "upper").unwrap();
    take(&folder, "upper", "head").unwrap();
    folder.qemu_io("qcow2", "head", &["write -q -P 33 0 64k"]);
    folder.qemu_img("commit -q -f qcow2 -b middle head");
    let error = open(&folder.file("upper")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
    let error = open(&folder.file("head")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
}

#[test]
fn a_head_that_qemu_wrote_is_not_refused() {
    let folder = family();
    take(&folder, "top", "head").unwrap();
    folder.qemu_io("qcow2", "head", &["write -q -P 66 0 4k"]);
    let chain = open(&folder.file("head")).unwrap();
    let mut byte = [0];
    chain.read(GuestOffset::new(5), &mut byte).unwrap();
    assert_eq!(byte, [66]);
}

#[test]
fn the_files_of_a_head_that_is_given_up_go_with_it() {
    let folder = Scratch::new();
    let (base, top) = (folder.file("vm.vmdk"), folder.file("vm-000001.vmdk"));
    let new = NewImage { format: Format::Vmdk, size: Some(1 << 20), parent: None, options: vec![] };
    create(&host(), &base, &new, &opening()).unwrap();
    let parent = Some(NewParent { path: base.clone(), format: Format::Vmdk });
    let options = vec![("subformat".to_owned(), "vmfsSparse".to_owned())];
    create(&host(), &top, &NewImage { format: Format::Vmdk, size: None, parent, options }, &opening())
        .unwrap();
    assert!(folder.file("vm-000001-delta.vmdk").exists());
    let writing = opening().with_format(Some(Format::Vmdk));
    Revert::prepare(&host(), &top, &base, &writing).unwrap().run(&host(), &[]).unwrap();
    assert!(!folder.file("vm-000001-delta.vmdk").exists() && top.exists());
    assert_eq!(Chain::open(&host(), &top, &writing).unwrap().layers().len(), 2);
}

/// What a snapshot that was killed leaves: a head with the record of a frozen layer, which its guest goes on to write.
#[test]
fn an_image_whose_record_is_in_doubt_gets_another_parent_only_if_nothing_lies_on_it() {
    let folder = family();
    let (top, child) = (folder.file("top"), folder.file("child"));
    take(&folder, "top", "child").unwrap();
    folder.qemu_io("qcow2", "top", &["write -q -P 9 0 64k"]);
    let shown = folder.flat("qcow2", "top");
    let parent = NewParent { path: folder.file("base"), format: Format::Qcow2 };
    let opening = Opening::writing().with_ledger(Ledger::new(host(), None));
    let rebase = || Rebase::prepare(&host(), &top, &opening, Some(&parent));
    let named = || Chain::open(&host(), &top, &Opening::reading()).unwrap().layers()[1].path.clone();
    let before = named();
    let refused = rebase().unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Policy && refused.to_string().contains("child lies on it"),
        "{refused}"
    );
    std::fs::remove_file(child).unwrap();
    assert_eq!(named(), before);
    rebase().unwrap().run(&Progress::default()).unwrap();
    assert_same(&folder.flat("qcow2", "top"), &shown, "after the rebase");
    assert!(named() != before && Chain::open(&host(), &top, &opening).is_ok());
}

/// A version-2 head has its claim beside it: once another file has its name, the note would be read as that of
/// whatever gets its inode.
#[test]
fn a_replaced_head_leaves_no_note_behind() {
    for (base, is_reverted) in [(Format::Qcow2, true), (Format::Qcow2, false), (Format::Raw, false)] {
        let host: Arc<dyn Host> = Arc::new(SimHost::new());
        let (below, top) = (Path::new("/base"), Path::new("/top"));
        let how = Opening::writing().with_ledger(Ledger::new(Arc::clone(&host), None));
        let new = NewImage { format: base, size: Some(1 << 20), parent: None, options: vec![] };
        create(&host, below, &new, &how).unwrap();
        let parent = Some(NewParent { path: below.into(), format: base });
        let options = vec![("compat".to_owned(), "0.10".to_owned())];
        let new = NewImage { format: Format::Qcow2, size: None, parent, options };
        create(&host, top, &new, &how).unwrap();
        let inode = host.witness(top).unwrap().inode;
        let notes = || host.list(Path::new("/.dchain/notes")).unwrap();
        let is_noted =
            || notes().iter().any(|note| note.path.to_string_lossy().ends_with(&format!("-{inode:x}")));
        assert!(is_noted());
        if is_reverted {
            Revert::prepare(&host, top, below, &how).unwrap().run(&host, &[]).unwrap();
        } else {
            let job = Consolidation::prepare(&host, top, &how, &Request::default()).unwrap();
            job.run(Pace::USUAL, &Progress::default()).unwrap();
        }
        assert!(host.witness(top).unwrap().inode != inode && !is_noted(), "{base:?} {is_reverted}");
    }
}
