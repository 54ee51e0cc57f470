//! The cache of an image's tables: pages of its file, written back by a flush of the image only.
//!
//! A page is clean (the file says the same), *changed* (some sectors wait for the next flush), or *leaving*
//! (a flush has taken a copy and has not written all of it yet). Only clean pages are dropped: what the file
//! says at a page's place is never older than what a reader was shown.

use crate::{
    base::{
        Error, HostOffset, Result,
        budget::Share,
        units::{count, index},
    },
    io::File,
};
use byteorder::{BigEndian, ByteOrder};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// The most that a page holds: small enough that a random read loads little, eight sectors as a mask.
const PAGE_BYTES: u64 = 4096;

/// The fewest pages that a writer keeps.
pub(super) const WRITERS_LEAST: usize = 64;

#[derive(Debug)]
struct Page<K> {
    kind: K,
    bytes: Box<[u8]>,
    /// One bit for each granule that the file does not have yet.
    changed: u8,
    /// Whether a flush is writing a copy of this page.
    is_leaving: bool,
    /// When the page was last looked at, in ticks of [`Pages::tick`].
    used: AtomicU64,
}

/// A granule that waits to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sector {
    /// Where it goes.
    pub(super) at: HostOffset,
    /// What it says.
    pub(super) bytes: Vec<u8>,
}

/// Pages of one image file, by host offset. `K` says what a page is part of, which decides when a flush may write it.
#[derive(Debug)]
pub(super) struct Pages<K> {
    held: HashMap<u64, Page<K>>,
    page: u64,
    /// What is written back at once, in bytes: an eighth of a page at least.
    granule: u64,
    /// How much is kept.
    share: Share,
    /// The fewest pages that are kept: what one operation needs at once.
    least: usize,
    changed: usize,
    tick: AtomicU64,
}

impl<K: Copy + PartialEq> Pages<K> {
    /// Makes an empty cache for tables in units of `unit` bytes that are written back in granules, which holds about as
    /// much as its share, and `least` pages at least.
    pub(super) fn new(unit: u64, granule: u64, share: Share, least: usize) -> Self {
        let page = PAGE_BYTES.min(unit);
        Self { held: HashMap::new(), page, granule, share, least, changed: 0, tick: AtomicU64::new(0) }
    }

    /// Returns how many pages are kept.
    fn limit(&self) -> usize {
        index(self.share.bytes() / self.page).max(self.least)
    }

    /// Returns the bytes of a page.
    pub(super) const fn page(&self) -> u64 {
        self.page
    }

    /// Returns whether something waits to be written.
    pub(super) const fn is_changed(&self) -> bool {
        self.changed != 0
    }

    /// Returns whether so much waits to be written that a flush should come before more.
    pub(super) fn is_crowded(&self) -> bool {
        self.changed > self.limit() / 2
    }

    fn find(&self, at: HostOffset) -> Option<&Page<K>> {
        let page = self.held.get(&at.floor(self.page).bytes())?;
        page.used.store(self.tick.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(page)
    }

    /// Returns whether the page that holds `at` is here.
    pub(super) fn has(&self, at: HostOffset) -> bool {
        self.find(at).is_some()
    }

    /// Returns the bytes of the page that holds `at`, if it is here, from `at` on.
    pub(super) fn bytes(&self, at: HostOffset) -> Option<&[u8]> {
        self.find(at)?.bytes.get(index(at.bytes() % self.page)..)
    }

    /// Returns the big-endian word at `at`; an error if its page is not here.
    pub(super) fn word(&self, at: HostOffset) -> Result<u64> {
        let bytes = self.bytes(at).and_then(|b| b.get(..8)).ok_or_else(|| absent(at))?;
        Ok(BigEndian::read_u64(bytes))
    }

    /// Brings the page that holds `at` in from `file`, dropping clean ones that nobody asked for lately.
    pub(super) fn load(&mut self, file: &dyn File, at: HostOffset, kind: K) -> Result<()> {
        if self.has(at) {
            return Ok(());
        }
        self.make_room();
        let mut bytes = vec![0; index(self.page)].into_boxed_slice();
        file.read_at(at.floor(self.page), &mut bytes)?;
        self.insert(at, kind, bytes);
        Ok(())
    }

    fn insert(&mut self, at: HostOffset, kind: K, bytes: Box<[u8]>) {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed);
        let page = Page { kind, bytes, changed: 0, is_leaving: false, used: AtomicU64::new(tick) };
        self.held.insert(at.floor(self.page).bytes(), page);
    }

