//! A disk in use goes to another store: the layers below its head by content ID, the head by the mirror of a fold.
//!
//! ```text
//!   seal what has no ID ─► link or copy the layers below ─► fold the head into a new image on them ─► the disk is there
//!        (nothing of the disk changes)                        (guests write to both places)
//! ```
//!
//! What stays true: until the fold's record the disk is whole where it was, afterwards it is whole in the other store.
//! Whatever ends it before, the layers that are whole there stay: they are sealed, so that the next copy links to them. What is
//! in the making goes with the job that is given up.

use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Layer, Opening, Standing, lease, lineage},
    content::{ContentId, Tree},
    format::Format,
    io::{Access, EntryKind, Host},
    job::{
        Progress,
        consolidate::{LiveConsolidation, Move, NewImage, aside, kept_options, too_many_aside},
        copy::{CopyBelow, Placed, forget},
        live::LiveDisk,
        seal,
    },
    store::{Draft, Journal, Lease, Ledger, Purpose},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How often it is looked what the store has, where another job has brought the same layer meanwhile.
const ATTEMPTS: usize = 3;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The folder that the disk goes to.
    pub store: PathBuf,
    /// The new head's format; `None` is that of the old one.
    pub format: Option<Format>,
    /// The new head's options; without any those of the old one, where it is of that format.
    pub options: Vec<(String, String)>,
    /// Whether the old head goes at the end, and of the layers below it those that the store has by then and nobody else
    /// needs; else the old head is kept under another name.
    pub removes_source: bool,
}

/// What is going to be done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The disk's head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub top: PathBuf,
    /// The store.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub store: PathBuf,
    /// The new head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub result: PathBuf,
    /// Layers whose content ID has to be found first: until then nobody knows which of them the store has.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub unsealed: Vec<PathBuf>,
    /// What happens to the layers below the head, the topmost first, where all are sealed.
    pub layers: Vec<Placed>,
    /// Bytes of layers to copy at most.
    pub copy_bytes: u64,
    /// Space that is free at the store, in bytes.
    pub free_bytes: u64,
    /// The name that the old head gets, if it is kept.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub aside: Option<PathBuf>,
    /// Files that go, if nobody else needs them by then.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub removed: Vec<PathBuf>,
    /// Internal snapshots that are not taken along, as `FILE: snapshot NAME`: layers that have some stay, and all below them.
    pub lost: Vec<String>,
}

/// A move of a disk in use that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Migration {
    host: Arc<dyn Host>,
    disk: Arc<LiveDisk>,
    opening: Opening,
    ledger: Ledger,
    request: Request,
    plan: Plan,
}

/// What stands in for the layers below the head, open.
#[derive(Clone, Debug, Default)]
pub struct Below {
    /// The layers, newest first.
    layers: Vec<Layer>,
    /// Layers of the disk that the store has.
    there: Vec<PathBuf>,
    /// Nobody takes them away while the head is on the way.
    lease: Option<Arc<Lease>>,
}

impl Below {
    /// Returns where the topmost of them is.
    pub fn place(&self) -> Option<&Path> {
        self.layers.first().map(|layer| layer.path.as_path())
    }
}

