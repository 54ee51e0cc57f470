//! How large a new image will be: qemu's own sums, so that both tools give one answer.

use super::{
    header::{Geometry, L1_BYTES_MAX},
    options::{Options, Preallocation},
};
use crate::{
    base::{Error, Result},
    format::{Creation, Measure},
};

/// Sums up what an image made with these options needs; `Invalid` for options that do not fit.
pub(super) fn measure(creation: &Creation) -> Result<Measure> {
    let options = Options::parse(creation)?;
    let geometry = options.geometry;
    let cluster = geometry.cluster_bytes();
    let disk_bytes = creation.size.next_multiple_of(cluster);
    let l2_entries = (disk_bytes / cluster).next_multiple_of(geometry.l2_entries());
    let l2_bytes = l2_entries * geometry.l2_entry_bytes();
    let l1_bytes = (l2_bytes / cluster).next_multiple_of(cluster / 8) * 8;
    if l1_bytes > L1_BYTES_MAX {
        let what = format!("a disk of {} bytes is too large for a cluster_size of {cluster}", creation.size);
        return Err(Error::invalid(what));
    }
    let tables = cluster + l2_bytes + l1_bytes;
    let fixed_bytes = tables + refcount_bytes(geometry, (tables + disk_bytes) / cluster);
    let is_whole = matches!(options.preallocation, Preallocation::Space | Preallocation::Full);
    let is_alone = options.data_file.is_none();
    let has_bitmaps = geometry.version > 2;
    let (packs, can_be_layer) = (is_alone, is_alone);
    Ok(Measure { unit: cluster, fixed_bytes, disk_bytes, is_whole, has_bitmaps, packs, can_be_layer })
}

/// Returns the length of refcount table and blocks for `clusters` other clusters.
fn refcount_bytes(geometry: Geometry, clusters: u64) -> u64 {
    let (mut blocks, mut table) = (0, 0);
    // They count themselves, too; a few rounds settle it.
    loop {
        let more = (clusters + table + blocks).div_ceil(geometry.refcounts_per_block());
        let wider = more.div_ceil(geometry.cluster_bytes() / 8);
        if (more, wider) == (blocks, table) {
            return (blocks + table) * geometry.cluster_bytes();
        }
        (blocks, table) = (more, wider);
    }
}
