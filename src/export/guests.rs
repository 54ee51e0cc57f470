//! The clients of one disk, as its owner sees them: who they are, and a way to have them leave.
//!
//! What stays true: a client is known here for as long as it holds the disk, and not kept by that.

use crate::base::clock::Stopwatch;
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

/// A client that has a disk.
pub trait Guest: Send + Sync {
    /// Returns where it is: an address, or a process.
    fn peer(&self) -> String;

    /// Returns whether nobody else can read along.
    fn is_secret(&self) -> bool;

    /// Has it leave: what is being done for it is done and answered, and nothing more is taken.
    fn stop(&self);

    /// Ends its connection, whatever is being done.
    fn cut(&self);
}

/// The clients of one disk.
#[derive(Default)]
pub struct Guests {
    here: Mutex<Vec<(Stopwatch, Weak<dyn Guest>)>>,
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guests").field("here", &self.here.lock().len()).finish_non_exhaustive()
    }
}

impl Guests {
    /// Knows of a client until it is dropped.
    pub fn enter(&self, guest: &Arc<dyn Guest>) {
        let mut here = self.here.lock();
        here.retain(|(_, guest)| guest.strong_count() > 0);
        here.push((Stopwatch::start(), Arc::downgrade(guest)));
    }

    /// Returns the clients, the first to come first, each with the time since then.
    pub fn here(&self) -> Vec<(Duration, Arc<dyn Guest>)> {
        let here = self.here.lock();
        here.iter().filter_map(|(since, guest)| Some((since.elapsed(), guest.upgrade()?))).collect()
    }
}
