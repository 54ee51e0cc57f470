//! Scenes about folds of disks in use.

use super::chains::{SIZE, machine, make, write};
use crate::jobs::world::{arc, path, view, writing};
use deltachain::{
    base::{Error, GuestOffset, GuestRange, Result, units::index},
    chain::{Chain, Opening},
    disk::Disk,
    io::{
        Host, Kept,
        faulty::{SimHost, Waits},
    },
    job::{
        Progress,
        consolidate::{Folding, LiveConsolidation, LivePace, Patience, Request},
        live::LiveDisk,
    },
};
use std::{sync::Arc, thread, time::Duration};

pub(super) const PACE: LivePace = LivePace {
    block_bytes: 1024,
    mark_bytes: 1024,
    mark_pause: std::time::Duration::ZERO,
    share: 1.0,
    patience: Patience::Endless,
};

pub(super) fn opening(host: &SimHost) -> Opening {
    writing(host).for_live_use()
}

pub(super) fn disk(host: &SimHost) -> Result<Arc<LiveDisk>> {
    Ok(Arc::new(LiveDisk::new(Chain::open(&arc(host), &path("top"), &opening(host))?)))
}

fn prepare(host: &SimHost, disk: &Arc<LiveDisk>) -> Result<LiveConsolidation> {
    let request = Request { into: Some(path("base")), ..Request::default() };
    LiveConsolidation::prepare(&arc(host), disk, &opening(host), &request)
}

fn copied(host: &SimHost, disk: &Arc<LiveDisk>) -> Result<Folding> {
    let mut folding = prepare(host, disk)?.begin(PACE)?;
    while folding.step()?.is_some() {}
    folding.checkpoint()?;
    Ok(folding)
}

/// The program is killed when all is copied, and another one writes the head before the fold goes on.
pub(super) fn folds_what_another_process_wrote() -> Result<bool> {
    let host = machine()?;
    let before = disk(&host)?;
    drop((copied(&host, &before)?, before));
    write(&host, "top", 0, &[9; 512])?;
    let expected = view(&host, &path("top"))?;
    let after = disk(&host)?;
    prepare(&host, &after)?.run(PACE, &Progress::default())?;
    drop(after);
    Ok(view(&host, &path("top"))? == expected)
}

/// The target fails, guests go on, and the program is killed: the second write is in no region that the first one noted.
pub(super) fn believes_no_target_that_misses_writes() -> Result<bool> {
    let host = machine()?;
    let before = disk(&host)?;
    let folding = copied(&host, &before)?;
    host.break_file(&path("base"), true)?;
    for at in [0, 4 * PACE.block_bytes] {
        before.write(GuestOffset::new(at), &[9; 512])?;
    }
    before.chain().flush()?;
    drop((folding, before));
    host.break_file(&path("base"), false)?;
    let expected = view(&host, &path("top"))?;
    let after = disk(&host)?;
    prepare(&host, &after)?.run(PACE, &Progress::default())?;
    drop(after);
    Ok(view(&host, &path("top"))? == expected)
}

/// A read has looked up its place in the target, and waits; meanwhile a guest zeroes that, and another block gets it.
pub(super) fn reads_no_other_blocks_bytes() -> Result<bool> {
    let host = SimHost::new();
    host.make_folder(&path(""))?;
    make(&host, "base", None, 1)?;
    write(&host, "base", SIZE / 2, &vec![1; index(SIZE / 2)])?;
    make(&host, "mid", Some("base"), 2)?;
    make(&host, "top", Some("mid"), 3)?;
    let disk = disk(&host)?;
    let _folding = copied(&host, &disk)?;
    let cluster = |number: u64| -> GuestRange { GuestOffset::new(SIZE / 2 + number * 1024).range(1024) };
    // Known to the map from here on; what is zeroed leaves no place that another block could get first.
    let (read, others) = (cluster(0), [cluster(3), cluster(4)]);
    disk.read(read.start, &mut [0; 1024])?;
    others.iter().try_for_each(|other| disk.zero(*other, Kept::Nothing))?;
    disk.flush()?;
    host.hold(&path("base"), Waits::NextRead)?;
    let mut shown = [7; 1024];
    let all_done: Result<()> = thread::scope(|scope| {
        let reader = scope.spawn(|| disk.read(read.start, &mut shown));
        while host.waiting() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let overtaken = (|| {
            disk.zero(read, Kept::Nothing)?;
            disk.flush()?;
            others.iter().try_for_each(|other| disk.write(other.start, &[9; 1024]))
        })();
        host.release();
        overtaken.and(reader.join().unwrap_or_else(|_| Err(Error::invalid("the reader panicked"))))
    });
    all_done?;
    Ok(shown.iter().all(|byte| [0, 1].contains(byte)))
}
