//! The header: the spec's table, and what is trusted after it was checked.
//!
//! [`Header::read`] parses, checks and forgets the raw records: whoever holds a [`Header`] knows that its
//! geometry is within bounds, that its tables lie inside the file, apart from each other and from the first
//! cluster, and that the active L1 table covers the disk. Nothing is allocated from an untrusted count: the
//! first cluster (at most 2 MiB) is all that is read.

use super::{
    extension::{self, Extension},
    feature,
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, error::InFile, units},
    format::{NAME_BYTES_MAX, ParentName},
    io::File,
    record,
};

record! {
    /// The part that version 2 ends with (`qcow2.rst`, "Header").
    pub struct HeaderV2: BigEndian, 72 bytes {
        /// `QFI\xfb`.
        0 => magic: u32,
        /// 2 or 3.
        4 => version: u32,
        /// Where the backing file's name is; 0 without one.
        8 => backing_name_at: u64,
        /// Length of that name; at most 1023.
        16 => backing_name_bytes: u32,
        /// A cluster has `1 << cluster_bits` bytes; 9 to 21.
        20 => cluster_bits: u32,
        /// Size of the guest's disk.
        24 => disk_bytes: u64,
        /// 0 none, 1 AES, 2 LUKS.
        32 => encryption: u32,
        /// Entries in the active L1 table.
        36 => l1_entries: u32,
        /// Where the active L1 table is.
        40 => l1_at: u64,
        /// Where the refcount table is.
        48 => refcount_table_at: u64,
        /// Clusters that the refcount table fills.
        56 => refcount_table_clusters: u32,
        /// Internal snapshots in the image.
        60 => snapshots: u32,
        /// Where the snapshot table is.
        64 => snapshots_at: u64,
    }
}

record! {
    /// What version 3 adds (`qcow2.rst`, "Header").
    pub struct HeaderV3: BigEndian, 32 bytes {
        /// A reader that does not know one of these bits must not open the image.
        0 => incompatible: u64,
        /// May be ignored.
        8 => compatible: u64,
        /// A writer that does not know one of these bits clears it.
        16 => autoclear: u64,
        /// A refcount has `1 << refcount_order` bits; at most 6.
        24 => refcount_order: u32,
        /// Length of the whole header, at least 104, a multiple of 8.
        28 => header_bytes: u32,
    }
}

/// The longest L1 table that qemu opens, in bytes.
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// The longest refcount table that qemu opens, in bytes.
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// The most internal snapshots that qemu opens.
pub const SNAPSHOTS_MAX: u64 = 65_536;
/// Bytes in a version 2 header.
pub const V2_BYTES: u64 = 72;
/// Bytes in the shortest version 3 header.
pub const V3_BYTES_MIN: u64 = 104;
/// Bytes in a version 3 header with the compression type: the length that new images have.
pub const V3_BYTES: u64 = 112;
/// The smallest entry of the snapshot table, in bytes.
const SNAPSHOT_BYTES_MIN: u64 = 40;
/// What is read at first: nearly every header and its extensions.
const FIRST_BYTES: u64 = 4096;

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate, which qemu calls zlib.
    Zlib,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Returns the name used in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// The sizes that everything else is computed from; always within the specification's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has `1 << cluster_bits` bytes; 9 to 21.
    pub cluster_bits: u32,
    /// A refcount has `1 << refcount_order` bits; at most 6.
    pub refcount_order: u32,
    /// Whether an L2 entry has 16 bytes and describes 32 subclusters.
    pub is_extended: bool,
}

impl Geometry {
    /// Returns the bytes in a cluster.
    pub const fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns the bytes in an L2 entry.
    pub const fn l2_entry_bytes(self) -> u64 {
        if self.is_extended { 16 } else { 8 }
    }

