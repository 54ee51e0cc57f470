//! Directories in memory, grain tables in pages: where each grain of a disk is.
//!
//! What is read here is checked where it is read: a table or a grain that starts past the end of its file is an error
//! that names the guest byte and the host offset, never a read of zeros.

use super::{
    layout::{COWD_FREE, Coding, Layout},
    space::Space,
};
use crate::{
    base::{
        Error, Guard, GuestOffset, GuestRange, HostOffset, Result,
        budget::Held,
        units::{SECTOR_BYTES, index},
    },
    format::pages::{Pages, Sector},
    map::{self, State as Shown},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A page is a sector: tables start at any.
pub(super) const PAGE_BYTES: u64 = SECTOR_BYTES;

/// What one entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// Nothing: what lies below shows.
    Absent,
    /// Zeros.
    Zero,
    /// The bytes as they are.
    Plain(HostOffset),
    /// The bytes compressed.
    Packed(HostOffset),
}

/// A part of the disk.
#[derive(Debug)]
pub(super) struct Extent {
    /// Which part.
    pub(super) guest: GuestRange,
    /// Whether it may be written.
    pub(super) is_writable: bool,
    /// What holds it.
    pub(super) body: Body,
}

/// What holds a part of the disk.
#[derive(Debug)]
pub(super) enum Body {
    /// Nothing: zeros.
    Zero,
    /// A file, byte by byte, from an offset on.
    Flat(HostOffset),
    /// A sparse file.
    Grains(Box<Grains>),
}

/// The directory of a sparse file, and where its next grain goes.
#[derive(Debug)]
pub(super) struct Grains {
    /// What the header says.
    pub(super) layout: Layout,
    /// Where the file starts in the space.
    pub(super) base: HostOffset,
    /// Where each table starts, in sectors of the file; 0 for none.
    pub(super) tables: Vec<u32>,
    /// Where each redundant table starts; empty if they are not kept.
    pub(super) twins: Vec<u32>,
    /// Sectors of the directory that the file does not have yet.
    pub(super) changed: BTreeSet<u64>,
    /// Where the next grain or table goes, in the space: nothing was ever stored from here on.
    pub(super) end: HostOffset,
    /// Places of grains that nothing refers to and that read as zeros.
    pub(super) free: Vec<HostOffset>,
    /// What the directories take in memory.
    pub(super) _held: Held,
}

impl Extent {
    /// Returns the directory, if the extent is a sparse file.
    pub(super) fn grains(&self) -> Option<&Grains> {
        match &self.body {
            Body::Grains(grains) => Some(grains),
            _ => None,
        }
    }

    /// Returns the whole grains that `range` touches, as far as the extent reaches.
    pub(super) fn outer(&self, range: GuestRange, grain: u64) -> GuestRange {
        let local = GuestOffset::new(range.start.since(self.guest.start)).range(range.bytes).outer(grain);
        self.guest.start.plus(local.start.bytes()).range(local.bytes).clip(self.guest)
    }

    /// Returns how many bytes of the disk from `guest` on the page describes that has its entry.
    fn page_left(&self, guest: GuestOffset, layout: &Layout) -> u64 {
        let local = GuestOffset::new(guest.since(self.guest.start));
        // Tables are described by whole pages.
        let span = (PAGE_BYTES / layout.entry_bytes()).min(layout.per_table) * layout.grain;
        local.floor(span).plus(span).since(local)
    }
}

impl Grains {
    /// Returns which table describes the byte `local` of the extent, and the place of its entry in there.
    pub(super) const fn nth(&self, local: u64) -> (u64, u64) {
        let grain = local / self.layout.grain;
        (grain / self.layout.per_table, grain % self.layout.per_table)
    }

    /// Returns where the entry for the byte `local` is in those tables; `None` without a table.
    fn entry_in(&self, tables: &[u32], local: u64) -> Option<HostOffset> {
        let (table, nth) = self.nth(local);
        let sector = tables.get(index(table)).copied().filter(|sector| *sector != 0)?;
        Some(self.base.plus(u64::from(sector) * SECTOR_BYTES + nth * self.layout.entry_bytes()))
    }

    /// Decodes an entry; `None` if it is of no known kind.
    pub(super) fn decode(&self, word: u64) -> Option<Grain> {
        let at = |sector: u64| {
            let bytes = sector.checked_mul(SECTOR_BYTES).filter(|bytes| *bytes < 1 << 48)?;
            Some(self.base.plus(bytes))
        };
        match self.layout.coding {
            _ if word == 0 => Some(Grain::Absent),
            _ if word == 1 && self.layout.has_zeros() => Some(Grain::Zero),
            Coding::Hosted { .. } | Coding::Cowd => Some(Grain::Plain(at(word)?)),
            Coding::Packed { .. } => Some(Grain::Packed(at(word)?)),
            Coding::Se { grains, .. } => match word >> 60 {
                1 | 2 => Some(Grain::Zero),
                3 => {
                    let nth = (word & 0x0fff_0000_0000_0000) >> 48 | (word & 0x0000_ffff_ffff_ffff) << 12;
                    let sector = nth.checked_mul(self.layout.grain / SECTOR_BYTES)?.checked_add(grains)?;
                    Some(Grain::Plain(at(sector)?))
                }
                _ => None,
            },
        }
    }

