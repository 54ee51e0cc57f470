//! Claims on guest bytes: who is about to change them. Overlapping claims wait for each other.
//!
//! A guest's writes that overlap take turns so; and a write that allocates in an image holds its claim from the choice
//! of host clusters until the entries point there, so that two first writes of one cluster cannot each bring a host
//! cluster of their own.

use super::GuestRange;
use parking_lot::{Condvar, Mutex};

/// The guest bytes that somebody is about to change.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    held: Mutex<Vec<GuestRange>>,
    freed: Condvar,
}

/// The right to change a range, until dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    range: GuestRange,
}

impl Claims {
    /// Waits until nobody else holds a part of `range`, and takes it.
    pub(crate) fn take(&self, range: GuestRange) -> Claim<'_> {
        let mut held = self.held.lock();
        while held.iter().any(|other| other.overlaps(range)) {
            self.freed.wait(&mut held);
        }
        held.push(range);
        Claim { claims: self, range }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = self.claims.held.lock();
        if let Some(nth) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(nth);
        }
        self.claims.freed.notify_all();
    }
}
