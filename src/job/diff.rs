//! Where two disks differ: `compare` and `diff`.
//!
//! What both read from the same place, or know to be zero, is not read. The rest is read on all cores.

use super::Progress;
use crate::{
    base::{GuestOffset, GuestRange, Result, units::index},
    chain::{Both, Chain, Pair, Run, View},
    disk::Disk,
    format::Below,
};
use rayon::prelude::*;

/// How much of the maps is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// How much is read in one go.
const PIECE_BYTES: u64 = 1 << 20;

/// What one disk shows where two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The second disk holds other bytes.
    Data,
    /// The second disk is known to read as zeros.
    Zero,
}

/// A range in which two disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which bytes, in steps of the granularity.
    pub range: GuestRange,
    /// What the second disk shows.
    pub kind: Kind,
}

/// Finds every range in which `a` and `b` differ, in order and joined; `found` returns false to stop.
///
/// Past the end of the smaller disk, it reads as zeros. Ranges are multiples of `granularity_bytes` (a power of
/// two, at most 1 MiB) but for the last one.
pub fn differences(
    a: &View,
    b: &View,
    granularity_bytes: u64,
    progress: &Progress,
    found: &mut dyn FnMut(Difference) -> bool,
) -> Result<()> {
    let pair = Pair::new(a, b)?;
    let runs = |stride| {
        let mut runs = Vec::new();
        pair.runs(stride, &mut runs)?;
        let kind = |run: &Both| if run.right.is_zero() { Kind::Zero } else { Kind::Data };
        Ok(runs.iter().filter(|run| !run.is_same).map(|run| (run.range(), kind(run))).collect())
    };
    let size = a.size().max(b.size());
    walk(&Search { size, granularity_bytes, sides: (a, b), runs: &runs }, progress, found)
}

/// The same between layer `depth` of a disk that guests may be writing and what they see now: of what they write
/// meanwhile, some counts. Only what the layers above hold is looked at.
pub fn differences_from_layer(
    chain: &Chain,
    depth: usize,
    granularity_bytes: u64,
    progress: &Progress,
    found: &mut dyn FnMut(Difference) -> bool,
) -> Result<()> {
    let (then, now) = (chain.view(depth), Now(chain));
    let runs = |stride: GuestRange| {
        let mut runs = Vec::new();
        let inside = stride.clip(GuestOffset::new(0).range(chain.size()));
        chain.runs(inside, &mut runs)?;
        runs.retain(|run| run.layer.is_some_and(|layer| layer < depth));
        let kind = |run: &Run| if run.is_zero() { Kind::Zero } else { Kind::Data };
        // Where the disk has shrunk since, it shows nothing.
        let past = GuestRange::between(stride.start.max(inside.end()), stride.end());
        let past = Some((past, Kind::Zero)).filter(|(range, _)| !range.is_empty());
        Ok(runs.iter().map(|run| (run.range, kind(run))).chain(past).collect())
    };
    let size = then.size().max(chain.size());
    walk(&Search { size, granularity_bytes, sides: (&then, &now), runs: &runs }, progress, found)
}

/// What guests see, zeros past its end.
struct Now<'a>(&'a Chain);

impl Below for Now<'_> {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let inside = at.range(buf.len() as u64).clip(GuestOffset::new(0).range(self.0.size()));
        let (there, past) = buf.split_at_mut(index(inside.bytes));
        past.fill(0);
        if there.is_empty() { Ok(()) } else { self.0.read(at, there) }
    }

    fn is_zero(&self, _range: GuestRange) -> Result<bool> {
        Ok(false)
    }
}

/// Runs that may differ, in order, and what the second side shows there.
type Runs = Vec<(GuestRange, Kind)>;

/// Where differences are looked for.
struct Search<'a> {
    size: u64,
    granularity_bytes: u64,
    sides: (&'a dyn Below, &'a dyn Below),
    runs: &'a dyn Fn(GuestRange) -> Result<Runs>,
}

