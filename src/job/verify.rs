//! What a layer shows, read whole and held against what its content ID promises; and what changed underneath a
//! layer that is refused.
//!
//! Nothing is written, and nothing is believed: a record that is in doubt is held against the bytes like any other.

use super::{
    Progress,
    seal::{Unread, full_tree, readable_tree},
};
use crate::{
    base::{Error, GuestOffset, GuestRange, Result},
    chain::{Chain, Layer, View},
    content::{ContentId, LEAF_BYTES, Tree, diff},
    map::RangeSet,
    store::{Carrier, Ledger},
};
use std::path::PathBuf;

/// How much of a map is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// What reading a layer's whole view found.
#[derive(Debug)]
pub struct Verified {
    /// The content ID of what is shown; `None` if a part cannot be read.
    pub shown: Option<ContentId>,
    /// Size of the view in bytes.
    pub size: u64,
    /// Bytes of the view that were read.
    pub read_bytes: u64,
    /// What the view was held against; `None` if no layer of the chain is sealed.
    pub promise: Option<Promise>,
    /// How they compare.
    pub verdict: Verdict,
    /// What cannot be read, in order.
    pub unread: Vec<Unread>,
}

/// What a view is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Which layer is sealed: the topmost one, or the nearest one below it. Leaves that a layer above that one
    /// holds something of are promised by nobody.
    pub layer: PathBuf,
    /// Its content ID.
    pub id: ContentId,
    /// Whether it is the topmost layer.
    pub is_own: bool,
}

/// How a view compares with what is promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is promised.
    Open,
    /// What can be read is what is promised.
    Kept,
    /// It is not.
    Broken {
        /// In these leaves, joined, in order.
        leaves: Vec<GuestRange>,
        /// The size that is promised, in bytes.
        size: u64,
    },
    /// The tree of the promised content is not kept: where it differs, or (if a part cannot be read) whether it
    /// does, cannot be told.
    NotLocated {
        /// Whether it differs for certain.
        is_broken: bool,
    },
}

/// Reads all that the topmost layer of `chain` shows, and holds it against its content ID; of a layer that has
/// none, against that of the nearest layer below that has one.
///
/// What cannot be read is part of the answer; only an error that ends all reading is returned.
pub fn verify(ledger: &Ledger, chain: &Chain, progress: &Progress) -> Result<Verified> {
    let view = chain.view(0);
    let promised = find_promise(ledger, chain.layers())?;
    let (hashed, unread) = readable_tree(&view, progress)?;
    let shown = unread.is_empty().then(|| hashed.tree.id());
    let verdict = match &promised {
        None => Verdict::Open,
        Some(promised) if promised.promise.is_own && shown == Some(promised.promise.id) => Verdict::Kept,
        Some(Promised { tree: None, .. }) => Verdict::NotLocated { is_broken: shown.is_some() },
        Some(Promised { tree: Some(tree), depth, .. }) => {
            let free = not_promised(chain.layers().get(..*depth).unwrap_or_default(), &view, &unread)?;
            compare(tree, &hashed.tree, &free, *depth == 0)
        }
    };
    let promise = promised.map(|promised| promised.promise);
    let (size, read_bytes) = (view.size(), hashed.read_bytes);
    Ok(Verified { shown, size, read_bytes, promise, verdict, unread })
}

/// A promise and what is known of it.
struct Promised {
    promise: Promise,
    depth: usize,
    tree: Option<Tree>,
}

fn find_promise(ledger: &Ledger, layers: &[Layer]) -> Result<Option<Promised>> {
    for (depth, layer) in layers.iter().enumerate() {
        let known = ledger.look(layer.image.as_ref()).map_err(|e| e.path(&layer.path))?;
        let Some(id) = known.layer.frozen.and_then(|record| record.sealed) else { continue };
        let tree = ledger.tree(layer.image.as_ref(), &id)?;
        // Seen from above, an ID alone says nothing.
        if depth == 0 || tree.is_some() {
            let promise = Promise { layer: layer.path.clone(), id, is_own: depth == 0 };
            return Ok(Some(Promised { promise, depth, tree }));
        }
    }
    Ok(None)
}

