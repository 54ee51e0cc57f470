//! Chains that were moved and renamed become chains again, where that is proven.

use super::dchain::{dchain, done};
use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::ErrorKind,
    chain::{Chain, Opening, Policy},
    format::Format,
    io::{Access, Host, real::RealHost},
    job::{
        Progress,
        relink::{Report, Request, Why, accept, relink},
        seal,
        snapshot::snapshot,
    },
    store::Ledger,
};
use std::{fs, path::PathBuf, sync::Arc};

fn host() -> Arc<dyn Host> {
    Arc::new(RealHost::new())
}

fn ledger() -> Ledger {
    Ledger::new(host(), None)
}

fn opening() -> Opening {
    Opening::reading().with_format(Some(Format::Qcow2)).with_ledger(ledger())
}

/// base <- middle <- top, each joined to the one below, with data in each.
fn chain() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 2M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 2M"]);
    for (below, above, pattern) in [("base", "middle", 2), ("middle", "top", 3)] {
        snapshot(&host(), &folder.file(below), &folder.file(above), &[], &opening()).unwrap();
        folder.qemu_io("qcow2", above, &[&format!("write -q -P {pattern} {pattern}00k 50k")]);
    }
    folder
}

fn moved(folder: &Scratch, names: &[(&str, &str)]) -> Scratch {
    let target = Scratch::new();
    for (from, to) in names {
        fs::copy(folder.file(from), target.file(to)).unwrap();
    }
    target
}

fn mend(folder: &Scratch, map: Vec<(PathBuf, PathBuf)>, is_dry: bool) -> Report {
    let request = Request { folders: vec![folder.path()], map };
    relink(&host(), &ledger(), &request, (&opening(), is_dry), &Progress::default()).unwrap()
}

fn opens(folder: &Scratch, image: &str) -> Result<usize, ErrorKind> {
    Chain::open(&host(), &folder.file(image), &opening()).map(|c| c.layers().len()).map_err(|e| e.kind())
}

#[test]
fn a_parent_that_the_policy_keeps_out_is_written_down_once_and_named() {
    let source = chain();
    let target = moved(&source, &[("base", "base")]);
    let below = target.file("below");
    fs::create_dir(&below).unwrap();
    fs::copy(source.file("middle"), below.join("middle")).unwrap();
    let folders = vec![target.path(), below.clone()];
    let request = Request { folders, map: Vec::new() };
    let here = |opening: &Opening| {
        relink(&host(), &ledger(), &request, (opening, false), &Progress::default()).unwrap()
    };
    let report = here(&opening());
    assert_eq!((report.mended.len(), report.lost.len()), (1, 1), "{report:?}");
    assert!(report.lost[0].1.contains("outside its folder"), "{report:?}");
    let policy = Policy { allowed: vec![target.path()], ..Policy::default() };
    assert_eq!(here(&opening().with_policy(policy)).lost, Vec::new(), "allowed, it is right as it is");
}

#[test]
fn cid_8_renamed_layers_are_found_by_epoch() {
    let source = chain();
    let before = source.flat("qcow2", "top");
    let target = moved(&source, &[("base", "x1"), ("middle", "x2"), ("top", "x3")]);
    assert_eq!(opens(&target, "x3"), Err(ErrorKind::NotFound));
    let dry = mend(&target, Vec::new(), true);
    assert_eq!(dry.mended.len(), 2, "{dry:?}");
    assert_eq!(opens(&target, "x3"), Err(ErrorKind::NotFound), "a dry run writes nothing");
    let report = mend(&target, Vec::new(), false);
    assert_eq!((report.mended.len(), report.lost.len()), (2, 0), "{report:?}");
    assert!(report.mended.iter().all(|m| m.why == Why::Epoch));
    assert_eq!(opens(&target, "x3"), Ok(3));
    assert_same(&target.flat("qcow2", "x3"), &before, "relinked");
}

