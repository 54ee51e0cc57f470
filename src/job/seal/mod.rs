//! Sealing: the content ID of what a layer shows, computed once and kept with it.
//!
//! A view is hashed leaf by leaf on all cores; what its map knows to be zero is not read. Over a parent whose
//! tree is known, only the leaves that the layer itself holds something of are read.
//!
//! What stays true: a layer is sealed only when everything below it is proven, so that a seal that is trusted
//! later on stands on the same bytes as when it was made; and only if its files look as they did before the
//! first byte was read.

mod losses;
mod work;

pub use losses::Unread;

use super::Progress;
use crate::{
    base::{Error, ErrorKind, GuestOffset, GuestRange, Result, units::index},
    chain::{Chain, Layer, Opening, Standing, View, check_lineage, join, lineage, open_layer},
    content::{ContentId, Digest, LEAF_BYTES, Tree, leaf},
    io::{self, Access, Host, Witness},
    map::{Extent, RangeSet},
    store::{Known, Ledger, is_as_before},
};
use losses::{Losses, is_loss};
use parking_lot::Mutex;
use rayon::prelude::*;
use std::{path::Path, sync::Arc};
use work::{Work, work};

/// How many extents of the map are held at once.
const EXTENTS_MAX: u64 = 1 << 18;

/// No format describes an extent in fewer bytes.
const ENTRY_BYTES: u64 = 8;

/// How much is read in one go: it stays in a core's cache until it is hashed.
const PIECE_BYTES: u64 = 4 * LEAF_BYTES;

/// How a layer came by its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It had one that is trusted.
    Kept,
    /// From its parent's tree: what the layer itself holds was read.
    Incremental,
    /// Everything that is not known to be zero was read.
    Full,
}

/// A sealed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Sealed {
    /// The content ID of its view.
    pub id: ContentId,
    /// How it was found.
    pub how: How,
    /// Bytes of the view that were read and hashed.
    pub read_bytes: u64,
}

/// A tree, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// The tree of the whole view.
    pub tree: Tree,
    /// Bytes of the view that were read and hashed.
    pub read_bytes: u64,
}

/// Returns the tree of what is read at a view, reading all that is not known to be zero.
///
/// ```
/// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
/// # use std::sync::Arc;
/// use deltachain::{chain::{Chain, Opening}, content::Tree, job::{Progress, seal::full_tree}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
/// let base = folder.path().join("base.qcow2");
/// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
/// create(&host, &base, &new, &Opening::reading())?;
/// let chain = Chain::open(&host, &base, &Opening::reading())?;
/// let hashed = full_tree(&chain.view(0), &Progress::default())?;
/// assert_eq!((hashed.tree.id(), hashed.read_bytes), (Tree::new(1 << 20).id(), 0));
/// # Ok(())
/// # }
/// ```
pub fn full_tree(view: &View, progress: &Progress) -> Result<Hashed> {
    hash(view, Tree::new(view.size()), &|stride, out| merged_map(view, stride, out), progress, None)
}

/// Returns the same, going on past what cannot be read: leaves that are not whole stand in the tree as zeros.
pub fn readable_tree(view: &View, progress: &Progress) -> Result<(Hashed, Vec<Unread>)> {
    let losses = Losses::default();
    let map = |stride: GuestRange, out: &mut Vec<Extent>| merged_map(view, stride, out);
    let hashed = hash(view, Tree::new(view.size()), &map, progress, Some(&losses))?;
    Ok((hashed, losses.joined()))
}

fn merged_map(view: &View, stride: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
    let mut runs = Vec::new();
    view.runs(stride, &mut runs)?;
    out.extend(runs.iter().map(|run| Extent::new(run.range, run.state)));
    Ok(())
}

