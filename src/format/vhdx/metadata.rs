//! The metadata region (MS-VHDX 2.6): a table of items, and the items that are known here.

use super::{
    bytes::Source,
    geometry::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Geometry, SIZE_MAX},
    locator::Locator,
    log::{PAGE_BYTES, Page},
};
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{count, index},
    },
    record,
};
use std::collections::BTreeMap;
use uuid::Uuid;

const SIGNATURE: [u8; 8] = *b"metadata";
/// Bytes of the table; items lie behind it.
const TABLE_BYTES: u64 = 64 << 10;
const ITEMS_MAX: u16 = 2047;
const ITEM_BYTES_MAX: u64 = 1 << 20;
/// Items begin at multiples of this.
const ALIGNMENT: u64 = 64;

const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
const DISK_SIZE: Uuid = Uuid::from_u128(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
const PAGE_83: Uuid = Uuid::from_u128(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
const LOGICAL_SECTOR: Uuid = Uuid::from_u128(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
const PHYSICAL_SECTOR: Uuid = Uuid::from_u128(0xcda348c7_445d_4471_9cc9_e9885251c556);
const PARENT_LOCATOR: Uuid = Uuid::from_u128(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);
/// The project's record, a user's item that nobody needs to know.
const RECORD: Uuid = Uuid::from_u128(0x6d1f39b7_25c4_4a6e_8b0f_64636e310001);

const IS_USER: u32 = 1;
const IS_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

const LEAVES_BLOCKS: u32 = 1;
const HAS_PARENT: u32 = 2;

record! {
    /// What the table begins with.
    struct TableHeader: LittleEndian, 32 bytes {
        /// "metadata".
        0 => signature: bytes 8,
        /// 0.
        8 => reserved: u16,
        /// Items that follow.
        10 => items: u16,
        /// 0.
        12 => reserved2: bytes 20,
    }
}

record! {
    /// One item.
    struct Entry: LittleEndian, 32 bytes {
        /// What it is.
        0 => id: bytes 16,
        /// Where it is in the region; 0 if it is empty.
        16 => at: u32,
        /// Its length.
        20 => bytes: u32,
        /// Whose it is, and whether it must be known.
        24 => flags: u32,
        /// 0.
        28 => reserved: u32,
    }
}

record! {
    /// The file parameters (MS-VHDX 2.6.2.1).
    struct FileParameters: LittleEndian, 8 bytes {
        /// Bytes in a payload block.
        0 => block_bytes: u32,
        /// Bit 0: blocks stay in the file; bit 1: it has a parent.
        4 => flags: u32,
    }
}

/// An item of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    id: Uuid,
    at: u64,
    bytes: u64,
    flags: u32,
}

impl Item {
    const fn is_user(&self) -> bool {
        self.flags & IS_USER != 0
    }
}

/// What changes in the metadata.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// The disk has another size.
    Size(u64),
    /// It has another parent, or none.
    Parent(Option<Locator>),
    /// It has another record, or none.
    Record(Option<Vec<u8>>),
}

/// The metadata of a file.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    region: HostRange,
    items: Vec<Item>,
    /// Blocks and sectors.
    pub(super) geometry: Geometry,
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// Where the parent is; `None` without one.
    pub(super) locator: Option<Locator>,
    /// The project's record, as stored.
    pub(super) record: Option<Vec<u8>>,
}