impl Migration {
    /// Finds out what has to be done with a disk in use, whose layers were opened [`Opening::for_live_use`].
    ///
    /// `Invalid` if the store is no folder, or the disk lies there; `Exists` if a name is taken there, or none is left for the
    /// old head; `NoSpace` if it is too full for the layers.
    pub fn prepare(
        host: &Arc<dyn Host>,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        request: &Request,
    ) -> Result<Self> {
        let mut migration = Self::again(host, disk, opening, request)?;
        let (chain, plan) = (disk.chain(), &mut migration.plan);
        if plan.top.parent() == Some(&plan.store) {
            return Err(Error::invalid("lies in that folder already").path(&plan.top));
        }
        if host.is_taken(&plan.result)? {
            return Err(Error::new(ErrorKind::Exists, "is there already").path(&plan.result));
        }
        if plan.aside.is_none() && plan.removed.is_empty() {
            return Err(too_many_aside(&plan.top));
        }
        let own = chain.layers().get(1..).unwrap_or_default();
        let is_unsealed = |(_, standing): &(&Layer, &Standing)| standing.known.proven().is_none();
        let standings = lineage(&migration.ledger, own)?;
        let unsealed = own.iter().zip(&standings).filter(is_unsealed);
        plan.unsealed = unsealed.map(|(layer, _)| layer.path.clone()).collect();
        if plan.unsealed.is_empty() && !own.is_empty() {
            let of = (chain.layers().to_vec(), plan.store.as_path());
            let copy = CopyBelow::prepare(host, &migration.ledger, of, opening)?;
            (plan.layers, plan.copy_bytes) = (copy.layers().to_vec(), copy.copy_bytes());
        } else {
            let files = own.iter().flat_map(|layer| layer.image.files());
            plan.copy_bytes = files.map(|file| file.allocated_bytes()).sum::<Result<u64>>()?;
        }
        Ok(migration)
    }

