//! What clients can be told of a range (`NBD_CMD_BLOCK_STATUS`): the contexts that every disk has, and gathering
//! stretches in steps, so that neither a large nor an empty range costs memory or waits.

use super::wire::state;
use crate::{
    base::{GuestRange, Result},
    disk::{Disk, Status},
    export::{Context, Export, Stretch},
};
use std::sync::Arc;

/// The most stretches in one answer: 1 MiB at 16 bytes each, as qemu bounds it; the client asks again for the rest.
const STRETCHES_MAX: usize = 65_536;
/// The first step through a range, in bytes.
const STEP_BYTES: u64 = 1 << 30;
/// A step that found fewer stretches than this is followed by a longer one.
const FEW: usize = 64;

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

/// Returns what a context says of `range` from its start on: all of it, unless there are many stretches; at least
/// the first one, whole within the range.
pub(super) fn gather(context: &dyn Context, range: GuestRange, is_one: bool) -> Result<Vec<Stretch>> {
    let most = if is_one { 1 } else { STRETCHES_MAX };
    let (mut found, mut at, mut step) = (Vec::new(), range.start, STEP_BYTES);
    let mut part = Vec::new();
    // One more than is told: the last one that is told has ended then.
    while at < range.end() && found.len() <= most {
        let piece = GuestRange::between(at, at.plus(step).min(range.end()));
        part.clear();
        context.describe(piece, &mut part)?;
        for stretch in &part {
            stretch.append_to(&mut found);
        }
        step = if part.len() < FEW { step.saturating_mul(4) } else { STEP_BYTES };
        at = piece.end();
    }
    found.truncate(most);
    Ok(found)
}

#[cfg(test)]
mod tests;
