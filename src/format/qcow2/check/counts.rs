//! How often each cluster is referred to: counters in pages, so that memory follows what is used.

use crate::base::units;

/// Counters in a page.
const PAGE: u64 = 1024;

/// One counter a cluster, zero unless set. Counters stop at 65,535: larger counts are not told apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pages: Vec<Option<Box<[u16]>>>,
}

impl Counts {
    /// Returns the count of a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let page = self.pages.get(units::index(cluster / PAGE)).and_then(Option::as_ref);
        page.and_then(|page| page.get(units::index(cluster % PAGE))).map_or(0, |count| u64::from(*count))
    }

    /// Sets the count of a cluster.
    pub(super) fn set(&mut self, cluster: u64, count: u64) {
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        let page = units::index(cluster / PAGE);
        if self.pages.len() <= page {
            if count == 0 {
                return;
            }
            self.pages.resize(page + 1, None);
        }
        let Some(page) = self.pages.get_mut(page) else { return };
        let page = page.get_or_insert_with(|| vec![0; units::index(PAGE)].into_boxed_slice());
        if let Some(place) = page.get_mut(units::index(cluster % PAGE)) {
            *place = count;
        }
    }

    /// Returns whether nothing is counted in the page of a cluster.
    pub(super) fn is_empty_at(&self, cluster: u64) -> bool {
        self.pages.get(units::index(cluster / PAGE)).is_none_or(Option::is_none)
    }

    /// Returns the first cluster behind the page of a cluster.
    pub(super) const fn page_end(cluster: u64) -> u64 {
        (cluster / PAGE + 1) * PAGE
    }

    /// Returns the end of the last page that is in use, in clusters.
    pub(super) fn end(&self) -> u64 {
        units::count(self.pages.len()) * PAGE
    }

    /// Returns whether no cluster of a range is counted.
    pub(super) fn is_free(&self, from: u64, to: u64) -> bool {
        let mut at = from;
        while at < to.min(self.end()) {
            if matches!(self.pages.get(units::index(at / PAGE)), Some(None)) {
                at = (at / PAGE + 1) * PAGE;
                continue;
            }
            if self.get(at) > 0 {
                return false;
            }
            at += 1;
        }
        true
    }

    /// Returns the first cluster behind the last one that is counted.
    pub(super) fn used_end(&self) -> u64 {
        let page =
            self.pages.iter().rposition(|page| page.as_ref().is_some_and(|p| p.iter().any(|c| *c > 0)));
        let Some(page) = page.map(units::count) else { return 0 };
        (page * PAGE..(page + 1) * PAGE).rev().find(|n| self.get(*n) > 0).map_or(0, |last| last + 1)
    }
}
