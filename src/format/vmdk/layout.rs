//! The headers of sparse extents: hosted (`KDMV`), of ESX (`COWD`), and of space-efficient sparse disks; each becomes
//! one [`Layout`].
//!
//! Checked here and trusted afterwards: a layout's directory lies in its file, its grains and tables have sane sizes.
//! Sources: Virtual Disk Format 5.0, "Hosted Sparse Extents" and "ESX Server Sparse Extents"; seSparse as qemu's
//! `block/vmdk.c` has it.

use super::descriptor::SIZE_MAX;
use crate::{
    base::{Error, HostOffset, HostRange, Result, units::SECTOR_BYTES, units::index},
    io::File,
    record,
};

/// The first four bytes of a hosted sparse extent.
pub(super) const HOSTED_MAGIC: [u8; 4] = *b"KDMV";
/// The first four bytes of an ESX server sparse extent.
pub(super) const COWD_MAGIC: [u8; 4] = *b"COWD";
/// The first eight bytes of an seSparse extent.
const SE_MAGIC: u64 = 0xcafe_babe;
/// Its only version: 2.1.
const SE_VERSION: u64 = 0x0000_0002_0000_0001;

/// Returns whether a file that starts so has one of these headers.
pub(super) fn is_magic(start: &[u8]) -> bool {
    start.starts_with(&HOSTED_MAGIC)
        || start.starts_with(&COWD_MAGIC)
        || start.starts_with(&SE_MAGIC.to_le_bytes())
}

/// A directory's place when it stands in the footer.
pub(super) const AT_END: u64 = u64::MAX;
/// The largest grain that is believed.
pub(super) const GRAIN_BYTES_MAX: u64 = 8 << 20;
/// The most entries that the directories of a disk may have together: those of 64 TiB in any usual shape.
pub(super) const ENTRIES_MAX: u64 = 4 << 20;
/// The footer is the last sector but one; the last one marks the end of the stream.
const FOOTER_BYTES: u64 = 2 * SECTOR_BYTES;

/// Line ends are as the header says they must be.
pub(super) const FLAG_NEWLINES: u32 = 1;
/// The redundant directory and tables are kept in step.
pub(super) const FLAG_TWIN: u32 = 1 << 1;
/// An entry of 1 says that the grain is zeros.
pub(super) const FLAG_ZEROS: u32 = 1 << 2;
/// Grains are compressed.
pub(super) const FLAG_PACKED: u32 = 1 << 16;
/// Grains and tables have markers in front.
pub(super) const FLAG_MARKERS: u32 = 1 << 17;

record! {
    /// The header of a hosted sparse extent, and the footer of a stream.
    pub(super) struct Hosted: LittleEndian, 512 bytes {
        /// `KDMV`.
        0 => magic: bytes 4,
        /// 1, 2 (zeroed grains) or 3 (streams, change tracking).
        4 => version: u32,
        /// See the flags above.
        8 => flags: u32,
        /// Size in sectors.
        12 => capacity: u64,
        /// Sectors in a grain, a power of two.
        20 => grain: u64,
        /// Where the embedded descriptor is, in sectors; 0 without one.
        28 => descriptor: u64,
        /// How many sectors it has.
        36 => descriptor_size: u64,
        /// Entries in a grain table: 512.
        44 => per_table: u32,
        /// Where the redundant directory is, in sectors.
        48 => twin: u64,
        /// Where the directory is, in sectors.
        56 => directory: u64,
        /// Sectors before the first grain.
        64 => overhead: u64,
        /// Whether it was not closed cleanly.
        72 => is_unclean: u8,
        /// Newline, space, carriage return, newline: damaged by a transfer as text.
        73 => newlines: bytes 4,
        /// 0: none, 1: deflate.
        77 => compression: u16,
        79 => pad: bytes 433,
    }
}

