//! The tree over a view, holding the leaves that are not zero.

use super::{
    ContentId, LEAF_BYTES,
    hash::{Digest, leaf, node, view},
};
use crate::base::{
    Error, GuestOffset, GuestRange, Result,
    units::{SECTOR_BYTES, count, index},
};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

/// Leaves in a page, and the height of the tree over them.
pub(super) const PAGE_LEAVES: u64 = 64;
const PAGE_HEIGHT: u32 = 6;

/// The hashes over fewer pages than this are computed sooner than other threads are woken.
const FEW_PAGES: usize = 32;

/// 64 neighbouring leaves, of which at least one is not zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Page {
    /// Bit i says that leaf i is not zero.
    held: u64,
    /// The hashes of those leaves, in order: as many as `held` has bits.
    hashes: Vec<Digest>,
    /// The hash over all of them, once it was asked for: where little changes, the tree is soon hashed again.
    root: OnceLock<Digest>,
}

impl PartialEq for Page {
    fn eq(&self, other: &Self) -> bool {
        (self.held, &self.hashes) == (other.held, &other.hashes)
    }
}

impl Eq for Page {}

impl Page {
    /// Takes what was stored.
    pub(super) const fn new(held: u64, hashes: Vec<Digest>) -> Self {
        Self { held, hashes, root: OnceLock::new() }
    }

    /// Returns which leaves are not zero, and their hashes.
    pub(super) fn parts(&self) -> (u64, &[Digest]) {
        (self.held, &self.hashes)
    }

    /// Returns the hash over the page.
    fn root(&self) -> Digest {
        *self.root.get_or_init(|| page_root(self, PAGE_HEIGHT))
    }

    /// Returns how many held leaves stand before leaf `at` of the page.
    fn rank(&self, at: u64) -> usize {
        let below = (1_u64 << at) - 1;
        index(u64::from((self.held & below).count_ones()))
    }

    fn holds(&self, at: u64) -> bool {
        self.held >> at & 1 == 1
    }

    fn get(&self, at: u64) -> Digest {
        let found = if self.holds(at) { self.hashes.get(self.rank(at)) } else { None };
        found.copied().unwrap_or(Digest::ZERO)
    }

    fn set(&mut self, at: u64, digest: Digest) {
        let rank = self.rank(at);
        self.root.take();
        match (self.holds(at), digest.is_zero()) {
            (true, true) => {
                self.hashes.remove(rank);
                self.held &= !(1 << at);
            }
            (true, false) => {
                if let Some(hash) = self.hashes.get_mut(rank) {
                    *hash = digest;
                }
            }
            (false, true) => {}
            (false, false) => {
                self.hashes.insert(rank, digest);
                self.held |= 1 << at;
            }
        }
    }

    /// Returns the held leaves in order: place in the page, hash.
    fn leaves(&self) -> impl Iterator<Item = (u64, Digest)> + '_ {
        (0..PAGE_LEAVES).filter(|at| self.holds(*at)).zip(self.hashes.iter().copied())
    }
}

/// The hashes of a view's leaves; takes memory for those only that are not zero (32 bytes each).
///
/// The same leaves give the same tree in whatever order they were set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// No page without a held leaf, no leaf past the end.
    pages: BTreeMap<u64, Page>,
}

impl Tree {
    /// Returns the tree of a view of `size` bytes (rounded up to 512), all zeros.
    pub const fn new(size: u64) -> Self {
        Self { size: size.div_ceil(SECTOR_BYTES).saturating_mul(SECTOR_BYTES), pages: BTreeMap::new() }
    }

    /// Returns the tree of a view that is in memory whole.
    pub fn of(bytes: &[u8]) -> Self {
        let mut tree = Self::new(count(bytes.len()));
        for (at, piece) in (0..).zip(bytes.chunks(index(LEAF_BYTES))) {
            tree.put(at, leaf(piece));
        }
        tree
    }

    /// Returns the size of the view in bytes, a multiple of 512.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns how many leaves the view has, zero or not.
    pub const fn leaves(&self) -> u64 {
        self.size.div_ceil(LEAF_BYTES)
    }

    /// Returns how many leaves are not zero.
    pub fn held_leaves(&self) -> u64 {
        self.pages.values().map(|page| count(page.hashes.len())).sum()
    }

    /// Returns the guest bytes of a leaf, cut at the view's end.
    pub fn range(&self, leaf: u64) -> GuestRange {
        let whole = GuestOffset::new(leaf.saturating_mul(LEAF_BYTES)).range(LEAF_BYTES);
        whole.clip(GuestOffset::new(0).range(self.size))
    }

    /// Returns the hash of a leaf; zero past the end.
    pub fn get(&self, leaf: u64) -> Digest {
        self.pages.get(&(leaf / PAGE_LEAVES)).map_or(Digest::ZERO, |page| page.get(leaf % PAGE_LEAVES))
    }

    /// Replaces the hash of a leaf; `Invalid` past the end.
    pub fn set(&mut self, leaf: u64, digest: Digest) -> Result<()> {
        if leaf >= self.leaves() {
            let has = self.leaves();
            return Err(Error::invalid(format!("leaf {leaf} of a tree of {has} leaves")));
        }
        self.put(leaf, digest);
        Ok(())
    }

    fn put(&mut self, leaf: u64, digest: Digest) {
        let (page, at) = (leaf / PAGE_LEAVES, leaf % PAGE_LEAVES);
        if !digest.is_zero() {
            self.pages.entry(page).or_default().set(at, digest);
        } else if let Some(held) = self.pages.get_mut(&page) {
            held.set(at, digest);
            if held.held == 0 {
                self.pages.remove(&page);
            }
        }
    }

