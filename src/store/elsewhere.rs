//! Where else children are: beside images it is noted in which other folders children of theirs were made.
//!
//! What stays true: a note is a hint. Whoever follows one looks at the images there and believes their headers alone; one
//! that leads nowhere, or to nothing of interest, is passed over. It is durable before the child has its name.

use super::{
    FOLDER,
    place::{self, Lasting},
};
use crate::{
    base::{Error, ErrorKind, HostOffset, Result, name::FileName, units::index},
    io::{Access, Host},
};
use serde::{Deserialize, Serialize};
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const VERSION: u32 = 1;
const BYTES_MAX: u64 = 64 << 10;

/// Where the notes are, in the folder of those on images.
const NOTES: &str = "elsewhere";

#[derive(Serialize, Deserialize)]
struct Hint {
    version: u32,
    /// The other folder: relative if it is inside the one whose hint this is, so that both can be moved.
    folder: FileName,
}

/// Notes beside the images of `folder` that `other` has children of theirs, unless that is noted. Where nothing can be
/// noted, it is not. Both are whole paths without links.
pub(super) fn note(host: &Arc<dyn Host>, folder: &Path, other: &Path) -> Result<()> {
    if folder == other {
        return Ok(());
    }
    let other = other.strip_prefix(folder).unwrap_or(other);
    let sum = blake3::hash(other.as_os_str().as_bytes()).to_hex();
    let name = Path::new(NOTES).join(sum.get(..16).unwrap_or_default());
    let notes = folder.join(FOLDER);
    if host.kind(&notes.join(&name)).is_ok_and(|kind| kind.is_some()) {
        return Ok(());
    }
    let hint = Hint { version: VERSION, folder: FileName(other.to_path_buf()) };
    let bytes = serde_json::to_vec(&hint).map_err(|e| Error::invalid(format!("a hint: {e}")))?;
    let content =
        |out: &mut dyn std::io::Write| out.write_all(&bytes).map_err(|e| Error::io("write a hint", e));
    match place::replace_in_first(host, &[notes], (&name, Lasting::Now), &content) {
        Err(error) if place::is_closed(&error) => Ok(()),
        noted => noted.map(drop),
    }
}

/// Returns the other folders in which images may lie on those of `folder`; some may be gone, or have none.
pub fn elsewhere(host: &dyn Host, folder: &Path) -> Result<Vec<PathBuf>> {
    let hints = match host.list(&folder.join(FOLDER).join(NOTES)) {
        Err(error) if place::is_closed(&error) || error.kind() == ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        hints => hints?,
    };
    let read = |path: &Path| -> Result<Option<Hint>> {
        let file = host.open(path, Access::ReadShared)?;
        let mut bytes = vec![0; index(file.bytes()?.min(BYTES_MAX))];
        file.read_at(HostOffset::new(0), &mut bytes)?;
        Ok(serde_json::from_slice(&bytes).ok())
    };
    let hints = hints.iter().filter_map(|entry| read(&entry.path).ok().flatten());
    Ok(hints.filter(|hint| hint.version == VERSION).map(|hint| folder.join(hint.folder.0)).collect())
}