record! {
    /// The start of the header of an ESX server sparse extent; what follows is for people.
    pub(super) struct Cowd: LittleEndian, 32 bytes {
        /// `COWD`.
        0 => magic: bytes 4,
        /// 1.
        4 => version: u32,
        /// 3.
        8 => flags: u32,
        /// Size in sectors.
        12 => capacity: u32,
        /// Sectors in a grain.
        16 => grain: u32,
        /// Where the directory is, in sectors.
        20 => directory: u32,
        /// How many entries it has.
        24 => entries: u32,
        /// The first sector that is in no use: where other programs put the next grain.
        28 => free: u32,
    }
}

record! {
    /// The constant header of an seSparse extent, as far as it is used; all places in sectors.
    struct Se: LittleEndian, 208 bytes {
        0 => magic: u64,
        8 => version: u64,
        16 => capacity: u64,
        24 => grain: u64,
        32 => table: u64,
        40 => flags: u64,
        48 => reserved: bytes 32,
        80 => volatile_header: u64,
        88 => volatile_header_size: u64,
        96 => journal_header: u64,
        104 => journal_header_size: u64,
        112 => journal: u64,
        120 => journal_size: u64,
        128 => directory: u64,
        136 => directory_size: u64,
        144 => tables: u64,
        152 => tables_size: u64,
        160 => free_bitmap: u64,
        168 => free_bitmap_size: u64,
        176 => backmap: u64,
        184 => backmap_size: u64,
        192 => grains: u64,
        200 => grains_size: u64,
    }
}

/// How entries say where a grain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// 32 bits: a sector; 1 may stand for zeros.
    Hosted {
        /// Whether 1 stands for zeros.
        has_zeros: bool,
    },
    /// 32 bits: the sector of a compressed grain.
    Packed {
        /// Whether 1 stands for zeros.
        has_zeros: bool,
        /// Whether grains have a marker in front.
        has_markers: bool,
    },
    /// 32 bits: a sector.
    Cowd,
    /// 64 bits: a kind and the number of a grain.
    Se {
        /// Where tables are, in sectors.
        tables: u64,
        /// Where grains are, in sectors.
        grains: u64,
    },
}

/// What a header says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// How entries are to be read.
    pub(super) coding: Coding,
    /// Size in bytes.
    pub(super) bytes: u64,
    /// Bytes in a grain.
    pub(super) grain: u64,
    /// Entries in a table.
    pub(super) per_table: u64,
    /// Where the directory is.
    pub(super) directory: HostOffset,
    /// Where the redundant one is, if it is kept.
    pub(super) twin: Option<HostOffset>,
    /// Entries in the directory.
    pub(super) entries: u64,
    /// Where grains may begin.
    pub(super) overhead: u64,
    /// Where the embedded descriptor is.
    pub(super) descriptor: Option<HostRange>,
    /// Whether a writer did not close it.
    pub(super) is_unclean: bool,
}

impl Layout {
    /// Reads the header at the start of `file`; `None` if there is none that is known.
    pub(super) fn read(file: &dyn File) -> Result<Option<Self>> {
        let mut start = [0; 512];
        file.read_at(HostOffset::new(0), &mut start)?;
        if start.starts_with(&HOSTED_MAGIC) {
            return hosted(file, &Hosted::parse(&start)).map(Some);
        }
        if start.starts_with(&COWD_MAGIC) {
            let header = Cowd::parse_start(&start).ok_or_else(|| Error::corrupt("has half a header"))?;
            return cowd(file, header).map(Some);
        }
        match Se::parse_start(&start) {
            Some(header) if header.magic == SE_MAGIC => sesparse(file, header).map(Some),
            _ => Ok(None),
        }
    }

    /// Bytes in an entry of directory or table.
    pub(super) const fn entry_bytes(&self) -> u64 {
        if matches!(self.coding, Coding::Se { .. }) { 8 } else { 4 }
    }

    /// Returns the entry at the start of `bytes`.
    pub(super) fn word(&self, bytes: &[u8]) -> Option<u64> {
        match self.entry_bytes() {
            8 => bytes.first_chunk::<8>().map(|word| u64::from_le_bytes(*word)),
            _ => bytes.first_chunk::<4>().map(|word| u32::from_le_bytes(*word).into()),
        }
    }

