//! A file in memory, for tests and for what needs no disk.

use super::{Descriptor, File, Kept, Run, Witness};
use crate::base::{HostOffset, HostRange, Result, units};
use parking_lot::RwLock;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const PAGE_BYTES: u64 = 64 << 10;

/// A file in memory: pages that were written, zeros elsewhere. Durable as long as it lives.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    inode: u64,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    changes: u64,
    /// By number; a page that is not here is a hole. Bytes past the end of the file are zeros.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl MemoryFile {
    /// Returns an empty file that calls itself `path` in messages.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { path: path.into(), inode: NEXT.fetch_add(1, Relaxed), state: RwLock::default() }
    }
}

/// The part of a page that a piece (one that crosses no page border) covers.
fn in_page(piece: HostRange) -> std::ops::Range<usize> {
    let start = units::index(piece.start.bytes() % PAGE_BYTES);
    start..start + units::index(piece.bytes)
}

impl State {
    fn write(&mut self, at: HostOffset, mut buf: &[u8]) {
        for piece in at.range(units::count(buf.len())).pieces(PAGE_BYTES) {
            let (now, later) = buf.split_at(units::index(piece.bytes));
            let page = self.pages.entry(piece.start.bytes() / PAGE_BYTES);
            let page = page.or_insert_with(|| vec![0; units::index(PAGE_BYTES)].into_boxed_slice());
            if let Some(part) = page.get_mut(in_page(piece)) {
                part.copy_from_slice(now);
            }
            buf = later;
        }
    }

    fn zero(&mut self, range: HostRange) {
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
            if let Some(part) = page.and_then(|page| page.get_mut(in_page(piece))) {
                part.fill(0);
            }
        }
    }
}

impl File for MemoryFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.state.read().bytes)
    }

    fn read_at(&self, at: HostOffset, mut buf: &mut [u8]) -> Result<()> {
        let state = self.state.read();
        for piece in at.range(units::count(buf.len())).pieces(PAGE_BYTES) {
            let (now, later) = buf.split_at_mut(units::index(piece.bytes));
            let page = state.pages.get(&(piece.start.bytes() / PAGE_BYTES));
            match page.and_then(|page| page.get(in_page(piece))) {
                Some(part) => now.copy_from_slice(part),
                None => now.fill(0),
            }
            buf = later;
        }
        Ok(())
    }

    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        let mut state = self.state.write();
        state.changes += 1;
        state.bytes = state.bytes.max(at.plus(units::count(buf.len())).bytes());
        state.write(at, buf);
        Ok(())
    }

    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        let mut state = self.state.write();
        state.changes += 1;
        if kept == Kept::Space {
            state.bytes = state.bytes.max(range.end().bytes());
        }
        state.zero(range);
        Ok(())
    }

    fn allocate(&self, range: HostRange) -> Result<()> {
        let mut state = self.state.write();
        state.bytes = state.bytes.max(range.end().bytes());
        Ok(())
    }

    fn set_bytes(&self, bytes: u64) -> Result<()> {
        let mut state = self.state.write();
        state.changes += 1;
        let end = HostOffset::new(state.bytes).ceil(PAGE_BYTES);
        state.zero(HostRange::between(HostOffset::new(bytes), end));
        state.bytes = bytes;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        let state = self.state.read();
        let rest = HostRange::between(at, HostOffset::new(state.bytes));
        if rest.is_empty() {
            return Ok(Run { range: rest, is_data: false });
        }
        let page = at.bytes() / PAGE_BYTES;
        let mut next = state.pages.range(page..).map(|(page, _)| *page).peekable();
        let is_data = next.peek() == Some(&page);
        let end_page = if is_data {
            (page..)
                .zip(next)
                .take_while(|(expected, found)| expected == found)
                .last()
                .map(|(last, _)| last + 1)
        } else {
            next.next()
        };
        let end = end_page.map_or(rest.end(), |page| HostOffset::new(page * PAGE_BYTES).min(rest.end()));
        Ok(Run { range: HostRange::between(at, end), is_data })
    }

    fn witness(&self) -> Result<Witness> {
        let state = self.state.read();
        let modified_ns = i128::from(state.changes);
        Ok(Witness { file_system: 0, inode: self.inode, bytes: state.bytes, modified_ns, boot: 0 })
    }

    fn allocated_bytes(&self) -> Result<u64> {
        Ok(units::count(self.state.read().pages.len()) * PAGE_BYTES)
    }

    fn descriptor(&self) -> Option<Descriptor> {
        None
    }

    fn is_device(&self) -> bool {
        false
    }
}
