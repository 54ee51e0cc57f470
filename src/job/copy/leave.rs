//! The sources of a copy that was a move: removed when the copy is whole, durable and verified.
//!
//! What stays true:
//! - nothing goes before the list of what goes is durable at the target, and that comes last of all the copy does;
//! - children go before their parents, durably one after the other: what is left is a chain at every moment;
//! - a file goes only while it looks as it did when it was copied, nobody uses or has leased it, and nothing else lies on it:
//!   not in its folder, not in that which it was copied to, nor where it is noted that there are such.

use super::{file::is_done, places::places};
use crate::{
    base::{Error, ErrorKind, Result, name::FileName},
    chain::{Chain, Family, Layer, Opening, View, open_layer, refuse_cut_off, refuse_leased},
    format::Format,
    io::{Access, File, Host, Witness},
    job::{Progress, diff::first_difference, own, verify::held},
    store::{self, Ledger, Left, Transfer},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What becomes of the sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving {
    /// What is removed, a layer each, the head first.
    pub(super) left: Vec<Left>,
    /// Layers that were copied and stay, with the reason.
    pub(super) stays: Vec<(PathBuf, String)>,
}

/// Returns how many layers are copied in all, if the topmost `depth` are to be: what an earlier run has copied is
/// found by its content, and linked.
pub(super) fn copied_depth(
    host: &dyn Host,
    chain: &Chain,
    depth: usize,
    (folder, transfer): (&Path, &Transfer),
) -> Result<usize> {
    let mut copied = depth;
    for (layer, places) in chain.layers().iter().zip(places(chain.layers(), folder)).skip(depth) {
        for (file, place) in layer.image.files().iter().zip(&places) {
            if !is_done(host, &[file.witness()?], place, transfer)? {
                return Ok(copied);
            }
        }
        copied += 1;
    }
    Ok(copied)
}

impl Leaving {
    /// Returns the files that are removed, in that order.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.left.iter().flat_map(|left| &left.files).map(|(path, _)| path.0.clone()).collect()
    }

    /// Returns how many layers of the chain it is about.
    pub(super) const fn depth(&self) -> usize {
        self.left.len() + self.stays.len()
    }
}

/// Finds out which of the topmost `depth` layers of a chain can go.
///
/// `Busy` if the head itself cannot; `Policy` if a file beside them could not be read, unless that is ignored.
pub(super) fn plan(
    host: &dyn Host,
    ledger: &Ledger,
    (chain, target): (&Chain, &Path),
    (depth, ignores_unread): (usize, bool),
) -> Result<Leaving> {
    let layers = chain.layers();
    let folders: Vec<PathBuf> =
        layers.iter().filter_map(|layer| layer.path.parent().map(Path::to_path_buf)).collect();
    let family = family(host, &folders, target)?;
    if !ignores_unread {
        family.refuse_unreadable(host)?;
    }
    let files: Vec<Witness> = layers.iter().map(|layer| host.witness(&layer.path)).collect::<Result<_>>()?;
    let mut leaving = Leaving::default();
    for (at, layer) in layers.iter().enumerate().take(depth) {
        refuse_cut_off(ledger, &layer.path)?;
        let above_stays =
            leaving.stays.last().map(|(above, _)| Error::busy(format!("{} stays", above.display())));
        let why = above_stays.or_else(|| own::why_not(&family, (layers, &files), at));
        let used = || refuse_leased(host, std::slice::from_ref(layer)).err();
        match why.or_else(|| further_file_in_use(&family, layer)).or_else(used) {
            Some(error) if at == 0 => return Err(error.path(&layer.path).doing("cannot be removed")),
            Some(error) => leaving.stays.push((layer.path.clone(), error.to_string())),
            None => leaving.left.push(left(host, layer)?),
        }
    }
    Ok(leaving)
}

/// Returns the images that may lie on what is in `folders`, those in the copy's target among them.
fn family(host: &dyn Host, folders: &[PathBuf], target: &Path) -> Result<Family> {
    let all: Vec<PathBuf> = folders.iter().cloned().chain([target.to_path_buf()]).collect();
    Family::scan_near(host, &all, folders)
}

/// By whole paths: who goes on after a cut may stand in another folder.
fn left(host: &dyn Host, layer: &Layer) -> Result<Left> {
    let files = layer.image.files();
    let files = files.iter().map(|file| Ok((FileName(host.canonical(file.path())?), file.witness()?)));
    Ok(Left { format: layer.format().name().to_owned(), files: files.collect::<Result<_>>()? })
}

/// An image may lie on the data file of another one as if that were a raw disk, or keep its bytes there, too.
fn further_file_in_use(family: &Family, layer: &Layer) -> Option<Error> {
    let files = layer.image.files();
    let mut further = files.iter().skip(1).filter_map(|file| file.witness().ok());
    further.find_map(|file| own::why_shared(family, &file, &layer.path))
}

