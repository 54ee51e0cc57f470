//! Writing: in place where all sectors are held, else with their bits set afterwards.
//!
//! ```text
//! claim the guest sectors           overlapping first writes wait here
//!   block     (state, exclusive)    a place for the block, if it has none; the footer moves behind it
//!   move      (no lock)             the data; what else the first and last sector show
//!   mark      (state, exclusive)    the bits, in memory: the next flush writes them
//! ```
//! A new block starts behind the old footer or on it, with its bitmap, so that the footer is written at the new end before
//! anything takes its place. A cut in between leaves the copy at the front.

use super::{
    image::{SparseImage, State},
    marks::Bits,
};
use crate::{
    base::{
        GuestOffset, GuestRange, HostOffset, Result,
        units::{SECTOR_BYTES, index},
    },
    format::{self, Below, source::Job},
    io::{Kept, Moved},
};

/// How many changed bitmaps wait for a flush at most.
const CHANGED_MAX: u64 = 64 << 10;

impl State {
    /// Finds a place for a block, and has its bitmap say that all of it is held, or nothing.
    fn add_block(&mut self, image: &SparseImage, block: u64, is_whole: bool) -> Result<HostOffset> {
        let (file, shape) = (&*image.file, image.shape);
        let (host, end_at) = if let Some(host) = self.free.last() {
            (*host, self.end_at)
        } else {
            let host = shape.place(self.end_at);
            (host, host.plus(shape.both()))
        };
        // Before anything is written: an entry has to have room for it.
        self.bat.set(block, Some(host))?;
        let is_reused = self.free.last().is_some();
        let place = host.plus(shape.bitmap()).range(shape.block());
        let done = if is_reused {
            file.zero(place, Kept::Space)
        } else {
            file.write_at(end_at, &self.footer.signed())
        };
        let bits = if is_whole { Bits::All } else { Bits::Some(vec![0; index(shape.bitmap())].into()) };
        let done = done.and_then(|()| file.write_at(host, &bits.to_bytes(shape.bitmap())));
        if let Err(error) = done {
            self.bat.set(block, None)?;
            // The file may have grown: whatever is at its end then, the footer is not lost.
            if !is_reused {
                drop(file.set_bytes(self.end_at.plus(SECTOR_BYTES).bytes()));
                drop(file.write_at(self.end_at, &self.footer.signed()));
            }
            return Err(error);
        }
        if is_reused {
            self.free.pop();
        }
        self.end_at = end_at;
        self.marks.lock().put((block, host), bits, image.room());
        Ok(host)
    }
}

impl SparseImage {
    /// Stores a job's bytes.
    pub(super) fn write_job(&self, job: Job<'_>) -> Result<Moved> {
        let mut moved = Moved::default();
        for piece in job.range.pieces(self.shape.block()) {
            let how = match self.write_in_place(piece, job)? {
                Some(how) => how,
                None => self.write_new(piece, job)?,
            };
            moved.shared_bytes += how.shared_bytes;
            moved.copied_bytes += how.copied_bytes;
        }
        Ok(moved)
    }

    /// Writes `piece`, inside one block, if all its sectors are held.
    fn write_in_place(&self, piece: GuestRange, job: Job<'_>) -> Result<Option<Moved>> {
        let state = self.state.read();
        state.check_sound()?;
        let block = self.block(piece.start);
        let Some(host) = state.bat.get(&*self.file, block)? else { return Ok(None) };
        let (from, to) = self.sectors(piece);
        if !self.with_bits(&state, (block, host), |bits| bits.has(from, to))? {
            return Ok(None);
        }
        let skip = piece.start.since(job.range.start);
        job.source.put(skip, &*self.file, self.place(host, piece)).map(Some)
    }

    /// Writes `piece`, inside one block, of which some sectors are not held.
    fn write_new(&self, piece: GuestRange, job: Job<'_>) -> Result<Moved> {
        if self.state.read().marks.lock().changed() > CHANGED_MAX {
            self.flush_all()?;
        }
        let _claim = self.claims.take(piece.outer(SECTOR_BYTES));
        let block = self.block(piece.start);
        let host = self.claimed_block(block, job.below)?;
        let (from, to) = self.sectors(piece);
        let state = self.state.read();
        let (has_first, has_last) =
            self.with_bits(&state, (block, host), |bits| (bits.has(from, from + 1), bits.has(to - 1, to)))?;
        drop(state);
        // What is around the bytes in sectors that are not held yet comes from below.
        let first = piece.start.floor(SECTOR_BYTES).range(SECTOR_BYTES);
        let last = GuestOffset::new(piece.end().bytes() - 1).floor(SECTOR_BYTES).range(SECTOR_BYTES);
        let mut rest = piece;
        for (sector, is_held) in [(first, has_first), (last, has_last)] {
            let part = sector.clip(rest);
            if is_held || part.is_empty() || part == sector {
                continue;
            }
            let mut bytes = [0; index(SECTOR_BYTES)];
            job.below.read(sector.start, &mut bytes)?;
            let own = format::part::part(&mut bytes, sector, part)?;
            job.source.fill(part.start.since(job.range.start), own)?;
            self.file.write_at(self.place(host, sector).start, &bytes)?;
            rest = if part.start == rest.start {
                GuestRange::between(part.end(), rest.end())
            } else {
                GuestRange::between(rest.start, part.start)
            };
        }
        let mut moved = Moved { shared_bytes: 0, copied_bytes: piece.bytes - rest.bytes };
        if !rest.is_empty() {
            let skip = rest.start.since(job.range.start);
            let how = job.source.put(skip, &*self.file, self.place(host, rest))?;
            moved.shared_bytes += how.shared_bytes;
            moved.copied_bytes += how.copied_bytes;
        }
        let state = self.state.write();
        let sectors = self.shape.block() / SECTOR_BYTES;
        // Evicted meanwhile, they are read again: nobody changes them but under this lock.
        self.with_bits(&state, (block, host), |_| ())?;
        state.marks.lock().set(block, (from, to), sectors);
        Ok(moved)
    }

    /// Returns where a block is, of which the caller has claimed a part: it gets a place if it has none.
    fn claimed_block(&self, block: u64, below: &dyn Below) -> Result<HostOffset> {
        let whole = GuestOffset::new(block * self.shape.block()).range(self.shape.block());
        // Over a parent each sector speaks for itself.
        let is_whole = !self.state.read().is_child && below.is_zero(whole)?;
        let mut state = self.state.write();
        state.check_sound()?;
        match state.bat.get(&*self.file, block)? {
            Some(host) => Ok(host),
            None => state.add_block(self, block, is_whole),
        }
    }
}
