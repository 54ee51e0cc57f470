//! The machine's own files.
//!
//! Only regular files and block devices are ever read or written: what counts is the descriptor, looked at
//! after opening, never the name looked at before. Files open for writing stay open; files open for reading
//! share a bounded number of descriptors ([`RealHost::with_descriptors`]).

mod file;
mod locks;
mod pool;
mod sys;
mod witness;

pub(super) use sys::{BlockExtent, begin_flush, blocks, clone_range};
pub(super) use witness::is_multigrain;

use super::{Access, Entry, EntryKind, File, Host, Status, Witness};
use crate::base::{Error, ErrorKind, Result, error::InFile};
use file::RealFile;
use pool::Pool;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};
use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The names and files of this machine.
#[derive(Clone, Debug)]
pub struct RealHost {
    pool: Arc<Pool>,
}

impl RealHost {
    /// How many files may be open for reading at once unless stated otherwise.
    pub const DESCRIPTORS: usize = 256;

    /// Returns the machine, with at most [`RealHost::DESCRIPTORS`] files open for reading, and no more than half of those
    /// that the process may have open: the rest is for files that are written, for folders and sockets.
    pub fn new() -> Self {
        let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let half = allowed.and_then(|allowed| usize::try_from(allowed / 2).ok()).unwrap_or(usize::MAX);
        Self::with_descriptors(Self::DESCRIPTORS.min(half))
    }

    /// Returns the machine, with at most `limit` (at least 1) descriptors of files that are only read; those
    /// used longest ago are closed and opened again when needed.
    ///
    /// A file that rests is not locked; it is locked again and compared (inode, length, time of change)
    /// before it is read again. Each thread may hold one descriptor more during a read.
    pub fn with_descriptors(limit: usize) -> Self {
        Self { pool: Arc::new(Pool::new(limit)) }
    }
}

impl Default for RealHost {
    fn default() -> Self {
        Self::new()
    }
}

/// How many files a program may have open once [`raise_descriptors`] was called, if the host lets it.
const DESCRIPTORS_WANTED: u64 = 1 << 16;

/// Lets this process have as many files open as its hard limit allows, up to 65,536: what is open for writing, folders and
/// sockets count beside what a host reads. For programs, before their first host.
pub fn raise_descriptors() {
    let resource = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(resource);
    let wanted = DESCRIPTORS_WANTED.min(limit.maximum.unwrap_or(u64::MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        // It goes with what there is, too.
        let _ =
            rustix::process::setrlimit(resource, rustix::process::Rlimit { current: Some(wanted), ..limit });
    }
}

fn kind_of(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Folder,
        FileType::BlockDevice => EntryKind::Device,
        _ => EntryKind::Other,
    }
}

fn is_bytes(kind: EntryKind) -> Result<()> {
    match kind {
        EntryKind::File | EntryKind::Device => Ok(()),
        EntryKind::Folder => Err(Error::policy("is a folder, not a file or block device")),
        EntryKind::Other => Err(Error::policy("is neither a file nor a block device")),
    }
}

/// A file that was opened, looked at and locked.
struct Opened {
    fd: OwnedFd,
    is_device: bool,
    is_remote: bool,
    /// Whether its file system is known to make zeros without writing them: a hole, and keeping the space.
    makes_zeros: [bool; 2],
    file_system: u64,
    block_bytes: u64,
}

/// Magic numbers (`statfs(2)`) of file systems whose bytes are elsewhere: NFS, SMB 1 to 3, Ceph, FUSE, AFS, 9P.
const REMOTE: [u64; 8] =
    [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x6573_5546, 0x5346_414f, 0x0102_1997];

/// File systems that make holes without writing zeros (ext4, XFS, Btrfs, F2FS, tmpfs), and whether they make zeros in
/// space that is kept, too. One that turns out not to (ext3) is noticed at the first try.
const ZEROING: [(u64, bool); 5] =
    [(0xef53, true), (0x5846_5342, true), (0x9123_683e, true), (0xf2f5_2010, true), (0x0102_1994, false)];

/// Looks at what was opened, and locks it.
fn check_opened(fd: OwnedFd, path: &Path, access: Access) -> Result<Opened> {
    let looked = rustix::fs::fstat(&fd).and_then(|stat| Ok((stat, rustix::fs::fstatfs(&fd)?)));
    let (stat, system) = looked.map_err(|e| Error::io("look at what was opened", e.into()))?;
    let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
    is_bytes(kind)?;
    locks::acquire(&fd, path, access)?;
    let is_device = kind == EntryKind::Device;
    let block = if system.f_frsize == 0 { system.f_bsize } else { system.f_frsize };
    let block_bytes = u64::try_from(block).unwrap_or(1).max(1);
    let system_kind = u64::try_from(system.f_type).unwrap_or_default();
    let is_remote = REMOTE.contains(&system_kind);
    let zeroing = ZEROING.iter().find(|(known, _)| *known == system_kind && !is_device);
    let makes_zeros = zeroing.map_or([false; 2], |(_, with_space)| [true, *with_space]);
    Ok(Opened { fd, is_device, is_remote, makes_zeros, file_system: stat.st_dev, block_bytes })
}

