//! What is known of the layers of a chain, each in the light of what lies below it.

use super::{Layer, Link, Policy, family::member};
use crate::{
    base::{Error, Guard, Result},
    content::ContentId,
    format::{self, Image},
    io::Host,
    store::{
        Child, Claim, Differs, Doubt, FoldMode, Journal, Known, Ledger, Lineage, Refusal, Trust, accept,
    },
};

use std::path::Path;

/// What is known of a layer with a place in a chain.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its record, and how far it can be believed over all its ancestors.
    pub known: Known,
    /// Whether it may stand on its parent; `None` for a layer without one.
    pub on_parent: Option<std::result::Result<Lineage, Box<Refusal>>>,
}

/// Returns how each layer stands, in the order of `layers`: the topmost first, the base last. Writes nothing.
///
/// While a job is under way whose run's top is one of `layers`, its journal binds the run's oldest layer to the target's
/// new epoch, and what lies on the top to the result: they stand on each other although the claim names the old one.
pub fn lineage(ledger: &Ledger, layers: &[Layer]) -> Result<Vec<Standing>> {
    let mut standings: Vec<Standing> = Vec::with_capacity(layers.len());
    for (at, layer) in layers.iter().enumerate().rev() {
        let known = ledger.look(layer.image.as_ref()).map_err(|e| e.path(&layer.path))?;
        let standing = match (standings.last(), layers.get(at + 1)) {
            (Some(below), Some(parent)) => {
                let standing = Standing::on(layer, known.clone(), &below.known, None);
                let tops = layers.get(..=at + 1).unwrap_or_default();
                let pair = (layer, parent, &below.known);
                match standing.refusal().filter(|refusal| is_bound(ledger, tops, pair, refusal)) {
                    Some(_) => Standing::accepted(known, Lineage::Kept, below.known.trust),
                    None => standing,
                }
            }
            _ => Standing { known, on_parent: None },
        };
        standings.push(standing);
    }
    standings.reverse();
    Ok(standings)
}

impl Standing {
    /// Returns how a layer, of which `known` is known, stands on its parent. `proven` is the content ID of the
    /// parent's view if it has just been computed.
    pub fn on(layer: &Layer, known: Known, parent: &Known, proven: Option<ContentId>) -> Self {
        let name = layer.image.parent();
        let child = Child {
            claim: known.layer.claim.as_ref(),
            name: name.as_ref().map(|p| p.name.as_slice()).unwrap_or_default(),
            format: name.as_ref().and_then(|p| p.format.as_deref()),
            identity: name.as_ref().and_then(|p| p.identity),
        };
        match accept(&child, parent, proven) {
            Ok(lineage) => Self::accepted(known, lineage, parent.trust),
            Err(refusal) => {
                let trust = known.trust.over(Trust::Doubted(Doubt::Below));
                Self { known: Known { trust, ..known }, on_parent: Some(Err(refusal)) }
            }
        }
    }

    fn accepted(known: Known, lineage: Lineage, parent: Trust) -> Self {
        let below = match lineage {
            Lineage::Kept | Lineage::Proven => parent,
            // Without a claim, the layer would not notice that its parent changed.
            Lineage::Unknown => Trust::Claimed.over(parent),
        };
        let trust = known.trust.over(below);
        Self { known: Known { trust, ..known }, on_parent: Some(Ok(lineage)) }
    }

    /// Returns why the layer must not be read on its parent, if so.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.on_parent.as_ref().and_then(|on| on.as_ref().err()).map(AsRef::as_ref)
    }
}

/// Returns whether a job on one of `tops` is why a child and its parent do not name the same epoch, or where the child
/// makes no claim, why the parent is not what the child's header knows it by: the job has written it.
///
/// A journal that cannot be read binds nothing.
fn is_bound(
    ledger: &Ledger,
    tops: &[Layer],
    (child, parent, known): (&Layer, &Layer, &Known),
    refusal: &Refusal,
) -> bool {
    let (claimed, found) = match (refusal.differs, known.layer.frozen, known.trust) {
        (Differs::Epoch { claimed, found }, ..) => (Some(claimed), found),
        (Differs::Identity { .. }, Some(record), Trust::Trusted | Trust::Claimed) => (None, record.epoch),
        _ => return false,
    };
    let mut journals = tops.iter().filter_map(|top| ledger.journal(&top.path).ok().flatten());
    journals.any(|journal| journal.binds(&child.path, &parent.path, claimed, found).unwrap_or(false))
}

