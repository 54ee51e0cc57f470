//! A file in memory, for tests and for what needs no disk.

use super::{Access, Descriptor, File, Kept, Run, Witness, pages::Pages};
use crate::base::{HostOffset, HostRange, Result};
use parking_lot::RwLock;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// A file in memory. Durable as long as it lives.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    inode: u64,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    changes: u64,
    pages: Pages,
}

impl MemoryFile {
    /// Returns an empty file that calls itself `path` in messages.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { path: path.into(), inode: NEXT.fetch_add(1, Relaxed), state: RwLock::default() }
    }

    fn change(&self, how: impl FnOnce(&mut Pages)) {
        let mut state = self.state.write();
        state.changes += 1;
        how(&mut state.pages);
    }
}

impl File for MemoryFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.state.read().pages.bytes())
    }

    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.state.read().pages.read(at, buf);
        Ok(())
    }

    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        if !buf.is_empty() {
            self.change(|pages| pages.write(at, buf));
        }
        Ok(())
    }

    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        if kept == Kept::Space {
            self.allocate(range)?;
        }
        if !range.is_empty() {
            self.change(|pages| pages.zero(range));
        }
        Ok(())
    }

    fn zeroes_fast(&self, _kept: Kept) -> bool {
        true
    }

    fn allocate(&self, range: HostRange) -> Result<()> {
        if !range.is_empty() {
            self.change(|pages| pages.grow(range.end().bytes()));
        }
        Ok(())
    }

    fn set_bytes(&self, bytes: u64) -> Result<()> {
        self.change(|pages| pages.cut(bytes));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn flush_with_time(&self) -> Result<()> {
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        Ok(self.state.read().pages.run_at(at))
    }

    fn witness(&self) -> Result<Witness> {
        let state = self.state.read();
        let (bytes, modified_ns) = (state.pages.bytes(), i128::from(state.changes));
        Ok(Witness { file_system: 0, inode: self.inode, bytes, modified_ns, boot: 0 })
    }

    fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.state.read().pages.held_bytes())
    }

    fn descriptor(&self) -> Option<Descriptor> {
        None
    }

    fn is_device(&self) -> bool {
        false
    }

    fn set_access(&self, _access: Access) -> Result<()> {
        Ok(())
    }
}
