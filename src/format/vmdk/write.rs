//! Writing: in place where grains have a place, else with a place of their own.
//!
//! ```text
//! claim the guest grains            overlapping first writes wait here
//!   place     (state, exclusive)    where the grains go: behind all that was ever stored, or where one was given up
//!   move      (no lock)             the data; what else the first and last grain show
//!   enter     (state, exclusive)    the entries, in memory: the next flush writes them
//! ```

use super::{
    image::{State, VmdkImage},
    read::Piece,
    tables::{Body, Grain},
};
use crate::{
    base::{
        Error, ErrorKind, Guard, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        units::{SECTOR_BYTES, index},
    },
    format::{Below, Image, source::Job},
    io::{File, Moved},
    map::{self, State as Held},
};

impl State {
    /// Refuses to go on after a failed write of tables.
    pub(super) fn check_sound(&self) -> Result<()> {
        match self.poison.as_ref().filter(|_| Guard::Poison.trips(true)) {
            None => Ok(()),
            Some(why) => Err(Error::invalid(format!("is not written to since tables could not be: {why}"))),
        }
    }

    /// Finds a place for grains in a row, the first of which holds `guest`: for as many as there is room in a row.
    fn place(&mut self, guest: GuestOffset, grains: u64) -> Result<HostRange> {
        self.ensure_table(guest)?;
        let (held, _) = self.tables.grains_mut(guest)?;
        let grain = held.layout.grain;
        if let Some(at) = held.free.pop() {
            return Ok(at.range(grain));
        }
        let place = held.end.range(grains * grain);
        if place.end().since(held.base) > u64::from(u32::MAX) * SECTOR_BYTES {
            let what = "the file is full: no entry of its tables leads past 2 TiB";
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        held.end = place.end();
        Ok(place)
    }

    /// Has the file of the extent that holds `guest` be as long as its grain at `place` needs it.
    fn reach(&self, guest: GuestOffset, place: HostRange) -> Result<()> {
        let (held, _) = self.tables.grains(guest)?;
        let (target, at) = self.tables.space.part(place.start)?;
        if target.file.bytes()? >= at.plus(place.bytes).bytes() {
            return Ok(());
        }
        // Nothing is stored behind it: finding a place takes the lock that is held here.
        target.file.set_bytes(held.end.since(held.base))
    }

    /// Takes back the place of a grain that reads as zeros, and to which nothing leads.
    pub(super) fn give_back(&mut self, place: HostRange) {
        for extent in &mut self.tables.extents {
            if let Body::Grains(grains) = &mut extent.body
                && (grains.base..grains.end).contains(&place.start)
            {
                grains.free.push(place.start);
            }
        }
    }

    /// Gives the entry for `guest` a table, where the directory has none: zeros behind all that was ever stored.
    pub(super) fn ensure_table(&mut self, guest: GuestOffset) -> Result<()> {
        let (held, local) = self.tables.grains_mut(guest)?;
        let (nth, layout, base) = (held.nth(local).0, held.layout, held.base);
        let lacks = |tables: &[u32]| tables.get(index(nth)) == Some(&0);
        let missing = [lacks(&held.tables), lacks(&held.twins)];
        let (start, bytes) = (held.end.since(base), layout.table_bytes().next_multiple_of(SECTOR_BYTES));
        let end = missing.iter().filter(|is_missing| **is_missing).fold(start, |at, _| at + bytes);
        if end == start {
            return Ok(());
        }
        let full = |_| Error::new(ErrorKind::NoSpace, "the file is full: no room for a table below 2 TiB");
        u32::try_from(end / SECTOR_BYTES).map_err(full)?;
        // A table past the file's end would be none: nothing leads there before it is that long.
        self.tables.space.part(base)?.0.file.set_bytes(end)?;
        let (held, _) = self.tables.grains_mut(guest)?;
        let mut at = start;
        for (tables, is_missing) in [&mut held.tables, &mut held.twins].into_iter().zip(missing) {
            if let Some(sector) = tables.get_mut(index(nth)).filter(|_| is_missing) {
                *sector = u32::try_from(at / SECTOR_BYTES).map_err(full)?;
                at += bytes;
            }
        }
        held.changed.insert(nth / (SECTOR_BYTES / layout.entry_bytes()));
        held.end = base.plus(end.next_multiple_of(layout.grain));
        Ok(())
    }
}

impl VmdkImage {
    /// Stores a job's bytes.
    pub(super) fn write_job(&self, job: Job<'_>) -> Result<Moved> {
        let mut moved = Moved::default();
        self.check_extents(job.range)?;
        self.each_piece(job.range, |piece| {
            match piece {
                Piece::Zero(part) => return Err(only_zeros(part)),
                Piece::Flat(part, host) => self.put(job, part, host, &mut moved)?,
                Piece::Grains(part) => {
                    let mut rest = part;
                    while !rest.is_empty() {
                        let mut done = self.write_in_place(rest, job, &mut moved)?;
                        if done == 0 {
                            done = self.write_new(rest, job, &mut moved)?;
                        }
                        rest = GuestRange::between(rest.start.plus(done), rest.end());
                    }
                }
            }
            Ok(())
        })?;
        Ok(moved)
    }

