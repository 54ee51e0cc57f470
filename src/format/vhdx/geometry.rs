//! Where things are on a VHDX disk: blocks, chunks, entries of the block allocation table.
//!
//! ```text
//! BAT:  | payload 0 .. payload r-1 | bitmap 0 | payload r .. payload 2r-1 | bitmap 1 | ...      r = chunk ratio
//! ```
//! A sector bitmap block has 2^23 bits, one a logical sector: it stands for a *chunk* of `r` payload blocks.

use crate::base::{GuestOffset, GuestRange};

/// The unit of every place in the file (MS-VHDX 2.1).
pub(super) const MIB: u64 = 1 << 20;
/// The largest disk (MS-VHDX 2.6.2.2).
pub(super) const SIZE_MAX: u64 = 64 << 40;
/// Smallest payload block (MS-VHDX 2.6.2.1).
pub(super) const BLOCK_BYTES_MIN: u64 = MIB;
/// Largest payload block (MS-VHDX 2.6.2.1).
pub(super) const BLOCK_BYTES_MAX: u64 = 256 * MIB;
/// Bytes in a sector bitmap block (MS-VHDX 2.4).
pub(super) const BITMAP_BYTES: u64 = MIB;
/// Bytes in an entry of the block allocation table.
pub(super) const ENTRY_BYTES: u64 = 8;

/// The facts of a disk that never change while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes in a payload block: a power of two.
    pub(super) block_bytes: u64,
    /// Bytes in a logical sector: 512 or 4096.
    pub(super) sector_bytes: u64,
    /// Bytes in a physical sector, as the guest is told.
    pub(super) physical_bytes: u64,
    /// Whether blocks may be taken from the file ("fixed").
    pub(super) is_fixed: bool,
}

impl Geometry {
    /// Returns the payload blocks that one sector bitmap block stands for: 16 at least.
    pub(super) const fn chunk_ratio(self) -> u64 {
        (self.sector_bytes << 23) / self.block_bytes
    }

    /// Returns the payload blocks of a disk.
    pub(super) const fn blocks(self, size: u64) -> u64 {
        size.div_ceil(self.block_bytes)
    }

    /// Returns the entries that the table of such a disk has (MS-VHDX 2.5).
    pub(super) const fn entries(self, size: u64, has_parent: bool) -> u64 {
        let blocks = self.blocks(size);
        if has_parent {
            blocks.div_ceil(self.chunk_ratio()) * (self.chunk_ratio() + 1)
        } else {
            blocks + blocks.saturating_sub(1) / self.chunk_ratio()
        }
    }

    /// Returns the entry of a payload block.
    pub(super) const fn entry_of(self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// Returns the entry of the sector bitmap block that stands for a payload block.
    pub(super) const fn bitmap_entry_of(self, block: u64) -> u64 {
        block / self.chunk_ratio() * (self.chunk_ratio() + 1) + self.chunk_ratio()
    }

    /// Returns what an entry is for.
    pub(super) const fn entry_kind(self, entry: u64) -> EntryKind {
        let (chunk, nth) = (entry / (self.chunk_ratio() + 1), entry % (self.chunk_ratio() + 1));
        if nth == self.chunk_ratio() {
            EntryKind::Bitmap
        } else {
            EntryKind::Payload(chunk * self.chunk_ratio() + nth)
        }
    }

    /// Returns the block that `guest` lies in.
    pub(super) const fn block_of(self, guest: GuestOffset) -> u64 {
        guest.bytes() / self.block_bytes
    }

    /// Returns the guest bytes of a block, past the disk's end too.
    pub(super) const fn block(self, block: u64) -> GuestRange {
        GuestOffset::new(block * self.block_bytes).range(self.block_bytes)
    }

    /// Returns the bit of `guest` in its sector bitmap block.
    pub(super) const fn bit_of(self, guest: GuestOffset) -> u64 {
        guest.bytes() / self.sector_bytes % (BITMAP_BYTES * 8)
    }
}

/// What an entry of the table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// The payload block of that number.
    Payload(u64),
    /// A sector bitmap block.
    Bitmap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_entries_lie_between_those_of_the_chunks() {
        let geometry =
            Geometry { block_bytes: 256 * MIB, sector_bytes: 512, physical_bytes: 4096, is_fixed: false };
        assert_eq!(geometry.chunk_ratio(), 16);
        assert_eq!((geometry.entry_of(15), geometry.bitmap_entry_of(15)), (15, 16));
        assert_eq!((geometry.entry_of(16), geometry.bitmap_entry_of(16)), (17, 33));
        assert_eq!(geometry.entry_kind(16), EntryKind::Bitmap);
        assert_eq!(geometry.entry_kind(17), EntryKind::Payload(16));
        let size = 17 * 256 * MIB;
        assert_eq!((geometry.entries(size, false), geometry.entries(size, true)), (18, 34));
        assert_eq!(geometry.entries(0, false), 0);
    }
}
