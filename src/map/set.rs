//! A set of guest bytes: what is dirty, what is still to do.

use crate::base::{GuestOffset, GuestRange};
use std::collections::BTreeMap;

/// A set of guest bytes, kept as disjoint ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<GuestOffset, GuestOffset>,
}

impl RangeSet {
    /// Returns the empty set.
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// Adds all bytes of `range`.
    pub fn insert(&mut self, range: GuestRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end());
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back().filter(|(_, e)| **e >= start) {
            self.ranges.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.ranges.insert(start, end);
    }

    /// Takes all bytes of `range` out.
    pub fn remove(&mut self, range: GuestRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) =
            self.ranges.range(..range.end()).next_back().filter(|(_, e)| **e > range.start)
        {
            self.ranges.remove(&s);
            if e > range.end() {
                self.ranges.insert(range.end(), e);
            }
            if s < range.start {
                self.ranges.insert(s, range.start);
            }
        }
    }

    /// Returns whether a byte of `range` is in the set.
    pub fn touches(&self, range: GuestRange) -> bool {
        self.ranges
            .range(..range.end())
            .next_back()
            .is_some_and(|(_, e)| *e > range.start && !range.is_empty())
    }

    /// Returns whether all bytes of `range` are in the set.
    pub fn covers(&self, range: GuestRange) -> bool {
        range.is_empty()
            || self.ranges.range(..=range.start).next_back().is_some_and(|(_, e)| *e >= range.end())
    }

    /// Returns the first range that ends after `at`, cut to start at `at` or later.
    pub fn next_from(&self, at: GuestOffset) -> Option<GuestRange> {
        let around = self.ranges.range(..=at).next_back().filter(|(_, e)| **e > at);
        let (s, e) = around.or_else(|| self.ranges.range(at..).next())?;
        Some(GuestRange::between(at.max(*s), *e))
    }

    /// Returns the ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = GuestRange> + '_ {
        self.ranges.iter().map(|(s, e)| GuestRange::between(*s, *e))
    }

    /// Returns the parts of `within` that are not in the set, in order.
    pub fn gaps(&self, within: GuestRange) -> Vec<GuestRange> {
        let (mut out, mut at) = (Vec::new(), within.start);
        while let Some(held) = self.next_from(at).filter(|r| r.start < within.end()) {
            if held.start > at {
                out.push(GuestRange::between(at, held.start));
            }
            at = held.end();
        }
        if at < within.end() {
            out.push(GuestRange::between(at, within.end()));
        }
        out
    }

    /// Returns how many bytes are in the set.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|r| r.bytes).sum()
    }

    /// Returns whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl FromIterator<GuestRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = GuestRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|r| set.insert(r));
        set
    }
}
