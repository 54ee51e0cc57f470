//! A file seen as it is once its log is replayed: for who may only read it. Nothing is written.

use super::{bytes::Source, replay::Replay};
use crate::{
    base::{Error, HostOffset, HostRange, Result},
    io::{Access, Descriptor, File, Kept, Run, Witness},
};
use std::{path::Path, sync::Arc};

/// A file under what its log says.
#[derive(Debug)]
pub(super) struct Replayed {
    pub(super) file: Arc<dyn File>,
    pub(super) replay: Replay,
}

impl Replayed {
    fn refuse(&self) -> Error {
        Error::invalid("is open for reading only").path(self.file.path())
    }
}

impl File for Replayed {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn bytes(&self) -> Result<u64> {
        Source { file: self.file.as_ref(), replay: Some(&self.replay) }.bytes()
    }

    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.replay.read_at(self.file.as_ref(), at, buf)
    }

    fn write_at(&self, _at: HostOffset, _buf: &[u8]) -> Result<()> {
        Err(self.refuse())
    }

    fn zero(&self, _range: HostRange, _kept: Kept) -> Result<()> {
        Err(self.refuse())
    }

    fn zeroes_fast(&self, _kept: Kept) -> bool {
        false
    }

    fn allocate(&self, _range: HostRange) -> Result<()> {
        Err(self.refuse())
    }

    fn set_bytes(&self, _bytes: u64) -> Result<()> {
        Err(self.refuse())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn flush_with_time(&self) -> Result<()> {
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        let run = self.file.run_at(at)?;
        // What the log puts into a hole is data.
        Ok(if run.is_data || !self.replay.touches(run.range) { run } else { Run { is_data: true, ..run } })
    }

    fn witness(&self) -> Result<Witness> {
        self.file.witness()
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.file.allocated_bytes()
    }

    fn descriptor(&self) -> Option<Descriptor> {
        // The kernel would show the file as it stands.
        None
    }

    fn is_device(&self) -> bool {
        self.file.is_device()
    }

    fn set_access(&self, access: Access) -> Result<()> {
        self.file.set_access(access)
    }
}
