//! What stands in the guest's memory: numbers and records of virtio block devices (virtio 1.2, sections 2.7, 5.2 and 6).
//!
//! All integers are little-endian.

use crate::record;

/// The unit of all lengths and addresses of a block device, in bytes, whatever its sectors are.
pub(super) const SECTOR_BYTES: u64 = 512;
/// The length of the name that a guest can ask for, in bytes.
pub(super) const NAME_BYTES: usize = 20;

/// Feature bits (`VIRTIO_BLK_F_*`, `VIRTIO_F_*`, and the one of vhost-user itself).
pub(super) mod feature {
    pub(in super::super) const SEG_MAX: u64 = 1 << 2;
    pub(in super::super) const RO: u64 = 1 << 5;
    pub(in super::super) const BLK_SIZE: u64 = 1 << 6;
    pub(in super::super) const FLUSH: u64 = 1 << 9;
    pub(in super::super) const MQ: u64 = 1 << 12;
    pub(in super::super) const DISCARD: u64 = 1 << 13;
    pub(in super::super) const WRITE_ZEROES: u64 = 1 << 14;
    pub(in super::super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(in super::super) const EVENT_IDX: u64 = 1 << 29;
    pub(in super::super) const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub(in super::super) const VERSION_1: u64 = 1 << 32;
}

/// Kinds of requests (`VIRTIO_BLK_T_*`).
pub(super) mod kind {
    pub(in super::super) const IN: u32 = 0;
    pub(in super::super) const OUT: u32 = 1;
    pub(in super::super) const FLUSH: u32 = 4;
    pub(in super::super) const GET_ID: u32 = 8;
    pub(in super::super) const DISCARD: u32 = 11;
    pub(in super::super) const WRITE_ZEROES: u32 = 13;
}

/// The byte that ends a request (`VIRTIO_BLK_S_*`).
pub(super) mod status {
    pub(in super::super) const OK: u8 = 0;
    pub(in super::super) const IOERR: u8 = 1;
    pub(in super::super) const UNSUPP: u8 = 2;
}

/// The flag of a stretch to be zeroed whose space may go back (`VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`).
pub(super) const UNMAP: u32 = 1;

record! {
    /// What a request begins with (`struct virtio_blk_req`).
    pub(super) struct RequestHeader: LittleEndian, 16 bytes {
        0 => kind: u32,
        4 => reserved: u32,
        8 => sector: u64,
    }
}

record! {
    /// A stretch to be discarded or zeroed (`struct virtio_blk_discard_write_zeroes`).
    pub(super) struct Stretch: LittleEndian, 16 bytes {
        0 => sector: u64,
        8 => sectors: u32,
        12 => flags: u32,
    }
}

record! {
    /// What a guest reads of the device (`struct virtio_blk_config`); fields of features that are not offered are 0.
    pub(super) struct Config: LittleEndian, 60 bytes {
        /// The disk's size in units of [`SECTOR_BYTES`].
        0 => capacity: u64,
        8 => size_max: u32,
        /// Segments of one request's data.
        12 => seg_max: u32,
        16 => geometry: u32,
        /// The logical sector size in bytes.
        20 => blk_size: u32,
        24 => topology: u64,
        32 => writeback: u8,
        33 => unused0: u8,
        34 => num_queues: u16,
        36 => max_discard_sectors: u32,
        40 => max_discard_seg: u32,
        /// In units of [`SECTOR_BYTES`].
        44 => discard_sector_alignment: u32,
        48 => max_write_zeroes_sectors: u32,
        52 => max_write_zeroes_seg: u32,
        56 => write_zeroes_may_unmap: u8,
        57 => unused1: bytes 3,
    }
}
