//! Proof that the target shows what TOP showed: every leaf of the content tree that a move touches is hashed
//! as TOP showed it before the move, and again in the target when all is done.
//!
//! A leaf that the run decides every byte of is hashed beside the move: nothing that is written changes what TOP
//! shows there. Whole leaves, not only the moved bytes: a write that spoils its neighbours is noticed. What an earlier life of
//! the job moved has no hashes left: there, TOP's bytes (still intact) are compared with the target's.

use super::{
    sides::{Side, Sides},
    work::decided,
};
use crate::{
    base::{Error, GuestOffset, GuestRange, Result},
    content::{Digest, LEAF_BYTES},
    map::RangeSet,
};
use rayon::prelude::*;

/// Hashes of what has been moved, one a move.
#[derive(Debug, Default)]
pub(super) struct Proof {
    moves: Vec<(GuestRange, Sum)>,
    /// Leaves before this place have been hashed.
    passed: GuestOffset,
}

/// Moves that are checked side by side.
const MOVES_AT_ONCE: usize = 64;

/// Hash of the hashes of some leaves.
pub(super) type Sum = [u8; 32];

/// A move about to happen: what is known before it, and what can be hashed beside it.
#[derive(Debug)]
pub(super) struct Passing {
    range: GuestRange,
    /// Leaves that show bytes of the target too: hashed, since the move may spoil those.
    known: Vec<(u64, Digest)>,
    /// Leaves that the run decides every byte of: the move cannot change them.
    whole: RangeSet,
}

impl Passing {
    /// Hashes what the move cannot change, and returns the hash of all that it touches.
    pub(super) fn sum(&self, sides: &Sides) -> Result<Sum> {
        let mut leaves = self.known.clone();
        leaves.extend(sides.leaves(Side::Top, &self.whole)?);
        Ok(combine(leaves))
    }
}

impl Proof {
    /// Goes before the move of `range`: hashes the leaves that it may change. [`Passing::sum`] may run beside the
    /// move; its result goes to [`Proof::end`].
    pub(super) fn begin(&self, sides: &Sides, range: GuestRange) -> Result<Passing> {
        let range = GuestRange::between(range.start.max(self.passed), range.end());
        let Touched { whole, partial } = touched(sides, range)?;
        Ok(Passing { range, known: sides.leaves(Side::Top, &partial)?, whole })
    }

    /// Keeps the hash of a move until the check.
    pub(super) fn end(&mut self, passing: &Passing, sum: Sum) {
        self.passed = self.passed.max(passing.range.end().ceil(LEAF_BYTES));
        self.moves.push((passing.range, sum));
    }

    /// Compares all of `list` with the target; `Corrupt`, with the place, if it differs.
    pub(super) fn check(&self, sides: &Sides, list: &RangeSet, moved: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let hashed: RangeSet = self.moves.iter().map(|(range, _)| *range).collect();
        for some in self.moves.chunks(MOVES_AT_ONCE) {
            let now = some.par_iter().map(|(range, _)| sum(sides, Side::Target, *range));
            let now: Vec<Result<Sum>> = now.collect();
            for ((range, before), now) in some.iter().zip(now) {
                if now? != *before {
                    return Err(differs(sides, *range));
                }
                moved(range.bytes);
            }
        }
        for range in list.iter() {
            for gap in hashed.gaps(range).into_iter().flat_map(|gap| gap.pieces(16 << 20).collect::<Vec<_>>())
            {
                let is_same = sum(sides, Side::Top, gap)? == sum(sides, Side::Target, gap)?;
                if !is_same {
                    return Err(differs(sides, gap));
                }
                moved(gap.bytes);
            }
        }
        Ok(())
    }
}

/// The leaves that the run decides a byte of, in some range.
struct Touched {
    /// Those that it decides every byte of.
    whole: RangeSet,
    partial: RangeSet,
}

fn touched(sides: &Sides, range: GuestRange) -> Result<Touched> {
    let listed: RangeSet = decided(&sides.run, range)?.into_iter().map(|run| run.range).collect();
    let whole: RangeSet = listed.iter().map(|range| range.inner(LEAF_BYTES)).collect();
    let all: RangeSet = listed.iter().map(|range| range.outer(LEAF_BYTES)).collect();
    let partial = all.iter().flat_map(|range| whole.gaps(range)).collect();
    Ok(Touched { whole, partial })
}

/// Hashes the leaves that the run decides a byte of, in `range`.
fn sum(sides: &Sides, side: Side, range: GuestRange) -> Result<Sum> {
    let Touched { whole, partial } = touched(sides, range)?;
    let mut leaves = sides.leaves(side, &whole)?;
    leaves.extend(sides.leaves(side, &partial)?);
    Ok(combine(leaves))
}

fn combine(mut leaves: Vec<(u64, Digest)>) -> Sum {
    leaves.sort_unstable_by_key(|(number, _)| *number);
    let mut hasher = blake3::Hasher::new();
    for (number, digest) in leaves {
        hasher.update(&number.to_le_bytes()).update(digest.bytes());
    }
    *hasher.finalize().as_bytes()
}

pub(super) fn differs(sides: &Sides, range: GuestRange) -> Error {
    let what = format!(
        "guest bytes {:#x} to {:#x} are not what the disk showed before: the disk still opens as it was",
        range.start,
        range.end()
    );
    Error::corrupt(what).path(sides.target.data_file().path())
}

#[cfg(test)]
mod tests;
