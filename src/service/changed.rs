//! What has changed on a disk since an earlier point in time, told from its layers.
//!
//! What stays true: the layers above that of a point in time hold all that was written since. So they are the bitmap of
//! changed blocks: it costs no write anything, no crash loses a bit of it, and it is as fine as the layers' units. Where
//! it is not certain that the point's layer still shows what it showed then, everything counts as changed.

use super::book::Mark;
use crate::{
    base::{Guard, GuestOffset, GuestRange, Result},
    chain::{Layer, Standing, lineage},
    disk::Disk,
    export::{Context, Stretch},
    io::Witness,
    store::{Ledger, Trust},
};
use std::sync::Arc;

/// What tells of it over NBD: as qemu calls the dirty bitmaps that its clients know, and under a name of our own. Flag 1
/// where the disk changed.
pub(super) const NAMES: [&str; 2] = ["qemu:dirty-bitmap:backup", "x-deltachain:changed"];

/// Since when something is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// Everything counts as changed: why, if an earlier point was named.
    Ever(Option<String>),
    /// Since the layer at this depth showed a disk of `size` bytes.
    Layer { depth: usize, size: u64 },
}

/// What changed on a frozen disk.
pub(super) struct Changed {
    pub(super) name: &'static str,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) since: Since,
}

impl Context for Changed {
    fn name(&self) -> &str {
        self.name
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        let Since::Layer { depth, size } = self.since else {
            Stretch { bytes: range.bytes, flags: 1 }.append_to(out);
            return Ok(());
        };
        let then = GuestOffset::new(0).range(size);
        let mut runs = Vec::new();
        self.disk.status(range, &mut runs)?;
        for run in runs {
            let is_later = run.depth.is_some_and(|at| u64::from(at) < depth as u64);
            // Where the disk has grown, nobody has what it shows.
            let old_bytes = if is_later { 0 } else { run.range.clip(then).bytes };
            Stretch { bytes: old_bytes, flags: 0 }.append_to(out);
            Stretch { bytes: run.range.bytes - old_bytes, flags: 1 }.append_to(out);
        }
        Ok(())
    }
}

/// Returns how the topmost of `layers`, which is frozen, is found again; `None` where it has no record.
pub(super) fn mark(ledger: &Ledger, layers: &[Layer]) -> Result<Option<Mark>> {
    let standings = lineage(ledger, layers)?;
    let Some(epoch) = standings.first().and_then(epoch) else { return Ok(None) };
    Ok(Some(Mark { epoch, unrecorded: unrecorded(&standings) }))
}

/// Returns the depth in `layers` of the one that was marked; `None` if it is there no more.
pub(super) fn find(ledger: &Ledger, layers: &[Layer], mark: &Mark) -> Result<Option<usize>> {
    let is_it = |standing: &Standing| epoch(standing).is_some_and(|epoch| epoch == mark.epoch);
    Ok(lineage(ledger, layers)?.iter().position(is_it))
}

/// Returns what can be told of `layers` since the marked one of them was the disk.
pub(super) fn since(ledger: &Ledger, layers: &[Layer], mark: &Mark) -> Result<Since> {
    let Some(depth) = find(ledger, layers, mark)? else {
        let why = "its layer is not one of the disk's any more: it was folded, reverted or written";
        return Ok(Since::Ever(Some(why.to_owned())));
    };
    let standings = lineage(ledger, layers.get(depth..).unwrap_or_default())?;
    let is_doubted = |s: &Standing| s.refusal().is_some() || matches!(s.known.trust, Trust::Doubted(_));
    // What no record speaks for looks as it did then.
    let is_known =
        |now: &Witness| mark.unrecorded.iter().any(|then| then.same_file(now) && then.same_state(now));
    let is_other = standings.iter().any(is_doubted) || !unrecorded(&standings).iter().all(is_known);
    if Guard::PointBelow.trips(is_other) {
        let why = "another program wrote to its layer, or to one below it";
        return Ok(Since::Ever(Some(why.to_owned())));
    }
    Ok(Since::Layer { depth, size: layers.get(depth).map_or(0, Layer::size) })
}

fn epoch(standing: &Standing) -> Option<String> {
    standing.known.layer.frozen.map(|record| record.epoch.to_string())
}

/// Returns what the files look like of the layers below the topmost that have no record.
fn unrecorded(standings: &[Standing]) -> Vec<Witness> {
    let bare = standings.iter().skip(1).filter(|standing| standing.known.layer.frozen.is_none());
    bare.flat_map(|standing| standing.known.now.iter().copied()).collect()
}