/// Returns the first refusal from the base up, as an error for a person.
pub fn check_lineage(layers: &[Layer], standings: &[Standing]) -> Result<()> {
    let pairs = layers.windows(2).zip(standings).rev();
    for (pair, standing) in pairs {
        if let ([child, parent], Some(Err(refusal))) = (pair, &standing.on_parent) {
            return Err(refusal.error(&child.path, &parent.path));
        }
    }
    Ok(())
}

/// Gives a layer the claim that fits its parent, unless it has it: the parent's epoch, and its content ID where
/// that is certain (the parent's trust is that over all its ancestors). Whoever looks for the parent's children finds it.
pub fn join(ledger: &Ledger, child: &dyn Image, (below, parent): (&dyn Image, &Known)) -> Result<Known> {
    ledger.note_child(below, child)?;
    let known = ledger.look(child)?;
    let Some(name) = child.parent() else { return Ok(known) };
    let claim = parent.layer.frozen.map(|record| Claim {
        parent_epoch: record.epoch,
        parent_id: parent.proven(),
        name: name.name,
        format: name.format,
    });
    if claim == known.layer.claim { Ok(known) } else { ledger.claim(child, claim) }
}

/// Freezes the topmost of `layers`, because something is about to depend on it; returns what is known of it then.
pub fn freeze(ledger: &Ledger, layers: &[Layer]) -> Result<Option<Known>> {
    let Some(top) = layers.first() else { return Ok(None) };
    ledger.freeze(top.image.as_ref()).map_err(|e| e.path(&top.path))?;
    Ok(lineage(ledger, layers)?.into_iter().next().map(|standing| standing.known))
}

/// Refuses an image that a consolidation which was cut off is folding into: what it shows is neither the old nor
/// the new. The job's top shows the right thing.
pub(super) fn refuse_half_folded(ledger: &Ledger, head: &Layer) -> Result<()> {
    let is_apart = |host: &dyn Host, top: &Path| is_apart(host, top, &head.path).unwrap_or(false);
    let Some(journal) = ledger.journal_of_layer(&head.path, &is_apart)? else { return Ok(()) };
    let fold = journal.fold();
    let (Some(top), Some(target)) = (fold.layers.first(), fold.layers.last()) else { return Ok(()) };
    let is_target = !fold.mode.makes_new() && journal.is_at(target, &head.path)?;
    if !Guard::HalfFolded.trips(is_target) || journal.is_at(top, &head.path)? {
        return Ok(());
    }
    // A top that has gone or was retired has given way, if that was to be: the target is the result, and whole.
    let may_go = fold.mode == FoldMode::TargetName && journal.position().is_ready;
    if may_go && journal.top()?.map_or(Ok(true), |file| format::is_retired(file.as_ref()))? {
        return Ok(());
    }
    Err(cut_off(&journal, " into it").path(&head.path))
}

/// Refuses to reshape around an image that a consolidation which was cut off names: the layers below may be half
/// changed, and the job could not go on.
pub fn refuse_cut_off(ledger: &Ledger, image: &Path) -> Result<()> {
    let is_apart = |host: &dyn Host, top: &Path| is_apart(host, top, image).unwrap_or(false);
    let found = ledger.journal_of_layer(image, &is_apart)?.filter(|_| Guard::CutOff.trips(true));
    let Some(journal) = found else { return Ok(()) };
    Err(cut_off(&journal, "").path(image))
}

/// Returns whether the headers tell that `image` is neither `top` nor below it.
fn is_apart(host: &dyn Host, top: &Path, image: &Path) -> Result<bool> {
    let (image, mut place) = (host.witness(image)?, top.to_path_buf());
    for _ in 0..Policy::default().depth_max {
        let found = member(host, &place)?;
        if found.witness.same_file(&image) {
            return Ok(false);
        }
        match found.link {
            None => return Ok(true),
            Some(Link { place: Some(parent), .. }) => place = parent,
            // Nobody knows what was there.
            Some(_) => return Ok(false),
        }
    }
    Ok(false)
}

/// Says that the job of a journal was cut off, and how it is ended.
fn cut_off(journal: &Journal, into: &str) -> Error {
    let top = journal.fold().layers.first().map(|top| journal.place(top)).unwrap_or_default();
    let (name, file) = (top.display(), journal.path().display());
    let (what, ends) = match journal.fold().mode {
        FoldMode::Move => ("migrate", "the daemon that serves it goes on with it".to_owned()),
        _ => ("consolidation", format!("`dchain consolidate {name}` ends it")),
    };
    let gives_up = format!("`dchain consolidate --abandon {file}` gives it up");
    Error::busy(format!("a {what} of {name}{into} was cut off: {ends}, {gives_up}")).subject(top)
}
