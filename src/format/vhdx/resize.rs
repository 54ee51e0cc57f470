//! Another size, in steps that a cut leaves readable at any point.
//!
//! Growth: entries for the new blocks say what they are to show, durably, before the size says that they are there; a
//! table that has no room is copied to a longer place, and one entry of the log makes that the table, together with the
//! size. Shrinking: the size first, then what is past it is given up: a cut leaves entries that nobody sees, and a later
//! growth forgets them.

use super::{
    bytes::Source,
    geometry::{BITMAP_BYTES, ENTRY_BYTES, EntryKind, MIB, SIZE_MAX},
    image::VhdxImage,
    metadata::Change,
    region::entries_in,
    session::Session,
    space::each_entry,
};
use crate::{
    base::{Error, Guard, GuestOffset, GuestRange, HostOffset, HostRange, Result, units::index},
    format::Below,
    io::Kept,
};

impl VhdxImage {
    /// Changes the disk's size.
    pub(super) fn resize_to(&self, size: u64, below: &dyn Below) -> Result<()> {
        let _alone = self.reshaping.lock();
        self.refuse_size(size)?;
        self.begin()?;
        let old = self.state.read().metadata.size;
        if size > old { self.grow(old, size, below) } else { self.shrink(old, size) }
    }

    /// Refuses a size that no such image has.
    pub(super) fn refuse_size(&self, size: u64) -> Result<()> {
        let sector = self.state.read().geometry.sector_bytes;
        if size > SIZE_MAX || !size.is_multiple_of(sector) {
            let what = format!("a disk of {size} bytes: VHDX has whole sectors of {sector}, 64 TiB at most");
            return Err(Error::invalid(what));
        }
        Ok(())
    }

    fn grow(&self, old: u64, size: u64, below: &dyn Below) -> Result<()> {
        let geometry = self.state.read().geometry;
        let block = geometry.block(geometry.block_of(GuestOffset::new(old)));
        let uncovered = GuestRange::between(GuestOffset::new(old), GuestOffset::new(size)).clip(block);
        if block.start.bytes() < old {
            // A longer disk may have left bytes there once, and a parent may have some.
            self.zero_unchecked(uncovered, Kept::Nothing, below)?;
        }
        let mut session = self.session.lock();
        let has_parent = self.state.read().metadata.has_parent();
        let moved = self.make_room(&mut session, geometry.entries(size, has_parent))?;
        let done = self
            .add_blocks(&mut session, (old, size), below)
            .and_then(|()| self.flush_under(&mut session))
            .and_then(|()| self.set_size(&mut session, size, moved));
        if let (Err(error), Some(_)) = (&done, moved) {
            // What is in memory is a table that the file does not have.
            self.poison(error);
        }
        done
    }

    /// Says of new blocks what they are to show.
    fn add_blocks(&self, session: &mut Session, (old, size): (u64, u64), below: &dyn Below) -> Result<()> {
        let state = self.state.read();
        let (geometry, bat, has_parent) = (state.geometry, state.bat, state.metadata.has_parent());
        drop(state);
        let (first, last) = (geometry.entries(old, has_parent), geometry.entries(size, has_parent));
        // What a shrinking that was cut off has left there. Those of a child's last chunk are counted: they are dropped.
        each_entry(self.file.as_ref(), bat, first..last, |entry, _| self.state.write().clear_entry(entry))?;
        let new = GuestRange::between(GuestOffset::new(old), GuestOffset::new(size));
        for nth in geometry.blocks(old)..geometry.blocks(size) {
            let block = geometry.block(nth);
            let is_zero_below = below.is_zero(block.clip(new))?;
            let mut state = self.state.write();
            if geometry.entry_of(nth) < first {
                state.forget_entry(geometry.entry_of(nth), geometry.block_bytes)?;
            }
            if geometry.is_fixed {
                state.place_block(block.start)?;
            } else if Guard::UncoveredParent.trips(!is_zero_below) {
                state.erase_block(block.start, false)?;
            }
            let is_crowded = state.pages.is_crowded();
            drop(state);
            if is_crowded {
                self.flush_under(session)?;
            }
        }
        Ok(())
    }

    fn shrink(&self, old: u64, size: u64) -> Result<()> {
        // Nobody brings first sectors to blocks that go.
        let _claim =
            self.claims.take(GuestRange::between(GuestOffset::new(size), GuestOffset::new(u64::MAX)));
        let mut session = self.session.lock();
        self.flush_under(&mut session)?;
        self.set_size(&mut session, size, None)?;
        let mut state = self.state.write();
        let (geometry, has_parent) = (state.geometry, state.metadata.has_parent());
        let end = GuestOffset::new(size);
        if !size.is_multiple_of(geometry.block_bytes) {
            state.clear_tail(GuestRange::between(end, end.ceil(geometry.block_bytes)))?;
        }
        drop(state);
        let kept = geometry.entries(size, has_parent);
        for entry in kept.min(geometry.entry_of(geometry.blocks(size)))..geometry.entries(old, has_parent) {
            let bytes = match geometry.entry_kind(entry) {
                EntryKind::Payload(nth) if nth >= geometry.blocks(size) => geometry.block_bytes,
                EntryKind::Bitmap if entry >= kept => BITMAP_BYTES,
                _ => continue,
            };
            let mut state = self.state.write();
            state.forget_entry(entry, bytes)?;
            let is_crowded = state.pages.is_crowded();
            drop(state);
            if is_crowded {
                self.flush_under(&mut session)?;
            }
        }
        self.flush_under(&mut session)
    }

    /// Makes the size durable, and where the table is, if it has moved.
    fn set_size(&self, session: &mut Session, size: u64, moved: Option<HostRange>) -> Result<()> {
        let mut pages = Vec::new();
        let mut regions = session.regions.clone();
        if let Some(bat) = moved {
            regions = regions.with_bat(bat);
            pages = Session::region_pages(self.file.as_ref(), &regions)?;
        }
        let old = session.regions.bat;
        session.regions = regions;
        self.change_metadata(session, &Change::Size(size), pages)?;
        if moved.is_some() {
            let mut state = self.state.write();
            state.dropped.push(old);
            drop(state);
            // Older entries of the log lead to where the table was.
            self.empty_log(session)?;
            self.flush_under(session)?;
        }
        Ok(())
    }

    /// Sees to it that the table has room for so many entries: a longer copy of it is made, and used from here on;
    /// `None` if it has room. Until the region table says so, the file's own table is the old one.
    fn make_room(&self, session: &mut Session, entries: u64) -> Result<Option<HostRange>> {
        let mut state = self.settled(session)?;
        if entries <= entries_in(state.bat.bytes) {
            return Ok(None);
        }
        let bytes = (entries * ENTRY_BYTES).next_multiple_of(MIB);
        if u32::try_from(bytes).is_err() {
            return Err(Error::invalid(format!("needs a table of {entries} entries: longer than allowed")));
        }
        let (old, new) = (state.bat, state.allocate(bytes)?);
        let mut buf = vec![0; index(MIB)];
        let source = Source::plain(self.file.as_ref());
        for piece in HostOffset::new(0).range(old.bytes).pieces(MIB) {
            source.read_at(old.start.plus(piece.start.bytes()), &mut buf)?;
            self.file.write_at(new.start.plus(piece.start.bytes()), &buf)?;
        }
        state.bat = new;
        state.pages.clear();
        Ok(Some(new))
    }
}
