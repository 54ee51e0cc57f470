//! Writing and zeroing.
//!
//! ```text
//! in place        (state, shared)      the block is here, and so are the sectors
//! place a block   (state, exclusive)   it reads as zeros; in a child no bit of it is set: it shows what it did
//! first sectors   claim them           overlapping first writes wait here
//!   move          (no lock)            the bytes; what else the first and last sector show comes from below
//!   set the bits  (state, exclusive)
//! ```
//! Entries and bits are written by a flush, after the data. What a cut loses is what was not flushed.

use super::{entry::Block, image::VhdxImage, state::State};
use crate::{
    base::{GuestOffset, GuestRange, HostOffset, HostRange, Result, units::index},
    format::{
        Below,
        source::{Job, Source},
    },
    io::{Kept, Moved},
    map,
};

impl State {
    /// Returns the part of `range`, from its start and within one span, that may be written in place.
    fn own_run(&self, range: GuestRange) -> Result<Option<HostRange>> {
        let place = match self.block(range.start)? {
            Block::Full(place) => place.range(range.bytes),
            Block::Partial(place) => match self.sectors(range)?.first() {
                Some((run, true)) => place.range(run.bytes),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        let in_block = range.start.bytes() % self.geometry.block_bytes;
        Ok(Some(place.start.plus(in_block).range(place.bytes)))
    }

    /// Returns the sectors around the start of `range` that are not here yet, and where the first byte of `range` goes;
    /// `None` if they are here, or the block is not.
    fn first_sectors(&self, range: GuestRange) -> Result<Option<(GuestRange, HostOffset)>> {
        let Block::Partial(place) = self.block(range.start)? else { return Ok(None) };
        let in_block = range.start.bytes() % self.geometry.block_bytes;
        Ok(match self.sectors(range)?.first() {
            Some((run, false)) => Some((*run, place.plus(in_block))),
            _ => None,
        })
    }

    /// Returns `range`, up to the end of the last block if it reaches the disk's end: nobody sees the rest.
    fn to_block_end(&self, range: GuestRange) -> GuestRange {
        let size = GuestOffset::new(self.metadata.size);
        if range.is_empty() || range.end() != size {
            return range;
        }
        GuestRange::between(range.start, size.ceil(self.geometry.block_bytes))
    }
}

impl VhdxImage {
    /// Stores a job's bytes.
    pub(super) fn write_job(&self, job: Job<'_>) -> Result<Moved> {
        let span = self.state.read().span();
        let mut moved = Moved::default();
        for piece in job.range.pieces(span) {
            let mut left = piece;
            while !left.is_empty() {
                let (done, how) = match self.write_in_place(left, job)? {
                    (0, _) => self.write_first(left, job)?,
                    done => done,
                };
                left = GuestRange::between(left.start.plus(done), left.end());
                moved.shared_bytes += how.shared_bytes;
                moved.copied_bytes += how.copied_bytes;
            }
        }
        Ok(moved)
    }

    /// Writes the start of `range` in place, as far as that goes; returns how many bytes.
    fn write_in_place(&self, range: GuestRange, job: Job<'_>) -> Result<(u64, Moved)> {
        let state = self.view(range.start)?;
        state.check_sound()?;
        let Some(host) = state.own_run(range)? else { return Ok((0, Moved::default())) };
        let skip = range.start.since(job.range.start);
        Ok((host.bytes, job.source.put(skip, self.file.as_ref(), host)?))
    }

    /// Makes room for the start of `range`, or writes sectors there that are not here yet; returns how many bytes.
    fn write_first(&self, range: GuestRange, job: Job<'_>) -> Result<(u64, Moved)> {
        self.clear_crowd()?;
        let sector = self.state.read().geometry.sector_bytes;
        let state = self.view(range.start)?;
        if !matches!(state.block(range.start)?, Block::Partial(_)) {
            drop(state);
            self.state.write().place_block(range.start)?;
            return Ok((0, Moved::default()));
        }
        let first = state.first_sectors(range)?;
        drop(state);
        let Some((run, _)) = first else { return Ok((0, Moved::default())) };
        let claimed = run.outer(sector);
        let _claim = self.claims.take(claimed);
        // Another write may have brought them while this one waited, or a trim may have taken the block.
        let Some((now, host)) = self.view(run.start)?.first_sectors(run)? else {
            return Ok((0, Moved::default()));
        };
        let run = now;
        let moved = self.move_in(Job { range: run, ..job }, run.start.since(job.range.start), host)?;
        self.state.write().set_sectors(run.outer(sector))?;
        Ok((run.bytes, moved))
    }

    /// Stores sectors that nobody sees yet: the job's bytes, `skip` bytes into its source, at `host`, and what its first
    /// and last sector show around them.
    fn move_in(&self, job: Job<'_>, skip: u64, host: HostOffset) -> Result<Moved> {
        let outer = job.range.outer(self.state.read().geometry.sector_bytes);
        let edges = [
            GuestRange::between(outer.start, job.range.start),
            GuestRange::between(job.range.end(), outer.end()),
        ];
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            let mut bytes = vec![0; index(edge.bytes)];
            job.below.read(edge.start, &mut bytes)?;
            let to = if edge.start < job.range.start {
                HostOffset::new(host.bytes() - edge.bytes)
            } else {
                host.plus(job.range.bytes)
            };
            self.file.write_at(to, &bytes)?;
        }
        job.source.put(skip, self.file.as_ref(), host.range(job.range.bytes))
    }

    /// Returns whether zeroing `range` changes entries only: whole blocks that may be given up.
    pub(super) fn erases_whole(&self, range: GuestRange, kept: Kept) -> bool {
        let state = self.state.read();
        let reached = state.to_block_end(range);
        let is_whole = reached.inner(state.geometry.block_bytes) == reached;
        kept == Kept::Nothing && !state.geometry.is_fixed && is_whole
    }

    /// Makes `range` read as zeros.
    pub(super) fn zero_range(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        self.begin_at(range)?;
        self.zero_unchecked(range, kept, below)
    }

    /// The same; `range` may pass the disk's end inside its last block.
    pub(super) fn zero_unchecked(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        let (block_bytes, is_fixed, reached) = {
            let state = self.state.read();
            (state.geometry.block_bytes, state.geometry.is_fixed, state.to_block_end(range))
        };
        for piece in reached.pieces(block_bytes) {
            let is_whole = piece.bytes == block_bytes && kept == Kept::Nothing && !is_fixed;
            let piece = piece.clip(range);
            if is_whole {
                self.erase_block(piece, below)?;
            } else {
                self.zero_part(piece, kept, below)?;
            }
        }
        Ok(())
    }

    /// Makes a whole block, of which `range` is on the disk, read as zeros.
    fn erase_block(&self, range: GuestRange, below: &dyn Below) -> Result<()> {
        self.clear_crowd()?;
        let is_zero_below = below.is_zero(range)?;
        let _claim = self.claims.take(range);
        self.state.write().erase_block(range.start, is_zero_below)
    }

    /// Makes part of a block read as zeros; where it does already, nothing is stored.
    fn zero_part(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        let mut extents = Vec::new();
        self.map_unchecked(range, &mut extents)?;
        for extent in extents {
            let is_zero = match extent.state {
                map::State::Zero { .. } => true,
                map::State::Absent => below.is_zero(extent.range)?,
                map::State::Data { .. } | map::State::Packed => false,
            };
            if !is_zero {
                self.write_job(Job { range: extent.range, source: Source::Zeros(kept), below })?;
            }
        }
        Ok(())
    }

    /// Has waiting changes written where there are too many.
    fn clear_crowd(&self) -> Result<()> {
        if self.state.read().pages.is_crowded() { self.flush_all() } else { Ok(()) }
    }
}
