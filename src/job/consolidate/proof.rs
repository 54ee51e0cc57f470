//! Proof that the target shows what TOP showed.
//!
//! What passes through memory is compared as it passes ([`super::carry`]); here is what remains to be looked at
//! when all is done and flushed:
//!
//! - what was compared is still where it was: the target's map of each move is the one that was right then (another one
//!   makes the bytes be read again);
//! - what the host shared is the same blocks in both files: certain without reading a byte;
//! - anything else (what an earlier life of the job moved, what a file server copied) is read on both sides: TOP's
//!   bytes are still intact.

use super::{
    sides::{Side, Sides},
    work::decided,
};
use crate::{
    base::{Error, GuestRange, Result, units::index},
    content::LEAF_BYTES,
    io::Blocks,
    map::{self, Extent, RangeSet, State},
};
use rayon::prelude::*;
use std::collections::HashMap;

/// Bytes that one thread reads on both sides and compares in one go.
const PIECE_BYTES: u64 = 8 * LEAF_BYTES;

/// Guest bytes whose maps are held against each other in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// Pieces that are compared side by side.
const PIECES_AT_ONCE: usize = 64;

/// What is known of the moves of this life of the job.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Where the target held each move when it was compared.
    maps: Vec<(GuestRange, [u8; 32])>,
    /// What was compared as it passed.
    compared: RangeSet,
    /// What the host shared between a folded layer and the target.
    shared: RangeSet,
}

impl Proof {
    /// Takes note that the host shared `range`.
    pub(super) fn share(&mut self, range: GuestRange) {
        self.shared.insert(range);
    }

    /// Takes note that the move of `range` is over, and that `compared` of it was found right in the target.
    pub(super) fn passed(&mut self, sides: &Sides, range: GuestRange, compared: &RangeSet) -> Result<()> {
        self.maps.push((range, map_digest(sides, range)?));
        for range in compared.iter() {
            self.compared.insert(range);
        }
        Ok(())
    }

    /// Looks at all of `list`, which has been flushed; `Corrupt`, with the place, if the target differs.
    pub(super) fn check(&self, sides: &Sides, list: &RangeSet, moved: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let mut compared = self.compared.clone();
        for (range, before) in &self.maps {
            // Another map may be right, too: zeros that had no place are data once a neighbour in their block is, where the
            // format cannot tell them apart; and that of a raw disk is the host's word, to which what it has read ahead
            // looks like data until it is forgotten. The bytes decide.
            if map_digest(sides, *range)? != *before {
                compared.remove(*range);
            }
        }
        let mut open = RangeSet::new();
        for range in list.iter() {
            let gaps = compared.gaps(range);
            moved(range.bytes - gaps.iter().map(|gap| gap.bytes).sum::<u64>());
            for gap in gaps {
                open.insert(gap);
            }
        }
        self.check_shared(sides, &mut open, moved)?;
        let mut pieces = open.iter().flat_map(|range| range.pieces(PIECE_BYTES));
        loop {
            let some: Vec<GuestRange> = pieces.by_ref().take(PIECES_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            some.par_iter().try_for_each_init(<[Vec<u8>; 2]>::default, |buffers, piece| {
                is_same(sides, *piece, buffers)?.then_some(()).ok_or_else(|| differs(sides, *piece))?;
                moved(piece.bytes);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes from `open` what certainly is the same blocks.
    fn check_shared(&self, sides: &Sides, open: &mut RangeSet, moved: &dyn Fn(u64)) -> Result<()> {
        let files: Vec<_> = sides.run.images().iter().map(|image| image.data_file()).collect();
        let target = sides.target.data_file();
        let mut theirs = Blocks::new(target.as_ref());
        let mut ours: HashMap<usize, Blocks<'_>> = HashMap::new();
        for range in self.shared.iter().flat_map(|range| range.pieces(STRIDE_BYTES)) {
            let mut extents = Vec::new();
            sides.target.map(range, &mut extents)?;
            for run in decided(&sides.run, range)? {
                let Some((layer, file)) = run.layer.and_then(|n| Some((n, files.get(n)?))) else { continue };
                let blocks = ours.entry(layer).or_insert_with(|| Blocks::new(file.as_ref()));
                for extent in covering(&extents, run.range) {
                    let (held, place) = (run.clip(extent.range), extent.clip(run.range));
                    let (State::Data { host: at }, State::Data { host: other_at }) =
                        (held.state, place.state)
                    else {
                        continue;
                    };
                    if blocks.are_shared(at, &mut theirs, other_at, held.range.bytes) {
                        open.remove(held.range);
                        moved(held.range.bytes);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns the extents (in order, without overlap) that share a byte with `range`.
fn covering(extents: &[Extent], range: GuestRange) -> impl Iterator<Item = &Extent> {
    let first = extents.partition_point(|extent| extent.range.end() <= range.start);
    extents.iter().skip(first).take_while(move |extent| extent.range.start < range.end())
}

/// Returns a digest of where the target holds `range`.
fn map_digest(sides: &Sides, range: GuestRange) -> Result<[u8; 32]> {
    let (mut extents, mut places) = (Vec::new(), Vec::new());
    sides.target.map(range, &mut extents)?;
    for Extent { range, state } in extents {
        // Zeros get a place when their neighbours in a cluster do, and are zeros still.
        let state = if state.is_zero() { State::Zero { host: None } } else { state };
        map::push(&mut places, Extent::new(range, state));
    }
    let mut hasher = blake3::Hasher::new();
    for Extent { range, state } in places {
        let (kind, host) = match state {
            State::Absent => (0, None),
            State::Zero { .. } => (1, None),
            State::Data { host } => (2, Some(host)),
            State::Packed => (3, None),
        };
        let place = host.map_or(u64::MAX, crate::base::HostOffset::bytes);
        for word in [range.start.bytes(), range.bytes, kind, place] {
            hasher.update(&word.to_le_bytes());
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Returns whether both sides show the same at `range`.
fn is_same(sides: &Sides, range: GuestRange, [ours, theirs]: &mut [Vec<u8>; 2]) -> Result<bool> {
    for (side, buf) in [(Side::Top, &mut *ours), (Side::Target, &mut *theirs)] {
        buf.resize(index(range.bytes), 0);
        sides.read(side, range.start, buf)?;
    }
    Ok(ours == theirs)
}

pub(super) fn differs(sides: &Sides, range: GuestRange) -> Error {
    let what = format!(
        "guest bytes {:#x} to {:#x} are not what the disk showed before: the disk still opens as it was",
        range.start,
        range.end()
    );
    Error::corrupt(what).path(sides.target.data_file().path())
}