    /// Returns the entries in an L2 table, which fills one cluster.
    pub const fn l2_entries(self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    /// Returns the guest bytes that one L2 table maps: what one L1 entry stands for.
    pub const fn l1_entry_covers(self) -> u64 {
        self.cluster_bytes() * self.l2_entries()
    }

    /// Returns the L1 entries that a disk of `disk_bytes` needs.
    pub const fn l1_entries_for(self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(self.l1_entry_covers())
    }

    /// Returns the subclusters in a cluster: 32, or 1 where there are none.
    pub const fn subclusters(self) -> u64 {
        if self.is_extended { 32 } else { 1 }
    }

    /// Returns the bytes in a subcluster: the smallest run that can be allocated or zero.
    pub const fn subcluster_bytes(self) -> u64 {
        self.cluster_bytes() / self.subclusters()
    }

    /// Returns the bits in a refcount.
    pub const fn refcount_bits(self) -> u64 {
        1 << self.refcount_order
    }

    /// Returns the refcounts in a refcount block, which fills one cluster.
    pub const fn refcounts_per_block(self) -> u64 {
        self.cluster_bytes() * 8 / self.refcount_bits()
    }

    /// Returns the largest refcount that can be stored.
    pub const fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Returns the clusters that `bytes` bytes fill.
    pub const fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_bytes())
    }
}

/// A contiguous table in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Where it starts; a multiple of the cluster.
    pub at: HostOffset,
    /// How many entries it has.
    pub entries: u64,
}

impl Table {
    /// Returns where the table is, if an entry has `entry_bytes` bytes.
    pub const fn range(self, entry_bytes: u64) -> HostRange {
        self.at.range(self.entries * entry_bytes)
    }
}

/// A checked header: what it says is within bounds and inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sizes that everything else is computed from.
    pub geometry: Geometry,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// The active L1 table (8 bytes an entry).
    pub l1: Table,
    /// The refcount table (8 bytes an entry); a whole number of clusters.
    pub refcount_table: HostRange,
    /// Where the snapshot table starts and how many snapshots it has (entries vary in length).
    pub snapshots: Table,
    /// Incompatible feature bits; all known.
    pub incompatible: u64,
    /// Compatible feature bits.
    pub compatible: u64,
    /// Autoclear feature bits.
    pub autoclear: u64,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// Length of the header itself: where the extensions start.
    pub header_bytes: u64,
    /// What the header holds behind its first 104 bytes: the compression type, and fields unknown here.
    pub more_fields: Vec<u8>,
    /// Where the parent's name is.
    pub parent_name_at: HostOffset,
    /// The parent's name, if there is a parent.
    pub parent_name: Option<Vec<u8>>,
    /// Every header extension in order.
    pub extensions: Vec<Extension>,
}

/// How far a header is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// The image will be used: its tables must be where they can be.
    Use,
    /// The image will be checked: where its tables are is part of what is to be found out.
    Check,
}

impl Header {
    /// Reads and checks the header of an image that will be used.
    ///
    /// `Corrupt` names the field and its offset; `Unsupported` for other versions, encryption and unknown
    /// incompatible features.
    pub fn read(file: &dyn File) -> Result<Self> {
        Self::read_trusting(file, Trust::Use).in_file(file.path())
    }

    /// Reads the header of an image that will be checked: tables may overlap, pass the file's end or (the
    /// refcount table) be missing.
    pub fn read_for_check(file: &dyn File) -> Result<Self> {
        Self::read_trusting(file, Trust::Check).in_file(file.path())
    }

    fn read_trusting(file: &dyn File, trust: Trust) -> Result<Self> {
        let mut start = vec![0; units::index(FIRST_BYTES)];
        file.read_at(HostOffset::new(0), &mut start)?;
        let too_short = || Error::corrupt("is too short for a qcow2 header");
        let v2 = HeaderV2::parse_start(&start).ok_or_else(too_short)?;
        let v3 = version_3(&v2, &start)?;
        let geometry = Geometry::check(&v2, &v3)?;
        let area_bytes = check_area(&v2, &v3, geometry)?;
        if u64::from(v3.header_bytes) + 8 > FIRST_BYTES || !list_ends(&start, v3.header_bytes, area_bytes) {
            start.resize(units::index(area_bytes), 0);
            file.read_at(HostOffset::new(0), &mut start)?;
        }
        start.truncate(units::index(area_bytes));
        let extensions = extension::read_list(&start, units::index(v3.header_bytes.into()))?;
        check_features(&v3, &extensions)?;
        check_single(&extensions)?;
        let header = Self {
            geometry,
            disk_bytes: v2.disk_bytes,
            l1: Table { at: HostOffset::new(v2.l1_at), entries: v2.l1_entries.into() },
            refcount_table: HostOffset::new(v2.refcount_table_at)
                .range(u64::from(v2.refcount_table_clusters) << geometry.cluster_bits),
            snapshots: Table { at: HostOffset::new(v2.snapshots_at), entries: v2.snapshots.into() },
            incompatible: v3.incompatible,
            compatible: v3.compatible,
            autoclear: v3.autoclear,
            compression: check_compression(&v3, start.get(104).copied().unwrap_or(0))?,
            header_bytes: v3.header_bytes.into(),
            more_fields: start
                .get(units::index(V3_BYTES_MIN)..units::index(v3.header_bytes.into()))
                .unwrap_or_default()
                .to_vec(),
            parent_name_at: HostOffset::new(v2.backing_name_at),
            parent_name: read_name(file, &v2, geometry)?,
            extensions,
        };
        header.check_disk()?;
        header.check_tables(file.bytes()?, trust)?;
        Ok(header)
    }

