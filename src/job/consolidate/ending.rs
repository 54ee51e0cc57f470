//! What follows the record: making it durable, removing the folded layers, closing the journal.
//!
//! All of it needs the journal and nothing else, and can be done again by a later life of the job.

use super::{moving, plan::folder_of, run::resolve};
use crate::{
    base::{Error, ErrorKind, Guard, Result},
    chain::{Family, Layer, Member, Opening, Policy, header_name, open_layer},
    format::{self, Format, Image, ParentName},
    io::{Access, File, Host, Witness},
    store::{Claim, FoldMode, Journal, Ledger, Removed},
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a job works with.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) host: Arc<dyn Host>,
    pub(super) ledger: Ledger,
    pub(super) opening: Opening,
    /// As [`super::Request::ignores_unread`].
    pub(super) ignores_unread: bool,
}

/// Whether it is the file of that witness, and nobody changed it since but the job, which retires a head.
fn is_still(then: &Witness, file: &dyn File) -> Result<bool> {
    let now = file.witness()?;
    Ok(then.same_file(&now) && (then.same_state(&now) || format::is_retired(file)?))
}

fn is_retired(host: &dyn Host, path: &Path) -> Result<bool> {
    format::is_retired(host.open(path, Access::ReadShared)?.as_ref())
}

