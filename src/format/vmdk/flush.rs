//! Writing tables back, in an order that a cut may end anywhere.
//!
//! | step | written | what a cut leaves of it |
//! |---|---|---|
//! | 1 | where files end, in the headers of ESX; *with data and the descriptor durable* | grains and tables that nothing leads to |
//! | 2 | entries of tables, and of their redundant copies | entries of either kind, each right |
//! | | *durable* | |
//! | 3 | directories, where there are new tables | tables that nothing leads to |
//! | | *durable* | |
//! | 4 | holes where grains were given up; from here on their places are used again | |
//!
//! Only sectors that changed are written, and no entry crosses one.

use super::{image::VmdkImage, tables::Changes};
use crate::{
    base::{HostRange, Result},
    format::pages::{Sector, runs},
    io::{File, Kept},
};

impl VmdkImage {
    /// Makes everything before this call durable.
    pub(super) fn flush_all(&self) -> Result<()> {
        // One batch after another.
        let mut desk = self.desk.lock();
        if let Some(desk) = desk.as_mut().filter(|_| self.beside.is_some()) {
            desk.flush()?;
        }
        let mut state = self.state.write();
        state.check_sound()?;
        let (changes, mut dropped) = (state.tables.take(), std::mem::take(&mut state.dropped));
        drop(state);
        let done = self.write_batch(&changes);
        let mut state = self.state.write();
        match done {
            Ok(()) => state.tables.pages.left(),
            Err(error) => {
                state.poison = Some(error.to_string());
                return Err(error);
            }
        }
        drop(state);
        dropped.sort_unstable_by_key(|place| place.start);
        // Neighbours at once: parts of a host's block become no hole.
        for places in dropped.chunk_by(|place, next| place.end() == next.start) {
            let bytes = places.iter().map(|place| place.bytes).sum();
            let run = places.first().map_or_else(HostRange::default, |first| first.start.range(bytes));
            // What is not punched stays taken: that is no reason to fail.
            if self.space.zero(run, Kept::Nothing).is_ok() {
                let mut state = self.state.write();
                for place in places {
                    state.give_back(*place);
                }
            }
        }
        Ok(())
    }

    fn write_batch(&self, changes: &Changes) -> Result<()> {
        for end in &changes.ends {
            self.space.write_at(end.at, &end.bytes)?;
        }
        self.space.flush()?;
        self.write_sectors(&changes.entries)?;
        self.write_sectors(&changes.directories)
    }

    fn write_sectors(&self, sectors: &[Sector]) -> Result<()> {
        if sectors.is_empty() {
            return Ok(());
        }
        for run in runs(sectors) {
            self.space.write_at(run.at, &run.bytes)?;
        }
        self.space.flush()
    }
}
