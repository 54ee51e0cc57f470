//! Brings the run's bytes to the target, and compares as they pass.
//!
//! Bytes go through memory in chunks, three at a time: while one is written to the target, the one before it is
//! read back and compared with what TOP showed before, and the one after it is read. Whole leaves are compared, not
//! only the moved bytes: a write that spoils its neighbours is noticed. Writes happen in guest order on one thread,
//! so that a job does the same steps each time.
//!
//! Where the host can move whole leaves without memory (shared blocks, a file server), it does; the
//! [`Proof`] then looks at the result after the flush.

use super::{
    adopt::{Adoptions, Part},
    machine::Pace,
    proof::{Proof, differs},
    sides::{Side, Sides},
    work::decided,
};
use crate::{
    base::{Error, GuestOffset, GuestRange, HostOffset, Result, units::index},
    chain::Run,
    content::LEAF_BYTES,
    io::{self, File, Kept, Moved},
    job::Progress,
    map::{RangeSet, State},
};
use std::sync::Arc;

/// Guest bytes of a chunk: a few stay in the processor's own cache.
const CHUNK_BYTES: u64 = 8 * LEAF_BYTES;

/// How many bytes were brought, by how.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    pub(super) copied: u64,
    pub(super) shared: u64,
    pub(super) zeroed: u64,
}

/// The copier, with what it remembers from move to move.
#[derive(Debug)]
pub(super) struct Carrier {
    /// What is known of the moves so far; `None` if nothing is to be proved.
    pub(super) proof: Option<Proof>,
    /// An earlier life brought what lies before this place, but its word is no proof: it is compared first.
    pub(super) doubted_until: GuestOffset,
    pace: Pace,
    /// What the target has adopted; `None` before the first move.
    adoptions: Option<Adoptions>,
    /// Buffers that no chunk uses.
    spare: Vec<Vec<u8>>,
}

/// What TOP showed at some places before the move of them.
#[derive(Debug)]
struct Chunk {
    ranges: Vec<GuestRange>,
    /// The bytes of all ranges, one after the other.
    bytes: Vec<u8>,
}

impl Chunk {
    fn parts(&self) -> impl Iterator<Item = (GuestRange, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.ranges.iter().map(move |range| {
            let (part, after) = rest.split_at(index(range.bytes).min(rest.len()));
            rest = after;
            (*range, part)
        })
    }
}

impl Carrier {
    pub(super) fn new(proof: Option<Proof>, doubted_until: GuestOffset, pace: Pace) -> Self {
        Self { proof, doubted_until, pace, adoptions: None, spare: Vec::new() }
    }

    /// Brings the bytes of `range` that the run holds to the target; `Corrupt` if it does not show them then.
    pub(super) fn carry(&mut self, sides: &Sides, range: GuestRange, progress: &Progress) -> Result<Carried> {
        let (mut carried, mut rest) = (Carried::default(), RangeSet::new());
        for run in decided(&sides.run, range)? {
            if run.range.start < self.doubted_until {
                rest.insert(run.range);
                continue;
            }
            for part in self.adoptions(sides, range.start)?.parts(&run) {
                let moved = self.help(sides, part, &mut rest)?;
                carried.shared += moved.shared_bytes;
                carried.copied += moved.copied_bytes;
                progress.moved(moved.shared_bytes + moved.copied_bytes);
            }
        }
        // A move ends with the last listed byte before a multiple of its length: none of these leaves is cut by it.
        let stripe = range.start.floor(self.pace.move_bytes).range(self.pace.move_bytes);
        let groups = chunks(&rest, if self.proof.is_some() { LEAF_BYTES } else { 1 }, stripe, sides.size);
        if !groups.is_empty() {
            let flush = || io::begin_flush(sides.target.data_file().as_ref());
            // What earlier moves brought begins to be written back: a mark then waits for little.
            rayon::join(|| self.pass(sides, groups, progress, &mut carried), flush).0?;
        }
        if let Some(proof) = &mut self.proof {
            proof.passed(sides, range, &rest)?;
        }
        Ok(carried)
    }

    /// Lets the target adopt what it may of what is to come.
    fn adoptions(&mut self, sides: &Sides, from: GuestOffset) -> Result<&Adoptions> {
        if self.adoptions.is_none() {
            self.adoptions =
                Some(Adoptions::make(sides, from.max(self.doubted_until), self.pace.adopted_pieces)?);
        }
        self.adoptions.as_ref().ok_or_else(|| Error::invalid("has nothing adopted"))
    }

    /// Brings what the host can bring without memory; the `rest` is for the caller.
    fn help(&mut self, sides: &Sides, (run, adopted): Part, rest: &mut RangeSet) -> Result<Moved> {
        if let Some((place, is_shared)) = adopted
            && sides.target.point(run.range, place)?
        {
            self.share(run.range, is_shared);
            return Ok(if is_shared {
                Moved { shared_bytes: run.range.bytes, copied_bytes: 0 }
            } else {
                Moved { shared_bytes: 0, copied_bytes: run.range.bytes }
            });
        }
        let Some((whole, host, file)) = helped(sides, &run) else {
            rest.insert(run.range);
            return Ok(Moved::default());
        };
        rest.insert(GuestRange::between(run.range.start, whole.start));
        rest.insert(GuestRange::between(whole.end(), run.range.end()));
        let moved = sides.target.write_from(whole, file.as_ref(), host, &sides.below)?;
        self.share(whole, moved.copied_bytes == 0);
        Ok(moved)
    }