    /// Bytes in a grain table.
    pub(super) const fn table_bytes(&self) -> u64 {
        self.per_table * self.entry_bytes()
    }

    /// Bytes of the disk that one table describes.
    pub(super) const fn table_span(&self) -> u64 {
        self.per_table * self.grain
    }

    /// Whether grains are compressed.
    pub(super) const fn is_packed(&self) -> bool {
        matches!(self.coding, Coding::Packed { .. })
    }

    /// Whether an entry can say that a grain is zeros.
    pub(super) const fn has_zeros(&self) -> bool {
        matches!(self.coding, Coding::Hosted { has_zeros: true } | Coding::Packed { has_zeros: true, .. })
    }

    /// The directory's bytes in the file.
    pub(super) const fn directory_bytes(&self) -> u64 {
        self.entries * self.entry_bytes()
    }

    /// Entries of both directories.
    pub(super) const fn all_entries(&self) -> u64 {
        self.entries * if self.twin.is_some() { 2 } else { 1 }
    }

    /// Counts the directory's entries, and refuses what does not fit the file.
    fn checked(mut self, file: &dyn File) -> Result<Self> {
        self.entries = self.bytes.div_ceil(self.table_span());
        if self.all_entries() > ENTRIES_MAX {
            let (entries, grain) = (self.entries, self.grain);
            return Err(wrong(format!(
                "{} bytes in grains of {grain} need a directory of {entries} entries",
                self.bytes
            )));
        }
        let held = file.bytes()?;
        for (what, at) in [("directory", Some(self.directory)), ("redundant directory", self.twin)] {
            let Some(at) = at else { continue };
            let end = at.bytes().checked_add(self.directory_bytes());
            if at.bytes() == 0 || end.is_none_or(|end| end > held) {
                let entries = self.entries;
                return Err(Error::corrupt(format!(
                    "its grain {what} of {entries} entries at 0x{at:x} does not lie in the file (0x{held:x} bytes)"
                )));
            }
        }
        Ok(self)
    }
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("its header is wrong: {what}"))
}

/// Turns sectors into bytes, within what a disk can have.
fn bytes(sectors: u64, field: &str) -> Result<u64> {
    let bytes = sectors.checked_mul(SECTOR_BYTES).filter(|bytes| *bytes <= SIZE_MAX);
    bytes.ok_or_else(|| wrong(format!("{field} of {sectors} sectors is absurd")))
}

fn grain(sectors: u64, field: &str) -> Result<u64> {
    let most = GRAIN_BYTES_MAX / SECTOR_BYTES;
    if sectors.is_power_of_two() && sectors <= most {
        return Ok(sectors * SECTOR_BYTES);
    }
    Err(wrong(format!("{field} is {sectors} sectors, not a power of two up to {most}")))
}

fn capacity(sectors: u64, field: &str) -> Result<u64> {
    match bytes(sectors, field)? {
        0 => Err(wrong(format!("{field} is 0"))),
        bytes => Ok(bytes),
    }
}

