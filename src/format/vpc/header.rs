//! The dynamic disk header (VHD specification 1.0, "Dynamic Disk Header Format"): where the BAT is, how long blocks are,
//! and the parent.
//!
//! A checked header describes a BAT that lies in the file and is long enough for the disk.

use super::{
    footer::{FOOTER_BYTES, Kind, NOWHERE, VERSION, checksum},
    locator::{self, Locator, Names},
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, units::SECTOR_BYTES},
    format::{Identity, ParentName},
    io::File,
    record,
};

/// How long the header is.
pub(super) const HEADER_BYTES: u64 = 1024;
/// How long the name of the parent can be in UTF-16 units.
pub(super) const NAME_UNITS: usize = 256;
const COOKIE: [u8; 8] = *b"cxsparse";
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 4096..=256 << 20;
/// The most blocks that a disk may have: their BAT has 32 MiB.
const ENTRIES_MAX: u64 = 8 << 20;
/// Where a block's bytes start in a new place.
const ALIGNMENT: u64 = 4096;

record! {
    /// The header ("Dynamic Disk Header Format").
    pub(super) struct Fields: BigEndian, 1024 bytes {
        /// `cxsparse`.
        0 => cookie: bytes 8,
        /// All ones.
        8 => data_offset: u64,
        /// Where the BAT is.
        16 => table_offset: u64,
        /// 1.0.
        24 => version: u32,
        /// Blocks in the disk, entries in the BAT.
        28 => max_table_entries: u32,
        /// Bytes in a block, without its bitmap.
        32 => block_size: u32,
        /// One's complement of the sum of all other bytes.
        36 => checksum: u32,
        /// The unique ID that the parent's footer has.
        40 => parent_unique_id: bytes 16,
        /// When the parent was changed last; Windows leaves zero.
        56 => parent_timestamp: u32,
        /// Zeros.
        60 => reserved: u32,
        /// The parent's name: UTF-16, the more significant byte first, padded with zeros.
        64 => parent_name: bytes 512,
        /// Eight locators.
        576 => locators: bytes 192,
        /// Zeros.
        768 => rest: bytes 256,
    }
}

impl Fields {
    /// Returns the header's bytes, with their checksum.
    pub(super) fn signed(self) -> [u8; 1024] {
        Self { checksum: self.sum(), ..self }.to_bytes()
    }

    fn sum(self) -> u32 {
        checksum(&Self { checksum: 0, ..self }.to_bytes())
    }

    /// Returns the sum that leaves out the link to the parent.
    fn sum_without_identity(self) -> u32 {
        Self { parent_unique_id: [0; 16], parent_name: [0; 512], ..self }.sum()
    }
}

/// How blocks are laid out: a bitmap with a bit for each sector, in whole sectors, and then the sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Guest bytes in a block: a power of two.
    pub(super) block_bytes: u32,
}

impl Shape {
    /// Returns the shape of blocks with so many bytes, if the format has them.
    pub(super) fn new(block_bytes: u32) -> Option<Self> {
        let fits = block_bytes.is_power_of_two() && BLOCK_BYTES.contains(&block_bytes);
        fits.then_some(Self { block_bytes })
    }

    /// Returns the guest bytes in a block.
    pub(super) const fn block(self) -> u64 {
        self.block_bytes as u64
    }

    /// Returns the bytes of a block's bitmap.
    pub(super) const fn bitmap(self) -> u64 {
        (self.block() / SECTOR_BYTES / 8).next_multiple_of(SECTOR_BYTES)
    }

    /// Returns the bytes of a block and its bitmap.
    pub(super) const fn both(self) -> u64 {
        self.bitmap() + self.block()
    }

    /// Returns how far one new block lies from the next.
    pub(super) const fn stride(self) -> u64 {
        self.both().next_multiple_of(ALIGNMENT)
    }

    /// Returns where a new block goes that may start at `from`: its sectors are aligned, its bitmap right before.
    pub(super) const fn place(self, from: HostOffset) -> HostOffset {
        let sectors = from.plus(self.bitmap()).ceil(ALIGNMENT);
        HostOffset::new(sectors.bytes() - self.bitmap())
    }

    /// Returns how many blocks a disk has.
    pub(super) const fn entries(self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(self.block())
    }

    /// Returns the same, as the header states it; `Invalid` if that are more than are handled.
    pub(super) fn check_entries(self, disk_bytes: u64) -> Result<u32> {
        let entries = self.entries(disk_bytes);
        u32::try_from(entries).ok().filter(|_| entries <= ENTRIES_MAX).ok_or_else(|| {
            Error::invalid(format!(
                "a disk of {disk_bytes} bytes has {entries} blocks of {}, more than {ENTRIES_MAX}",
                self.block_bytes
            ))
        })
    }
}

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// Where it is.
    pub(super) at: HostOffset,
    /// What it says.
    pub(super) fields: Fields,
    /// How blocks are laid out.
    pub(super) shape: Shape,
    /// What it calls the parent, if it is a child's.
    pub(super) names: Option<Names>,
    /// Its locators, with where their bytes are.
    pub(super) locators: Vec<Locator>,
    /// Whether its checksum was made before the link to the parent was put in.
    pub(super) is_unsigned: bool,
}

