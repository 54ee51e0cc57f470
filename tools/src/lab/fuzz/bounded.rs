//! A file in memory that stops answering after so many steps: who reads on for ever is caught.

use deltachain::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{count, index},
    },
    io::{Access, Descriptor, File, Kept, Run, Witness, memory::MemoryFile},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// What one input may cost: each I/O counts as this many bytes, and its own.
const STEP_BYTES: u64 = 4096;
/// All that one input may cost, in bytes.
const BUDGET_BYTES: u64 = 1 << 30;

/// A page of a file in memory.
static ZEROS: [u8; 4096] = [0; 4096];

/// What is left to spend; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(BUDGET_BYTES)))
    }

    /// Whether more was asked for than there was.
    pub(super) fn is_spent(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    fn spend(&self, bytes: u64) -> Result<()> {
        let cost = bytes.saturating_add(STEP_BYTES);
        let left = self.0.load(Relaxed).saturating_sub(cost);
        self.0.store(left, Relaxed);
        if left == 0 { Err(Error::invalid("more I/O than any input is worth")) } else { Ok(()) }
    }
}

/// A file in memory with a budget.
#[derive(Debug)]
pub(super) struct Bounded {
    file: MemoryFile,
    budget: Budget,
}

impl Bounded {
    /// A file that holds `bytes`.
    pub(super) fn new(bytes: &[u8], budget: &Budget) -> Result<Arc<Self>> {
        let file = MemoryFile::new("input");
        // Zeros are holes: large files cost what is in them.
        let is_zero = |page: &[u8]| ZEROS.get(..page.len()) == Some(page);
        for (nth, page) in (0..).zip(bytes.chunks(ZEROS.len())).filter(|(_, page)| !is_zero(page)) {
            file.write_at(HostOffset::new(nth * count(ZEROS.len())), page)?;
        }
        file.set_bytes(count(bytes.len()))?;
        Ok(Arc::new(Self { file, budget: budget.clone() }))
    }

    /// What it holds, up to a length that memory can take.
    pub(super) fn copy(&self) -> Result<Arc<Self>> {
        let mut bytes = vec![0; index(self.file.bytes()?.min(64 << 20))];
        self.file.read_at(HostOffset::new(0), &mut bytes)?;
        Self::new(&bytes, &self.budget)
    }
}

impl File for Bounded {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn bytes(&self) -> Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.budget.spend(count(buf.len()))?;
        self.file.read_at(at, buf)
    }

    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        self.budget.spend(count(buf.len()))?;
        self.file.write_at(at, buf)
    }

    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        self.budget.spend(0)?;
        self.file.zero(range, kept)
    }

    fn zeroes_fast(&self, kept: Kept) -> bool {
        self.file.zeroes_fast(kept)
    }

    fn allocate(&self, range: HostRange) -> Result<()> {
        self.budget.spend(0)?;
        self.file.allocate(range)
    }

    fn set_bytes(&self, bytes: u64) -> Result<()> {
        self.budget.spend(0)?;
        self.file.set_bytes(bytes)
    }

    fn flush(&self) -> Result<()> {
        self.budget.spend(0)?;
        self.file.flush()
    }

    fn flush_with_time(&self) -> Result<()> {
        self.budget.spend(0)?;
        self.file.flush_with_time()
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        self.budget.spend(0)?;
        self.file.run_at(at)
    }

    fn witness(&self) -> Result<Witness> {
        self.file.witness()
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.file.allocated_bytes()
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
