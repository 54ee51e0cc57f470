//! The GUIDs of a VHDX header: one changes, durably, before the file does, the other before what the guest sees does
//! (MS-VHDX 2.2.2). Children know their parent by the latter, and a record in the image who wrote it last.

use crate::{
    history::History,
    log::{Expected, Log},
    mark::Mark,
};
use deltachain::{
    base::{
        HostOffset, HostRange, Result as Answer,
        units::{count, index},
    },
    format::Format,
    io::File,
};

/// Where the headers are.
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes in a header.
const HEADER_BYTES: usize = 4096;
/// Where the file goes on behind its headers and region tables.
const REST_AT: u64 = 1 << 20;

/// What a file says of its state, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    file_guid: [u8; 16],
    data_guid: [u8; 16],
    /// The sum of all behind the header.
    sum: u32,
    bytes: u64,
}

impl Stamp {
    /// Reads it; `None` if there is no whole header.
    pub(crate) fn read(file: &dyn File) -> Answer<Option<Self>> {
        let mut headers = Vec::new();
        for at in HEADERS_AT {
            let mut header = vec![0; HEADER_BYTES];
            file.read_at(HostOffset::new(at), &mut header)?;
            headers.extend(fields(&mut header));
        }
        // The one with the higher number counts.
        let Some((_, file_guid, data_guid)) = headers.into_iter().max() else { return Ok(None) };
        let bytes = file.bytes()?;
        let (mut sum, mut buf) = (0, vec![0; index(REST_AT)]);
        let rest = HostRange::between(HostOffset::new(REST_AT.min(bytes)), HostOffset::new(bytes));
        for piece in rest.pieces(REST_AT) {
            let part = buf.get_mut(..index(piece.bytes)).unwrap_or_default();
            file.read_at(piece.start, part)?;
            sum = crc32c::crc32c_append(sum, part);
        }
        Ok(Some(Self { file_guid, data_guid, sum, bytes }))
    }
}

/// Returns number, file's and data's GUID of a header whose sum is right.
fn fields(header: &mut [u8]) -> Option<(u64, [u8; 16], [u8; 16])> {
    let stored = u32::from_le_bytes(*header.get(4..8)?.first_chunk()?);
    header.get_mut(4..8)?.fill(0);
    let is_whole = header.starts_with(b"head") && crc32c::crc32c(header) == stored;
    let number = u64::from_le_bytes(*header.get(8..16)?.first_chunk()?);
    let guid = |at: usize| header.get(at..at + 16)?.first_chunk().copied();
    is_whole.then_some((number, guid(16)?, guid(32)?))
}

impl History {
    /// Returns the stamp of an image that is open or not, where its format has one.
    pub(crate) fn stamp(&self, file: &dyn File) -> Option<Stamp> {
        if self.format != Format::Vhdx {
            return None;
        }
        Stamp::read(file).ok().flatten()
    }

    /// Whoever opened the image last before the power went has changed the GUIDs of what was changed since, behind `events`
    /// events, which left `now` and shows `found`.
    pub(crate) fn judge_guids(
        log: &Log,
        events: usize,
        now: Option<&Stamp>,
        found: &[Mark],
    ) -> Result<(), String> {
        let before = log.opened.iter().rev().find(|(at, _)| *at <= events);
        let (Some((at, then)), Some(now)) = (before, now) else { return Ok(()) };
        if then.file_guid == now.file_guid && (then.sum, then.bytes) != (now.sum, now.bytes) {
            return Err("the file was written, and FileWriteGuid is what it was".to_owned());
        }
        if then.data_guid == now.data_guid && !shows(&log.expected(*at), found) {
            return Err("the disk was written, and DataWriteGuid is what it was".to_owned());
        }
        Ok(())
    }
}

/// Returns whether a disk shows what it may.
fn shows(expected: &Expected<'_>, found: &[Mark]) -> bool {
    let is_same = (0..).zip(found).all(|(sector, mark)| expected.allows(sector, *mark));
    is_same && expected.sizes.contains(&count(found.len()))
}
