//! A chain to another folder: what is there already, in whatever format, is linked, not copied.
//!
//! The walk goes from the child to its parent and grandparent up to the first layer whose content ID the target
//! is proven to have; the layers above it are copied, the deepest first, each seen under its name only when it is
//! whole and stands on the right parent. The matched layer stays open, locked against writers, and leased until the
//! end; it is looked at again once it is leased, and before the layer that stands on it is published. Layers that others
//! stand on get their content ID with their name, where their bytes have just passed: the next copy to that folder links
//! to them. What several copies are about to make there at once, one of them makes; the others wait, look again and link.

mod below;
mod beside;
mod file;
mod ground;
mod hierarchies;
mod known;
mod leave;
mod places;
mod reformat;
mod shelf;
mod turns;
mod twins;

pub use below::{CopyBelow, forget};
pub use hierarchies::Hierarchies;
pub use leave::Removal;
pub use reformat::{Conversion, Proved};

use super::{Progress, diff::first_difference};
use crate::{
    base::{Budget, Error, ErrorKind, Result},
    chain::{Chain, Layer, Opening, View, freeze, join, lease},
    content::ContentId,
    format::{self, Format, Image, Parts},
    io::{Access, EntryKind, File, Host},
    store::{Draft, Ledger, Purpose, Transfer, is_as_before},
};
pub(super) use beside::CopyBeside;
pub(super) use ground::Below;
use leave::Leaving;
pub(super) use places::Names;
use places::placed;
use shelf::find_match;
pub(super) use shelf::{Match, Shelf};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};
pub use turns::WAIT;
pub(super) use turns::{Making, Seen, Turns, Wanted};

/// What may be linked instead of copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// A layer whose content the target has is linked.
    #[default]
    Allow,
    /// Every layer is copied.
    Deny,
    /// The head alone is copied; what its parent shows must be there.
    ChildOnly,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What may be linked.
    pub share: Share,
    /// Whether both disks are compared, byte by byte, at the end.
    pub verify: bool,
    /// Whether the sources go then. Nothing goes that was not compared: each copied layer is, in any case.
    pub removes_source: bool,
    /// Whether files beside the sources that cannot be read are taken for images that lie on none of them.
    pub ignores_unread: bool,
    /// Turns every layer into another format; goes with [`Share::Deny`].
    pub conversion: Option<Conversion>,
}

/// What is done with one layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "action")]
pub enum Placed {
    /// Its files are copied.
    Copy {
        /// Where it is.
        #[serde(serialize_with = "crate::base::name::serialize")]
        from: PathBuf,
        /// Where it will be.
        #[serde(serialize_with = "crate::base::name::serialize")]
        to: PathBuf,
        /// Space that its files take, in bytes.
        bytes: u64,
        /// Whether an earlier run has copied it.
        is_done: bool,
    },
    /// An image of another format is made that lies on its parent's in the same way.
    Convert {
        /// Where the layer is.
        #[serde(serialize_with = "crate::base::name::serialize")]
        from: PathBuf,
        /// Where the new one will be.
        #[serde(serialize_with = "crate::base::name::serialize")]
        to: PathBuf,
        /// Its format.
        format: Format,
        /// Space that the layer's files take, in bytes.
        bytes: u64,
        /// Whether an earlier run has made it.
        is_done: bool,
    },
    /// Another image that shows the same stands in for it and all below it.
    Link {
        /// The layer at the source.
        #[serde(serialize_with = "crate::base::name::serialize")]
        from: PathBuf,
        /// What stands in.
        #[serde(serialize_with = "crate::base::name::serialize")]
        to: PathBuf,
        /// What both show, by content ID; `None` where it is the very layer and has none.
        id: Option<ContentId>,
    },
}

