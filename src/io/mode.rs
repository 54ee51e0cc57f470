//! What a file's status says beyond a witness: its owner's intent, and when it was made.

use super::File;
use rustix::fs::{AtFlags, StatxFlags, statx};
use std::os::fd::OwnedFd;

/// Returns whether nobody has the right to write the file: a golden image, even for root, who could.
///
/// False where that cannot be told.
pub fn is_marked_read_only(file: &dyn File) -> bool {
    let mode = file.descriptor().and_then(|d| rustix::fs::fstat(&*d.fd).ok()).map(|stat| stat.st_mode);
    mode.is_some_and(|mode| mode & 0o222 == 0)
}

/// Returns how many names the file has (hard links); 1 where that cannot be told.
pub fn names(file: &dyn File) -> u32 {
    let status = |fd: &OwnedFd| statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::NLINK).ok();
    file.descriptor().and_then(|d| status(&d.fd)).map_or(1, |status| status.stx_nlink)
}

/// Returns when the file was made, in nanoseconds since 1970: an inode number alone may come to stand for another
/// file. `None` where that cannot be told.
pub fn born_ns(file: &dyn File) -> Option<i128> {
    let fd = file.descriptor()?.fd;
    let status = statx(&*fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let born = status.stx_btime;
    let is_told = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::BTIME);
    is_told.then(|| i128::from(born.tv_sec) * 1_000_000_000 + i128::from(born.tv_nsec))
}