fn walk(search: &Search<'_>, progress: &Progress, found: &mut dyn FnMut(Difference) -> bool) -> Result<()> {
    progress.begin("compare", search.size);
    let mut pending: Option<Difference> = None;
    for stride in GuestOffset::new(0).range(search.size).pieces(STRIDE_BYTES) {
        progress.checkpoint()?;
        for next in stride_differences(search, stride, progress)? {
            match &mut pending {
                Some(last) if last.kind == next.kind && last.range.end() == next.range.start => {
                    last.range.bytes += next.range.bytes;
                }
                _ => {
                    if pending.replace(next).is_some_and(|last| !found(last)) {
                        return Ok(());
                    }
                }
            }
        }
    }
    if let Some(last) = pending {
        found(last);
    }
    Ok(())
}

/// Returns the first byte in which the disks differ, `None` if they show the same.
///
/// ```
/// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
/// # use std::sync::Arc;
/// use deltachain::{base::GuestOffset, chain::{Chain, Opening}, disk::Disk};
/// use deltachain::job::{Progress, diff::first_difference, snapshot::snapshot};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
/// let base = folder.path().join("base.qcow2");
/// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
/// create(&host, &base, &new, &Opening::reading())?;
/// let new = folder.path().join("new.qcow2");
/// snapshot(&host, &base, &new, &[], &Opening::writing())?;
/// let disk = Chain::open(&host, &new, &Opening::writing())?;
/// disk.write(GuestOffset::new(70_000), b"hello")?;
/// let at = first_difference(&disk.view(0), &disk.view(1), &Progress::default())?;
/// assert_eq!(at, Some(GuestOffset::new(70_000)));
/// # Ok(())
/// # }
/// ```
pub fn first_difference(a: &View, b: &View, progress: &Progress) -> Result<Option<GuestOffset>> {
    let mut first = None;
    differences(a, b, 4096, progress, &mut |difference| {
        first = Some(difference.range);
        false
    })?;
    let Some(range) = first else { return Ok(None) };
    let piece = range.start.range(range.bytes.min(4096));
    let (left, right) = (read(a, piece)?, read(b, piece)?);
    let at = left.iter().zip(&right).position(|(x, y)| x != y).unwrap_or(0);
    Ok(Some(range.start.plus(at as u64)))
}

fn stride_differences(
    search: &Search<'_>,
    stride: GuestRange,
    progress: &Progress,
) -> Result<Vec<Difference>> {
    let granularity = search.granularity_bytes;
    let (runs, sides) = ((search.runs)(stride)?, search.sides);
    let pieces = pieces(&runs, stride, granularity);
    let parts: Vec<Vec<Difference>> =
        pieces.par_iter().map(|piece| piece_differences(sides, piece, granularity)).collect::<Result<_>>()?;
    let read = pieces.iter().map(|piece| piece.range.bytes).sum();
    progress.moved(read);
    progress.passed(stride.bytes.saturating_sub(read));
    Ok(parts.into_iter().flatten().collect())
}

/// A stretch to be read on both sides.
struct Piece {
    range: GuestRange,
    kind: Kind,
}

/// Returns what has to be read: the runs that may differ, widened to whole granules, each once.
fn pieces(runs: &[(GuestRange, Kind)], stride: GuestRange, granularity: u64) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    let mut at = stride.start;
    for (range, kind) in runs {
        let (wide, kind) = (range.outer(granularity).clip(stride), *kind);
        let rest = GuestRange::between(wide.start.max(at), wide.end());
        out.extend(rest.pieces(PIECE_BYTES).map(|range| Piece { range, kind }));
        at = at.max(wide.end());
    }
    out
}

fn piece_differences(
    views: (&dyn Below, &dyn Below),
    piece: &Piece,
    granularity: u64,
) -> Result<Vec<Difference>> {
    let (left, right) = (read(views.0, piece.range)?, read(views.1, piece.range)?);
    if left == right {
        return Ok(Vec::new());
    }
    let granule = index(granularity);
    let pairs = left.chunks(granule).zip(right.chunks(granule)).enumerate();
    let differing = pairs.filter(|(_, (a, b))| a != b).map(|(n, (a, _))| Difference {
        range: piece.range.start.plus((n * granule) as u64).range(a.len() as u64),
        kind: piece.kind,
    });
    Ok(differing.collect())
}

fn read(view: &dyn Below, range: GuestRange) -> Result<Vec<u8>> {
    let mut bytes = vec![0; index(range.bytes)];
    view.read(range.start, &mut bytes)?;
    Ok(bytes)
}
