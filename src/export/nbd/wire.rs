//! What stands on the wire: numbers and records of the NBD protocol (`doc/proto.md` of the NBD project).
//!
//! All integers are big-endian.

use crate::record;

/// `NBDMAGIC`.
pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: opens the handshake and each option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Opens each reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens a request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a request with extended headers.
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Opens a simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Opens a chunk of a reply with extended headers.
pub(super) const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// The longest string, in bytes.
pub(super) const STRING_BYTES_MAX: usize = 4096;
/// The largest payload of one request or reply, in bytes: what qemu takes.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Handshake flags, server and client (`NBD_FLAG_FIXED_NEWSTYLE`, `NBD_FLAG_NO_ZEROES`).
pub(super) mod handshake {
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    pub(in super::super) const NO_ZEROES: u16 = 1 << 1;
}

/// Options (`NBD_OPT_*`).
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const START_TLS: u32 = 5;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
    pub(in super::super) const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options (`NBD_REP_*`).
pub(super) mod answer {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    pub(in super::super) const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub(in super::super) const ERR_POLICY: u32 = 1 << 31 | 2;
    pub(in super::super) const ERR_INVALID: u32 = 1 << 31 | 3;
    pub(in super::super) const ERR_TLS_REQD: u32 = 1 << 31 | 5;
    pub(in super::super) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub(in super::super) const ERR_SHUTDOWN: u32 = 1 << 31 | 7;
    pub(in super::super) const ERR_TOO_BIG: u32 = 1 << 31 | 9;
    pub(in super::super) const ERR_EXT_HEADER_REQD: u32 = 1 << 31 | 0xa;
}

/// Kinds of information about an export (`NBD_INFO_*`).
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DESCRIPTION: u16 = 2;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags (`NBD_FLAG_*`).
pub(super) mod transmission {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const SEND_FLUSH: u16 = 1 << 2;
    pub(in super::super) const SEND_FUA: u16 = 1 << 3;
    pub(in super::super) const SEND_TRIM: u16 = 1 << 5;
    pub(in super::super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const SEND_DF: u16 = 1 << 7;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(in super::super) const SEND_CACHE: u16 = 1 << 10;
    pub(in super::super) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests (`NBD_CMD_*`).
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const CACHE: u16 = 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests (`NBD_CMD_FLAG_*`).
pub(super) mod flag {
    pub(in super::super) const FUA: u16 = 1;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const DF: u16 = 1 << 2;
    pub(in super::super) const REQ_ONE: u16 = 1 << 3;
    pub(in super::super) const FAST_ZERO: u16 = 1 << 4;
    pub(in super::super) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of chunks (`NBD_REPLY_TYPE_*`), and their one flag.
pub(super) mod chunk {
    pub(in super::super) const DONE: u16 = 1;
    pub(in super::super) const NONE: u16 = 0;
    pub(in super::super) const OFFSET_DATA: u16 = 1;
    pub(in super::super) const OFFSET_HOLE: u16 = 2;
    pub(in super::super) const BLOCK_STATUS: u16 = 5;
    pub(in super::super) const BLOCK_STATUS_EXT: u16 = 6;
    pub(in super::super) const ERROR: u16 = 1 << 15 | 1;
}

/// Error numbers (`NBD_E*`).
pub(super) mod errno {
    pub(in super::super) const PERM: u32 = 1;
    pub(in super::super) const IO: u32 = 5;
    pub(in super::super) const INVAL: u32 = 22;
    pub(in super::super) const NOSPC: u32 = 28;
    pub(in super::super) const NOTSUP: u32 = 95;
}

/// States of `base:allocation` (`NBD_STATE_*`).
pub(super) mod state {
    pub(in super::super) const HOLE: u64 = 1;
    pub(in super::super) const ZERO: u64 = 1 << 1;
}

record! {
    /// What the server says first.
    pub(super) struct Greeting: BigEndian, 18 bytes {
        0 => magic: u64,
        8 => option_magic: u64,
        16 => flags: u16,
    }
}

record! {
    /// Before the data of each option.
    pub(super) struct OptionHeader: BigEndian, 16 bytes {
        0 => magic: u64,
        8 => option: u32,
        12 => bytes: u32,
    }
}

record! {
    /// Before the data of each reply to an option.
    pub(super) struct OptionReply: BigEndian, 20 bytes {
        0 => magic: u64,
        8 => option: u32,
        12 => kind: u32,
        16 => bytes: u32,
    }
}

record! {
    /// `NBD_INFO_EXPORT`, and what answers `NBD_OPT_EXPORT_NAME` from `size` on.
    pub(super) struct ExportAnswer: BigEndian, 12 bytes {
        0 => kind: u16,
        2 => size: u64,
        10 => flags: u16,
    }
}

record! {
    /// `NBD_INFO_BLOCK_SIZE`.
    pub(super) struct BlockSizes: BigEndian, 14 bytes {
        0 => kind: u16,
        2 => minimum: u32,
        6 => preferred: u32,
        10 => maximum: u32,
    }
}

record! {
    /// A request.
    pub(super) struct CompactRequest: BigEndian, 28 bytes {
        0 => magic: u32,
        4 => flags: u16,
        6 => command: u16,
        8 => cookie: u64,
        16 => start: u64,
        24 => bytes: u32,
    }
}

record! {
    /// A request with extended headers.
    pub(super) struct ExtendedRequest: BigEndian, 32 bytes {
        0 => magic: u32,
        4 => flags: u16,
        6 => command: u16,
        8 => cookie: u64,
        16 => start: u64,
        24 => bytes: u64,
    }
}

record! {
    /// A reply without a shape; the bytes that were read follow.
    pub(super) struct SimpleReply: BigEndian, 16 bytes {
        0 => magic: u32,
        4 => error: u32,
        8 => cookie: u64,
    }
}

record! {
    /// Before the payload of a chunk.
    pub(super) struct CompactChunk: BigEndian, 20 bytes {
        0 => magic: u32,
        4 => flags: u16,
        6 => kind: u16,
        8 => cookie: u64,
        16 => bytes: u32,
    }
}

record! {
    /// The same with extended headers: `start` is the request's.
    pub(super) struct ExtendedChunk: BigEndian, 32 bytes {
        0 => magic: u32,
        4 => flags: u16,
        6 => kind: u16,
        8 => cookie: u64,
        16 => start: u64,
        24 => bytes: u64,
    }
}
