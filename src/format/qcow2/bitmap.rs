//! Persistent dirty bitmaps: the directory that lists them (`qcow2.rst`, "Bitmaps"), and marking as stale
//! what is not kept up.

mod edit;
mod kept;

pub(super) use kept::Marks;

use super::{
    extension::{self, BitmapsExtension},
    feature,
    header::{Header, Table},
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, error::InFile, units},
    format::Bitmap,
    io::File,
    record,
};

record! {
    /// The fixed part of a bitmap directory entry (`qcow2.rst`, "Bitmap directory").
    struct Entry: BigEndian, 24 bytes {
        /// Where the bitmap table starts.
        0 => table_at: u64,
        /// Entries in that table.
        8 => table_entries: u32,
        /// See the constants.
        12 => flags: u32,
        /// 1: dirty tracking.
        16 => kind: u8,
        /// A bit stands for `1 << granularity_bits` bytes.
        17 => granularity_bits: u8,
        /// Length of the name.
        18 => name_bytes: u16,
        /// Length of the extra data.
        20 => extra_bytes: u32,
    }
}

/// Some program has the bitmap in memory: what is stored is stale.
const IN_USE: u32 = 1 << 0;
/// The bitmap records every write, by whatever program.
const AUTO: u32 = 1 << 1;
/// The flags that are defined.
const KNOWN_FLAGS: u32 = 7;
/// The place of the flags in an entry.
const FLAGS_AT: u64 = 12;
/// The most bitmaps that qemu opens.
const BITMAPS_MAX: u32 = 65_535;
/// The longest directory that is read, in bytes.
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;
/// The most bitmap data that qemu accepts, in bytes.
const DATA_BYTES_MAX: u64 = 512 << 20;

/// A bitmap as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// What people see of it.
    pub(super) bitmap: Bitmap,
    /// Its table (8 bytes an entry).
    pub(super) table: Table,
    /// Where its directory entry is.
    at: HostOffset,
    flags: u32,
}

/// Returns where the bitmap directory is; `None` if the image has no bitmaps that are to be believed.
pub(super) fn directory(header: &Header) -> Result<Option<(HostRange, u32)>> {
    let Some(bytes) = header.extension(extension::BITMAPS) else { return Ok(None) };
    if !header.has_autoclear(feature::BITMAPS) {
        return Ok(None);
    }
    let wrong = |why: String| Error::corrupt(format!("bitmaps extension {why}"));
    let said = BitmapsExtension::parse_start(bytes).filter(|_| bytes.len() == BitmapsExtension::SIZE);
    let said = said.ok_or_else(|| wrong(format!("has {} bytes, not 24", bytes.len())))?;
    let range = HostOffset::new(said.directory_at).range(said.directory_bytes);
    if said.reserved != 0 || said.bitmaps == 0 || said.bitmaps > BITMAPS_MAX {
        return Err(wrong(format!("says {} bitmaps", said.bitmaps)));
    }
    if range.bytes > DIRECTORY_BYTES_MAX {
        return Err(wrong(format!("says a directory of {} bytes", range.bytes)));
    }
    if range.start != range.start.floor(header.geometry.cluster_bytes()) {
        return Err(wrong(format!("says a directory at {:#x}, within a cluster", range.start)));
    }
    Ok(Some((range, said.bitmaps)))
}

/// Reads the bitmap directory; `Corrupt` if an entry passes its end or says what cannot be.
pub(super) fn read(file: &dyn File, header: &Header) -> Result<Vec<Stored>> {
    read_directory(file, header).in_file(file.path())
}