    /// Encodes an entry of a kind that is written.
    fn encode(&self, grain: Grain) -> Result<u32> {
        let sector = match grain {
            Grain::Absent => return Ok(0),
            Grain::Zero if self.layout.has_zeros() => return Ok(1),
            Grain::Plain(at) | Grain::Packed(at) => u32::try_from(at.since(self.base) / SECTOR_BYTES).ok(),
            Grain::Zero => None,
        };
        sector.ok_or_else(|| Error::invalid(format!("its tables cannot say {grain:x?}")))
    }

    /// Returns the word that says where the file ends, if its kind has one.
    fn end_word(&self) -> Option<Sector> {
        let sector = u32::try_from(self.end.since(self.base) / SECTOR_BYTES).unwrap_or(u32::MAX);
        let at = self.base.plus(COWD_FREE.bytes());
        (self.layout.coding == Coding::Cowd).then(|| Sector { at, bytes: sector.to_le_bytes().into() })
    }

    /// Takes copies of the sectors of the directories that wait to be written.
    fn take_directory(&mut self) -> Vec<Sector> {
        let per_sector = SECTOR_BYTES / self.layout.entry_bytes();
        let mut sectors = Vec::new();
        for nth in std::mem::take(&mut self.changed) {
            let twin = self.layout.twin.map(|at| (at, &self.twins));
            for (at, tables) in [Some((self.layout.directory, &self.tables)), twin].into_iter().flatten() {
                let words = tables.iter().skip(index(nth * per_sector)).take(index(per_sector));
                let bytes = words.flat_map(|word| word.to_le_bytes()).collect();
                sectors.push(Sector { at: self.base.plus(at.bytes() + nth * SECTOR_BYTES), bytes });
            }
        }
        sectors
    }
}

/// The extents, and the pages of their tables.
#[derive(Debug)]
pub(super) struct Tables {
    /// The files.
    pub(super) space: Arc<Space>,
    /// The extents, in the disk's order.
    pub(super) extents: Vec<Extent>,
    /// Pages of grain tables.
    pub(super) pages: Pages<()>,
    /// Sectors of tables that changed, and where their redundant copies are.
    twins: BTreeMap<u64, HostOffset>,
}

/// What a flush has to write.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Where files end, for programs that go by that: before entries lead to what lies before.
    pub(super) ends: Vec<Sector>,
    /// Sectors of tables, and of their redundant copies.
    pub(super) entries: Vec<Sector>,
    /// Sectors of directories.
    pub(super) directories: Vec<Sector>,
}

impl Tables {
    pub(super) const fn new(space: Arc<Space>, extents: Vec<Extent>, pages: Pages<()>) -> Self {
        Self { space, extents, pages, twins: BTreeMap::new() }
    }

    /// Returns the number of the extent that holds `guest`.
    pub(super) fn nth(&self, guest: GuestOffset) -> usize {
        self.extents.partition_point(|extent| extent.guest.end() <= guest)
    }

    /// Returns the extent that holds `guest`.
    pub(super) fn extent(&self, guest: GuestOffset) -> Result<&Extent> {
        let missing = || Error::invalid(format!("guest byte 0x{guest:x} is in no extent"));
        self.extents.get(self.nth(guest)).ok_or_else(missing)
    }

    /// Returns the sparse extent that holds `guest`, and which of its bytes that is.
    pub(super) fn grains(&self, guest: GuestOffset) -> Result<(&Grains, u64)> {
        let extent = self.extent(guest)?;
        match &extent.body {
            Body::Grains(grains) => Ok((grains, guest.since(extent.guest.start))),
            _ => Err(Error::invalid(format!("guest byte 0x{guest:x} is in no sparse extent"))),
        }
    }

    /// The same, to be changed.
    pub(super) fn grains_mut(&mut self, guest: GuestOffset) -> Result<(&mut Grains, u64)> {
        let nth = self.nth(guest);
        let missing = || Error::invalid(format!("guest byte 0x{guest:x} is in no sparse extent"));
        let extent = self.extents.get_mut(nth).ok_or_else(missing)?;
        match &mut extent.body {
            Body::Grains(grains) => Ok((grains, guest.since(extent.guest.start))),
            _ => Err(missing()),
        }
    }

    /// Returns where the entry for `guest` is; `None` without a table. It starts within its file.
    pub(super) fn entry_at(&self, guest: GuestOffset) -> Result<Option<HostOffset>> {
        let (grains, local) = self.grains(guest)?;
        let Some(at) = grains.entry_in(&grains.tables, local) else { return Ok(None) };
        match self.space.ends_before(at)? {
            None => Ok(Some(at)),
            Some(end) => {
                let ((table, _), at) = (grains.nth(local), at.since(grains.base));
                Err(Error::corrupt(format!(
                    "grain directory entry {table} for guest byte 0x{guest:x} points past the file's end \
                     (0x{at:x} of 0x{end:x})"
                )))
            }
        }
    }