    /// Refuses a range that touches an extent which may not be written.
    pub(super) fn check_extents(&self, range: GuestRange) -> Result<()> {
        let state = self.state.read();
        let touched = state.tables.extents.iter().skip(state.tables.nth(range.start));
        let mut touched = touched.take_while(|extent| extent.guest.start < range.end());
        match touched.find(|extent| !extent.is_writable && !matches!(extent.body, Body::Zero)) {
            None => Ok(()),
            Some(extent) => {
                let what = format!("its extent at guest byte 0x{:x} is read-only", extent.guest.start);
                Err(Error::policy(what))
            }
        }
    }

    /// Refuses a disk that has an extent in which no data can be stored.
    pub(super) fn check_all_extents(&self) -> Result<()> {
        self.check_extents(GuestOffset::new(0).range(self.size()))?;
        let state = self.state.read();
        let found = state.tables.extents.iter().find(|extent| matches!(extent.body, Body::Zero));
        found.map_or(Ok(()), |extent| Err(only_zeros(extent.guest)))
    }

    /// Stores the job's bytes for `part` at `host`.
    fn put(&self, job: Job<'_>, part: GuestRange, host: HostOffset, moved: &mut Moved) -> Result<()> {
        let (target, at) = self.space.part(host)?;
        let skip = part.start.since(job.range.start);
        let how = job.source.put(skip, target.file.as_ref(), at.range(part.bytes))?;
        moved.shared_bytes += how.shared_bytes;
        moved.copied_bytes += how.copied_bytes;
        Ok(())
    }

    /// Writes the first part of `rest` (whose entries are in one page) that has a place; returns its length.
    fn write_in_place(&self, rest: GuestRange, job: Job<'_>, moved: &mut Moved) -> Result<u64> {
        let state = self.view(rest.start)?;
        state.check_sound()?;
        let mut extents = Vec::new();
        state.tables.extents(rest, &mut extents)?;
        let Some((extent, host)) = extents.first().and_then(|extent| Some((extent, held(extent)?))) else {
            return Ok(0);
        };
        state.check_grain(extent.range, host)?;
        self.put(job, extent.range, host, moved)?;
        Ok(extent.range.bytes)
    }

    /// Writes the first part of `rest` (whose entries are in one page) that has no place; returns its length, 0 if it has
    /// got one meanwhile.
    fn write_new(&self, rest: GuestRange, job: Job<'_>, moved: &mut Moved) -> Result<u64> {
        if self.state.read().tables.pages.is_crowded() {
            self.flush_all()?;
        }
        let (grain, whole) = {
            let state = self.state.read();
            let grain = state.tables.grains(rest.start)?.0.layout.grain;
            (grain, state.tables.extent(rest.start)?.outer(rest, grain))
        };
        let _claim = self.claims.take(whole);
        let state = self.view(rest.start)?;
        state.check_sound()?;
        let mut extents = Vec::new();
        state.tables.extents(whole, &mut extents)?;
        drop(state);
        // Grains are of one kind each: the run ends where one does, or where the write does.
        let lacks = extents.iter().take_while(|extent| held(extent).is_none()).last();
        let end = lacks.map_or(whole.start, |extent| extent.range.end());
        let run = GuestRange::between(whole.start, end);
        if run.is_empty() {
            return Ok(0);
        }
        let place = self.state.write().place(rest.start, run.bytes.div_ceil(grain))?;
        let run = run.start.range(run.bytes.min(place.bytes));
        let part = rest.clip(run);
        let host = |at: GuestOffset| place.start.plus(at.since(run.start));
        for gap in [GuestRange::between(run.start, part.start), GuestRange::between(part.end(), run.end())] {
            self.fill_gap(gap, &extents, host(gap.start), job.below)?;
        }
        self.put(job, part, host(part.start), moved)?;
        let mut state = self.state.write();
        state.reach(rest.start, place)?;
        for (nth, piece) in (0..).zip(state.tables.pieces(run)?) {
            state.tables.store(piece.start, Grain::Plain(place.start.plus(nth * grain)))?;
        }
        Ok(part.bytes)
    }

    /// Stores at `host`, which reads as zeros, what `gap` shows: a part of one grain that has no place so far.
    fn fill_gap(
        &self,
        gap: GuestRange,
        extents: &[map::Extent],
        host: HostOffset,
        below: &dyn Below,
    ) -> Result<()> {
        let shows_below =
            |extent: &map::Extent| extent.range.contains(gap.start) && matches!(extent.state, Held::Absent);
        if gap.is_empty() || !extents.iter().any(shows_below) || below.is_zero(gap)? {
            return Ok(());
        }
        let mut bytes = vec![0; index(gap.bytes)];
        below.read(gap.start, &mut bytes)?;
        self.space.write_at(host, &bytes)
    }
}

impl State {
    /// Refuses to write to a grain that lies on the header or the tables behind it.
    pub(super) fn check_grain(&self, range: GuestRange, host: HostOffset) -> Result<()> {
        let (grains, _) = self.tables.grains(range.start)?;
        let at = host.since(grains.base);
        if at >= grains.layout.overhead {
            return Ok(());
        }
        let what = format!("the entry for guest byte 0x{:x} points at metadata (0x{at:x})", range.start);
        Err(Error::corrupt(what))
    }
}

fn only_zeros(part: GuestRange) -> Error {
    Error::policy(format!("guest byte 0x{:x} is in an extent that is not written", part.start))
}

/// Returns where an extent is stored as it is.
fn held(extent: &map::Extent) -> Option<HostOffset> {
    match extent.state {
        Held::Data { host } => Some(host),
        _ => None,
    }
}
