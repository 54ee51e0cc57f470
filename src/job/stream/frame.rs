//! The wire format of streams and sessions, to the byte.
//!
//! Each direction starts with a preamble, 12 bytes: `dchnstrm`, then the version, 1 as u32. After that there are frames,
//! each a head of 12 bytes (the kind as u8, three zero bytes, the payload's length as u32, and a CRC32C of those eight
//! bytes and the payload), and the payload. All integers are little-endian. Control payloads are JSON ([`super::terms`]).
//!
//! | kind | name | payload | at most |
//! |---|---|---|---|
//! | 1 | layer | JSON: one layer, the deepest first | 64 KiB |
//! | 2 | start | u32: how many layers there were | 4 |
//! | 3 | begin | u32: which layer (0 is the deepest); u64: guest offset before which nothing is sent | 12 |
//! | 4 | data | u64: guest offset; the bytes there | 8 + 256 KiB |
//! | 5 | zero | u64, u64: guest offset and length of zeros that the layer holds | 16 |
//! | 6 | take | u64, u64: the same, of bytes that the receiver's relative has there (sessions only) | 16 |
//! | 7 | layer end | u32: which layer | 4 |
//! | 8 | end | u64, u64: frames before this one, bytes in data frames | 16 |
//! | 16 | ask | JSON: what the client of a session wants | 64 KiB |
//! | 17 | answer | JSON: what the receiver has | 1 MiB |
//! | 18 | leaves | u32: which layer; pairs of u64 and 32 bytes: a leaf and its hash at the relative | 4 + 40 x 16,384 |
//! | 19 | plan | JSON: what the sender would send | 1 MiB |
//! | 20 | go | nothing: the receiver agrees to the plan | 0 |
//! | 21 | done | u32: the layer has its name | 4 |
//! | 22 | report | JSON: what the receiver did | 1 MiB |
//! | 23 | failed | JSON: why the peer ends | 64 KiB |
//! | 24 | again | u32: of that layer all has to come: what was there from an earlier run is not right | 4 |
//! | 25 | waits | nothing: the receiver waits for another copy that brings the same | 0 |
//! | 26 | alive | nothing: this side is there, and has had nothing to say for a while (sessions only; may come anywhere) | 0 |
//!
//! A layer's extents (data, zero, take) come in the order of their offsets, none empty, none over another, none past its
//! size; what is not sent the layer is silent about: its parent's bytes show, or zeros. A layer is right when the content
//! ID of what it shows, over its parent, is the one that was promised.
//!
//! What stays true: nothing of a frame is believed before its head is found sound, no more is read than that kind may
//! have, and nothing is handed on before the sum is right.

use super::terms::{Answer, Ask, Failed, LayerHead, Planned, Report};
use crate::{
    base::{
        Error, GuestOffset, GuestRange, Result,
        units::{count, index},
    },
    content::{Digest, LEAF_BYTES},
    record,
};
use serde::{Serialize, de::DeserializeOwned};

/// Guest bytes in a data frame at most: some leaves.
pub(super) const DATA_BYTES_MAX: u64 = 4 * LEAF_BYTES;

/// Hashes in a frame at most.
pub(super) const LEAVES_MAX: usize = 16_384;

const JSON_BYTES_MAX: u64 = 64 << 10;
const LONG_JSON_BYTES_MAX: u64 = 1 << 20;
/// What is said of bytes that are no stream.
pub const NO_STREAM: &str = "does not start like a stream of layers";
const MAGIC: [u8; 8] = *b"dchnstrm";
const VERSION: u32 = 1;
/// Bytes of a leaf's number and its hash.
const PAIR_BYTES: usize = 40;

record! {
    /// What each direction starts with.
    pub(super) struct Preamble: LittleEndian, 12 bytes {
        /// `dchnstrm`.
        0 => magic: bytes 8,
        /// 1.
        8 => version: u32,
    }
}

record! {
    /// What each frame starts with.
    pub(super) struct Head: LittleEndian, 12 bytes {
        /// What the payload is.
        0 => kind: u8,
        /// Zeros.
        1 => zero: bytes 3,
        /// Bytes of the payload.
        4 => length: u32,
        /// CRC32C of what is before it, and of the payload.
        8 => sum: u32,
    }
}

record! {
    /// Where a stretch of guest bytes is.
    struct Stretch: LittleEndian, 16 bytes {
        /// Its first byte.
        0 => at: u64,
        /// Its length.
        8 => bytes: u64,
    }
}

record! {
    /// Where a layer begins.
    struct Beginning: LittleEndian, 12 bytes {
        /// Which layer.
        0 => nth: u32,
        /// The guest offset.
        4 => from: u64,
    }
}

impl Preamble {
    pub(super) const fn own() -> Self {
        Self { magic: MAGIC, version: VERSION }
    }

    pub(super) fn check(self) -> Result<()> {
        if self.magic != MAGIC {
            return Err(Error::corrupt(NO_STREAM));
        }
        if self.version != VERSION {
            let what = format!("is a stream of version {}, this program knows {VERSION}", self.version);
            return Err(Error::unsupported(what));
        }
        Ok(())
    }
}