    /// Returns whether the entry for `guest` can be read without the file.
    pub(super) fn is_loaded(&self, guest: GuestOffset) -> Result<bool> {
        Ok(self.entry_at(guest)?.is_none_or(|at| self.pages.has(at)))
    }

    /// Brings in the page with the entry for `guest`.
    pub(super) fn load(&mut self, guest: GuestOffset) -> Result<()> {
        match self.entry_at(guest)? {
            Some(at) => self.pages.load(self.space.as_ref(), at, ()),
            None => Ok(()),
        }
    }

    /// Returns what the loaded entry for `guest` says.
    pub(super) fn grain(&self, guest: GuestOffset) -> Result<Grain> {
        let Some(at) = self.entry_at(guest)? else { return Ok(Grain::Absent) };
        let (grains, _) = self.grains(guest)?;
        let lost = || Error::invalid(format!("the table page at 0x{at:x} was dropped while in use"));
        let bytes = self.pages.bytes(at).ok_or_else(lost)?;
        let word = grains.layout.word(bytes).ok_or_else(lost)?;
        let unknown = || {
            Error::corrupt(format!("the entry for guest byte 0x{guest:x} is 0x{word:x}, of no known kind"))
        };
        let grain = grains.decode(word).ok_or_else(unknown)?;
        let (Grain::Plain(host) | Grain::Packed(host)) = grain else { return Ok(grain) };
        match self.space.ends_before(host)?.filter(|_| Guard::PastEnd.trips(true)) {
            None => Ok(grain),
            Some(end) => {
                let host = host.since(grains.base);
                Err(Error::corrupt(format!(
                    "the entry for guest byte 0x{guest:x} points past the file's end (0x{host:x} of 0x{end:x})"
                )))
            }
        }
    }

    /// Stores the entry for `guest`, which has a table.
    pub(super) fn store(&mut self, guest: GuestOffset, grain: Grain) -> Result<()> {
        self.load(guest)?;
        let missing = || Error::invalid(format!("guest byte 0x{guest:x} has no table to store an entry in"));
        let at = self.entry_at(guest)?.ok_or_else(missing)?;
        let (grains, local) = self.grains(guest)?;
        let (word, twin) = (grains.encode(grain)?, grains.entry_in(&grains.twins, local));
        self.pages.store(at, &word.to_le_bytes())?;
        if let Some(twin) = twin {
            self.twins.insert(at.floor(PAGE_BYTES).bytes(), twin.floor(PAGE_BYTES));
        }
        Ok(())
    }

    /// Appends what this layer says about `range`, which lies in the span of one loaded page.
    pub(super) fn extents(&self, range: GuestRange, out: &mut Vec<map::Extent>) -> Result<()> {
        for piece in self.pieces(range)? {
            let shown = match self.grain(piece.start)? {
                Grain::Absent => Shown::Absent,
                Grain::Zero => Shown::Zero { host: None },
                Grain::Packed(_) => Shown::Packed,
                Grain::Plain(host) => {
                    let (grains, local) = self.grains(piece.start)?;
                    Shown::Data { host: host.plus(local % grains.layout.grain) }
                }
            };
            map::push(out, map::Extent::new(piece, shown));
        }
        Ok(())
    }

    /// Cuts `range`, of one sparse extent, where grains end.
    pub(super) fn pieces(&self, range: GuestRange) -> Result<impl Iterator<Item = GuestRange> + use<>> {
        let extent = self.extent(range.start)?;
        let grain = self.grains(range.start)?.0.layout.grain;
        let (from, local) = (extent.guest.start, range.start.since(extent.guest.start));
        let pieces = GuestOffset::new(local).range(range.bytes).pieces(grain);
        let pieces: Vec<_> = pieces.collect();
        Ok(pieces.into_iter().map(move |piece| from.plus(piece.start.bytes()).range(piece.bytes)))
    }

    /// Returns the part of `range`, of one sparse extent, that the page with its first entry describes.
    pub(super) fn page_part(&self, range: GuestRange) -> Result<GuestRange> {
        let extent = self.extent(range.start)?;
        let left = extent.page_left(range.start, &self.grains(range.start)?.0.layout);
        Ok(range.start.range(left.min(range.bytes)))
    }

    /// Takes copies of what waits to be written.
    pub(super) fn take(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut twins = std::mem::take(&mut self.twins);
        for sector in self.pages.take(()) {
            if let Some(at) = twins.remove(&sector.at.bytes()) {
                changes.entries.push(Sector { at, bytes: sector.bytes.clone() });
            }
            changes.entries.push(sector);
        }
        // Without entries there is nothing new that an end could be before.
        let has_entries = !changes.entries.is_empty();
        for extent in self.extents.iter_mut().filter(|_| has_entries) {
            if let Body::Grains(grains) = &mut extent.body {
                changes.directories.extend(grains.take_directory());
                changes.ends.extend(grains.end_word());
            }
        }
        changes.entries.sort_unstable_by_key(|sector| sector.at);
        changes.directories.sort_unstable_by_key(|sector| sector.at);
        changes
    }
}
