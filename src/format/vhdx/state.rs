//! What is kept in memory of an open image's blocks: pages of the table and of the sector bitmaps, and which MiB of the
//! file are in use.
//!
//! The table was looked at as a whole when the image was opened: what its entries say is trusted from then on.

use super::{
    bits,
    entry::{Block, bitmap_place},
    geometry::{BITMAP_BYTES, ENTRY_BYTES, Geometry},
    log::PAGE_BYTES,
    metadata::Metadata,
    space::Space,
};
use crate::{
    base::{
        Error, ErrorKind, Guard, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        units::{count, index},
    },
    format::pages::Pages,
    io::{File, Kept},
    map::{self, Extent},
};
use std::sync::Arc;

/// What a page is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A sector bitmap.
    Bitmap,
    /// The block allocation table.
    Bat,
}

/// What changes while the image is open.
#[derive(Debug)]
pub(super) struct State {
    pub(super) file: Arc<dyn File>,
    pub(super) geometry: Geometry,
    pub(super) metadata: Metadata,
    /// The block allocation table.
    pub(super) bat: HostRange,
    pub(super) pages: Pages<Kind>,
    pub(super) space: Space,
    /// What entries in memory no longer refer to, and entries in the file may still.
    pub(super) dropped: Vec<HostRange>,
    /// Why the log could not be written once; nothing is written any more.
    pub(super) poison: Option<String>,
}

impl State {
    /// Returns the guest bytes that are looked at in one go: in one block, with their bits in one page.
    pub(super) fn span(&self) -> u64 {
        (PAGE_BYTES * 8 * self.geometry.sector_bytes).min(self.geometry.block_bytes)
    }

    /// Refuses to go on after a failed write of metadata.
    pub(super) fn check_sound(&self) -> Result<()> {
        match self.poison.as_ref().filter(|_| Guard::Poison.trips(true)) {
            None => Ok(()),
            Some(why) => Err(Error::invalid(format!("is not written to since its log could not be: {why}"))),
        }
    }

    fn place_of(&self, entry: u64) -> HostOffset {
        self.bat.start.plus(entry * ENTRY_BYTES)
    }

    /// Returns an entry whose page is here.
    fn word(&self, entry: u64) -> Result<u64> {
        let at = self.place_of(entry);
        let bytes = self.pages.bytes(at).and_then(<[u8]>::first_chunk);
        let missing = || Error::invalid(format!("the table's page at 0x{at:x} was dropped while in use"));
        bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(missing)
    }

    fn load_entry(&mut self, entry: u64) -> Result<()> {
        self.pages.load(self.file.as_ref(), self.place_of(entry), Kind::Bat)
    }

    fn store(&mut self, entry: u64, word: u64) -> Result<()> {
        let at = self.place_of(entry);
        self.pages.load(self.file.as_ref(), at, Kind::Bat)?;
        self.pages.store(at, &word.to_le_bytes())
    }

    /// Returns what is known of the block that `guest` lies in; its entry is here.
    pub(super) fn block(&self, guest: GuestOffset) -> Result<Block> {
        let block = Block::decode(self.word(self.geometry.entry_of(self.geometry.block_of(guest)))?);
        match block {
            Block::Unknown(state) => {
                let start = guest.floor(self.geometry.block_bytes);
                Err(Error::corrupt(format!(
                    "the block at guest byte 0x{start:x} has the unknown state {state}"
                )))
            }
            known => Ok(known),
        }
    }

    /// Returns where the bits from the one of `guest` on are, if there is a bitmap; its entry is here.
    fn bits_at(&self, guest: GuestOffset) -> Result<Option<HostOffset>> {
        let word = self.word(self.geometry.bitmap_entry_of(self.geometry.block_of(guest)))?;
        let place = bitmap_place(word).ok().flatten();
        Ok(place.map(|at| at.plus(self.geometry.bit_of(guest) / 8)))
    }

    /// Returns the bits from `guest` on, if its block is partly present, and their page is here: bytes, and the first bit.
    fn bits(&self, guest: GuestOffset) -> Result<(&[u8], usize)> {
        let missing = || Error::corrupt(format!("guest byte 0x{guest:x} has no sector bitmap"));
        let at = self.bits_at(guest)?.ok_or_else(missing)?;
        let bytes = self.pages.bytes(at).ok_or_else(missing)?;
        Ok((bytes, index(self.geometry.bit_of(guest) % 8)))
    }