impl Head {
    /// Returns how long the payload is; `Corrupt` for what no frame of its kind can have.
    pub(super) fn check(self) -> Result<usize> {
        let length = u64::from(self.length);
        let (least, most) = match self.kind {
            1 | 16 | 23 => (2, JSON_BYTES_MAX),
            2 | 7 | 21 | 24 => (4, 4),
            3 => (12, 12),
            4 => (9, 8 + DATA_BYTES_MAX),
            5 | 6 | 8 => (16, 16),
            17 | 19 | 22 => (2, LONG_JSON_BYTES_MAX),
            18 => (4, 4 + count(LEAVES_MAX * PAIR_BYTES)),
            20 | 25 | 26 => (0, 0),
            kind => return Err(Error::corrupt(format!("frame of unknown kind {kind}"))),
        };
        if self.zero != [0; 3] || !(least..=most).contains(&length) {
            return Err(Error::corrupt(format!("frame of kind {} with a length of {length}", self.kind)));
        }
        Ok(index(length))
    }

    fn sum_of(self, payload: &[u8]) -> u32 {
        let start = Self { sum: 0, ..self }.to_bytes();
        crc32c::crc32c_append(crc32c::crc32c(start.get(..8).unwrap_or_default()), payload)
    }

    /// Fails with `Corrupt` if the payload is not the one that was sent.
    pub(super) fn check_sum(self, payload: &[u8]) -> Result<()> {
        if self.sum_of(payload) == self.sum {
            return Ok(());
        }
        Err(Error::corrupt(format!("frame of kind {}: its checksum is wrong", self.kind)))
    }
}

/// Bytes of a guest, with their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Data(Vec<u8>);

impl Data {
    pub(super) fn at(&self) -> GuestOffset {
        GuestOffset::new(self.0.first_chunk().map_or(0, |at| u64::from_le_bytes(*at)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.get(8..).unwrap_or_default()
    }
}

/// A frame whose sum was right. Whether it belongs where it stands is for others to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Layer(Box<LayerHead>),
    Start { layers: u32 },
    Begin { nth: u32, from: u64 },
    Data(Data),
    Zero(GuestRange),
    Take(GuestRange),
    LayerEnd { nth: u32 },
    End { frames: u64, data_bytes: u64 },
    Ask(Ask),
    Answer(Answer),
    Leaves { nth: u32, leaves: Vec<(u64, Digest)> },
    Plan(Planned),
    Go,
    Done { nth: u32 },
    Report(Report),
    Failed(Failed),
    Again { nth: u32 },
    Waits,
    Alive,
}

impl Frame {
    /// Reads what a sound head announced.
    pub(super) fn parse(kind: u8, payload: Vec<u8>) -> Result<Self> {
        let number = || payload.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let nth = || number().ok_or_else(|| Error::corrupt("frame without a number"));
        let stretch = || {
            let found = Stretch::parse_start(&payload);
            found.ok_or_else(|| Error::corrupt("frame without a range"))
        };
        let range = || stretch().map(|s| GuestOffset::new(s.at).range(s.bytes));
        Ok(match kind {
            1 => Self::Layer(Box::new(json(kind, &payload)?)),
            2 => Self::Start { layers: nth()? },
            3 => {
                let begin = Beginning::parse_start(&payload);
                let Beginning { nth, from } = begin.ok_or_else(|| Error::corrupt("frame without a place"))?;
                Self::Begin { nth, from }
            }
            4 => Self::Data(Data(payload)),
            5 => Self::Zero(range()?),
            6 => Self::Take(range()?),
            7 => Self::LayerEnd { nth: nth()? },
            8 => {
                let Stretch { at: frames, bytes: data_bytes } = stretch()?;
                Self::End { frames, data_bytes }
            }
            16 => Self::Ask(json(kind, &payload)?),
            17 => Self::Answer(json(kind, &payload)?),
            18 => Self::Leaves { nth: nth()?, leaves: leaves(payload.get(4..).unwrap_or_default())? },
            19 => Self::Plan(json(kind, &payload)?),
            20 => Self::Go,
            21 => Self::Done { nth: nth()? },
            22 => Self::Report(json(kind, &payload)?),
            23 => Self::Failed(json(kind, &payload)?),
            24 => Self::Again { nth: nth()? },
            25 => Self::Waits,
            26 => Self::Alive,
            _ => return Err(Error::corrupt(format!("frame of unknown kind {kind}"))),
        })
    }