/// Fails with `Corrupt` unless each copied layer holds what its source holds, where its source holds something.
///
/// Whoever moves a chain moves each of its points in time, not just what the head shows.
pub(super) fn verify_layers(source: &Chain, copy: &Chain, depth: usize, progress: &Progress) -> Result<()> {
    for (one, other) in source.layers().iter().zip(copy.layers()).take(depth) {
        let (left, right) = (std::slice::from_ref(one), std::slice::from_ref(other));
        let same_size = one.size() == other.size();
        if !same_size || held(left, one.size())? != held(right, other.size())? {
            return Err(Error::corrupt("does not hold what its source holds").path(&other.path));
        }
        if let Some(at) = first_difference(&View::new(left), &View::new(right), progress)? {
            let what = format!("differs from its source at guest byte {at:#x}");
            return Err(Error::corrupt(what).path(&other.path));
        }
    }
    Ok(())
}

/// Sources that a move still has to remove: the copy is whole.
#[derive(Debug)]
pub struct Removal {
    host: Arc<dyn Host>,
    ledger: Ledger,
    opening: Opening,
    transfer: Transfer,
    ignores_unread: bool,
}

impl Removal {
    pub(super) fn new(host: Arc<dyn Host>, ledger: Ledger, opening: Opening, transfer: Transfer) -> Self {
        Self { host, ledger, opening, transfer, ignores_unread: false }
    }

    /// Says whether files beside the sources that cannot be read are taken for images that lie on none of them.
    #[must_use]
    pub fn ignoring_unread(self, ignores_unread: bool) -> Self {
        Self { ignores_unread, ..self }
    }

    /// Finds what a move of the chain at `top` to `folder` that was cut off has left to remove; `None` if it did not
    /// come that far.
    pub fn find(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        (top, folder): (&Path, &Path),
        opening: &Opening,
    ) -> Result<Option<Self>> {
        // The head may be gone already: its folder is not.
        let place = top.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let by_name = host.canonical(place)?.join(top.file_name().unwrap_or_default());
        let head = host.canonical(top).unwrap_or(by_name);
        let transfer = Transfer::open(host, &host.canonical(folder)?, &head)?;
        let opening = Opening { ledger: None, ..opening.clone() };
        let found = Self::new(Arc::clone(host), ledger.clone(), opening, transfer);
        Ok((!found.transfer.left().is_empty()).then_some(found))
    }

    /// Returns the files that are removed, in that order; some may be gone.
    pub fn files(&self) -> Vec<PathBuf> {
        self.transfer.left().iter().flat_map(|left| &left.files).map(|(path, _)| path.0.clone()).collect()
    }

    /// Removes them. Cut off at any moment, it goes on when it is asked for again.
    ///
    /// `Busy` if one is in use, was written since it was copied, or has another image lying on it by now.
    pub fn run(self, progress: &Progress) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        let left = self.transfer.left().to_vec();
        progress.begin("remove", 0);
        for layer in &left {
            progress.checkpoint()?;
            self.remove(layer, &mut removed)?;
        }
        self.transfer.close()?;
        Ok(removed)
    }

    fn remove(&self, layer: &Left, removed: &mut Vec<PathBuf>) -> Result<()> {
        let mut locked = Vec::new();
        for (FileName(path), then) in &layer.files {
            // What has its name by now is something else.
            if self.host.kind(path)?.is_some() && self.host.witness(path)?.same_file(then) {
                locked.push((path.as_path(), self.lock(path, then)?));
            }
        }
        for (path, file) in &locked {
            self.refuse_orphaning(file.as_ref())?;
            if layer.files.first().is_some_and(|(header, _)| header.0 == *path) {
                self.forget(path, &layer.format)?;
            }
            self.host.remove(path)?;
            removed.push(path.to_path_buf());
            // The next one is its parent, or holds its bytes: a power cut must not take that first.
            self.host.sync_folder(path.parent().unwrap_or(Path::new("/")))?;
        }
        Ok(())
    }

    /// Takes the right to write, which nobody has who reads; refuses what is not what was copied.
    fn lock(&self, path: &Path, then: &Witness) -> Result<Arc<dyn File>> {
        let file = self.host.open(path, Access::Write)?;
        if file.witness()?.same_state(then) {
            return Ok(file);
        }
        Err(Error::busy("was written since it was copied: it is not removed").path(path))
    }

    fn refuse_orphaning(&self, file: &dyn File) -> Result<()> {
        let (path, witness) = (file.path(), file.witness()?);
        let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let family = family(self.host.as_ref(), &[folder], self.transfer.target())?;
        if !self.ignores_unread {
            family.refuse_unreadable(self.host.as_ref())?;
        }
        // The image that a further file belonged to is gone by now.
        store::refuse_leased(self.host.as_ref(), &[(path.to_path_buf(), witness)])?;
        let mut dependants = family.children_of(&witness).chain(family.users_of(&witness, path));
        match dependants.next() {
            Some(other) => {
                let what = format!("{} lies on it by now: it is not removed", other.path.display());
                Err(Error::busy(what).subject(&other.path).path(path))
            }
            None => Ok(()),
        }
    }

    /// What is noted of it would be read as that of a later file in its place.
    fn forget(&self, path: &Path, format: &str) -> Result<()> {
        // Locked already: looked at beside the lock.
        let how =
            self.opening.clone().with_access(Access::ReadShared).with_format(Some(Format::parse(format)?));
        match open_layer(&self.host, path, &how) {
            Ok(layer) => self.ledger.forget(layer.image.as_ref()),
            // It could be read when it was copied: the next run will do this.
            Err(error) if error.kind() == ErrorKind::Io => Err(error),
            // Not being an image any more is no reason to keep it.
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