/// What is going to be done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The head at the source.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// The target folder.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub folder: PathBuf,
    /// What happens to the layers, the head first; those below a linked one are not touched.
    pub layers: Vec<Placed>,
    /// Bytes to copy at most.
    pub copy_bytes: u64,
    /// Space free at the target, in bytes.
    pub free_bytes: u64,
    /// Whether an earlier run left something to go on with.
    pub is_resumed: bool,
    /// Whether an earlier run has copied it all, and neither side was changed since: nothing is moved.
    pub is_there: bool,
    /// Files that are removed at the end, children first.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub removed: Vec<PathBuf>,
    /// Layers that were to be removed and stay, with the reason.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub stays: Vec<(PathBuf, String)>,
    /// Internal snapshots and bitmaps that a conversion cannot take along, as `FILE: what`.
    pub lost: Vec<String>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// As planned.
    pub plan: Plan,
    /// The head at the target.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Bytes that source and target share on the host instead.
    pub shared_bytes: u64,
    /// Whether both disks were compared, byte by byte, and found equal.
    pub is_verified: bool,
    /// Files that were removed.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub removed: Vec<PathBuf>,
    /// The layers of a conversion, the base first, each with the content ID that old and new one show.
    pub proved: Vec<Proved>,
}

impl Report {
    fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            head: PathBuf::new(),
            copied_bytes: 0,
            shared_bytes: 0,
            is_verified: false,
            removed: Vec::new(),
            proved: Vec::new(),
        }
    }
}

/// A copy that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Copy {
    host: Arc<dyn Host>,
    ledger: Ledger,
    opening: Opening,
    chain: Chain,
    /// What the deepest copied layer will stand on.
    found: Option<Match>,
    transfer: Transfer,
    request: Request,
    leaving: Leaving,
    /// What the target folder had when this was planned.
    seen: Seen,
    plan: Plan,
}

impl Copy {
    /// Opens the chain at `top`, looks at what `folder` has, and finds out what has to be copied.
    ///
    /// Fails as [`Chain::open`]; `Exists` where a name is taken by something else; `NotFound` if `ChildOnly` finds
    /// no parent; `NoSpace` if the folder's file system is too full.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{chain::Opening, job::{Progress, copy::{Copy, Request}}, store::Ledger};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let base = folder.path().join("base.qcow2");
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let (ledger, there) = (Ledger::new(Arc::clone(&host), None), folder.path().join("there"));
    /// host.make_folder(&there)?;
    /// let how = (&Opening::reading(), Request::default());
    /// let copy = Copy::prepare(&host, &ledger, (&base, &there), how.0, how.1)?;
    /// assert_eq!(copy.plan().layers.len(), 1);
    /// let done = copy.run(&Progress::default())?;
    /// assert!(done.head.ends_with("there/base.qcow2") && done.head.exists());
    /// # Ok(())
    /// # }
    /// ```
    #[expect(clippy::needless_pass_by_value, reason = "what is asked for is made for this call")]
    pub fn prepare(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        paths: (&Path, &Path),
        opening: &Opening,
        request: Request,
    ) -> Result<Self> {
        let mut in_the_way = BTreeSet::new();
        loop {
            match Self::prepare_once(host, ledger, paths, opening, request.clone()) {
                // Another copy may have given it its name in between: then it is known the next time.
                Err(error)
                    if error.kind() == ErrorKind::Exists
                        && error.file().is_some_and(|path| in_the_way.insert(path.to_path_buf())) => {}
                planned => return planned,
            }
        }
    }

