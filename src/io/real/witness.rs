//! What a file looks like from outside.

use crate::{base::seed, io::Witness};
use rustix::fs::{FileType, Stat};
use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

/// Returns the host's boot ID; where there is none to read, a number that no other process has, so that no
/// witness outlives this one.
fn boot() -> u128 {
    static BOOT: OnceLock<u128> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        uuid::Uuid::parse_str(text.trim_end()).map_or_else(|_| seed::fresh(), |id| id.as_u128())
    })
}

/// Returns a number that stands for this machine over all its boots: made from `/etc/machine-id`, which is not to be shown
/// to others as it is (machine-id(5)); 0 where there is none.
pub(super) fn machine() -> u128 {
    let id = fs::read("/etc/machine-id").unwrap_or_default();
    let sum = blake3::derive_key("deltachain 2026-11-21 machine v1", id.trim_ascii());
    let number = sum.first_chunk().copied().map_or(0, u128::from_le_bytes);
    if id.trim_ascii().is_empty() { 0 } else { number }
}

/// Magic numbers (`statfs(2)`) of the file systems with multigrain time stamps: ext4 (ext2 and ext3 share its
/// number; their own drivers keep whole seconds), XFS, btrfs, tmpfs.
const MULTIGRAIN: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

/// Returns whether the kernel that runs has multigrain time stamps: 6.13 or later.
fn has_multigrain() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| is_since_multigrain(&rustix::system::uname().release().to_string_lossy()))
}

/// Returns whether a kernel's release (`6.18.44-arch1`) is 6.13 or later.
fn is_since_multigrain(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    (numbers.next().flatten(), numbers.next().flatten()) >= (Some(6), Some(13))
}

/// Returns whether a file that was looked at gets a time stamp of its own with its next write.
pub(in crate::io) fn is_multigrain(fd: &OwnedFd) -> bool {
    let kind = rustix::fs::fstatfs(fd).map_or(0, |system| system.f_type);
    has_multigrain() && u64::try_from(kind).is_ok_and(|kind| MULTIGRAIN.contains(&kind))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_13_are_waited_for() {
        for release in ["6.13.0", "6.13-rc1", "6.18.44-arch1-1", "7.0.0"] {
            assert!(is_since_multigrain(release), "{release}");
        }
        for release in ["6.12.99", "5.15.0-91-generic", "4.4.0", "6", "", "six"] {
            assert!(!is_since_multigrain(release), "{release}");
        }
    }
}
