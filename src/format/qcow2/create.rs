//! Making a new image: header, refcounts, L1 table, and what is preallocated, each written once.
//!
//! ```text
//! | header | refcount table | refcount blocks | L1 table | L2 tables | guest clusters |
//! ```
//! Every cluster of the file has refcount 1 from the start. Nobody knows the file yet, so no order is kept;
//! one flush ends it.

use super::{
    change::{self, GAP_BYTES},
    counter,
    extension::{self, Extension},
    feature,
    header::{
        Compression, Geometry, Header, L1_BYTES_MAX, REFCOUNT_TABLE_BYTES_MAX, Table, V2_BYTES, V3_BYTES,
    },
    options::{Options, Preallocation},
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, error::InFile, units},
    format::{Creation, NAME_BYTES_MAX, ParentName, Parts},
    io::{File, Kept},
};
use std::sync::Arc;

/// How much is written at once where zeros are asked for.
const ZEROS_BYTES: u64 = 1 << 20;

/// Makes a new image in an empty file (a device is overwritten); durable once that file and its data file are
/// flushed.
///
/// The data file is opened, and sized, through `parts`. `Invalid` for options that are unknown or exclude
/// each other, and for a disk or a name that does not fit.
pub(super) fn create(file: &dyn File, creation: &Creation, parts: &dyn Parts) -> Result<Header> {
    let options = Options::parse(creation).in_file(file.path())?;
    let plan = Plan::new(&options, creation.size).in_file(file.path())?;
    let header = plan.header(&options, creation).in_file(file.path())?;
    let data_file = options.data_file.as_deref().map(|name| parts.open_part(name)).transpose()?;
    plan.write(file, &options, &header)?;
    if let Some(data_file) = &data_file {
        size_data_file(data_file, &options, creation.size)?;
    }
    Ok(header)
}

/// Where everything is, in clusters.
#[derive(Clone, Copy, Debug)]
struct Plan {
    geometry: Geometry,
    disk_bytes: u64,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    /// L2 tables and guest clusters made at once.
    l2_tables: u64,
    data_clusters: u64,
}

impl Plan {
    fn new(options: &Options, disk_bytes: u64) -> Result<Self> {
        let geometry = options.geometry;
        let l1_entries = geometry.l1_entries_for(disk_bytes);
        let too_large = || {
            Error::invalid(format!(
                "a disk of {disk_bytes} bytes is too large for a cluster_size of {}",
                geometry.cluster_bytes()
            ))
        };
        if i64::try_from(disk_bytes).is_err() || l1_entries * 8 > L1_BYTES_MAX {
            return Err(too_large());
        }
        let is_mapped = options.preallocation > Preallocation::Off;
        let has_own_data = is_mapped && options.data_file.is_none();
        let mut plan = Self {
            geometry,
            disk_bytes,
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries,
            l2_tables: if is_mapped { l1_entries } else { 0 },
            data_clusters: if has_own_data { geometry.clusters(disk_bytes) } else { 0 },
        };
        // Refcount blocks count themselves, too; a few rounds settle it.
        loop {
            let blocks = plan.clusters().div_ceil(geometry.refcounts_per_block());
            let table = geometry.clusters(blocks * 8);
            if (blocks, table) == (plan.refcount_blocks, plan.refcount_table_clusters) {
                break;
            }
            (plan.refcount_blocks, plan.refcount_table_clusters) = (blocks, table);
        }
        if plan.refcount_table_clusters * geometry.cluster_bytes() > REFCOUNT_TABLE_BYTES_MAX {
            return Err(too_large());
        }
        Ok(plan)
    }

    const fn l1_clusters(&self) -> u64 {
        self.geometry.clusters(self.l1_entries * 8)
    }

    /// Returns where the part behind `clusters` clusters is.
    const fn at(&self, clusters: u64) -> HostOffset {
        HostOffset::new(clusters * self.geometry.cluster_bytes())
    }

    const fn blocks_at(&self) -> HostOffset {
        self.at(1 + self.refcount_table_clusters)
    }

