//! Scenes about jobs on chains: `/vm/base` <- `/vm/mid` <- `/vm/top`, and the folder `/there`.

use crate::jobs::{
    Job,
    world::{arc, ledger, path, reading, view, writing},
};
use deltachain::{
    base::{Error, GuestOffset, HostOffset, Result, units::index},
    chain::{Chain, Opening, open_layer},
    disk::Disk,
    format::{self, Creation, Format, NoParts, ParentName},
    io::{
        Access, Host, Kept,
        faulty::{Failure, Fault, Landing, SimHost, crash_states},
        real::RealHost,
    },
    job::{
        Progress,
        consolidate::{Consolidation, LiveConsolidation, LivePace, Pace, Patience, Request},
        convert::convert,
        copy::{self, Copy, Share},
        create::{NewImage, create},
        live::LiveDisk,
        rebase::NewParent,
        resize::Resize,
        seal::{open_layers, seal},
        snapshot::snapshot,
    },
    store::{Journal, Ledger},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) const SIZE: u64 = 16384;
const PACE: Pace = Pace { move_bytes: 1024, mark_bytes: 1024, adopted_pieces: 2 };

/// Whether power cuts and kills find nothing wrong with a job.
pub(super) fn job_holds(name: &str, seed: u64) -> bool {
    Job::find(name).and_then(|job| job.crash(seed, 1000)).is_ok()
}

pub(super) fn make(host: &SimHost, name: &str, parent: Option<&str>, byte: u8) -> Result<()> {
    let new = NewImage {
        format: Format::Qcow2,
        size: Some(SIZE),
        parent: parent.map(|name| NewParent { path: path(name), format: Format::Qcow2 }),
        options: vec![("cluster_size".to_owned(), "1024".to_owned())],
    };
    create(&arc(host), &path(name), &new, &writing(host))?;
    write(host, name, 0, &vec![byte; index(SIZE / 2)])
}

pub(super) fn write(host: &SimHost, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
    let chain = Chain::open(&arc(host), &path(name), &writing(host))?;
    chain.write(GuestOffset::new(at), bytes)?;
    chain.flush()
}

/// The machine with the chain, in which the layers show 1, 2 and 3.
pub(super) fn machine() -> Result<SimHost> {
    let host = SimHost::new();
    host.make_folder(Path::new("/vm"))?;
    host.make_folder(Path::new("/there"))?;
    make(&host, "base", None, 1)?;
    make(&host, "mid", Some("base"), 2)?;
    make(&host, "top", Some("mid"), 3)?;
    Ok(host.twin())
}

fn fold(host: &SimHost) -> Result<()> {
    let request = Request { into: Some(path("base")), ..Request::default() };
    let job = Consolidation::prepare(&arc(host), &path("top"), &reading(host), &request)?;
    job.run(PACE, &Progress::default()).map(drop)
}

/// Every state in which a fold that failed leaves its journal and TOP.
fn cut_off() -> Result<Vec<SimHost>> {
    let start = machine()?;
    let whole = start.twin();
    fold(&whole)?;
    let mut found = Vec::new();
    for at in 0..whole.ios() {
        let host = start.twin();
        host.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        let is_cut = fold(&host).is_err();
        let host = host.twin();
        let is_open =
            Chain::open(&arc(&host), &path("top"), &reading(&host)).is_ok_and(|c| c.layers().len() == 3);
        if is_cut && is_open && Journal::find(&arc(&host), &path("top"))?.is_some() {
            found.push(host);
        }
    }
    if found.is_empty() { Err(Error::invalid("no fold was cut off")) } else { Ok(found) }
}

/// A state in the midst of the copying.
fn half_done() -> Result<SimHost> {
    let mut hosts = cut_off()?;
    let middle = hosts.len() / 2;
    Ok(hosts.swap_remove(middle))
}

pub(super) fn refuses_a_half_folded_target() -> Result<bool> {
    let host = half_done()?;
    Ok(Chain::open(&arc(&host), &path("base"), &reading(&host)).is_err())
}

pub(super) fn refuses_a_snapshot_of_a_cut_off_fold() -> Result<bool> {
    let host = half_done()?;
    Ok(snapshot(&arc(&host), &path("top"), &path("new"), &[], &writing(&host)).is_err())
}

pub(super) fn refuses_to_resize_a_parent() -> Result<bool> {
    let host = machine()?;
    Ok(Resize::prepare(&arc(&host), &path("mid"), &writing(&host), |_| Some(SIZE * 2)).is_err())
}

pub(super) fn refuses_a_parent_outside() -> Result<bool> {
    let host = machine()?;
    let parent = ParentName::new(b"../vm/base".to_vec(), Some("qcow2".to_owned()));
    let creation = Creation { size: SIZE, parent: Some(parent), options: Vec::new() };
    let place = Path::new("/there/child");
    format::create(Format::Qcow2, host.create(place)?, &creation, &NoParts)?.flush()?;
    Ok(Chain::open(&arc(&host), place, &Opening::reading()).is_err())
}

