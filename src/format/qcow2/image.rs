//! One open qcow2 image: what is kept of it in memory, and its face as an [`Image`].
//!
//! Locks, in the order in which they are taken: that of a resize, a *claim* on guest clusters (`claim.rs`), the header, the
//! state. The header's lock is also the right to write tables and the header into the file. The state's
//! shared side is held while data is read, or written in place; so whoever holds its exclusive side knows
//! that nobody uses a host offset that was looked up before.
//!
//! | | read | write in place | first write | zero | flush |
//! |---|---|---|---|---|---|
//! | read | together | together | entries change between reads | same | together |
//! | write in place | | together, per byte one of them | same | same | together |
//! | first write, zero | | | wait for each other's clusters | same | together |
//! | flush | | | | | one after another |
//!
//! Giving free space back to the host (`release.rs`) holds all of them up.
//!
//! Refcounts are never written late under the dirty bit, even where the header allows it ("lazy"): the order
//! that `flush.rs` keeps costs no more, and an image that is never dirty needs no repair after a cut.
//! Persistent bitmaps that ought to record writes are marked as in use before the first one, because they
//! are not recorded here, unless they are to stay sound (`bitmap/kept.rs`); bitmaps that do not record keep their
//! worth (`qcow2.rst`, "Bitmap directory").

use super::{
    bitmap::{self, Marks},
    change, check, details,
    entry::Shape,
    feature,
    header::{Compression, Header},
    pages::{Pages, WRITERS_LEAST},
    refcounts::Refcounts,
    tables::{FirstLevel, Tables, read_words},
};
use crate::{
    base::{
        Budget, Claims, Error, Guard, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        error::InFile,
        units::{SECTOR_BYTES, count},
    },
    format::{
        Adopted, Below, BitmapEdit, Bits, Details, Format, Identity, Image, ParentName, Parts, StoredRecord,
        check_on_disk,
        source::{Job, Source},
        target::Target,
    },
    io::{File, Kept, Moved},
    map::Extent,
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// What changes while the image is open.
#[derive(Debug)]
pub(super) struct State {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// L1 and L2.
    pub(super) tables: Tables,
    /// Refcounts; empty if the image is open for reading only.
    pub(super) refcounts: Refcounts,
    /// References that entries in memory no longer make, and entries in the file may still.
    pub(super) dropped: Vec<HostRange>,
    /// Why tables could not be written once; nothing is written any more.
    pub(super) poison: Option<String>,
}

/// An open qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    pub(super) file: Arc<dyn File>,
    pub(super) data_file: Option<Arc<dyn File>>,
    pub(super) shape: Shape,
    pub(super) compression: Compression,
    is_writable: bool,
    budget: Budget,
    /// Whether the external data file must read as the disk does. After a power cut, what was not flushed may be
    /// in the data file and not in the entries.
    pub(super) is_raw: bool,
    /// Whether stored bitmaps have been told that they miss writes from here on.
    is_begun: AtomicBool,
    /// What they know of changes, if they are to stay sound.
    pub(super) marks: OnceLock<Marks>,
    /// Held while the size changes: one change at a time.
    pub(super) resizing: Mutex<()>,
    pub(super) claims: Claims,
    pub(super) header: Mutex<Header>,
    pub(super) state: RwLock<State>,
}

impl Qcow2Image {
    /// Opens the image in `file`, and its external data file through `parts`.
    pub(super) fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Self> {
        let path = file.path().to_path_buf();
        Self::open_parts(file, is_writable, parts).in_file(&path)
    }

