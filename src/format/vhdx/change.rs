//! Changes of the metadata: the project's record, the parent. Each is one entry of the log.
//!
//! The record is a user's item: two GUIDs, then the record. It counts as untouched while the header's `DataWriteGuid`
//! is one of the two: the one under which the record was stored, or the one that our own next change brings. Under two GUIDs
//! of ones, which no header has, it never does.

use super::{
    bytes::Source,
    entry::Block,
    geometry::EntryKind,
    header::fresh_guid,
    image::VhdxImage,
    locator::Locator,
    log::Page,
    metadata::{Change, Metadata},
    region::entries_in,
    session::{STEP_PAGES_MAX, Session},
    space::{each_entry, pages_with},
    state::State,
};
use crate::{
    base::{Error, ErrorKind, GuestOffset, Result},
    format::{ParentName, StoredRecord},
};
use std::sync::atomic::Ordering;
use uuid::Uuid;

const GUID_BYTES: usize = 16;

/// Returns the record in an item.
pub(super) fn record(item: &[u8], data_guid: Uuid) -> Option<StoredRecord> {
    let bytes = item.get(2 * GUID_BYTES..)?.to_vec();
    Some(StoredRecord { bytes, is_untouched: is_untouched(item, data_guid) })
}

fn is_untouched(item: &[u8], data_guid: Uuid) -> bool {
    item.chunks_exact(GUID_BYTES).take(2).any(|guid| guid == data_guid.to_bytes_le())
}

fn item(guids: [Uuid; 2], record: &[u8]) -> Vec<u8> {
    let mut item: Vec<u8> = guids.iter().flat_map(Uuid::to_bytes_le).collect();
    item.extend(record);
    item
}

impl VhdxImage {
    /// Gives the data a GUID that nobody has seen.
    pub(super) fn begin_data(&self, session: &mut Session) -> Result<()> {
        self.change_data_guid(session, fresh_guid())
    }

    /// Gives the data the GUID that another image had which showed the same, once all of it is durable.
    pub(super) fn take_data_guid(&self, guid: [u8; GUID_BYTES]) -> Result<()> {
        self.check_writable()?;
        let mut session = self.session.lock();
        self.flush_under(&mut session)?;
        self.change_data_guid(&mut session, Uuid::from_bytes_le(guid))?;
        self.is_data_begun.store(false, Ordering::Release);
        Ok(())
    }

    /// Gives the data another GUID; a record that counts goes on doing so.
    fn change_data_guid(&self, session: &mut Session, new: Uuid) -> Result<()> {
        self.state.read().check_sound()?;
        let old = session.header.data_guid;
        let kept = self.state.read().metadata.record.clone().filter(|item| is_untouched(item, old));
        if let Some(record) = kept.as_deref().and_then(|item| item.get(2 * GUID_BYTES..)) {
            self.change_metadata(session, &Change::Record(Some(item([old, new], record))), Vec::new())?;
        }
        session.begin_data(self.file.as_ref(), new)
    }

