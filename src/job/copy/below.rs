//! The layers below the head of a disk in use, to another folder: the head itself is somebody else's to bring.

use super::{
    Below, Copy, Making, Placed, Report, Request, Seen, Turns, Wanted, file, find_match, leave::Leaving,
    places::placed,
};
use crate::{
    base::{Error, Result},
    chain::{Chain, Layer, Opening, lease},
    io::{Access, EntryKind, Host},
    job::Progress,
    store::{Draft, Ledger, Transfer},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A copy of the layers below a head, planned: nothing is written yet.
#[derive(Debug)]
pub struct CopyBelow(Copy);

impl CopyBelow {
    /// Looks at what `folder` has, and finds out which of the layers below the head of `layers`, which are open, have to be
    /// copied. They should be sealed: else their IDs are computed here, where the folder has any image that tells its own.
    ///
    /// `Exists` where a name is taken by something else, that of the head included; `NoSpace` if the folder's file system is
    /// too full.
    pub fn prepare(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        (layers, folder): (Vec<Layer>, &Path),
        opening: &Opening,
    ) -> Result<Self> {
        let opening = Opening { access: Access::Read, ..opening.clone() }.with_ledger(ledger.clone());
        let chain = Chain::looked_at(layers, true, ledger)?;
        let (folder, head) = (host.canonical(folder)?, chain.head()?.path.clone());
        if host.kind(&folder)? != Some(EntryKind::Folder) {
            return Err(Error::invalid("is not a folder").path(&folder));
        }
        if head.parent() == Some(&folder) {
            return Err(Error::invalid("lies in that folder already").path(&head));
        }
        let (request, seen) = (Request::default(), Seen::of(host.as_ref(), &folder)?);
        let transfer = Transfer::open(host, &folder, &head)?.without_ended();
        let (depth, found) = find_match(host, ledger, &chain, (&folder, &opening), request.share)?;
        let mut plan = super::Plan {
            head,
            layers: placed(host.as_ref(), &chain, depth, (&folder, None), &transfer)?,
            copy_bytes: 0,
            free_bytes: host.free_bytes(&folder)?,
            is_resumed: transfer.is_resumed(),
            is_there: false,
            folder,
            removed: Vec::new(),
            stays: Vec::new(),
            lost: Vec::new(),
        };
        plan.copy_bytes = plan.layers.iter().skip(1).map(Placed::copy_bytes).sum();
        plan.stand_on(found.as_ref(), chain.layers().get(depth))?;
        let (host, ledger, leaving) = (Arc::clone(host), ledger.clone(), Leaving::default());
        Ok(Self(Copy { host, ledger, opening, chain, found, transfer, request, leaving, seen, plan }))
    }

    /// Returns where the head goes, by its own name there.
    pub fn place(&self) -> Option<&Path> {
        self.0.plan.layers.first().and_then(Placed::target)
    }

    /// Returns what happens to the layers below the head, the topmost first.
    pub fn layers(&self) -> &[Placed] {
        self.0.plan.layers.get(1..).unwrap_or_default()
    }

    /// Returns the bytes to copy at most.
    pub const fn copy_bytes(&self) -> u64 {
        self.0.plan.copy_bytes
    }

    /// Does it; returns what stands in for the topmost of them then, locked and leased, and how many bytes were copied. Stopped
    /// (`Interrupted`), failed or cut off at any moment, it goes on when it is asked for again; what is whole by then stays.
    pub(in crate::job) fn run(self, progress: &Progress) -> Result<(Option<Below>, u64)> {
        let (Self(mut copy), mut turns) = self.take_turns(progress)?;
        let (below, report) = copy.bring_below(&mut turns, progress)?;
        // They are found by what they show from here on.
        copy.transfer.close()?;
        Ok((below, report.copied_bytes))
    }
}

impl Copy {
    /// Copies the layers below the head; returns what stands in for the topmost of them then, locked and leased.
    pub(super) fn bring_below(
        &mut self,
        turns: &mut Turns,
        progress: &Progress,
    ) -> Result<(Option<Below>, Report)> {
        progress.begin("copy", self.plan.copy_bytes);
        let mut report = Report::new(&self.plan);
        let purpose = self.purpose();
        let _leased = lease(&self.host, self.chain.layers(), &purpose)?;
        let found = self.found.take();
        let mut below = found.map(|found| Below::leased(&self.host, found.chain, &purpose)).transpose()?;
        if let Some(below) = &below {
            below.look_again(&self.ledger)?;
        }
        let places: Vec<PathBuf> =
            self.plan.layers.iter().filter_map(Placed::target).map(Path::to_path_buf).collect();
        for (depth, to) in places.iter().enumerate().skip(1).rev() {
            let copied = self.copy_layer((depth, to), below.as_ref(), &mut report, progress);
            let chain = copied.map_err(|error| Draft::name_target(error, to))?;
            below = Some(Below::leased(&self.host, chain, &purpose)?);
            turns.end(to);
        }
        file::sweep(self.host.as_ref(), &self.plan.folder, &self.transfer)?;
        Ok((below, report))
    }
}

impl Making for CopyBelow {
    fn target(&self) -> (&Arc<dyn Host>, &Path, &Seen) {
        self.0.target()
    }

    fn wanted(&self) -> Wanted {
        self.0.wanted_from(1)
    }

    fn again(self, _: &Progress) -> Result<Self> {
        let Copy { host, ledger, opening, chain, plan, .. } = self.0;
        Self::prepare(&host, &ledger, (chain.layers().to_vec(), plan.folder.as_path()), &opening)
    }
}

/// Takes away what a copy of `head`, or of the layers below it, that is given up has in the making in `folder`. Layers that are
/// whole stay: they are sealed, and the next copy links to them.
pub fn forget(host: &Arc<dyn Host>, folder: &Path, head: &Path) -> Result<()> {
    let transfer = Transfer::open(host, folder, head)?;
    if !transfer.is_resumed() {
        return Ok(());
    }
    file::sweep(host.as_ref(), folder, &transfer)?;
    transfer.close()
}
