//! From bytes to what is to be done: pure functions, so that any bytes can be tried.

use super::wire::{
    self, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command,
    errno, flag,
};
use crate::{
    base::{GuestOffset, GuestRange},
    io::Kept,
};

/// The shape of headers and replies that was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, replies in chunks.
    Structured,
    /// Extended requests, replies in extended chunks.
    Extended,
}

impl Style {
    /// Returns the length of a request without its payload.
    pub(super) const fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => CompactRequest::SIZE,
            Self::Extended => ExtendedRequest::SIZE,
        }
    }
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// What the client knows it by.
    pub(super) cookie: u64,
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// How many bytes of payload follow it.
    pub(super) payload_bytes: u64,
}

/// The peer does not speak the protocol: there is no telling where its next request begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Reads a request from the start of `bytes`; `None` if there are too few.
pub(super) fn parse(bytes: &[u8], style: Style) -> Result<Option<Request>, Broken> {
    let request = if style == Style::Extended {
        let Some(r) = ExtendedRequest::parse_start(bytes) else { return Ok(None) };
        let has_payload = r.command == command::WRITE || r.flags & flag::PAYLOAD_LEN != 0;
        let payload_bytes = if has_payload { r.bytes } else { 0 };
        let request = Request {
            flags: r.flags,
            command: r.command,
            cookie: r.cookie,
            start: r.start,
            bytes: r.bytes,
            payload_bytes,
        };
        (r.magic == EXTENDED_REQUEST_MAGIC).then_some(request)
    } else {
        let Some(r) = CompactRequest::parse_start(bytes) else { return Ok(None) };
        let bytes = u64::from(r.bytes);
        let payload_bytes = if r.command == command::WRITE { bytes } else { 0 };
        let request = Request {
            flags: r.flags,
            command: r.command,
            cookie: r.cookie,
            start: r.start,
            bytes,
            payload_bytes,
        };
        (r.magic == REQUEST_MAGIC).then_some(request)
    };
    // A payload that no client means is not worth its bytes.
    let is_sane = request.filter(|r| u32::try_from(r.payload_bytes).is_ok());
    is_sane.map(Some).ok_or(Broken)
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) style: Style,
    /// The disk's size in bytes.
    pub(super) size: u64,
    pub(super) is_writable: bool,
    /// Whether the client chose a context.
    pub(super) has_contexts: bool,
}

/// A request that fits the disk and the terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Read {
        range: GuestRange,
        /// Whether the answer is to be one piece.
        is_whole: bool,
    },
    Write {
        range: GuestRange,
        is_durable: bool,
    },
    Zero {
        range: GuestRange,
        kept: Kept,
        /// Whether it is to fail where zeros would have to be written.
        is_fast: bool,
        is_durable: bool,
    },
    Trim {
        range: GuestRange,
        is_durable: bool,
    },
    Flush,
    Cache {
        range: GuestRange,
    },
    Status {
        range: GuestRange,
        /// Whether one stretch is enough.
        is_one: bool,
    },
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: u32,
    pub(super) why: &'static str,
}

const fn refuse<T>(errno: u32, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, why })
}

/// Returns what a request asks for, if it may.
pub(super) fn check(request: &Request, terms: &Terms) -> Result<Task, Refusal> {
    let known = match request.command {
        command::READ if terms.style != Style::Simple => flag::DF,
        command::WRITE if terms.style == Style::Extended => flag::FUA | flag::PAYLOAD_LEN,
        command::WRITE | command::TRIM => flag::FUA,
        command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        command::BLOCK_STATUS => flag::REQ_ONE,
        // Clients of old send FUA with all requests; it asks for nothing where nothing is written.
        _ => 0,
    };
    let is_writing = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if is_writing && !terms.is_writable {
        return refuse(errno::PERM, "the export is read-only");
    }
    if request.flags & !(known | flag::FUA) != 0 {
        return refuse(errno::INVAL, "a flag that this request does not have");
    }
    let is_set = |bit: u16| request.flags & bit != 0;
    let is_durable = is_set(flag::FUA);
    let end = request.start.checked_add(request.bytes);
    if request.command != command::FLUSH && end.is_none_or(|end| end > terms.size) {
        let errno = match request.command {
            command::WRITE | command::WRITE_ZEROES => errno::NOSPC,
            _ => errno::INVAL,
        };
        return refuse(errno, "beyond the end of the disk");
    }
    let range = GuestOffset::new(request.start).range(request.bytes);
    match request.command {
        command::READ | command::WRITE if request.bytes > u64::from(PAYLOAD_BYTES_MAX) => {
            refuse(errno::INVAL, "more bytes than one request may have")
        }
        command::READ => Ok(Task::Read { range, is_whole: is_set(flag::DF) }),
        command::WRITE => Ok(Task::Write { range, is_durable }),
        command::TRIM => Ok(Task::Trim { range, is_durable }),
        command::WRITE_ZEROES => {
            let kept = if is_set(flag::NO_HOLE) { Kept::Space } else { Kept::Nothing };
            Ok(Task::Zero { range, kept, is_fast: is_set(flag::FAST_ZERO), is_durable })
        }
        command::FLUSH => Ok(Task::Flush),
        command::CACHE => Ok(Task::Cache { range }),
        command::BLOCK_STATUS if !terms.has_contexts => refuse(errno::INVAL, "no context was chosen"),
        command::BLOCK_STATUS if range.is_empty() => refuse(errno::INVAL, "no bytes to tell of"),
        command::BLOCK_STATUS => Ok(Task::Status { range, is_one: is_set(flag::REQ_ONE) }),
        _ => refuse(wire::errno::INVAL, "an unknown request"),
    }
}

#[cfg(test)]
mod tests;
