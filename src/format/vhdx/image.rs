//! One open VHDX image, and its face as an [`Image`].
//!
//! Locks, in the order in which they are taken: that of a resize, a *claim* on guest bytes, the session (the right to
//! write metadata and headers), the state. The state's shared side is held while data is read, or written in place; so
//! whoever holds its exclusive side knows that nobody uses a host offset that was looked up before.
//!
//! | | read | write in place | first write | zero | flush |
//! |---|---|---|---|---|---|
//! | read | together | together | entries change between reads | same | together |
//! | write in place | | together, per byte one of them | same | same | together |
//! | first write, zero | | | wait for each other's sectors | same | together |
//! | flush | | | | | one after another |
//!
//! A block that gets its place shows at once what it showed before: zeros, or, in a child, its parent's bytes, until
//! the bits of its sectors say otherwise. So only sectors of a child are ever claimed.
//!
//! Two GUIDs of the header change once an opening, and before what they stand for (MS-VHDX 2.2.2): the file's before
//! anything is written, the data's before what the guest sees. The project's record names the data's GUID, so that a
//! stranger's writes show; before our own it names the new one besides, durably.

use super::{
    change,
    geometry::MIB,
    layout::Layout,
    log::PAGE_BYTES,
    replayed::Replayed,
    session::Session,
    space::{self, Space},
    state::State,
};
use crate::{
    base::{Budget, Claims, Error, GuestOffset, GuestRange, HostOffset, Result, error::InFile, units::count},
    format::{
        Below, Details, Format, Identity, Image, ParentName, StoredRecord, check_on_disk,
        pages::{Pages, WRITERS_LEAST},
        source::{Job, Source},
    },
    io::{File, Kept, Moved},
    map::Extent,
};
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// The fewest pages that a reader needs at once: an entry, its bitmap's, and the bits.
const READERS_LEAST: usize = 4;

/// An open VHDX image.
#[derive(Debug)]
pub(super) struct VhdxImage {
    /// The file; for who only reads, under what its log says.
    pub(super) file: Arc<dyn File>,
    /// The file itself.
    bare: Arc<dyn File>,
    is_writable: bool,
    budget: Budget,
    /// Whether the data's GUID is another one than before the opening.
    pub(super) is_data_begun: AtomicBool,
    /// Whether the data keeps its GUID, as what is written leaves the view as it is.
    keeps_identity: AtomicBool,
    /// Held while the size or the parent changes: one change at a time.
    pub(super) reshaping: Mutex<()>,
    pub(super) claims: Claims,
    pub(super) session: Mutex<Session>,
    pub(super) state: RwLock<State>,
}

impl VhdxImage {
    /// Opens the image in `file`; its log is put in its place, if the image is to be written.
    pub(super) fn open(file: Arc<dyn File>, is_writable: bool, budget: Budget) -> Result<Self> {
        let path = file.path().to_path_buf();
        Self::open_file(file, is_writable, budget).in_file(&path)
    }

    fn open_file(bare: Arc<dyn File>, is_writable: bool, budget: Budget) -> Result<Self> {
        let mut layout = Layout::read(bare.as_ref())?;
        let mut session = Session::new(layout.header, layout.regions.clone());
        let file: Arc<dyn File> = match layout.replay.take() {
            None => Arc::clone(&bare),
            Some(replay) if is_writable => {
                session.recover(bare.as_ref(), &replay)?;
                Arc::clone(&bare)
            }
            Some(replay) => Arc::new(Replayed { file: Arc::clone(&bare), replay }),
        };
        let space = space::survey(file.as_ref(), &layout)?;
        let least = if is_writable { WRITERS_LEAST } else { READERS_LEAST };
        let state = State {
            file: Arc::clone(&file),
            geometry: layout.metadata.geometry,
            bat: layout.regions.bat,
            metadata: layout.metadata,
            pages: Pages::new(PAGE_BYTES, PAGE_BYTES, budget.join(), least),
            space: if is_writable { space } else { Space::default() },
            dropped: Vec::new(),
            poison: None,
        };
        Ok(Self {
            file,
            bare,
            is_writable,
            budget,
            is_data_begun: AtomicBool::new(false),
            keeps_identity: AtomicBool::new(false),
            reshaping: Mutex::new(()),
            claims: Claims::default(),
            session: Mutex::new(session),
            state: RwLock::new(state),
        })
    }

    /// Refuses a range that is not on the disk.
    pub(super) fn check_range(&self, range: GuestRange) -> Result<()> {
        check_on_disk(range, self.state.read().metadata.size)
    }

