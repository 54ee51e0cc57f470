//! What images say of their state. The GUIDs of a VHDX header: one changes, durably, before the file does, the other before
//! what the guest sees does (MS-VHDX 2.2.2). The CID of a VMDK changes as the latter does. Children know their parent by those, and
//! a record in the image who wrote it last.

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
    io::{Access, File, Host, faulty::SimHost},
};
use std::path::Path;

/// Where the headers are.
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes in a header.
const HEADER_BYTES: usize = 4096;
/// Where a VMDK's descriptor has its CID, before this.
const DESCRIPTOR_BYTES: u64 = 2048;
/// Where the header of a sparse VMDK says whether it was not closed.
const UNCLEAN_AT: usize = 72;
/// The first piece of a VMDK in pieces.
const PIECE: &str = "/disk-s001.vmdk";
/// Where the file goes on behind its headers and region tables.
const REST_AT: u64 = 1 << 20;

/// What a file says of its state, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Who wrote the file last, and what it is then, where the format tells that apart.
    file: Option<Written>,
    /// Who changed last what the guest sees.
    data: Vec<u8>,
    /// Whether it says that nobody has it open for writing, where the format tells that.
    is_closed: bool,
}

/// A file that somebody wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    guid: [u8; 16],
    /// The sum of all behind the header.
    sum: u32,
    bytes: u64,
}

impl Stamp {
    /// Reads that of a VHDX; `None` if there is no whole header.
    fn of_vhdx(file: &dyn File) -> Answer<Option<Self>> {
        let mut headers = Vec::new();
        for at in HEADERS_AT {
            let mut header = vec![0; HEADER_BYTES];
            file.read_at(HostOffset::new(at), &mut header)?;
            headers.extend(fields(&mut header));
        }
        // The one with the higher number counts.
        let Some((_, guid, data_guid)) = headers.into_iter().max() else { return Ok(None) };
        let bytes = file.bytes()?;
        let (mut sum, mut buf) = (0, vec![0; index(REST_AT)]);
        let rest = HostRange::between(HostOffset::new(REST_AT.min(bytes)), HostOffset::new(bytes));
        for piece in rest.pieces(REST_AT) {
            let part = buf.get_mut(..index(piece.bytes)).unwrap_or_default();
            file.read_at(piece.start, part)?;
            sum = crc32c::crc32c_append(sum, part);
        }
        Ok(Some(Self {
            file: Some(Written { guid, sum, bytes }),
            data: data_guid.to_vec(),
            is_closed: false,
        }))
    }

    /// Reads that of a VMDK, whose descriptor stands in the first sectors of the file; its header or that of its first
    /// piece says whether it was closed.
    fn of_vmdk(host: &SimHost, file: &dyn File) -> Answer<Option<Self>> {
        let start = start(file)?;
        let cid = start.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"CID="));
        let piece = host.open(Path::new(PIECE), Access::ReadShared).and_then(|piece| self::start(&*piece));
        let header = if start.starts_with(b"KDMV") { start.clone() } else { piece.unwrap_or_default() };
        let is_closed = header.get(UNCLEAN_AT) == Some(&0);
        Ok(cid.map(|cid| Self { file: None, data: cid.to_vec(), is_closed }))
    }
}

/// Returns what a file starts with.
fn start(file: &dyn File) -> Answer<Vec<u8>> {
    let mut start = vec![0; index(file.bytes()?.min(DESCRIPTOR_BYTES))];
    file.read_at(HostOffset::new(0), &mut start)?;
    Ok(start)
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
    pub(crate) fn stamp(&self, host: &SimHost, file: &dyn File) -> Option<Stamp> {
        match self.format {
            Format::Vhdx => Stamp::of_vhdx(file).ok().flatten(),
            Format::Vmdk => Stamp::of_vmdk(host, file).ok().flatten(),
            _ => None,
        }
    }

    /// Whether who has just made the image writes it under another identity: of a VMDK nobody knows that yet.
    pub(crate) fn is_known_when_made(&self) -> bool {
        self.format != Format::Vmdk
    }

    /// Whoever opened the image last before the power went has changed the identities of what was changed since, behind
    /// `events` events, which left `now` and shows `found`.
    pub(crate) fn judge_stamp(
        log: &Log,
        events: usize,
        now: Option<&Stamp>,
        found: &[Mark],
    ) -> Result<(), String> {
        let before = log.opened.iter().rev().find(|(at, _)| *at <= events);
        let (Some((at, then)), Some(now)) = (before, now) else { return Ok(()) };
        if let (Some(then), Some(now)) = (&then.file, &now.file)
            && then.guid == now.guid
            && then != now
        {
            return Err("the file was written, and FileWriteGuid is what it was".to_owned());
        }
        let is_changed = || !shows(&log.expected(*at), found);
        if then.data == now.data && is_changed() {
            return Err("the disk was written, and DataWriteGuid or CID is what it was".to_owned());
        }
        if then.is_closed && now.is_closed && !log.is_closing(events) && is_changed() {
            return Err("the disk was written, and its header says that it was closed".to_owned());
        }
        Ok(())
    }
}

/// Returns whether a disk shows what it may.
fn shows(expected: &Expected<'_>, found: &[Mark]) -> bool {
    let is_same = (0..).zip(found).all(|(sector, mark)| expected.allows(sector, *mark));
    is_same && expected.sizes.contains(&count(found.len()))
}