    const fn l1_at(&self) -> HostOffset {
        self.at(1 + self.refcount_table_clusters + self.refcount_blocks)
    }

    const fn l2_at(&self) -> HostOffset {
        self.at(1 + self.refcount_table_clusters + self.refcount_blocks + self.l1_clusters())
    }

    const fn data_at(&self) -> HostOffset {
        self.l2_at().plus(self.l2_tables * self.geometry.cluster_bytes())
    }

    const fn clusters(&self) -> u64 {
        1 + self.refcount_table_clusters
            + self.refcount_blocks
            + self.l1_clusters()
            + self.l2_tables
            + self.data_clusters
    }

    const fn end(&self) -> HostOffset {
        self.at(self.clusters())
    }

    fn header(&self, options: &Options, creation: &Creation) -> Result<Header> {
        let zstd = matches!(options.compression, Compression::Zstd);
        let bit = |is_on: bool, bit: u64| if is_on { bit } else { 0 };
        let mut header = Header {
            geometry: self.geometry,
            disk_bytes: self.disk_bytes,
            l1: Table { at: self.l1_at(), entries: self.l1_entries },
            refcount_table: self.at(1).range(self.refcount_table_clusters * self.geometry.cluster_bytes()),
            snapshots: Table::default(),
            incompatible: bit(options.data_file.is_some(), feature::EXTERNAL_DATA)
                | bit(zstd, feature::COMPRESSION)
                | bit(self.geometry.is_extended, feature::EXTENDED_L2),
            compatible: bit(options.is_lazy, feature::LAZY_REFCOUNTS),
            autoclear: bit(options.is_data_file_raw, feature::RAW_EXTERNAL_DATA),
            compression: options.compression,
            header_bytes: if self.geometry.version == 2 { V2_BYTES } else { V3_BYTES },
            // The compression type, padded.
            more_fields: if self.geometry.version == 2 {
                vec![]
            } else {
                vec![u8::from(zstd), 0, 0, 0, 0, 0, 0, 0]
            },
            parent_name_at: HostOffset::new(0),
            parent_name: None,
            extensions: extensions(options, creation.parent.as_ref()),
        };
        if let Some(parent) = &creation.parent {
            check_name(&parent.name)?;
            change::check_misread(parent.is_misread, self.geometry.version)?;
            header.incompatible |= bit(parent.is_misread, feature::MISREAD_PARENT);
            header.parent_name = Some(parent.name.clone());
        }
        place_name(&mut header)?;
        Ok(header)
    }

    fn write(&self, file: &dyn File, options: &Options, header: &Header) -> Result<()> {
        let metadata = HostRange::between(HostOffset::new(0), self.data_at());
        if file.bytes()? > 0 {
            file.zero(metadata, Kept::Space)?;
        }
        if !file.is_device() {
            file.set_bytes(self.end().bytes())?;
        }
        let all = HostRange::between(HostOffset::new(0), self.end());
        let data = HostRange::between(self.data_at(), self.end());
        match options.preallocation {
            Preallocation::Off | Preallocation::Metadata => {}
            Preallocation::Space => file.allocate(all)?,
            Preallocation::Full => write_zeros(file, data)?,
        }
        self.write_refcounts(file)?;
        if self.l2_tables > 0 {
            self.write_mapping(file, options)?;
        }
        file.write_at(HostOffset::new(0), &header.to_bytes())
    }

    fn write_refcounts(&self, file: &dyn File) -> Result<()> {
        let unit = self.geometry.cluster_bytes();
        let blocks = (0..self.refcount_blocks).map(|nth| self.blocks_at().plus(nth * unit).bytes());
        let table: Vec<u8> = blocks.flat_map(u64::to_be_bytes).collect();
        file.write_at(self.at(1), &table)?;
        let per_block = self.geometry.refcounts_per_block();
        for nth in 0..self.refcount_blocks {
            let used = (self.clusters() - nth * per_block).min(per_block);
            let mut block = vec![0; units::index(unit)];
            (0..used).for_each(|n| counter::write(&mut block, self.geometry.refcount_order, n, 1));
            file.write_at(self.blocks_at().plus(nth * unit), &block)?;
        }
        Ok(())
    }

