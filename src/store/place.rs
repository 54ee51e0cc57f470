//! Small files that are replaced whole, in the first of several folders that can be written.

use super::{Draft, Publish};
use crate::{
    base::{
        Error, ErrorKind, HostOffset, Result,
        units::{count, index},
    },
    io::{Access, File, Host, Likeness},
};
use serde::de::DeserializeOwned;
use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

const BUFFER_BYTES: usize = 256 << 10;
const NOTE_BYTES_MAX: u64 = 16 << 20;

/// How it is said that what is known of an image can be kept in no folder.
pub const NO_PLACE: &str = "notes can be kept nowhere";

/// Writes the content of a file.
pub(super) type Content<'a> = dyn Fn(&mut dyn Write) -> Result<()> + 'a;

/// Whether a power cut may take back what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasting {
    /// It is durable.
    Now,
    /// It is found again some time; whoever reads it tells a part from the whole, and does without it.
    Sometime,
}

/// Replaces `name` (which may have folders in it) in the first of `folders` that can be written; returns that
/// folder.
pub(super) fn replace_in_first(
    host: &Arc<dyn Host>,
    folders: &[PathBuf],
    (name, lasting): (&Path, Lasting),
    content: &Content<'_>,
) -> Result<PathBuf> {
    let mut refused = None;
    for folder in folders {
        match replace(host, (&folder.join(name), lasting), content) {
            Ok(()) => return Ok(folder.clone()),
            Err(error) if is_closed(&error) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    let tried: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let nowhere = format!("{NO_PLACE}, tried {}", tried.join(" and "));
    Err(refused.unwrap_or_else(|| Error::invalid("no folder to keep notes in")).doing(nowhere))
}

/// Returns whether a name stands for a file in its own folder, whatever is put before it.
pub(super) fn is_plain(name: &Path) -> bool {
    let mut parts = name.components();
    let first = parts.next().filter(|_| parts.next().is_none());
    first == Some(Component::Normal(name.as_os_str())) && !name.as_os_str().as_bytes().contains(&0)
}

/// Returns whether the failure says that this place is closed to us, not that something is wrong with it.
pub(super) fn is_closed(error: &Error) -> bool {
    // `HOME=/dev/null` is usual for users that are services.
    let closed =
        [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::NotADirectory];
    error.os().is_some_and(|os| closed.contains(&os.kind()))
}

fn replace(host: &Arc<dyn Host>, (path, lasting): (&Path, Lasting), content: &Content<'_>) -> Result<()> {
    // A folder that is there is taken for durable, so that it has to be, whatever it was made for.
    make_durable_folder(host.as_ref(), path.parent().unwrap_or(Path::new(".")))?;
    let draft = Draft::new(host, path)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, Cursor { file: draft.file(), at: 0 });
    content(&mut out)?;
    out.flush().map_err(|e| Error::io("write", e).path(path))?;
    drop(out);
    match lasting {
        Lasting::Now => draft.publish(path, Publish::Replace),
        Lasting::Sometime => draft.publish_sometime(path),
    }
}

/// Makes a folder and those above it, each durable before something is put into it.
pub(super) fn make_durable_folder(host: &dyn Host, folder: &Path) -> Result<()> {
    if host.kind(folder)?.is_some() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        make_durable_folder(host, above)?;
    }
    host.make_folder(folder)?;
    host.sync_folder(above.unwrap_or(Path::new(".")))
}

/// Makes durable what a process that was killed may have left in the cache: the file of that name, if there is one,
/// and the name.
pub(super) fn settle(host: &dyn Host, path: &Path) -> Result<()> {
    match host.open(path, Access::ReadShared) {
        Ok(file) => file.flush()?,
        // That it is gone may not be durable, either.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    path.ancestors().skip(1).take(3).filter(|folder| !folder.as_os_str().is_empty()).try_for_each(|folder| {
        match host.sync_folder(folder) {
            Err(error) if is_closed(&error) || error.kind() == ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    })
}

/// Reads a note of this user's, written as JSON; `None` if there is none, or none that can be read.
pub(super) fn read_own<T: DeserializeOwned>(host: &dyn Host, path: &Path) -> Result<Option<T>> {
    let file = match host.open(path, Access::ReadShared) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // Whoever may write the folder could otherwise name any file of this user's.
    if Likeness::of(file.as_ref()).is_some_and(|likeness| !likeness.is_own()) {
        return Ok(None);
    }
    let mut bytes = vec![0; index(file.bytes()?.min(NOTE_BYTES_MAX))];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Returns a reader of a whole file.
pub(super) fn reader(file: Arc<dyn File>) -> Result<impl Read> {
    let bytes = file.bytes()?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, Cursor { file, at: 0 }.take(bytes)))
}

/// A place in a file, for what reads or writes from start to end.
struct Cursor {
    file: Arc<dyn File>,
    at: u64,
}

/// Hands an error through the standard library's traits, keeping what the operating system said.
pub(super) fn os(error: &Error) -> io::Error {
    let code = error.os().and_then(io::Error::raw_os_error);
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

impl Write for Cursor {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write_at(HostOffset::new(self.at), buf).map_err(|e| os(&e))?;
        self.at += count(buf.len());
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(HostOffset::new(self.at), buf).map_err(|e| os(&e))?;
        self.at += count(buf.len());
        Ok(buf.len())
    }
}
