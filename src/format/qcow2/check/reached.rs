//! The L2 tables that L1 tables lead to, each once: snapshots share most of theirs, and a file that names
//! one table a million times costs no more than its length.

use crate::base::HostOffset;
use std::collections::HashMap;

/// An L2 table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// Where it is; a multiple of the cluster, inside the file.
    pub(super) at: HostOffset,
    /// How many L1 entries lead to it: so often does each of its entries refer to something.
    pub(super) times: u64,
    /// Whether one of them is in the active L1 table.
    pub(super) is_active: bool,
}

/// The tables in the order in which they were met; the active ones come first.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    list: Vec<Table>,
    places: HashMap<HostOffset, usize>,
}

impl Reached {
    /// Notes that an L1 entry leads to the table at `at`.
    pub(super) fn add(&mut self, at: HostOffset, is_active: bool) {
        let place = *self.places.entry(at).or_insert_with(|| {
            self.list.push(Table { at, times: 0, is_active });
            self.list.len() - 1
        });
        if let Some(table) = self.list.get_mut(place) {
            table.times += 1;
        }
    }

    /// Returns the tables.
    pub(super) fn into_list(self) -> Vec<Table> {
        self.list
    }
}
