//! The work list: what the run holds, each byte once, newest layer first.
//!
//! It comes from the run's layers alone, which do not change while the job runs, so that a resume finds the same
//! list whatever has reached the target. Zeros that a shorter layer in the middle implies are on it: they hide
//! what lies below.

use crate::{
    base::{GuestOffset, GuestRange, Result},
    chain::{Run, View},
    map::RangeSet,
};

/// Guest bytes whose runs are looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// What is to be brought to the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Every byte that the run decides.
    pub(super) list: RangeSet,
    /// Those that it holds as data.
    pub(super) copied: RangeSet,
    /// How many it holds as data.
    pub(super) copy_bytes: u64,
    /// How many it says are zero.
    pub(super) zero_bytes: u64,
    /// Digest of all runs.
    pub(super) digest: [u8; 32],
}

impl Work {
    /// Looks at the first `size` bytes of a run's view.
    pub(super) fn find(run: &View, size: u64) -> Result<Self> {
        let mut work = Self::default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&size.to_le_bytes());
        for stride in GuestOffset::new(0).range(size).pieces(STRIDE_BYTES) {
            for part in decided(run, stride)? {
                hasher.update(&part.range.start.bytes().to_le_bytes());
                hasher.update(&part.range.bytes.to_le_bytes());
                hasher.update(&[u8::from(part.is_zero())]);
                work.list.insert(part.range);
                if part.is_zero() {
                    work.zero_bytes += part.range.bytes;
                } else {
                    work.copy_bytes += part.range.bytes;
                    work.copied.insert(part.range);
                }
            }
        }
        work.digest = *hasher.finalize().as_bytes();
        Ok(work)
    }
}

/// Returns the runs in `range` that a layer of the view decides.
pub(super) fn decided(run: &View, range: GuestRange) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    run.runs(range, &mut runs)?;
    runs.retain(|part| part.layer.is_some());
    Ok(runs)
}