/// Refuses a journal that names files which an image in TOP's folder may not lead to: somebody else could have made it,
/// and what it names is written and removed. `is_asked` tells whether a person named the new image in that folder.
pub(super) fn refuse_foreign(
    host: &dyn Host,
    journal: &Journal,
    policy: &Policy,
    is_asked: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    let fold = journal.fold();
    let own = host.canonical(&journal.place(Path::new(".")))?;
    let removed = fold.removed.iter().map(|gone| ("removed", &gone.name));
    let layers = fold.layers.iter().map(|name| ("layer", name));
    for (field, name) in layers.chain([("result", &fold.result)]).chain(removed) {
        let place = match resolve(host, &journal.place(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            resolved => resolved?,
        };
        let folder = folder_of(&place);
        let is_new = fold.mode.makes_new() && (*name == fold.result || Some(name) == fold.draft.as_ref());
        if !(policy.allows(&own, &place) || is_new && is_asked(folder)) {
            let name = name.as_os_str().to_string_lossy();
            let what = format!(
                "the plan's {field} '{}' is outside the disk's folder and the allowed ones",
                name.escape_debug()
            );
            return Err(Error::policy(what).subject(folder).path(journal.path()));
        }
    }
    Ok(())
}

impl Ending {
    /// Returns whether the journal's record has landed, durably or not.
    pub(super) fn has_begun(host: &dyn Host, journal: &Journal) -> Result<bool> {
        let fold = journal.fold();
        let is_there = |name: &PathBuf| host.kind(&journal.place(name)).map(|kind| kind.is_some());
        let (top, target) = (fold.layers.first(), fold.layers.last());
        let Some((top, target)) = top.zip(target) else { return Ok(false) };
        let is_ready = journal.position().is_ready;
        Ok(match (fold.mode, &fold.draft) {
            (FoldMode::TopName, _) => {
                is_ready && !is_there(target)? && !host.witness(&journal.place(top))?.same_file(&fold.head)
            }
            (FoldMode::TargetName, _) => {
                is_ready && (!is_there(top)? || is_retired(host, &journal.place(top))?)
            }
            // A draft may also be gone because somebody took it for a leftover: then its name does not open it.
            (FoldMode::EmptyTop, Some(draft)) => {
                is_ready && !is_there(draft)? && !host.witness(&journal.place(top))?.same_file(&fold.head)
            }
            (FoldMode::NewImage | FoldMode::Move, Some(draft)) => {
                moving::refuse_away(host, journal)?;
                let file = |name| host.witness(&journal.place(name));
                let is_same = || Ok::<_, Error>(file(draft)?.same_file(&file(&fold.result)?));
                is_ready && is_there(&fold.result)? && (!is_there(draft)? || is_same()?)
            }
            (FoldMode::EmptyTop | FoldMode::NewImage | FoldMode::Move, None) => false,
        })
    }

    /// Makes the record durable, and the result a head: `open`, if it is open for writing already.
    pub(super) fn settle(&self, journal: &Journal, open: Option<&Layer>) -> Result<()> {
        let fold = journal.fold();
        let result = journal.place(&fold.result);
        // A target that had its name in another folder has lost that in the same step.
        self.host.sync_folder(folder_of(&result))?;
        if let Some(top) = fold.layers.first().filter(|_| fold.mode == FoldMode::TargetName) {
            // Retired by a process that was killed, it may not be so after a power cut, when the target is a head.
            match self.host.open(&journal.place(top), Access::ReadShared) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => opened?.flush()?,
            }
        }
        match (fold.mode, &fold.draft) {
            (FoldMode::NewImage, Some(draft)) => self.remove_file(&journal.place(draft))?,
            (FoldMode::Move, Some(draft)) => {
                self.remove_file(&journal.place(draft))?;
                self.put_aside(journal)?;
            }
            // An empty TOP takes the place of the old one among its children, too.
            (FoldMode::TopName | FoldMode::TargetName | FoldMode::EmptyTop, _) => {
                if let Some(layer) = open {
                    self.make_head(journal, layer)?;
                } else {
                    let format = Format::parse(&fold.format)?;
                    let opening = self.opening.clone().with_access(Access::Write).with_format(Some(format));
                    self.make_head(journal, &open_layer(&self.host, &result, &opening)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The target was a frozen layer and is a head now, or takes TOP's place among TOP's children.
    fn make_head(&self, journal: &Journal, layer: &Layer) -> Result<()> {
        if let Some(parent) =
            layer.image.parent().filter(|p| Path::new(OsStr::from_bytes(&p.name)).is_absolute())
            && journal.fold().mode == FoldMode::TopName
        {
            let name = header_name(folder_of(&layer.path), Path::new(OsStr::from_bytes(&parent.name)));
            self.name_parent(layer.image.as_ref(), &name)?;
        }
        let has_children = self.has_children(layer)?;
        match journal.fold().head_epoch.filter(|_| has_children) {
            Some(epoch) => self.ledger.thaw(layer.image.as_ref(), epoch).map(drop),
            None => self.ledger.release(layer.image.as_ref()).map(drop),
        }
    }

    /// Whether something may lie on a layer: what cannot be read may, and a record that nobody needs does no harm.
    pub(super) fn has_children(&self, layer: &Layer) -> Result<bool> {
        let family = Family::scan(self.host.as_ref(), &[folder_of(&layer.path).to_path_buf()])?;
        Ok(family.refuse_unreadable(self.host.as_ref()).is_err()
            || family.children_of(&self.host.witness(&layer.path)?).next().is_some())
    }

    /// Names the same parent in another way; a claim that held goes on holding.
    pub(super) fn name_parent(&self, image: &dyn Image, name: &[u8]) -> Result<()> {
        let Some(old) = image.parent().filter(|old| old.name != name) else { return Ok(()) };
        let claim = self.ledger.look(image)?.layer.claim;
        let claim = claim.filter(|claim| claim.name == old.name && claim.format == old.format);
        image.set_parent(Some(&ParentName { name: name.to_vec(), others: Vec::new(), ..old }))?;
        match claim {
            Some(claim) => self.ledger.claim(image, Some(Claim { name: name.to_vec(), ..claim })).map(drop),
            None => Ok(()),
        }
    }

    /// Removes the file of that number; `Busy` if somebody still reads it. Returns its place if another file has the
    /// name by now, or if it was changed since the job began: that one stays.
    pub(super) fn remove(&self, journal: &Journal, number: usize) -> Result<Option<PathBuf>> {
        let gone = journal.fold().removed.get(number);
        let gone = gone.ok_or_else(|| Error::invalid("no such file to remove"))?;
        let removed = self.remove_one(journal, gone);
        if journal.fold().mode == FoldMode::Move { self.keep_moved(journal, gone, removed) } else { removed }
    }

    fn remove_one(&self, journal: &Journal, gone: &Removed) -> Result<Option<PathBuf>> {
        let (path, moves) = (journal.place(&gone.name), journal.fold().mode == FoldMode::Move);
        let is_top = moves && journal.fold().layers.first() == Some(&gone.name);
        if self.host.kind(&path)?.is_none() {
            return if is_top { self.kept_aside(journal, &path) } else { Ok(None) };
        }
        let file = self.host.open(&path, Access::Write)?;
        let is_as_left = if is_top {
            self.is_untouched_top(journal, &path)?
        } else {
            is_still(&gone.file, file.as_ref())?
        };
        if !is_as_left {
            return Ok(Some(path));
        }
        self.refuse_orphaning(journal, &path)?;
        let is_layer = journal.fold().layers.contains(&gone.name);
        if !is_layer && self.is_data_in_use(&path)? {
            return Ok(Some(path));
        }
        // What is noted of it would be read as that of a later file in its place; not being able to read the
        // image is no reason to keep it. It is locked already: looked at beside the lock.
        let how = self.opening.clone().with_access(Access::ReadShared).with_format(None);
        if let Ok(layer) = open_layer(&self.host, &path, &how)
            && (is_layer || moves)
        {
            if moves {
                // Its child, which went before, must not come back and miss what is noted of it.
                self.host.sync_folder(folder_of(&path))?;
            }
            self.ledger.forget(layer.image.as_ref())?;
        }
        // Held until it is gone: nobody began to use it meanwhile.
        let gone = self.remove_file(&path);
        drop(file);
        gone.map(|()| None)
    }

    /// An image that was put on the file since the job was planned keeps it: it stands on its only copy.
    fn refuse_orphaning(&self, journal: &Journal, path: &Path) -> Result<()> {
        let file = self.host.witness(path)?;
        let family = Family::scan(self.host.as_ref(), &[folder_of(path).to_path_buf()])?;
        if !self.ignores_unread {
            family.refuse_unreadable(self.host.as_ref())?;
        }
        let is_folded = |child: &Member| {
            let mut removed = journal.fold().removed.iter();
            removed.any(|gone| journal.is_at(&gone.name, &child.path).unwrap_or(false))
        };
        // Of what goes with a move a child may stay after all: what it lies on stays, too. Children are removed first.
        let goes = |child: &&Member| journal.fold().mode != FoldMode::Move && is_folded(child);
        let child = family.children_of(&file).find(|child| !goes(child));
        match child.filter(|_| Guard::Orphans.trips(true)) {
            Some(child) => {
                let is_old_top = child.witness.same_file(&journal.fold().head);
                let why = if is_old_top { ", being another name of the old top" } else { "" };
                let what = format!("{} lies on it by now{why}: it is not removed", child.path.display());
                Err(Error::busy(what).subject(&child.path).path(path))
            }
            None => Ok(()),
        }
    }

    /// Whether an image keeps its bytes in that file: the folded layer that did is gone, or was changed and stays.
    fn is_data_in_use(&self, path: &Path) -> Result<bool> {
        let family = Family::scan(self.host.as_ref(), &[folder_of(path).to_path_buf()])?;
        Ok(family.users_of(&self.host.witness(path)?, path).next().is_some())
    }

    pub(super) fn remove_file(&self, path: &Path) -> Result<()> {
        match self.host.remove(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Makes the removals durable, then removes the journal.
    pub(super) fn close(&self, journal: &Journal) -> Result<()> {
        let fold = journal.fold();
        let draft = fold.draft.iter().map(|draft| journal.place(draft));
        let mut folders: Vec<PathBuf> =
            fold.removed.iter().map(|gone| journal.place(&gone.name)).chain(draft).collect();
        folders = folders.iter().map(|path| folder_of(path).to_path_buf()).collect();
        folders.dedup();
        for folder in folders {
            match self.host.sync_folder(&folder) {
                // The other store may be away: nothing of the disk is there.
                Err(error) if error.kind() == ErrorKind::NotFound && fold.mode == FoldMode::Move => {}
                synced => synced?,
            }
        }
        journal.close()
    }
}