    /// The same for one that was cut off, of which the disk or the store may have something by now.
    pub fn again(
        host: &Arc<dyn Host>,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        request: &Request,
    ) -> Result<Self> {
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        if host.kind(&request.store)? != Some(EntryKind::Folder) {
            let what = "is no folder of this host, where alone a disk in use can live (`dchain copy` brings frozen layers \
                        to other stores)";
            return Err(Error::invalid(what).path(&request.store));
        }
        let (chain, store) = (disk.chain(), host.canonical(&request.store)?);
        let top = chain.head()?.path.clone();
        let (mut removed, mut lost, mut free) = (Vec::new(), Vec::new(), None);
        for layer in chain.layers() {
            let snapshots = layer.image.details()?.snapshots;
            // What the layers below the head have goes with them, where they are copied.
            if layer.path == top {
                lost.extend(snapshots.iter().map(|s| format!("{}: snapshot {}", top.display(), s.name)));
            }
            if !request.removes_source || !snapshots.is_empty() {
                break;
            }
            removed.push(layer.path.clone());
        }
        for name in aside(&top).filter(|_| removed.is_empty()) {
            if host.kind(&name)?.is_none() {
                free = Some(name);
                break;
            }
        }
        let plan = Plan {
            result: store.join(top.file_name().unwrap_or_default()),
            unsealed: Vec::new(),
            layers: Vec::new(),
            copy_bytes: 0,
            free_bytes: host.free_bytes(&store)?,
            aside: free,
            removed,
            lost,
            top,
            store: store.clone(),
        };
        let request = Request { store, ..request.clone() };
        let (host, disk) = (Arc::clone(host), Arc::clone(disk));
        Ok(Self { host, disk, opening: opening.clone(), ledger, request, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns whether it is about that disk, and the disk has the head that it had when this was planned.
    pub fn is_of(&self, disk: &Arc<LiveDisk>) -> Result<bool> {
        Ok(Arc::ptr_eq(&self.disk, disk) && disk.chain().head()?.path == self.plan.top)
    }

    /// Makes sure that each layer below the head has its content ID; returns them, the topmost first.
    ///
    /// Whoever moves several disks that share layers does this for one after the other: a layer gets one epoch.
    pub fn seal(&self, progress: &Progress) -> Result<Vec<ContentId>> {
        let chain = self.disk.chain();
        let own = chain.layers().get(1..).unwrap_or_default();
        let sealed = seal::prove(&self.ledger, own, progress)?;
        Ok(sealed.iter().map(|sealed| sealed.id).collect())
    }

    /// Brings the layers below the head to the store, and opens what stands in for them there. Nothing of the disk changes.
    /// Stopped (`Interrupted`), failed or cut off at any moment, it goes on when it is asked for again.
    pub fn bring(&self, progress: &Progress) -> Result<Below> {
        let layers = self.disk.chain().layers().to_vec();
        let own = layers.get(1..).unwrap_or_default();
        if own.is_empty() {
            return Ok(Below::default());
        }
        let ids = self.seal(progress)?;
        let mut attempt = 1;
        let top = loop {
            let of = (layers.clone(), self.plan.store.as_path());
            let copied = CopyBelow::prepare(&self.host, &self.ledger, of, &self.opening)
                .and_then(|copy| copy.run(progress));
            match copied {
                // Another job may have brought it just now: then it is found by what it shows.
                Err(error) if error.kind() == ErrorKind::Exists && attempt < ATTEMPTS => attempt += 1,
                copied => break copied?.0,
            }
        };
        let held = top.ok_or_else(|| Error::invalid("nothing stands in for what lies below the head"))?;
        let top = held.chain.head()?.path.clone();
        let (below, lease) = self.open(&top)?;
        drop(held);
        let there = seal::prove(&self.ledger, &below, progress)?;
        if there.first().map(|sealed| sealed.id) != ids.first().copied() {
            return Err(Error::corrupt("does not show what the disk's own layer shows").path(&top));
        }
        let there = if self.request.removes_source { have(own, &ids, &below, progress)? } else { Vec::new() };
        Ok(Below { layers: below, there, lease: Some(lease) })
    }

    /// Opens again what stands in for the layers below the head, for a move that was cut off while its head was on the way.
    pub fn reopen(&self, place: Option<&Path>) -> Result<Below> {
        let (layers, lease) = place.map(|place| self.open(place)).transpose()?.unzip();
        Ok(Below { layers: layers.unwrap_or_default(), there: Vec::new(), lease })
    }

    fn open(&self, place: &Path) -> Result<(Vec<Layer>, Arc<Lease>)> {
        let how = self
            .opening
            .clone()
            .with_access(Access::ReadToWrite)
            .with_format(None)
            .with_ledger(self.ledger.clone());
        let layers = Chain::open(&self.host, place, &how.for_live_use())?.layers().to_vec();
        let Plan { top, store, .. } = &self.plan;
        let purpose = Purpose::job(format!("a move of {} to {}", top.display(), store.display()));
        let lease = lease(&self.host, &layers, &purpose)?;
        Ok((layers, Arc::new(lease)))
    }

    /// Plans what brings the head: guests' writes reach both places from its beginning on.
    pub fn fold(&self, below: &Below) -> Result<LiveConsolidation> {
        let chain = self.disk.chain();
        let head = chain.head()?;
        let format = self.request.format.unwrap_or_else(|| head.format());
        let mut options = self.request.options.clone();
        if options.is_empty() && format == Format::Qcow2 && head.format() == format {
            options = kept_options(head.image.as_ref())?;
        }
        let new = NewImage { path: self.plan.result.clone(), format: Some(format), options };
        let leaves = self.request.removes_source.then(|| below.there.clone());
        let moves = Move { below: below.layers.clone(), leaves, lease: below.lease.clone() };
        LiveConsolidation::prepare_move(&self.host, &self.disk, &self.opening, new, moves)
    }

    /// Takes away what is in the making at the store; layers that are whole there stay.
    pub fn give_up(&self) -> Result<()> {
        let Plan { top, store, result, .. } = &self.plan;
        forget(&self.host, store, top)?;
        if Journal::find(&self.host, top)?.is_some() {
            return Ok(());
        }
        // A kill may have come between its making and the journal that names it.
        match self.host.remove(&Draft::name_from(result, top)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Returns which of the disk's own layers the store has, by the bytes that are there.
fn have(own: &[Layer], ids: &[ContentId], below: &[Layer], progress: &Progress) -> Result<Vec<PathBuf>> {
    let (chain, mut tree) = (Chain::of(below.to_vec(), false), None::<Tree>);
    let mut there = BTreeSet::new();
    for depth in (0..below.len()).rev() {
        let hashed = match tree.take() {
            None => seal::full_tree(&chain.view(depth), progress)?,
            Some(under) => seal::tree_over(&chain.view(depth), under, progress)?,
        };
        there.insert(hashed.tree.id().hex());
        tree = Some(hashed.tree);
    }
    let both = own.iter().zip(ids).filter(|(_, id)| there.contains(&id.hex()));
    Ok(both.map(|(layer, _)| layer.path.clone()).collect())
}

#[cfg(test)]
mod tests;
