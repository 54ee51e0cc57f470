//! System calls that need `unsafe`: locks on open file descriptions, sharing a range between files, asking where
//! a file's blocks are, and early write-back.

use crate::base::{HostOffset, HostRange};
use rustix::io::{Errno, Result};
use std::{
    ffi::c_void,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// A question or request about one byte's lock.
fn one_byte(kind: libc::c_int, at: i64) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: at,
        l_len: 1,
        // Asked for by the kernel of requests about open file descriptions.
        l_pid: 0,
    }
}

fn fcntl(fd: &OwnedFd, request: libc::c_int, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: the descriptor is open while it is borrowed; F_OFD_SETLK and F_OFD_GETLK read and write one
    // `struct flock`, which `lock` is, and keep no pointer to it.
    let answer = unsafe { libc::fcntl(fd.as_raw_fd(), request, std::ptr::from_mut(lock)) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Takes a shared lock on the byte `at` for the open file description of `fd`; it goes with its last close.
pub(super) fn lock_shared(fd: &OwnedFd, at: i64) -> Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, &mut one_byte(libc::F_RDLCK, at))
}

/// Gives the lock of the open file description of `fd` on the byte `at` back.
pub(super) fn unlock(fd: &OwnedFd, at: i64) -> Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, &mut one_byte(libc::F_UNLCK, at))
}

/// Returns whether another open file description holds any lock on the byte `at`.
pub(super) fn is_locked(fd: &OwnedFd, at: i64) -> Result<bool> {
    let mut lock = one_byte(libc::F_WRLCK, at);
    fcntl(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

/// Which bytes of which file to share (`struct file_clone_range`, `ioctl_ficlonerange(2)`).
#[repr(C)]
struct CloneRange {
    from: i64,
    from_at: u64,
    bytes: u64,
    to_at: u64,
}

/// Makes `to` share the blocks of `range` of `from`, at `to_at`.
pub(in crate::io) fn clone_range(
    from: &OwnedFd,
    range: HostRange,
    to: &OwnedFd,
    to_at: HostOffset,
) -> Result<()> {
    const FICLONERANGE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<CloneRange>(0x94, 13);
    let request = CloneRange {
        from: i64::from(from.as_raw_fd()),
        from_at: range.start.bytes(),
        bytes: range.bytes,
        to_at: to_at.bytes(),
    };
    // SAFETY: FICLONERANGE reads one `struct file_clone_range`, which CloneRange mirrors field by field;
    // both descriptors are open while they are borrowed.
    unsafe { rustix::ioctl::ioctl(to.as_fd(), rustix::ioctl::Setter::<FICLONERANGE, _>::new(request)) }
}

/// Starts to write back all that is in the cache for `fd`. A hint: the kernel keeps what fails for the next flush,
/// since nothing is waited for here.
pub(in crate::io) fn begin_flush(fd: &OwnedFd) {
    // SAFETY: the descriptor is open while it is borrowed; the call takes no pointer.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Extents that one question is answered with.
const BLOCKS_AT_ONCE: usize = 256;

/// Where some bytes of a file are on its device (`struct fiemap_extent`, Documentation/filesystems/fiemap.rst).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::io) struct BlockExtent {
    pub(in crate::io) logical: u64,
    pub(in crate::io) physical: u64,
    pub(in crate::io) bytes: u64,
    reserved_wide: [u64; 2],
    pub(in crate::io) flags: u32,
    reserved: [u32; 3],
}

/// A question about a file's blocks, and its answer (`struct fiemap`).
#[repr(C)]
struct BlockQuestion {
    start: u64,
    bytes: u64,
    flags: u32,
    answered: u32,
    room: u32,
    reserved: u32,
    extents: [BlockExtent; BLOCKS_AT_ONCE],
}

/// Appends where the bytes of `range` are, as many extents as one question is answered with; they may begin
/// before the range and end after it. Returns whether nothing was left out.
pub(in crate::io) fn blocks(fd: &OwnedFd, range: HostRange, out: &mut Vec<BlockExtent>) -> Result<bool> {
    /// The opcode names the length of the question without room for an answer.
    const FIEMAP: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<[u64; 4]>(b'f', 11);
    struct Ask<'a>(&'a mut BlockQuestion);
    // SAFETY: FS_IOC_FIEMAP reads and writes one `struct fiemap` with `room` extents behind it, which
    // BlockQuestion mirrors field by field; the kernel keeps no pointer.
    unsafe impl rustix::ioctl::Ioctl for Ask<'_> {
        type Output = ();
        const IS_MUTATING: bool = true;
        fn opcode(&self) -> rustix::ioctl::Opcode {
            FIEMAP
        }
        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::from_mut(self.0).cast()
        }
        unsafe fn output_from_ptr(_: rustix::ioctl::IoctlOutput, _: *mut c_void) -> Result<()> {
            Ok(())
        }
    }
    let room = u32::try_from(BLOCKS_AT_ONCE).unwrap_or(0);
    let mut question = Box::new(BlockQuestion {
        start: range.start.bytes(),
        bytes: range.bytes,
        flags: 0,
        answered: 0,
        room,
        reserved: 0,
        extents: [BlockExtent::default(); BLOCKS_AT_ONCE],
    });
    // SAFETY: the descriptor is open while it is borrowed, and Ask describes the call truly (see there).
    unsafe { rustix::ioctl::ioctl(fd.as_fd(), Ask(&mut question)) }?;
    let answered = usize::try_from(question.answered).unwrap_or(0).min(BLOCKS_AT_ONCE);
    out.extend(question.extents.iter().take(answered));
    Ok(question.answered < room)
}
