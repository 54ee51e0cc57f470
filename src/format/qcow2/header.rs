//! The header: the spec's table, and what is trusted after it was checked.

use crate::record;

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