fn read_directory(file: &dyn File, header: &Header) -> Result<Vec<Stored>> {
    let Some((range, bitmaps)) = directory(header)? else { return Ok(Vec::new()) };
    let file_bytes = file.bytes()?;
    if range.end().bytes() > file_bytes {
        return Err(Error::corrupt(format!(
            "bitmap directory ends at {:#x}, past the file's end",
            range.end()
        )));
    }
    let mut bytes = vec![0; units::index(range.bytes)];
    file.read_at(range.start, &mut bytes)?;
    let mut list = Vec::new();
    let mut from = 0;
    for nth in 0..bitmaps {
        let at = range.start.plus(units::count(from));
        let wrong = |why: &str| Error::corrupt(format!("bitmap directory entry {nth} at {at:#x} {why}"));
        let entry = bytes.get(from..).and_then(Entry::parse_start);
        let entry = entry.ok_or_else(|| wrong("passes the directory's end"))?;
        if let Some(why) = flaw(&entry, header) {
            return Err(wrong(why));
        }
        let name_from = from + Entry::SIZE + units::index(entry.extra_bytes.into());
        let name_end = name_from + usize::from(entry.name_bytes);
        let name = bytes.get(name_from..name_end).ok_or_else(|| wrong("passes the directory's end"))?;
        list.push(Stored {
            bitmap: Bitmap {
                name: String::from_utf8_lossy(name).into_owned(),
                granularity_bytes: 1 << entry.granularity_bits,
                is_in_use: entry.flags & IN_USE != 0,
                is_auto: entry.flags & AUTO != 0,
            },
            table: Table { at: HostOffset::new(entry.table_at), entries: entry.table_entries.into() },
            at,
            flags: entry.flags,
        });
        from = name_end.next_multiple_of(8);
    }
    if from != bytes.len() {
        return Err(Error::corrupt("bitmap directory is longer than its entries"));
    }
    Ok(list)
}

/// Says what is wrong with an entry, if something is.
fn flaw(entry: &Entry, header: &Header) -> Option<&'static str> {
    let unit = header.geometry.cluster_bytes();
    let data_bytes = u64::from(entry.table_entries) * unit;
    let is_sound = [
        (entry.kind == 1, "is not a dirty tracking bitmap"),
        (entry.flags & !KNOWN_FLAGS == 0, "has reserved flags"),
        ((9..=31).contains(&entry.granularity_bits), "has a granularity outside 512 bytes to 2 GiB"),
        ((1..=1023).contains(&entry.name_bytes), "has a name outside 1 to 1023 bytes"),
        (entry.extra_bytes == 0, "has extra data"),
        (
            entry.table_at != 0 && entry.table_at.is_multiple_of(unit),
            "has its table within a cluster or at 0",
        ),
        (i64::try_from(entry.table_at).is_ok(), "has its table past 2^63"),
        (entry.table_entries != 0 && data_bytes <= DATA_BYTES_MAX, "has a table of an impossible length"),
    ];
    if let Some((_, why)) = is_sound.iter().find(|(is_so, _)| !is_so) {
        return Some(*why);
    }
    let covers = u128::from(data_bytes * 8) << entry.granularity_bits;
    let is_short = entry.flags & IN_USE == 0 && covers < u128::from(header.disk_bytes);
    is_short.then_some("is shorter than the disk")
}

/// Makes durable that bitmaps are stale: whoever marked them may have been killed before that was.
pub(super) fn settle_stale(file: &dyn File, header: &Header) -> Result<()> {
    let is_stale = read(file, header)?.iter().any(|stored| stored.bitmap.is_in_use);
    if is_stale { file.flush().in_file(file.path()) } else { Ok(()) }
}

/// Marks bitmaps as stale (in use), durable: those that ought to record writes, because they are not recorded
/// here; every one before a change of size, because a bitmap is as long as its disk.
pub(super) fn mark_stale(file: &dyn File, header: &Header, is_resize: bool) -> Result<()> {
    let mut recording = read(file, header)?;
    recording.retain(|s| s.bitmap.is_auto || is_resize);
    for stored in recording.iter().filter(|s| !s.bitmap.is_in_use) {
        file.write_at(stored.at.plus(FLAGS_AT), &(stored.flags | IN_USE).to_be_bytes())?;
    }
    // Those that were stale before may be so in the host's cache alone: their flush may have failed.
    if recording.is_empty() { Ok(()) } else { file.flush() }
}

#[cfg(test)]
mod tests;