    /// Returns whether an incompatible feature is on.
    pub const fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    /// Returns whether an autoclear feature is on.
    pub const fn has_autoclear(&self, autoclear: u64) -> bool {
        self.autoclear & autoclear != 0
    }

    /// Returns whether the image was not closed cleanly: refcounts may be wrong.
    pub const fn is_dirty(&self) -> bool {
        self.has(feature::DIRTY)
    }

    /// Returns whether the image is marked as corrupt.
    pub const fn is_corrupt(&self) -> bool {
        self.has(feature::CORRUPT)
    }

    /// Returns whether guest data is in another file.
    pub const fn has_data_file(&self) -> bool {
        self.has(feature::EXTERNAL_DATA)
    }

    /// Returns whether that other file is a valid raw image of the disk.
    pub const fn is_data_file_raw(&self) -> bool {
        self.has_autoclear(feature::RAW_EXTERNAL_DATA)
    }

    /// Returns whether refcounts may be written late, under the dirty bit.
    pub const fn is_lazy(&self) -> bool {
        self.compatible & feature::LAZY_REFCOUNTS != 0
    }

    /// Returns the bytes of an extension; `None` if the header has none of that kind.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|e| e.kind == kind).map(|e| e.bytes.as_slice())
    }

    /// Returns the external data file's name as the header states it.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extension(extension::DATA_FILE)
    }

    /// Returns the parent as the header names it.
    pub fn parent(&self) -> Option<ParentName> {
        let name = self.parent_name.clone()?;
        let format = self.extension(extension::BACKING_FORMAT);
        let format = format.map(|f| String::from_utf8_lossy(f).into_owned());
        Some(ParentName { is_misread: self.has(feature::MISREAD_PARENT), ..ParentName::new(name, format) })
    }

    /// Refuses to write an image that is marked as corrupt.
    pub fn check_writable(&self) -> Result<()> {
        if self.is_corrupt() {
            return Err(Error::corrupt("is marked as corrupt (incompatible_features, 0x48): not written to"));
        }
        Ok(())
    }

    fn check_disk(&self) -> Result<()> {
        if i64::try_from(self.disk_bytes).is_err() {
            return Err(Error::corrupt(format!("size (0x18) is {:#x}, past 2^63", self.disk_bytes)));
        }
        let needed = self.geometry.l1_entries_for(self.disk_bytes);
        if needed > self.l1.entries {
            return Err(Error::corrupt(format!(
                "l1_size (0x24) is {}, but a disk of {} bytes needs {needed} entries",
                self.l1.entries, self.disk_bytes
            )));
        }
        Ok(())
    }

    fn check_tables(&self, file_bytes: u64, trust: Trust) -> Result<()> {
        let limit = |what: &str, is: u64, max: u64| {
            let message = || format!("{what} takes {is:#x} bytes, more than {max:#x}");
            if is > max { Err(Error::corrupt(message())) } else { Ok(()) }
        };
        let l1 = self.l1.range(8);
        let snapshots = self.snapshots.range(SNAPSHOT_BYTES_MIN);
        limit("L1 table (l1_size, 0x24)", l1.bytes, L1_BYTES_MAX)?;
        limit("refcount table (0x38)", self.refcount_table.bytes, REFCOUNT_TABLE_BYTES_MAX)?;
        limit("snapshot table (0x3c)", snapshots.bytes, SNAPSHOTS_MAX * SNAPSHOT_BYTES_MIN)?;
        let tables = [
            ("L1 table (l1_table_offset, 0x28)", l1),
            ("refcount table (refcount_table_offset, 0x30)", self.refcount_table),
            ("snapshot table (snapshots_offset, 0x40)", snapshots),
        ];
        for (what, range) in tables {
            let unit = self.geometry.cluster_bytes();
            if range.start != range.start.floor(unit) {
                return Err(Error::corrupt(format!(
                    "{what} starts at {:#x}, not a multiple of {unit:#x}",
                    range.start
                )));
            }
            if i64::try_from(range.end().bytes()).is_err() {
                return Err(Error::corrupt(format!("{what} starts at {:#x}, past 2^63", range.start)));
            }
        }
        match trust {
            Trust::Check => Ok(()),
            Trust::Use => self.check_places(&tables, file_bytes),
        }
    }

    /// Each table inside the file, and none on another's clusters.
    fn check_places(&self, tables: &[(&str, HostRange)], file_bytes: u64) -> Result<()> {
        if self.refcount_table.is_empty() {
            return Err(Error::corrupt("refcount_table_clusters (0x38) is 0: no refcount table"));
        }
        let unit = self.geometry.cluster_bytes();
        let first = ("first cluster", HostOffset::new(0).range(unit));
        let mut taken = vec![first];
        for (what, range) in tables.iter().filter(|(_, range)| !range.is_empty()) {
            // The file's last cluster may be there in part.
            if range.end().bytes() > file_bytes.next_multiple_of(unit) {
                return Err(Error::corrupt(format!(
                    "{what} ends at {:#x}, past the file's end ({file_bytes:#x})",
                    range.end()
                )));
            }
            let range = range.outer(unit);
            if let Some((other, _)) = taken.iter().find(|(_, other)| other.overlaps(range)) {
                return Err(Error::corrupt(format!("{what} at {:#x} overlaps the {other}", range.start)));
            }
            taken.push((what, range));
        }
        Ok(())
    }
}

