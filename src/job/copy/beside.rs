//! The layers that a disk shares with others, into its own folder, under names that tell whose they are.
//!
//! What stays true: the same layers get the same names each time, and the note of the copy stays when it is whole, so that what
//! was cut off before the disk lies on them finds them again.

use super::{
    Below, Copy, Making, Placed, Plan, Request, Seen, Wanted, file::is_done, leave::Leaving, places::Names,
};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Layer, Opening},
    io::{Access, Host},
    job::Progress,
    store::{Ledger, Transfer},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Tells the parts of such a copy from those of others with the same head.
const FORM: &str = "beside";

/// A copy of the layers below a disk's own, planned: nothing is written yet.
#[derive(Debug)]
pub(in crate::job) struct CopyBeside(Copy);

impl CopyBeside {
    /// Finds out which names the copies get of the layers below the first of `layers`, which are open.
    ///
    /// `Exists` where a name is taken; `Unsupported` for a layer that keeps its bytes in another file.
    pub(in crate::job) fn prepare(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        layers: Vec<Layer>,
        opening: &Opening,
    ) -> Result<Self> {
        let opening = Opening { access: Access::Read, ..opening.clone() }.with_ledger(ledger.clone());
        let chain = Chain::looked_at(layers, false, ledger)?;
        let own = chain.head()?.path.clone();
        let folder = own.parent().unwrap_or(Path::new("/")).to_path_buf();
        let seen = Seen::of(host.as_ref(), &folder)?;
        let transfer = Transfer::open(host, &folder, &own)?.made_as(FORM.to_owned());
        let plan = Plan {
            layers: placed(host.as_ref(), &chain, (&own, &folder), &transfer)?,
            copy_bytes: 0,
            free_bytes: host.free_bytes(&folder)?,
            is_resumed: transfer.is_resumed(),
            is_there: false,
            head: own,
            folder,
            removed: Vec::new(),
            stays: Vec::new(),
            lost: Vec::new(),
        };
        let copy_bytes = plan.layers.iter().skip(1).map(Placed::copy_bytes).sum();
        let plan = Plan { copy_bytes, ..plan };
        let (host, ledger, leaving, request) =
            (Arc::clone(host), ledger.clone(), Leaving::default(), Request::default());
        Ok(Self(Copy { host, ledger, opening, chain, found: None, transfer, request, leaving, seen, plan }))
    }

    /// Returns where the copies go, the topmost first.
    pub(in crate::job) fn places(&self) -> Vec<PathBuf> {
        self.0.plan.layers.iter().skip(1).filter_map(Placed::target).map(Path::to_path_buf).collect()
    }

    /// Returns the bytes to copy at most.
    pub(in crate::job) const fn copy_bytes(&self) -> u64 {
        self.0.plan.copy_bytes
    }

    /// Copies them; returns the topmost copy on the others, locked and leased. Stopped (`Interrupted`), failed or cut off at any
    /// moment, it goes on when it is asked for again.
    pub(in crate::job) fn run(self, progress: &Progress) -> Result<Below> {
        let (Self(mut copy), mut turns) = self.take_turns(progress)?;
        let (below, _) = copy.bring_below(&mut turns, progress)?;
        let below = below.ok_or_else(|| Error::invalid("has no layers below it").path(&copy.plan.head))?;
        copy.transfer.end()?;
        Ok(below)
    }
}

impl Making for CopyBeside {
    fn target(&self) -> (&Arc<dyn Host>, &Path, &Seen) {
        self.0.target()
    }

    fn wanted(&self) -> Wanted {
        self.0.wanted_from(1)
    }

    fn again(self, _: &Progress) -> Result<Self> {
        let Copy { host, ledger, opening, chain, .. } = self.0;
        Self::prepare(&host, &ledger, chain.layers().to_vec(), &opening)
    }
}

/// Says where the layers go: the first of the chain stays.
fn placed(
    host: &dyn Host,
    chain: &Chain,
    (own, folder): (&Path, &Path),
    transfer: &Transfer,
) -> Result<Vec<Placed>> {
    let (mut names, mut out) = (Names::default(), Vec::new());
    for (depth, layer) in chain.layers().iter().enumerate() {
        let files = layer.image.files();
        let [file] = files.as_slice() else {
            let what = "keeps its bytes in another file, which its copy would share";
            return Err(Error::unsupported(what).path(&layer.path));
        };
        if depth == 0 {
            let (from, to) = (own.to_path_buf(), own.to_path_buf());
            out.push(Placed::Copy { from, to, bytes: 0, is_done: true });
            continue;
        }
        let to = folder.join(names.take(name_of(layer, own), &layer.path));
        let is_done = is_done(host, &[file.witness()?], &to, transfer)?;
        if !is_done && host.is_taken(&to)? {
            return Err(Error::new(ErrorKind::Exists, "is there already").path(to));
        }
        let bytes = file.allocated_bytes()?;
        out.push(Placed::Copy { from: layer.path.clone(), to, bytes, is_done });
    }
    Ok(out)
}

/// Returns the layer's name with that of the disk's own before the suffix.
fn name_of(layer: &Layer, own: &Path) -> PathBuf {
    let mut name = layer.path.file_stem().unwrap_or_default().to_owned();
    name.push("-of-");
    name.push(own.file_stem().unwrap_or_default());
    if let Some(suffix) = layer.path.extension() {
        name.push(".");
        name.push(suffix);
    }
    PathBuf::from(name)
}
