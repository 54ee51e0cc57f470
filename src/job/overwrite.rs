//! A disk written into an image that is there already.
//!
//! What that image showed is given up, so it is asked about first: nothing may lie on it or keep its bytes in it, and the
//! plan names what goes. It is locked from the plan on.

use super::{
    Progress,
    convert::{Converted, Filling, fill, refuse_unpacked},
    snapshot::refuse_children,
};
use crate::{
    base::{Error, GuestOffset, Result},
    chain::{Chain, Layer, Opening, open_layer},
    disk::Disk,
    format::Format,
    io::{Access, Host},
    store::Ledger,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much of the map is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// What is going to be given up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The image that is written.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of its disk in bytes.
    pub size: u64,
    /// Bytes of data that it holds, none of which it shows afterwards.
    pub given_up_bytes: u64,
    /// Whether it was frozen as the parent of others, wherever they are: its record goes.
    pub is_frozen: bool,
    /// Persistent bitmaps that will be marked as in use, because nothing here keeps them up.
    pub bitmaps_stale: Vec<String>,
}

/// An overwriting that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Overwrite {
    layer: Layer,
    ledger: Ledger,
    plan: Plan,
    is_packed: bool,
}

impl Overwrite {
    /// Opens the image at `path`, which is of that format, for writing, and finds out what it holds. Its clusters are going to
    /// be compressed if `is_packed`.
    ///
    /// `Busy` if it is in use, if `source` reads it, or if another image of its folder lies on it; `Invalid` if it is of
    /// another format or smaller than `source`; `Unsupported` if it has a parent; `Policy` if a part of it is never written.
    pub fn prepare(
        host: &Arc<dyn Host>,
        source: &Chain,
        (path, format, is_packed): (&Path, Format, bool),
        opening: &Opening,
    ) -> Result<Self> {
        // Only looked at: opening a file for writing as what it is not would change it.
        let beside = opening.clone().with_access(Access::ReadShared).with_format(None);
        let beside = open_layer(host, path, &beside)?;
        refuse_source(source, &beside, path)?;
        let found = beside.format();
        drop(beside);
        if found != format {
            return Err(
                Error::invalid(format!("is a {found} image, and is to be written as {format}")).path(path)
            );
        }
        let layer =
            open_layer(host, path, &opening.clone().with_access(Access::Write).with_format(Some(format)))?;
        if layer.image.parent().is_some() {
            return Err(Error::unsupported("has a parent: only a flat image can be filled").path(path));
        }
        refuse_children(host, &layer)?;
        layer.image.check_fillable()?;
        let details = layer.image.details()?;
        refuse_unpacked(is_packed && !details.packs, format).map_err(|e| e.path(path))?;
        if layer.size() < source.size() {
            let what = format!("a disk of {} bytes has no room for {} bytes", layer.size(), source.size());
            return Err(Error::invalid(what).path(path));
        }
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        let bitmaps = details.bitmaps.into_iter();
        let plan = Plan {
            image: path.to_path_buf(),
            format,
            size: layer.size(),
            given_up_bytes: held_bytes(&layer)?,
            is_frozen: ledger.look(layer.image.as_ref())?.layer.frozen.is_some(),
            bitmaps_stale: bitmaps.filter(|b| b.is_auto && !b.is_in_use).map(|b| b.name).collect(),
        };
        Ok(Self { layer, ledger, plan, is_packed })
    }

    /// Returns what is going to be given up.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it: the image shows what `source` shows, and zeros behind.
    pub fn run(&self, source: &Chain, progress: &Progress) -> Result<Converted> {
        let image = self.layer.image.as_ref();
        if self.plan.is_frozen {
            // Children elsewhere stand on what it shows now: its epoch and seal are durably gone first.
            self.ledger.release(image)?;
        }
        self.ledger.know(image)?;
        let filling = Filling { is_blank: false, is_packed: self.is_packed };
        let written_bytes = fill(&source.view(0), image, filling, progress)?;
        image.flush()?;
        let Plan { image, format, size, .. } = self.plan.clone();
        Ok(Converted { image, format, size, written_bytes })
    }
}

/// Refuses a target of which a file is read at the same time: with a shared access no lock would tell.
fn refuse_source(source: &Chain, target: &Layer, path: &Path) -> Result<()> {
    let head = &source.head()?.path;
    let mut written = Vec::new();
    for file in target.image.files() {
        written.push(file.witness()?);
    }
    for file in source.layers().iter().flat_map(|layer| layer.image.files()) {
        let read = file.witness()?;
        if written.iter().any(|file| file.same_file(&read)) {
            let what = format!("is what this command reads: {} is it, or lies on it", head.display());
            return Err(Error::busy(what).subject(head).path(path));
        }
    }
    Ok(())
}

fn held_bytes(layer: &Layer) -> Result<u64> {
    let mut held = 0;
    for stride in GuestOffset::new(0).range(layer.size()).pieces(STRIDE_BYTES) {
        let mut extents = Vec::new();
        layer.image.map(stride, &mut extents)?;
        held += extents.iter().filter(|e| e.state.is_data()).map(|e| e.range.bytes).sum::<u64>();
    }
    Ok(held)
}
