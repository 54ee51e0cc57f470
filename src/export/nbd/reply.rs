//! Replies, put together in a buffer that is sent whole.

use super::{
    request::{Refusal, Style},
    wire::{
        CHUNK_MAGIC, CompactChunk, EXTENDED_CHUNK_MAGIC, ExtendedChunk, SIMPLE_REPLY_MAGIC, SimpleReply,
        chunk,
    },
};
use crate::{base::units::count, export::Stretch};

/// Bytes to be sent. What was in it once stays allocated and is not wiped: whoever asks for room fills it.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Buffer {
    /// Returns what is to be sent.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Forgets all but the first `used` bytes.
    pub(super) fn cut(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    /// Appends `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends room for `bytes` bytes, which the caller fills or cuts off again.
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.used;
        self.used += bytes;
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used, 0);
        }
        self.bytes.get_mut(start..self.used).unwrap_or_default()
    }

    /// Returns whether it holds more memory than many should be kept of.
    pub(super) fn is_large(&self) -> bool {
        self.bytes.len() > 256 << 10
    }

    /// Returns the memory to the system if it is more than `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if self.bytes.len() > bytes {
            *self = Self::default();
        }
    }
}

/// To which request a reply belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct To {
    pub(super) style: Style,
    pub(super) cookie: u64,
    /// Where the request's range starts.
    pub(super) start: u64,
}

impl To {
    fn simple(self, error: u32, out: &mut Buffer) {
        out.push(&SimpleReply { magic: SIMPLE_REPLY_MAGIC, error, cookie: self.cookie }.to_bytes());
    }

    /// Begins a chunk with `bytes` bytes of payload, which the caller appends.
    fn chunk(self, flags: u16, kind: u16, bytes: u64, out: &mut Buffer) {
        let (cookie, start) = (self.cookie, self.start);
        if self.style == Style::Extended {
            let header = ExtendedChunk { magic: EXTENDED_CHUNK_MAGIC, flags, kind, cookie, start, bytes };
            out.push(&header.to_bytes());
        } else {
            // Payloads end far below 4 GiB.
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            out.push(&CompactChunk { magic: CHUNK_MAGIC, flags, kind, cookie, bytes }.to_bytes());
        }
    }

    /// Says that what was asked for is done.
    pub(super) fn done(self, out: &mut Buffer) {
        match self.style {
            Style::Extended => self.chunk(chunk::DONE, chunk::NONE, 0, out),
            // Shorter than a chunk, and clients take both.
            Style::Simple | Style::Structured => self.simple(0, out),
        }
    }

    /// Says that it is not.
    pub(super) fn refused(self, refusal: Refusal, out: &mut Buffer) {
        if self.style == Style::Simple {
            return self.simple(refusal.errno, out);
        }
        let why = refusal.why.as_bytes();
        self.chunk(chunk::DONE, chunk::ERROR, 6 + count(why.len()), out);
        out.push(&refusal.errno.to_be_bytes());
        out.push(&u16::try_from(why.len()).unwrap_or_default().to_be_bytes());
        out.push(why);
    }

    /// Begins the answer to a read in one piece; the caller fills the room.
    pub(super) fn data(self, bytes: usize, out: &mut Buffer) -> &mut [u8] {
        match self.style {
            Style::Simple => self.simple(0, out),
            _ if bytes == 0 => self.chunk(chunk::DONE, chunk::NONE, 0, out),
            _ => {
                self.chunk(chunk::DONE, chunk::OFFSET_DATA, 8 + count(bytes), out);
                out.push(&self.start.to_be_bytes());
            }
        }
        out.room(bytes)
    }

    /// Answers a read with zeros. Not for simple replies.
    pub(super) fn hole(self, bytes: u32, out: &mut Buffer) {
        self.chunk(chunk::DONE, chunk::OFFSET_HOLE, 12, out);
        out.push(&self.start.to_be_bytes());
        out.push(&bytes.to_be_bytes());
    }

    /// Adds what a context says.
    pub(super) fn status(self, context: u32, stretches: &[Stretch], is_last: bool, out: &mut Buffer) {
        let flags = if is_last { chunk::DONE } else { 0 };
        if self.style == Style::Extended {
            self.chunk(flags, chunk::BLOCK_STATUS_EXT, 8 + 16 * count(stretches.len()), out);
            out.push(&context.to_be_bytes());
            out.push(&u32::try_from(stretches.len()).unwrap_or_default().to_be_bytes());
            for stretch in stretches {
                out.push(&stretch.bytes.to_be_bytes());
                out.push(&stretch.flags.to_be_bytes());
            }
            return;
        }
        self.chunk(flags, chunk::BLOCK_STATUS, 4 + 8 * count(stretches.len()), out);
        out.push(&context.to_be_bytes());
        for stretch in stretches {
            // Both fit: such a request is shorter than 4 GiB, and these contexts' flags have 32 bits.
            out.push(&u32::try_from(stretch.bytes).unwrap_or(u32::MAX).to_be_bytes());
            out.push(&u32::try_from(stretch.flags & 0xffff_ffff).unwrap_or_default().to_be_bytes());
        }
    }
}
