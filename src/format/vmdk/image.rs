//! One open VMDK disk: what is kept of it in memory, and its face as an [`Image`].
//!
//! Locks, in the order in which they are taken: a *claim* on guest grains, the desk (the descriptor, and the right to
//! write tables into the files), what was begun, the state. The state's shared side is held while data is read, or written in place; so
//! whoever holds its exclusive side knows that nobody uses a host offset that was looked up before. A write to grains
//! that have no place yet has only its claim while it moves bytes: no entry leads there before.
//!
//! What is not flushed when the image is dropped is lost as in a power cut: whoever writes, flushes.

use super::{
    create,
    desk::{Desk, cid_of},
    details,
    mark::{Begun, Cid, marks},
    open,
    read::range_of,
    space::Space,
    tables::{Extent as Part, Tables},
};
use crate::{
    base::{
        Budget, Claims, Error, GuestOffset, GuestRange, HostOffset, HostRange, Result, error::InFile, seed,
        units::SECTOR_BYTES,
    },
    format::{
        Below, Details, Format, Identity, Image, ParentName, StoredRecord, check_on_disk,
        source::{Job, Source},
    },
    io::{File, Kept, Moved},
    map::Extent,
};
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// What changes while the image is open.
#[derive(Debug)]
pub(super) struct State {
    /// Directories and tables.
    pub(super) tables: Tables,
    /// Grains that entries in memory no longer lead to, and entries in the file may still.
    pub(super) dropped: Vec<HostRange>,
    /// Why tables could not be written once; nothing is written any more.
    pub(super) poison: Option<String>,
}

impl State {
    pub(super) const fn new(tables: Tables) -> Self {
        Self { tables, dropped: Vec::new(), poison: None }
    }
}

/// An open VMDK disk.
#[derive(Debug)]
pub(super) struct VmdkImage {
    /// The file of the descriptor, if it holds nothing else.
    pub(super) beside: Option<Arc<dyn File>>,
    /// The files that hold the disk's bytes.
    pub(super) space: Arc<Space>,
    size: AtomicU64,
    unit: u64,
    pub(super) is_writable: bool,
    budget: Budget,
    /// Whether all is done that goes before a change.
    pub(super) is_begun: AtomicBool,
    pub(super) begun: Mutex<Begun>,
    /// Who is about to give grains a place, or to take it away.
    pub(super) claims: Claims,
    /// The descriptor.
    pub(super) desk: Mutex<Option<Desk>>,
    /// The tables.
    pub(super) state: RwLock<State>,
}

/// Returns what the extents allocate at once.
fn unit(extents: &[Part]) -> u64 {
    let sparse = || extents.iter().filter_map(|extent| Some((extent, extent.grains()?.layout.grain)));
    let Some(least) = sparse().map(|(_, grain)| grain).min() else { return 1 };
    let is_even = sparse().all(|(extent, _)| extent.guest.start.bytes().is_multiple_of(least));
    if is_even { least } else { SECTOR_BYTES }
}

impl VmdkImage {
    pub(super) fn new(
        state: State,
        desk: Option<Desk>,
        beside: Option<Arc<dyn File>>,
        is_writable: bool,
        budget: Budget,
    ) -> Self {
        let stays = marks(&state.tables.extents).any(|(_, is_set)| is_set);
        Self {
            beside,
            space: Arc::clone(&state.tables.space),
            size: AtomicU64::new(state.tables.extents.last().map_or(0, |extent| extent.guest.end().bytes())),
            unit: unit(&state.tables.extents),
            is_writable,
            budget,
            is_begun: AtomicBool::new(false),
            begun: Mutex::new(Begun { stays, ..Begun::default() }),
            claims: Claims::default(),
            desk: Mutex::new(desk),
            state: RwLock::new(state),
        }
    }

    /// The image was just made: nobody knows its identity yet.
    pub(super) fn into_new(self) -> Self {
        self.is_begun.store(true, Ordering::Release);
        *self.begun.lock() = Begun { cid: Cid::New, is_marked: true, stays: true };
        if let Some(desk) = self.desk.lock().as_mut() {
            desk.is_changed = true;
        }
        self
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        match self.beside.as_ref().or_else(|| self.space.files().next()) {
            Some(file) => result.in_file(file.path()),
            None => result,
        }
    }

    /// Refuses a range that is not on the disk.
    fn check_range(&self, range: GuestRange) -> Result<()> {
        check_on_disk(range, self.size())
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_writable { Ok(()) } else { Err(Error::invalid("is open for reading only")) }
    }

    /// Goes before bytes of `range` are changed.
    pub(super) fn begin_at(&self, range: GuestRange) -> Result<()> {
        self.check_writable()?;
        self.check_range(range)?;
        if range.is_empty() || self.is_begun.load(Ordering::Acquire) { Ok(()) } else { self.begin() }
    }

