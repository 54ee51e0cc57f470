//! One open dynamic or differencing VHD: what is kept of it in memory, and its face as an [`Image`].
//!
//! ```text
//! | footer copy | header | names of the parent | BAT | bitmap, block | bitmap, block | ... | footer |
//! ```
//! Locks, in the order in which they are taken: a *claim* on guest sectors, the header, the state, the bitmaps. The
//! header's lock is also the right to write tables. The state's shared side is held while data is read, or written to
//! sectors that are held already: whoever holds its exclusive side knows that nobody uses a host offset that was looked up
//! before. A write to sectors that are not held yet has only its claim while it moves bytes: nobody looks there before
//! their bits are set.
//!
//! In a disk without a parent, what is not held reads as zeros, and new blocks are held whole: programs that do not look
//! at bitmaps there (qemu) see the same.

use super::{
    bat::Bat,
    footer::{Footer, Footers},
    header::{Header, Shape},
    marks::{Bits, Marks},
};
use crate::{
    base::{
        Budget, Claims, Error, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        budget::Share,
        error::InFile,
        units::{SECTOR_BYTES, count, index},
    },
    format::{
        Below, Details, Format, Identity, Image, ParentName, Parts, check_on_disk,
        source::{Job, Source},
    },
    io::{File, Kept, Moved},
    map::Extent,
};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;

/// What changes while the image is open.
#[derive(Debug)]
pub(super) struct State {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// Whether it has a parent.
    pub(super) is_child: bool,
    /// The footer as both copies are to be.
    pub(super) footer: Footer,
    /// Where the one at the end is: blocks are added there.
    pub(super) end_at: HostOffset,
    /// Where blocks are.
    pub(super) bat: Bat,
    /// Which of their sectors are held.
    pub(super) marks: Mutex<Marks>,
    /// Blocks that entries in memory no longer lead to, and entries in the file may still.
    pub(super) dropped: Vec<HostOffset>,
    /// Room for blocks that nothing leads to; what is there is not known.
    pub(super) free: Vec<HostOffset>,
    /// Why tables could not be written once; nothing is written any more.
    pub(super) poison: Option<String>,
}

/// An open dynamic or differencing image.
#[derive(Debug)]
pub(super) struct SparseImage {
    pub(super) file: Arc<dyn File>,
    pub(super) shape: Shape,
    is_writable: bool,
    budget: Budget,
    share: Share,
    /// Held while the size changes: one change at a time.
    pub(super) resizing: Mutex<()>,
    /// Whether footers are to be put right before anything is written.
    awaits_recovery: bool,
    pub(super) claims: Claims,
    pub(super) header: Mutex<Header>,
    pub(super) state: RwLock<State>,
}

impl SparseImage {
    /// Opens the image in `file`, whose footers are those given; for writing, puts right what a cut left of them.
    pub(super) fn open(
        file: Arc<dyn File>,
        footers: &Footers,
        is_writable: bool,
        parts: &dyn Parts,
    ) -> Result<Self> {
        let (footer, size) = (footers.footer, footers.footer.disk_bytes()?);
        let at = HostOffset::new(footer.data_offset);
        let header = Header::read(&*file, (at, size), footer.kind()?, footers.is_unsigned)?;
        let budget = parts.budget();
        let entries = header.shape.entries(size);
        let bat = Bat::open(&*file, (&header, footers.end_at), entries, (!is_writable).then_some(&budget))?;
        if is_writable {
            if footers.is_unsigned || header.is_unsigned {
                let what =
                    "has checksums that leave its identity out: it is only read before `check --repair all`";
                return Err(Error::invalid(what));
            }
            header.check_locators(footers.end_at)?;
            footers.mend(&*file)?;
        }
        let state = State {
            size,
            is_child: header.names.is_some(),
            footer,
            end_at: footers.end_at.ceil(SECTOR_BYTES),
            bat,
            marks: Mutex::default(),
            dropped: Vec::new(),
            free: Vec::new(),
            poison: None,
        };
        Ok(Self {
            file,
            shape: header.shape,
            is_writable,
            share: budget.join(),
            budget,
            resizing: Mutex::new(()),
            awaits_recovery: !is_writable && footers.await_mending(),
            claims: Claims::default(),
            header: Mutex::new(header),
            state: RwLock::new(state),
        })
    }

    /// Returns how many bytes of bitmaps are kept.
    pub(super) fn room(&self) -> u64 {
        self.share.bytes()
    }

    /// Refuses a range that is not on the disk.
    pub(super) fn check_range(&self, range: GuestRange) -> Result<()> {
        check_on_disk(range, self.state.read().size)
    }