/// Opens and locks a regular file or block device.
///
/// The first look keeps away from what acts on being opened (a FIFO's writer, a watchdog); the second one is
/// what holds if the name was changed in between. `NONBLOCK` lets even that end at once.
fn open_checked(path: &Path, access: Access) -> Result<Opened> {
    let looked = rustix::fs::stat(path).map_err(|e| Error::io("open", e.into()))?;
    is_bytes(kind_of(FileType::from_raw_mode(looked.st_mode)))?;
    let may_write = access.writes() || access == Access::ReadToWrite;
    let mode = if may_write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match rustix::fs::open(path, flags | mode, Mode::empty()) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if !access.writes() => {
            rustix::fs::open(path, flags | OFlags::RDONLY, Mode::empty())
        }
        opened => opened,
    };
    let fd = fd.map_err(|e| Error::io("open", e.into()))?;
    check_opened(fd, path, access)
}

fn io_error(doing: &str) -> impl FnOnce(io::Error) -> Error {
    move |e| Error::io(doing, e)
}

/// Renames without replacing where the host has no call for it.
fn link_and_remove(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

impl Host for RealHost {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>> {
        let opened = open_checked(path, access).in_file(path)?;
        // Few devices are in any chain, and none has a witness to be compared with when it is opened again.
        // One that is to be written later keeps its lock, and its descriptor, all the time.
        let is_pooled = matches!(access, Access::Read | Access::ReadShared) && !opened.is_device;
        let pool = is_pooled.then_some((&self.pool, access));
        Ok(Arc::new(RealFile::new(path, opened, pool)?))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| Error::io("create", e.into()).path(path))?;
        let opened = check_opened(fd, path, Access::Write).in_file(path)?;
        Ok(Arc::new(RealFile::new(path, opened, None)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| Error::io(format!("rename to {}", to.display()), e).path(from))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // NFS and many a FUSE: they have no such rename, but second names. FAT has no second names.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_and_remove(from, to),
            answer => answer.map_err(Into::into),
        }
        .map_err(|e| Error::io(format!("give it the name {}", to.display()), e).path(from))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(io_error("remove")).in_file(path)
    }

    fn make_folder(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).map_err(io_error("make a folder")).in_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let opened = fs::File::open(folder).and_then(|f| f.sync_all());
        opened.map_err(io_error("make names durable")).in_file(folder)
    }

    fn list(&self, folder: &Path) -> Result<Vec<Entry>> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(io_error("list")).in_file(folder)? {
            let entry = entry.map_err(io_error("list")).in_file(folder)?;
            let (path, own) = (entry.path(), entry.file_type().ok());
            let is_link = own.is_some_and(|own| own.is_symlink());
            let looked = if own.is_some_and(|own| own.is_file()) {
                Ok(Some(EntryKind::File))
            } else {
                self.kind(&path)
            };
            let kind = match looked {
                // Whoever opens what the link leads to hears that it is closed to this user, or what else is wrong there.
                Err(e)
                    if is_link || e.os().is_some_and(|os| os.kind() == io::ErrorKind::PermissionDenied) =>
                {
                    Some(EntryKind::File)
                }
                kind => kind?,
            };
            // A link to nothing, or a name removed meanwhile, is no entry.
            entries.extend(kind.map(|kind| Entry { path, kind, is_link }));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    fn kind(&self, path: &Path) -> Result<Option<EntryKind>> {
        match rustix::fs::stat(path) {
            Ok(stat) => Ok(Some(kind_of(FileType::from_raw_mode(stat.st_mode)))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(e) => Err(Error::io("look for", e.into()).path(path)),
        }
    }

    fn is_taken(&self, path: &Path) -> Result<bool> {
        match rustix::fs::lstat(path) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(false),
            Err(e) => Err(Error::io("look for", e.into()).path(path)),
        }
    }

    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        fs::canonicalize(path).map_err(io_error("resolve")).in_file(path)
    }

    fn opened_as(&self, file: &dyn File) -> Result<PathBuf> {
        let unnamed = || Error::new(ErrorKind::NotFound, "has no name any more").path(file.path());
        let fd = file.descriptor().ok_or_else(unnamed)?.fd;
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .map_err(io_error("ask for its name"))
            .in_file(file.path())?;
        // The kernel marks the name of a removed file; only a name that leads back to the file is one.
        let leads_back =
            rustix::fs::stat(&path).and_then(|named| Ok(witness::is_same(&named, &rustix::fs::fstat(&fd)?)));
        if leads_back.unwrap_or(false) { Ok(path) } else { Err(unnamed()) }
    }

    fn witness(&self, path: &Path) -> Result<Witness> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        fd.and_then(witness::of).map_err(|e| Error::io("look at its state", e.into()).path(path))
    }

    fn status(&self, path: &Path) -> Result<Status> {
        let stat = rustix::fs::stat(path).map_err(|e| Error::io("look at its state", e.into()).path(path))?;
        let ns = |seconds: i64, rest: u64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Status {
            device: stat.st_dev,
            inode: stat.st_ino,
            bytes: u64::try_from(stat.st_size).unwrap_or_default(),
            modified_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    fn machine(&self) -> u128 {
        witness::machine()
    }

    fn free_bytes(&self, folder: &Path) -> Result<u64> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let state = rustix::fs::statvfs(folder)
            .map_err(|e| Error::io("ask for free space", e.into()).path(folder))?;
        Ok(state.f_bavail.saturating_mul(state.f_frsize))
    }
}

#[cfg(test)]
mod tests;
