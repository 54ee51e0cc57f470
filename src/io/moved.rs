//! Moving bytes from one file to another the cheapest way that the host offers.
//!
//! Three ways, each tried where the one before is refused: sharing whole blocks (`FICLONERANGE`), copying on a
//! file server (`copy_file_range`), copying through memory. What two file systems cannot do together is asked of
//! the kernel once in a process. Local files are not copied with `copy_file_range`: it goes page by page through
//! a pipe there, which takes a third more processor time than the same through memory.

use super::{Descriptor, File, Kept, real};
use crate::base::{
    Error, HostOffset, HostRange, Result,
    units::{count, index},
};
use parking_lot::RwLock;
use rustix::io::Errno;
use std::{cell::RefCell, collections::BTreeSet, sync::atomic::Ordering};

/// How bytes were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that both files now share (reflink): nothing was copied.
    pub shared_bytes: u64,
    /// Bytes copied, by the kernel or through memory.
    pub copied_bytes: u64,
}

/// Copies `bytes` bytes from `from` at `from_at` to `to` at `to_at`: a reflink where both lie on a file system
/// that can share and the offsets line up, `copy_file_range` on a file server, else through memory.
///
/// Bytes past the end of `from` arrive as zeros. The two files are not the same file. After an error any part
/// may have arrived.
pub fn copy(
    from: &dyn File,
    from_at: HostOffset,
    to: &dyn File,
    to_at: HostOffset,
    bytes: u64,
) -> Result<Moved> {
    let route = Route { from, from_at, to, to_at };
    let held = bytes.min(HostOffset::new(from.bytes()?).since(from_at));
    let shared = route.share(held);
    route.copy(HostRange::between(from_at, shared.start))?;
    route.copy(HostRange::between(shared.end(), from_at.plus(held)))?;
    if held < bytes {
        to.zero(to_at.plus(held).range(bytes - held), Kept::Space)?;
    }
    Ok(Moved { shared_bytes: shared.bytes, copied_bytes: bytes - shared.bytes })
}

/// Returns whether [`share`] may do it, as far as is known before it is asked to.
pub fn may_share(from: &dyn File, to: &dyn File) -> bool {
    let route = Route { from, from_at: HostOffset::new(0), to, to_at: HostOffset::new(0) };
    are_unknown(from, to) || route.descriptors().is_some_and(|(from, to)| are_able_to_share(&from, &to))
}

/// Lets `to` share all blocks of `range` of `from` at `to_at`; `None`, and nothing done, where that cannot be.
///
/// Files that no host knows (in memory, simulated) are copied: nothing is cheaper there.
pub fn share(from: &dyn File, range: HostRange, to: &dyn File, to_at: HostOffset) -> Result<Option<Moved>> {
    let route = Route { from, from_at: range.start, to, to_at };
    if are_unknown(from, to) {
        return route.copy(range).map(|()| Some(Moved { shared_bytes: 0, copied_bytes: range.bytes }));
    }
    // Half of it would have to be taken back.
    let is_whole = route.descriptors().is_some_and(|(from, to)| {
        range == range.inner(from.block_bytes.max(to.block_bytes)) && !range.is_empty()
    });
    let is_shared = is_whole && route.share(range.bytes) == range;
    Ok(is_shared.then_some(Moved { shared_bytes: range.bytes, copied_bytes: 0 }))
}

/// Returns whether no host knows the files: their bytes are in memory.
fn are_unknown(from: &dyn File, to: &dyn File) -> bool {
    let is_unknown = |file: &dyn File| file.descriptor().is_none() && !file.is_device();
    is_unknown(from) && is_unknown(to)
}

/// Returns whether the host may move bytes between the files without passing them through memory, as far as is
/// known before it is asked to: sharing blocks, or copying on a file server.
pub fn is_helped(from: &dyn File, to: &dyn File) -> bool {
    let route = Route { from, from_at: HostOffset::new(0), to, to_at: HostOffset::new(0) };
    route.descriptors().is_some_and(|(from, to)| {
        are_able_to_share(&from, &to) || (from.is_remote && is_able(Way::Server, &from, &to))
    })
}

/// Lets the host begin to write back what was written to `file`, and does not wait for it: a hint for jobs that
/// write much and flush at the end, so that the device works meanwhile. Makes nothing durable.
pub fn begin_flush(file: &dyn File) {
    if let Some(descriptor) = file.descriptor().filter(|_| !file.is_device()) {
        real::begin_flush(&descriptor.fd);
    }
}