    /// Returns whether all that says what is at `guest` is in memory.
    pub(super) fn is_ready(&self, guest: GuestOffset) -> Result<bool> {
        let block = self.geometry.block_of(guest);
        let (entry, bitmap) = (self.geometry.entry_of(block), self.geometry.bitmap_entry_of(block));
        if !self.pages.has(self.place_of(entry)) {
            return Ok(false);
        }
        if !matches!(self.block(guest)?, Block::Partial(_)) {
            return Ok(true);
        }
        if !self.pages.has(self.place_of(bitmap)) {
            return Ok(false);
        }
        Ok(self.bits_at(guest)?.is_none_or(|at| self.pages.has(at)))
    }

    /// Brings in what says what is at `guest`.
    pub(super) fn load(&mut self, guest: GuestOffset) -> Result<()> {
        let block = self.geometry.block_of(guest);
        self.load_entry(self.geometry.entry_of(block))?;
        if matches!(self.block(guest)?, Block::Partial(_)) {
            self.load_entry(self.geometry.bitmap_entry_of(block))?;
            if let Some(at) = self.bits_at(guest)? {
                self.pages.load(self.file.as_ref(), at, Kind::Bitmap)?;
            }
        }
        Ok(())
    }

    /// Appends what this layer says about `range`, within one span that is ready.
    pub(super) fn extents(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        let in_block = range.start.since(range.start.floor(self.geometry.block_bytes));
        match self.block(range.start)? {
            Block::Full(place) => {
                let host = place.plus(in_block);
                map::push(out, Extent::new(range, map::State::Data { host }));
            }
            Block::Partial(place) => {
                for (part, is_here) in self.sectors(range)? {
                    let host = place.plus(in_block + part.start.since(range.start));
                    let state = if is_here { map::State::Data { host } } else { map::State::Absent };
                    map::push(out, Extent::new(part, state));
                }
            }
            Block::Zero => map::push(out, Extent::new(range, map::State::Zero { host: None })),
            Block::Absent | Block::Unknown(_) => map::push(out, Extent::new(range, map::State::Absent)),
        }
        Ok(())
    }

    /// Returns the runs of `range`, within one span of a partly present block, that are here or not.
    pub(super) fn sectors(&self, range: GuestRange) -> Result<Vec<(GuestRange, bool)>> {
        let sector = self.geometry.sector_bytes;
        let outer = range.outer(sector);
        let (bytes, first) = self.bits(outer.start)?;
        let mut at = outer.start;
        let runs = bits::runs(bytes, first, index(outer.bytes / sector)).map(|(sectors, is_here)| {
            let run = at.range(count(sectors) * sector);
            at = run.end();
            (run.clip(range), is_here)
        });
        Ok(runs.collect())
    }

    /// Notes that the sectors of `range`, whole ones within one span of a partly present block, are here.
    pub(super) fn set_sectors(&mut self, range: GuestRange) -> Result<()> {
        self.check_sound()?;
        self.load(range.start)?;
        let (bytes, first) = self.bits(range.start)?;
        let sectors = index(range.bytes / self.geometry.sector_bytes);
        let mut changed = bytes.get(..(first + sectors).div_ceil(8)).unwrap_or_default().to_vec();
        bits::set(&mut changed, first, sectors);
        let at = self.bits_at(range.start)?;
        at.map_or(Ok(()), |at| self.pages.store(at, &changed))
    }

    /// Gives the block that `guest` lies in a place in the file that reads as zeros. What it shows stays.
    pub(super) fn place_block(&mut self, guest: GuestOffset) -> Result<()> {
        self.check_sound()?;
        self.load(guest)?;
        let old = self.block(guest)?;
        if old.place().is_some() {
            return Ok(());
        }
        let nth = self.geometry.block_of(guest);
        let is_partial = self.metadata.has_parent() && old == Block::Absent;
        if is_partial {
            self.clear_bits(nth)?;
        }
        let place = self.allocate(self.geometry.block_bytes)?;
        let new = if is_partial { Block::Partial(place.start) } else { Block::Full(place.start) };
        let stored = self.store(self.geometry.entry_of(nth), new.encode());
        if stored.is_err() {
            self.space.give(place);
        }
        stored
    }

