//! A part of a file as a file of its own, for reading only: nothing outside the part is ever read.

use super::{Access, Descriptor, File, Kept, Run, Witness};
use crate::base::{
    Error, HostOffset, HostRange, Result,
    units::{count, index},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A range of a file, read as if it were the whole of one.
#[derive(Debug)]
pub struct Window {
    file: Arc<dyn File>,
    path: PathBuf,
    range: HostRange,
}

impl Window {
    /// Returns `range` of `file`, which calls itself `path` in messages; what of it lies past the file's end reads as
    /// zeros, as in any file.
    pub fn new(file: Arc<dyn File>, path: impl Into<PathBuf>, range: HostRange) -> Self {
        Self { file, path: path.into(), range }
    }

    fn refuse<T>(&self) -> Result<T> {
        let what = format!("is a part of {}, and is only read", self.file.path().display());
        Err(Error::invalid(what).path(&self.path))
    }
}

impl File for Window {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.range.bytes)
    }

    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        let held = self.range.bytes.saturating_sub(at.bytes()).min(count(buf.len()));
        let (inside, outside) = buf.split_at_mut(index(held));
        outside.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        self.file.read_at(self.range.start.plus(at.bytes()), inside)
    }

    fn write_at(&self, _at: HostOffset, _buf: &[u8]) -> Result<()> {
        self.refuse()
    }

    fn zero(&self, _range: HostRange, _kept: Kept) -> Result<()> {
        self.refuse()
    }

    fn zeroes_fast(&self, _kept: Kept) -> bool {
        false
    }

    fn allocate(&self, _range: HostRange) -> Result<()> {
        self.refuse()
    }

    fn set_bytes(&self, _bytes: u64) -> Result<()> {
        self.refuse()
    }

    /// Nothing was written.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn flush_with_time(&self) -> Result<()> {
        Ok(())
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        if at.bytes() >= self.range.bytes {
            return Ok(Run { range: at.range(0), is_data: false });
        }
        let left = self.range.bytes - at.bytes();
        let found = self.file.run_at(self.range.start.plus(at.bytes()))?;
        // Past the file's end there is nothing that could be data.
        let bytes = if found.range.is_empty() { left } else { found.range.bytes.min(left) };
        Ok(Run { range: at.range(bytes), is_data: found.is_data })
    }

    /// Of the whole file: whoever changes another part of it shows, too.
    fn witness(&self) -> Result<Witness> {
        self.file.witness()
    }

    /// All of its bytes: holes inside are not looked for.
    fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.range.bytes.min(self.file.allocated_bytes()?))
    }

    /// None: offsets in the descriptor's file would be others than this one's.
    fn descriptor(&self) -> Option<Descriptor> {
        None
    }

    fn is_device(&self) -> bool {
        false
    }

    fn set_access(&self, access: Access) -> Result<()> {
        if access.writes() { self.refuse() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryFile;

    #[test]
    fn nothing_around_the_part_is_read_or_written() {
        let whole = Arc::new(MemoryFile::new("whole"));
        whole.write_at(HostOffset::new(0), b"before|inside|after").unwrap();
        let part = Window::new(whole.clone(), "whole/part", HostOffset::new(7).range(6));
        let mut bytes = [9; 10];
        part.read_at(HostOffset::new(2), &mut bytes).unwrap();
        assert_eq!((&bytes, part.bytes().unwrap()), (b"side\0\0\0\0\0\0", 6));
        part.read_at(HostOffset::new(u64::MAX), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 10]);
        let error = part.write_at(HostOffset::new(0), b"x").unwrap_err();
        assert_eq!(error.to_string(), "whole/part: is a part of whole, and is only read");
        assert!(part.set_bytes(0).is_err() && part.zero(HostOffset::new(0).range(1), Kept::Space).is_err());
    }

    #[test]
    fn holes_are_told_up_to_the_end_of_the_part() {
        let whole = Arc::new(MemoryFile::new("whole"));
        whole.write_at(HostOffset::new(0), &[1; 8192]).unwrap();
        whole.set_bytes(1 << 20).unwrap();
        let part = Window::new(whole, "part", HostOffset::new(4096).range(65536));
        let runs = [0, 4096].map(|at| part.run_at(HostOffset::new(at)).unwrap());
        let data = Run { range: HostOffset::new(0).range(4096), is_data: true };
        let hole = Run { range: HostOffset::new(4096).range(61440), is_data: false };
        assert_eq!(runs, [data, hole]);
        assert!(part.run_at(HostOffset::new(65536)).unwrap().range.is_empty());
    }
}
