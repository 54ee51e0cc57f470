//! Making changes durable: bitmaps, then the table, by the log (`session.rs` has the order).
//!
//! A batch is copied under the state's lock and written without it; the session's lock keeps batches apart. Bits go
//! before entries, so that a batch of several log entries is right at any point: a block is said to be partly present
//! after its bits were cleared, and bits are only ever added to one that is.
//! What is not flushed when the image is dropped is lost as in a power cut: whoever writes, flushes.

use super::{
    image::VhdxImage,
    log::Page,
    session::Session,
    state::{Kind, State},
};
use crate::{
    base::{Error, HostOffset, HostRange, Result},
    io::Kept,
};
use parking_lot::RwLockWriteGuard;

impl State {
    fn take_batch(&mut self) -> (Vec<Page>, Vec<HostRange>) {
        let mut sectors = self.pages.take(Kind::Bitmap);
        sectors.extend(self.pages.take(Kind::Bat));
        let pages = sectors.into_iter().map(|sector| Page { at: sector.at, bytes: sector.bytes });
        (pages.collect(), std::mem::take(&mut self.dropped))
    }
}

impl VhdxImage {
    /// Makes everything before this call durable.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.flush_under(&mut self.session.lock())
    }

    /// The same, and leaves the log empty: nothing is written when the image is closed.
    pub(super) fn flush_and_empty_log(&self) -> Result<()> {
        let mut session = self.session.lock();
        self.flush_under(&mut session)?;
        self.empty_log(&mut session)
    }

    /// Says that the log is empty.
    pub(super) fn empty_log(&self, session: &mut Session) -> Result<()> {
        session.empty_log(self.file.as_ref()).inspect_err(|error| self.poison(error))
    }

    /// Flushes; the caller's hold on the session keeps other batches away.
    pub(super) fn flush_under(&self, session: &mut Session) -> Result<()> {
        let mut state = self.state.write();
        state.check_sound()?;
        let (pages, dropped) = state.take_batch();
        drop(state);
        self.commit(session, &pages)?;
        self.state.write().pages.left();
        // Nothing refers to it any more, durably. It is free whether or not its space went back to the host.
        let punched = dropped.iter().try_for_each(|range| self.file.zero(*range, Kept::Nothing));
        let mut state = self.state.write();
        for range in &dropped {
            state.space.give(*range);
        }
        punched
    }

    /// Takes the state's exclusive side at a moment at which the file says all that is in memory.
    pub(super) fn settled(&self, session: &mut Session) -> Result<RwLockWriteGuard<'_, State>> {
        loop {
            self.flush_under(session)?;
            let state = self.state.write();
            state.check_sound()?;
            if !state.is_changed() {
                return Ok(state);
            }
        }
    }

    /// Makes pages durable that are not in the cache; after a failure nothing is written any more.
    pub(super) fn commit(&self, session: &mut Session, pages: &[Page]) -> Result<()> {
        session.commit(self.file.as_ref(), pages).inspect_err(|error| self.poison(error))
    }

    /// Has nothing written any more: what is in memory is not what the file says.
    pub(super) fn poison(&self, error: &Error) {
        self.state.write().poison = Some(error.to_string());
    }

    /// Gives back to the host what nothing refers to: the free end is cut off, other free runs are punched. Returns the
    /// bytes given back.
    pub(super) fn release_unused(&self) -> Result<u64> {
        self.check_writable()?;
        let mut session = self.session.lock();
        self.flush_under(&mut session)?;
        if self.file.is_device() {
            return Ok(0);
        }
        // Old entries speak of a longer file.
        session.begin(self.file.as_ref())?;
        self.empty_log(&mut session)?;
        let before = self.file.allocated_bytes()?;
        let state = self.state.write();
        state.check_sound()?;
        let end = HostOffset::new(state.space.end().bytes().min(self.file.bytes()?));
        // A fixed disk has a block everywhere.
        if end.bytes() < self.file.bytes()? && !state.geometry.is_fixed {
            self.file.set_bytes(end.bytes())?;
        }
        state.space.free_runs(end).into_iter().try_for_each(|range| self.file.zero(range, Kept::Nothing))?;
        drop(state);
        Ok(before.saturating_sub(self.file.allocated_bytes()?))
    }
}