/// Returns the same tree, given that of the view below the topmost layer: what that layer holds is read.
pub fn tree_over(view: &View, below: Tree, progress: &Progress) -> Result<Hashed> {
    let mut tree = below;
    let cut = tree.resize(view.size()).map(|leaf| tree.range(leaf));
    let mut hashed = hash(view, tree, &|stride, out| view.own_map(stride, out), progress, None)?;
    if let Some(cut) = cut {
        let mut bytes = vec![0; index(LEAF_BYTES)];
        let leaves = hash_piece(view, cut, &mut bytes)?;
        leaves.into_iter().try_for_each(|(at, digest)| hashed.tree.set(at, digest))?;
        hashed.read_bytes += cut.bytes;
    }
    Ok(hashed)
}

/// Appends what a map says of a range.
type Map<'a> = dyn Fn(GuestRange, &mut Vec<Extent>) -> Result<()> + Sync + 'a;

/// Brings `tree` up to date where `map` says something; bytes that cannot be read end it, unless they are noted.
fn hash(
    view: &View,
    tree: Tree,
    map: &Map<'_>,
    progress: &Progress,
    losses: Option<&Losses>,
) -> Result<Hashed> {
    let size = view.size();
    progress.begin("hash", size);
    let hashed = Mutex::new(Hashed { tree, read_bytes: 0 });
    let strides: Vec<GuestRange> = GuestOffset::new(0).range(size).pieces(stride_bytes(view)?).collect();
    strides.par_iter().try_for_each(|stride| {
        progress.checkpoint()?;
        let mut extents = Vec::new();
        map(*stride, &mut extents)?;
        let Work { hash, zero } = work(&extents, *stride, size);
        let leaves = hash_all(view, &hash, progress, losses)?;
        progress.passed(stride.bytes - hash.bytes());
        let mut hashed = hashed.lock();
        for (from, to) in zero {
            hashed.tree.clear(from, to);
        }
        hashed.read_bytes += hash.bytes();
        leaves.into_iter().try_for_each(|(at, digest)| hashed.tree.set(at, digest))
    })?;
    Ok(hashed.into_inner())
}

/// Returns how much of the map can be looked at in one go: all of it where the files are too small to say much,
/// so that a huge and empty disk takes no time.
pub(super) fn stride_bytes(view: &View) -> Result<u64> {
    let (mut held, mut unit) = (0, u64::MAX);
    for image in view.images() {
        // Raw images have no unit of their own; the host's is rarely below this.
        unit = unit.min(if image.unit() == 1 { 4096 } else { image.unit() });
        for file in image.files() {
            held += file.allocated_bytes()?;
        }
    }
    let is_small = held / ENTRY_BYTES <= EXTENTS_MAX;
    Ok(if is_small { 1 << 62 } else { unit.saturating_mul(EXTENTS_MAX).next_multiple_of(LEAF_BYTES) })
}

/// Returns the hashes of the leaves in `ranges`, in no order.
fn hash_all(
    view: &View,
    ranges: &RangeSet,
    progress: &Progress,
    losses: Option<&Losses>,
) -> Result<Vec<(u64, Digest)>> {
    let pieces: Vec<GuestRange> = ranges.iter().flat_map(|range| range.pieces(PIECE_BYTES)).collect();
    let hashed: Result<Vec<Vec<(u64, Digest)>>> = pieces
        .par_iter()
        .map_init(
            || vec![0; index(PIECE_BYTES)],
            |buf, piece| {
                progress.checkpoint()?;
                let leaves = match (hash_piece(view, *piece, buf), losses) {
                    (Err(error), Some(losses)) if is_loss(&error) => {
                        losses.hash_what_is_left(view, *piece, buf)?
                    }
                    (hashed, _) => hashed?,
                };
                progress.moved(piece.bytes);
                Ok(leaves)
            },
        )
        .collect();
    Ok(hashed?.into_iter().flatten().collect())
}

/// Reads a piece (whole leaves, or up to the view's end) and hashes its leaves.
fn hash_piece(view: &View, piece: GuestRange, buf: &mut [u8]) -> Result<Vec<(u64, Digest)>> {
    let buf = buf.get_mut(..index(piece.bytes)).unwrap_or_default();
    view.read(piece.start, buf)?;
    let first = piece.start.bytes() / LEAF_BYTES;
    Ok((first..).zip(buf.chunks(index(LEAF_BYTES)).map(leaf)).collect())
}

