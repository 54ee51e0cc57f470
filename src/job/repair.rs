//! A layer that was changed behind its children's back, or has rotted: what differs from the content that its ID
//! promises is put back, leaf by leaf, from a copy.
//!
//! What stays true:
//! - a leaf is written only if its bytes have the hash that the promised tree has there, looked at again just
//!   before the write; so the copy may be anything, and every byte written makes the layer more like its promise;
//! - epoch and seal stay what they are, and so do the claims of the children; but the layer is not trusted before
//!   all is durable and a hash of its whole view has given the sealed ID. The writes themselves speak against its
//!   witness;
//! - what was put back needs not be put back again: a repair that was cut off is repeated.

use super::{
    Progress,
    seal::{self, full_tree, readable_tree},
};
use crate::{
    base::{Error, GuestOffset, GuestRange, Result, units::index},
    chain::{Chain, Family, Layer, Opening, View, open_layer, refuse_cut_off, refuse_leased},
    content::{ContentId, LEAF_BYTES, Tree, diff, leaf},
    io::{Access, Host, Kept},
    map::RangeSet,
    store::{Epoch, Known, Ledger, is_as_before},
};
use rayon::prelude::*;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much is written in one go: whole clusters of any size, so that none has to be read to be mended.
const PIECE_BYTES: u64 = 4 << 20;

/// What a repair is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The layer.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// The copy.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub copy: PathBuf,
    /// What the layer promises to show.
    pub id: ContentId,
    /// Size of the layer's view now, in bytes.
    pub size: u64,
    /// Size that is promised, in bytes.
    pub promised_size: u64,
    /// What differs and can be put back: start and length in bytes, joined, in order.
    pub restored: Vec<(u64, u64)>,
    /// What differs, and the copy does not show it as it was.
    pub unproven: Vec<(u64, u64)>,
    /// Persistent bitmaps that will be marked as in use, because nothing here keeps them up.
    pub bitmaps_stale: Vec<String>,
}

impl Plan {
    /// Returns how many bytes are put back.
    pub fn restored_bytes(&self) -> u64 {
        self.restored.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Repaired {
    /// The layer.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Bytes that were put back.
    pub restored_bytes: u64,
    /// Whether the whole view was hashed then, and is what its content ID promises: children stand on it again.
    pub is_proven: bool,
}

/// What is done where the copy does not show all that is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// Nothing is written.
    Refuse,
    /// What is proven is put back; the rest stays as it is, and the layer in doubt.
    Leave,
}

/// A repair that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Repair {
    ledger: Ledger,
    chain: Chain,
    copy: Chain,
    promise: Promise,
    tree: Tree,
    proven: RangeSet,
    before: Known,
    plan: Plan,
}