fn hosted(file: &dyn File, first: &Hosted) -> Result<Layout> {
    if !(1..=3).contains(&first.version) {
        return Err(Error::unsupported(format!(
            "its header's version (0x4) is {}, not 1 to 3",
            first.version
        )));
    }
    let mut header = *first;
    if first.directory == AT_END {
        header = footer(file)?;
        (header.descriptor, header.descriptor_size) = (first.descriptor, first.descriptor_size);
    }
    if header.flags & FLAG_NEWLINES != 0 && header.newlines != *b"\n \r\n" {
        return Err(wrong("its line ends (0x49) were changed by a transfer as text"));
    }
    let is_packed = header.flags & FLAG_PACKED != 0;
    match (is_packed, header.compression) {
        (false, 0 | 1) | (true, 1) => {}
        (_, other) => {
            return Err(Error::unsupported(format!(
                "its header's compressAlgorithm (0x4d) is {other}, not deflate"
            )));
        }
    }
    if first.directory == AT_END && !is_packed {
        // Whoever wrote to it would put grains behind the footer.
        return Err(wrong(
            "its footer's flags (0x8) say that grains are plain, which those of a stream are not",
        ));
    }
    let per_table = u64::from(header.per_table);
    if !per_table.is_power_of_two() || per_table > 512 {
        return Err(wrong(format!("numGTEsPerGT (0x2c) is {per_table}, not a power of two up to 512")));
    }
    let has_zeros = header.flags & FLAG_ZEROS != 0;
    let has_markers = header.flags & FLAG_MARKERS != 0;
    let coding =
        if is_packed { Coding::Packed { has_zeros, has_markers } } else { Coding::Hosted { has_zeros } };
    let has_twin = header.flags & FLAG_TWIN != 0 && header.twin != 0 && !is_packed;
    let descriptor = match (header.descriptor, header.descriptor_size) {
        (0, _) | (_, 0) => None,
        (at, size) => Some(
            HostOffset::new(bytes(at, "descriptorOffset (0x1c)")?)
                .range(bytes(size, "descriptorSize (0x24)")?),
        ),
    };
    let layout = Layout {
        coding,
        bytes: capacity(header.capacity, "capacity (0xc)")?,
        grain: grain(header.grain, "grainSize (0x14)")?,
        per_table,
        directory: HostOffset::new(bytes(header.directory, "gdOffset (0x38)")?),
        twin: has_twin.then(|| bytes(header.twin, "rgdOffset (0x30)")).transpose()?.map(HostOffset::new),
        entries: 0,
        overhead: bytes(header.overhead, "overHead (0x40)")?,
        descriptor,
        is_unclean: header.is_unclean != 0,
    };
    layout.checked(file)
}

/// Reads the footer of a stream, which has the header's fields as they are.
fn footer(file: &dyn File) -> Result<Hosted> {
    let mut bytes = [0; 512];
    let held = file.bytes()?;
    if let Some(at) = held.checked_sub(FOOTER_BYTES) {
        file.read_at(HostOffset::new(at), &mut bytes)?;
    }
    let footer = Hosted::parse(&bytes);
    if footer.magic != HOSTED_MAGIC || footer.directory == AT_END {
        return Err(Error::corrupt(format!(
            "is a stream without its footer (expected 0x400 bytes before its end, 0x{held:x}): it was cut off"
        )));
    }
    if !(1..=3).contains(&footer.version) {
        return Err(Error::unsupported(format!("its footer's version is {}, not 1 to 3", footer.version)));
    }
    Ok(footer)
}

fn cowd(file: &dyn File, header: Cowd) -> Result<Layout> {
    if header.version != 1 {
        return Err(Error::unsupported(format!(
            "its COWD header's version (0x4) is {}, not 1",
            header.version
        )));
    }
    let layout = Layout {
        coding: Coding::Cowd,
        bytes: capacity(header.capacity.into(), "numSectors (0xc)")?,
        grain: grain(header.grain.into(), "grainSize (0x10)")?,
        per_table: COWD_PER_TABLE,
        directory: HostOffset::new(u64::from(header.directory) * SECTOR_BYTES),
        twin: None,
        entries: 0,
        overhead: 0,
        descriptor: None,
        is_unclean: false,
    };
    let mut layout = layout.checked(file)?;
    layout.overhead = layout.directory.plus(layout.directory_bytes()).bytes();
    if u64::from(header.entries) < layout.entries {
        let (entries, needed) = (header.entries, layout.entries);
        return Err(wrong(format!("numGDEntries (0x18) is {entries}, and the disk needs {needed}")));
    }
    Ok(layout)
}

/// Where a hosted sparse extent says whether it was not closed.
pub(super) const UNCLEAN_AT: HostOffset = HostOffset::new(72);
/// Where an ESX server sparse extent says which sector is free.
pub(super) const COWD_FREE: HostOffset = HostOffset::new(28);
/// Bytes in its header, with what is for people.
pub(super) const COWD_BYTES: u64 = 2048;
/// Entries in a table of an ESX server sparse extent.
pub(super) const COWD_PER_TABLE: u64 = 4096;

