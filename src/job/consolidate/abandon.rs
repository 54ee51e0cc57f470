//! Giving up a consolidation that was cut off: the disk stays on the layers that it has, and the journal goes.
//!
//! Until the record TOP's view is right whatever the target holds, since the run hides all that was changed there:
//! so a job can be given up at any point before it, and nothing that the guest wrote is lost. What cannot be
//! brought back, once the target was changed, is what the layers below TOP showed by themselves: from then on
//! their old IDs must not stand for it. After the record the name opens the result: such a job can only be ended.
//!
//! At each step TOP opens, with the journal or without, so that a crash leaves a job to be given up again, or to go
//! on with: first the journal says that nothing is done, then the target has the identity that its child's header knows,
//! then TOP is a head again, then from TOP down each layer of the run
//! gets a new epoch, loses its seal, and claims nothing of its parent, then they claim those epochs, and then the
//! journal goes. No layer claims nothing while it has the seal of what it showed: it would open, and show something else.

use super::{
    bitmaps,
    ending::{Ending, refuse_foreign},
    moving,
    plan::folder_of,
    run::{gone, resolve},
};
use crate::{
    base::{Error, ErrorKind, GuestOffset, Result},
    chain::{Layer, Opening, join, open_layer},
    io::{Access, Host},
    store::{Epoch, Journal, Ledger, Position, Trust},
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What giving a job up comes to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Abandoned {
    /// The disk whose job it is; it goes on showing what it shows. `None`: the journal cannot be relied on, so that nobody
    /// can tell whose it is, and a disk that relied on it may no longer open.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub top: Option<PathBuf>,
    /// The journal, which goes.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub journal: PathBuf,
    /// Images in the making that go.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub removed: Vec<PathBuf>,
    /// Layers that can no longer be restored by themselves, since the target was changed.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub lost: Vec<PathBuf>,
}

/// A consolidation that is going to be given up: nothing is changed yet.
#[derive(Debug)]
pub struct Abandonment {
    ending: Ending,
    plan: Abandoned,
}

impl Abandonment {
    /// Looks at the job that was cut off and that names the image at `path`, or whose journal is that file.
    ///
    /// `NotFound` if there is none, or if its target, or the store that a move may have brought the disk to, is not at its
    /// place (named by its file, a journal goes whatever is left of the job); `Busy` if its record has landed: then it can
    /// only be ended.
    pub fn prepare(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Self> {
        let path = resolve(host.as_ref(), path)?;
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        let ending =
            Ending { host: Arc::clone(host), ledger, opening: opening.clone(), ignores_unread: false };
        let is_by_file = Journal::is_name(&path);
        let journal = if is_by_file {
            let foreign =
                |journal: &Journal| refuse_foreign(host.as_ref(), journal, &opening.policy, &|_| true);
            match Journal::open_file(host, &path, Access::ReadShared).and_then(|j| foreign(&j).map(|()| j)) {
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Policy
                    ) =>
                {
                    let plan = Abandoned { top: None, journal: path, removed: Vec::new(), lost: Vec::new() };
                    return Ok(Self { ending, plan });
                }
                opened => opened?,
            }
        } else {
            let found = Journal::find(host, &path)?;
            let found =
                found.map_or_else(|| Journal::of_layer(host, &path, &|_| false), |found| Ok(Some(found)))?;
            let none = || Error::new(ErrorKind::NotFound, "no consolidation that was cut off names it");
            found.ok_or_else(|| none().path(&path))?
        };
        let journal = match journal.find_top()? {
            Some(top) => Journal::find(host, &top)?.unwrap_or(journal),
            None => journal,
        };
        refuse_foreign(host.as_ref(), &journal, &opening.policy, &|_| true)?;
        refuse_begun(host.as_ref(), &journal)?;
        if !is_by_file {
            refuse_without_target(host.as_ref(), &journal)?;
            refuse_away(host.as_ref(), &journal)?;
        }
        let plan = ending.foresee(&journal)?;
        Ok(Self { ending, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Abandoned {
        &self.plan
    }

    /// Does it. `Busy` while the job runs, or while somebody uses one of its layers; cut off at any moment, the disk
    /// shows what it showed.
    pub fn run(self) -> Result<Abandoned> {
        let Self { ending, plan } = self;
        let Some(top) = &plan.top else {
            // Held by nobody, it is nobody's.
            drop(ending.host.open(&plan.journal, Access::Write)?);
            ending.remove_file(&plan.journal)?;
            ending.host.sync_folder(folder_of(&plan.journal))?;
            return Ok(plan);
        };
        let mut journal = match Journal::resume(&ending.host, top)? {
            Some(journal) => journal,
            None => Journal::open_file(&ending.host, &plan.journal, Access::Write)
                .map_err(|e| if e.kind() == ErrorKind::NotFound { gone(top) } else { e })?,
        };
        refuse_begun(ending.host.as_ref(), &journal)?;
        // What follows takes back what the record needs: a job that goes on all the same has to do it again, and a
        // draft that is gone must not look like one that has got its name.
        journal.note(Position { mark: GuestOffset::new(0), is_ready: false })?;
        if !journal.fold().mode.makes_new() {
            ending.let_go(&journal)?;
        }
        for draft in &plan.removed {
            ending.remove_file(draft)?;
        }
        ending.close(&journal)?;
        Ok(plan)
    }
}

fn refuse_begun(host: &dyn Host, journal: &Journal) -> Result<()> {
    // A disk or a target that is gone altogether tells nothing: the journal can go.
    if !Ending::has_begun(host, journal).unwrap_or(false) {
        return Ok(());
    }
    let result = journal.place(&journal.fold().result);
    let what = "opens the result of the consolidation already: it can only be ended, by `dchain consolidate`";
    Err(Error::busy(what).path(result))
}

/// A target that was moved away would not know afterwards whose it is.
fn refuse_without_target(host: &dyn Host, journal: &Journal) -> Result<()> {
    let fold = journal.fold();
    let target = fold.layers.last().filter(|_| !fold.mode.makes_new()).map(|name| journal.place(name));
    let Some(target) = target else { return Ok(()) };
    if host.kind(&target)?.is_some() {
        return Ok(());
    }
    let what = format!(
        "is not at its place: give it its name back, or give the job up all the same with `--abandon {}`",
        journal.path().display()
    );
    Err(Error::new(ErrorKind::NotFound, what).path(target))
}

/// What guests wrote where the disk had gone to must not be lost because the store is not there just now.
fn refuse_away(host: &dyn Host, journal: &Journal) -> Result<()> {
    moving::refuse_away(host, journal).map_err(|error| {
        let what = format!(
            "{}; `--abandon {}` gives it up all the same, with what they may have written there",
            error.what(),
            journal.path().display()
        );
        Error::new(error.kind(), what).path(journal.place(&journal.fold().result))
    })
}

impl Ending {
    fn foresee(&self, journal: &Journal) -> Result<Abandoned> {
        let fold = journal.fold();
        let places = || fold.layers.iter().map(|name| journal.place(name));
        let is_there = |place: &PathBuf| self.host.kind(place).is_ok_and(|kind| kind.is_some());
        let is_changed = self.renewed_target(journal)?.is_some();
        let lost = if is_changed { places().skip(1).filter(is_there).collect() } else { Vec::new() };
        let draft = fold.draft.iter().map(|draft| journal.place(draft));
        Ok(Abandoned {
            top: places().next(),
            journal: journal.path().to_path_buf(),
            removed: draft.filter(is_there).collect(),
            lost,
        })
    }

    /// Opens the target if the job has given it its new epoch: only then can it have been changed.
    fn renewed_target(&self, journal: &Journal) -> Result<Option<Layer>> {
        let fold = journal.fold();
        let Some(target) = fold.layers.last().filter(|_| !fold.mode.makes_new()) else {
            return Ok(None);
        };
        let Some(target) = self.layer_at(&journal.place(target), Access::Read)? else { return Ok(None) };
        let record = self.ledger.look(target.image.as_ref())?.layer.frozen;
        Ok(Some(target).filter(|_| record.is_some_and(|record| record.epoch == fold.new_epoch)))
    }

    fn layer_at(&self, place: &Path, access: Access) -> Result<Option<Layer>> {
        match open_layer(&self.host, place, &self.opening.clone().with_access(access).with_format(None)) {
            Err(e) if e.kind() == ErrorKind::NotFound && self.host.kind(place)?.is_none() => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn lies_on(&self, child: &Layer, parent: &Layer) -> Result<bool> {
        let Some(name) = child.image.parent() else { return Ok(false) };
        let place = folder_of(&child.path).join(Path::new(OsStr::from_bytes(&name.name)));
        Ok(self.host.kind(&place)?.is_some() && self.host.canonical(&place)? == parent.path)
    }

    /// Gives each parent the identity by which the header of its child knows it, if its format has one and nobody else
    /// changed it: the target has got another when it was written, and while nothing is claimed there is nothing else to
    /// know it by. Other programs read the run then, too.
    fn say_the_same(&self, run: &[Layer], target: &Layer) -> Result<()> {
        for (child, parent) in run.iter().zip(run.iter().skip(1).chain([target])) {
            let (image, known) =
                (parent.image.as_ref(), child.image.parent().and_then(|named| named.identity));
            let Some(known) = known.filter(|known| image.identity().is_some_and(|own| own != *known)) else {
                continue;
            };
            if !matches!(self.ledger.look(image)?.trust, Trust::Doubted(_)) {
                image.set_identity(known).map_err(|e| e.path(&parent.path))?;
            }
        }
        Ok(())
    }

    /// Lets the run stand on the changed target, and nobody take its layers for what they were.
    fn let_go(&self, journal: &Journal) -> Result<()> {
        let fold = journal.fold();
        let Some(target) = self.renewed_target(journal)? else { return Ok(()) };
        let (path, format) = (target.path.clone(), target.format());
        drop(target);
        let opening = self.opening.clone().with_access(Access::Write).with_format(Some(format));
        let target = open_layer(&self.host, &path, &opening)?;
        // Whoever gave it the epoch that the run is to claim may have been killed before that was durable.
        self.ledger.settle(target.image.as_ref())?;
        bitmaps::release(target.image.as_ref(), &fold.bitmaps)?;
        let mut run: Vec<Layer> = Vec::new();
        for name in fold.layers.iter().rev().skip(1) {
            let Some(layer) = self.layer_at(&journal.place(name), Access::Write)? else { break };
            // What took the name of a layer that is gone is none of the job's.
            if !self.lies_on(&layer, run.last().unwrap_or(&target))? {
                break;
            }
            run.push(layer);
        }
        run.reverse();
        self.say_the_same(&run, &target)?;
        let is_top = |at: usize| at == 0 && run.len() + 1 == fold.layers.len();
        if let Some(top) = run.first().filter(|_| is_top(0))
            && !self.has_children(top)?
        {
            // The job gave it a record, so that a write to it would be noticed. A head needs none.
            self.ledger.release(top.image.as_ref())?;
        }
        let mut claiming = Vec::new();
        for (at, layer) in run.iter().enumerate() {
            let (image, known) = (layer.image.as_ref(), self.ledger.look(layer.image.as_ref())?);
            let has_claim = known.layer.claim.is_some();
            // A new epoch would wipe out what speaks against one that is in doubt: it keeps its claim, and that is said.
            let is_told = has_claim && matches!(known.trust, Trust::Doubted(_));
            if !is_top(at) && known.layer.frozen.is_some() && !is_told {
                self.ledger.thaw(image, Epoch::fresh())?;
            }
            if has_claim {
                self.ledger.claim(image, None).map_err(|e| e.path(&layer.path))?;
            }
            claiming.push(has_claim);
        }
        let (mut parent, mut below) = (&target.image, self.ledger.look(target.image.as_ref())?);
        for (layer, has_claim) in run.iter().zip(claiming).rev() {
            let image = layer.image.as_ref();
            below = if has_claim {
                join(&self.ledger, image, (parent.as_ref(), &below))?
            } else {
                self.ledger.look(image)?
            };
            parent = &layer.image;
        }
        Ok(())
    }
}
