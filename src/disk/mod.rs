//! Layer 5: the face of a block device. Exports call it, jobs wrap it, chains implement it.
#![forbid(unsafe_code)]

use crate::{
    base::{GuestOffset, GuestRange, Result},
    io::Kept,
};

/// The most runs that anybody is told of at once: what guests have cut up into small pieces costs no more memory.
pub const STATUS_MAX: usize = 65_536;

/// A run of guest bytes as a client may ask for it (`base:allocation` and qemu's depth).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which bytes.
    pub range: GuestRange,
    /// Which layer decides, 0 for the head; `None` where no layer does (reads as zeros).
    pub depth: Option<u32>,
    /// Whether the run reads as zeros.
    pub is_zero: bool,
}

/// A disk that can be read and written at any byte.
///
/// Methods take `&self` and block; several threads may call them at once. Ranges lie within the size
/// (`Invalid` otherwise). No method has a default: a wrapper must answer every one.
pub trait Disk: Send + Sync {
    /// Returns the size in bytes, fixed while the disk is open.
    fn size(&self) -> u64;

    /// Returns whether the disk may be written.
    fn is_writable(&self) -> bool;

    /// Returns the smallest unit that a guest should address, in bytes: a power of two, 512 or more.
    fn sector_bytes(&self) -> u32;

    /// Fills `buf` from `at`.
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()>;

    /// Stores `buf` at `at`. Durable only after [`Disk::flush`].
    fn write(&self, at: GuestOffset, buf: &[u8]) -> Result<()>;

    /// Makes exactly the bytes of `range` read as zeros, giving space back if `kept` says so.
    fn zero(&self, range: GuestRange, kept: Kept) -> Result<()>;

    /// Returns whether [`Disk::zero`] is known to write no zeros for this range: it is quicker than writing then,
    /// however long the range.
    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool;

    /// Has `range` be where reading it again is quick, as far as that can be. A hint.
    fn cache(&self, range: GuestRange) -> Result<()>;

    /// Returns once every write that had returned before this call is durable.
    fn flush(&self) -> Result<()>;

    /// Appends what is known of `range` from its start on, in order: of all of it, unless that is more than [`STATUS_MAX`]
    /// runs; then of as much as that and no more than twice as much.
    fn status(&self, range: GuestRange, out: &mut Vec<Status>) -> Result<()>;
}
