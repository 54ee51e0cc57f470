//! Which requests are short: learned from how long such requests took lately.
//!
//! A thread that takes requests in does short ones itself, as waking another thread costs about as much.

use crate::base::clock::Stopwatch;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Reads and writes up to this size may be short.
pub(super) const SHORT_BYTES: u64 = 1 << 20;
/// They are while they take less than this on average, beyond what it takes to copy their bytes.
const SHORT_NS: u64 = 40_000;
/// As many bytes are copied in a nanosecond at least.
const BYTES_PER_NS: u64 = 2;

/// How long requests of a kind take beyond copying, in nanoseconds: a moving average.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Returns whether such requests have been short.
    pub(super) fn is_short(&self) -> bool {
        self.0.load(Relaxed) < SHORT_NS
    }

    /// Takes in what an operation on so many bytes took.
    pub(super) fn learn(&self, bytes: u64, watch: Stopwatch) {
        let took = u64::try_from(watch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let took = took.saturating_sub(bytes / BYTES_PER_NS).min(10 * SHORT_NS);
        let before = self.0.load(Relaxed);
        self.0.store(before - before / 8 + took / 8, Relaxed);
    }
}
