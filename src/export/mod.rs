//! Layer 7: a disk over a wire. An export knows [`Disk`] and nothing of chains, formats or jobs; it brings the
//! threads that the core does not have.
#![forbid(unsafe_code)]

mod guests;
mod pace;
mod unix;

pub mod nbd;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;

pub use guests::{Guest, Guests};
pub use unix::listen_privately;

use crate::{
    base::{GuestRange, Result},
    disk::Disk,
};
use std::{fmt, sync::Arc};

/// A disk as clients see it.
#[derive(Clone)]
pub struct Export {
    /// The name that clients ask for; may be empty (the default export).
    pub name: String,
    /// What a person may want to know of it.
    pub description: String,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Whether writes are refused though the disk may be able to take them.
    pub is_read_only: bool,
    /// Whether a flush on one connection covers what was written on the others.
    pub is_multi_conn: bool,
    /// What can be told of ranges beyond where their bytes are (dirty bitmaps).
    pub contexts: Vec<Arc<dyn Context>>,
    /// Whoever has it: a client enters before its first request.
    pub guests: Arc<Guests>,
}

impl Export {
    /// Returns whether clients may write.
    pub fn is_writable(&self) -> bool {
        !self.is_read_only && self.disk.is_writable()
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a server serves now: asked again for each client, so that exports come and go while it runs.
pub trait Exports: Send + Sync {
    /// Returns name and description of all that clients may know of.
    fn list(&self) -> Vec<(String, String)>;

    /// Returns the export of that name: `NotFound` if there is none, `Policy` if this client may not have it.
    fn open(&self, name: &str) -> Result<Export>;
}

/// A stretch of a disk and what a context says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The length in bytes.
    pub bytes: u64,
    /// What is said, in the bits that the context defines.
    pub flags: u64,
}

impl Stretch {
    /// Appends it, unless it is empty, joined to the last one if that says the same.
    pub fn append_to(self, out: &mut Vec<Self>) {
        match out.last_mut() {
            Some(last) if last.flags == self.flags => last.bytes += self.bytes,
            _ if self.bytes == 0 => {}
            _ => out.push(self),
        }
    }
}

/// Something that can be told of each byte of a disk.
pub trait Context: Send + Sync {
    /// Returns the name that clients ask for, with its namespace (`qemu:dirty-bitmap:NAME`).
    fn name(&self) -> &str;

    /// Appends what is said of `range` from its start on, in order: of all of it, unless that is more than
    /// [`crate::disk::STATUS_MAX`] stretches; then of as much as that and no more than twice as much.
    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()>;
}