/// Returns the items that a new file has, and the bytes of its region up to the end of the last one.
pub(super) fn encode_new(geometry: Geometry, size: u64, locator: Option<&Locator>) -> Result<Vec<u8>> {
    let low = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let mut items = vec![
        (FILE_PARAMETERS, IS_REQUIRED, parameters(geometry, locator.is_some()).to_vec()),
        (DISK_SIZE, IS_REQUIRED | IS_DISK, size.to_le_bytes().to_vec()),
        (PAGE_83, IS_REQUIRED | IS_DISK, super::header::fresh_guid().to_bytes_le().to_vec()),
        (LOGICAL_SECTOR, IS_REQUIRED | IS_DISK, low(geometry.sector_bytes).to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR, IS_REQUIRED | IS_DISK, low(geometry.physical_bytes).to_le_bytes().to_vec()),
    ];
    if let Some(locator) = locator {
        items.push((PARENT_LOCATOR, IS_REQUIRED, locator.encode()?));
    }
    let mut list = Vec::new();
    let mut bytes = vec![0; index(TABLE_BYTES)];
    for (id, flags, item) in items {
        bytes.resize(bytes.len().next_multiple_of(index(ALIGNMENT)), 0);
        list.push(Item { id, at: count(bytes.len()), bytes: count(item.len()), flags });
        bytes.extend(item);
    }
    let table = encode_table(&list);
    bytes.splice(..table.len(), table);
    Ok(bytes)
}

fn parameters(geometry: Geometry, has_parent: bool) -> [u8; 8] {
    let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
    let flags = bit(geometry.is_fixed, LEAVES_BLOCKS) | bit(has_parent, HAS_PARENT);
    let block_bytes = u32::try_from(geometry.block_bytes).unwrap_or(u32::MAX);
    FileParameters { block_bytes, flags }.to_bytes()
}

/// Returns the bytes of a table, all of it.
fn encode_table(items: &[Item]) -> Vec<u8> {
    let number = u16::try_from(items.len()).unwrap_or(ITEMS_MAX);
    let header = TableHeader { signature: SIGNATURE, reserved: 0, items: number, reserved2: [0; 20] };
    let mut bytes = header.to_bytes().to_vec();
    let low = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    for item in items {
        let (id, at) = (item.id.to_bytes_le(), low(item.at));
        bytes.extend(Entry { id, at, bytes: low(item.bytes), flags: item.flags, reserved: 0 }.to_bytes());
    }
    bytes.resize(index(TABLE_BYTES), 0);
    bytes
}

fn wrong(why: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("metadata: {why}"))
}

fn read_items(source: Source<'_>, region: HostRange) -> Result<Vec<Item>> {
    let mut table = vec![0; index(TABLE_BYTES)];
    source.read_at(region.start, &mut table)?;
    let header = TableHeader::parse_start(&table).filter(|header| header.signature == SIGNATURE);
    let header = header.ok_or_else(|| wrong(format!("no signature at 0x{:x}", region.start)))?;
    if header.items > ITEMS_MAX {
        return Err(wrong(format!("{} items: at most {ITEMS_MAX} are allowed", header.items)));
    }
    let entries = table.get(TableHeader::SIZE..).unwrap_or_default().chunks_exact(Entry::SIZE);
    let mut items: Vec<Item> = Vec::new();
    for entry in entries.take(header.items.into()).filter_map(Entry::parse_start) {
        let (at, bytes) = (u64::from(entry.at), u64::from(entry.bytes));
        let item = Item { id: Uuid::from_bytes_le(entry.id), at, bytes, flags: entry.flags };
        let is_inside = at >= TABLE_BYTES && at + bytes <= region.bytes && bytes <= ITEM_BYTES_MAX;
        if bytes > 0 && !is_inside {
            return Err(wrong(format!(
                "item {} (0x{bytes:x} bytes at 0x{at:x}) is not in the region",
                item.id
            )));
        }
        items.push(item);
    }
    let mut seen: Vec<_> = items.iter().map(|item| (item.id, item.is_user())).collect();
    seen.sort_unstable();
    if let Some(((id, _), _)) = seen.iter().zip(seen.iter().skip(1)).find(|(one, next)| one == next) {
        return Err(wrong(format!("item {id} is there more than once")));
    }
    let mut places: Vec<_> = items.iter().filter(|item| item.bytes > 0).collect();
    places.sort_unstable_by_key(|item| item.at);
    if let Some([one, next]) = places.array_windows::<2>().find(|[one, next]| one.at + one.bytes > next.at) {
        return Err(wrong(format!("items {} and {} share bytes (at 0x{:x})", one.id, next.id, next.at)));
    }
    Ok(items)
}

