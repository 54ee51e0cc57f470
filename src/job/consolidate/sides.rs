//! The two views that must be the same at the end: TOP's and the target's.
//!
//! TOP's view is the run's merged map over the target's view. The run does not change while the job runs, so its
//! map is kept; the target does, so that it is asked each time.

use super::work::decided;
use crate::{
    base::{Error, GuestOffset, GuestRange, Result, units::index},
    chain::View,
    content::{Digest, LEAF_BYTES, Tree, leaf},
    format::Image,
};
use rayon::prelude::*;
use std::sync::Arc;

/// Bytes that one thread reads and hashes in one go: 16 leaves.
const PIECE_BYTES: u64 = 16 * LEAF_BYTES;

/// The images of a job, by what they are to it.
#[derive(Debug)]
pub(super) struct Sides {
    /// The folded layers.
    pub(super) run: View,
    /// What they are folded into.
    pub(super) target: Arc<dyn Image>,
    /// What lies below the target.
    pub(super) below: View,
    /// Size of TOP's view in bytes.
    pub(super) size: u64,
}

/// One of the two views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Top,
    Target,
}

impl Sides {
    /// Fills `buf` from `at` with what that side shows; zeros past its end.
    pub(super) fn read(&self, side: Side, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        if side == Side::Target {
            return self.read_target(at, buf);
        }
        let runs = decided(&self.run, at.range(buf.len() as u64))?;
        if runs.iter().map(|run| run.range.bytes).sum::<u64>() < buf.len() as u64 {
            self.read_target(at, buf)?;
        }
        for run in runs {
            let start = index(run.range.start.since(at));
            let part = buf.get_mut(start..start + index(run.range.bytes));
            self.run.read_run(&run, part.ok_or_else(|| Error::invalid("a run outside what was asked"))?)?;
        }
        Ok(())
    }

    fn read_target(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let held = index(GuestOffset::new(self.target.size()).since(at)).min(buf.len());
        let (held, beyond) = buf.split_at_mut(held);
        beyond.fill(0);
        if held.is_empty() { Ok(()) } else { self.target.read(at, held, &self.below) }
    }

    /// Returns the content ID of what that side shows of TOP's disk, having read every byte of it.
    pub(super) fn view_id(&self, side: Side) -> Result<[u8; 32]> {
        let mut tree = Tree::new(self.size);
        for stride in GuestOffset::new(0).range(self.size).pieces(64 * PIECE_BYTES) {
            let pieces: Vec<GuestRange> = stride.pieces(PIECE_BYTES).collect();
            let hashed: Result<Vec<_>> = pieces
                .into_par_iter()
                .map_init(Vec::new, |buf, piece| self.hash_piece(side, piece, buf))
                .collect();
            for (at, digest) in hashed?.concat() {
                tree.set(at, digest)?;
            }
        }
        Ok(*tree.id().bytes())
    }

    fn hash_piece(&self, side: Side, piece: GuestRange, buf: &mut Vec<u8>) -> Result<Vec<(u64, Digest)>> {
        buf.resize(index(piece.bytes), 0);
        self.read(side, piece.start, buf)?;
        let first = piece.start.bytes() / LEAF_BYTES;
        Ok((first..).zip(buf.chunks(index(LEAF_BYTES)).map(leaf)).collect())
    }
}
