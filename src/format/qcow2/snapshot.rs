//! Internal snapshots: the table that lists them (`qcow2.rst`, "Snapshots"). They are listed and counted,
//! never changed.

use super::header::{Header, SNAPSHOTS_MAX, Table};
use crate::{
    base::{Error, HostOffset, Result, error::InFile, units},
    format::Snapshot,
    io::File,
    record,
};

record! {
    /// The fixed part of a snapshot table entry (`qcow2.rst`, "Snapshots").
    struct Entry: BigEndian, 40 bytes {
        /// Where the snapshot's L1 table starts.
        0 => l1_at: u64,
        /// Entries in that table.
        8 => l1_entries: u32,
        /// Length of the ID.
        12 => id_bytes: u16,
        /// Length of the name.
        14 => name_bytes: u16,
        /// When it was taken: seconds since 1970.
        16 => seconds: u32,
        /// And nanoseconds.
        20 => nanoseconds: u32,
        /// How long the guest had run, in nanoseconds.
        24 => guest_ns: u64,
        /// Size of the machine's state, where the extra data does not say it.
        32 => machine_bytes: u32,
        /// Length of the extra data.
        36 => extra_bytes: u32,
    }
}

/// The longest table that is read, in bytes.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// The most extra data that qemu accepts in an entry, in bytes.
const EXTRA_BYTES_MAX: u32 = 1024;

/// The least extra data in an entry of version 3, in bytes.
const EXTRA_BYTES_MIN: usize = 16;

/// A snapshot as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// What people see of it.
    pub(super) snapshot: Snapshot,
    /// Its L1 table (8 bytes an entry), as stated: not checked.
    pub(super) l1: Table,
    /// Whether it lacks extra data that version 3 demands: the sizes of machine state and disk.
    pub(super) is_incomplete: bool,
}

/// The snapshots of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshots {
    /// In the table's order.
    pub(super) list: Vec<Stored>,
    /// Length of the table in bytes.
    pub(super) table_bytes: u64,
}

/// Reads the snapshot table; `Corrupt` if an entry passes the file's end or is longer than qemu accepts.
pub(super) fn read(file: &dyn File, header: &Header) -> Result<Snapshots> {
    read_table(file, header).in_file(file.path())
}

fn read_table(file: &dyn File, header: &Header) -> Result<Snapshots> {
    let file_bytes = file.bytes()?;
    let start = header.snapshots.at;
    let mut at = start;
    let mut list = Vec::new();
    for nth in 0..header.snapshots.entries.min(SNAPSHOTS_MAX) {
        let wrong = |why: &str| Error::corrupt(format!("snapshot table entry {nth} at {at:#x} {why}"));
        if at.plus(Entry::SIZE as u64).bytes() > file_bytes {
            return Err(wrong("passes the file's end"));
        }
        let mut fixed = [0; Entry::SIZE];
        file.read_at(at, &mut fixed)?;
        let entry = Entry::parse(&fixed);
        if entry.extra_bytes > EXTRA_BYTES_MAX {
            return Err(wrong("has too much extra data"));
        }
        let extra_bytes = units::index(entry.extra_bytes.into());
        let (id_bytes, name_bytes) = (usize::from(entry.id_bytes), usize::from(entry.name_bytes));
        let mut rest = vec![0; extra_bytes + id_bytes + name_bytes];
        let end = at.plus(units::count(Entry::SIZE + rest.len()));
        if end.bytes() > file_bytes {
            return Err(wrong("passes the file's end"));
        }
        if end.since(start) > TABLE_BYTES_MAX {
            return Err(wrong("is past the longest table that is read"));
        }
        file.read_at(at.plus(Entry::SIZE as u64), &mut rest)?;
        list.push(stored(&entry, &rest, header.disk_bytes));
        at = HostOffset::new(end.bytes().next_multiple_of(8));
    }
    Ok(Snapshots { list, table_bytes: at.since(start) })
}

fn stored(entry: &Entry, rest: &[u8], disk_bytes: u64) -> Stored {
    let (extra, names) = rest.split_at_checked(units::index(entry.extra_bytes.into())).unwrap_or_default();
    let (id, name) = names.split_at_checked(usize::from(entry.id_bytes)).unwrap_or_default();
    let word =
        |at: usize| extra.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_be_bytes(*b));
    Stored {
        snapshot: Snapshot {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            taken_ns: u64::from(entry.seconds) * 1_000_000_000 + u64::from(entry.nanoseconds),
            guest_ns: entry.guest_ns,
            guest_instructions: word(16).filter(|count| *count != u64::MAX),
            machine_bytes: word(0).unwrap_or_else(|| entry.machine_bytes.into()),
            size: word(8).unwrap_or(disk_bytes),
        },
        l1: Table { at: HostOffset::new(entry.l1_at), entries: entry.l1_entries.into() },
        is_incomplete: extra.len() < EXTRA_BYTES_MIN,
    }
}