    /// Stores or removes the record.
    pub(super) fn change_record(&self, record: Option<&[u8]>) -> Result<bool> {
        let mut session = self.session.lock();
        let guid = session.header.data_guid;
        let is_there = self.state.read().metadata.record.is_some();
        if record.is_none() && !is_there {
            return Ok(true);
        }
        let change = Change::Record(record.map(|record| item([guid; 2], record)));
        match self.change_metadata(&mut session, &change, Vec::new()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NoSpace && error.os().is_none() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has the record count under no GUID.
    pub(super) fn spoil_record(&self) -> Result<()> {
        let mut session = self.session.lock();
        let guid = session.header.data_guid;
        let counting = self.state.read().metadata.record.clone().filter(|item| is_untouched(item, guid));
        let Some(record) = counting.as_deref().and_then(|item| item.get(2 * GUID_BYTES..)) else {
            return Ok(());
        };
        let change = Change::Record(Some(item([Uuid::max(); 2], record)));
        self.change_metadata(&mut session, &change, Vec::new())
    }

    /// Makes a change of the metadata durable, and `pages` with it, in one step.
    pub(super) fn change_metadata(
        &self,
        session: &mut Session,
        change: &Change,
        pages: Vec<Page>,
    ) -> Result<()> {
        let file = self.file.as_ref();
        let state = self.state.read();
        state.check_sound()?;
        let mut all = state.metadata.pages(Source::plain(file), change)?;
        drop(state);
        all.extend(pages);
        session.check_step(all.len())?;
        self.commit(session, &all)?;
        let metadata = Metadata::read(Source::plain(file), session.regions.metadata)?;
        self.state.write().metadata = metadata;
        Ok(())
    }

    /// Names another parent, or none; in one step. Whoever reads or writes waits.
    pub(super) fn change_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        self.check_writable()?;
        let _alone = self.reshaping.lock();
        // Nobody brings first sectors while blocks change what they mean.
        let _claim = self.claims.take(GuestOffset::new(0).range(u64::MAX));
        let locator = parent.map(Locator::of).transpose()?;
        let file = self.file.as_ref();
        let mut session = self.session.lock();
        let mut state = self.settled(&mut session)?;
        let change = Change::Parent(locator);
        let mut pages = state.metadata.pages(Source::plain(file), &change)?;
        let words = match (state.metadata.has_parent(), parent) {
            (true, None) => state.words_without_parent()?,
            (false, Some(_)) => state.words_with_parent()?,
            _ => Vec::new(),
        };
        pages.extend(pages_with(file, state.bat, &words)?);
        self.make_log_room((&mut session, &mut state), pages.len())?;
        if parent.is_none() {
            state.fill_partial(&words)?;
        }
        session.commit_step(file, &pages).inspect_err(|error| state.poison = Some(error.to_string()))?;
        state.metadata = Metadata::read(Source::plain(file), session.regions.metadata)?;
        state.pages.clear();
        Ok(())
    }

    /// Sees to it that the log has room for one step that changes so many pages: else it moves to a longer place.
    ///
    /// `Unsupported`, and nothing written, for more than are changed in one step.
    fn make_log_room(&self, (session, state): (&mut Session, &mut State), pages: usize) -> Result<()> {
        if session.check_step(pages).is_ok() || pages > STEP_PAGES_MAX {
            return session.check_step(pages);
        }
        session.begin(self.file.as_ref())?;
        let place = state.allocate(Session::log_bytes_for(pages))?;
        let old = session.move_log(self.file.as_ref(), place);
        state.space.give(old.inspect_err(|error| state.poison = Some(error.to_string()))?);
        Ok(())
    }
}

impl State {
    /// Returns what entries of the table say in which no block needs a parent: partly present ones are whole, once the rest
    /// of them is zeros ([`State::fill_partial`]).
    fn words_without_parent(&self) -> Result<Vec<(u64, u64)>> {
        let geometry = self.geometry;
        let entries = geometry.entries(self.metadata.size, true);
        let mut words = Vec::new();
        each_entry(self.file.as_ref(), self.bat, 0..entries, |entry, word| {
            match (geometry.entry_kind(entry), Block::decode(word)) {
                (EntryKind::Payload(_), Block::Partial(place)) => {
                    words.push((entry, Block::Full(place).encode()));
                }
                (EntryKind::Bitmap, _) => words.push((entry, 0)),
                _ => {}
            }
            Ok(())
        })?;
        Ok(words)
    }

    /// Fills with zeros what the blocks of these entries lack, which say so still.
    fn fill_partial(&mut self, words: &[(u64, u64)]) -> Result<()> {
        for (entry, _) in words {
            if let EntryKind::Payload(nth) = self.geometry.entry_kind(*entry) {
                self.fill_absent(nth)?;
            }
        }
        Ok(())
    }

    /// Returns what entries of the table of a child say: it has one for the bitmap of its last chunk, too, and what any had
    /// before means nothing.
    fn words_with_parent(&self) -> Result<Vec<(u64, u64)>> {
        let geometry = self.geometry;
        let entries = geometry.entries(self.metadata.size, true);
        if geometry.is_fixed {
            return Err(Error::unsupported("a fixed image cannot have a parent"));
        }
        if entries > entries_in(self.bat.bytes) {
            let what = "its block allocation table has no room for the sector bitmaps of a child";
            return Err(Error::unsupported(what));
        }
        let mut words = Vec::new();
        each_entry(self.file.as_ref(), self.bat, 0..entries, |entry, _| {
            if geometry.entry_kind(entry) == EntryKind::Bitmap {
                words.push((entry, 0));
            }
            Ok(())
        })?;
        Ok(words)
    }
}