    /// Maps every guest cluster: to its place in this file, or to the same place in the data file.
    ///
    /// With subclusters the space is there but none is in use: they go on reading from below.
    fn write_mapping(&self, file: &dyn File, options: &Options) -> Result<()> {
        let unit = self.geometry.cluster_bytes();
        let data_at = if options.data_file.is_some() { HostOffset::new(0) } else { self.data_at() };
        let sole_owner = 1 << 63;
        let tables = (0..self.l2_tables).map(|nth| self.l2_at().plus(nth * unit).bytes() | sole_owner);
        let l1: Vec<u8> = tables.flat_map(u64::to_be_bytes).collect();
        file.write_at(self.l1_at(), &l1)?;
        let clusters = self.geometry.clusters(self.disk_bytes);
        for nth in 0..self.l2_tables {
            let first = nth * self.geometry.l2_entries();
            let last = clusters.min(first + self.geometry.l2_entries());
            let mut table = Vec::with_capacity(units::index(unit));
            for cluster in first..last {
                let host = data_at.plus(cluster * unit).bytes();
                table.extend_from_slice(&(host | sole_owner).to_be_bytes());
                if self.geometry.is_extended {
                    table.extend_from_slice(&[0; 8]);
                }
            }
            file.write_at(self.l2_at().plus(nth * unit), &table)?;
        }
        Ok(())
    }
}

fn extensions(options: &Options, parent: Option<&ParentName>) -> Vec<Extension> {
    let mut list = Vec::new();
    if let Some(format) = parent.and_then(|p| p.format.as_ref()) {
        list.push(Extension { kind: extension::BACKING_FORMAT, bytes: format.clone().into_bytes() });
    }
    if let Some(name) = &options.data_file {
        list.push(Extension { kind: extension::DATA_FILE, bytes: name.clone() });
    }
    if options.geometry.version > 2 {
        list.push(Extension { kind: extension::FEATURE_NAMES, bytes: feature::name_table() });
    }
    list
}

/// Refuses a parent's name that no header can hold.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
        return Err(Error::invalid(format!(
            "a parent's name of {} bytes: it must have 1 to {NAME_BYTES_MAX}, none of them NUL",
            name.len()
        )));
    }
    Ok(())
}

/// Finds a place for the parent's name; small clusters go without the feature name table and the gap.
fn place_name(header: &mut Header) -> Result<()> {
    let unit = header.geometry.cluster_bytes();
    let name_bytes = header.parent_name.as_ref().map_or(0, |name| units::count(name.len()));
    let end = |header: &Header| header.header_bytes + extension::list_bytes(&header.extensions);
    // Small clusters keep their room for names and the record.
    if unit < 4096 {
        header.extensions.retain(|e| e.kind != extension::FEATURE_NAMES);
    }
    let end = end(header);
    if end + name_bytes > unit {
        return Err(Error::invalid(
            "the names do not fit the first cluster (a larger cluster_size has room)",
        ));
    }
    if name_bytes > 0 {
        let wide = end + GAP_BYTES;
        header.parent_name_at = HostOffset::new(if wide + name_bytes > unit { end } else { wide });
    }
    Ok(())
}

fn size_data_file(data_file: &Arc<dyn File>, options: &Options, disk_bytes: u64) -> Result<()> {
    let all = HostOffset::new(0).range(disk_bytes);
    if !data_file.is_device() {
        // What the file held before is not this disk's.
        data_file.set_bytes(0)?;
        data_file.set_bytes(disk_bytes)?;
    }
    match options.preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Space => data_file.allocate(all)?,
        Preallocation::Full => write_zeros(&**data_file, all)?,
    }
    Ok(())
}

fn write_zeros(file: &dyn File, range: HostRange) -> Result<()> {
    let zeros = vec![0; units::index(ZEROS_BYTES.min(range.bytes))];
    for piece in range.pieces(ZEROS_BYTES) {
        file.write_at(piece.start, zeros.get(..units::index(piece.bytes)).unwrap_or_default())?;
    }
    Ok(())
}
