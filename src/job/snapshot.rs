//! A new head on a frozen layer: snapshots, and going back to one.
//!
//! Both make a new, empty child and publish it whole: a snapshot under a name of its own, a revert under the old
//! head's name, in one step.

mod live;

mod revert;

pub use live::{Disk, Heads, LiveTaken, forget_intended, snapshot_live};

use crate::{
    base::{Error, Guard, Result},
    chain::{Chain, Family, Layer, Opening, freeze, join, refuse_cut_off, refuse_leased},
    format::{self, Creation, Format, NoParts},
    io::{Access, File, Host, Likeness},
    job::{create::options_on, own},
    store::{Draft, Known, Ledger, Publish},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a snapshot made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Taken {
    /// The layer that is frozen now.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub frozen: PathBuf,
    /// The new head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// The parent's name in the new head's header.
    pub name: String,
    /// Size of the disk in bytes.
    pub size: u64,
}

/// Freezes the image at `top`; `new` becomes the head: a qcow2 image made with `options`.
///
/// `Exists` if `new` is there; `Busy` if somebody writes `top`.
///
/// ```
/// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
/// # use std::sync::Arc;
/// use deltachain::{chain::{Chain, Opening}, job::snapshot::snapshot, store::Ledger};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
/// let base = folder.path().join("base.qcow2");
/// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
/// create(&host, &base, &new, &Opening::reading())?;
/// let opening = Opening::writing().with_ledger(Ledger::new(Arc::clone(&host), None));
/// let new = folder.path().join("new.qcow2");
/// let taken = snapshot(&host, &base, &new, &[], &opening)?;
/// assert_eq!(taken.name, "base.qcow2");
/// assert_eq!(Chain::open(&host, &new, &opening)?.layers().len(), 2);
/// # Ok(())
/// # }
/// ```
pub fn snapshot(
    host: &Arc<dyn Host>,
    top: &Path,
    new: &Path,
    options: &[(String, String)],
    opening: &Opening,
) -> Result<Taken> {
    snapshot_as(host, top, (new, Format::Qcow2), options, opening)
}

/// The same with a head in a stated format, one that knows parents.
pub fn snapshot_as(
    host: &Arc<dyn Host>,
    top: &Path,
    (new, format): (&Path, Format),
    options: &[(String, String)],
    opening: &Opening,
) -> Result<Taken> {
    if host.is_taken(new)? {
        return Err(Error::new(crate::base::ErrorKind::Exists, "is there already").path(new));
    }
    // The write lock is the proof that nobody goes on writing what is about to be frozen.
    let chain = Chain::open(host, top, &Opening { access: Access::Write, ..opening.clone() })?;
    let frozen = chain.head()?;
    if let Some(ledger) = &opening.ledger {
        refuse_cut_off(ledger, &frozen.path)?;
    }
    // The new head is the disk from now on; its parent may be read-only, it is not.
    let likeness = frozen.likeness().map(Likeness::at_work);
    let child = Child { target: new, format, options, how: Publish::New, likeness };
    let name = child.publish(host, chain.layers(), || frozen_by(opening.ledger.as_ref(), chain.layers()))?;
    Ok(Taken { frozen: frozen.path.clone(), head: new.to_path_buf(), name, size: frozen.size() })
}

/// An empty child in the making.
struct Child<'a> {
    target: &'a Path,
    format: Format,
    options: &'a [(String, String)],
    how: Publish,
    /// Whose it is, and who may use it.
    likeness: Option<Likeness>,
}

