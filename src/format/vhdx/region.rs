//! The region table (MS-VHDX 2.2.3), which says where the block allocation table and the metadata are. There are two
//! copies of it, and both say the same.

use super::{
    bytes::{Source, checksum},
    geometry::MIB,
};
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{count, index},
    },
    record,
};
use uuid::Uuid;

/// Where the two copies are.
pub(super) const TABLES_AT: [HostOffset; 2] = [HostOffset::new(192 << 10), HostOffset::new(256 << 10)];
/// Bytes in a copy.
pub(super) const TABLE_BYTES: usize = 64 << 10;
const SIGNATURE: [u8; 4] = *b"regi";
const ENTRIES_MAX: u32 = 2047;
const BAT: Uuid = Uuid::from_u128(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
const METADATA: Uuid = Uuid::from_u128(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);

record! {
    /// What a table begins with.
    struct TableHeader: LittleEndian, 16 bytes {
        /// "regi".
        0 => signature: bytes 4,
        /// CRC-32C of all 64 KiB, this field being zero.
        4 => checksum: u32,
        /// Entries that follow.
        8 => entries: u32,
        /// 0.
        12 => reserved: u32,
    }
}

record! {
    /// One region.
    struct Entry: LittleEndian, 32 bytes {
        /// What it is.
        0 => id: bytes 16,
        /// Where it is: whole MiB.
        16 => at: u64,
        /// Its length: whole MiB.
        24 => bytes: u32,
        /// 1 if who does not know it must not open the file.
        28 => required: u32,
    }
}

/// A region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    id: Uuid,
    range: HostRange,
    is_required: bool,
}

/// The regions of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    list: Vec<Region>,
    /// The block allocation table.
    pub(super) bat: HostRange,
    /// The metadata.
    pub(super) metadata: HostRange,
    /// Which copies of the table are whole.
    pub(super) valid: [bool; 2],
}

fn read_copy(source: Source<'_>, at: HostOffset) -> Result<std::result::Result<Vec<Region>, String>> {
    let mut bytes = vec![0; TABLE_BYTES];
    source.read_at(at, &mut bytes)?;
    let Some(header) = TableHeader::parse_start(&bytes) else { return Ok(Err("is too short".to_owned())) };
    let sum = checksum(&bytes);
    if header.signature != SIGNATURE {
        return Ok(Err("has no signature".to_owned()));
    }
    if header.checksum != sum {
        let what = format!("has the checksum 0x{:08x} where its bytes give 0x{sum:08x}", header.checksum);
        return Ok(Err(what));
    }
    if header.entries > ENTRIES_MAX {
        return Ok(Err(format!("has {} entries: at most {ENTRIES_MAX} are allowed", header.entries)));
    }
    let entries = bytes.get(TableHeader::SIZE..).unwrap_or_default().chunks_exact(Entry::SIZE);
    let regions = entries.take(index(header.entries.into())).filter_map(Entry::parse_start).map(|e| Region {
        id: Uuid::from_bytes_le(e.id),
        range: HostOffset::new(e.at).range(e.bytes.into()),
        is_required: e.required & 1 != 0,
    });
    Ok(Ok(regions.collect()))
}

impl Regions {
    /// Makes the table of a new file.
    pub(super) fn new(bat: HostRange, metadata: HostRange) -> Self {
        let region = |id, range| Region { id, range, is_required: true };
        Self { list: vec![region(BAT, bat), region(METADATA, metadata)], bat, metadata, valid: [true; 2] }
    }

