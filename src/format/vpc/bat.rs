//! The block allocation table: for each block of the disk the sector of the file where its bitmap starts.
//!
//! Of an image that is written, and of one for which the budget has room, it is in memory; else its entries are read one
//! by one. Either way no two blocks share a byte, none lies on what belongs to the header, and each lies in the file.

use super::header::Header;
use crate::{
    base::{
        Budget, Error, HostOffset, HostRange, Result,
        budget::{Held, Part},
        units::{SECTOR_BYTES, count, index},
    },
    io::File,
};
use std::{collections::BTreeSet, fmt};

/// The entry of a block that is not there.
pub(super) const UNUSED: u32 = u32::MAX;
/// Entries in a sector of the table.
const PER_SECTOR: u64 = SECTOR_BYTES / 4;
/// Bytes of the table that are read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// The table.
#[derive(Debug)]
pub(super) struct Bat {
    /// Where it is.
    pub(super) at: HostOffset,
    /// The blocks of the disk.
    pub(super) entries: u64,
    /// The entries; none if they are read from the file.
    words: Vec<u32>,
    /// Its sectors that the file does not have yet.
    changed: BTreeSet<u64>,
    held: Option<Held>,
}

/// One piece of the table as it is to be in the file.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where it goes.
    pub(super) at: HostOffset,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

impl Bat {
    /// Takes in the table of a disk with so many blocks; with a budget, only if there is room in it.
    pub(super) fn open(
        file: &dyn File,
        (header, end): (&Header, HostOffset),
        entries: u64,
        budget: Option<&Budget>,
    ) -> Result<Self> {
        let mut bat = Self::unchecked(header, entries);
        bat.used(file, (header, end))?;
        if budget.is_some_and(|budget| !budget.has_room(Part::FirstLevels, entries * 4)) {
            return Ok(bat);
        }
        bat.held = budget.map(|budget| budget.hold(Part::FirstLevels, entries * 4));
        let mut words = Vec::with_capacity(index(entries));
        bat.read(file, &mut |_, word| {
            words.push(word);
            Ok(())
        })?;
        bat.words = words;
        Ok(bat)
    }

    /// Returns a table whose entries are read from the file, and that may say anything.
    pub(super) fn unchecked(header: &Header, entries: u64) -> Self {
        let at = HostOffset::new(header.fields.table_offset);
        Self { at, entries, words: Vec::new(), changed: BTreeSet::new(), held: None }
    }

    /// Returns where each block is, in the file's order, in a file whose footer is, or has to be, at `end`; `Corrupt` for one that is not its own or not in the file.
    pub(super) fn used(
        &self,
        file: &dyn File,
        (header, end): (&Header, HostOffset),
    ) -> Result<Vec<(HostOffset, u64)>> {
        self.survey(file, (header, end), &mut |what| Err(Error::corrupt(what.to_string())))
    }