impl Metadata {
    /// Reads and checks the region.
    pub(super) fn read(source: Source<'_>, region: HostRange) -> Result<Self> {
        let items = read_items(source, region)?;
        let known = [FILE_PARAMETERS, DISK_SIZE, PAGE_83, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR];
        let is_strange =
            |item: &&Item| item.flags & IS_REQUIRED != 0 && (item.is_user() || !known.contains(&item.id));
        if let Some(item) = items.iter().find(is_strange) {
            return Err(Error::unsupported(format!(
                "needs a metadata item that is not known here: {}",
                item.id
            )));
        }
        let find = |id: Uuid, is_user: bool| items.iter().find(|i| i.id == id && i.is_user() == is_user);
        let read = |item: &Item| -> Result<Vec<u8>> {
            let mut bytes = vec![0; index(item.bytes)];
            source.read_at(region.start.plus(item.at), &mut bytes)?;
            Ok(bytes)
        };
        let number = |id: Uuid, name: &str| -> Result<u64> {
            let item = find(id, false).ok_or_else(|| wrong(format!("has no {name}")))?;
            let mut wide = [0; 8];
            let bytes = read(item)?;
            let place = wide.get_mut(..bytes.len()).filter(|place| place.len() >= 4);
            place.ok_or_else(|| wrong(format!("{name} of {} bytes", bytes.len())))?.copy_from_slice(&bytes);
            Ok(u64::from_le_bytes(wide))
        };
        let parameters = FileParameters::parse(&number(FILE_PARAMETERS, "file parameters")?.to_le_bytes());
        let has_parent = parameters.flags & HAS_PARENT != 0;
        let physical = find(PHYSICAL_SECTOR, false).map(|_| number(PHYSICAL_SECTOR, "physical sector size"));
        let geometry = Geometry {
            block_bytes: parameters.block_bytes.into(),
            sector_bytes: number(LOGICAL_SECTOR, "logical sector size")?,
            physical_bytes: physical.transpose()?.unwrap_or(512),
            is_fixed: parameters.flags & LEAVES_BLOCKS != 0 && !has_parent,
        };
        let size = number(DISK_SIZE, "virtual disk size")?;
        check(geometry, size)?;
        let locator =
            find(PARENT_LOCATOR, false).filter(|_| has_parent).map(|item| Locator::parse(&read(item)?));
        if has_parent && locator.is_none() {
            return Err(wrong("the file has a parent and no parent locator"));
        }
        let locator = locator.transpose()?;
        locator.as_ref().map(Locator::parent).transpose()?;
        let record = find(RECORD, true).map(read).transpose()?;
        Ok(Self { region, items, geometry, size, locator, record })
    }

    /// Returns whether what the disk does not hold is a parent's.
    pub(super) const fn has_parent(&self) -> bool {
        self.locator.is_some()
    }

    /// Returns the pages that make `change`; together they are one step.
    ///
    /// `NoSpace` if the region has no room.
    pub(super) fn pages(&self, source: Source<'_>, change: &Change) -> Result<Vec<Page>> {
        let mut edit =
            Edit { source, region: self.region, items: self.items.clone(), pages: BTreeMap::new() };
        match change {
            Change::Size(size) => edit.put(DISK_SIZE, IS_REQUIRED | IS_DISK, &size.to_le_bytes())?,
            Change::Record(Some(bytes)) => edit.put(RECORD, IS_USER, bytes)?,
            Change::Record(None) => edit.remove(RECORD, true),
            Change::Parent(locator) => {
                let parameters = parameters(self.geometry, locator.is_some());
                edit.put(FILE_PARAMETERS, IS_REQUIRED, &parameters)?;
                match locator {
                    Some(locator) => edit.put(PARENT_LOCATOR, IS_REQUIRED, &locator.encode()?)?,
                    None => edit.remove(PARENT_LOCATOR, false),
                }
            }
        }
        edit.finish()
    }
}

