//! Names: what can be opened, created, renamed and removed on one machine.

use super::{Access, File, Witness};
use crate::base::Result;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A block device.
    Device,
    /// Anything else: FIFO, socket, character device.
    Other,
}

/// A name in a folder (links are followed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole path.
    pub path: PathBuf,
    /// What it stands for.
    pub kind: EntryKind,
    /// Whether it is a symbolic link to that.
    pub is_link: bool,
}

/// What a file system says of a file or folder without its being opened. While two looks in one boot are equal, nobody
/// changed it in between, but within one tick of the clock that stamps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The file system, by a number that holds as long as the boot (`st_dev`).
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of the last change to the bytes, or to a folder's names, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Time of the last change to anything, as owner, permissions or the time above; no program can set it.
    pub changed_ns: i128,
}

/// The names and files of one machine. Paths are absolute or relative to the working folder.
///
/// A change to names is durable only after [`Host::sync_folder`] of the folder that holds the name.
/// Errors name the path.
pub trait Host: Send + Sync + fmt::Debug {
    /// Opens an existing regular file or block device with the locks that `access` stands for.
    ///
    /// Kinds of failure: `NotFound`; `Busy` when a lock is held (the message names the holder where it can
    /// be found); `Policy` for anything but a regular file or block device.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>>;

    /// Creates a regular file and opens it for writing; `Exists` if the name is taken.
    fn create(&self, path: &Path) -> Result<Arc<dyn File>>;

    /// Gives a file another name in one step; what had that name is gone.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Gives a file another name; `Exists` if that is taken. The way to publish without replacing. Cut off, it may leave
    /// the file with both names.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file's name.
    fn remove(&self, path: &Path) -> Result<()>;

    /// Makes a folder (and those above it) unless it is there.
    fn make_folder(&self, path: &Path) -> Result<()>;

    /// Makes names in `folder` durable.
    fn sync_folder(&self, folder: &Path) -> Result<()>;

    /// Lists a folder, sorted by name; `NotFound` if it is not there.
    fn list(&self, folder: &Path) -> Result<Vec<Entry>>;

    /// Returns what `path` stands for, `None` if nothing; links are followed.
    fn kind(&self, path: &Path) -> Result<Option<EntryKind>>;

    /// Returns whether anything has that name, a link that leads nowhere included: nothing new can get it.
    fn is_taken(&self, path: &Path) -> Result<bool>;

    /// Returns the path with all links resolved and no `.` or `..`; `NotFound` if it is not there.
    fn canonical(&self, path: &Path) -> Result<PathBuf>;

    /// Returns where an open file really is: the path of the descriptor, not of the name it was opened by.
    fn opened_as(&self, file: &dyn File) -> Result<PathBuf>;

    /// Returns what the file looks like from outside, without opening or locking it.
    fn witness(&self, path: &Path) -> Result<Witness>;

    /// Returns what the file system says of a file or folder; links are followed.
    fn status(&self, path: &Path) -> Result<Status>;

    /// Returns a number that stands for this machine from one boot to the next; 0 if it has none.
    fn machine(&self) -> u128;

    /// Returns the space free for new data in the file system that holds `folder`, in bytes.
    fn free_bytes(&self, folder: &Path) -> Result<u64>;
}
