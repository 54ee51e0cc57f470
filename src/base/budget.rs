//! How much memory the maps of a chain may take: one bound that its layers' tables and its merged views share.
//!
//! Who shares a budget takes it from a clone. The parts, of every byte that it has:
//!
//! | part | for |
//! |---|---|
//! | 1/2 | pages of merged maps, of all views together; each view keeps the one that it reads by |
//! | 1/4 | layers' maps that are being merged ([`Budget::merged_bytes`]) |
//! | 1/8 | pages of the layers' tables, an equal share for each open image |
//! | 1/16 | first levels of those tables; what finds no room there is read from its file each time |
//!
//! The rest is for what is small and counted by nobody. Buffers of guest bytes and trees of content IDs are no maps:
//! they come on top.

use super::{Error, Result};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// A bound on the memory for maps; its clones are the same one.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: u64,
    images: AtomicU64,
    held: [AtomicU64; 2],
}

/// What is counted by the byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Pages of merged maps.
    Views,
    /// First levels of layers' tables.
    FirstLevels,
}

/// So many bytes of a part, until it is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    part: Part,
    bytes: u64,
}

/// An open image's claim on its share of the tables' pages, until it is dropped.
#[derive(Debug)]
pub struct Share(Budget);

impl Budget {
    /// What a chain has unless the caller says otherwise, in bytes.
    pub const DEFAULT_BYTES: u64 = 256 << 20;

    /// The least that a chain can work with, in bytes.
    pub const BYTES_MIN: u64 = 8 << 20;

    /// Returns a budget of so many bytes; `Invalid` below [`Budget::BYTES_MIN`].
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes < Self::BYTES_MIN {
            let least = Self::BYTES_MIN >> 20;
            return Err(Error::invalid(format!("{bytes} bytes for maps: at least {least} MiB are needed")));
        }
        Ok(Self::of(bytes))
    }

    fn of(bytes: u64) -> Self {
        Self(Arc::new(Shared { bytes, images: AtomicU64::new(0), held: <[AtomicU64; 2]>::default() }))
    }

    /// Returns how many bytes there are in all.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Returns how many bytes the maps that are being merged may take.
    pub fn merged_bytes(&self) -> u64 {
        self.bytes() / 4
    }

    fn counter(&self, part: Part) -> (&AtomicU64, u64) {
        let [views, first_levels] = &self.0.held;
        match part {
            Part::Views => (views, self.bytes() / 2),
            Part::FirstLevels => (first_levels, self.bytes() / 16),
        }
    }

    /// Returns whether `bytes` more of a part would still be within it.
    pub fn has_room(&self, part: Part, bytes: u64) -> bool {
        let (held, limit) = self.counter(part);
        held.load(Relaxed).saturating_add(bytes) <= limit
    }

    /// Counts `bytes` of a part, whether or not there is room.
    #[must_use = "it is counted as long as this is there"]
    pub fn hold(&self, part: Part, bytes: u64) -> Held {
        self.counter(part).0.fetch_add(bytes, Relaxed);
        Held { budget: self.clone(), part, bytes }
    }

    /// Takes part in sharing the room for tables.
    pub fn join(&self) -> Share {
        self.0.images.fetch_add(1, Relaxed);
        Share(self.clone())
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(Self::DEFAULT_BYTES)
    }
}

impl Share {
    /// Returns how many bytes of its tables the image may keep now.
    pub fn bytes(&self) -> u64 {
        self.0.bytes() / 8 / self.0.0.images.load(Relaxed).max(1)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.0.images.fetch_sub(1, Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.counter(self.part).0.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_by_all_clones_until_it_is_dropped() {
        let budget = Budget::new(Budget::BYTES_MIN).unwrap();
        let half = budget.bytes() / 2;
        let held = budget.clone().hold(Part::Views, half);
        assert!(!budget.has_room(Part::Views, 1) && budget.has_room(Part::FirstLevels, 1));
        drop(held);
        assert!(budget.has_room(Part::Views, half) && !budget.has_room(Part::Views, half + 1));
    }

    #[test]
    fn open_images_share_alike() {
        let budget = Budget::default();
        let first = budget.join();
        let alone = first.bytes();
        let others: Vec<Share> = (1..64).map(|_| budget.clone().join()).collect();
        assert_eq!(first.bytes() * 64, alone);
        drop(others);
        assert_eq!(first.bytes(), alone);
    }

    #[test]
    fn too_little_is_refused() {
        assert!(Budget::new(Budget::BYTES_MIN - 1).unwrap_err().to_string().contains("8 MiB"));
    }
}
