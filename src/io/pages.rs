//! The bytes of a simulated file: pages that were written, zeros elsewhere.
//!
//! Pages are shared between clones until one of them is written, so that a copy costs a pointer a page.
//! Bytes past the length are zeros, unless [`Pages::put`] placed them there and [`Pages::cut`] is still to come.

use super::Run;
use crate::base::{
    HostOffset, HostRange,
    units::{count, index},
};
use std::{collections::BTreeMap, sync::Arc};

const PAGE_BYTES: u64 = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    bytes: u64,
    /// By number; a page that is not here is a hole.
    pages: BTreeMap<u64, Arc<[u8]>>,
}

/// The part of a page that a piece (one that crosses no page border) covers.
fn in_page(piece: HostRange) -> std::ops::Range<usize> {
    let start = index(piece.start.bytes() % PAGE_BYTES);
    start..start + index(piece.bytes)
}

impl Pages {
    /// The length in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the pages that are held.
    pub(super) fn held_bytes(&self) -> u64 {
        count(self.pages.len()) * PAGE_BYTES
    }

    pub(super) fn read(&self, at: HostOffset, mut buf: &mut [u8]) {
        for piece in at.range(count(buf.len())).pieces(PAGE_BYTES) {
            let (now, later) = buf.split_at_mut(index(piece.bytes));
            let page = self.pages.get(&(piece.start.bytes() / PAGE_BYTES));
            match page.and_then(|page| page.get(in_page(piece))) {
                Some(part) => now.copy_from_slice(part),
                None => now.fill(0),
            }
            buf = later;
        }
    }

    /// Stores bytes and leaves the length alone.
    pub(super) fn put(&mut self, at: HostOffset, mut buf: &[u8]) {
        for piece in at.range(count(buf.len())).pieces(PAGE_BYTES) {
            let (now, later) = buf.split_at(index(piece.bytes));
            let page = self.pages.entry(piece.start.bytes() / PAGE_BYTES);
            let page = page.or_insert_with(|| Arc::from(vec![0; index(PAGE_BYTES)]));
            if let Some(part) = Arc::make_mut(page).get_mut(in_page(piece)) {
                part.copy_from_slice(now);
            }
            buf = later;
        }
    }

    /// Stores bytes, growing the file if needed.
    pub(super) fn write(&mut self, at: HostOffset, buf: &[u8]) {
        self.put(at, buf);
        self.grow(at.plus(count(buf.len())).bytes());
    }

    /// Makes a range read as zeros; whole pages become holes. The length stays.
    pub(super) fn zero(&mut self, range: HostRange) {
        let whole = range.inner(PAGE_BYTES);
        let first = self.pages.range(whole.start.bytes() / PAGE_BYTES..);
        let gone: Vec<u64> =
            first.map(|(page, _)| *page).take_while(|page| page * PAGE_BYTES < whole.end().bytes()).collect();
        for page in gone {
            self.pages.remove(&page);
        }
        let edges = [
            HostRange::between(range.start, range.end().min(whole.start)),
            HostRange::between(range.start.max(whole.end()), range.end()),
        ];
        for piece in edges.into_iter().flat_map(|edge| edge.pieces(PAGE_BYTES)) {
            let page = self.pages.get_mut(&(piece.start.bytes() / PAGE_BYTES));
            if let Some(part) = page.and_then(|page| Arc::make_mut(page).get_mut(in_page(piece))) {
                part.fill(0);
            }
        }
    }

    /// Makes the file at least this long.
    pub(super) fn grow(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
    }

    /// Sets the length: what is past it is gone.
    pub(super) fn cut(&mut self, bytes: u64) {
        let last = self.pages.last_key_value().map_or(0, |(page, _)| (page + 1) * PAGE_BYTES);
        self.zero(HostRange::between(HostOffset::new(bytes), HostOffset::new(last)));
        self.bytes = bytes;
    }

    /// Whether a page lies past the length, or across it.
    pub(super) fn passes_end(&self) -> bool {
        self.pages.last_key_value().is_some_and(|(page, _)| (page + 1) * PAGE_BYTES > self.bytes)
    }

    /// The run of pages or hole that holds `at`; empty at and past the end.
    pub(super) fn run_at(&self, at: HostOffset) -> Run {
        let rest = HostRange::between(at, HostOffset::new(self.bytes));
        if rest.is_empty() {
            return Run { range: rest, is_data: false };
        }
        let page = at.bytes() / PAGE_BYTES;
        let mut next = self.pages.range(page..).map(|(page, _)| *page).peekable();
        let is_data = next.peek() == Some(&page);
        let end_page = if is_data {
            let run = (page..).zip(next).take_while(|(expected, found)| expected == found);
            run.last().map(|(last, _)| last + 1)
        } else {
            next.next()
        };
        let end = end_page.map_or(rest.end(), |page| HostOffset::new(page * PAGE_BYTES).min(rest.end()));
        Run { range: HostRange::between(at, end), is_data }
    }
}