    fn share(&mut self, range: GuestRange, is_shared: bool) {
        if let Some(proof) = self.proof.as_mut().filter(|_| is_shared) {
            proof.share(range);
        }
    }

    /// Brings chunks through memory.
    fn pass(
        &mut self,
        sides: &Sides,
        groups: Vec<Vec<GuestRange>>,
        progress: &Progress,
        carried: &mut Carried,
    ) -> Result<()> {
        let (is_proved, doubted_until) = (self.proof.is_some(), self.doubted_until);
        let mut groups = groups.into_iter();
        let mut spare = || self.spare.pop().unwrap_or_default();
        let (mut before, mut scratch) = (None, spare());
        let mut now = groups.next().map(|ranges| read(sides, ranges, spare())).transpose()?;
        while let Some(chunk) = now {
            let (next, done) = (groups.next(), before.take());
            let fresh = if done.is_none() { spare() } else { Vec::new() };
            let (written, follows) = rayon::join(
                || write(sides, &chunk, doubted_until, carried),
                || {
                    let buf = done.map_or(Ok(fresh), |done: Chunk| {
                        compare(sides, &done, &mut scratch).map(|()| done.bytes)
                    });
                    buf.and_then(|buf| next.map(|ranges| read(sides, ranges, buf)).transpose())
                },
            );
            progress.moved(written?);
            before = is_proved.then_some(chunk);
            now = follows?;
        }
        if let Some(done) = before {
            compare(sides, &done, &mut scratch)?;
            self.spare.push(done.bytes);
        }
        self.spare.push(scratch);
        Ok(())
    }
}

/// Returns the whole leaves of a run that the host may move without memory, and where they are in which file.
fn helped(sides: &Sides, run: &Run) -> Option<(GuestRange, HostOffset, Arc<dyn File>)> {
    let whole = run.clip(run.range.inner(LEAF_BYTES));
    let State::Data { host } = whole.state else { return None };
    let file = sides.run.images().get(run.layer?)?.data_file();
    let is_helped =
        !whole.range.is_empty() && io::is_helped(file.as_ref(), sides.target.data_file().as_ref());
    is_helped.then_some((whole.range, host, file))
}

/// Returns the units of `grain` bytes that `ranges` touch in `stripe` of a disk of `size` bytes, in groups of
/// about a chunk.
fn chunks(ranges: &RangeSet, grain: u64, stripe: GuestRange, size: u64) -> Vec<Vec<GuestRange>> {
    let within = stripe.clip(GuestOffset::new(0).range(size));
    let touched: RangeSet = ranges.iter().map(|range| range.outer(grain).clip(within)).collect();
    let mut groups: Vec<Vec<GuestRange>> = Vec::new();
    let mut bytes = 0;
    for piece in touched.iter().flat_map(|range| range.pieces(CHUNK_BYTES).collect::<Vec<_>>()) {
        if groups.is_empty() || bytes + piece.bytes > CHUNK_BYTES {
            groups.push(Vec::new());
            bytes = 0;
        }
        groups.last_mut().into_iter().for_each(|group| group.push(piece));
        bytes += piece.bytes;
    }
    groups
}

fn read(sides: &Sides, ranges: Vec<GuestRange>, mut bytes: Vec<u8>) -> Result<Chunk> {
    bytes.resize(index(ranges.iter().map(|range| range.bytes).sum()), 0);
    let mut rest = bytes.as_mut_slice();
    for range in &ranges {
        let (part, after) = rest.split_at_mut(index(range.bytes));
        sides.read(Side::Top, range.start, part)?;
        rest = after;
    }
    Ok(Chunk { ranges, bytes })
}

/// Writes what the run holds of a chunk; returns how many bytes that is.
fn write(sides: &Sides, chunk: &Chunk, doubted_until: GuestOffset, carried: &mut Carried) -> Result<u64> {
    let mut listed = 0;
    for (range, bytes) in chunk.parts() {
        let runs = decided(&sides.run, range)?;
        listed += runs.iter().map(|run| run.range.bytes).sum::<u64>();
        if range.start < doubted_until && shows(sides, range, bytes, &mut Vec::new())? {
            continue;
        }
        let mut copied = RangeSet::new();
        for run in runs {
            if run.is_zero() {
                sides.target.zero(run.range, Kept::Nothing, &sides.below)?;
                carried.zeroed += run.range.bytes;
            } else {
                copied.insert(run.range);
                carried.copied += run.range.bytes;
            }
        }
        for part in copied.iter() {
            let from = index(part.start.since(range.start));
            let part_bytes = bytes.get(from..from + index(part.bytes)).unwrap_or_default();
            sides.target.write(part.start, part_bytes, &sides.below)?;
        }
    }
    Ok(listed)
}

fn compare(sides: &Sides, chunk: &Chunk, scratch: &mut Vec<u8>) -> Result<()> {
    for (range, bytes) in chunk.parts() {
        if !shows(sides, range, bytes, scratch)? {
            return Err(differs(sides, range));
        }
    }
    Ok(())
}

/// Returns whether the target shows `bytes` at `range`.
fn shows(sides: &Sides, range: GuestRange, bytes: &[u8], scratch: &mut Vec<u8>) -> Result<bool> {
    scratch.resize(scratch.len().max(bytes.len()), 0);
    let shown = scratch.get_mut(..bytes.len()).unwrap_or_default();
    sides.read(Side::Target, range.start, shown)?;
    Ok(shown == bytes)
}

#[cfg(test)]
mod tests;
