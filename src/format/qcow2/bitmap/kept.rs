//! Bitmaps that stay sound while the disk is written: what is about to change is marked in them first.
//!
//! ```text
//!   a region's first write: its bits, in place ─► flush ─► the region is known ─► the write; the next ones look, and go
//! ```
//!
//! What stays true: no byte of a region changes before all bitmaps that record call the whole region dirty, durably. So
//! they are never marked as in use, and what a crash leaves names every change, and more; whatever program opens the
//! image then finds a sound bitmap, and goes on recording. A bit that is being set is only ever set, so a torn write
//! leaves no less than was there. Whoever takes bits away ([`BitmapEdit::Put`], [`BitmapEdit::Clear`]) sees to it that
//! nobody writes meanwhile.

use super::{
    Stored,
    edit::{ALL_ONES, OFFSET},
    mark_stale, read,
};
use crate::{
    base::{
        Guard, GuestOffset, GuestRange, HostOffset, Result,
        units::{count, index},
    },
    format::{
        BitmapEdit, Bits,
        qcow2::{header::Header, image::Qcow2Image},
    },
};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which regions are marked in every bitmap that records.
#[derive(Debug)]
pub(in crate::format::qcow2) struct Marks {
    region_bytes: u64,
    /// A region past the last one is never known.
    known: Vec<AtomicBool>,
}

impl Marks {
    /// Cuts a disk of `size` bytes into regions; nothing is known of them.
    pub(in crate::format::qcow2) fn new(size: u64, region_bytes: u64) -> Self {
        let region_bytes = region_bytes.max(1);
        let known = (0..size.div_ceil(region_bytes)).map(|_| AtomicBool::new(false)).collect();
        Self { region_bytes, known }
    }

    /// Takes back what is known: the bitmaps have changed.
    pub(in crate::format::qcow2) fn forget(&self) {
        self.known.iter().for_each(|known| known.store(false, Ordering::Release));
    }

    /// Returns the regions from the first to the last that `range` touches and that are not known.
    fn unknown(&self, range: GuestRange) -> Option<std::ops::RangeInclusive<u64>> {
        let first = range.start.bytes() / self.region_bytes;
        let end = range.end().bytes().div_ceil(self.region_bytes);
        let is_unknown =
            |number: &u64| self.known.get(index(*number)).is_none_or(|known| !known.load(Ordering::Acquire));
        let first = (first..end).find(is_unknown)?;
        let last = (first..end).rev().find(is_unknown)?;
        Some(first..=last)
    }
}

impl Qcow2Image {
    /// Goes before bytes of `range` are changed, if bitmaps are to stay sound.
    pub(in crate::format::qcow2) fn mark_first(&self, range: GuestRange) -> Result<()> {
        let Some(marks) = self.marks.get() else { return Ok(()) };
        if marks.unknown(range).is_none() {
            return Ok(());
        }
        let mut header = self.header.lock();
        // Somebody may have marked them meanwhile.
        let Some(regions) = marks.unknown(range) else { return Ok(()) };
        let bytes = (regions.end() - regions.start() + 1).saturating_mul(marks.region_bytes);
        let whole = GuestOffset::new(regions.start().saturating_mul(marks.region_bytes)).range(bytes);
        if Guard::KeptBitmaps.trips(true) && self.mark_under(&mut header, whole).is_err() {
            // No reason why the guest should fail: the bitmaps are lost, and say so.
            mark_stale(&*self.file, &header, false)?;
        }
        for number in regions {
            if let Some(known) = marks.known.get(index(number)) {
                known.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Has all bitmaps that record call `range` dirty, durably.
    fn mark_under(&self, header: &mut Header, range: GuestRange) -> Result<()> {
        let mut recording = read(&*self.file, header)?;
        recording.retain(|stored| stored.bitmap.is_auto);
        for stored in recording.iter().filter(|stored| !stored.bitmap.is_in_use) {
            let mut bits = Bits::new(header.disk_bytes, stored.bitmap.granularity_bytes);
            bits.mark(range);
            if !self.mark_in_place(stored, &bits)? {
                let name = stored.bitmap.name.clone();
                self.change_under(header, &BitmapEdit::Union { name, bits })?;
            }
        }
        // Those that are in use may be so in the host's cache alone: the flush that was to say so may have failed.
        if recording.is_empty() { Ok(()) } else { self.file.flush() }
    }

    /// Sets bits where they are stored; false, and nothing done, where some of them have no place.
    fn mark_in_place(&self, stored: &Stored, bits: &Bits) -> Result<bool> {
        let cluster = index(self.shape.cluster());
        let words = self.words(stored)?;
        let is_set = |byte: &u8| *byte != 0;
        let dirty: Vec<(u64, usize, &[u8])> = words
            .into_iter()
            .zip(bits.bytes().chunks(cluster))
            .filter_map(|(word, chunk)| {
                let (from, to) = (chunk.iter().position(is_set)?, chunk.iter().rposition(is_set)?);
                Some((word, from, chunk.get(from..=to)?))
            })
            .collect();
        if dirty.iter().any(|(word, ..)| word & OFFSET == 0 && word & ALL_ONES == 0) {
            return Ok(false);
        }
        for (word, from, wanted) in dirty.into_iter().filter(|(word, ..)| word & OFFSET != 0) {
            let place = HostOffset::new(word & OFFSET).plus(count(from));
            let mut bytes = vec![0; wanted.len()];
            self.file.read_at(place, &mut bytes)?;
            bytes.iter_mut().zip(wanted).for_each(|(byte, more)| *byte |= more);
            self.file.write_at(place, &bytes)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