fn sesparse(file: &dyn File, header: Se) -> Result<Layout> {
    if header.version != SE_VERSION || header.flags != 0 {
        let (version, flags) = (header.version, header.flags);
        return Err(Error::unsupported(format!(
            "is an seSparse extent of version 0x{version:x} with flags 0x{flags:x}: only 2.1 without flags is read"
        )));
    }
    let table = bytes(header.table, "grain table size (0x20)")?;
    if !header.table.is_power_of_two() || header.table > 1 << 10 {
        return Err(wrong(format!("grain table size (0x20) is {} sectors", header.table)));
    }
    let (tables, grains) = (header.tables, header.grains);
    bytes(tables, "grain tables (0x90)")?;
    bytes(grains, "grains (0xc0)")?;
    let layout = Layout {
        coding: Coding::Se { tables, grains },
        bytes: capacity(header.capacity, "capacity (0x10)")?,
        grain: grain(header.grain, "grain size (0x18)")?,
        per_table: table / 8,
        directory: HostOffset::new(bytes(header.directory, "grain directory (0x80)")?),
        twin: None,
        entries: 0,
        overhead: 0,
        descriptor: None,
        is_unclean: replays_journal(file, header.volatile_header)?,
    };
    if layout.is_unclean {
        return Err(Error::unsupported(
            "is an seSparse extent whose journal was not replayed: VMware has to open it once",
        ));
    }
    let layout = layout.checked(file)?;
    let held = bytes(header.directory_size, "grain directory size (0x88)")?;
    if held < layout.directory_bytes() {
        return Err(wrong(format!(
            "grain directory size (0x88) is {} sectors, too few",
            header.directory_size
        )));
    }
    Ok(layout)
}

/// Whether the volatile header says that the journal has what the tables do not.
fn replays_journal(file: &dyn File, sector: u64) -> Result<bool> {
    let mut header = [0; 32];
    file.read_at(HostOffset::new(bytes(sector, "volatile header (0x50)")?), &mut header)?;
    let word = |nth: usize| {
        header.get(nth * 8..).and_then(|rest| rest.first_chunk::<8>()).map(|w| u64::from_le_bytes(*w))
    };
    if word(0) != Some(0xcafe_cafe) {
        return Err(wrong(format!("no volatile header is at sector {sector}")));
    }
    Ok(word(3) != Some(0))
}

/// Reads the directory at `at`: where each table is, in sectors; 0 for none.
pub(super) fn read_directory(file: &dyn File, layout: &Layout, at: HostOffset) -> Result<Vec<u32>> {
    let size = index(layout.entry_bytes());
    let mut sectors = Vec::with_capacity(index(layout.entries));
    let mut raw = vec![0; index(layout.directory_bytes().min(1 << 20))];
    for piece in at.range(layout.directory_bytes()).pieces(1 << 20) {
        let raw = raw.get_mut(..index(piece.bytes)).unwrap_or_default();
        file.read_at(piece.start, raw)?;
        for entry in raw.chunks_exact(size) {
            let nth = sectors.len();
            sectors.push(directory_entry(layout, entry).ok_or_else(|| {
                Error::corrupt(format!("its grain directory's entry {nth} is of no known kind"))
            })?);
        }
    }
    Ok(sectors)
}

fn directory_entry(layout: &Layout, entry: &[u8]) -> Option<u32> {
    let Coding::Se { tables, .. } = layout.coding else {
        return entry.first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
    };
    let word = u64::from_le_bytes(*entry.first_chunk::<8>()?);
    match word >> 32 {
        _ if word == 0 => Some(0),
        0x1000_0000 => {
            let nth = word & 0xffff_ffff;
            u32::try_from(tables.checked_add(nth * (layout.table_bytes() / SECTOR_BYTES))?).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
