//! One open file or block device of this machine.

use super::{
    Opened, locks,
    pool::{Pool, Pooled},
    witness,
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, units},
    io::{Access, Descriptor, File, Kept, Run, Witness},
};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rustix::{
    fs::{FallocateFlags, OFlags, SeekFrom},
    io::{Errno, ReadWriteFlags},
};
use std::{
    io::IoSlice,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

/// Zeros are written this many bytes at a time where the host cannot make them itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The most that is written to a regular file at once. The kernel takes memory for its cache in pieces as large as the
/// write; in a virtual machine whose host takes back free memory, large ones are those that the host has to give
/// again first. Measured there, for 3 GiB: 7.0 s in pieces of 1 MiB, 1.1 s in these.
const PIECE_BYTES: usize = 64 << 10;

/// What is written is written back at once and leaves the cache then (`RWF_DONTCACHE`, Linux 6.14).
const NOT_CACHED: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Writes of this many bytes and more take turns in a regular file.
const LARGE_BYTES: usize = 128 << 10;

/// Blocks of 512 bytes that are forgotten in no time: 64 MiB.
const LONG_BLOCKS: i64 = 1 << 17;

/// A file or block device of this machine.
#[derive(Debug)]
pub(super) struct RealFile {
    path: PathBuf,
    place: Place,
    is_device: bool,
    is_remote: bool,
    file_system: u64,
    block_bytes: u64,
    /// Whether a flush failed: the kernel forgets what it could not write, so no later one may succeed.
    is_lost: AtomicBool,
    /// Held during a large write. The kernel lets one writer at a time into a regular file; those that wait
    /// there spin on a core that the reader of the next bytes, or the write-back, needs.
    turn: Mutex<()>,
    /// Whether the host makes zeros without writing them: a hole, and keeping the space.
    makes_zeros: [AtomicBool; 2],
    /// Whether large writes leave nothing in the host's cache; off again where the file system cannot.
    streams: Arc<AtomicBool>,
    /// Dropped after the place: whoever waits for that closes the file last.
    last: Option<Sender<()>>,
}

impl Drop for RealFile {
    /// The host takes long to forget a large file that has no name any more: another thread waits for that.
    fn drop(&mut self) {
        let Place::Held(fd) = &self.place else { return };
        let is_long = |stat: &rustix::fs::Stat| stat.st_nlink == 0 && stat.st_blocks > LONG_BLOCKS;
        if self.is_device || !rustix::fs::fstat(fd).is_ok_and(|stat| is_long(&stat)) {
            return;
        }
        let Ok(other) = fd.try_clone() else { return };
        let (last, dropped) = crossbeam_channel::bounded::<()>(0);
        self.last = Some(last);
        let close = move || {
            // Nothing is sent: the sender goes.
            let _ = dropped.recv();
            drop(other);
        };
        // Without a thread it is closed here.
        drop(thread::Builder::new().name("close".to_owned()).spawn(close));
    }
}

#[derive(Debug)]
enum Place {
    Held(Arc<OwnedFd>),
    Pooled(Pooled),
}

/// Calls again when a signal came in between.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Returns whether the host cannot do this here, whatever the disk's state. `EINVAL`: a range that does not
/// fit a device's sectors.
fn is_unable(e: Errno) -> bool {
    matches!(e, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL)
}

impl RealFile {
    /// Wraps a file just opened: one that is only read lends its descriptor to `pool`.
    pub(super) fn new(path: &Path, opened: Opened, pool: Option<(&Arc<Pool>, Access)>) -> Result<Self> {
        let Opened { fd, is_device, is_remote, makes_zeros, file_system, block_bytes } = opened;
        let place = match pool {
            None => Place::Held(Arc::new(fd)),
            Some((pool, access)) => Place::Pooled(pool.admit(fd, path, access)?),
        };
        Ok(Self {
            path: path.to_path_buf(),
            place,
            is_device,
            is_remote,
            file_system,
            block_bytes,
            is_lost: AtomicBool::new(false),
            turn: Mutex::new(()),
            makes_zeros: makes_zeros.map(AtomicBool::new),
            streams: Arc::default(),
            last: None,
        })
    }

    fn fd(&self) -> Result<Arc<OwnedFd>> {
        match &self.place {
            Place::Held(fd) => Ok(Arc::clone(fd)),
            Place::Pooled(pooled) => pooled.descriptor(),
        }
    }

    fn flush_by(&self, sync: fn(BorrowedFd<'_>) -> rustix::io::Result<()>) -> Result<()> {
        if self.is_lost.load(Relaxed) {
            return Err(Error::io("flush after a failed flush", Errno::IO.into()).path(&self.path));
        }
        let fd = self.fd()?;
        retry(|| sync(fd.as_fd())).map_err(|e| {
            self.is_lost.store(true, Relaxed);
            Error::io("flush", e.into()).path(&self.path)
        })
    }

    fn makes_zeros(&self, kept: Kept) -> &AtomicBool {
        let [hole, space] = &self.makes_zeros;
        match kept {
            Kept::Nothing => hole,
            Kept::Space => space,
        }
    }

    fn failed(&self, doing: &str, range: HostRange, e: Errno) -> Error {
        Error::io(format!("{doing} {} bytes at {:#x}", range.bytes, range.start), e.into()).path(&self.path)
    }

    fn write_zeros(&self, range: HostRange) -> Result<()> {
        range.pieces(units::count(ZEROS.len())).try_for_each(|piece| {
            let zeros = ZEROS.get(..units::index(piece.bytes)).unwrap_or(&ZEROS);
            self.write_at(piece.start, zeros)
        })
    }

    /// Writes zeros where `range` has holes: a reservation on hosts that know none.
    fn fill_holes(&self, range: HostRange) -> Result<()> {
        let length = HostOffset::new(self.bytes()?);
        let mut at = range.start;
        while at < range.end().min(length) {
            let run = self.run_at(at)?;
            let part = run.range.clip(range);
            if part.is_empty() {
                break;
            }
            if !run.is_data {
                self.write_zeros(part)?;
            }
            at = part.end();
        }
        self.write_zeros(HostRange::between(range.start.max(length), range.end()))
    }
}

impl File for RealFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Result<u64> {
        let fd = self.fd()?;
        let asked = if self.is_device {
            rustix::fs::seek(&fd, SeekFrom::End(0))
        } else {
            rustix::fs::fstat(&fd).map(|s| u64::try_from(s.st_size).unwrap_or_default())
        };
        asked.map_err(|e| Error::io("ask for its length", e.into()).path(&self.path))
    }

    fn read_at(&self, at: HostOffset, mut buf: &mut [u8]) -> Result<()> {
        let (fd, mut at) = (self.fd()?, at);
        let _turn = (buf.len() >= LARGE_BYTES && !self.is_device).then(|| self.turn.lock());
        while !buf.is_empty() {
            let read = retry(|| rustix::io::pread(&fd, &mut *buf, at.bytes()))
                .map_err(|e| self.failed("read", at.range(units::count(buf.len())), e))?;
            if read == 0 {
                buf.fill(0);
                break;
            }
            buf = buf.get_mut(read..).unwrap_or_default();
            at = at.plus(units::count(read));
        }
        Ok(())
    }

    fn write_at(&self, at: HostOffset, mut buf: &[u8]) -> Result<()> {
        let (fd, mut at) = (self.fd()?, at);
        let is_large = buf.len() >= LARGE_BYTES && !self.is_device;
        let is_streamed = || is_large && self.streams.load(Relaxed);
        let _turn = (is_large && !is_streamed()).then(|| self.turn.lock());
        while !buf.is_empty() {
            let answer = if is_streamed() {
                retry(|| rustix::io::pwritev2(&fd, &[IoSlice::new(buf)], at.bytes(), NOT_CACHED))
            } else {
                let piece = buf.get(..PIECE_BYTES).filter(|_| !self.is_device).unwrap_or(buf);
                retry(|| rustix::io::pwrite(&fd, piece, at.bytes()))
            };
            let written = match answer {
                Ok(0) => Err(Errno::NOSPC),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if is_streamed() => {
                    self.streams.store(false, Relaxed);
                    continue;
                }
                answer => answer,
            };
            let written = written.map_err(|e| self.failed("write", at.range(units::count(buf.len())), e))?;
            buf = buf.get(written..).unwrap_or_default();
            at = at.plus(units::count(written));
        }
        Ok(())
    }

    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        let inside = range.clip(HostOffset::new(0).range(self.bytes()?));
        let (range, mode) = match kept {
            Kept::Nothing => (inside, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            Kept::Space if self.is_device => (inside, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
            Kept::Space => (range, FallocateFlags::ZERO_RANGE),
        };
        if range.is_empty() {
            return Ok(());
        }
        let fd = self.fd()?;
        match retry(|| rustix::fs::fallocate(&fd, mode, range.start.bytes(), range.bytes)) {
            Err(e) if is_unable(e) => {
                self.makes_zeros(kept).store(false, Relaxed);
                self.write_zeros(range)
            }
            answer => answer.map_err(|e| self.failed("zero", range, e)),
        }
    }

    fn zeroes_fast(&self, kept: Kept) -> bool {
        self.makes_zeros(kept).load(Relaxed)
    }

    fn allocate(&self, range: HostRange) -> Result<()> {
        if range.is_empty() || self.is_device {
            return Ok(());
        }
        let fd = self.fd()?;
        let mode = FallocateFlags::empty();
        match retry(|| rustix::fs::fallocate(&fd, mode, range.start.bytes(), range.bytes)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill_holes(range),
            answer => answer.map_err(|e| self.failed("reserve", range, e)),
        }
    }

    fn set_bytes(&self, bytes: u64) -> Result<()> {
        if self.is_device && bytes == self.bytes()? {
            return Ok(());
        }
        let fd = self.fd()?;
        retry(|| rustix::fs::ftruncate(&fd, bytes))
            .map_err(|e| Error::io(format!("set the length to {bytes} bytes"), e.into()).path(&self.path))
    }

    fn flush(&self) -> Result<()> {
        self.flush_by(|fd| rustix::fs::fdatasync(fd))
    }

    fn flush_with_time(&self) -> Result<()> {
        self.flush_by(|fd| rustix::fs::fsync(fd))
    }

    fn run_at(&self, at: HostOffset) -> Result<Run> {
        let length = self.bytes()?;
        let rest = HostRange::between(at, HostOffset::new(length));
        if rest.is_empty() || self.is_device {
            return Ok(Run { range: rest, is_data: !rest.is_empty() });
        }
        let fd = self.fd()?;
        let until = |end: u64| HostRange::between(at, HostOffset::new(end).min(rest.end()));
        match rustix::fs::seek(&fd, SeekFrom::Data(at.bytes())) {
            Ok(data) if data > at.bytes() => Ok(Run { range: until(data), is_data: false }),
            Ok(_) => {
                let hole = rustix::fs::seek(&fd, SeekFrom::Hole(at.bytes()));
                let hole = hole.map_err(|e| self.failed("look for holes in", rest, e))?;
                Ok(Run { range: until(hole), is_data: true })
            }
            Err(Errno::NXIO) => Ok(Run { range: rest, is_data: false }),
            Err(e) if is_unable(e) => Ok(Run { range: rest, is_data: true }),
            Err(e) => Err(self.failed("look for data in", rest, e)),
        }
    }

    fn witness(&self) -> Result<Witness> {
        let seen = witness::of(&*self.fd()?);
        seen.map_err(|e| Error::io("look at its state", e.into()).path(&self.path))
    }

    fn allocated_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&*self.fd()?);
        let stat = stat.map_err(|e| Error::io("ask for its space", e.into()).path(&self.path))?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512))
    }

    fn descriptor(&self) -> Option<Descriptor> {
        let fd = self.fd().ok()?;
        Some(Descriptor {
            fd,
            file_system: self.file_system,
            block_bytes: self.block_bytes,
            is_remote: self.is_remote,
            streams: Arc::clone(&self.streams),
        })
    }

    fn is_device(&self) -> bool {
        self.is_device
    }

    fn set_access(&self, access: Access) -> Result<()> {
        let fd = self.fd()?;
        let mode = rustix::fs::fcntl_getfl(&fd);
        let mode = mode.map_err(|e| Error::io("ask how it is open", e.into()).path(&self.path))?;
        if access.writes() && !mode.contains(OFlags::RDWR) {
            return Err(Error::policy("may not be written").path(&self.path));
        }
        if access.writes() && locks::acquire(&fd, &self.path, access).is_err() {
            locks::release(&fd, &self.path, Access::ReadToWrite)?;
            // Asked again for the reason, which names the holder, now that nothing is held that another would see.
            return locks::acquire(&fd, &self.path, access)
                .inspect_err(|_| drop(locks::release(&fd, &self.path, Access::ReadToWrite)));
        }
        if access.writes() { Ok(()) } else { locks::release(&fd, &self.path, access) }
    }
}