fn copy_there(host: &SimHost, top: &str) -> Result<()> {
    let request = copy::Request { share: Share::Allow, ..copy::Request::default() };
    let opening = Opening::reading();
    let from = path(top);
    let job = Copy::prepare(&arc(host), &ledger(host), (&from, Path::new("/there")), &opening, request)?;
    job.run(&Progress::default()).map(drop)
}

/// Puts an image into `/there` that shows, sealed, what `mid` does.
fn put_match(host: &Arc<dyn Host>, ledger: &Ledger, (mid, place): (&Path, &Path)) -> Result<()> {
    let source = Chain::open(host, mid, &Opening::reading())?.view(0);
    convert(host, &source, place, (Format::Qcow2, &[], false), &Progress::default())?;
    let layers = open_layers(host, place, &Opening::reading())?;
    seal(ledger, &layers, &Progress::default()).map(drop)
}

pub(super) fn does_not_link_to_a_forged_match() -> Result<bool> {
    let (host, place) = (machine()?, Path::new("/there/match"));
    put_match(&arc(&host), &ledger(&host), (&path("mid"), place))?;
    let image = format::open(Format::Qcow2, host.open(place, Access::Write)?, true, &NoParts)?;
    image.write(GuestOffset::new(SIZE - 512), &[77; 512], &format::Nothing)?;
    image.flush()?;
    drop(image);
    // As if it came from another machine: no witness speaks for it or against it.
    for note in host.list(Path::new("/there/.dchain/notes"))? {
        host.remove(&note.path)?;
    }
    copy_there(&host, "top")?;
    Ok(view(&host, Path::new("/there/top"))? == view(&host, &path("top"))?)
}

/// On this machine: another program pays no heed to locks.
pub(super) fn looks_at_the_match_again() -> Result<bool> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("make a folder", e))?;
    let place = |name: &str| -> PathBuf { folder.path().join(name) };
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let (ledger, opening) = (Ledger::new(Arc::clone(&host), None), Opening::writing());
    let opening = opening.with_ledger(ledger.clone());
    for name in ["vm", "there"] {
        host.make_folder(&place(name))?;
    }
    let new = |parent| NewImage { format: Format::Qcow2, size: Some(SIZE), parent, options: Vec::new() };
    create(&host, &place("vm/mid"), &new(None), &opening)?;
    let parent = NewParent { path: place("vm/mid"), format: Format::Qcow2 };
    create(&host, &place("vm/top"), &new(Some(parent)), &opening)?;
    put_match(&host, &ledger, (&place("vm/mid"), &place("there/match")))?;
    let request = copy::Request { share: Share::Allow, ..copy::Request::default() };
    let (top, there) = (place("vm/top"), place("there"));
    let job = Copy::prepare(&host, &ledger, (&top, &there), &Opening::reading(), request)?;
    let grown = std::fs::OpenOptions::new().append(true).open(place("there/match"));
    let grown = grown.and_then(|mut file| std::io::Write::write_all(&mut file, b"another program"));
    grown.map_err(|e| Error::io("write", e))?;
    Ok(job.run(&Progress::default()).is_err() && host.kind(&there.join("top"))?.is_none())
}

