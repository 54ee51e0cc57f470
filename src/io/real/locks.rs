//! Locks that a running QEMU and this program respect in each other.
//!
//! QEMU (`block/file-posix.c`, `raw_apply_lock_bytes`) locks, for the open file description and always
//! shared, byte `100 + n` for each permission n that it uses and byte `200 + n` for each that it does not let
//! others use; then it looks whether somebody locked the opposite byte. Of two that start at once both may
//! see the other and both give up; never do both go on.

use super::{sys, witness};
use crate::{
    base::{Error, Result},
    io::{Access, THIS_PROCESS},
};
use rustix::io::Errno;
use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

const USED_AT: i64 = 100;
const REFUSED_AT: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Permissions used, and permissions that others may not use meanwhile.
///
/// QEMU's image formats ask for the same. A writer lets others read: readers refuse writers themselves, and
/// those that came with `-U` shall get in.
const fn wanted(access: Access) -> (&'static [i64], &'static [i64]) {
    match access {
        Access::Read | Access::ReadToWrite => (&[CONSISTENT_READ], &[WRITE, RESIZE]),
        Access::ReadShared => (&[], &[]),
        Access::Write => (&[CONSISTENT_READ, WRITE, RESIZE], &[WRITE, RESIZE]),
    }
}

/// Takes the locks that `access` stands for; they go when the last copy of `fd` is closed.
///
/// Where the file system knows no such locks the file is used without, as QEMU does (`locking=auto`).
/// After a failure some may be held: the caller closes `fd`.
pub(super) fn acquire(fd: &OwnedFd, path: &Path, access: Access) -> Result<()> {
    let (used, refused) = wanted(access);
    if used.is_empty() || sys::is_locked(fd, 0).is_err() {
        return Ok(());
    }
    let own = used.iter().map(|n| USED_AT + n).chain(refused.iter().map(|n| REFUSED_AT + n));
    for at in own {
        match sys::lock_shared(fd, at) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Err(busy(fd, at, "is locked whole by").path(path)),
            Err(e) => return Err(Error::io(format!("lock byte {at}"), e.into()).path(path)),
        }
    }
    let writer = refused.iter().map(|n| (USED_AT + n, "is being written by"));
    let others = used.iter().map(|n| (REFUSED_AT + n, "may not be used for this beside"));
    for (at, why) in writer.chain(others) {
        let is_held = sys::is_locked(fd, at)
            .map_err(|e| Error::io(format!("ask for locks on byte {at}"), e.into()).path(path))?;
        if is_held {
            return Err(busy(fd, at, why).path(path));
        }
    }
    Ok(())
}

/// Gives back the locks that `access` does not stand for.
pub(super) fn release(fd: &OwnedFd, path: &Path, access: Access) -> Result<()> {
    let (used, refused) = wanted(access);
    let (all, all_refused) = wanted(Access::Write);
    let used = all.iter().filter(|n| !used.contains(n)).map(|n| USED_AT + n);
    let mut given = used.chain(all_refused.iter().filter(|n| !refused.contains(n)).map(|n| REFUSED_AT + n));
    let unlock =
        |at| sys::unlock(fd, at).map_err(|e| Error::io(format!("unlock byte {at}"), e.into()).path(path));
    if sys::is_locked(fd, 0).is_err() { Ok(()) } else { given.try_for_each(unlock) }
}

fn busy(fd: &OwnedFd, at: i64, why: &str) -> Error {
    Error::busy(match holder(fd, at) {
        Some(holder) => format!("{why} {holder}"),
        None => format!("{why} another process (not visible to this user)"),
    })
}

/// Finds who else holds a lock on byte `at` of the file: `qemu-system-x86 (pid 4242)`, and whether that is
/// [`THIS_PROCESS`].
///
/// The kernel reports such locks with pid -1, so this looks through the descriptors of every process that
/// this one may look into.
fn holder(fd: &OwnedFd, at: i64) -> Option<String> {
    let file = rustix::fs::fstat(fd).ok()?;
    let own = std::process::id();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fdinfo")) else { continue };
        for descriptor in descriptors.flatten() {
            let is_asking =
                pid == own && descriptor.file_name().to_str() == Some(&fd.as_raw_fd().to_string());
            let locks = fs::read_to_string(descriptor.path()).unwrap_or_default();
            if is_asking || !locks.lines().any(|line| covers(line, at)) {
                continue;
            }
            let target = process.path().join("fd").join(descriptor.file_name());
            let is_same = rustix::fs::stat(&target).is_ok_and(|s| witness::is_same(&s, &file));
            if is_same {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let shown = format!("{} (pid {pid})", command.trim_end());
                return Some(if pid == own { format!("{shown}, {THIS_PROCESS}") } else { shown });
            }
        }
    }
    None
}

/// Returns whether a line of `/proc/PID/fdinfo/N` tells of a lock that covers byte `at`:
/// `lock: 1: OFDLCK ADVISORY READ -1 fe:00:264 100 101` (`proc_pid_fdinfo(5)`).
fn covers(line: &str, at: i64) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut last = lock.split_ascii_whitespace().rev();
    let end = last.next().map_or(0, |end| end.parse().unwrap_or(i64::MAX));
    let start: i64 = last.next().and_then(|start| start.parse().ok()).unwrap_or(i64::MAX);
    (start..=end).contains(&at)
}
