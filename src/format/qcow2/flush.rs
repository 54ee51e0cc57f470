//! Writing tables back, in an order that leaves at worst leaks after a cut.
//!
//! | step | written | why it is safe when a cut loses any part of it |
//! |---|---|---|
//! | 1 | refcounts that went up, L2 tables that nothing points to yet | counted and unused: a leak |
//! | | *all of that and all guest data is durable* | |
//! | 2 | refcount table entries of new blocks | the blocks say what is true |
//! | | *durable, if there were any* | |
//! | 3 | entries of L2 tables, L1 entries of new tables | each points to what is there and counted |
//! | | *durable* | |
//! | 4 | holes where clusters were given up | nothing points there, and nobody reads there |
//! | 5 | refcounts that went down | from here on the clusters are used again |
//!
//! Only sectors that changed are written, and an entry never crosses a sector: a torn write is a lost part.
//! A batch is copied under the state's lock and written without it; the header's lock keeps batches apart.
//! What is not flushed when the image is dropped is lost as in a power cut: whoever writes, flushes.

use super::{
    header::Header,
    image::{Qcow2Image, State},
    pages::{Kind, Sector, runs},
};
use crate::{
    base::{Error, Guard, HostOffset, HostRange, Result},
    io::Kept,
};
use std::collections::BTreeMap;

/// What one flush writes.
#[derive(Debug)]
struct Batch {
    counts: Vec<Sector>,
    unreached: Vec<Sector>,
    count_table: Vec<Sector>,
    entries: Vec<Sector>,
    /// References that are gone with `entries`.
    dropped: Vec<HostRange>,
}

impl State {
    /// Refuses to go on after a failed write of tables.
    pub(super) fn check_sound(&self) -> Result<()> {
        match self.poison.as_ref().filter(|_| Guard::Poison.trips(true)) {
            None => Ok(()),
            Some(why) => Err(Error::invalid(format!("is not written to since tables could not be: {why}"))),
        }
    }

    /// Goes before a step that changes tables: they are sound, and there is room for more changes.
    pub(super) fn check_room(&self) -> Tried<()> {
        self.check_sound()?;
        if self.tables.pages.is_crowded() { Err(Halt::Crowded) } else { Ok(()) }
    }

    /// Returns whether tables wait to be written, or were to be and could not.
    fn is_changed(&self) -> bool {
        let (tables, counts) = (&self.tables, &self.refcounts);
        let is_sound = self.poison.is_none() && self.dropped.is_empty();
        !is_sound || tables.pages.is_changed() || !tables.l1_changed.is_empty() || counts.is_table_changed()
    }

    fn take_batch(&mut self) -> Batch {
        let cluster = self.tables.shape.cluster();
        let pages = self.tables.pages.take(Kind::Table);
        let reached = |s: &Sector| !self.tables.unreached.contains(&s.at.floor(cluster));
        let (mut entries, unreached): (Vec<_>, Vec<_>) = pages.into_iter().partition(reached);
        entries.extend(self.tables.take_l1());
        self.tables.unreached.clear();
        Batch {
            counts: self.tables.pages.take(Kind::Refcounts),
            unreached,
            count_table: self.refcounts.take_table(),
            entries,
            dropped: std::mem::take(&mut self.dropped),
        }
    }

    /// Returns the clusters that nothing refers to once `dropped` is counted.
    fn freed_by(&mut self, dropped: &[HostRange]) -> Result<Vec<HostRange>> {
        let cluster = self.tables.shape.cluster();
        let mut times: BTreeMap<HostOffset, u64> = BTreeMap::new();
        for range in dropped.iter().flat_map(|r| r.outer(cluster).pieces(cluster)) {
            *times.entry(range.start).or_default() += 1;
        }
        let mut freed: Vec<HostRange> = Vec::new();
        for (at, times) in times {
            if self.refcount(at.bytes() / cluster)? > times {
                continue;
            }
            self.stop_packing_in(at);
            match freed.last_mut() {
                Some(last) if last.end() == at => last.bytes += cluster,
                _ => freed.push(at.range(cluster)),
            }
        }
        Ok(freed)
    }
}