impl Geometry {
    fn check(v2: &HeaderV2, v3: &HeaderV3) -> Result<Self> {
        let is_extended = v3.incompatible & feature::EXTENDED_L2 != 0;
        let least = if is_extended { 14 } else { 9 };
        if !(least..=21).contains(&v2.cluster_bits) {
            return Err(Error::corrupt(format!(
                "cluster_bits (0x14) is {}, not {least} to 21",
                v2.cluster_bits
            )));
        }
        if v3.refcount_order > 6 {
            return Err(Error::corrupt(format!(
                "refcount_order (0x60) is {}, more than 6",
                v3.refcount_order
            )));
        }
        Ok(Self {
            version: v2.version,
            cluster_bits: v2.cluster_bits,
            refcount_order: v3.refcount_order,
            is_extended,
        })
    }
}

/// Returns what version 3 adds, or what version 2 means by saying nothing; refuses other files.
fn version_3(v2: &HeaderV2, start: &[u8]) -> Result<HeaderV3> {
    if v2.magic.to_be_bytes() != super::MAGIC {
        return Err(Error::corrupt(format!("magic (0x0) is {:#010x}: not a qcow2 image", v2.magic)));
    }
    let said = start.get(units::index(V2_BYTES)..).and_then(HeaderV3::parse_start);
    let silent = HeaderV3 {
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: 4,
        header_bytes: 72, // V2_BYTES
    };
    match v2.version {
        2 => Ok(silent),
        3 => said.ok_or_else(|| Error::corrupt("is too short for a qcow2 header")),
        other => Err(Error::unsupported(format!("version (0x4) is {other}, not 2 or 3"))),
    }
}

