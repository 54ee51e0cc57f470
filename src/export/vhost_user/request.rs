//! From a chain of descriptors to what is to be done: pure functions, so that any chain can be tried.

use super::wire::{self, RequestHeader, SECTOR_BYTES, Stretch, kind};
use crate::{
    base::{
        GuestOffset, GuestRange,
        units::{count, index},
    },
    io::Kept,
};
use vm_memory::{Address, GuestAddress};

/// Segments that a request's data may have: as many as fit a queue of 128 descriptors beside header and status.
pub(super) const DATA_SEGMENTS_MAX: u32 = 126;
/// Segments that a chain may have; drivers cut header and data as they like.
pub(super) const SEGMENTS_MAX: usize = 1024;
/// Stretches that one request may discard or zero.
pub(super) const STRETCHES_MAX: u32 = 32;
/// The longest of them, in sectors: 1 GiB.
pub(super) const STRETCH_SECTORS_MAX: u32 = 1 << 21;

/// A stretch of the guest's memory that a descriptor names. It may lie anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) at: GuestAddress,
    pub(super) bytes: u32,
    /// Whether it is the device that writes it.
    pub(super) is_writable: bool,
}

/// A chain whose parts are where they belong: what the guest says comes before what it wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes behind the header that the guest has written.
    pub(super) payload_bytes: u64,
    /// Bytes before the status that are for the answer.
    pub(super) room_bytes: u64,
    /// Where the status goes.
    pub(super) status_at: GuestAddress,
}

/// A chain that cannot be a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Misshapen {
    /// Where that can be said, if anywhere.
    pub(super) status_at: Option<GuestAddress>,
}

/// Finds the parts of a request; `is_whole` says whether the chain ended where its last descriptor says.
pub(super) fn shape(segments: &[Segment], is_whole: bool) -> Result<Shape, Misshapen> {
    let sum = |is_writable| {
        let wanted = segments.iter().filter(|one| one.is_writable == is_writable);
        // As many 32-bit lengths as a chain can have do not overflow.
        wanted.map(|one| u64::from(one.bytes)).sum::<u64>()
    };
    let last = segments.last().filter(|one| one.is_writable && one.bytes > 0);
    let status_at = last.and_then(|one| one.at.checked_add(u64::from(one.bytes) - 1));
    let is_ordered = segments.is_sorted_by_key(|one| one.is_writable);
    let payload_bytes = sum(false).checked_sub(count(RequestHeader::SIZE));
    match (payload_bytes, status_at) {
        (Some(payload_bytes), Some(status_at))
            if is_whole && is_ordered && segments.len() <= SEGMENTS_MAX =>
        {
            Ok(Shape { payload_bytes, room_bytes: sum(true) - 1, status_at })
        }
        _ => Err(Misshapen { status_at }),
    }
}

/// Returns the stretches of memory that hold `bytes` bytes of one direction, from the byte `from` of it on, in order.
pub(super) fn pieces(
    segments: &[Segment],
    is_writable: bool,
    from: u64,
    bytes: u64,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let end = from.saturating_add(bytes);
    let mut next = 0_u64;
    segments.iter().filter(move |one| one.is_writable == is_writable).filter_map(move |one| {
        let start = next;
        next += u64::from(one.bytes);
        let (first, last) = (start.max(from), next.min(end));
        let length = last.checked_sub(first).filter(|length| *length > 0)?;
        // Where this would overflow there is no memory either: the last address refuses the copy.
        let at = one.at.checked_add(first - start).unwrap_or(GuestAddress(u64::MAX));
        Some((at, index(length)))
    })
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The disk's size in bytes that a guest can use: whole sectors.
    pub(super) size: u64,
    pub(super) is_writable: bool,
}

/// A request that fits the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Read(GuestRange),
    Write(GuestRange),
    /// So many stretches follow, each to be checked for itself.
    Zero {
        stretches: u64,
        is_discard: bool,
    },
    Flush,
    Name,
}

/// Why a request is not done, as a status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It cannot be done so (`VIRTIO_BLK_S_IOERR`).
    Wrong,
    /// The device has no such request (`VIRTIO_BLK_S_UNSUPP`).
    Unknown,
}

/// Returns what a request asks for, if it may.
pub(super) fn check(header: &RequestHeader, shape: &Shape, terms: &Terms) -> Result<Task, Refusal> {
    let (payload_bytes, room_bytes) = (shape.payload_bytes, shape.room_bytes);
    let right = |task, is_right: bool| if is_right { Ok(task) } else { Err(Refusal::Wrong) };
    match header.kind {
        kind::IN => {
            let range = range(header.sector, room_bytes, terms)?;
            right(Task::Read(range), payload_bytes == 0)
        }
        kind::OUT => {
            let range = range(header.sector, payload_bytes, terms)?;
            right(Task::Write(range), terms.is_writable && room_bytes == 0)
        }
        kind::DISCARD | kind::WRITE_ZEROES => {
            let stretch_bytes = count(Stretch::SIZE);
            let stretches = payload_bytes / stretch_bytes;
            let is_sane =
                payload_bytes % stretch_bytes == 0 && (1..=u64::from(STRETCHES_MAX)).contains(&stretches);
            let task = Task::Zero { stretches, is_discard: header.kind == kind::DISCARD };
            right(task, is_sane && terms.is_writable && room_bytes == 0)
        }
        kind::FLUSH => right(Task::Flush, payload_bytes == 0 && room_bytes == 0),
        kind::GET_ID => right(Task::Name, payload_bytes == 0 && room_bytes >= count(wire::NAME_BYTES)),
        _ => Err(Refusal::Unknown),
    }
}

/// Returns what is to become of a stretch to be discarded or zeroed.
pub(super) fn check_stretch(
    stretch: &Stretch,
    is_discard: bool,
    terms: &Terms,
) -> Result<(GuestRange, Kept), Refusal> {
    let is_unmap = stretch.flags & wire::UNMAP != 0;
    if stretch.flags & !wire::UNMAP != 0 || (is_discard && is_unmap) {
        return Err(Refusal::Unknown);
    }
    if stretch.sectors > STRETCH_SECTORS_MAX {
        return Err(Refusal::Wrong);
    }
    let range = range(stretch.sector, u64::from(stretch.sectors) * SECTOR_BYTES, terms)?;
    Ok((range, if is_discard || is_unmap { Kept::Nothing } else { Kept::Space }))
}

/// Returns the range of whole sectors, if the disk has it.
fn range(sector: u64, bytes: u64, terms: &Terms) -> Result<GuestRange, Refusal> {
    let start = sector.checked_mul(SECTOR_BYTES).filter(|_| bytes.is_multiple_of(SECTOR_BYTES));
    let start = start.filter(|start| start.checked_add(bytes).is_some_and(|end| end <= terms.size));
    start.map(|start| GuestOffset::new(start).range(bytes)).ok_or(Refusal::Wrong)
}

#[cfg(test)]
mod tests;
