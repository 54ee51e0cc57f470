//! Scenes about disks that go to another store: `/vm/base` <- `/vm/mid` <- `/vm/top`, and the folder `/there`.

use super::{
    chains::{machine, write},
    live::{PACE, disk, opening},
};
use crate::jobs::world::{arc, ledger, path, reading, view};
use deltachain::{
    base::{Error, GuestOffset, Result},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, faulty::SimHost},
    job::{
        Progress,
        consolidate::{Consolidation, Folding, LiveConsolidation, Move, NewImage, Pace, Request, has_landed},
        convert::convert,
        live::LiveDisk,
        migrate::{self, Migration},
        seal::{open_layers, seal},
    },
    store::Journal,
};
use std::{path::Path, sync::Arc};

const TOP: &str = "/there/top";

fn new() -> NewImage {
    NewImage { path: TOP.into(), format: Some(Format::Qcow2), options: Vec::new() }
}

/// A move that was recorded, and whose guests still write to both places.
fn recorded(host: &SimHost, disk: &Arc<LiveDisk>, removes_source: bool) -> Result<Folding> {
    let request = migrate::Request { store: "/there".into(), removes_source, ..migrate::Request::default() };
    let migration = Migration::prepare(&arc(host), disk, &opening(host), &request)?;
    let below = migration.bring(&Progress::default())?;
    let mut folding = migration.fold(&below)?.begin(PACE)?;
    folding.copy(&Progress::default())?;
    folding.record(&Progress::default())?;
    Ok(folding)
}

fn journal(host: &SimHost) -> Result<Journal> {
    Journal::find(&arc(host), &path("top"))?.ok_or_else(|| Error::invalid("no journal is left"))
}

/// The store has something else, with an ID of its own.
pub(super) fn moves_onto_nothing_else() -> Result<bool> {
    let (host, place) = (machine()?, Path::new("/there/other"));
    let chain = Chain::open(&arc(&host), &path("base"), &reading(&host))?;
    convert(&arc(&host), &chain.view(0), place, (Format::Qcow2, [].as_slice(), false), &Progress::default())?;
    drop(chain);
    for sealed in [place.to_path_buf(), path("mid")] {
        let layers = open_layers(&arc(&host), &sealed, &Opening::reading())?;
        seal(&ledger(&host), &layers, &Progress::default())?;
    }
    let disk = disk(&host)?;
    let other = Chain::open(&arc(&host), place, &reading(&host).for_live_use())?;
    let moves = Move { below: other.layers().to_vec(), ..Move::default() };
    let fold = LiveConsolidation::prepare_move(&arc(&host), &disk, &opening(&host), new(), moves);
    Ok(fold.is_err())
}

/// A guest wrote where the disk had gone to; then the other store is away at the next start.
pub(super) fn serves_no_old_head_while_the_store_is_away() -> Result<bool> {
    let host = machine()?;
    let before = disk(&host)?;
    let folding = recorded(&host, &before, false)?;
    drop((folding, before));
    host.rename_new(Path::new(TOP), Path::new("/away"))?;
    Ok(has_landed(&host, &journal(&host)?).is_err())
}

/// The program is killed right after the record, and another one writes the old head, which was to go.
pub(super) fn keeps_an_old_head_that_was_written() -> Result<bool> {
    let host = machine()?;
    let before = disk(&host)?;
    let folding = recorded(&host, &before, true)?;
    before.write(GuestOffset::new(0), &[8; 512])?;
    before.flush()?;
    drop((folding, before));
    write(&host, "top", 0, &[9; 512])?;
    let written = view(&host, &path("top"))?;
    let request = Request { new: Some(new()), ..Request::default() };
    let job = Consolidation::prepare(&arc(&host), &path("top"), &reading(&host), &request)?;
    job.run(Pace::USUAL, &Progress::default())?;
    Ok(view(&host, &path("top.moved"))? == written)
}
