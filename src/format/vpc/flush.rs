//! Writing tables back, in an order that a cut may end anywhere.
//!
//! | step | written | what a cut leaves of it |
//! |---|---|---|
//! | 1 | *data, new blocks' bitmaps as they were when they got their place, and the footer are durable* | space that nothing leads to |
//! | 2 | bits of written sectors, BAT entries, in any order | a block whose bits are old: sectors that read as before |
//! | | *durable* | |
//! | 3 | holes where blocks were given up; from here on their places are used again | |
//!
//! Only sectors that changed are written, and an entry never crosses a sector: a torn write is a lost part. What is not
//! flushed when the image is dropped is lost as in a power cut: whoever writes, flushes.

use super::{
    bat::{self, Piece},
    image::{SparseImage, State},
    marks::Bits,
};
use crate::{
    base::{Error, Guard, HostOffset, HostRange, Result, units::SECTOR_BYTES},
    io::Kept,
};
use parking_lot::RwLockWriteGuard;

/// What one flush writes.
#[derive(Debug)]
struct Batch {
    marks: Vec<(HostOffset, Bits)>,
    entries: Vec<Piece>,
    /// Blocks that are nowhere with `entries`.
    dropped: Vec<HostOffset>,
}

impl State {
    /// Refuses to go on after a failed write of tables.
    pub(super) fn check_sound(&self) -> Result<()> {
        match self.poison.as_ref().filter(|_| Guard::Poison.trips(true)) {
            None => Ok(()),
            Some(why) => Err(Error::invalid(format!("is not written to since tables could not be: {why}"))),
        }
    }

    fn take_batch(&mut self) -> Batch {
        let marks = self.marks.lock().take();
        Batch { marks, entries: self.bat.take(), dropped: std::mem::take(&mut self.dropped) }
    }
}

impl SparseImage {
    /// Makes everything before this call durable.
    pub(super) fn flush_all(&self) -> Result<()> {
        // One batch after another.
        let _header = self.header.lock();
        self.flush_under()
    }

    /// The same, for who holds the header.
    pub(super) fn flush_under(&self) -> Result<()> {
        let mut state = self.state.write();
        state.check_sound()?;
        let batch = state.take_batch();
        drop(state);
        let done = self.write_batch(&batch);
        let mut state = self.state.write();
        match done {
            Ok(()) => state.marks.lock().left(),
            Err(error) => {
                state.poison = Some(error.to_string());
                return Err(error);
            }
        }
        drop(state);
        // The space of what is not punched stays taken: that is no reason to fail.
        let mut freed = Vec::new();
        for host in batch.dropped {
            drop(self.file.zero(host.range(self.shape.both()), Kept::Nothing));
            freed.push(host);
        }
        if !freed.is_empty() {
            self.state.write().free.extend(freed);
        }
        Ok(())
    }

    /// Takes the state's exclusive side at a moment at which the file has all of the BAT; the caller holds the header.
    pub(super) fn settled(&self) -> Result<RwLockWriteGuard<'_, State>> {
        loop {
            self.flush_under()?;
            let state = self.state.write();
            state.check_sound()?;
            if !state.bat.is_changed() {
                return Ok(state);
            }
        }
    }

    fn write_batch(&self, batch: &Batch) -> Result<()> {
        self.file.flush()?;
        if batch.marks.is_empty() && batch.entries.is_empty() {
            return Ok(());
        }
        for (host, bits) in &batch.marks {
            self.file.write_at(*host, &bits.to_bytes(self.shape.bitmap()))?;
        }
        for piece in &batch.entries {
            self.file.write_at(piece.at, &piece.bytes)?;
        }
        self.file.flush()
    }

    /// Punches what lies between blocks, and cuts off what lies behind the last one; returns the bytes given back.
    pub(super) fn release_unused(&self) -> Result<u64> {
        let header = self.header.lock();
        let mut state = self.settled()?;
        let before = self.file.allocated_bytes()?;
        let used = state.bat.used(&*self.file, (&header, state.end_at))?;
        let end = bat::used_end(&used, &header, state.bat.entries);
        let entries = state.bat.entries.max(u64::from(header.fields.max_table_entries));
        // What lies before the first block may be another program's.
        let first = used.first().map_or(end, |(at, _)| *at);
        let blocks = used.iter().map(|(at, _)| at.range(self.shape.both()));
        let mut taken: Vec<HostRange> = header.places(entries).into_iter().chain(blocks).collect();
        taken.sort_unstable_by_key(|range| range.start);
        let mut last = first;
        for range in taken {
            self.punch(HostRange::between(last, range.start))?;
            last = last.max(range.end());
        }
        if end < state.end_at && !self.file.is_device() {
            self.file.write_at(end, &state.footer.signed())?;
            self.file.flush()?;
            state.end_at = end;
            state.free.clear();
            self.file.set_bytes(end.plus(SECTOR_BYTES).bytes())?;
        }
        drop(state);
        Ok(before.saturating_sub(self.file.allocated_bytes()?))
    }

    fn punch(&self, gap: HostRange) -> Result<()> {
        let mut at = gap.start;
        while at < gap.end() {
            let run = self.file.run_at(at)?;
            if run.range.is_empty() {
                break;
            }
            if run.is_data {
                self.file.zero(run.range.clip(gap), Kept::Nothing)?;
            }
            at = run.range.end();
        }
        Ok(())
    }
}
