//! Which MiB of the file are in use. Nothing in a VHDX file says what is free: it is what nothing refers to.

use super::{
    entry::{Block, bitmap_place},
    geometry::{BITMAP_BYTES, ENTRY_BYTES, EntryKind, Geometry, MIB},
    layout::Layout,
    log::{PAGE_BYTES, Page},
    metadata::Metadata,
};
use crate::{
    base::{
        Error, GuestOffset, HostOffset, HostRange, Result,
        units::{count, index},
    },
    io::File,
};
use std::{fmt, ops::Range};

/// No file of this format is longer; bounds the memory for what is in use.
const FILE_BYTES_MAX: u64 = 128 << 40;
/// Piece in which the table is read.
const PIECE_BYTES: u64 = MIB;

/// A MiB of the file is in use where its bit is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    words: Vec<u64>,
    /// Before these MiB no run of a block's, or of a single, MiB is free.
    block_from: u64,
    single_from: u64,
}

impl Space {
    fn is_taken(&self, mib: u64) -> bool {
        self.words.get(index(mib / 64)).is_some_and(|word| word >> (mib % 64) & 1 != 0)
    }

    /// Takes every MiB that `range` touches; false if one was taken already.
    pub(super) fn take(&mut self, range: HostRange) -> bool {
        let outer = range.outer(MIB);
        let mut is_free = true;
        for mib in outer.start.bytes() / MIB..outer.end().bytes() / MIB {
            let nth = index(mib / 64);
            if self.words.len() <= nth {
                self.words.resize(nth + 1, 0);
            }
            if let Some(word) = self.words.get_mut(nth) {
                is_free &= *word >> (mib % 64) & 1 == 0;
                *word |= 1 << (mib % 64);
            }
        }
        is_free
    }

    /// Gives whole MiB back.
    pub(super) fn give(&mut self, range: HostRange) {
        let first = range.start.bytes() / MIB;
        for mib in first..range.end().bytes() / MIB {
            if let Some(word) = self.words.get_mut(index(mib / 64)) {
                *word &= !(1 << (mib % 64));
            }
        }
        self.block_from = self.block_from.min(first);
        self.single_from = self.single_from.min(first);
    }

    /// Returns where the last MiB in use ends.
    pub(super) fn end(&self) -> HostOffset {
        let used = (1..).zip(&self.words).filter(|(_, word)| **word != 0);
        HostOffset::new(
            used.last().map_or(0, |(nth, word)| (nth * 64 - u64::from(word.leading_zeros())) * MIB),
        )
    }

    /// Returns the start of a free run of `bytes` (whole MiB), before `end` if there is one; it is not taken.
    pub(super) fn find(&mut self, bytes: u64, end: HostOffset) -> HostOffset {
        // What is in use may reach beyond a file whose last block is longer than the disk.
        let used_end = count(self.words.len()) * 64;
        let (wanted, end) = (bytes / MIB, end.bytes().div_ceil(MIB).max(used_end));
        let mut at = if wanted == 1 { self.single_from } else { self.block_from };
        let mut run = 0;
        while at < end && run < wanted {
            run = if self.is_taken(at) { 0 } else { run + 1 };
            at += 1;
        }
        // What is free right before the file's end is part of a run that goes on beyond it.
        let start = at - run;
        *(if wanted == 1 { &mut self.single_from } else { &mut self.block_from }) = start;
        HostOffset::new(start * MIB)
    }

    /// Returns the runs before `end` that nothing uses.
    pub(super) fn free_runs(&self, end: HostOffset) -> Vec<HostRange> {
        let mut runs: Vec<HostRange> = Vec::new();
        for mib in (0..end.bytes().div_ceil(MIB)).filter(|mib| !self.is_taken(*mib)) {
            let at = HostOffset::new(mib * MIB);
            match runs.last_mut() {
                Some(last) if last.end() == at => last.bytes += MIB,
                _ => runs.push(at.range(MIB)),
            }
        }
        runs
    }
}

/// Calls `each` for those of some entries of a table that are not zero, in order: number and word. Holes are not read.
pub(super) fn each_entry(
    file: &dyn File,
    bat: HostRange,
    entries: Range<u64>,
    mut each: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let place = |entry: u64| bat.start.plus(entry.saturating_mul(ENTRY_BYTES).min(bat.bytes));
    let table = HostRange::between(place(entries.start), place(entries.end));
    let mut buf = vec![0; index(PIECE_BYTES.min(table.bytes))];
    let mut at = table.start;
    while at < table.end() {
        let run = file.run_at(at)?;
        let end = if run.range.is_empty() {
            table.end()
        } else {
            run.range.end().floor(ENTRY_BYTES).min(table.end())
        };
        if !run.is_data && end > at {
            at = end;
            continue;
        }
        let piece = HostRange::between(at, table.end().min(at.plus(PIECE_BYTES)));
        let bytes = buf.get_mut(..index(piece.bytes)).unwrap_or_default();
        file.read_at(piece.start, bytes)?;
        let first = piece.start.since(bat.start) / ENTRY_BYTES;
        for (nth, entry) in (first..).zip(bytes.chunks_exact(8)) {
            let word = entry.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            if word != 0 {
                each(nth, word)?;
            }
        }
        at = piece.end();
    }
    Ok(())
}

