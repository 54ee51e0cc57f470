//! Entries of the log (MS-VHDX 2.3.1): new bytes of whole 4 KiB pages of metadata.
//!
//! ```text
//! | header, descriptors | more descriptors | page 0 | page 1 | ...      each box 4 KiB
//! ```
//! A page's first eight bytes and last four stand in its descriptor; the sequence number of the entry takes their
//! place, so that a torn page shows.

use super::{bytes::checksum, geometry::MIB};
use crate::{
    base::{
        HostOffset,
        units::{count, index},
    },
    record,
};
use uuid::Uuid;

/// Bytes in a page of the log.
pub(super) const PAGE_BYTES: u64 = count(PAGE);
/// The same, for what is in memory.
pub(super) const PAGE: usize = 4096;
/// What an entry begins with.
pub(super) const ENTRY_SIGNATURE: [u8; 4] = *b"loge";
/// A descriptor of a page.
pub(super) const DATA_SIGNATURE: [u8; 4] = *b"desc";
/// A descriptor of zeros.
pub(super) const ZERO_SIGNATURE: [u8; 4] = *b"zero";
/// What a page begins with.
pub(super) const PAGE_SIGNATURE: [u8; 4] = *b"data";

record! {
    /// What an entry begins with (MS-VHDX 2.3.1.1).
    pub(super) struct EntryHeader: LittleEndian, 64 bytes {
        /// "loge".
        0 => signature: bytes 4,
        /// CRC-32C of the entry, this field being zero.
        4 => checksum: u32,
        /// Length of the entry: whole pages.
        8 => bytes: u32,
        /// Where in the log the oldest entry is that is still needed.
        12 => tail: u32,
        /// One more than that of the entry before; not 0.
        16 => sequence: u64,
        /// Descriptors.
        24 => descriptors: u32,
        /// 0.
        28 => reserved: u32,
        /// The header's, if the entry counts.
        32 => log_guid: bytes 16,
        /// The file is at least so long; a shorter one was cut.
        48 => flushed_bytes: u64,
        /// Everything that the file holds lies before this.
        56 => last_bytes: u64,
    }
}

record! {
    /// A page with new bytes (MS-VHDX 2.3.1.3).
    pub(super) struct DataDescriptor: LittleEndian, 32 bytes {
        /// "desc".
        0 => signature: bytes 4,
        /// The page's last bytes.
        4 => trailing: bytes 4,
        /// The page's first bytes.
        8 => leading: bytes 8,
        /// Where the page goes.
        16 => at: u64,
        /// The entry's.
        24 => sequence: u64,
    }
}

record! {
    /// Pages that become zeros (MS-VHDX 2.3.1.2).
    pub(super) struct ZeroDescriptor: LittleEndian, 32 bytes {
        /// "zero".
        0 => signature: bytes 4,
        /// 0.
        4 => reserved: u32,
        /// How many bytes: whole pages.
        8 => bytes: u64,
        /// Where they are.
        16 => at: u64,
        /// The entry's.
        24 => sequence: u64,
    }
}

/// New bytes of a page of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Where it goes: a multiple of [`PAGE_BYTES`].
    pub(super) at: HostOffset,
    /// What it says: [`PAGE_BYTES`].
    pub(super) bytes: Vec<u8>,
}

/// What an entry says besides its pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// The log's.
    pub(super) log_guid: Uuid,
    /// The entry's number, from 1.
    pub(super) sequence: u64,
    /// Where in the log the oldest entry is that is needed.
    pub(super) tail: u64,
    /// How long the file is, durably.
    pub(super) flushed_bytes: u64,
    /// How long it is.
    pub(super) file_bytes: u64,
}

/// Returns the pages of the log that hold the header and so many descriptors.
pub(super) const fn descriptor_pages(descriptors: u64) -> u64 {
    (descriptors + 2).div_ceil(128)
}

/// Returns the length of an entry with so many pages, in bytes.
pub(super) const fn entry_bytes(pages: u64) -> u64 {
    (descriptor_pages(pages) + pages) * PAGE_BYTES
}

/// Returns the bytes of an entry.
pub(super) fn encode(pages: &[Page], stamp: Stamp) -> Vec<u8> {
    let total = index(entry_bytes(count(pages.len())));
    let header = EntryHeader {
        signature: ENTRY_SIGNATURE,
        checksum: 0,
        // A part of a log, whose length is such a field.
        bytes: u32::try_from(total).unwrap_or(u32::MAX),
        tail: u32::try_from(stamp.tail).unwrap_or(u32::MAX),
        sequence: stamp.sequence,
        descriptors: u32::try_from(pages.len()).unwrap_or(u32::MAX),
        reserved: 0,
        log_guid: stamp.log_guid.to_bytes_le(),
        flushed_bytes: stamp.flushed_bytes / MIB * MIB,
        last_bytes: stamp.file_bytes.next_multiple_of(MIB),
    };
    let mut entry = Vec::with_capacity(total);
    entry.extend(header.to_bytes());
    for page in pages {
        let descriptor = DataDescriptor {
            signature: DATA_SIGNATURE,
            trailing: page.bytes.last_chunk().copied().unwrap_or_default(),
            leading: page.bytes.first_chunk().copied().unwrap_or_default(),
            at: page.at.bytes(),
            sequence: stamp.sequence,
        };
        entry.extend(descriptor.to_bytes());
    }
    entry.resize(index(descriptor_pages(count(pages.len())) * PAGE_BYTES), 0);
    let (low, high) = (stamp.sequence & u64::from(u32::MAX), stamp.sequence >> 32);
    let half = |half: u64| u32::try_from(half).unwrap_or(0).to_le_bytes();
    for page in pages {
        entry.extend(PAGE_SIGNATURE);
        entry.extend(half(high));
        entry.extend(page.bytes.get(8..index(PAGE_BYTES) - 4).unwrap_or_default());
        entry.extend(half(low));
    }
    let checksum = checksum(&entry);
    let stamped = EntryHeader { checksum, ..header }.to_bytes();
    entry.splice(..EntryHeader::SIZE, stamped);
    entry
}