pub(super) fn copies_a_changed_source_again() -> Result<bool> {
    let start = SimHost::new();
    for folder in ["/vm", "/there"] {
        start.make_folder(Path::new(folder))?;
    }
    make(&start, "top", None, 1)?;
    let whole = start.twin();
    copy_there(&whole, "top")?;
    for at in 0..whole.ios() {
        let host = start.twin();
        host.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        let is_cut = copy_there(&host, "top").is_err();
        let host = host.twin();
        write(&host, "top", 0, &[9; 512])?;
        let is_done = copy_there(&host, "top").is_ok();
        if is_cut && is_done && view(&host, Path::new("/there/top"))? != view(&host, &path("top"))? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn folds_what_was_written_meanwhile() -> Result<bool> {
    for host in cut_off()? {
        write(&host, "top", 0, &[9; 512])?;
        let expected = view(&host, &path("top"))?;
        fold(&host)?;
        if view(&host, &path("top"))? != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A power cut kept the bytes of a stranger's write and not its time: only the record's mark tells.
pub(super) fn folds_what_was_written_before_a_restart() -> Result<bool> {
    for host in cut_off()? {
        let layer = open_layer(&arc(&host), &path("top"), &Opening::writing())?;
        layer.image.write(GuestOffset::new(0), &[9; 512], &format::Nothing)?;
        layer.image.flush()?;
        drop(layer);
        let file = host.open(&path("top"), Access::Write)?;
        // The autoclear bits, all cleared.
        file.write_at(HostOffset::new(88), &[0; 8])?;
        file.flush()?;
        drop(file);
        let cut = crash_states(&host.trace(), 0, 0).filter(|crash| crash.landing == Landing::Nothing).last();
        let Some(host) = cut.map(|crash| crash.host) else { continue };
        let expected = view(&host, &path("top"))?;
        fold(&host)?;
        if view(&host, &path("top"))? != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn refuses_to_fold_under_a_sibling() -> Result<bool> {
    let host = machine()?;
    make(&host, "sibling", Some("base"), 4)?;
    Ok(fold(&host).is_err())
}

/// A child that appears between the record and the removal of its parent.
pub(super) fn keeps_what_a_late_child_lies_on() -> Result<bool> {
    let start = machine()?;
    let whole = start.twin();
    fold(&whole)?;
    for at in 0..whole.ios() {
        let host = start.twin();
        host.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        drop(fold(&host));
        let host = host.twin();
        if host.kind(&path("base"))?.is_some() || host.kind(&path("mid"))?.is_none() {
            continue;
        }
        let parent = ParentName::new(b"mid".to_vec(), Some("qcow2".to_owned()));
        let creation = Creation { size: SIZE, parent: Some(parent), options: Vec::new() };
        format::create(Format::Qcow2, host.create(&path("late"))?, &creation, &NoParts)?.flush()?;
        drop(fold(&host));
        return Ok(host.kind(&path("mid"))?.is_some());
    }
    Err(Error::invalid("no fold was cut off behind its record"))
}

pub(super) fn refuses_to_fold_what_is_in_use() -> Result<bool> {
    let host = machine()?;
    let _reader = host.open(&path("mid"), Access::Read)?;
    Ok(fold(&host).is_err() && Journal::find(&arc(&host), &path("top"))?.is_none())
}

pub(super) fn refuses_a_damaged_mark() -> Result<bool> {
    let host = half_done()?;
    let journal = Journal::find(&arc(&host), &path("top"))?.map(|journal| journal.path().to_path_buf());
    let file = host.open(&journal.unwrap_or_default(), Access::Write)?;
    for slot in [0, 4096] {
        file.write_at(HostOffset::new(slot + 32), &SIZE.to_le_bytes())?;
    }
    drop(file);
    Ok(Journal::find(&arc(&host), &path("top")).is_err())
}

pub(super) fn refuses_another_chain() -> Result<bool> {
    let host = half_done()?;
    make(&host, "other", None, 8)?;
    let layer = open_layer(&arc(&host), &path("top"), &Opening::writing())?;
    let other = ParentName::new(b"other".to_vec(), Some("qcow2".to_owned()));
    layer.image.set_parent(Some(&other))?;
    drop(layer);
    Ok(fold(&host).is_err_and(|error| error.to_string().contains("another chain")))
}

/// Zeros that a guest was promised durably are there, whatever the target of a fold under it could not write.
pub(super) fn keeps_zeros_when_the_target_fails() -> Result<bool> {
    let start = machine()?;
    // A head of version 2 has no other word for zeros than saying nothing.
    start.remove(&path("top"))?;
    let parent = Some(NewParent { path: path("mid"), format: Format::Qcow2 });
    let options =
        vec![("compat".to_owned(), "0.10".to_owned()), ("cluster_size".to_owned(), "1024".to_owned())];
    let new = NewImage { format: Format::Qcow2, size: Some(SIZE), parent, options };
    create(&arc(&start), &path("top"), &new, &writing(&start))?;
    let start = start.twin();
    let range = GuestOffset::new(SIZE / 2).range(1024);
    for at in 0..40 {
        let host = start.twin();
        let opening = writing(&host).for_live_use();
        let disk = Arc::new(LiveDisk::new(Chain::open(&arc(&host), &path("top"), &opening)?));
        let request = Request { into: Some(path("base")), ..Request::default() };
        let pace = LivePace {
            block_bytes: 1024,
            mark_bytes: 1024,
            mark_pause: std::time::Duration::ZERO,
            share: 1.0,
            patience: Patience::Endless,
        };
        let fold = LiveConsolidation::prepare(&arc(&host), &disk, &opening, &request)?.begin(pace)?;
        // Its map is known from here on, and says that nothing is there.
        disk.read(range.start, &mut [0; 1024])?;
        disk.write(range.start, &[9; 1024])?;
        disk.flush()?;
        host.fail(Some(Fault { at: host.ios() + at, is_lasting: false, failure: Failure::Io }));
        let promised = disk.zero(range, Kept::Nothing).and_then(|()| disk.flush());
        host.fail(None);
        drop((fold, disk));
        let shown = view(&host, &path("top"))?;
        let zeroed = shown.get(index(range.start.bytes())..index(range.end().bytes()));
        if promised.is_ok() && zeroed.is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0)) {
            return Ok(false);
        }
    }
    Ok(true)
}
