//! The two views that must be the same at the end: TOP's and the target's.
//!
//! TOP's view is the run's merged map over the target's view. The run does not change while the job runs, so its
//! map is kept; the target does, so that it is asked each time.

use super::work::decided;
use crate::{
    base::{Error, GuestOffset, GuestRange, Result, units::index},
    chain::{Run, View},
    content::{Digest, LEAF_BYTES, Tree, leaf},
    format::Image,
    map::RangeSet,
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

    /// Returns the hashes of the leaves that `ranges` touch, by number, as that side shows them.
    pub(super) fn leaves(&self, side: Side, ranges: &RangeSet) -> Result<Vec<(u64, Digest)>> {
        let disk = GuestOffset::new(0).range(self.size);
        let outer = ranges.iter().map(|range| range.outer(LEAF_BYTES).clip(disk));
        let pieces: Vec<GuestRange> = outer.flat_map(|range| range.pieces(PIECE_BYTES)).collect();
        let hashed: Result<Vec<_>> = pieces
            .into_par_iter()
            .map_init(Vec::new, |buf, piece| self.hash_piece(side, piece, buf))
            .collect();
        Ok(hashed?.concat())
    }

    fn hash_piece(&self, side: Side, piece: GuestRange, buf: &mut Vec<u8>) -> Result<Vec<(u64, Digest)>> {
        buf.resize(index(piece.bytes), 0);
        self.read(side, piece.start, buf)?;
        let first = piece.start.bytes() / LEAF_BYTES;
        Ok((first..).zip(buf.chunks(index(LEAF_BYTES)).map(leaf)).collect())
    }

    /// Returns the content ID of what that side shows of TOP's disk, having read every byte of it.
    pub(super) fn view_id(&self, side: Side) -> Result<[u8; 32]> {
        let mut tree = Tree::new(self.size);
        for stride in GuestOffset::new(0).range(self.size).pieces(64 * PIECE_BYTES) {
            for (at, digest) in self.leaves(side, &[stride].into_iter().collect())? {
                tree.set(at, digest)?;
            }
        }
        Ok(*tree.id().bytes())
    }

    /// Returns whether the target shows a run's bytes already.
    pub(super) fn is_there(&self, run: &Run) -> Result<bool> {
        for range in run.range.pieces(PIECE_BYTES) {
            let (mut ours, mut theirs) = (vec![0; index(range.bytes)], vec![0; index(range.bytes)]);
            self.run.read_run(&run.clip(range), &mut ours)?;
            self.read_target(range.start, &mut theirs)?;
            if ours != theirs {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings a run to the target; returns how many of its bytes are shared with the host's help.
    pub(super) fn carry(&self, run: &Run) -> Result<u64> {
        use crate::{io::Kept, map::State};
        match run.state {
            State::Absent | State::Zero { .. } => {
                self.target.zero(run.range, Kept::Nothing, &self.below).map(|()| 0)
            }
            State::Data { host } => {
                let source = run.layer.and_then(|layer| self.run.images().get(layer));
                let source = source.ok_or_else(|| Error::invalid("a run of data without a layer"))?;
                let file = source.data_file();
                self.target.write_from(run.range, file.as_ref(), host, &self.below).map(|m| m.shared_bytes)
            }
            State::Packed => self.unpack(run).map(|()| 0),
        }
    }

    fn unpack(&self, run: &Run) -> Result<()> {
        for range in run.range.pieces(PIECE_BYTES) {
            let mut bytes = vec![0; index(range.bytes)];
            self.run.read_run(&run.clip(range), &mut bytes)?;
            self.target.write(range.start, &bytes, &self.below)?;
        }
        Ok(())
    }
}