/// Opens the layers of a chain for sealing: each for writing, so that its record can go into it, or for
/// reading where somebody else uses it.
pub fn open_layers(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Vec<Layer>> {
    // What is refused is what a seal is to prove.
    let reading = Opening { access: Access::Read, ledger: None, ..opening.clone() };
    let chain = Chain::open(host, path, &reading)?;
    let found: Vec<_> = chain.layers().iter().map(|l| (l.path.clone(), l.format())).collect();
    drop(chain);
    found
        .into_iter()
        .map(|(path, format)| {
            let reading = Opening { format: Some(format), ..reading.clone() };
            let writing = Opening { access: Access::Write, ..reading.clone() };
            match open_layer(host, &path, &writing) {
                Err(error) if is_refused(&error) => open_layer(host, &path, &reading),
                opened => opened,
            }
        })
        .collect()
}

fn is_refused(error: &Error) -> bool {
    let closed = [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::ReadOnlyFilesystem];
    error.kind() == ErrorKind::Busy || error.os().is_some_and(|os| closed.contains(&os.kind()))
}

/// Seals `layers` (the topmost first, the base last) from the base up, freezing those that are not frozen yet
/// and joining each to its parent. Returns what was done to each, in the order of `layers`.
///
/// `Policy` where a layer shows something else than its record or its child says; those below it are sealed
/// then. `Interrupted` when asked to stop: what is sealed stays so.
///
/// ```
/// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
/// # use std::sync::Arc;
/// use deltachain::{chain::Opening, content::Tree, job::{Progress, seal}, store::Ledger};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
/// let base = folder.path().join("base.qcow2");
/// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
/// create(&host, &base, &new, &Opening::reading())?;
/// let ledger = Ledger::new(Arc::clone(&host), None);
/// let layers = seal::open_layers(&host, &base, &Opening::reading())?;
/// let sealed = seal::seal(&ledger, &layers, &Progress::default())?;
/// // The ID says what the disk shows, whatever the format: a megabyte of zeros.
/// assert_eq!(sealed[0].id, Tree::new(1 << 20).id());
/// # Ok(())
/// # }
/// ```
pub fn seal(ledger: &Ledger, layers: &[Layer], progress: &Progress) -> Result<Vec<Sealed>> {
    seal_under(ledger, layers, Above::Nothing, progress)
}

/// The same, but the topmost layer has to show what its record promises, although no child of it is looked at: it
/// is trusted again afterwards, with the epoch that it had.
pub fn prove(ledger: &Ledger, layers: &[Layer], progress: &Progress) -> Result<Vec<Sealed>> {
    seal_under(ledger, layers, Above::Somebody, progress)
}

/// What stands on a layer that is to be sealed.
#[derive(Clone, Copy)]
enum Above<'a> {
    Nothing,
    Child(&'a Layer),
    /// Children that hold on to its epoch.
    Somebody,
}

fn seal_under(
    ledger: &Ledger,
    layers: &[Layer],
    above: Above<'_>,
    progress: &Progress,
) -> Result<Vec<Sealed>> {
    refuse_hopeless(ledger, layers)?;
    let mut done = Vec::with_capacity(layers.len());
    let children = layers.iter().rev().skip(1).map(Above::Child).chain([above]);
    for (layer, above) in layers.iter().rev().zip(children) {
        let sealed = begin(ledger, layer, above)
            .and_then(|before| seal_one(ledger, (layer, before), &done, progress))
            .map_err(|e| e.path(&layer.path))?;
        done.push(sealed);
    }
    Ok(done.into_iter().rev().map(|done| done.sealed).collect())
}

/// Refuses a chain in which no hash can prove that a parent is the right one, before anything is written.
fn refuse_hopeless(ledger: &Ledger, layers: &[Layer]) -> Result<()> {
    let mut standings = lineage(ledger, layers)?;
    for standing in &mut standings {
        standing.on_parent.take_if(|on| on.as_ref().is_err_and(|refusal| refusal.wanted.is_some()));
    }
    check_lineage(layers, &standings)
}

/// A layer that is sealed, and what was known of it then.
struct Done<'a> {
    layer: &'a Layer,
    sealed: Sealed,
    known: Known,
}