    /// The same, each fault told (in words only where somebody keeps them): without those that are not in the file, and as
    /// many as the file has room for.
    pub(super) fn survey(
        &self,
        file: &dyn File,
        (header, end): (&Header, HostOffset),
        wrong: &mut dyn FnMut(fmt::Arguments<'_>) -> Result<()>,
    ) -> Result<Vec<(HostOffset, u64)>> {
        // What comes behind the footer's place is nobody's.
        let (both, file_bytes) = (header.shape.both(), file.bytes()?.min(end.bytes()));
        let said = |nth: u64, at: HostOffset| {
            fmt::from_fn(move |f| write!(f, "BAT entry {nth}: the block at {at:#x}"))
        };
        let mut used = Vec::new();
        self.read(file, &mut |nth, word| {
            let Some(at) = place(word) else { return Ok(()) };
            if at.plus(both).bytes() > file_bytes {
                return wrong(format_args!("{} passes the file's end ({file_bytes:#x})", said(nth, at)));
            }
            if count(used.len()) > file_bytes / both {
                let what = "is one of more than the file has room for: some are shared";
                return wrong(format_args!("{} {what}", said(nth, at)));
            }
            used.push((at, nth));
            Ok(())
        })?;
        used.sort_unstable();
        for pair in used.windows(2) {
            if let [(at, nth), (next, other)] = pair
                && at.plus(both) > *next
            {
                wrong(format_args!("{} overlaps that of entry {other} at {next:#x}", said(*nth, *at)))?;
            }
        }
        let footer = HostOffset::new(0).range(SECTOR_BYTES);
        for taken in header.places(self.entries).into_iter().chain([footer]).filter(|range| !range.is_empty())
        {
            let first = used.partition_point(|(at, _)| at.plus(both) <= taken.start);
            if let Some((at, nth)) = used.get(first).filter(|(at, _)| *at < taken.end()) {
                let what = "overlaps the header or what belongs to it";
                wrong(format_args!("{} {what} at {:#x}", said(*nth, *at), taken.start))?;
            }
        }
        Ok(used)
    }

    fn read(&self, file: &dyn File, each: &mut dyn FnMut(u64, u32) -> Result<()>) -> Result<()> {
        let mut nth = 0;
        for piece in self.at.range(self.entries * 4).pieces(PIECE_BYTES) {
            let mut bytes = vec![0; index(piece.bytes)];
            file.read_at(piece.start, &mut bytes)?;
            let (words, _) = bytes.as_chunks::<4>();
            for word in words {
                each(nth, u32::from_be_bytes(*word))?;
                nth += 1;
            }
        }
        Ok(())
    }

    /// Returns where a block is, if it is anywhere.
    pub(super) fn get(&self, file: &dyn File, nth: u64) -> Result<Option<HostOffset>> {
        if nth >= self.entries {
            return Ok(None);
        }
        if let Some(word) = self.words.get(index(nth)) {
            return Ok(place(*word));
        }
        let mut word = [0; 4];
        file.read_at(self.at.plus(nth * 4), &mut word)?;
        Ok(place(u32::from_be_bytes(word)))
    }

    /// Says where a block is; `Invalid` if no entry can. The table is in memory.
    pub(super) fn set(&mut self, nth: u64, host: Option<HostOffset>) -> Result<()> {
        let sector = host.map(|at| u32::try_from(at.bytes() / SECTOR_BYTES).ok().filter(|at| *at != UNUSED));
        let Some(word) = sector.unwrap_or(Some(UNUSED)) else {
            return Err(Error::invalid("the file is full: no entry of the BAT leads past 2 TiB"));
        };
        let none = || Error::invalid(format!("BAT entry {nth} is not there"));
        *self.words.get_mut(index(nth)).ok_or_else(none)? = word;
        self.changed.insert(nth / PER_SECTOR);
        Ok(())
    }

    /// Gives the table room for another number of blocks; new ones are nowhere. Changes nothing in the file.
    pub(super) fn resize(&mut self, entries: u64) {
        self.words.resize(index(entries), UNUSED);
        self.entries = entries;
    }

    /// Returns the bytes of the whole table, with unused entries up to the end of its last sector.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let sectors = self.entries.div_ceil(PER_SECTOR);
        (0..sectors).flat_map(|sector| self.sector(sector)).collect()
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let words = (sector * PER_SECTOR..(sector + 1) * PER_SECTOR).map(index);
        words.flat_map(|nth| self.words.get(nth).copied().unwrap_or(UNUSED).to_be_bytes()).collect()
    }

    /// Returns whether the file lacks something of it.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes what the file lacks.
    pub(super) fn take(&mut self) -> Vec<Piece> {
        let changed = std::mem::take(&mut self.changed);
        let piece =
            |sector: u64| Piece { at: self.at.plus(sector * SECTOR_BYTES), bytes: self.sector(sector) };
        let mut pieces: Vec<Piece> = Vec::new();
        for next in changed.into_iter().map(piece) {
            match pieces.last_mut() {
                Some(last) if last.at.plus(count(last.bytes.len())) == next.at => {
                    last.bytes.extend(next.bytes);
                }
                _ => pieces.push(next),
            }
        }
        pieces
    }
}

fn place(word: u32) -> Option<HostOffset> {
    (word != UNUSED).then(|| HostOffset::new(u64::from(word) * SECTOR_BYTES))
}

/// Returns the range of a new table's bytes.
pub(super) const fn table_bytes(entries: u64) -> u64 {
    (entries * 4).next_multiple_of(SECTOR_BYTES)
}

/// Returns where the last block ends, or what belongs to the header.
pub(super) fn used_end(used: &[(HostOffset, u64)], header: &Header, entries: u64) -> HostOffset {
    let entries = entries.max(u64::from(header.fields.max_table_entries));
    let blocks = used.last().map(|(at, _)| at.plus(header.shape.both()));
    let others = header.places(entries).into_iter().map(HostRange::end);
    others.chain(blocks).max().unwrap_or_default().ceil(SECTOR_BYTES)
}
