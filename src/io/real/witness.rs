//! What a file looks like from outside.

use crate::{base::seed, io::Witness};
use rustix::fs::{FileType, Stat};
use std::{fs, os::fd::AsFd, sync::OnceLock};

/// Returns the host's boot ID; where there is none to read, a number that no other process has, so that no
/// witness outlives this one.
fn boot() -> u128 {
    static BOOT: OnceLock<u128> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        uuid::Uuid::parse_str(text.trim_end()).map_or_else(|_| seed::fresh(), |id| id.as_u128())
    })
}

/// Returns whether both describe the same object.
pub(super) fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// Returns what an open file (also one opened with `O_PATH`) looks like.
///
/// The file system's identity is `f_fsid` (`statfs(2)`), which ext4, btrfs, tmpfs and overlayfs make from
/// their UUID and XFS from the device number: reading a UUID itself takes root. Where it is 0, `st_dev`
/// stands in. Both hold for at least one boot, as the witness does. A block device shows no writes in its
/// times: its witness carries a boot of its own each time, so that no two are equal.
pub(super) fn of(fd: impl AsFd) -> rustix::io::Result<Witness> {
    let stat = rustix::fs::fstat(&fd)?;
    let file_system = match rustix::fs::fstatvfs(&fd)?.f_fsid {
        0 => 1 << 64 | u128::from(stat.st_dev),
        id => u128::from(id),
    };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(Witness {
        file_system,
        inode: stat.st_ino,
        bytes: u64::try_from(stat.st_size).unwrap_or_default(),
        modified_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        boot: if is_file { boot() } else { seed::fresh() },
    })
}