    fn open_parts(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Self> {
        let mut header = Header::read(&*file)?;
        if is_writable {
            change::begin_writing(&*file, &mut header)?;
            if header.is_dirty() {
                header = check::clean_up(&*file, header)?;
            }
        }
        let shape = Shape { geometry: header.geometry, is_external: header.has(feature::EXTERNAL_DATA) };
        let data_file = if shape.is_external {
            let missing = || Error::corrupt("uses an external data file and does not name it");
            Some(parts.open_part(header.data_file_name().ok_or_else(missing)?)?)
        } else {
            None
        };
        let budget = parts.budget();
        // Who only reads needs a single page at a time.
        let least = if is_writable { WRITERS_LEAST } else { 1 };
        let tables = Tables {
            shape,
            image: Target::new(file.clone())?,
            data: data_file.clone().map(Target::new).transpose()?,
            l1: FirstLevel::open(&*file, header.l1, (!is_writable).then_some(&budget))?,
            l1_at: header.l1.at,
            l1_changed: BTreeSet::new(),
            unreached: HashSet::new(),
            pages: Pages::new(shape.cluster(), SECTOR_BYTES, budget.join(), least),
        };
        let counts = header.refcount_table;
        let end = if file.is_device() { None } else { Some(file.bytes()?) };
        let table = if is_writable {
            read_words(&*file, "refcount table", counts.start, counts.bytes / 8)?
        } else {
            Vec::new()
        };
        let state = State {
            size: header.disk_bytes,
            tables,
            refcounts: Refcounts::new(shape.geometry, table, counts.start, end),
            dropped: Vec::new(),
            poison: None,
        };
        Ok(Self {
            file,
            data_file,
            shape,
            compression: header.compression,
            is_writable,
            budget,
            is_raw: header.is_data_file_raw(),
            is_begun: AtomicBool::new(false),
            marks: OnceLock::new(),
            resizing: Mutex::new(()),
            claims: Claims::default(),
            header: Mutex::new(header),
            state: RwLock::new(state),
        })
    }

    /// Refuses a range that is not on the disk.
    pub(super) fn check_range(&self, range: GuestRange) -> Result<()> {
        check_on_disk(range, self.state.read().size)
    }

    /// Goes before bytes of `range` are changed: stored bitmaps record it, or say first that they do not.
    pub(super) fn begin_writing(&self, range: GuestRange) -> Result<()> {
        self.check_writable()?;
        if self.marks.get().is_some() {
            return self.mark_first(range);
        }
        if self.is_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let header = self.header.lock();
        if !self.is_begun.load(Ordering::Acquire) {
            if Guard::StaleBitmaps.trips(true) {
                bitmap::mark_stale(&*self.file, &header, false)?;
            }
            self.is_begun.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The bitmaps changed: those that record are to be told again before the next write.
    pub(super) fn forget_begun(&self) {
        self.is_begun.store(false, Ordering::Release);
        self.marks.get().into_iter().for_each(Marks::forget);
    }

    fn write_checked(&self, job: Job<'_>) -> Result<Moved> {
        self.check_range(job.range)?;
        self.begin_writing(job.range)?;
        self.write_job(job)
    }

    fn zero_checked(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        self.check_range(range)?;
        self.begin_writing(range)?;
        self.zero_unchecked(self.to_cluster_end(range), kept, below)
    }

    /// Refuses to change an image that was opened for reading.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.is_writable { Ok(()) } else { Err(Error::invalid("is open for reading only")) }
    }
}

impl Image for Qcow2Image {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn size(&self) -> u64 {
        self.state.read().size
    }

    fn unit(&self) -> u64 {
        self.shape.unit()
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn parent(&self) -> Option<ParentName> {
        self.header.lock().parent()
    }

    fn identity(&self) -> Option<Identity> {
        None
    }

    fn details(&self) -> Result<Details> {
        details::read(&*self.file, &self.header.lock())
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        [Some(&self.file), self.data_file.as_ref()].into_iter().flatten().cloned().collect()
    }

    fn data_file(&self) -> Arc<dyn File> {
        self.data_file.as_ref().unwrap_or(&self.file).clone()
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.map_range(range, out).in_file(self.file.path())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        self.read_range(at, buf, below).in_file(self.file.path())
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

    fn adopt(&self, source: &dyn File, range: HostRange) -> Result<Option<Adopted>> {
        self.adopt_run(source, range).in_file(self.file.path())
    }

    fn point(&self, range: GuestRange, host: HostOffset) -> Result<bool> {
        self.point_range(range, host).in_file(self.file.path())
    }

    fn pack(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.pack_cluster(bytes)
    }

    fn write_packed(&self, at: GuestOffset, packed: &[u8]) -> Result<()> {
        let range = at.range(self.shape.cluster());
        self.begin_writing(range).and_then(|()| self.store_packed(at, packed)).in_file(self.file.path())
    }

    fn zero(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        self.zero_checked(range, kept, below).in_file(self.file.path())
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        self.erases_whole(range, kept)
    }

    fn flush(&self) -> Result<()> {
        if self.is_writable { self.flush_all().in_file(self.file.path()) } else { Ok(()) }
    }

    fn flush_with_time(&self) -> Result<()> {
        if self.is_writable {
            self.flush_tables().in_file(self.file.path())?;
        }
        self.files().iter().try_for_each(|file| file.flush_with_time())
    }

    fn bitmap(&self, name: &str) -> Result<Bits> {
        self.read_bitmap(name).in_file(self.file.path())
    }

    fn edit_bitmap(&self, edit: &BitmapEdit) -> Result<()> {
        self.change_bitmaps(edit).in_file(self.file.path())
    }

    fn keep_bitmaps(&self, region_bytes: u64) -> Result<()> {
        self.check_writable().in_file(self.file.path())?;
        let header = self.header.lock();
        bitmap::settle_stale(&*self.file, &header)?;
        self.marks.get_or_init(|| Marks::new(header.disk_bytes, region_bytes));
        Ok(())
    }

    fn release(&self) -> Result<u64> {
        self.release_unused().in_file(self.file.path())
    }

    fn resize(&self, bytes: u64, below: &dyn Below) -> Result<()> {
        self.resize_to(bytes, below).in_file(self.file.path())
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        self.check_writable().in_file(self.file.path())?;
        change::set_parent(&*self.file, &mut self.header.lock(), parent)
    }

    fn record(&self) -> Result<Option<StoredRecord>> {
        Ok(change::record(&self.header.lock()))
    }

    fn awaits_recovery(&self) -> bool {
        let header = self.header.lock();
        !self.is_writable && (header.is_dirty() || header.autoclear & !feature::KNOWN_AUTOCLEAR != 0)
    }

    fn set_record(&self, record: Option<&[u8]>) -> Result<bool> {
        if !self.is_writable {
            return Ok(false);
        }
        change::set_record(&*self.file, &mut self.header.lock(), record)
    }

    fn void_record(&self) -> Result<()> {
        if self.is_writable { change::void_record(&*self.file, &mut self.header.lock()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