/// Returns the bytes of `view` that `above` (its topmost layers, none of them sealed) hold something of, and those
/// that cannot be read, in whole leaves.
fn not_promised(above: &[Layer], view: &View, unread: &[Unread]) -> Result<RangeSet> {
    let mut free = held(above, view.size())?;
    free = free.iter().chain(unread.iter().map(|unread| unread.range)).map(|r| r.outer(LEAF_BYTES)).collect();
    Ok(free)
}

/// Returns the bytes (below `size`) of which the layers themselves say something.
pub(super) fn held(layers: &[Layer], size: u64) -> Result<RangeSet> {
    let (view, mut runs) = (View::new(layers), Vec::new());
    if layers.is_empty() {
        return Ok(RangeSet::new());
    }
    let mut held = RangeSet::new();
    for stride in GuestOffset::new(0).range(size).pieces(STRIDE_BYTES) {
        view.runs(stride, &mut runs)?;
        runs.drain(..).filter(|run| run.layer.is_some()).for_each(|run| held.insert(run.range));
    }
    Ok(held)
}

/// Holds one tree against another, but for the leaves in `free`.
fn compare(promised: &Tree, shown: &Tree, free: &RangeSet, is_own: bool) -> Verdict {
    let differing = diff(promised, shown).into_iter().flat_map(|range| range.pieces(LEAF_BYTES));
    // A layer above may be shorter: what it cuts off is not shown, the leaf that it cuts is another one.
    let whole = GuestOffset::new(shown.size()).floor(LEAF_BYTES);
    let is_cut = |leaf: &GuestRange| !is_own && shown.size() < promised.size() && leaf.start >= whole;
    let set: RangeSet = differing.filter(|leaf| !free.touches(*leaf) && !is_cut(leaf)).collect();
    let has_size = !is_own || promised.size() == shown.size();
    if set.is_empty() && has_size {
        return Verdict::Kept;
    }
    Verdict::Broken { leaves: set.iter().collect(), size: promised.size() }
}

/// What changed underneath a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The leaves that read differently now, joined, in order.
    pub leaves: Vec<GuestRange>,
    /// Those of them that nobody notices who reads the head: the layers above hide them.
    pub hidden: Vec<GuestRange>,
}

/// Finds out what changed below the layer at `depth` of a chain since its parent had the content ID `wanted`;
/// `None` if the tree of that content is not kept.
pub fn changed_below(
    ledger: &Ledger,
    chain: &Chain,
    depth: usize,
    wanted: &ContentId,
    progress: &Progress,
) -> Result<Option<Changed>> {
    let layer = chain.layers().get(depth).ok_or_else(|| Error::invalid("no such layer"))?;
    let below = chain.view(depth + 1);
    let Some(leaves) = changed(ledger, layer.image.as_ref(), wanted, &below, progress)? else {
        return Ok(None);
    };
    let above = held(chain.layers().get(..=depth).unwrap_or_default(), below.size())?;
    let hidden: RangeSet =
        leaves.iter().flat_map(|range| range.pieces(LEAF_BYTES)).filter(|leaf| above.covers(*leaf)).collect();
    Ok(Some(Changed { leaves, hidden: hidden.iter().collect() }))
}

/// Returns the leaves in which `view` differs from the content of that ID, joined, in order; `None` if its tree is
/// not kept near `image`.
pub(super) fn changed(
    ledger: &Ledger,
    image: &(impl Carrier + ?Sized),
    id: &ContentId,
    view: &View,
    progress: &Progress,
) -> Result<Option<Vec<GuestRange>>> {
    let Some(before) = ledger.tree(image, id)? else { return Ok(None) };
    Ok(Some(diff(&before, &full_tree(view, progress)?.tree)))
}

#[cfg(test)]
mod tests;