/// Returns where the extensions' area ends: at the parent's name, else with the first cluster.
fn check_area(v2: &HeaderV2, v3: &HeaderV3, geometry: Geometry) -> Result<u64> {
    let unit = geometry.cluster_bytes();
    match v2.encryption {
        0 => {}
        1 => return Err(Error::unsupported("is encrypted with AES (crypt_method, 0x20)")),
        2 => return Err(Error::unsupported("is encrypted with LUKS (crypt_method, 0x20)")),
        other => return Err(Error::unsupported(format!("crypt_method (0x20) is {other}: unknown"))),
    }
    let header_bytes = u64::from(v3.header_bytes);
    let least = if v2.version == 2 { V2_BYTES } else { V3_BYTES_MIN };
    if header_bytes < least || header_bytes > unit || !header_bytes.is_multiple_of(8) {
        return Err(Error::corrupt(format!(
            "header_length (0x64) is {header_bytes}, not a multiple of 8 from {least} to {unit}"
        )));
    }
    if v2.backing_name_at == 0 {
        return Ok(unit);
    }
    if v2.backing_name_at < header_bytes || v2.backing_name_at > unit {
        return Err(Error::corrupt(format!(
            "backing_file_offset (0x8) is {:#x}, outside the first cluster behind the header",
            v2.backing_name_at
        )));
    }
    Ok(v2.backing_name_at)
}

/// Returns whether the list of extensions ends within `start`, and so needs no more to be read.
fn list_ends(start: &[u8], from: u32, area_bytes: u64) -> bool {
    if area_bytes <= units::count(start.len()) {
        return true;
    }
    let mut at = u64::from(from);
    while let Some(head) = start.get(units::index(at)..).and_then(extension::ExtensionHead::parse_start) {
        at += 8 + u64::from(head.bytes).next_multiple_of(8);
        if head.kind == extension::END {
            return at <= units::count(start.len());
        }
    }
    false
}

fn check_features(v3: &HeaderV3, extensions: &[Extension]) -> Result<()> {
    let unknown = v3.incompatible & !feature::KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        let table = extensions.iter().find(|e| e.kind == extension::FEATURE_NAMES);
        let names = feature::incompatible_names(table.map_or(&[], |t| t.bytes.as_slice()), unknown);
        return Err(Error::unsupported(format!("uses features unknown here (0x48): {names}")));
    }
    if v3.autoclear & feature::RAW_EXTERNAL_DATA != 0 && v3.incompatible & feature::EXTERNAL_DATA == 0 {
        return Err(Error::corrupt(
            "autoclear_features (0x58) says raw external data, but there is no data file",
        ));
    }
    Ok(())
}

/// Refuses a second extension of a kind that this build reads: another reader may take the other one.
fn check_single(extensions: &[Extension]) -> Result<()> {
    for (n, extension) in extensions.iter().enumerate() {
        let is_read = matches!(
            extension.kind,
            extension::BACKING_FORMAT | extension::BITMAPS | extension::DATA_FILE | extension::RECORD
        );
        if is_read && extensions.iter().take(n).any(|earlier| earlier.kind == extension.kind) {
            return Err(Error::corrupt(format!("header extension {:#x} is there twice", extension.kind)));
        }
    }
    Ok(())
}

fn check_compression(v3: &HeaderV3, byte: u8) -> Result<Compression> {
    let is_there = u64::from(v3.header_bytes) > V3_BYTES_MIN;
    let byte = if is_there { byte } else { 0 };
    match (byte, v3.incompatible & feature::COMPRESSION != 0) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0 | 1, _) => Err(Error::corrupt(format!(
            "compression_type (0x68) is {byte}, which the incompatible bit 3 contradicts"
        ))),
        _ => Err(Error::unsupported(format!("compression_type (0x68) is {byte}: unknown"))),
    }
}

fn read_name(file: &dyn File, v2: &HeaderV2, geometry: Geometry) -> Result<Option<Vec<u8>>> {
    let bytes = units::index(v2.backing_name_bytes.into());
    if v2.backing_name_at == 0 || bytes == 0 {
        return Ok(None);
    }
    let unit = geometry.cluster_bytes();
    if bytes > NAME_BYTES_MAX || v2.backing_name_at + units::count(bytes) > unit {
        return Err(Error::corrupt(format!(
            "backing_file_size (0x10) is {bytes}: the name must fit 1023 bytes and the first cluster"
        )));
    }
    let mut name = vec![0; bytes];
    file.read_at(HostOffset::new(v2.backing_name_at), &mut name)?;
    if name.contains(&0) {
        return Err(Error::corrupt(format!("backing file name at {:#x} holds a NUL", v2.backing_name_at)));
    }
    Ok(Some(name))
}

#[cfg(test)]
mod tests;