impl Done<'_> {
    fn is_unchanged(&self) -> Result<bool> {
        let files = self.layer.image.files();
        let now: Vec<Witness> = files.iter().map(|file| file.witness()).collect::<Result<_>>()?;
        Ok(is_as_before(&self.known.now, &now))
    }
}

/// Returns what is known of a layer before its first byte is read. A head gets its epoch together with its seal.
///
/// One in doubt that no child stands on is as good as a head, and gets another epoch now: its seal is void.
fn begin(ledger: &Ledger, layer: &Layer, above: Above<'_>) -> Result<Known> {
    let image = layer.image.as_ref();
    let known = ledger.look(image)?;
    let epoch = known.layer.frozen.map(|record| record.epoch);
    let is_needed = match above {
        Above::Nothing => false,
        Above::Somebody => true,
        Above::Child(child) => {
            let claim = ledger.look(child.image.as_ref())?.layer.claim;
            claim.is_some_and(|claim| Some(claim.parent_epoch) == epoch)
        }
    };
    if is_needed || epoch.is_none() { Ok(known) } else { ledger.freeze(image) }
}

/// Seals a layer, of which so much is known, above those that are `done` (the base first).
fn seal_one<'a>(
    ledger: &Ledger,
    (layer, before): (&'a Layer, Known),
    done: &[Done<'a>],
    progress: &Progress,
) -> Result<Done<'a>> {
    let (image, parent) = (layer.image.as_ref(), done.last());
    let standing = stand(layer, before.clone(), parent)?;
    if let Some(id) = standing.known.proven() {
        return Ok(Done {
            layer,
            sealed: Sealed { id, how: How::Kept, read_bytes: 0 },
            known: standing.known,
        });
    }
    // A write from here on gets another time stamp than the files have now.
    io::settle(&image.files(), &before.now);
    let (hashed, how) = hash_over(ledger, layer, done, progress)?;
    for below in done {
        if !below.is_unchanged()? {
            let what = "was written while a content ID above it was computed";
            return Err(Error::busy(what).path(&below.layer.path));
        }
    }
    let known = ledger.seal(image, &hashed.tree, &before)?;
    let id = known.layer.frozen.and_then(|record| record.sealed).unwrap_or_else(|| hashed.tree.id());
    let known = match parent {
        Some(parent) => join(ledger, image, (parent.layer.image.as_ref(), &parent.known))?,
        None => known,
    };
    let sealed = Sealed { id, how, read_bytes: hashed.read_bytes };
    Ok(Done { layer, sealed, known: stand(layer, known, parent)?.known })
}

/// Hashes a layer's view, from the tree of the one below if that is kept.
fn hash_over(
    ledger: &Ledger,
    layer: &Layer,
    done: &[Done<'_>],
    progress: &Progress,
) -> Result<(Hashed, How)> {
    let layers = std::iter::once(layer).chain(done.iter().rev().map(|done| done.layer));
    let view = View::new(&layers.cloned().collect::<Vec<Layer>>());
    let below = match done.last() {
        Some(parent) => ledger.tree(parent.layer.image.as_ref(), &parent.sealed.id)?,
        None => None,
    };
    Ok(match below {
        Some(below) => (tree_over(&view, below, progress)?, How::Incremental),
        None => (full_tree(&view, progress)?, How::Full),
    })
}

/// Returns how a layer stands on the one below, whose content ID has just been proven; a refusal is an error.
fn stand(layer: &Layer, known: Known, parent: Option<&Done<'_>>) -> Result<Standing> {
    let Some(parent) = parent else { return Ok(Standing { known, on_parent: None }) };
    let standing = Standing::on(layer, known, &parent.known, Some(parent.sealed.id));
    match &standing.on_parent {
        Some(Err(refusal)) => Err(refusal.error(&layer.path, &parent.layer.path)),
        _ => Ok(standing),
    }
}

#[cfg(test)]
mod tests;