    /// The disk has another size, durably.
    pub(super) fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Release);
    }

    fn write_checked(&self, job: Job<'_>) -> Result<Moved> {
        self.begin_at(job.range)?;
        self.write_job(job)
    }

    /// Gives the disk the identity that another one had which showed the same, once all of it is durable.
    fn take_cid(&self, cid: u32) -> Result<()> {
        self.check_writable()?;
        self.flush_all()?;
        if let Some(desk) = self.desk.lock().as_mut() {
            desk.change_cid(cid, seed::fresh())?;
            self.begun.lock().cid = Cid::Old;
            self.is_begun.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Names another parent, or none.
    fn link(&self, parent: Option<&ParentName>) -> Result<()> {
        self.check_writable()?;
        let is_sparse = self.state.read().tables.extents.iter().all(|extent| extent.grains().is_some());
        if parent.is_some() && !is_sparse {
            return Err(Error::unsupported("has extents that hold every byte: it cannot have a parent"));
        }
        let mut desk = self.desk.lock();
        let desk =
            desk.as_mut().ok_or_else(|| Error::unsupported("has no descriptor to name a parent in"))?;
        desk.relink(&create::link(parent, cid_of(seed::fresh()))?)
    }
}

impl Image for VmdkImage {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn unit(&self) -> u64 {
        self.unit
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn parent(&self) -> Option<ParentName> {
        self.desk.lock().as_ref().and_then(|desk| open::parent(&desk.descriptor))
    }

    fn identity(&self) -> Option<Identity> {
        self.desk.lock().as_ref().and_then(|desk| desk.descriptor.cid().ok()).map(Identity::Cid)
    }

    fn details(&self) -> Result<Details> {
        let desk = self.desk.lock();
        let state = self.state.read();
        Ok(details::read(desk.as_ref().map(|desk| &desk.descriptor), &state.tables))
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        self.beside.iter().chain(self.space.files()).cloned().collect()
    }

    fn data_file(&self) -> Arc<dyn File> {
        let mut files = self.space.files();
        match (files.next(), files.next()) {
            (Some(only), None) => Arc::clone(only),
            _ => Arc::clone(&self.space) as _,
        }
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.named(self.check_range(range).and_then(|()| self.map_range(range, out)))
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let range = range_of(at, buf);
        self.named(self.check_range(range).and_then(|()| self.read_range(range, buf, below)))
    }

    fn write(&self, at: GuestOffset, buf: &[u8], below: &dyn Below) -> Result<()> {
        let job = Job { range: range_of(at, buf), source: Source::Bytes(buf), below };
        self.named(self.write_checked(job).map(drop))
    }

    fn write_from(
        &self,
        range: GuestRange,
        source: &dyn File,
        from: HostOffset,
        below: &dyn Below,
    ) -> Result<Moved> {
        self.named(self.write_checked(Job { range, source: Source::File(source, from), below }))
    }

    fn zero(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        let done = self.begin_at(range).and_then(|()| self.zero_range(range, kept, below));
        self.named(done)
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        self.zeroes_without_bytes(range, kept)
    }

    fn begin_writing(&self) -> Result<()> {
        self.named(self.check_writable().and_then(|()| self.begin()))
    }

    fn flush(&self) -> Result<()> {
        if self.is_writable { self.named(self.flush_all()) } else { Ok(()) }
    }

    fn flush_with_time(&self) -> Result<()> {
        self.flush()?;
        self.named(self.end())?;
        self.files().iter().try_for_each(|file| file.flush_with_time())
    }

    fn release(&self) -> Result<u64> {
        self.named(self.check_writable().and_then(|()| self.flush_all()))?;
        // What was given up is punched by each flush; the rest is in use.
        Ok(0)
    }

    fn check_fillable(&self) -> Result<()> {
        self.named(self.check_all_extents())
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        let is_same = bytes == self.size();
        self.named(if is_same { Ok(()) } else { self.refuse_size(bytes) })
    }

    fn resize(&self, bytes: u64, _below: &dyn Below) -> Result<()> {
        self.named(self.check_writable().and_then(|()| self.grow(bytes)))
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        self.named(self.link(parent))
    }

    fn record(&self) -> Result<Option<StoredRecord>> {
        Ok(self.desk.lock().as_ref().and_then(Desk::record))
    }

    fn set_record(&self, record: Option<&[u8]>) -> Result<bool> {
        if !self.is_writable {
            return Ok(false);
        }
        let mut desk = self.desk.lock();
        self.named(desk.as_mut().map_or(Ok(false), |desk| desk.set_record(record)))
    }

    fn void_record(&self) -> Result<()> {
        let mut desk = self.desk.lock();
        self.named(desk.as_mut().filter(|_| self.is_writable).map_or(Ok(()), Desk::void_record))
    }

    fn keep_identity(&self, keeps: bool) {
        let mut begun = self.begun.lock();
        begun.cid = match begun.cid {
            Cid::Old if keeps => Cid::Kept,
            Cid::Kept if !keeps => Cid::Old,
            cid => cid,
        };
    }

    fn set_identity(&self, identity: Identity) -> Result<()> {
        match identity {
            Identity::Cid(cid) => self.named(self.take_cid(cid)),
            Identity::Guid(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
