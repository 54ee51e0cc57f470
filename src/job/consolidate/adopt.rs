//! Which runs of the folded layers' files the target adopts before the moves begin.
//!
//! What a guest wrote here and there lies in the file of a delta in one run. A host that shares blocks asks nearly the
//! same for one cluster as for a thousand in a row; to share each in the place that the target has for it costs
//! a change of the host's tables each. So long runs are shared first, whole, in the order of the file, with places of
//! the target that nothing refers to ([`Image::adopt`](crate::format::Image::adopt)); each move then points to what
//! it brings, in the order of the guest. Nothing that the target shows changes before that, so that marks mean what
//! they mean without.

use super::{sides::Sides, work::decided};
use crate::{
    base::{GuestOffset, GuestRange, HostOffset, HostRange, Result},
    chain::Run,
    format::Adopted,
    io,
    map::State,
};
use std::collections::BTreeMap;

/// Guest bytes whose runs are looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// Pieces this long are shared in place as fast.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// Pieces that are remembered while runs are looked for: 64 MiB of them.
const PIECES_MAX: usize = 4 << 20;

/// A run that the target has adopted.
#[derive(Debug)]
struct Adoption {
    /// The folded layer.
    layer: usize,
    /// Where its file has the run.
    from: HostRange,
    adopted: Adopted,
}

/// A part of a run, and where the target adopted it, if it has: with whether the host shares it.
pub(super) type Part = (Run, Option<(HostOffset, bool)>);

/// What the target has adopted, by layer and place there.
#[derive(Debug, Default)]
pub(super) struct Adoptions {
    held: Vec<Adoption>,
}

impl Adoptions {
    /// Lets the target adopt, of what the run decides from `start` on, the runs that the guest has in `least_pieces`
    /// pieces or more.
    pub(super) fn make(sides: &Sides, start: GuestOffset, least_pieces: u64) -> Result<Self> {
        let mut adoptions = Self::default();
        let Some(cluster) = sides.target.details()?.cluster_bytes else { return Ok(adoptions) };
        let target = sides.target.data_file();
        for (layer, pieces) in pieces(sides, start, cluster)? {
            let Some(image) = sides.run.images().get(layer) else { continue };
            let file = image.data_file();
            for (mut left, count) in joined(pieces) {
                let is_worth = count >= least_pieces && left.bytes / count <= PIECE_BYTES_MAX;
                // A host that has refused once is not asked again.
                if !is_worth || !io::may_share(file.as_ref(), target.as_ref()) {
                    continue;
                }
                while let Some(adopted) = sides.target.adopt(file.as_ref(), left)? {
                    let from = left.start.range(adopted.place.bytes);
                    adoptions.held.push(Adoption { layer, from, adopted });
                    left = HostRange::between(from.end(), left.end());
                }
            }
        }
        Ok(adoptions)
    }

    /// Cuts a run where an adoption begins or ends.
    pub(super) fn parts(&self, run: &Run) -> Vec<Part> {
        let (State::Data { host }, Some(layer)) = (run.state, run.layer) else { return vec![(*run, None)] };
        let whole = host.range(run.range.bytes);
        let part =
            |range: HostRange| run.clip(run.range.start.plus(range.start.since(host)).range(range.bytes));
        let (mut parts, mut at) = (Vec::new(), host);
        let first = self.held.partition_point(|a| (a.layer, a.from.end()) <= (layer, host));
        let held = self.held.iter().skip(first);
        for Adoption { from, adopted, .. } in held.take_while(|a| a.layer == layer && a.from.overlaps(whole))
        {
            let shared = from.clip(whole);
            let place = adopted.place.start.plus(shared.start.since(from.start));
            parts.push((part(HostRange::between(at, shared.start)), None));
            parts.push((part(shared), Some((place, adopted.moved.copied_bytes == 0))));
            at = shared.end();
        }
        parts.push((part(HostRange::between(at, whole.end())), None));
        parts.retain(|(run, _)| !run.range.is_empty());
        parts
    }
}

/// Returns where the layers hold whole clusters of the target that the run decides, by layer.
fn pieces(sides: &Sides, start: GuestOffset, cluster: u64) -> Result<BTreeMap<usize, Vec<HostRange>>> {
    let (mut pieces, mut count) = (BTreeMap::<_, Vec<_>>::new(), 0);
    for stride in GuestRange::between(start, GuestOffset::new(sides.size)).pieces(STRIDE_BYTES) {
        for run in decided(&sides.run, stride)? {
            let whole = run.range.inner(cluster);
            let (State::Data { host }, Some(layer)) = (run.clip(whole).state, run.layer) else { continue };
            if !whole.is_empty() && host == host.floor(cluster) && count < PIECES_MAX {
                pieces.entry(layer).or_default().push(host.range(whole.bytes));
                count += 1;
            }
        }
    }
    Ok(pieces)
}

/// Joins pieces where one goes on from another; with how many each run has.
fn joined(mut pieces: Vec<HostRange>) -> Vec<(HostRange, u64)> {
    pieces.sort_unstable_by_key(|piece| piece.start);
    let mut runs: Vec<(HostRange, u64)> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some((run, count)) if run.end() == piece.start => {
                run.bytes += piece.bytes;
                *count += 1;
            }
            _ => runs.push((piece, 1)),
        }
    }
    runs
}