impl Qcow2Image {
    /// Makes everything before this call durable.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.flush_under(&mut self.header.lock())
    }

    /// Writes the tables that wait to be written: once the files are flushed, everything before this call is durable.
    pub(super) fn flush_tables(&self) -> Result<()> {
        let mut header = self.header.lock();
        if self.state.read().is_changed() { self.flush_under(&mut header) } else { Ok(()) }
    }

    /// Flushes; the caller's hold on the header keeps other batches away.
    pub(super) fn flush_under(&self, _: &mut Header) -> Result<()> {
        let mut state = self.state.write();
        state.check_sound()?;
        let batch = state.take_batch();
        drop(state);
        let done = self.write_batch(&batch).and_then(|()| self.settle(&batch.dropped));
        match done {
            // The clusters are free whether or not their space went back to the host.
            Ok(punched) => punched,
            Err(error) => {
                self.state.write().poison = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn write_batch(&self, batch: &Batch) -> Result<()> {
        self.write_sectors(&batch.counts)?;
        self.write_sectors(&batch.unreached)?;
        if let Some(data) = &self.data_file {
            data.flush()?;
        }
        self.file.flush()?;
        for sectors in [&batch.count_table, &batch.entries] {
            if !sectors.is_empty() {
                self.write_sectors(sectors)?;
                self.file.flush()?;
            }
        }
        Ok(())
    }

    fn write_sectors(&self, sectors: &[Sector]) -> Result<()> {
        runs(sectors).iter().try_for_each(|run| self.file.write_at(run.at, &run.bytes))
    }

    /// Gives up what the batch no longer refers to. The outer result is about tables, the inner about holes.
    fn settle(&self, dropped: &[HostRange]) -> Result<Result<()>> {
        let mut state = self.state.write();
        state.tables.pages.left();
        if dropped.is_empty() {
            return Ok(Ok(()));
        }
        let freed = state.freed_by(dropped)?;
        drop(state);
        // Before the refcounts go down: a late hole would swallow what reuses the cluster.
        let punched = freed.iter().try_for_each(|range| self.file.zero(*range, Kept::Nothing));
        let mut state = self.state.write();
        dropped.iter().try_for_each(|range| state.drop_reference(*range))?;
        let counts = state.tables.pages.take(Kind::Refcounts);
        drop(state);
        self.write_sectors(&counts)?;
        self.state.write().tables.pages.left();
        Ok(punched)
    }

    /// Takes a step on the state, clearing away what is in its way until it is done.
    pub(super) fn attempt<T>(&self, mut step: impl FnMut(&mut State) -> Tried<T>) -> Result<T> {
        loop {
            let tried = step(&mut self.state.write());
            match tried {
                Ok(done) => return Ok(done),
                Err(halt) => self.clear_away(halt, &mut self.header.lock())?,
            }
        }
    }

    /// The same, for who holds the header.
    pub(super) fn attempt_under<T>(
        &self,
        header: &mut Header,
        mut step: impl FnMut(&mut State) -> Tried<T>,
    ) -> Result<T> {
        loop {
            let tried = step(&mut self.state.write());
            match tried {
                Ok(done) => return Ok(done),
                Err(halt) => self.clear_away(halt, header)?,
            }
        }
    }

    fn clear_away(&self, halt: Halt, header: &mut Header) -> Result<()> {
        match halt {
            Halt::Failed(error) => Err(error),
            Halt::Crowded => self.flush_under(header),
            Halt::TableFull => self.state.write().grow_refcounts(header),
        }
    }
}

/// Why a step on the state was not done; nothing has changed that matters.
#[derive(Debug)]
pub(super) enum Halt {
    /// Too much waits to be written.
    Crowded,
    /// The refcount table has no place for more blocks.
    TableFull,
    /// It cannot be done.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What a step on the state comes to.
pub(super) type Tried<T> = std::result::Result<T, Halt>;