impl Header {
    /// Returns the header of a new image.
    pub(super) fn new_fields(shape: Shape, entries: u32, table: HostOffset) -> Fields {
        Fields {
            cookie: COOKIE,
            data_offset: NOWHERE,
            table_offset: table.bytes(),
            version: VERSION,
            max_table_entries: entries,
            block_size: shape.block_bytes,
            checksum: 0,
            parent_unique_id: [0; 16],
            parent_timestamp: 0,
            reserved: 0,
            parent_name: [0; 512],
            locators: [0; 192],
            rest: [0; 256],
        }
    }

    /// Reads the header of a disk of `disk_bytes` that a footer says is at `at`.
    ///
    /// `may_be_unsigned`: the footer's checksum leaves its identity out, and this one's may, too.
    pub(super) fn read(
        file: &dyn File,
        (at, disk_bytes): (HostOffset, u64),
        kind: Kind,
        may_be_unsigned: bool,
    ) -> Result<Self> {
        let file_bytes = file.bytes()?;
        if at.bytes().checked_add(HEADER_BYTES).is_none_or(|end| end > file_bytes) {
            let what = format!("footer: data offset {at:#x}: a header there passes the file's end");
            return Err(Error::corrupt(what));
        }
        let mut bytes = [0; 1024];
        file.read_at(at, &mut bytes)?;
        let fields = Fields::parse(&bytes);
        if fields.cookie != COOKIE {
            return Err(Error::corrupt(format!("dynamic header at {at:#x}: has no 'cxsparse'")));
        }
        let (stored, sum) = (fields.checksum, fields.sum());
        let is_unsigned = stored != sum && may_be_unsigned && stored == fields.sum_without_identity();
        if stored != sum && !is_unsigned {
            return Err(Error::corrupt(format!(
                "dynamic header at {at:#x}: checksum is {stored:#010x}, its bytes give {sum:#010x}"
            )));
        }
        if fields.version >> 16 != VERSION >> 16 {
            return Err(Error::unsupported(format!("dynamic header: version {:#x}", fields.version)));
        }
        let shape = Shape::new(fields.block_size).ok_or_else(|| {
            let what = "it has to be a power of two from 4 KiB to 256 MiB";
            Error::corrupt(format!("dynamic header: block size {}: {what}", fields.block_size))
        })?;
        let locators = Locator::all(&fields.locators);
        let names = match kind {
            Kind::Differencing => Some(locator::names(file, &locators, &fields.parent_name)?),
            Kind::Fixed | Kind::Dynamic => None,
        };
        let header = Self { at, fields, shape, names, locators, is_unsigned };
        header.check_table(disk_bytes, file_bytes)?;
        Ok(header)
    }

    fn check_table(&self, disk_bytes: u64, file_bytes: u64) -> Result<()> {
        let entries = self.shape.check_entries(disk_bytes);
        let entries = u64::from(
            entries.map_err(|e| e.doing("dynamic header").with_kind(crate::base::ErrorKind::Corrupt))?,
        );
        let stated = self.fields.max_table_entries;
        if u64::from(stated) < entries {
            let what = format!("max table entries {stated}: the disk has {entries} blocks");
            return Err(Error::corrupt(format!("dynamic header: {what}")));
        }
        let table = self.fields.table_offset;
        if !table.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::corrupt(format!(
                "dynamic header: table offset {table:#x}: not a multiple of 512"
            )));
        }
        if table.checked_add(entries * 4).is_none_or(|end| end > file_bytes) {
            let what =
                format!("table offset {table:#x}: {entries} entries pass the file's end ({file_bytes:#x})");
            return Err(Error::corrupt(format!("dynamic header: {what}")));
        }
        let own = self.at.range(HEADER_BYTES);
        let front = HostOffset::new(0).range(FOOTER_BYTES);
        if self.table(entries).overlaps(own) || self.table(entries).overlaps(front) || own.overlaps(front) {
            let what = format!("table offset {table:#x}: BAT, header and footer overlap");
            return Err(Error::corrupt(format!("dynamic header: {what}")));
        }
        Ok(())
    }

    /// Refuses to write to a file whose blocks end at `end` where a locator claims room behind that: a block would come there.
    pub(super) fn check_locators(&self, end: HostOffset) -> Result<()> {
        match self.locators.iter().find(|locator| locator.place.end() > end) {
            None => Ok(()),
            Some(Locator { place, .. }) => {
                let what = format!("{} bytes at {:#x}: past the file's end", place.bytes, place.start);
                Err(Error::corrupt(format!("parent locator: {what}, where a block would come")))
            }
        }
    }

    /// Returns where the BAT is, for a disk of so many blocks.
    pub(super) const fn table(&self, entries: u64) -> HostRange {
        HostOffset::new(self.fields.table_offset).range((entries * 4).next_multiple_of(SECTOR_BYTES))
    }

    /// Returns what the header and what belongs to it takes of the file: its own bytes, the locators', the BAT's.
    pub(super) fn places(&self, entries: u64) -> Vec<HostRange> {
        let locators = self.locators.iter().map(|locator| locator.place);
        [self.at.range(HEADER_BYTES), self.table(entries)].into_iter().chain(locators).collect()
    }
}

/// Returns the parent's unique ID, zeros if it has none.
pub(super) const fn unique_id(parent: Option<&ParentName>) -> [u8; 16] {
    match parent {
        Some(ParentName { identity: Some(Identity::Guid(id)), .. }) => *id,
        _ => [0; 16],
    }
}
