//! One open object: bytes at offsets.

use crate::base::{HostOffset, HostRange, Result};
use std::{
    fmt,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

/// How a file is opened, and which locks are taken on it (see [`crate::io::Host::open`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading; others may read too, none may write.
    Read,
    /// Reading while others may write (`-U`): no lock is taken.
    ReadShared,
    /// Reading as [`Access::Read`], by somebody who may go on to write ([`File::set_access`]).
    ReadToWrite,
    /// Writing; others may neither write nor read what must be consistent.
    Write,
}

impl Access {
    /// Returns whether the file may be written.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write)
    }
}

/// Whether a range that is no longer wanted keeps its space on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// The space stays allocated: a later write cannot fail for want of it.
    Space,
    /// The space goes back to the host.
    Nothing,
}

/// A run of a host file that is either stored or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it is; never empty unless the question was asked at or past the end.
    pub range: HostRange,
    /// False for a hole, which reads as zeros.
    pub is_data: bool,
}

/// What a file looked like from outside at one moment: the evidence that nobody wrote to it since.
///
/// Equal witnesses of the same boot mean "untouched" for writers that go through the page cache; see
/// `content-id` in ARCHITECTURE.md for what they do not prove. The time of the last status change is left
/// out on purpose: owners and labels change at each start of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Witness {
    /// The file system (its UUID or `st_dev`-derived identity).
    pub file_system: u128,
    /// The inode number.
    pub inode: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of the last change to the bytes, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// The host's boot ID: a witness of an earlier boot proves nothing.
    pub boot: u128,
}

impl Witness {
    /// Returns whether both name the same file: file system and inode.
    pub fn same_file(&self, other: &Self) -> bool {
        self.file_system == other.file_system && self.inode == other.inode
    }

    /// Returns whether both have one length and one time of the last change, whichever file they name.
    pub fn same_state(&self, other: &Self) -> bool {
        (self.bytes, self.modified_ns) == (other.bytes, other.modified_ns)
    }

    /// Returns whether both name the same file, in the same state.
    pub fn is_unchanged(&self, other: &Self) -> bool {
        self.same_file(other) && self.same_state(other)
    }
}

/// A real file as the operating system knows it.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// The descriptor: it stays open while this is held, whatever the host's bound on open files.
    pub fd: Arc<OwnedFd>,
    /// The file system (`st_dev`).
    pub file_system: u64,
    /// Bytes in a block of the file system: what can be shared starts and ends on one.
    pub block_bytes: u64,
    /// Whether the file system's bytes are on another machine, which may be asked to copy them.
    pub is_remote: bool,
    /// Whether what is written is not read again soon (see [`crate::io::stream`]).
    pub(in crate::io) streams: Arc<AtomicBool>,
}

/// An open object that holds bytes at offsets: a host file, a block device, memory.
///
/// All methods take `&self` and may be called by several threads; what overlapping writes leave is one of
/// them, per byte. No method has a default: a wrapper must answer every one, or it silently corrupts.
/// Errors name the file.
pub trait File: Send + Sync + fmt::Debug {
    /// Returns the name for messages.
    fn path(&self) -> &Path;

    /// Returns the length now, in bytes.
    fn bytes(&self) -> Result<u64>;

    /// Fills `buf` from `at`; bytes past the end of the file read as zeros.
    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()>;

    /// Stores `buf` at `at`, growing the file if needed. Durable only after [`File::flush`].
    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()>;

    /// Makes the range read as zeros. Durable only after [`File::flush`].
    ///
    /// [`Kept::Nothing`] punches a hole where the host can and never makes the file longer;
    /// [`Kept::Space`] grows the file if the range passes its end.
    fn zero(&self, range: HostRange, kept: Kept) -> Result<()>;

    /// Returns whether [`File::zero`] is known to write no zeros: the host makes them without.
    fn zeroes_fast(&self, kept: Kept) -> bool;

    /// Reserves space for the range, so that writing it cannot fail for want of space; the bytes stay as
    /// they are (zeros past the old end; the file grows to the range's end).
    fn allocate(&self, range: HostRange) -> Result<()>;

    /// Sets the length: cuts, or grows with a hole.
    fn set_bytes(&self, bytes: u64) -> Result<()>;

    /// Returns once everything written before this call is durable, the length included.
    fn flush(&self) -> Result<()>;

    /// As [`File::flush`], and the time of the last change is durable, too: who notes a witness and believes it
    /// after a power cut calls this first.
    fn flush_with_time(&self) -> Result<()>;

    /// Returns the run of data or hole that holds `at`, starting at `at` (`SEEK_DATA`, `SEEK_HOLE`). At or
    /// past the end: an empty hole. Where the host cannot tell, all is data.
    fn run_at(&self, at: HostOffset) -> Result<Run>;

    /// Returns what the file looks like from outside.
    fn witness(&self) -> Result<Witness>;

    /// Returns the space that the file takes on the host, in bytes.
    fn allocated_bytes(&self) -> Result<u64>;

    /// Returns what system calls between two files need, if this is a real file.
    fn descriptor(&self) -> Option<Descriptor>;

    /// Returns whether the object is a block device: fixed length, no holes to tell.
    fn is_device(&self) -> bool;

    /// Goes over from reading to writing or back, without letting go of the file in between; for a file that was
    /// opened [`Access::ReadToWrite`] or [`Access::Write`].
    ///
    /// `Busy` while somebody else uses it; `Policy` if it may not be written.
    fn set_access(&self, access: Access) -> Result<()>;
}
