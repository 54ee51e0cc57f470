//! Which leaves of a tree a layer's map makes it hash again. Pure.

use crate::{
    base::{GuestOffset, GuestRange},
    content::LEAF_BYTES,
    map::{Extent, RangeSet},
};

/// What has to be done so that a tree shows what a map says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Leaves to read and hash: whole leaves, cut only by the view's end.
    pub(super) hash: RangeSet,
    /// Leaves that are zeros and need no reading: first, and first after.
    pub(super) zero: Vec<(u64, u64)>,
}

/// Returns the work that the part of a map in `stride` makes, in a view of `size` bytes.
///
/// `stride` starts and ends on whole leaves; what the map is silent about keeps its hash.
pub(super) fn work(map: &[Extent], stride: GuestRange, size: u64) -> Work {
    let mut work = Work::default();
    let view = GuestOffset::new(0).range(size);
    for extent in map.iter().filter(|extent| extent.state.is_present()) {
        // What lies past the view's end is zeros, so that a zero run up to the end fills the last leaf.
        let is_last = extent.range.end() >= view.end();
        let end = if is_last { extent.range.end().ceil(LEAF_BYTES) } else { extent.range.end() };
        let range = GuestRange::between(extent.range.start, end);
        let whole = if extent.state.is_zero() { range.inner(LEAF_BYTES) } else { GuestRange::default() };
        if whole.is_empty() {
            work.hash.insert(range.outer(LEAF_BYTES).clip(stride).clip(view));
            continue;
        }
        work.zero.push((whole.start.bytes() / LEAF_BYTES, whole.end().bytes() / LEAF_BYTES));
        for edge in [GuestRange::between(range.start, whole.start), GuestRange::between(whole.end(), end)] {
            if !edge.is_empty() {
                work.hash.insert(edge.outer(LEAF_BYTES).clip(stride).clip(view));
            }
        }
    }
    work
}
