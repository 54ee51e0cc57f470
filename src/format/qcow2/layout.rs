//! A header's bytes: which ones it is made of, and where they lie in the first cluster.
//!
//! ```text
//! | fields | extensions, END |  room  | parent's name |  room  |
//! 0        header_bytes               parent_name_at           cluster
//! ```

use super::{
    extension,
    header::{Header, HeaderV2, HeaderV3, V2_BYTES, V3_BYTES},
};
use crate::base::units;
use std::ops::Range;

/// The unit that a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;

impl Header {
    /// Returns where the extensions begin when the header is laid out afresh.
    ///
    /// A header longer than a sector whose fields beyond those known here are zero is one that was on its way
    /// to another place (see `change`): a field of zeros means the same as none.
    pub(super) fn own_bytes(&self) -> u64 {
        let known = units::index(V3_BYTES);
        let fields = self.fields();
        let is_moving = fields.len() == SECTOR
            && units::index(self.header_bytes) > SECTOR
            && fields.get(known..).is_some_and(|more| more.iter().all(|byte| *byte == 0));
        if is_moving { V3_BYTES } else { self.header_bytes }
    }

    /// Returns the header's own fields, of which only the first sector is ever written.
    pub(super) fn fields(&self) -> Vec<u8> {
        let low = |n: u64| n.to_be_bytes().last_chunk().map_or(0, |b| u32::from_be_bytes(*b));
        let name_bytes = self.parent_name.as_ref().map_or(0, |name| units::count(name.len()));
        let v2 = HeaderV2 {
            magic: u32::from_be_bytes(super::MAGIC),
            version: self.geometry.version,
            backing_name_at: self.parent_name_at.bytes(),
            backing_name_bytes: low(name_bytes),
            cluster_bits: self.geometry.cluster_bits,
            disk_bytes: self.disk_bytes,
            encryption: 0,
            l1_entries: low(self.l1.entries),
            l1_at: self.l1.at.bytes(),
            refcount_table_at: self.refcount_table.start.bytes(),
            refcount_table_clusters: low(self.geometry.clusters(self.refcount_table.bytes)),
            snapshots: low(self.snapshots.entries),
            snapshots_at: self.snapshots.at.bytes(),
        };
        let mut bytes = v2.to_bytes().to_vec();
        if self.header_bytes > V2_BYTES {
            let v3 = HeaderV3 {
                incompatible: self.incompatible,
                compatible: self.compatible,
                autoclear: self.autoclear,
                refcount_order: self.geometry.refcount_order,
                header_bytes: low(self.header_bytes),
            };
            bytes.extend_from_slice(&v3.to_bytes());
            bytes.extend_from_slice(&self.more_fields);
            bytes.resize(units::index(self.header_bytes), 0);
        }
        bytes.truncate(SECTOR);
        bytes
    }

    /// Returns the pieces that the header consists of: where, and which bytes.
    pub(super) fn pieces(&self) -> Vec<(usize, Vec<u8>)> {
        let list = (units::index(self.header_bytes), extension::write_list(&self.extensions));
        let name = self.parent_name.clone().unwrap_or_default();
        vec![(0, self.fields()), list, (units::index(self.parent_name_at.bytes()), name)]
    }

    /// Returns the places of those pieces.
    pub(super) fn places(&self) -> Vec<Range<usize>> {
        self.pieces().into_iter().map(|(at, bytes)| at..at + bytes.len()).collect()
    }

    /// Returns where the last piece ends.
    pub(super) fn places_end(&self) -> u64 {
        self.places().into_iter().map(|place| units::count(place.end)).max().unwrap_or(0)
    }

    /// Returns the first cluster up to where the header ends, with zeros between the pieces.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; units::index(self.places_end())];
        self.lay(&mut bytes);
        bytes
    }

    /// Writes the pieces into a copy of the first cluster that is long enough.
    pub(super) fn lay(&self, cluster: &mut [u8]) {
        for (at, bytes) in self.pieces() {
            if let Some(place) = cluster.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
    }
}