/// Says that what is written to `file` from now on in large pieces is not read again soon: a new image, say. The host
/// then writes it back at once and does not keep it in memory, where others need the room. A hint.
pub fn stream(file: &dyn File) {
    if let Some(descriptor) = file.descriptor().filter(|_| !file.is_device()) {
        descriptor.streams.store(true, Ordering::Relaxed);
    }
}

/// Bytes that pass through memory in one go: what the processor's own cache holds.
const COPY_BYTES: u64 = 256 << 10;

thread_local! {
    /// Where bytes pass through; kept, since many copies are as short as one cluster.
    static PASSAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Pairs of file systems that refused a way.
static UNABLE: RwLock<BTreeSet<(Way, u64, u64)>> = RwLock::new(BTreeSet::new());

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Share,
    Server,
}

fn is_able(way: Way, from: &Descriptor, to: &Descriptor) -> bool {
    !UNABLE.read().contains(&(way, from.file_system, to.file_system))
}

fn are_able_to_share(from: &Descriptor, to: &Descriptor) -> bool {
    from.file_system == to.file_system && is_able(Way::Share, from, to)
}

/// Notes a refusal that holds for the file systems, not for this range only.
fn note(way: Way, from: &Descriptor, to: &Descriptor, e: Errno) {
    if matches!(e, Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) {
        UNABLE.write().insert((way, from.file_system, to.file_system));
    }
}

/// From where to where; ranges below are in `from`.
struct Route<'a> {
    from: &'a dyn File,
    from_at: HostOffset,
    to: &'a dyn File,
    to_at: HostOffset,
}

impl Route<'_> {
    /// Where a byte of `from` goes.
    const fn target(&self, at: HostOffset) -> HostOffset {
        self.to_at.plus(at.since(self.from_at))
    }

    fn descriptors(&self) -> Option<(Descriptor, Descriptor)> {
        let are_files = !self.from.is_device() && !self.to.is_device();
        are_files.then_some((self.from.descriptor()?, self.to.descriptor()?))
    }

    /// Shares whole blocks of the first `bytes` bytes and returns which; whatever the reason why not, they
    /// can be copied.
    fn share(&self, bytes: u64) -> HostRange {
        self.try_share(self.from_at.range(bytes)).unwrap_or(self.from_at.range(0))
    }

    fn try_share(&self, range: HostRange) -> Option<HostRange> {
        let (from, to) = self.descriptors()?;
        let block = from.block_bytes.max(to.block_bytes);
        let whole = range.inner(block);
        let target = self.target(whole.start);
        if whole.is_empty() || target != target.floor(block) || !is_able(Way::Share, &from, &to) {
            return None;
        }
        let answer = real::clone_range(&from.fd, whole, &to.fd, target);
        answer.map_err(|e| note(Way::Share, &from, &to, e)).ok().map(|()| whole)
    }

    fn copy(&self, range: HostRange) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let done = self.copy_on_server(range)?;
        let rest = HostRange::between(range.start.plus(done), range.end());
        PASSAGE.with_borrow_mut(|buf| {
            if count(buf.len()) < COPY_BYTES {
                buf.resize(index(COPY_BYTES), 0);
            }
            rest.pieces(COPY_BYTES).try_for_each(|piece| {
                let part = buf.get_mut(..index(piece.bytes)).unwrap_or_default();
                self.from.read_at(piece.start, part)?;
                self.to.write_at(self.target(piece.start), part)
            })
        })
    }

    /// Copies what a file server agrees to copy; returns how many bytes.
    fn copy_on_server(&self, range: HostRange) -> Result<u64> {
        let is_worth = |from: &Descriptor, to: &Descriptor| from.is_remote && is_able(Way::Server, from, to);
        let Some((from, to)) = self.descriptors().filter(|(from, to)| is_worth(from, to)) else {
            return Ok(0);
        };
        let (mut from_at, mut to_at) = (range.start.bytes(), self.target(range.start).bytes());
        loop {
            let done = from_at - range.start.bytes();
            let left = index(range.bytes - done);
            if left == 0 {
                return Ok(done);
            }
            match rustix::fs::copy_file_range(&from.fd, Some(&mut from_at), &to.fd, Some(&mut to_at), left) {
                // The end of a file that was cut meanwhile, or one whose length says nothing: read it.
                Ok(0) => return Ok(done),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e @ (Errno::IO | Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                    let doing = format!(
                        "copy {left} bytes at {from_at:#x} to {:#x} of {}",
                        to_at,
                        self.to.path().display()
                    );
                    return Err(Error::io(doing, e.into()).path(self.from.path()));
                }
                Err(e) => {
                    note(Way::Server, &from, &to, e);
                    return Ok(done);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
