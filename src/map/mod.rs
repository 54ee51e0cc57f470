//! Which bytes of a disk are where: the algebra of extents. Pure; no I/O.
#![forbid(unsafe_code)]

mod set;

pub use set::RangeSet;

use crate::base::{GuestRange, HostOffset};

/// What one layer says about a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The layer is silent; ask its parent.
    Absent,
    /// Reads as zeros; `host` is where space is held for it, if any is.
    Zero {
        /// Space that the layer holds for this run, in its data file.
        host: Option<HostOffset>,
    },
    /// The layer holds the bytes as they are, in its data file at `host`.
    Data {
        /// Where the run's first byte is.
        host: HostOffset,
    },
    /// The layer holds the bytes in another shape (compressed): only the image itself can read them.
    Packed,
}

impl State {
    /// Returns the state `bytes` further into the same run.
    #[must_use]
    pub fn after(self, bytes: u64) -> Self {
        match self {
            Self::Zero { host } => Self::Zero { host: host.map(|at| at.plus(bytes)) },
            Self::Data { host } => Self::Data { host: host.plus(bytes) },
            silent => silent,
        }
    }

    /// Returns whether the layer decides what is read here.
    pub const fn is_present(self) -> bool {
        !matches!(self, Self::Absent)
    }

    /// Returns whether the layer says that this reads as zeros.
    pub const fn is_zero(self) -> bool {
        matches!(self, Self::Zero { .. })
    }

    /// Returns whether bytes are stored here, plain or packed.
    pub const fn is_data(self) -> bool {
        matches!(self, Self::Data { .. } | Self::Packed)
    }
}

/// A run of guest bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Which bytes.
    pub range: GuestRange,
    /// What the layer says about them.
    pub state: State,
}

impl Extent {
    /// Joins a range with what is known of it.
    pub const fn new(range: GuestRange, state: State) -> Self {
        Self { range, state }
    }

    /// Returns the part of the extent inside `range` (which may be empty).
    #[must_use]
    pub fn clip(self, range: GuestRange) -> Self {
        let part = self.range.clip(range);
        Self::new(part, self.state.after(part.start.since(self.range.start)))
    }

    /// Returns whether `next` goes on where this ends, in the same state and place.
    #[inline]
    pub fn joins(&self, next: &Self) -> bool {
        self.range.end() == next.range.start && self.state.after(self.range.bytes) == next.state
    }
}

/// Adds `extent` to a list in guest order, joining it to the last one where it goes on from there.
///
/// Empty extents are dropped.
#[inline]
pub fn push(list: &mut Vec<Extent>, extent: Extent) {
    if extent.range.is_empty() {
        return;
    }
    match list.last_mut() {
        Some(last) if last.joins(&extent) => last.range.bytes += extent.range.bytes,
        _ => list.push(extent),
    }
}

#[cfg(test)]
mod tests;