    /// Returns the frame as it goes over the wire.
    pub(super) fn packet(&self) -> Result<Packet> {
        let stretch = |at: u64, bytes: u64| Stretch { at, bytes }.to_bytes().to_vec();
        let (kind, payload) = match self {
            Self::Layer(layer) => (1, text(layer)?),
            Self::Start { layers } => (2, layers.to_le_bytes().to_vec()),
            Self::Begin { nth, from } => (3, Beginning { nth: *nth, from: *from }.to_bytes().to_vec()),
            Self::Data(data) => (4, data.0.clone()),
            Self::Zero(range) => (5, stretch(range.start.bytes(), range.bytes)),
            Self::Take(range) => (6, stretch(range.start.bytes(), range.bytes)),
            Self::LayerEnd { nth } => (7, nth.to_le_bytes().to_vec()),
            Self::End { frames, data_bytes } => (8, stretch(*frames, *data_bytes)),
            Self::Ask(ask) => (16, text(ask)?),
            Self::Answer(answer) => (17, text(answer)?),
            Self::Leaves { nth, leaves } => {
                let pairs = leaves.iter().flat_map(|(at, d)| at.to_le_bytes().into_iter().chain(*d.bytes()));
                (18, nth.to_le_bytes().into_iter().chain(pairs).collect())
            }
            Self::Plan(plan) => (19, text(plan)?),
            Self::Go => (20, Vec::new()),
            Self::Done { nth } => (21, nth.to_le_bytes().to_vec()),
            Self::Report(report) => (22, text(report)?),
            Self::Failed(failed) => (23, text(failed)?),
            Self::Again { nth } => (24, nth.to_le_bytes().to_vec()),
            Self::Waits => (25, Vec::new()),
            Self::Alive => (26, Vec::new()),
        };
        let mut packet = vec![0; Head::SIZE];
        packet.extend_from_slice(&payload);
        Packet { bytes: packet, kind, data_bytes: 0 }.sealed()
    }

    /// Says that this frame does not belong where it came.
    pub(super) fn misplaced(&self, wanted: &str) -> Error {
        let kind = match self {
            // Why the peer ends says more than that it does.
            Self::Failed(failed) => return failed.error(),
            Self::Layer(_) => "layer",
            Self::Start { .. } => "start",
            Self::Begin { .. } => "begin",
            Self::Data(_) => "data",
            Self::Zero(_) => "zero",
            Self::Take(_) => "take",
            Self::LayerEnd { .. } => "layer end",
            Self::End { .. } => "end",
            Self::Ask(_) => "ask",
            Self::Answer(_) => "answer",
            Self::Leaves { .. } => "leaves",
            Self::Plan(_) => "plan",
            Self::Go => "go",
            Self::Done { .. } => "done",
            Self::Report(_) => "report",
            Self::Again { .. } => "again",
            Self::Waits => "waits",
            Self::Alive => "alive",
        };
        Error::corrupt(format!("a frame '{kind}' came where {wanted} belongs"))
    }
}

/// A frame as it goes over the wire.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    bytes: Vec<u8>,
    kind: u8,
    pub(super) data_bytes: u64,
}

impl Packet {
    /// Returns a data frame for `range`, which fits one, to be filled ([`Packet::guest_bytes_mut`]) and sealed.
    pub(super) fn data(range: GuestRange) -> Self {
        let mut bytes = vec![0; Head::SIZE + 8 + index(range.bytes)];
        if let Some(at) = bytes.get_mut(Head::SIZE..Head::SIZE + 8) {
            at.copy_from_slice(&range.start.bytes().to_le_bytes());
        }
        Self { bytes, kind: 4, data_bytes: range.bytes }
    }

    /// Returns the guest's bytes in a data frame.
    pub(super) fn guest_bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(Head::SIZE + 8..).unwrap_or_default()
    }

    /// Returns those of `part`, which lies in it.
    pub(super) fn part(&self, part: GuestRange) -> &[u8] {
        let at = self
            .bytes
            .get(Head::SIZE..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |at| u64::from_le_bytes(*at));
        let from = Head::SIZE + 8 + index(part.start.since(GuestOffset::new(at)));
        self.bytes.get(from..from + index(part.bytes)).unwrap_or_default()
    }

    /// Sets the head; `Invalid` for a frame that no peer would take.
    pub(super) fn sealed(mut self) -> Result<Self> {
        let (head, payload) =
            self.bytes.split_first_chunk_mut().ok_or_else(|| Error::invalid("a frame without a head"))?;
        let length = u32::try_from(payload.len()).map_err(|_| Error::invalid("a frame that is too long"))?;
        let unsummed = Head { kind: self.kind, zero: [0; 3], length, sum: 0 };
        unsummed.check().map_err(|e| e.with_kind(crate::base::ErrorKind::Invalid))?;
        *head = Head { sum: unsummed.sum_of(payload), ..unsummed }.to_bytes();
        Ok(self)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn leaves(payload: &[u8]) -> Result<Vec<(u64, Digest)>> {
    let (pairs, rest) = payload.as_chunks::<PAIR_BYTES>();
    if !rest.is_empty() {
        return Err(Error::corrupt("frame 'leaves' ends within a hash"));
    }
    let pair = |pair: &[u8; PAIR_BYTES]| {
        let (at, digest) = pair.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*at), Digest::new(*digest.first_chunk()?)))
    };
    Ok(pairs.iter().filter_map(pair).collect())
}

fn json<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T> {
    serde_json::from_slice(payload).map_err(|e| Error::corrupt(format!("frame of kind {kind}: {e}")))
}

fn text<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::invalid(format!("a frame: {e}")))
}