    /// Says of the block that `guest` lies in that it is zeros; what it had in the file is given up. What lies below is
    /// known to be zero where nothing needs to be said.
    pub(super) fn erase_block(&mut self, guest: GuestOffset, is_zero_below: bool) -> Result<()> {
        self.check_sound()?;
        self.load(guest)?;
        let old = self.block(guest)?;
        let is_silent = old == Block::Absent && !Guard::ZeroOverParent.trips(!is_zero_below);
        if is_silent || old == Block::Zero {
            return Ok(());
        }
        self.store(self.geometry.entry_of(self.geometry.block_of(guest)), Block::Zero.encode())?;
        self.dropped.extend(old.place().map(|place| place.range(self.geometry.block_bytes)));
        Ok(())
    }

    /// Forgets what entry `entry` says; what it had in the file is given up.
    pub(super) fn forget_entry(&mut self, entry: u64, bytes: u64) -> Result<()> {
        self.load_entry(entry)?;
        let word = self.word(entry)?;
        if word != 0 {
            self.store(entry, 0)?;
            let place = bitmap_place(word).ok().flatten().or(Block::decode(word).place());
            self.dropped.extend(place.map(|place| place.range(bytes)));
        }
        Ok(())
    }

    /// Clears the bits of block `nth`, of which nothing is here yet, making their bitmap if there is none.
    fn clear_bits(&mut self, nth: u64) -> Result<()> {
        let entry = self.geometry.bitmap_entry_of(nth);
        self.load_entry(entry)?;
        let block = self.geometry.block(nth);
        if self.bits_at(block.start)?.is_none() {
            let place = self.allocate(BITMAP_BYTES)?;
            // The state of a bitmap that is there is that of a block that is.
            if let Err(error) = self.store(entry, Block::Full(place.start).encode()) {
                self.space.give(place);
                return Err(error);
            }
        }
        for piece in block.pieces(self.span()) {
            let Some(at) = self.bits_at(piece.start)? else { continue };
            self.pages.load(self.file.as_ref(), at, Kind::Bitmap)?;
            let bytes = index(piece.bytes / self.geometry.sector_bytes / 8);
            let is_clear = |bits: &[u8]| bits.iter().take(bytes).all(|byte| *byte == 0);
            if !self.pages.bytes(at).is_some_and(is_clear) {
                self.pages.store(at, &vec![0; bytes])?;
            }
        }
        Ok(())
    }

    /// Takes a run of free space that reads as zeros, longer by whole MiB than the file if need be.
    pub(super) fn allocate(&mut self, bytes: u64) -> Result<HostRange> {
        let file_bytes = self.file.bytes()?;
        let place = self.space.find(bytes, HostOffset::new(file_bytes)).range(bytes);
        let end = place.end().bytes();
        if end > file_bytes && self.file.is_device() {
            let what = format!("the device is full: a block of 0x{bytes:x} bytes would end at 0x{end:x}");
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        // What nothing refers to holds what was given up once, or lost in a power cut.
        let old = place.clip(HostOffset::new(0).range(file_bytes));
        if !old.is_empty() {
            self.file.zero(old, Kept::Nothing)?;
        }
        if end > file_bytes {
            self.file.set_bytes(end)?;
        }
        self.space.take(place);
        Ok(place)
    }
}

impl State {
    /// Returns whether something waits to be written.
    pub(super) fn is_changed(&self) -> bool {
        self.pages.is_changed() || !self.dropped.is_empty()
    }

    /// Fills with zeros what block `nth`, a partly present one, lacks; it still says that it lacks it.
    pub(super) fn fill_absent(&mut self, nth: u64) -> Result<()> {
        for piece in self.geometry.block(nth).pieces(self.span()) {
            self.load(piece.start)?;
            let Block::Partial(place) = self.block(piece.start)? else { return Ok(()) };
            for (run, is_here) in self.sectors(piece)? {
                if !is_here {
                    let in_block = run.start.bytes() % self.geometry.block_bytes;
                    self.file.zero(place.plus(in_block).range(run.bytes), Kept::Nothing)?;
                }
            }
        }
        Ok(())
    }

    /// Makes zeros of what the file holds of `range`, which lies past the disk's end inside its last block.
    pub(super) fn clear_tail(&mut self, range: GuestRange) -> Result<()> {
        for piece in range.pieces(self.span()) {
            self.load(piece.start)?;
            let mut extents = Vec::new();
            self.extents(piece, &mut extents)?;
            for extent in extents {
                if let map::State::Data { host } = extent.state {
                    self.file.zero(host.range(extent.range.bytes), Kept::Nothing)?;
                }
            }
        }
        Ok(())
    }

    /// Makes an entry that nothing counts say nothing.
    pub(super) fn clear_entry(&mut self, entry: u64) -> Result<()> {
        self.store(entry, 0)
    }
}