    /// Makes all leaves in `from..to` zero.
    pub fn clear(&mut self, from: u64, to: u64) {
        let to = to.max(from);
        let pages: Vec<u64> =
            self.pages.range(from / PAGE_LEAVES..to.div_ceil(PAGE_LEAVES)).map(|(p, _)| *p).collect();
        for page in pages {
            let first = page * PAGE_LEAVES;
            if from <= first && first + PAGE_LEAVES <= to {
                self.pages.remove(&page);
            } else {
                (first.max(from)..(first + PAGE_LEAVES).min(to)).for_each(|at| self.put(at, Digest::ZERO));
            }
        }
    }

    /// Changes the size (rounded up to 512). Growth shows zeros; what is cut off is gone.
    ///
    /// Returns the leaf that a cut goes through, if any: its hash is that of the longer view, and the caller
    /// must read and set it again.
    #[must_use = "the leaf that is cut must be hashed again"]
    pub fn resize(&mut self, size: u64) -> Option<u64> {
        let old_leaves = self.leaves();
        let Self { size, .. } = Self::new(size);
        if std::mem::replace(&mut self.size, size) <= size {
            return None;
        }
        self.clear(self.leaves(), old_leaves);
        let last = self.size / LEAF_BYTES;
        (!self.size.is_multiple_of(LEAF_BYTES) && !self.get(last).is_zero()).then_some(last)
    }

    /// Returns the leaves that are not zero, in order: number and hash.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Digest)> + '_ {
        self.pages
            .iter()
            .flat_map(|(page, held)| held.leaves().map(move |(at, d)| (page * PAGE_LEAVES + at, d)))
    }

    /// Returns the hash over all leaves.
    pub fn root(&self) -> Digest {
        let height = self.leaves().next_power_of_two().trailing_zeros();
        if height < PAGE_HEIGHT {
            return self.pages.get(&0).map_or(Digest::ZERO, |page| page_root(page, height));
        }
        let root = |(at, page): (&u64, &Page)| (*at, page.root());
        let unknown = self.pages.values().filter(|page| page.root.get().is_none());
        let mut level: Vec<(u64, Digest)> = if unknown.take(FEW_PAGES).count() < FEW_PAGES {
            self.pages.iter().map(root).collect()
        } else {
            self.pages.par_iter().map(root).collect()
        };
        for _ in PAGE_HEIGHT..height {
            level = nodes_over(&level);
        }
        level.first().map_or(Digest::ZERO, |(_, root)| *root)
    }

    /// Returns the content ID of the view.
    pub fn id(&self) -> ContentId {
        view(self.size, &self.root())
    }

    pub(super) const fn pages(&self) -> &BTreeMap<u64, Page> {
        &self.pages
    }

    /// Adds a page behind all others; false, and nothing is added, if it does not belong there.
    pub(super) fn push_page(&mut self, at: u64, page: Page) -> bool {
        let last_leaf = at.checked_mul(PAGE_LEAVES).map(|first| first + u64::from(page.held.max(1).ilog2()));
        let fits = last_leaf.is_some_and(|last| last < self.leaves())
            && self.pages.last_key_value().is_none_or(|(last, _)| *last < at)
            && page.held != 0
            && page.hashes.len() == index(u64::from(page.held.count_ones()))
            && !page.hashes.contains(&Digest::ZERO);
        if fits {
            self.pages.insert(at, page);
        }
        fits
    }
}

/// Returns the root of the tree of `height` over the first leaves of a page.
fn page_root(page: &Page, height: u32) -> Digest {
    let mut level: Vec<(u64, Digest)> = page.leaves().collect();
    for _ in 0..height {
        level = nodes_over(&level);
    }
    level.first().map_or(Digest::ZERO, |(_, root)| *root)
}

/// Returns the next level up: the nodes over `level`, which names by place the hashes that are not zero.
fn nodes_over(level: &[(u64, Digest)]) -> Vec<(u64, Digest)> {
    let pairs = level.chunk_by(|(a, _), (b, _)| a / 2 == b / 2);
    let over = pairs.filter_map(|pair| match pair {
        [(at, left), (_, right)] => Some((at / 2, node(left, right))),
        [(at, left)] if at % 2 == 0 => Some((at / 2, node(left, &Digest::ZERO))),
        [(at, right)] => Some((at / 2, node(&Digest::ZERO, right))),
        _ => None,
    });
    over.collect()
}

/// Returns the leaves in which two views differ, as joined ranges in order, cut at the longer view's end.
///
/// Past the shorter view's end counts as zeros, so that a change of size alone differs nowhere.
pub fn diff(a: &Tree, b: &Tree) -> Vec<GuestRange> {
    let longer = if a.size >= b.size { a } else { b };
    let pages: BTreeSet<u64> = a.pages.keys().chain(b.pages.keys()).copied().collect();
    let none = Page::default();
    let mut out: Vec<GuestRange> = Vec::new();
    for at in pages {
        let (left, right) = (a.pages.get(&at).unwrap_or(&none), b.pages.get(&at).unwrap_or(&none));
        if left == right {
            continue;
        }
        for place in (0..PAGE_LEAVES).filter(|place| left.get(*place) != right.get(*place)) {
            let range = longer.range(at * PAGE_LEAVES + place);
            match out.last_mut() {
                Some(last) if last.end() == range.start => last.bytes += range.bytes,
                _ => out.push(range),
            }
        }
    }
    out
}
