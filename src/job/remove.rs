//! Images that go with all that belongs to them, unless somebody needs them.
//!
//! What stays true:
//! - an image goes only while it is locked for writing, which nobody lets us who has it open; and while nothing that stays
//!   lies on it or keeps its bytes in it, nobody has leased it, and no job that was cut off names it;
//! - children go before their parents, durably one after the other: what a cut leaves are whole chains.

use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Family, Layer, Member, Opening, open_layer, refuse_cut_off, refuse_leased},
    content::ContentId,
    io::{self, Access, File, Host, Witness},
    store::{Ledger, Parting},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What goes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The images, in the order in which they go.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub images: Vec<PathBuf>,
    /// Their files, in that order.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub removed: Vec<PathBuf>,
    /// Space that is given back, in bytes: none for files that have other names.
    pub freed_bytes: u64,
    /// Block devices that images keep their bytes on: those stay as they are.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub stays: Vec<PathBuf>,
    /// Folders in which it was looked for who needs them.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub looked_in: Vec<PathBuf>,
    /// Files there that could not be read: whether they need them is not known.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub unread: Vec<PathBuf>,
}

/// A removal that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Remove {
    host: Arc<dyn Host>,
    ledger: Ledger,
    ignores_unread: bool,
    /// Locked; children before their parents.
    going: Vec<Layer>,
    plan: Plan,
}