    /// Reads the first copy that is whole; `log` is what the regions must leave free.
    pub(super) fn read(source: Source<'_>, log: HostRange) -> Result<Self> {
        let [at, then] = TABLES_AT;
        let (first, second) = (read_copy(source, at)?, read_copy(source, then)?);
        let valid = [first.is_ok(), second.is_ok()];
        let list = match (first, second) {
            (Ok(list), _) | (Err(_), Ok(list)) => list,
            (Err(first), Err(second)) => {
                let what = format!("the region table at 0x{at:x} {first}, the one at 0x{then:x} {second}");
                return Err(Error::corrupt(what));
            }
        };
        check_places(&list, log, source.bytes()?)?;
        let find = |id: Uuid, name: &str| {
            let mut found = list.iter().filter(|region| region.id == id);
            match (found.next(), found.next()) {
                (Some(region), None) => Ok(region.range),
                (None, _) => Err(Error::corrupt(format!("region table: has no {name}"))),
                (Some(_), Some(_)) => Err(Error::corrupt(format!("region table: has more than one {name}"))),
            }
        };
        let (bat, metadata) = (find(BAT, "block allocation table")?, find(METADATA, "metadata region")?);
        if let Some(other) = list.iter().find(|r| r.is_required && r.id != BAT && r.id != METADATA) {
            return Err(Error::unsupported(format!("needs a region that is not known here: {}", other.id)));
        }
        Ok(Self { list, bat, metadata, valid })
    }

    /// Returns the same table with the block allocation table elsewhere.
    pub(super) fn with_bat(&self, bat: HostRange) -> Self {
        let moved =
            |region: &Region| if region.id == BAT { Region { range: bat, ..*region } } else { *region };
        Self { list: self.list.iter().map(moved).collect(), bat, ..self.clone() }
    }

    /// Returns all regions' places.
    pub(super) fn ranges(&self) -> impl Iterator<Item = HostRange> {
        self.list.iter().map(|region| region.range)
    }

    /// Returns the bytes of a copy.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let entries = u32::try_from(self.list.len()).unwrap_or(ENTRIES_MAX);
        let header = TableHeader { signature: SIGNATURE, checksum: 0, entries, reserved: 0 };
        let whole = |header: TableHeader| {
            let mut bytes = header.to_bytes().to_vec();
            for region in &self.list {
                let entry = Entry {
                    id: region.id.to_bytes_le(),
                    at: region.range.start.bytes(),
                    bytes: u32::try_from(region.range.bytes).unwrap_or(u32::MAX),
                    required: region.is_required.into(),
                };
                bytes.extend(entry.to_bytes());
            }
            bytes.resize(TABLE_BYTES, 0);
            bytes
        };
        let checksum = checksum(&whole(header));
        whole(TableHeader { checksum, ..header })
    }
}

/// Refuses regions that are not in whole MiB inside the file, or that overlap each other or what else has its place.
fn check_places(list: &[Region], log: HostRange, file_bytes: u64) -> Result<()> {
    let header = HostOffset::new(0).range(MIB);
    let mut taken = vec![("the header".to_owned(), header)];
    if !log.is_empty() {
        taken.push(("the log".to_owned(), log));
    }
    for region in list {
        let (at, bytes) = (region.range.start.bytes(), region.range.bytes);
        let name = match region.id {
            BAT => "block allocation table".to_owned(),
            METADATA => "metadata region".to_owned(),
            id => format!("region {id}"),
        };
        let shown = format!("region table: {name} of 0x{bytes:x} bytes at 0x{at:x}");
        if at < MIB || !at.is_multiple_of(MIB) || bytes == 0 || !bytes.is_multiple_of(MIB) {
            return Err(Error::corrupt(format!("{shown} is not in whole MiB behind the header")));
        }
        if at.checked_add(bytes).is_none_or(|end| end > file_bytes) {
            return Err(Error::corrupt(format!("{shown} passes the file's end (0x{file_bytes:x})")));
        }
        taken.push((name, region.range));
    }
    taken.sort_unstable_by_key(|(_, range)| range.start);
    for ((first, range), (second, next)) in taken.iter().zip(taken.iter().skip(1)) {
        if range.end() > next.start {
            let (at, then) = (range.start, next.start);
            return Err(Error::corrupt(format!("{first} at 0x{at:x} overlaps {second} at 0x{then:x}")));
        }
    }
    Ok(())
}

/// Returns how many entries a table of `bytes` bytes holds.
pub(super) const fn entries_in(bytes: u64) -> u64 {
    bytes / super::geometry::ENTRY_BYTES
}

const _: () = assert!(TableHeader::SIZE + ENTRIES_MAX as usize * Entry::SIZE <= TABLE_BYTES);
const _: () = assert!(count(TABLE_BYTES).is_multiple_of(4096));
