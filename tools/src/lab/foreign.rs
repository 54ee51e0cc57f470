//! What only other programs do to a qcow2 image: clearing the autoclear bits that they do not know, taking an
//! internal snapshot, and going to it (`qcow2.rst`, "Snapshots"). Small images with refcounts of 16 bits and entries without subclusters; nobody looks on.

use deltachain::{
    base::{
        Error, HostOffset, Result,
        units::{SECTOR_BYTES, count, index},
    },
    io::File,
};
use std::collections::BTreeMap;

/// Places of the header's fields.
const CLUSTER_BITS_AT: u64 = 20;
const SIZE_AT: u64 = 24;
const L1_SIZE_AT: u64 = 36;
const L1_AT: u64 = 40;
const REFCOUNTS_AT: u64 = 48;
const SNAPSHOTS_AT: u64 = 60;
const AUTOCLEAR_AT: u64 = 88;

const COPIED: u64 = 1 << 63;
const PACKED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn bytes<const N: usize>(file: &dyn File, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_at(HostOffset::new(at), &mut bytes)?;
    Ok(bytes)
}

fn word(file: &dyn File, at: u64) -> Result<u64> {
    Ok(u64::from_be_bytes(bytes(file, at)?))
}

fn half(file: &dyn File, at: u64) -> Result<u32> {
    Ok(u32::from_be_bytes(bytes(file, at)?))
}

fn put(file: &dyn File, at: u64, bytes: &[u8]) -> Result<()> {
    file.write_at(HostOffset::new(at), bytes)
}

/// Opens the image for writing as a program that knows no autoclear bits does.
pub(crate) fn distrust(file: &dyn File) -> Result<()> {
    put(file, AUTOCLEAR_AT, &[0; 8])
}

/// Takes the image's first snapshot: its L1 table is copied, and all that it reaches is shared from here on.
pub(crate) fn take_snapshot(file: &dyn File) -> Result<()> {
    let cluster = 1_u64 << half(file, CLUSTER_BITS_AT)?;
    let (entries, l1) = (half(file, L1_SIZE_AT)?, word(file, L1_AT)?);
    let mut references: BTreeMap<u64, u16> = BTreeMap::new();
    let mut share = |from: u64, bytes: u64| {
        for at in from / cluster..(from + bytes).div_ceil(cluster) {
            *references.entry(at).or_default() += 1;
        }
    };
    for table_at in (0..u64::from(entries)).map(|nth| l1 + nth * 8) {
        let table = word(file, table_at)?;
        if table & OFFSET == 0 {
            continue;
        }
        share(table & OFFSET, cluster);
        put(file, table_at, &(table & !COPIED).to_be_bytes())?;
        for at in (0..cluster / 8).map(|nth| (table & OFFSET) + nth * 8) {
            let entry = word(file, at)?;
            if entry & PACKED != 0 {
                let bits = 62 - (cluster.trailing_zeros() - 8);
                let start = entry & ((1 << bits) - 1);
                let sectors = 1 + ((entry & !(COPIED | PACKED)) >> bits);
                share(start, start / SECTOR_BYTES * SECTOR_BYTES + sectors * SECTOR_BYTES - start);
            } else if entry & OFFSET != 0 {
                share(entry & OFFSET, cluster);
                put(file, at, &(entry & !COPIED).to_be_bytes())?;
            }
        }
    }
    let end = file.bytes()?.next_multiple_of(cluster);
    let l1_bytes = u64::from(entries) * 8;
    let table = end + l1_bytes.next_multiple_of(cluster);
    let mut copy = vec![0; index(l1_bytes)];
    file.read_at(HostOffset::new(l1), &mut copy)?;
    put(file, end, &copy)?;
    put(file, table, &entry(end, entries, word(file, SIZE_AT)?))?;
    file.set_bytes(table + cluster)?;
    share(end, table + cluster - end);
    for (at, more) in references {
        count_more(file, cluster, at, more)?;
    }
    put(file, SNAPSHOTS_AT, &[1_u32.to_be_bytes().as_slice(), &table.to_be_bytes()].concat())
}

/// The snapshot table's one entry.
fn entry(l1: u64, entries: u32, size: u64) -> Vec<u8> {
    let mut bytes = [l1.to_be_bytes().as_slice(), &entries.to_be_bytes()].concat();
    // Lengths of its ID and its name (one byte each), times, and 16 bytes of further data.
    bytes.extend([0, 1, 0, 1]);
    bytes.resize(36, 0);
    bytes.extend(16_u32.to_be_bytes());
    bytes.extend(0_u64.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(*b"1s");
    bytes
}

fn count_more(file: &dyn File, cluster: u64, at: u64, more: u16) -> Result<()> {
    let per_block = cluster / 2;
    let block = word(file, word(file, REFCOUNTS_AT)? + at / per_block * 8)? & OFFSET;
    if block == 0 {
        return Err(Error::invalid(format!("cluster {at} is not counted by any block")));
    }
    let place = block + at % per_block * count(size_of::<u16>());
    let old = u16::from_be_bytes(bytes(file, place)?);
    put(file, place, &(old + more).to_be_bytes())
}

/// Makes the header show what the first snapshot shows; good for reading only.
pub(crate) fn go_to_snapshot(file: &dyn File) -> Result<()> {
    let table = word(file, SNAPSHOTS_AT + 4)?;
    let (l1, entries) = (word(file, table)?, half(file, table + 8)?);
    put(file, SIZE_AT, &word(file, table + 48)?.to_be_bytes())?;
    put(file, L1_SIZE_AT, &entries.to_be_bytes())?;
    put(file, L1_AT, &l1.to_be_bytes())
}