#[test]
fn cid_8_a_parent_in_another_format_is_found_by_content() {
    let source = chain();
    let layers =
        seal::open_layers(&host(), &source.file("middle"), &opening().with_access(Access::Write)).unwrap();
    seal::seal(&ledger(), &layers, &Progress::default()).unwrap();
    drop(layers);
    // What was taken before the seal knows no content; a new child does.
    snapshot(&host(), &source.file("middle"), &source.file("head"), &[], &opening()).unwrap();
    source.qemu_io("qcow2", "head", &["write -q -P 9 0 64k"]);
    let before = source.flat("qcow2", "head");
    let target = moved(&source, &[("head", "head")]);
    source.qemu_img(&format!("convert -f qcow2 -O raw middle {}", target.file("copy.raw").display()));
    target.qemu_img("create -q -f raw decoy.raw 2M");
    let report = mend(&target, Vec::new(), false);
    assert_eq!(report.mended.iter().map(|m| m.why).collect::<Vec<_>>(), [Why::Content], "{report:?}");
    assert_same(&target.flat("qcow2", "head"), &before, "on a raw parent");
}

#[test]
fn a_child_without_a_claim_is_put_on_a_parent_on_the_callers_word_alone() {
    let source = Scratch::new();
    source.qemu_img("create -q -f qcow2 base 1M");
    source.qemu_img("create -q -f qcow2 -F qcow2 -b base top");
    let target = moved(&source, &[("base", "renamed"), ("top", "top")]);
    let report = mend(&target, Vec::new(), false);
    assert_eq!((report.mended.len(), report.lost.len()), (0, 1), "{report:?}");
    let word = vec![(PathBuf::from("base"), target.file("renamed"))];
    let report = mend(&target, word, false);
    assert_eq!(report.mended.iter().map(|m| m.why).collect::<Vec<_>>(), [Why::Word]);
    assert_eq!(opens(&target, "top"), Ok(2));
}

#[test]
fn a_changed_parent_is_accepted_on_demand_and_what_changed_is_listed() {
    let folder = chain();
    let layers =
        seal::open_layers(&host(), &folder.file("middle"), &opening().with_access(Access::Write)).unwrap();
    seal::seal(&ledger(), &layers, &Progress::default()).unwrap();
    drop(layers);
    snapshot(&host(), &folder.file("middle"), &folder.file("head"), &[], &opening()).unwrap();
    folder.qemu_io("qcow2", "middle", &["write -q -P 77 1M 4k"]);
    assert_eq!(opens(&folder, "head"), Err(ErrorKind::Policy));
    let take = |is_dry| {
        accept(&host(), &ledger(), &folder.file("head"), (&opening(), is_dry), &Progress::default()).unwrap()
    };
    assert_eq!(take(true).changed, Some(vec![(1 << 20, 64 << 10)]));
    assert_eq!(opens(&folder, "head"), Err(ErrorKind::Policy), "a dry run writes nothing");
    take(false);
    assert_eq!(opens(&folder, "head"), Ok(3));
}

#[test]
fn a_parent_in_a_folder_that_is_named_as_well_is_linked_and_how_it_is_opened_is_said() {
    let source = chain();
    let (parents, target) =
        (moved(&source, &[("base", "base"), ("middle", "m")]), moved(&source, &[("top", "top")]));
    let folder = parents.path().canonicalize().unwrap();
    let mended = done(&target.path(), &["relink", ".", folder.to_str().unwrap()]);
    assert!(mended.out.contains(&format!("--allow-dir {}", folder.display())), "{}", mended.out);
    let allowed = ["info", "-f", "qcow2", "--allow-dir", folder.to_str().unwrap(), "--backing-chain", "top"];
    assert!(done(&target.path(), &allowed).out.contains("base"));
    let refused = dchain(&target.path(), &["info", "--backing-chain", "top"]);
    assert_eq!(refused.code, Some(77), "{}", refused.err);
}