impl Repair {
    /// Opens the layer at `image` for writing, reads all that it shows, and looks in the copy for what differs.
    ///
    /// The copy is believed in nothing: its own record and its parents' may be in doubt. `Invalid` if neither the
    /// layer nor its children know its content ID; `Policy` if the layer's own parent is not what it was made on (that one has to be repaired
    /// first), or if it cannot be told which leaves differ; `Busy` if the layer is in use.
    pub fn prepare(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        (image, copy): (&Path, &Path),
        (opening, copy_opening): (&Opening, &Opening),
        progress: &Progress,
    ) -> Result<Self> {
        let writing = opening.clone().with_access(Access::Write).with_ledger(ledger.clone());
        let chain = Chain::open(host, image, &writing)?;
        let reading = Opening { access: Access::Read, ledger: None, ..copy_opening.clone() };
        let copy = Chain::open(host, copy, &reading)?;
        let head = chain.head()?;
        refuse_cut_off(ledger, &head.path)?;
        refuse_leased(host.as_ref(), std::slice::from_ref(head))?;
        let before = ledger.look(head.image.as_ref())?;
        let promise = Promise::find(host, ledger, head, &before)?;
        let id = promise.id;
        let tree = promised_tree(ledger, &chain, &copy, &id, progress)?;
        let differing = differing(&chain.view(0), &tree, progress)?;
        let proven = proven(&copy.view(0), &tree, &differing, progress)?;
        let unproven: RangeSet = differing.iter().flat_map(|range| proven.gaps(range)).collect();
        let bitmaps = head.image.details()?.bitmaps.into_iter();
        let plan = Plan {
            image: head.path.clone(),
            copy: copy.head()?.path.clone(),
            id,
            size: head.size(),
            promised_size: tree.size(),
            restored: spans(&proven),
            unproven: spans(&unproven),
            bitmaps_stale: bitmaps.filter(|b| b.is_auto && !b.is_in_use).map(|b| b.name).collect(),
        };
        Ok(Self { ledger: ledger.clone(), chain, copy, promise, tree, proven, before, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Cut off or failed at any moment, it can be done again.
    ///
    /// `Policy` if something is not proven and may not be left; `Busy` if the layer was written since it was looked
    /// at.
    pub fn run(self, unproven: Unproven, progress: &Progress) -> Result<Repaired> {
        let head = self.chain.head()?;
        if unproven == Unproven::Refuse && !self.plan.unproven.is_empty() {
            let what = format!("{} does not show all that is promised", self.plan.copy.display());
            return Err(Error::policy(what).path(&head.path));
        }
        if !is_as_before(&self.before.now, &self.ledger.look(head.image.as_ref())?.now) {
            return Err(Error::busy("was written while it was looked at").path(&head.path));
        }
        self.restore(progress)?;
        let is_proven = self.plan.unproven.is_empty();
        if is_proven {
            self.promise.keep(&self.ledger, &self.chain, progress)?;
        }
        let restored_bytes = self.plan.restored_bytes();
        Ok(Repaired { image: head.path.clone(), restored_bytes, is_proven })
    }

    /// Puts back what is proven, durably.
    fn restore(&self, progress: &Progress) -> Result<()> {
        let head = self.chain.head()?;
        let below = self.chain.below();
        if head.size() != self.plan.promised_size {
            head.image.resize(self.plan.promised_size, &below)?;
        }
        progress.begin("repair", self.plan.restored_bytes());
        for piece in self.proven.iter().flat_map(|range| range.pieces(PIECE_BYTES)) {
            progress.checkpoint()?;
            for (range, is_zero) in self.alike(piece) {
                if is_zero {
                    head.image.zero(range, Kept::Space, &below)?;
                } else {
                    head.image.write(range.start, &self.bytes(range)?, &below)?;
                }
            }
            progress.moved(piece.bytes);
        }
        head.image.flush()
    }

    /// Cuts a piece into runs of leaves that are promised to be zeros, and runs that are not.
    fn alike(&self, piece: GuestRange) -> Vec<(GuestRange, bool)> {
        let mut runs: Vec<(GuestRange, bool)> = Vec::new();
        for range in piece.pieces(LEAF_BYTES) {
            let is_zero = self.tree.get(number(range)).is_zero();
            match runs.last_mut() {
                Some((last, kind)) if *kind == is_zero => last.bytes += range.bytes,
                _ => runs.push((range, is_zero)),
            }
        }
        runs
    }

    /// Returns the copy's bytes, if they still are what is promised.
    fn bytes(&self, range: GuestRange) -> Result<Vec<u8>> {
        let mut bytes = vec![0; index(range.bytes)];
        self.copy.view(0).read(range.start, &mut bytes)?;
        let mut leaves = range.pieces(LEAF_BYTES).zip(bytes.chunks(index(LEAF_BYTES)));
        if leaves.all(|(range, bytes)| leaf(bytes) == self.tree.get(number(range))) {
            return Ok(bytes);
        }
        Err(Error::busy("was written while it was copied from").path(&self.plan.copy))
    }
}

/// What a layer is to show.
#[derive(Clone, Copy, Debug)]
struct Promise {
    id: ContentId,
    /// The epoch that its children claim, if the layer itself has no ID: it was replaced by another file, say.
    claimed: Option<Epoch>,
}

impl Promise {
    /// Finds what the layer says of itself, or what all children in its folder say of it.
    fn find(host: &Arc<dyn Host>, ledger: &Ledger, layer: &Layer, known: &Known) -> Result<Self> {
        if let Some(id) = known.layer.frozen.and_then(|record| record.sealed) {
            return Ok(Self { id, claimed: None });
        }
        let folder = layer.path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let family = Family::scan(host.as_ref(), &[folder])?;
        let mut said = None;
        for child in family.children_of(&host.witness(&layer.path)?) {
            let how = Opening::reading().with_access(Access::ReadShared).with_format(Some(child.format));
            let Ok(child_layer) = open_layer(host, &child.path, &how) else { continue };
            let Some(claim) = ledger.look(child_layer.image.as_ref())?.layer.claim else { continue };
            let holds = child.link.as_ref().is_some_and(|link| link.name.name == claim.name)
                && known.layer.frozen.is_none_or(|record| record.epoch == claim.parent_epoch);
            let Some(id) = claim.parent_id.filter(|_| holds) else { continue };
            match said.replace((id, claim.parent_epoch)) {
                Some(other) if other != (id, claim.parent_epoch) => {
                    let what = "its children were not made on the same content";
                    return Err(Error::policy(what).subject(&child.path).path(&layer.path));
                }
                _ => {}
            }
        }
        let nobody = "has no content ID, and no child in its folder knows one: nothing says what it showed";
        let (id, epoch) = said.ok_or_else(|| Error::invalid(nobody).path(&layer.path))?;
        Ok(Self { id, claimed: Some(epoch) })
    }

    /// Has the layer trusted again, if a hash of its whole view gives what was promised.
    fn keep(&self, ledger: &Ledger, chain: &Chain, progress: &Progress) -> Result<()> {
        let Some(epoch) = self.claimed else {
            return seal::prove(ledger, chain.layers(), progress).map(drop);
        };
        let (head, below) = (chain.head()?, chain.layers().get(1..).unwrap_or_default());
        seal::seal(ledger, below, progress)?;
        let image = head.image.as_ref();
        let before = ledger.look(image)?.now;
        let tree = full_tree(&chain.view(0), progress)?.tree;
        if tree.id() != self.id || !is_as_before(&before, &ledger.look(image)?.now) {
            return Err(Error::busy("was written while it was repaired").path(&head.path));
        }
        // Only now: with the epoch that they claim, the children stand on it.
        let frozen = ledger.thaw(image, epoch)?;
        ledger.seal(image, &tree, &frozen).map(drop)
    }
}

/// Returns the number of the leaf that starts where `range` does.
fn number(range: GuestRange) -> u64 {
    range.start.bytes() / LEAF_BYTES
}

fn spans(set: &RangeSet) -> Vec<(u64, u64)> {
    set.iter().map(|range| (range.start.bytes(), range.bytes)).collect()
}

/// Returns the tree of the promised content: the one that is kept, or the copy's if that shows all of it.
fn promised_tree(
    ledger: &Ledger,
    chain: &Chain,
    copy: &Chain,
    id: &ContentId,
    progress: &Progress,
) -> Result<Tree> {
    let head = chain.head()?;
    if let Some(tree) = ledger.tree(head.image.as_ref(), id)? {
        return Ok(tree);
    }
    let tree = full_tree(&copy.view(0), progress)?.tree;
    if tree.id() == *id {
        return Ok(tree);
    }
    let what = format!(
        "the tree of its content ID is not kept, and {} shows {}, not {}: which leaves differ is not known",
        copy.head()?.path.display(),
        tree.id().short(),
        id.short()
    );
    Err(Error::policy(what).path(&head.path))
}

/// Returns the leaves (cut at the promised end) that differ from the tree or cannot be read.
fn differing(view: &View, tree: &Tree, progress: &Progress) -> Result<RangeSet> {
    let (shown, unread) = readable_tree(view, progress)?;
    let disk = GuestOffset::new(0).range(tree.size());
    let unread = unread.iter().map(|unread| unread.range.outer(LEAF_BYTES));
    Ok(diff(tree, &shown.tree).into_iter().chain(unread).map(|range| range.clip(disk)).collect())
}

/// Returns the leaves among `differing` that the copy shows as they are promised, or that are promised to be zeros.
fn proven(copy: &View, tree: &Tree, differing: &RangeSet, progress: &Progress) -> Result<RangeSet> {
    progress.begin("prove", differing.bytes());
    let leaves: Vec<GuestRange> = differing.iter().flat_map(|range| range.pieces(LEAF_BYTES)).collect();
    let kept = leaves.par_iter().map(|range| {
        progress.checkpoint()?;
        let wanted = tree.get(number(*range));
        let mut bytes = vec![0; index(range.bytes)];
        // What the copy cannot give is not proven: the plan says so.
        let is_proven =
            wanted.is_zero() || copy.read(range.start, &mut bytes).is_ok_and(|()| leaf(&bytes) == wanted);
        progress.moved(range.bytes);
        Ok(is_proven.then_some(*range))
    });
    Ok(kept.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