    /// Refuses to change an image that was opened for reading.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.is_writable { Ok(()) } else { Err(Error::invalid("is open for reading only")) }
    }

    fn write_checked(&self, job: Job<'_>) -> Result<Moved> {
        self.check_writable()?;
        self.check_range(job.range)?;
        self.write_job(job)
    }

    /// Returns the block that holds `at`.
    pub(super) const fn block(&self, at: GuestOffset) -> u64 {
        at.bytes() / self.shape.block()
    }

    /// Returns the sectors that `range`, inside one block, touches: the first, and the one after the last.
    pub(super) const fn sectors(&self, range: GuestRange) -> (u64, u64) {
        let outer = range.outer(SECTOR_BYTES);
        let first = outer.start.bytes() % self.shape.block() / SECTOR_BYTES;
        (first, first + outer.bytes / SECTOR_BYTES)
    }

    /// Returns where the bytes of `range` are in the block at `host`.
    pub(super) const fn place(&self, host: HostOffset, range: GuestRange) -> HostRange {
        host.plus(self.shape.bitmap() + range.start.bytes() % self.shape.block()).range(range.bytes)
    }

    /// Looks at the bits of a block that is at `host`.
    pub(super) fn with_bits<T>(
        &self,
        state: &State,
        (block, host): (u64, HostOffset),
        look: impl FnOnce(&Bits) -> T,
    ) -> Result<T> {
        let mut marks = state.marks.lock();
        if let Some(bits) = marks.get(block) {
            return Ok(look(bits));
        }
        // Nobody changes them meanwhile: that takes the state's exclusive side.
        let mut bytes = vec![0; index(self.shape.bitmap())];
        self.file.read_at(host, &mut bytes)?;
        let bits = Bits::new(bytes, self.shape.block() / SECTOR_BYTES);
        let looked = look(&bits);
        marks.put((block, host), bits, self.room());
        Ok(looked)
    }
}

impl Image for SparseImage {
    fn format(&self) -> Format {
        Format::Vpc
    }

    fn size(&self) -> u64 {
        self.state.read().size
    }

    fn unit(&self) -> u64 {
        SECTOR_BYTES
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn parent(&self) -> Option<ParentName> {
        super::parent_name(&self.header.lock())
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::Guid(self.state.read().footer.unique_id))
    }

    fn details(&self) -> Result<Details> {
        Ok(super::details(&self.state.read().footer, Some(self.shape)))
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![self.file.clone()]
    }

    fn data_file(&self) -> Arc<dyn File> {
        self.file.clone()
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.check_range(range).and_then(|()| self.map_unchecked(range, out)).in_file(self.file.path())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let range = at.range(count(buf.len()));
        self.check_range(range)
            .and_then(|()| self.read_unchecked(range, buf, below))
            .in_file(self.file.path())
    }

    fn write(&self, at: GuestOffset, buf: &[u8], below: &dyn Below) -> Result<()> {
        let range = at.range(count(buf.len()));
        let job = Job { range, source: Source::Bytes(buf), below };
        self.write_checked(job).map(drop).in_file(self.file.path())
    }

    fn write_from(
        &self,
        range: GuestRange,
        source: &dyn File,
        from: HostOffset,
        below: &dyn Below,
    ) -> Result<Moved> {
        let job = Job { range, source: Source::File(source, from), below };
        self.write_checked(job).in_file(self.file.path())
    }

    fn zero(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        self.check_writable()
            .and_then(|()| self.check_range(range))
            .and_then(|()| self.zero_unchecked(range, kept, below))
            .in_file(self.file.path())
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        range.is_empty() || !self.state.read().is_child && self.file.zeroes_fast(kept)
    }

    fn flush(&self) -> Result<()> {
        if self.is_writable { self.flush_all().in_file(self.file.path()) } else { Ok(()) }
    }

    fn flush_with_time(&self) -> Result<()> {
        self.flush()?;
        self.file.flush_with_time()
    }

    fn release(&self) -> Result<u64> {
        self.check_writable().and_then(|()| self.release_unused()).in_file(self.file.path())
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        self.entries_for(bytes).map(drop).in_file(self.file.path())
    }

    fn resize(&self, bytes: u64, below: &dyn Below) -> Result<()> {
        self.check_writable().and_then(|()| self.resize_to(bytes, below)).in_file(self.file.path())
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        self.check_writable().and_then(|()| self.name_parent(parent)).in_file(self.file.path())
    }

    fn awaits_recovery(&self) -> bool {
        self.awaits_recovery
    }

    fn set_identity(&self, identity: Identity) -> Result<()> {
        let Identity::Guid(id) = identity else { return Ok(()) };
        let done = self.check_writable().and_then(|()| self.flush_all());
        done.and_then(|()| self.change_footer(|footer| footer.unique_id = id)).in_file(self.file.path())
    }
}

#[cfg(test)]
mod tests;
