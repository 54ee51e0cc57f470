//! Does what a request asks for: between the guest's memory and the disk lies one buffer, as the guest may write its
//! memory at any time.

use super::{
    request::{Refusal, Segment, Shape, Task, Terms, check, check_stretch, pieces, shape},
    wire::{NAME_BYTES, RequestHeader, Stretch, feature, status},
};
use crate::{
    base::{
        Error, ErrorKind, GuestRange,
        units::{count, index},
    },
    disk::Disk,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Reads and writes go in pieces of this size: whatever a guest asks for, a thread needs no more memory.
const PIECE_BYTES: u64 = 1 << 20;

/// A chain as it was taken from the ring.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) segments: Vec<Segment>,
    /// Whether it ended where its last descriptor says.
    pub(super) is_whole: bool,
}

/// A request that fits the disk, and where its parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) task: Task,
    shape: Shape,
}

/// What the guest is told: a status, if it left a place for it, and how many bytes of the answer were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: u8,
    at: Option<GuestAddress>,
    bytes: u64,
}

impl Answer {
    /// Writes the status; returns how many bytes the device has written in all.
    pub(super) fn give(self, memory: &GuestMemoryMmap) -> u32 {
        let written = self.at.is_some_and(|at| memory.write_obj(self.status, at).is_ok());
        u32::try_from(self.bytes + u64::from(written)).unwrap_or(u32::MAX)
    }
}

impl From<Refusal> for u8 {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Wrong => status::IOERR,
            Refusal::Unknown => status::UNSUPP,
        }
    }
}

/// A disk for one guest.
pub(super) struct Target {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) terms: Terms,
    /// The export's name.
    pub(super) name: String,
    /// What the guest's driver understands.
    pub(super) acked: AtomicU64,
}

impl Target {
    /// Understands a request; what is not one gets its answer at once.
    pub(super) fn admit(&self, memory: &GuestMemoryMmap, chain: &Chain) -> Result<Request, Answer> {
        let refused = |status, at| Answer { status, at, bytes: 0 };
        let shape = shape(&chain.segments, chain.is_whole)
            .map_err(|misshapen| refused(status::IOERR, misshapen.status_at))?;
        let mut header = [0; RequestHeader::SIZE];
        let at = Some(shape.status_at);
        fetch(memory, &chain.segments, 0, &mut header).map_err(|_| refused(status::IOERR, at))?;
        let task = check(&RequestHeader::parse(&header), &shape, &self.terms);
        task.map(|task| Request { task, shape }).map_err(|refusal| refused(refusal.into(), at))
    }

    /// Whether writes are to be durable when they are answered: a driver that does not know of flushes relies on that
    /// (virtio 1.2, 5.2.6.2).
    pub(super) fn is_write_through(&self) -> bool {
        self.acked.load(Relaxed) & feature::FLUSH == 0
    }

    /// Does a request.
    pub(super) fn perform(
        &self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        request: &Request,
        buf: &mut Vec<u8>,
    ) -> Answer {
        let segments = chain.segments.as_slice();
        let (status, bytes) = match self.try_perform(memory, segments, request.task, buf) {
            Ok(bytes) if changes(request.task) && self.is_write_through() => match self.disk.flush() {
                Ok(()) => (status::OK, bytes),
                Err(error) => (self.failed(&error), 0),
            },
            Ok(bytes) => (status::OK, bytes),
            Err(Failed::Refused(refusal)) => (refusal.into(), 0),
            Err(Failed::Disk(error)) => (self.failed(&error), 0),
        };
        Answer { status, at: Some(request.shape.status_at), bytes }
    }

    fn failed(&self, error: &Error) -> u8 {
        if error.kind() == ErrorKind::Unsupported {
            tracing::debug!(export = %self.name, %error, "a request is not done");
            return status::UNSUPP;
        }
        tracing::warn!(export = %self.name, %error, "a request failed");
        status::IOERR
    }

    /// Returns how many bytes of the answer were written.
    fn try_perform(
        &self,
        memory: &GuestMemoryMmap,
        segments: &[Segment],
        task: Task,
        buf: &mut Vec<u8>,
    ) -> Result<u64, Failed> {
        let header = count(RequestHeader::SIZE);
        match task {
            Task::Read(range) => {
                for piece in range.pieces(PIECE_BYTES) {
                    let data = room(buf, piece);
                    self.disk.read(piece.start, data)?;
                    store(memory, segments, piece.start.since(range.start), data)?;
                }
                return Ok(range.bytes);
            }
            Task::Write(range) => {
                for piece in range.pieces(PIECE_BYTES) {
                    let data = room(buf, piece);
                    let from = header + piece.start.since(range.start);
                    fetch(memory, segments, from, data)?;
                    self.disk.write(piece.start, data)?;
                }
            }
            Task::Zero { stretches, is_discard } => {
                for nth in 0..stretches {
                    let mut stretch = [0; Stretch::SIZE];
                    fetch(memory, segments, header + nth * count(Stretch::SIZE), &mut stretch)?;
                    let (range, kept) = check_stretch(&Stretch::parse(&stretch), is_discard, &self.terms)?;
                    self.disk.zero(range, kept)?;
                }
            }
            Task::Flush => self.disk.flush()?,
            Task::Name => {
                let mut name = [0; NAME_BYTES];
                name.iter_mut().zip(self.name.bytes()).for_each(|(to, from)| *to = from);
                store(memory, segments, 0, &name)?;
                return Ok(count(NAME_BYTES));
            }
        }
        Ok(0)
    }
}

/// Why a request was not done.
enum Failed {
    Refused(Refusal),
    Disk(Error),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Disk(error)
    }
}

const fn changes(task: Task) -> bool {
    matches!(task, Task::Write(_) | Task::Zero { .. })
}

fn room(buf: &mut Vec<u8>, piece: GuestRange) -> &mut [u8] {
    let bytes = index(piece.bytes);
    if buf.len() < bytes {
        buf.resize(bytes, 0);
    }
    buf.get_mut(..bytes).unwrap_or_default()
}

/// Reads what the guest has said, from the byte `from` of it on.
fn fetch(
    memory: &GuestMemoryMmap,
    segments: &[Segment],
    from: u64,
    mut buf: &mut [u8],
) -> Result<(), Refusal> {
    for (at, bytes) in pieces(segments, false, from, count(buf.len())) {
        let (data, rest) = buf.split_at_mut_checked(bytes).ok_or(Refusal::Wrong)?;
        memory.read_slice(data, at).map_err(|_| Refusal::Wrong)?;
        buf = rest;
    }
    if buf.is_empty() { Ok(()) } else { Err(Refusal::Wrong) }
}

/// Writes a part of the answer, at its byte `from`.
fn store(memory: &GuestMemoryMmap, segments: &[Segment], from: u64, mut data: &[u8]) -> Result<(), Refusal> {
    for (at, bytes) in pieces(segments, true, from, count(data.len())) {
        let (part, rest) = data.split_at_checked(bytes).ok_or(Refusal::Wrong)?;
        memory.write_slice(part, at).map_err(|_| Refusal::Wrong)?;
        data = rest;
    }
    if data.is_empty() { Ok(()) } else { Err(Refusal::Wrong) }
}
