//! The files that hold a disk's bytes, as one address space.
//!
//! File number `nth` starts at `nth << 48`: a host offset names file and place, runs in different files never join, and
//! whoever reads through [`Space`] needs to know of one file only. An image with one such file is its own space.

use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{count, index},
    },
    format::target::Target,
    io::{Access, Descriptor, File, Kept, Run, Witness},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// More than any file of a disk of 64 TiB is long.
const FILE_BITS: u32 = 48;

/// The most files that a disk may be spread over: one of 64 TiB in pieces of 2 GiB.
pub(super) const FILES_MAX: usize = 1 << 15;

/// Returns where file number `nth` starts.
pub(super) const fn start(nth: usize) -> HostOffset {
    HostOffset::new(count(nth) << FILE_BITS)
}

/// The files of one disk.
#[derive(Debug)]
pub(super) struct Space {
    /// What the image is called.
    path: PathBuf,
    files: Vec<Target>,
}

impl Space {
    /// Joins the files of the image called `path`.
    pub(super) fn new(path: &Path, files: Vec<Arc<dyn File>>) -> Result<Self> {
        let files = files.into_iter().map(Target::new).collect::<Result<_>>()?;
        Ok(Self { path: path.to_path_buf(), files })
    }

    /// Returns the files, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<dyn File>> {
        self.files.iter().map(|target| &target.file)
    }

    /// Returns the file that has `at`, and where in it.
    pub(super) fn part(&self, at: HostOffset) -> Result<(&Target, HostOffset)> {
        let missing = || Error::invalid(format!("host offset 0x{at:x} is in none of the disk's files"));
        let target = self.files.get(index(at.bytes() >> FILE_BITS)).ok_or_else(missing)?;
        Ok((target, HostOffset::new(at.bytes() & ((1 << FILE_BITS) - 1))))
    }

    /// Returns the length of the file that has `at` if `at` lies at its end or past it.
    pub(super) fn ends_before(&self, at: HostOffset) -> Result<Option<u64>> {
        let (target, at) = self.part(at)?;
        target.ends_before(at)
    }

    fn all<T>(&self, each: impl Fn(&dyn File) -> Result<T>) -> Result<Vec<T>> {
        self.files().map(|file| each(file.as_ref())).collect()
    }
}

impl File for Space {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Result<u64> {
        let last = self.files.len().saturating_sub(1);
        let held = self.files.last().map_or(Ok(0), |target| target.file.bytes())?;
        Ok(start(last).plus(held).bytes())
    }

    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        let (target, at) = self.part(at)?;
        target.file.read_at(at, buf)
    }

    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        let (target, at) = self.part(at)?;
        target.file.write_at(at, buf)
    }

    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        let (target, at) = self.part(range.start)?;
        target.file.zero(at.range(range.bytes), kept)
    }

    fn zeroes_fast(&self, kept: Kept) -> bool {
        self.files().all(|file| file.zeroes_fast(kept))
    }

    fn allocate(&self, range: HostRange) -> Result<()> {
        let (target, at) = self.part(range.start)?;
        target.file.allocate(at.range(range.bytes))
    }

    fn set_bytes(&self, _bytes: u64) -> Result<()> {
        Err(Error::invalid("several files have no length of their own").path(&self.path))
    }

    fn flush(&self) -> Result<()> {
        self.all(|file| file.flush()).map(drop)
    }

    fn flush_with_time(&self) -> Result<()> {
        self.all(|file| file.flush_with_time()).map(drop)
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        let (target, inside) = self.part(at)?;
        let run = target.file.run_at(inside)?;
        Ok(Run { range: at.plus(run.range.start.since(inside)).range(run.range.bytes), ..run })
    }

    /// All of the files as one: equal only if each is.
    fn witness(&self) -> Result<Witness> {
        let all = self.all(|file| file.witness())?;
        let first = all.first().copied().ok_or_else(|| Error::invalid("a disk without a file"))?;
        Ok(all.iter().skip(1).fold(first, |one, next| Witness {
            inode: one.inode.rotate_left(17) ^ next.inode,
            bytes: one.bytes.saturating_add(next.bytes),
            modified_ns: one.modified_ns.max(next.modified_ns),
            ..one
        }))
    }

    fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.all(|file| file.allocated_bytes())?.into_iter().sum())
    }

    fn descriptor(&self) -> Option<Descriptor> {
        None
    }

    fn is_device(&self) -> bool {
        false
    }

    fn set_access(&self, access: Access) -> Result<()> {
        self.all(|file| file.set_access(access)).map(drop)
    }
}
