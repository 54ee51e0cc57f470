//! What clients can be told of a range (`NBD_CMD_BLOCK_STATUS`): the contexts that every disk has, and gathering
//! stretches in steps, so that neither a large nor an empty range costs memory or waits.

use super::wire::state;
use crate::{
    base::{GuestRange, Result},
    disk::{Disk, STATUS_MAX, Status},
    export::{Context, Export, Stretch},
};
use std::sync::Arc;

/// The first step through a range, in bytes, and the longest.
const STEP_BYTES: u64 = 1 << 30;
const STEP_BYTES_MAX: u64 = 1 << 40;
/// A step that found fewer stretches than this is followed by a longer one.
const FEW: usize = 64;
/// After so many steps what was found is told: the client asks again for the rest.
const STEPS_MAX: u32 = 128;

/// `base:allocation`: where a disk holds bytes, and where it reads as zeros.
struct Allocation(Arc<dyn Disk>);

/// `qemu:allocation-depth`: which layer decides, 1 for the head, 0 for none.
struct Depth(Arc<dyn Disk>);

fn translate(
    disk: &dyn Disk,
    range: GuestRange,
    out: &mut Vec<Stretch>,
    flags: fn(&Status) -> u64,
) -> Result<()> {
    let mut runs = Vec::new();
    disk.status(range, &mut runs)?;
    for run in &runs {
        Stretch { bytes: run.range.bytes, flags: flags(run) }.append_to(out);
    }
    Ok(())
}

impl Context for Allocation {
    fn name(&self) -> &'static str {
        "base:allocation"
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        translate(self.0.as_ref(), range, out, |run| if run.is_zero { state::HOLE | state::ZERO } else { 0 })
    }
}

impl Context for Depth {
    fn name(&self) -> &'static str {
        "qemu:allocation-depth"
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        translate(self.0.as_ref(), range, out, |run| run.depth.map_or(0, |depth| u64::from(depth) + 1))
    }
}

/// Returns all contexts of an export, in an order that stays.
pub(super) fn contexts(export: &Export) -> Vec<Arc<dyn Context>> {
    let mut all: Vec<Arc<dyn Context>> =
        vec![Arc::new(Allocation(Arc::clone(&export.disk))), Arc::new(Depth(Arc::clone(&export.disk)))];
    all.extend(export.contexts.iter().map(Arc::clone));
    all
}

/// Returns what a context says of `range` from its start on: all of it, unless there are many stretches (1 MiB at 16 bytes
/// each, as qemu bounds it) or it is very large.
pub(super) fn gather(context: &dyn Context, range: GuestRange, is_one: bool) -> Result<Vec<Stretch>> {
    let most = if is_one { 1 } else { STATUS_MAX };
    let (mut found, mut at, mut step) = (Vec::new(), range.start, STEP_BYTES);
    let mut part = Vec::new();
    for _ in 0..STEPS_MAX {
        // One more than is told: the last one that is told has ended then.
        if at >= range.end() || found.len() > most {
            break;
        }
        part.clear();
        context.describe(GuestRange::between(at, at.plus(step).min(range.end())), &mut part)?;
        for stretch in &part {
            stretch.append_to(&mut found);
            at = at.plus(stretch.bytes);
        }
        step = if part.len() < FEW { (step * 4).min(STEP_BYTES_MAX) } else { STEP_BYTES };
    }
    found.truncate(most);
    Ok(found)
}

#[cfg(test)]
mod tests;
