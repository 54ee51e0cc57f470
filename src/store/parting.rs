//! An image that is being removed, and what is noted of it.
//!
//! The note stays as long as the file does: without it a raw disk would be taken for whatever its guest has written there. What
//! stays true: before the file goes it is marked, durably, that it does; so a cut leaves the file with its note, or a marked note
//! of a file that is gone, which no other file is read by, and which goes with the next removal in that folder.

use super::{
    FOLDER,
    note::{self, Header},
    place,
};
use crate::{
    base::{ErrorKind, Result},
    io::{EntryKind, Host},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where the marks are: each an empty file with its note's name.
const GOING: &str = "going";

/// What is noted of an image that is being removed.
#[derive(Debug)]
pub struct Parting {
    host: Arc<dyn Host>,
    folders: Vec<PathBuf>,
    header: Header,
    mark: Option<PathBuf>,
}

impl Parting {
    /// Marks the note that lies in `folder`, if there is one; `folders` may have further ones.
    pub(super) fn begin(
        host: &Arc<dyn Host>,
        (folder, folders): (&Path, Vec<PathBuf>),
        header: Header,
    ) -> Result<Self> {
        let own = folder.join(FOLDER);
        let is_noted = host.kind(&note::place(&own, &header))?.is_some();
        let mark = is_noted.then(|| own.join(GOING).join(header.name()));
        if let Some(mark) = &mark {
            make(host.as_ref(), mark)?;
        }
        Ok(Self { host: Arc::clone(host), folders, header, mark })
    }

    /// Removes the note: the file is gone, durably.
    pub fn end(self) -> Result<()> {
        note::remove(self.host.as_ref(), &self.folders, &self.header)?;
        self.mark.map_or(Ok(()), |mark| remove_if_there(self.host.as_ref(), &mark))
    }
}

fn make(host: &dyn Host, mark: &Path) -> Result<()> {
    let folder = mark.parent().unwrap_or(Path::new("/"));
    place::make_durable_folder(host, folder)?;
    match host.create(mark) {
        // A removal that was cut off has left it.
        Err(error) if error.kind() == ErrorKind::Exists => {}
        made => drop(made?),
    }
    host.sync_folder(folder)
}

/// Ends the removals in `folder` that were cut off: of files that are gone the notes go, too.
pub(super) fn sweep(host: &dyn Host, folder: &Path) -> Result<()> {
    let own = folder.join(FOLDER);
    let marks = match host.list(&own.join(GOING)) {
        Err(error) if place::is_closed(&error) || error.kind() == ErrorKind::NotFound => return Ok(()),
        marks => marks?,
    };
    if marks.is_empty() {
        return Ok(());
    }
    let files = host.list(folder)?.into_iter().filter(|entry| entry.kind == EntryKind::File);
    // One that is gone by now is not there.
    let there: BTreeSet<String> =
        files.filter_map(|file| host.witness(&file.path).ok()).map(|seen| note::name_of(&seen)).collect();
    for mark in marks {
        let name = mark.path.file_name().unwrap_or_default();
        if !name.to_str().is_some_and(|name| there.contains(name)) {
            let notes = own.join(note::NOTES);
            remove_if_there(host, &notes.join(name))?;
            host.sync_folder(&notes)?;
        }
        remove_if_there(host, &mark.path)?;
    }
    Ok(())
}

fn remove_if_there(host: &dyn Host, path: &Path) -> Result<()> {
    match host.remove(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