impl Child<'_> {
    /// Makes it on the topmost of `layers` and gives it its name; returns the parent's name in it.
    ///
    /// The parent is frozen first, durably, by `freeze`; the child is seen by nobody before it is whole.
    fn publish(
        &self,
        host: &Arc<dyn Host>,
        layers: &[Layer],
        freeze: impl FnOnce() -> Result<Option<(Ledger, Known)>>,
    ) -> Result<String> {
        let parent = layers.first().ok_or_else(|| Error::invalid("a chain without layers"))?;
        let draft = Draft::new(host, self.target)?;
        if let Some(likeness) = self.likeness {
            likeness.give(draft.file().as_ref());
        }
        let home = host.opened_as(draft.file().as_ref())?;
        let link = parent.name_in(home.parent().unwrap_or(Path::new("/")));
        let name = String::from_utf8_lossy(&link.name).into_owned();
        let images = layers.iter().map(|layer| layer.image.as_ref());
        let options = options_on(images, self.format, self.options);
        let creation = Creation { size: parent.size(), parent: Some(link), options };
        let image = format::create(self.format, draft.file(), &creation, &NoParts)
            .map_err(|e| e.renamed(draft.path(), self.target))?;
        if let Some((ledger, known)) = freeze()? {
            join(&ledger, image.as_ref(), (parent.image.as_ref(), &known))?;
        }
        drop(image);
        draft.publish(self.target, self.how)?;
        Ok(name)
    }
}

/// Freezes the topmost of `layers` where records are kept.
fn frozen_by(ledger: Option<&Ledger>, layers: &[Layer]) -> Result<Option<(Ledger, Known)>> {
    let Some(ledger) = ledger else { return Ok(None) };
    Ok(freeze(ledger, layers)?.map(|known| (ledger.clone(), known)))
}

/// What going back to a layer gives up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The head, whose own bytes are given up.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// Space that the head takes now, in bytes.
    pub head_bytes: u64,
    /// The layer that the new head starts from.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub layer: PathBuf,
    /// Size of the disk then, in bytes.
    pub size: u64,
    /// Layers between them: they stay, and nothing of this chain refers to them any more.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub left: Vec<PathBuf>,
}

/// A revert that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Revert {
    chain: Arc<Chain>,
    depth: usize,
    plan: Plan,
    ledger: Option<Ledger>,
}

impl Revert {
    /// Opens the chain at `top` and finds `layer` in it.
    ///
    /// `Invalid` if it is not below the head; `Busy` if the head is in use or another image lies on it.
    pub fn prepare(host: &Arc<dyn Host>, top: &Path, layer: &Path, opening: &Opening) -> Result<Self> {
        let chain = Chain::open(host, top, &Opening { access: Access::Write, ..opening.clone() })?;
        let wanted = host.canonical(layer)?;
        let found = chain.layers().iter().position(|l| l.path == wanted).filter(|at| *at > 0);
        let Some(depth) = found else {
            let what = format!("{} is not one of the layers below it", wanted.display());
            return Err(Error::invalid(what).path(&chain.head()?.path));
        };
        Self::of(host, Arc::new(chain), depth, opening)
    }

    /// The same for a chain that is open for writing, and its layer at `depth`.
    pub fn of(host: &Arc<dyn Host>, chain: Arc<Chain>, depth: usize, opening: &Opening) -> Result<Self> {
        let head = chain.head()?;
        refuse_children(host, head)?;
        let wanted = chain.layers().get(depth).filter(|_| depth > 0).map(|layer| layer.path.clone());
        let wanted = wanted
            .ok_or_else(|| Error::invalid("is the head, which is what is given up").path(&head.path))?;
        let head_bytes = head.image.files().iter().map(|f| f.allocated_bytes()).sum::<Result<u64>>()?;
        let plan = Plan {
            head: head.path.clone(),
            head_bytes,
            layer: wanted,
            size: chain.layers().get(depth).map_or(0, Layer::size),
            left: chain.layers().iter().take(depth).skip(1).map(|l| l.path.clone()).collect(),
        };
        Ok(Self { chain, depth, plan, ledger: opening.ledger.clone() })
    }

    /// Returns what is given up.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it: an empty child of the layer takes the head's name in one step.
    pub fn run(self, host: &Arc<dyn Host>, options: &[(String, String)]) -> Result<Plan> {
        self.replace(host, options)?;
        self.forget(host.as_ref())?;
        Ok(self.plan)
    }

