//! A head that goes to another store: the new image lies there, on what that store has of its parents, and TOP gives way.
//!
//! What stays true: what stands in for the layers below TOP shows the same bytes, by content ID, is locked against writers
//! from the first byte of the new image on, and is proven before the record. TOP's file goes, or gets another name, only
//! once the record is durable; one that may have been written since only ever gets another name.

use super::{
    Folding, LiveConsolidation, Plan, Request,
    ending::Ending,
    folding::Making,
    images::bears,
    plan::{NewImage, Scene},
};
use crate::{
    base::{Error, ErrorKind, Guard, Result},
    chain::{Layer, Opening, lineage, open_layer},
    content::ContentId,
    io::{Access, Host},
    job::{Progress, live::LiveDisk, own, seal},
    store::{FoldMode, Journal, Lease, Ledger, Removed, Trust},
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// So many old heads of one name are kept aside, at most.
const ASIDE_MAX: u32 = 100;

/// How TOP goes to another store.
#[derive(Clone, Debug, Default)]
pub struct Move {
    /// What stands in for the layers below TOP there, newest first, open; each shows what somebody has sealed.
    pub below: Vec<Layer>,
    /// The layers below TOP that go with it, if nobody else needs them; `None`: nothing goes, and TOP is kept aside.
    pub leaves: Option<Vec<PathBuf>>,
    /// Held until the disk lies on what stands in.
    pub lease: Option<Arc<Lease>>,
}

/// How much of an old head's name is kept: a name has 255 bytes at most on Linux's file systems.
const ASIDE_BYTES_MAX: usize = 255 - ".moved-100".len();

/// Returns the names that an old head may get, the first free one of which it gets.
pub fn aside(top: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let (name, top) = (top.file_name().unwrap_or_default().as_bytes().to_vec(), top.to_path_buf());
    (1..=ASIDE_MAX).map(move |number| {
        // Once the record is there, a name that is too long would keep the move from ever being over.
        let mut aside = OsStr::from_bytes(name.get(..ASIDE_BYTES_MAX).unwrap_or(&name)).to_owned();
        aside.push(".moved");
        if number > 1 {
            aside.push(format!("-{number}"));
        }
        top.with_file_name(aside)
    })
}

/// Says that no name is left for an old head.
pub fn too_many_aside(top: &Path) -> Error {
    Error::new(ErrorKind::Exists, "too many old heads of its name are kept aside").path(top)
}

/// Says what goes with a move: TOP, and of the layers below it that may go those that nobody else needs.
pub(super) fn add_leaving(scene: &Scene<'_>, moves: &Move, plan: &mut Plan) -> Result<()> {
    let Some(leaves) = &moves.leaves else { return Ok(()) };
    for (at, layer) in scene.layers.iter().enumerate() {
        let why = match at {
            _ if has_snapshots(layer)? => Some(Error::policy(SNAPSHOTS)),
            0 => None,
            _ if !leaves.contains(&layer.path) => Some(Error::policy("the other store has no layer like it")),
            _ => own::why_not(scene.family, (scene.layers, scene.files), at),
        };
        if let Some(why) = why {
            plan.stays.push((layer.path.clone(), why.to_string()));
            break;
        }
        plan.removed.push(layer.path.clone());
        scene.add_data(layer, plan)?;
    }
    Ok(())
}

/// Refuses to go on with a move as if it were none, and the other way round.
pub(super) fn refuse_other(journal: &Journal, request: &Request) -> Result<()> {
    let is_move = journal.fold().mode == FoldMode::Move;
    if is_move == request.moves.is_some() {
        return Ok(());
    }
    let what = if is_move {
        "its migrate was cut off: the daemon that serves it goes on with it, `dchain consolidate --abandon` gives it up"
    } else {
        "a consolidation of it was cut off: end that one first"
    };
    Err(Error::busy(what)
        .path(journal.fold().layers.first().map(|top| journal.place(top)).unwrap_or_default()))
}

/// Fails with `NotFound` where nobody can tell which image is the disk: the record of a move may have landed, and the other
/// store is not there.
pub(super) fn refuse_away(host: &dyn Host, journal: &Journal) -> Result<()> {
    let fold = journal.fold();
    let Some(draft) = fold.draft.as_ref().filter(|_| fold.mode == FoldMode::Move) else { return Ok(()) };
    let result = journal.place(&fold.result);
    let is_away = host.kind(&result)?.is_none() && host.kind(&journal.place(draft))?.is_none();
    if !Guard::MoveAway.trips(is_away && journal.position().is_ready) {
        return Ok(());
    }
    let what = "was about to be the disk when its migrate was cut off, and is not there: the store has to be, to tell \
                whether guests wrote it";
    Err(Error::new(ErrorKind::NotFound, what).path(result))
}

/// Returns whether the image in the making lies on what stands in below TOP now.
pub(super) fn stands_as_asked(ending: &Ending, making: &Making) -> Result<bool> {
    let Some(moves) = &making.moves else { return Ok(true) };
    let how = ending.opening.clone().with_access(Access::ReadShared).with_format(None);
    let Ok(draft) = open_layer(&ending.host, &making.draft, &how) else { return Ok(false) };
    let Some(parent) = moves.below.first() else { return Ok(draft.image.parent().is_none()) };
    let folder = draft.path.parent().unwrap_or(Path::new("/"));
    if !draft.image.parent().is_some_and(|link| link.leads_like(&parent.name_in(folder))) {
        return Ok(false);
    }
    let claimed = ending.ledger.look(draft.image.as_ref())?.layer.claim.map(|claim| claim.parent_epoch);
    let now = ending.ledger.look(parent.image.as_ref())?.layer.frozen.map(|record| record.epoch);
    Ok(claimed.is_some() && claimed == now)
}

/// Why a layer stays where it is.
const SNAPSHOTS: &str = "has internal snapshots, which are nowhere else";

/// Returns whether a layer holds points in time that no other image does: a disk that goes elsewhere goes as it is now.
fn has_snapshots(layer: &Layer) -> Result<bool> {
    Ok(!layer.image.details()?.snapshots.is_empty())
}

/// Returns the ID that the topmost of `layers` is sealed with, unless it is in doubt.
fn sealed(ledger: &Ledger, layers: &[Layer]) -> Result<Option<ContentId>> {
    let Some(standing) = lineage(ledger, layers)?.into_iter().next() else { return Ok(None) };
    let is_sound = matches!(standing.known.trust, Trust::Trusted | Trust::Claimed);
    Ok(standing.known.layer.frozen.and_then(|record| record.sealed).filter(|_| is_sound))
}

fn differs(own: &Layer, other: &Layer) -> Error {
    let what = format!("does not show what {} shows", own.path.display());
    Error::corrupt(what).path(&other.path)
}

impl LiveConsolidation {
    /// As [`LiveConsolidation::prepare`], for the head alone of a disk in use, which goes to another store: `new` lies there,
    /// on what stands in for the layers below the head.
    ///
    /// `Corrupt` unless both bear the same content ID.
    pub fn prepare_move(
        host: &Arc<dyn Host>,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        new: NewImage,
        moves: Move,
    ) -> Result<Self> {
        let chain = disk.chain();
        let own = chain.layers().get(1..).unwrap_or_default();
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        match (own.first(), moves.below.first()) {
            (None, None) => {}
            (Some(one), Some(other)) => {
                let ids = (sealed(&ledger, own)?, sealed(&ledger, &moves.below)?);
                if Guard::MoveBelow.trips(ids.0.is_none() || ids.0 != ids.1) {
                    return Err(differs(one, other));
                }
            }
            _ => return Err(Error::invalid("one of both has a parent").path(&chain.head()?.path)),
        }
        let into = own.first().map(|layer| layer.path.clone());
        let request = Request { into, new: Some(new), moves: Some(moves), ..Request::default() };
        Self::prepare(host, disk, opening, &request)
    }
}

impl Folding {
    /// Proves that what lies below the new image shows what lies below TOP: where this boot has not seen it, by hashing.
    pub(super) fn prove_below(&mut self, progress: &Progress) -> Result<()> {
        let ledger = self.ending.ledger.clone();
        let mirroring = self.mirroring()?;
        let own = mirroring.moving.layers().get(mirroring.depth..).unwrap_or_default();
        let below = mirroring.images.elsewhere().unwrap_or_default();
        let (Some(one), Some(other)) = (own.first(), below.first()) else { return Ok(()) };
        let prove = |layers: &[Layer]| -> Result<Option<ContentId>> {
            Ok(seal::prove(&ledger, layers, progress)?.first().map(|sealed| sealed.id))
        };
        if prove(own)? == prove(below)? { Ok(()) } else { Err(differs(one, other)) }
    }
}

impl Ending {
    /// Takes TOP's name away from it, so that nobody boots it by mistake; one that is to go keeps it until then, if nobody
    /// can have written it since. Another file with that name stays.
    pub(super) fn put_aside(&self, journal: &Journal) -> Result<()> {
        let fold = journal.fold();
        let Some(name) = fold.layers.first() else { return Ok(()) };
        let top = journal.place(name);
        if self.host.kind(&top)?.is_none() || !self.host.witness(&top)?.same_file(&fold.head) {
            return Ok(());
        }
        let goes = fold.removed.iter().any(|gone| gone.name == *name);
        if goes && self.is_untouched_top(journal, &top)? {
            return Ok(());
        }
        self.set_aside(&top).map(drop)
    }

    /// Gives an old head another name.
    fn set_aside(&self, top: &Path) -> Result<PathBuf> {
        let how = self.opening.clone().with_access(Access::Write).with_format(None);
        // Somebody may be using it, for all that: it gets the other name, and keeps its record.
        if let Ok(layer) = open_layer(&self.host, top, &how) {
            self.ledger.release(layer.image.as_ref())?;
        }
        for aside in aside(top) {
            match self.host.rename_new(top, &aside) {
                Err(error) if error.kind() == ErrorKind::Exists => {}
                renamed => {
                    renamed?;
                    self.host.sync_folder(aside.parent().unwrap_or(Path::new("/")))?;
                    return Ok(aside);
                }
            }
        }
        Err(too_many_aside(top))
    }

    /// What somebody needs by now stays, since the disk is elsewhere; TOP not by its name. Returns where it is.
    pub(super) fn keep_moved(
        &self,
        journal: &Journal,
        gone: &Removed,
        removed: Result<Option<PathBuf>>,
    ) -> Result<Option<PathBuf>> {
        let place = match removed {
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Policy) => {
                tracing::warn!(%error, "stays");
                journal.place(&gone.name)
            }
            Ok(Some(place)) => place,
            removed => return removed,
        };
        let is_top = self.host.kind(&place)?.is_some()
            && place == journal.place(&gone.name)
            && journal.fold().layers.first() == Some(&gone.name)
            && self.host.witness(&place)?.same_file(&journal.fold().head);
        if is_top { self.set_aside(&place).map(Some) } else { Ok(Some(place)) }
    }

    /// Whether TOP is as the job left it, by its own record.
    pub(super) fn is_untouched_top(&self, journal: &Journal, top: &Path) -> Result<bool> {
        let fold = journal.fold();
        if !self.host.witness(top)?.same_file(&fold.head) {
            return Ok(false);
        }
        let how = self.opening.clone().with_access(Access::ReadShared).with_format(None);
        let Ok(layer) = open_layer(&self.host, top, &how) else { return Ok(false) };
        let known = self.ledger.look(layer.image.as_ref())?;
        let epoch = known.layer.frozen.map(|record| record.epoch);
        let is_own = epoch.is_some() && epoch == fold.head_epoch;
        let is_untouched = is_own
            && match known.trust {
                Trust::Trusted => true,
                Trust::Claimed => bears(layer.image.as_ref(), fold.head_epoch)?,
                Trust::Doubted(_) | Trust::Unknown => false,
            };
        Ok(!Guard::MovedTop.trips(!is_untouched))
    }

    /// Returns where a TOP is that was to go and was put aside instead.
    pub(super) fn kept_aside(&self, journal: &Journal, top: &Path) -> Result<Option<PathBuf>> {
        for aside in aside(top) {
            if self.host.kind(&aside)?.is_some() && self.host.witness(&aside)?.same_file(&journal.fold().head)
            {
                return Ok(Some(aside));
            }
        }
        Ok(None)
    }
}