    /// Changes the bytes at `at` (inside one granule); an error if the page is not here.
    pub(super) fn store(&mut self, at: HostOffset, bytes: &[u8]) -> Result<()> {
        let from = index(at.bytes() % self.page);
        let page = self.held.get_mut(&at.floor(self.page).bytes()).ok_or_else(|| absent(at))?;
        let to = page.bytes.get_mut(from..from + bytes.len()).ok_or_else(|| absent(at))?;
        to.copy_from_slice(bytes);
        self.changed += usize::from(page.changed == 0);
        page.changed |= 1 << (from / index(self.granule));
        Ok(())
    }

    /// Forgets the pages of the cluster of `bytes` bytes at `at`: it is free now, whatever it said.
    pub(super) fn forget(&mut self, at: HostOffset, bytes: u64) {
        for at in (at.bytes()..at.bytes() + bytes).step_by(index(self.page)) {
            if let Some(page) = self.held.remove(&at) {
                self.changed -= usize::from(page.changed != 0);
            }
        }
    }

    /// Forgets all that is here, which the file says, too.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.changed = 0;
    }

    /// Takes a copy of every granule of `kind` that waits to be written, in file order; they are leaving now.
    pub(super) fn take(&mut self, kind: K) -> Vec<Sector> {
        let (mut sectors, granule) = (Vec::new(), self.granule);
        for (at, page) in self.held.iter_mut().filter(|(_, p)| p.kind == kind && p.changed != 0) {
            for (nth, bytes) in (0_u64..).zip(page.bytes.chunks(index(granule))) {
                if page.changed & 1 << nth != 0 {
                    let at = HostOffset::new(*at + nth * granule);
                    sectors.push(Sector { at, bytes: bytes.to_vec() });
                }
            }
            page.changed = 0;
            page.is_leaving = true;
            self.changed -= 1;
        }
        sectors.sort_unstable_by_key(|s| s.at);
        sectors
    }

    /// The copies taken are in the file: their pages may be dropped again.
    pub(super) fn left(&mut self) {
        self.held.values_mut().for_each(|p| p.is_leaving = false);
    }

    /// Drops the clean pages that were not used for longest, a quarter of all, when the cache is full.
    fn make_room(&mut self) {
        let limit = self.limit();
        if self.held.len() < limit {
            return;
        }
        let is_clean = |p: &Page<K>| p.changed == 0 && !p.is_leaving;
        let used = |p: &Page<K>| p.used.load(Ordering::Relaxed);
        let mut ticks: Vec<u64> = self.held.values().filter(|p| is_clean(p)).map(used).collect();
        let excess = self.held.len() - limit;
        let quarter = (excess + limit / 4).min(ticks.len().saturating_sub(1));
        if ticks.len() <= quarter {
            return;
        }
        let (_, oldest, _) = ticks.select_nth_unstable(quarter);
        // What the operation under way looked at stays, or it would lose the ground under its feet.
        let kept = count(self.least.min(16));
        let oldest = (*oldest).min(self.tick.load(Ordering::Relaxed).saturating_sub(kept));
        self.held.retain(|_, p| !is_clean(p) || used(p) > oldest);
    }
}

fn absent(at: HostOffset) -> Error {
    Error::invalid(format!("the table page at 0x{at:x} was dropped while in use"))
}

/// Joins granules that follow each other (they are in file order), so that each run is one write.
pub(super) fn runs(sectors: &[Sector]) -> Vec<Sector> {
    let mut runs: Vec<Sector> = Vec::new();
    for sector in sectors {
        match runs.last_mut() {
            Some(run) if run.at.plus(count(run.bytes.len())) == sector.at => run.bytes.extend(&sector.bytes),
            _ => runs.push(sector.clone()),
        }
    }
    runs
}
