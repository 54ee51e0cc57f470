//! A write under way, as every format that allocates takes it apart.
//!
//! A source is looked at by offsets, so that pieces of one write can be stored in any order and more than once.

use super::Below;
use crate::{
    base::{GuestRange, HostOffset, HostRange, Result, units::index},
    io::{self, File, Kept, Moved},
};

/// Where the bytes to write come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Memory.
    Bytes(&'a [u8]),
    /// Another file, from an offset on.
    File(&'a dyn File, HostOffset),
    /// Nowhere: zeros.
    Zeros(Kept),
}

impl Source<'_> {
    /// Stores what is `skip` bytes into the source at `to`.
    pub(super) fn put(self, skip: u64, file: &dyn File, to: HostRange) -> Result<Moved> {
        match self {
            Self::Bytes(bytes) => {
                let from = index(skip);
                let bytes = bytes.get(from..from + index(to.bytes)).unwrap_or_default();
                file.write_at(to.start, bytes)?;
                Ok(Moved { shared_bytes: 0, copied_bytes: to.bytes })
            }
            Self::File(from, at) => io::copy(from, at.plus(skip), file, to.start, to.bytes),
            Self::Zeros(kept) => file.zero(to, kept).map(|()| Moved::default()),
        }
    }

    /// Fills `buf` with what is `skip` bytes into the source.
    pub(super) fn fill(self, skip: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Bytes(bytes) => {
                let from = bytes.get(index(skip)..).unwrap_or_default();
                buf.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                Ok(())
            }
            Self::File(from, at) => from.read_at(at.plus(skip), buf),
            Self::Zeros(_) => {
                buf.fill(0);
                Ok(())
            }
        }
    }
}

/// What goes where, and what shows around it.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// Where it goes.
    pub(super) range: GuestRange,
    /// What it stores there.
    pub(super) source: Source<'a>,
    /// What lies below the layer.
    pub(super) below: &'a dyn Below,
}