/// Returns the pages of a table, as the file has them, with other words for some entries (in order).
pub(super) fn pages_with(file: &dyn File, bat: HostRange, words: &[(u64, u64)]) -> Result<Vec<Page>> {
    let mut pages: Vec<Page> = Vec::new();
    for (entry, word) in words {
        let at = bat.start.plus(entry * ENTRY_BYTES);
        let page = at.floor(PAGE_BYTES);
        if pages.last().is_none_or(|last| last.at != page) {
            let mut bytes = vec![0; index(PAGE_BYTES)];
            file.read_at(page, &mut bytes)?;
            pages.push(Page { at: page, bytes });
        }
        let from = index(at.since(page));
        let place = pages.last_mut().and_then(|last| last.bytes.get_mut(from..from + 8));
        if let Some(place) = place {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
    Ok(pages)
}

/// What an entry has in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Where.
    pub(super) range: HostRange,
    /// Whether it needs its chunk's sector bitmap.
    pub(super) is_partial: bool,
}

/// What is wrong with an entry: in words only where somebody reads them, since there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its state is not known.
    State(u64),
    /// It is partly present in a file without a parent.
    Partial,
    /// It leads into the header.
    Header(HostOffset),
    /// It leads past the end of a file of so many bytes.
    PastEnd(HostOffset, u64),
    /// It leads where no file of this format has anything.
    Absurd(HostOffset),
    /// What it leads to ends there, past the end of a file of so many bytes.
    Cut(HostOffset, u64),
    /// It leads to what something else uses.
    Shared(HostOffset),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "has the unknown state {state}"),
            Self::Partial => f.write_str("is partly present, and the file has no parent"),
            Self::Header(at) => write!(f, "points into the header (0x{at:x})"),
            Self::PastEnd(at, end) => write!(f, "points past the file's end (0x{at:x} of 0x{end:x})"),
            Self::Absurd(at) => write!(f, "points to 0x{at:x}: no file of this format is so long"),
            Self::Cut(at, end) => {
                write!(
                    f,
                    "points to what ends at 0x{at:x}, past the file's end (0x{end:x}): the file was cut"
                )
            }
            Self::Shared(at) => write!(f, "points to 0x{at:x}, which something else uses"),
        }
    }
}

/// Returns what the entry refers to, or what is wrong with it.
pub(super) fn held(
    geometry: Geometry,
    has_parent: bool,
    (entry, word): (u64, u64),
) -> std::result::Result<Option<Held>, Fault> {
    let place = match geometry.entry_kind(entry) {
        EntryKind::Bitmap => {
            let place = bitmap_place(word).map_err(Fault::State)?;
            // Without a parent no bitmap counts, whatever is there.
            place.filter(|_| has_parent).map(|at| (at.range(BITMAP_BYTES), false))
        }
        EntryKind::Payload(_) => match Block::decode(word) {
            Block::Unknown(state) => return Err(Fault::State(state)),
            Block::Partial(_) if !has_parent => return Err(Fault::Partial),
            Block::Partial(at) => Some((at.range(geometry.block_bytes), true)),
            Block::Full(at) => Some((at.range(geometry.block_bytes), false)),
            Block::Absent | Block::Zero => None,
        },
    };
    Ok(place.map(|(range, is_partial)| Held { range, is_partial }))
}

/// Returns what is wrong with where an entry leads in a file of so many bytes.
pub(super) fn misplaced(range: HostRange, file_bytes: u64) -> Option<Fault> {
    let (at, end) = (range.start, range.end().bytes());
    if at.bytes() < MIB {
        return Some(Fault::Header(at));
    }
    if at.bytes() >= file_bytes {
        return Some(Fault::PastEnd(at, file_bytes));
    }
    (end > FILE_BYTES_MAX).then_some(Fault::Absurd(at))
}