    /// Returns the layers that stay.
    fn lower(&self) -> &[Layer] {
        self.chain.layers().get(self.depth..).unwrap_or_default()
    }

    fn replace(&self, host: &Arc<dyn Host>, options: &[(String, String)]) -> Result<()> {
        let head = self.chain.head()?;
        let likeness = head.likeness();
        let child =
            Child { target: &head.path, format: self.format(), options, how: Publish::Replace, likeness };
        child.publish(host, self.lower(), || frozen_by(self.ledger.as_ref(), self.lower())).map(drop)
    }

    /// What was noted of the old head is not said of the new one; and the files in which it kept its bytes, which were
    /// its own, go with it. One that stays all the same is in nobody's way.
    fn forget(&self, host: &dyn Host) -> Result<()> {
        let head = self.chain.head()?;
        for file in further_files(head) {
            let removed = host.opened_as(file.as_ref()).and_then(|path| host.remove(&path));
            if let Err(error) = removed {
                tracing::warn!(%error, "a file of the head that was given up stays");
            }
        }
        self.ledger.as_ref().map_or(Ok(()), |ledger| ledger.forget_replaced(&head.path, head.image.as_ref()))
    }
}

/// Refuses an image that others in the folders of its files lie on or keep their bytes in, or that a job which was cut off
/// names.
pub(super) fn refuse_children(host: &Arc<dyn Host>, layer: &Layer) -> Result<()> {
    refuse_cut_off(&Ledger::new(Arc::clone(host), None), &layer.path)?;
    refuse_dependants(host, layer)
}

/// Refuses an image that others in the folders of its files lie on or keep their bytes in, or that somebody has leased.
fn refuse_dependants(host: &Arc<dyn Host>, layer: &Layer) -> Result<()> {
    Looked::default().refuse_dependants(host, layer)
}

/// Folders that were looked at, each once. What was seen there is a little old: that it refuses an image is believed only when
/// it was looked again, and who changes files there forgets it.
#[derive(Debug, Default)]
pub(crate) struct Looked(BTreeMap<Vec<PathBuf>, Family>);

impl Looked {
    /// Refuses an image that others in the folders of its files lie on or keep their bytes in.
    pub(crate) fn refuse_dependants(&mut self, host: &Arc<dyn Host>, layer: &Layer) -> Result<()> {
        let folder_of = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let mut folders = vec![folder_of(&layer.path)];
        for file in further_files(layer) {
            folders.push(folder_of(&host.canonical(file.path())?));
        }
        if self.0.get(&folders).is_some_and(|seen| refuse_dependants_in(seen, host, layer).is_ok()) {
            return Ok(());
        }
        let family = Family::scan(host.as_ref(), &folders)?;
        let refused = refuse_dependants_in(&family, host, layer);
        self.0.insert(folders, family);
        refused
    }

    /// Files have changed: what was seen is no help any more.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

fn further_files(layer: &Layer) -> impl Iterator<Item = Arc<dyn File>> {
    layer.image.files().into_iter().skip(1).filter(|file| !file.is_device())
}

fn refuse_dependants_in(family: &Family, host: &Arc<dyn Host>, layer: &Layer) -> Result<()> {
    let file = host.witness(&layer.path)?;
    if let Some(child) = family.children_of(&file).next().filter(|_| Guard::Children.trips(true)) {
        let what = format!("{} lies on it", child.path.display());
        return Err(Error::busy(what).subject(&child.path).path(&layer.path));
    }
    if let Some(user) = family.users_of(&file, &layer.path).next() {
        let what = format!("{} keeps its bytes in it", user.path.display());
        return Err(Error::busy(what).subject(&user.path).path(&layer.path));
    }
    for file in further_files(layer) {
        if let Some(why) = own::why_shared(family, &file.witness()?, &layer.path) {
            return Err(why.path(&layer.path));
        }
    }
    refuse_leased(host.as_ref(), std::slice::from_ref(layer))
}
