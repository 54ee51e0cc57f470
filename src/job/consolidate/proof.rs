//! Proof that the target shows what TOP showed: every leaf of the content tree that a move touches is hashed
//! before the move, as TOP shows it, and again in the target when all is done.
//!
//! Whole leaves, not only the moved bytes: a write that spoils its neighbours is noticed. What an earlier life of
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

/// Hashes of what has been moved, one a move.
#[derive(Debug, Default)]
pub(super) struct Proof {
    moves: Vec<(GuestRange, Sum)>,
    /// Leaves before this place have been hashed.
    passed: GuestOffset,
}

/// Hash of the hashes of some leaves.
type Sum = [u8; 32];

impl Proof {
    /// Hashes what the coming move of `range` touches.
    pub(super) fn pass(&mut self, sides: &Sides, range: GuestRange) -> Result<()> {
        let fresh = GuestRange::between(range.start.max(self.passed), range.end());
        let sum = sum(sides, Side::Top, fresh)?;
        self.passed = range.end().ceil(LEAF_BYTES);
        self.moves.push((fresh, sum));
        Ok(())
    }

    /// Compares all of `list` with the target; `Corrupt`, with the place, if it differs.
    pub(super) fn check(&self, sides: &Sides, list: &RangeSet, moved: &dyn Fn(u64)) -> Result<()> {
        let hashed: RangeSet = self.moves.iter().map(|(range, _)| *range).collect();
        for (range, before) in &self.moves {
            if sum(sides, Side::Target, *range)? != *before {
                return Err(differs(sides, *range));
            }
            moved(range.bytes);
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

/// Hashes the leaves that the run decides a byte of, in `range`.
fn sum(sides: &Sides, side: Side, range: GuestRange) -> Result<Sum> {
    let touched: RangeSet =
        decided(&sides.run, range)?.into_iter().map(|run| run.range.outer(LEAF_BYTES)).collect();
    let mut hasher = blake3::Hasher::new();
    for leaves in touched.iter() {
        let leaves: Vec<(u64, Digest)> = sides.leaves(side, leaves)?;
        for (number, digest) in leaves {
            hasher.update(&number.to_le_bytes()).update(digest.bytes());
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

pub(super) fn differs(sides: &Sides, range: GuestRange) -> Error {
    let what = format!(
        "guest bytes {:#x} to {:#x} are not what the disk showed before: the disk still opens as it was",
        range.start,
        range.end()
    );
    Error::corrupt(what).path(sides.target.data_file().path())
}