/// Refuses what no disk of this format is.
fn check(geometry: Geometry, size: u64) -> Result<()> {
    let Geometry { block_bytes, sector_bytes, physical_bytes, .. } = geometry;
    if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        return Err(wrong(format!(
            "a block size of 0x{block_bytes:x}: a power of two from 1 MiB to 256 MiB is"
        )));
    }
    for (name, bytes) in [("logical", sector_bytes), ("physical", physical_bytes)] {
        if bytes != 512 && bytes != 4096 {
            return Err(wrong(format!("a {name} sector size of {bytes}: it is 512 or 4096")));
        }
    }
    if size > SIZE_MAX || !size.is_multiple_of(sector_bytes) {
        return Err(wrong(format!("a disk of 0x{size:x} bytes: whole sectors, 64 TiB at most")));
    }
    Ok(())
}

/// A change in the making.
struct Edit<'a> {
    source: Source<'a>,
    region: HostRange,
    items: Vec<Item>,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Edit<'_> {
    fn remove(&mut self, id: Uuid, is_user: bool) {
        self.items.retain(|item| item.id != id || item.is_user() != is_user);
    }

    /// Gives an item these bytes.
    fn put(&mut self, id: Uuid, flags: u32, bytes: &[u8]) -> Result<()> {
        let is_user = flags & IS_USER != 0;
        let length = count(bytes.len());
        let old = self.items.iter().find(|item| item.id == id && item.is_user() == is_user).copied();
        self.remove(id, is_user);
        let at = match old {
            Some(old) if old.bytes >= length => old.at,
            _ => self.gap(length)?,
        };
        if self.items.len() >= usize::from(ITEMS_MAX) {
            return Err(self.full());
        }
        self.items.push(Item { id, at, bytes: length, flags });
        self.patch(at, bytes)
    }

    fn full(&self) -> Error {
        let what =
            format!("metadata: no room in 0x{:x} bytes at 0x{:x}", self.region.bytes, self.region.start);
        Error::new(crate::base::ErrorKind::NoSpace, what)
    }

    /// Returns a place for so many bytes.
    fn gap(&self, bytes: u64) -> Result<u64> {
        let mut taken: Vec<_> =
            self.items.iter().filter(|i| i.bytes > 0).map(|i| (i.at, i.at + i.bytes)).collect();
        taken.sort_unstable();
        let mut at = TABLE_BYTES;
        for (start, end) in taken {
            if at + bytes <= start {
                break;
            }
            at = at.max(end.next_multiple_of(ALIGNMENT));
        }
        let fits = bytes <= ITEM_BYTES_MAX && at + bytes <= self.region.bytes;
        if fits { Ok(at) } else { Err(self.full()) }
    }

    /// Changes bytes of the region.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        for piece in HostOffset::new(at).range(count(bytes.len())).pieces(PAGE_BYTES) {
            let (now, later) = rest.split_at_checked(index(piece.bytes)).unwrap_or((rest, &[]));
            rest = later;
            let page = piece.start.floor(PAGE_BYTES);
            if !self.pages.contains_key(&page.bytes()) {
                let mut held = vec![0; index(PAGE_BYTES)];
                self.source.read_at(self.region.start.plus(page.bytes()), &mut held)?;
                self.pages.insert(page.bytes(), held);
            }
            let from = index(piece.start.since(page));
            let held =
                self.pages.get_mut(&page.bytes()).and_then(|held| held.get_mut(from..from + now.len()));
            if let Some(place) = held {
                place.copy_from_slice(now);
            }
        }
        Ok(())
    }

    /// Returns the pages that are not what the file says, the table's among them.
    fn finish(mut self) -> Result<Vec<Page>> {
        self.patch(0, &encode_table(&self.items))?;
        let mut changed = Vec::new();
        let mut held = vec![0; index(PAGE_BYTES)];
        for (at, bytes) in self.pages {
            let at = self.region.start.plus(at);
            self.source.read_at(at, &mut held)?;
            if held != bytes {
                changed.push(Page { at, bytes });
            }
        }
        Ok(changed)
    }
}
