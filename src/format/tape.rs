//! Which states a change in place may leave behind a power cut, all of them (tests only).

use crate::{
    base::{HostOffset, HostRange, Result, units},
    io::{Access, Descriptor, File, Kept, Run, Witness, memory::MemoryFile},
};
use std::{path::Path, sync::Mutex};

const SECTOR: usize = 512;

/// One step of a trace.
enum Step {
    Write(usize, Vec<u8>),
    Flush,
}

/// A file that remembers what was written and flushed, in order.
#[derive(Debug)]
pub(super) struct Tape {
    file: MemoryFile,
    steps: Mutex<Vec<Step>>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Write(at, bytes) => write!(f, "write {} bytes at {at:#x}", bytes.len()),
            Self::Flush => f.write_str("flush"),
        }
    }
}

impl File for Tape {
    fn path(&self) -> &Path {
        self.file.path()
    }
    fn bytes(&self) -> Result<u64> {
        self.file.bytes()
    }
    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.file.read_at(at, buf)
    }
    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        self.steps.lock().unwrap().push(Step::Write(units::index(at.bytes()), buf.to_vec()));
        self.file.write_at(at, buf)
    }
    fn zero(&self, _range: HostRange, _kept: Kept) -> Result<()> {
        unreachable!("no change in place zeroes")
    }
    fn zeroes_fast(&self, _kept: Kept) -> bool {
        false
    }
    fn allocate(&self, _range: HostRange) -> Result<()> {
        unreachable!("no change in place allocates")
    }
    fn set_bytes(&self, _bytes: u64) -> Result<()> {
        unreachable!("no change in place sets the length")
    }
    fn flush_with_time(&self) -> Result<()> {
        self.flush()
    }
    fn flush(&self) -> Result<()> {
        self.steps.lock().unwrap().push(Step::Flush);
        self.file.flush()
    }
    fn run_at(&self, at: HostOffset) -> Result<Run> {
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

impl Tape {
    pub(super) fn of(file: MemoryFile) -> Self {
        Self { file, steps: Mutex::default() }
    }

    /// Returns what the file, which held `start`, may hold after each prefix of its writes, torn at every sector.
    pub(super) fn torn_states(&self, start: &[u8]) -> Vec<Vec<u8>> {
        let (mut states, mut durable) = (Vec::new(), start.to_vec());
        let mut loose: Vec<(usize, Vec<u8>)> = Vec::new();
        for step in self.steps.lock().unwrap().iter() {
            let Step::Write(at, bytes) = step else {
                loose.drain(..).for_each(|(at, part)| lay(&mut durable, at, &part));
                continue;
            };
            let mut from = 0;
            while from < bytes.len() {
                let end = bytes.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                loose.push((at + from, bytes[from..end].to_vec()));
                from = end;
            }
            assert!(loose.len() <= 12, "few enough sectors to try every subset");
            for subset in 0..1_u32 << loose.len() {
                let mut torn = durable.clone();
                let kept = loose.iter().enumerate().filter(|(n, _)| subset & (1 << n) != 0);
                kept.for_each(|(_, (at, part))| lay(&mut torn, *at, part));
                states.push(torn);
            }
        }
        assert!(loose.is_empty(), "the last step is a flush");
        states
    }
}

fn lay(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    bytes.resize(bytes.len().max(at + part.len()), 0);
    bytes[at..at + part.len()].copy_from_slice(part);
}