/// Returns what is wrong with an entry that leads to more than a file of so many bytes has of it. The last block may be
/// longer than the disk: nobody reads the rest of it.
pub(super) fn cut(metadata: &Metadata, (entry, range): (u64, HostRange), file_bytes: u64) -> Option<Fault> {
    let seen_bytes = match metadata.geometry.entry_kind(entry) {
        EntryKind::Bitmap => range.bytes,
        EntryKind::Payload(nth) => {
            metadata.geometry.block(nth).clip(GuestOffset::new(0).range(metadata.size)).bytes
        }
    };
    let end = range.start.plus(seen_bytes);
    (end.bytes() > file_bytes).then_some(Fault::Cut(end, file_bytes))
}

/// Returns how an entry is called in messages.
pub(super) fn name(geometry: Geometry, bat: HostRange, entry: u64) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let at = bat.start.plus(entry * ENTRY_BYTES);
        write!(f, "block allocation table: the entry at 0x{at:x} for ")?;
        match geometry.entry_kind(entry) {
            EntryKind::Payload(block) => write!(f, "guest byte 0x{:x}", geometry.block(block).start),
            EntryKind::Bitmap => f.write_str("a sector bitmap"),
        }
    })
}

/// Returns what the header, the log and the regions use.
pub(super) fn fixed_parts(layout: &Layout) -> Space {
    let mut space = Space::default();
    space.take(HostOffset::new(0).range(MIB));
    space.take(layout.header.log);
    for range in layout.regions.ranges() {
        space.take(range);
    }
    space
}

/// Looks at every entry of the table, and returns what is in use. `file` shows what the log says.
///
/// `Corrupt` for an entry that is wrong, leads outside the file, or to what something else uses.
pub(super) fn survey(file: &dyn File, layout: &Layout) -> Result<Space> {
    let (metadata, bat) = (&layout.metadata, layout.regions.bat);
    let (geometry, has_parent) = (metadata.geometry, metadata.has_parent());
    let mut space = fixed_parts(layout);
    let file_bytes = file.bytes()?;
    let said =
        |entry: u64, why: &dyn fmt::Display| Error::corrupt(format!("{} {why}", name(geometry, bat, entry)));
    let wrong = |entry: u64, fault: Fault| said(entry, &fault);
    // The chunk whose bitmap is needed: its entry comes behind those of its blocks.
    let mut needed: Option<u64> = None;
    let lacking = |entry: u64| said(entry, &"is missing, and blocks of its chunk are partly present");
    each_entry(file, bat, 0..geometry.entries(metadata.size, has_parent), |entry, word| {
        let found = held(geometry, has_parent, (entry, word)).map_err(|why| wrong(entry, why))?;
        if let Some(bitmap) = needed.filter(|bitmap| *bitmap <= entry) {
            if bitmap != entry || found.is_none() {
                return Err(lacking(bitmap));
            }
            needed = None;
        }
        let Some(Held { range, is_partial }) = found else { return Ok(()) };
        let fault = misplaced(range, file_bytes).or_else(|| cut(metadata, (entry, range), file_bytes));
        if let Some(why) = fault {
            return Err(wrong(entry, why));
        }
        if !space.take(range) {
            return Err(wrong(entry, Fault::Shared(range.start)));
        }
        if let (true, EntryKind::Payload(block)) = (is_partial, geometry.entry_kind(entry)) {
            needed = Some(geometry.bitmap_entry_of(block));
        }
        Ok(())
    })?;
    needed.map_or(Ok(space), |bitmap| Err(lacking(bitmap)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_found_again() {
        let mut space = Space::default();
        let mib = |first: u64, last: u64| {
            HostRange::between(HostOffset::new(first * MIB), HostOffset::new(last * MIB))
        };
        assert!(space.take(mib(0, 70)));
        assert!(!space.take(mib(69, 71)));
        assert_eq!(space.end(), HostOffset::new(71 * MIB));
        assert_eq!(space.find(4 * MIB, space.end()), HostOffset::new(71 * MIB));
        space.give(mib(10, 14));
        assert_eq!(space.find(4 * MIB, space.end()), HostOffset::new(10 * MIB));
        space.give(mib(5, 6));
        assert_eq!(space.find(4 * MIB, space.end()), HostOffset::new(10 * MIB));
        assert_eq!(space.find(MIB, space.end()), HostOffset::new(5 * MIB));
        assert_eq!(space.free_runs(HostOffset::new(72 * MIB)), [mib(5, 6), mib(10, 14), mib(71, 72)]);
        // A run that ends with the file goes on beyond it.
        assert_eq!(space.find(8 * MIB, HostOffset::new(73 * MIB)), HostOffset::new(71 * MIB));
        // What is in use beyond the file's end is not given away again.
        let mut space = Space::default();
        assert!(space.take(mib(0, 70)));
        assert_eq!(space.find(4 * MIB, HostOffset::new(30 * MIB)), HostOffset::new(70 * MIB));
    }
}