    fn prepare_once(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        (top, folder): (&Path, &Path),
        opening: &Opening,
        request: Request,
    ) -> Result<Self> {
        let opening = Opening { access: Access::Read, ..opening.clone() }.with_ledger(ledger.clone());
        let chain = Chain::open(host, top, &opening)?;
        let folder = host.canonical(folder)?;
        let head = chain.head()?.path.clone();
        if host.kind(&folder)? != Some(EntryKind::Folder) {
            return Err(Error::invalid("is not a folder").path(&folder));
        }
        if request.conversion.is_none() && head.parent() == Some(&folder) {
            return Err(Error::invalid("lies in that folder already").path(&head));
        }
        let seen = Seen::of(host.as_ref(), &folder)?;
        let form = request.conversion.as_ref().map(Conversion::form).unwrap_or_default();
        let transfer = Transfer::open(host, &folder, &head)?.made_as(form);
        let there = known::depth_there(host.as_ref(), &chain, &folder, &transfer, &request)?;
        let mut transfer = if there.is_some() { transfer } else { transfer.without_ended() };
        let is_resumed = transfer.is_resumed();
        let (depth, found) = match there {
            Some(depth) => (depth, None),
            None => find_match(host, ledger, &chain, (&folder, &opening), request.share)?,
        };
        if there.is_none() {
            let (layers, to) = ((chain.layers(), depth), (folder.as_path(), request.conversion.as_ref()));
            twins::adopt(host.as_ref(), layers, found.as_ref(), to, &mut transfer)?;
        }
        let verify = request.verify || (there.is_some() && !transfer.is_vouched_for());
        let request = Request { verify, ..request };
        let leaving = if request.removes_source {
            let copied = leave::copied_depth(host.as_ref(), &chain, depth, (&folder, &transfer))?;
            leave::plan(host.as_ref(), ledger, (&chain, &folder), (copied, request.ignores_unread))?
        } else {
            Leaving::default()
        };
        let mut plan = Plan {
            head,
            layers: placed(host.as_ref(), &chain, depth, (&folder, request.conversion.as_ref()), &transfer)?,
            copy_bytes: 0,
            free_bytes: host.free_bytes(&folder)?,
            is_resumed,
            is_there: there.is_some(),
            folder,
            removed: leaving.files(),
            stays: leaving.stays.clone(),
            lost: request.conversion.as_ref().map_or(Ok(Vec::new()), |new| new.losses(&chain))?,
        };
        plan.copy_bytes = plan.layers.iter().map(Placed::copy_bytes).sum();
        plan.stand_on(found.as_ref(), chain.layers().get(depth))?;
        let (host, ledger) = (Arc::clone(host), ledger.clone());
        Ok(Self { host, ledger, opening, chain, found, transfer, request, leaving, seen, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Stopped (`Interrupted`), failed or cut off at any moment, no name at the target stands for
    /// something that is not whole, and the next [`Copy::prepare`] goes on from there.
    ///
    /// What another copy makes there at the same time is waited for, and linked; the report has the plan as it is then.
    pub fn run(self, progress: &Progress) -> Result<Report> {
        let (mut this, mut turns) = self.take_turns(progress)?;
        let purpose = this.purpose();
        let leased = lease(&this.host, this.chain.layers(), &purpose)?;
        let report = this.copy_layers(&mut turns, &purpose, progress)?;
        drop(leased);
        let done = this.end(report, progress);
        drop(turns);
        done
    }

    /// In words that can follow `is in use by dchain (pid 42): `.
    fn purpose(&self) -> Purpose {
        Purpose::job(format!("a copy of {} to {}", self.plan.head.display(), self.plan.folder.display()))
    }

    fn copy_layers(&mut self, turns: &mut Turns, purpose: &Purpose, progress: &Progress) -> Result<Report> {
        progress.begin("copy", self.plan.copy_bytes);
        let mut report = Report::new(&self.plan);
        let found = self.found.take();
        let mut below = found.map(|found| Below::leased(&self.host, found.chain, purpose)).transpose()?;
        if let Some(below) = &below {
            below.look_again(&self.ledger)?;
        }
        let copied =
            self.plan.layers.iter().filter_map(Placed::target).map(Path::to_path_buf).collect::<Vec<_>>();
        let conversion = self.request.conversion.clone();
        let mut tree = None;
        for (depth, to) in copied.iter().enumerate().rev() {
            let chain = match &conversion {
                None => self
                    .copy_layer((depth, to), below.as_ref(), &mut report, progress)
                    .map_err(|error| Draft::name_target(error, to))?,
                Some(new) => {
                    let below = (below.as_ref(), &mut tree);
                    self.convert_layer((depth, to), new, below, (&mut report, progress))
                        .map_err(|error| Draft::name_target(error, to))?
                }
            };
            below = Some(Below::leased(&self.host, chain, purpose)?);
            // The head's stands for the whole copy.
            if depth > 0 {
                turns.end(to);
            }
            report.head.clone_from(to);
        }
        Ok(report)
    }

    /// Compares if that is asked for, and takes away what is left: of the copy, and of what was to be moved.
    fn end(self, mut report: Report, progress: &Progress) -> Result<Report> {
        if self.request.verify || self.request.removes_source {
            self.verify(&report.head, progress)?;
            report.is_verified = true;
        }
        file::sweep(self.host.as_ref(), &self.plan.folder, &self.transfer)?;
        if self.request.removes_source {
            report.removed = self.leave(progress)?;
        } else {
            self.transfer.end()?;
        }
        Ok(report)
    }

    /// Removes the sources. Up to here they were locked; from here on their looks are the proof.
    fn leave(mut self, progress: &Progress) -> Result<Vec<PathBuf>> {
        self.transfer.leave(std::mem::take(&mut self.leaving.left))?;
        drop(self.chain);
        let opening = Opening { ledger: None, ..self.opening };
        let removal = Removal::new(self.host, self.ledger, opening, self.transfer);
        removal.ignoring_unread(self.request.ignores_unread).run(progress)
    }

    /// Copies one layer's files, joins it to what it stands on, and gives it its name.
    fn copy_layer(
        &mut self,
        (depth, to): (usize, &Path),
        below: Option<&Below>,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Chain> {
        let layer = self.chain.layers().get(depth).ok_or_else(|| Error::invalid("no such layer"))?.clone();
        let how = self.opening.clone().with_format(Some(layer.format()));
        let (files, before) = (layer.image.files(), (report.copied_bytes, report.shared_bytes));
        // What an earlier life brought may have been read from other bytes: it gets no ID on this one's word.
        let is_fresh = files.iter().zip(0_u8..).all(|(file, nth)| {
            let named = if nth == 0 { to.file_name() } else { file.path().file_name() };
            self.transfer.temporary(Path::new(named.unwrap_or_default())).is_none()
        });
        let look = || files.iter().map(|file| file.witness()).collect::<Result<Vec<_>>>();
        let seen = look()?;
        let (header, further) =
            files.split_first().ok_or_else(|| Error::invalid("an image without a file"))?;
        for file in further {
            let target = to.with_file_name(file.path().file_name().unwrap_or_default());
            if !file::is_done(self.host.as_ref(), &[file.witness()?], &target, &self.transfer)? {
                let draft = file::copy(&self.host, file.as_ref(), &target, &mut self.transfer, progress)?;
                draft.finish(&target, &mut self.transfer, report)?;
            }
        }
        if !file::is_done(self.host.as_ref(), &[header.witness()?], to, &self.transfer)? {
            let draft = file::copy(&self.host, header.as_ref(), to, &mut self.transfer, progress)?;
            let image = self.join(&layer, (draft.file(), to), below, depth > 0)?;
            let (copied, shared) = (report.copied_bytes - before.0, report.shared_bytes - before.1);
            let has_passed =
                is_fresh && copied + draft.moved().copied_bytes >= shared + draft.moved().shared_bytes;
            if let Some(tree) = self.tree((&layer, depth), below, has_passed, progress)? {
                if !is_as_before(&seen, &look()?) {
                    let what = "was written while it was copied and hashed: copy it again";
                    return Err(Error::busy(what).path(&layer.path));
                }
                self.seal(&image, depth, &tree)?;
            }
            drop(image);
            if let Some(below) = below {
                below.look_again(&self.ledger)?;
            }
            draft.finish(to, &mut self.transfer, report)?;
        }
        Chain::open(&self.host, to, &how)
    }

    /// Makes a copied layer stand on its parent at the target, and freezes it if something will stand on it.
    fn join(
        &self,
        layer: &Layer,
        (file, to): (Arc<dyn File>, &Path),
        below: Option<&Below>,
        is_frozen: bool,
    ) -> Result<Arc<dyn Image>> {
        let folder = to.parent().unwrap_or(Path::new("/"));
        let parts = Beside { host: self.host.as_ref(), folder, budget: self.opening.budget.clone() };
        let image = format::open(layer.format(), file, true, &parts)?;
        // What an earlier life noted of this draft was true of other bytes.
        self.ledger.forget(image.as_ref())?;
        stand(&self.ledger, (&image, to), below, is_frozen)?;
        Ok(image)
    }

    fn verify(&self, head: &Path, progress: &Progress) -> Result<()> {
        let same = self.chain.head()?.format();
        let format = self.request.conversion.as_ref().map_or(same, |new| new.format);
        let copy = Chain::open(&self.host, head, &self.opening.clone().with_format(Some(format)))?;
        if self.request.removes_source {
            leave::verify_layers(&self.chain, &copy, self.leaving.depth(), progress)?;
        }
        refuse_difference(&self.chain.view(0), &copy, progress)
    }
}

/// Has a layer that will be called `to` stand on what is `below`, and freezes it if something will stand on it.
pub(super) fn stand(
    ledger: &Ledger,
    (image, to): (&Arc<dyn Image>, &Path),
    below: Option<&Below>,
    is_frozen: bool,
) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    let mut layers = vec![Layer { path: to.to_path_buf(), is_stated: true, image: Arc::clone(image) }];
    if let Some(below) = below {
        let link = below.chain.head()?.name_in(folder);
        if image.parent().as_ref() != Some(&link) {
            image.set_parent(Some(&link))?;
        }
        layers.extend(below.chain.layers().iter().cloned());
        if let Some(known) = &below.first_look {
            join(ledger, image.as_ref(), (below.chain.head()?.image.as_ref(), known))?;
        }
    }
    // Last: the witness that is noted now vouches for the files as they are.
    if is_frozen {
        freeze(ledger, &layers)?;
    }
    ledger.know(image.as_ref())
}

/// Fails with `Corrupt`, naming the first byte, if a copy does not show what its source shows.
pub fn refuse_difference(source: &View, copy: &Chain, progress: &Progress) -> Result<()> {
    match first_difference(source, &copy.view(0), progress)? {
        None => Ok(()),
        Some(at) => {
            let what = format!("differs from its source at guest byte {at:#x}");
            Err(Error::corrupt(what).path(&copy.head()?.path))
        }
    }
}

/// Opens further files of an image only in the folder that the image is copied into.
struct Beside<'a> {
    host: &'a dyn Host,
    folder: &'a Path,
    budget: Budget,
}

impl Parts for Beside<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let name = Path::new(OsStr::from_bytes(name));
        let plain =
            name.file_name().ok_or_else(|| Error::policy("refers to a further file without a name"))?;
        self.host.open(&self.folder.join(plain), Access::Write)
    }

    fn budget(&self) -> Budget {
        self.budget.clone()
    }
}

impl Placed {
    fn copy_bytes(&self) -> u64 {
        match self {
            Self::Copy { bytes, is_done: false, .. } | Self::Convert { bytes, is_done: false, .. } => *bytes,
            _ => 0,
        }
    }

    fn source(&self) -> &Path {
        match self {
            Self::Copy { from, .. } | Self::Convert { from, .. } | Self::Link { from, .. } => from,
        }
    }

    fn target(&self) -> Option<&Path> {
        match self {
            Self::Copy { to, .. } | Self::Convert { to, .. } => Some(to),
            Self::Link { .. } => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