impl Remove {
    /// Locks the images, and finds out whether they can go. If `ignores_unread`, files beside them that cannot be read are
    /// taken for images that need none of them.
    ///
    /// `Busy`, with who needs it, for an image that cannot go; `Policy` for files beside it that cannot be read; `Invalid`
    /// for a link or a device.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{chain::Opening, job::{remove::Remove, snapshot::snapshot}, store::Ledger};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let ledger = Ledger::new(Arc::clone(&host), None);
    /// snapshot(&host, &base, &top, &[], &Opening::writing())?;
    /// let remove = |images: &[_]| Remove::prepare(&host, &ledger, images, &Opening::reading(), false);
    /// assert!(remove(&[base.clone()]).is_err());
    /// assert_eq!(remove(&[base.clone(), top.clone()])?.run()?.removed, [top, base]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        images: &[PathBuf],
        opening: &Opening,
        ignores_unread: bool,
    ) -> Result<Self> {
        let mut going: Vec<Layer> = Vec::new();
        for image in images {
            let place = own_name(host.as_ref(), image)?;
            if !going.iter().any(|layer| layer.path == place) {
                going.push(locked(host, &place, opening)?);
            }
        }
        let plan = Plan {
            images: Vec::new(),
            removed: Vec::new(),
            freed_bytes: 0,
            stays: Vec::new(),
            looked_in: Vec::new(),
            unread: Vec::new(),
        };
        let (host, ledger) = (Arc::clone(host), ledger.clone());
        let mut this = Self { host, ledger, ignores_unread, going, plan };
        let family = this.check()?;
        this.put_in_order(&family)?;
        this.make_plan(&family)?;
        Ok(this)
    }

    /// Returns what goes.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Cut off, it leaves those that have not gone yet as they were.
    pub fn run(self) -> Result<Plan> {
        // A person may have thought for a while: no lock of ours keeps a program that heeds none from making a child.
        let family = self.check()?;
        let trees = self.trees(&family)?;
        for layer in &self.going {
            let files = files(layer)?;
            self.ledger.end_partings(layer.path.parent().unwrap_or(Path::new("/")))?;
            // Under another name it stays what is noted of it.
            let is_last = files.iter().all(|file| io::names(file.as_ref()) == 1);
            let parting = is_last.then(|| self.ledger.part(layer.image.as_ref())).transpose()?;
            for file in files {
                let path = self.host.opened_as(file.as_ref())?;
                self.host.remove(&path)?;
                // The next one is its parent, or holds its bytes: a power cut must not take that first.
                self.host.sync_folder(path.parent().unwrap_or(Path::new("/")))?;
            }
            parting.map_or(Ok(()), Parting::end)?;
        }
        for (layer, id) in trees {
            if let Some(layer) = self.going.get(layer) {
                self.ledger.forget_tree(&layer.path, &id)?;
            }
        }
        Ok(self.plan)
    }

    /// Fails if one of them is needed by anybody who stays; returns the images around them.
    fn check(&self) -> Result<Family> {
        let host = self.host.as_ref();
        let mut folders = Vec::new();
        for layer in &self.going {
            for file in files(layer)? {
                let path = host.opened_as(file.as_ref())?;
                folders.push(path.parent().unwrap_or(Path::new("/")).to_path_buf());
            }
        }
        let family = Family::scan(host, &folders)?;
        if !self.ignores_unread {
            family.refuse_unreadable(host)?;
        }
        for layer in &self.going {
            refuse_cut_off(&self.ledger, &layer.path)?;
            for (nth, file) in files(layer)?.iter().enumerate() {
                let witness = file.witness()?;
                let lies = family.children_of(&witness).map(|member| (member, "lies on it"));
                let keeps =
                    family.users_of(&witness, &layer.path).map(|member| (member, "keeps its bytes in it"));
                let stays = |member: &Member| !self.goes(&member.witness);
                if let Some((other, how)) = lies.chain(keeps).find(|(member, _)| stays(member)) {
                    let what = if nth == 0 { "" } else { "its data file is needed: " };
                    let what = format!("{what}{} {how}", other.path.display());
                    return Err(Error::busy(what).subject(&other.path).path(&layer.path));
                }
            }
        }
        refuse_leased(host, &self.going)?;
        Ok(family)
    }

    /// Returns whether the image with its header in that file goes.
    fn goes(&self, header: &Witness) -> bool {
        let own = |layer: &Layer| layer.image.files().first().and_then(|file| file.witness().ok());
        self.going.iter().filter_map(own).any(|own| own.same_file(header))
    }

    /// Children before their parents.
    fn put_in_order(&mut self, family: &Family) -> Result<()> {
        let mut depths = Vec::new();
        for layer in &self.going {
            let (mut depth, mut at) = (0_usize, self.host.witness(&layer.path)?);
            while let Some(parent) = family.member(&at).and_then(|member| member.link.as_ref()?.witness) {
                depth += 1;
                if depth > family.members.len() {
                    break;
                }
                at = parent;
            }
            depths.push(depth);
        }
        let mut deepest: Vec<_> = std::mem::take(&mut self.going).into_iter().zip(depths).collect();
        deepest.sort_by_key(|(_, depth)| std::cmp::Reverse(*depth));
        self.going = deepest.into_iter().map(|(layer, _)| layer).collect();
        Ok(())
    }

    fn make_plan(&mut self, family: &Family) -> Result<()> {
        for layer in &self.going {
            self.plan.images.push(layer.path.clone());
            for file in layer.image.files() {
                if file.is_device() {
                    self.plan.stays.push(file.path().to_path_buf());
                    continue;
                }
                let is_last = io::names(file.as_ref()) == 1;
                self.plan.freed_bytes += if is_last { file.allocated_bytes()? } else { 0 };
                self.plan.removed.push(self.host.opened_as(file.as_ref())?);
            }
        }
        self.plan.looked_in.clone_from(&family.folders);
        self.plan.unread = family.unreadable.iter().map(|(path, _)| path.clone()).collect();
        Ok(())
    }

    /// Returns the trees that nothing needs which stays, each with the number of the image that has it. Where that is not
    /// certain, trees stay: they can be lost, and are found again.
    fn trees(&self, family: &Family) -> Result<Vec<(usize, ContentId)>> {
        let mut trees = Vec::new();
        for (nth, layer) in self.going.iter().enumerate() {
            let sealed =
                self.ledger.look(layer.image.as_ref())?.layer.frozen.and_then(|record| record.sealed);
            trees.extend(sealed.map(|id| (nth, id)));
        }
        if trees.is_empty() {
            return Ok(trees);
        }
        let mut needed = BTreeSet::new();
        for member in family.members.iter().filter(|member| !self.goes(&member.witness)) {
            let how = Opening::reading().with_access(Access::ReadShared).with_format(Some(member.format));
            let opened = open_layer(&self.host, &member.path, &how);
            let Ok(known) = opened.and_then(|layer| self.ledger.look(layer.image.as_ref())) else {
                return Ok(Vec::new());
            };
            let claimed = known.layer.claim.and_then(|claim| claim.parent_id);
            let sealed = known.layer.frozen.and_then(|record| record.sealed);
            needed.extend(claimed.into_iter().chain(sealed).map(|id| id.hex()));
        }
        trees.retain(|(_, id)| !needed.contains(&id.hex()));
        Ok(trees)
    }
}

/// Returns the whole path of what is called so; `Invalid` if that is a link: only its name would be meant.
fn own_name(host: &dyn Host, image: &Path) -> Result<PathBuf> {
    let place = host.canonical(image)?;
    let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named =
        image.file_name().map(|name| Ok::<_, Error>(host.canonical(folder)?.join(name))).transpose()?;
    if named.is_some_and(|named| named != place) {
        let what = format!("is a link: the image is {}", place.display());
        return Err(Error::invalid(what).path(image));
    }
    Ok(place)
}

/// Opens an image so that nothing of it is written, and nobody else has it open.
fn locked(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Layer> {
    let layer = open_layer(host, path, &opening.clone().with_access(Access::ReadToWrite))?;
    if layer.image.files().first().is_some_and(|file| file.is_device()) {
        return Err(Error::invalid("is a device: there is no image to remove").path(path));
    }
    for file in files(&layer)? {
        file.set_access(Access::Write).map_err(|error| error.path(path))?;
    }
    Ok(layer)
}

/// Returns the files of an image that are none of the host's devices.
fn files(layer: &Layer) -> Result<Vec<Arc<dyn File>>> {
    let files: Vec<_> = layer.image.files().into_iter().filter(|file| !file.is_device()).collect();
    if files.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "an image without a file").path(&layer.path));
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