    /// Refuses to change an image that was opened for reading.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.is_writable { Ok(()) } else { Err(Error::invalid("is open for reading only")) }
    }

    /// Goes before bytes of `range` are changed.
    pub(super) fn begin_at(&self, range: GuestRange) -> Result<()> {
        self.check_writable()?;
        self.check_range(range)?;
        if range.is_empty() { Ok(()) } else { self.begin() }
    }

    /// Goes before what the guest sees is changed for the first time: the data gets another GUID.
    pub(super) fn begin(&self) -> Result<()> {
        self.check_writable()?;
        if self.is_data_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut session = self.session.lock();
        if self.keeps_identity.load(Ordering::Acquire) {
            return session.begin(self.file.as_ref());
        }
        if !self.is_data_begun.load(Ordering::Acquire) {
            self.begin_data(&mut session)?;
            self.is_data_begun.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn write_checked(&self, job: Job<'_>) -> Result<Moved> {
        self.begin_at(job.range)?;
        self.write_job(job)
    }
}

impl Drop for VhdxImage {
    /// Leaves the log empty for programs that do not read it. Where that fails, whoever opens the file replays it.
    fn drop(&mut self) {
        if self.is_writable && self.state.get_mut().poison.is_none() {
            let _ = self.session.get_mut().empty_log(self.file.as_ref());
        }
    }
}

impl Image for VhdxImage {
    fn format(&self) -> Format {
        Format::Vhdx
    }

    fn size(&self) -> u64 {
        self.state.read().metadata.size
    }

    fn unit(&self) -> u64 {
        let state = self.state.read();
        // A block is mostly a hole where only a part of it was written.
        if state.metadata.has_parent() { state.geometry.sector_bytes } else { 64 << 10 }
    }

    fn sector_bytes(&self) -> u64 {
        self.state.read().geometry.sector_bytes
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn parent(&self) -> Option<ParentName> {
        // A locator that names no path was refused when the image was opened.
        self.state.read().metadata.locator.as_ref().and_then(|locator| locator.parent().ok())
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::Guid(self.session.lock().header.data_guid.to_bytes_le()))
    }

    fn details(&self) -> Result<Details> {
        Ok(self.read_details())
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![Arc::clone(&self.bare)]
    }

    fn data_file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.map_range(range, out).in_file(self.file.path())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        self.read_range(at, buf, below).in_file(self.file.path())
    }

    fn write(&self, at: GuestOffset, buf: &[u8], below: &dyn Below) -> Result<()> {
        let job = Job { range: at.range(count(buf.len())), source: Source::Bytes(buf), below };
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
        self.zero_range(range, kept, below).in_file(self.file.path())
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        range.is_empty() || self.erases_whole(range, kept) || self.file.zeroes_fast(kept)
    }

    fn begin_writing(&self) -> Result<()> {
        self.begin().in_file(self.file.path())
    }

    fn flush(&self) -> Result<()> {
        if self.is_writable { self.flush_all().in_file(self.file.path()) } else { Ok(()) }
    }

    fn flush_with_time(&self) -> Result<()> {
        if self.is_writable {
            self.flush_and_empty_log().in_file(self.file.path())?;
        }
        self.bare.flush_with_time()
    }

    fn release(&self) -> Result<u64> {
        self.release_unused().in_file(self.file.path())
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        self.refuse_size(bytes).in_file(self.file.path())
    }

    fn resize(&self, bytes: u64, below: &dyn Below) -> Result<()> {
        self.resize_to(bytes, below).in_file(self.file.path())
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        self.change_parent(parent).in_file(self.file.path())
    }

    fn record(&self) -> Result<Option<StoredRecord>> {
        let data_guid = self.session.lock().header.data_guid;
        Ok(self.state.read().metadata.record.as_deref().and_then(|item| change::record(item, data_guid)))
    }

    fn keep_identity(&self, keeps: bool) {
        self.keeps_identity.store(keeps, Ordering::Release);
    }

    fn awaits_recovery(&self) -> bool {
        // Then the log is replayed in memory.
        !std::ptr::addr_eq(Arc::as_ptr(&self.file), Arc::as_ptr(&self.bare))
    }

    fn set_record(&self, record: Option<&[u8]>) -> Result<bool> {
        if !self.is_writable {
            return Ok(false);
        }
        self.change_record(record).in_file(self.file.path())
    }

    fn void_record(&self) -> Result<()> {
        if self.is_writable { self.spoil_record().in_file(self.file.path()) } else { Ok(()) }
    }

    fn set_identity(&self, identity: Identity) -> Result<()> {
        match identity {
            Identity::Guid(guid) => self.take_data_guid(guid).in_file(self.file.path()),
            Identity::Cid(_) => Ok(()),
        }
    }
}

const _: () = assert!(MIB.is_multiple_of(PAGE_BYTES));

#[cfg(test)]
mod tests;
