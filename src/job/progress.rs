//! What a running job tells, and what it is told: the one place where both sides meet.
//!
//! A job calls [`Progress::begin`], [`Progress::moved`], [`Progress::passed`] and [`Progress::checkpoint`]; whoever
//! started it reads [`Progress::state`] and calls [`Progress::cancel`] and [`Progress::set_rate`] from another thread. The
//! library draws nothing.

use crate::base::{Error, ErrorKind, Result, clock::Stopwatch};
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

/// What a job shares with whoever started it.
#[derive(Debug)]
pub struct Progress {
    phase: Mutex<Phase>,
    moved: AtomicU64,
    /// How many of the moved ones took neither reading nor writing.
    passed: AtomicU64,
    is_cancelled: AtomicBool,
    /// Bytes a second; 0 is no limit.
    rate: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Phase {
    name: &'static str,
    size_bytes: u64,
    since: Stopwatch,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// What is being done, in a word.
    pub phase: &'static str,
    /// Bytes done in this phase.
    pub moved_bytes: u64,
    /// Bytes to do in this phase.
    pub size_bytes: u64,
    /// Time since the phase began.
    pub elapsed: Duration,
}

impl Default for Progress {
    fn default() -> Self {
        let phase = Phase { name: "created", size_bytes: 0, since: Stopwatch::start() };
        Self {
            phase: Mutex::new(phase),
            moved: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            is_cancelled: AtomicBool::new(false),
            rate: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// Starts a phase of `size_bytes` bytes.
    pub fn begin(&self, name: &'static str, size_bytes: u64) {
        let mut phase = self.phase.lock();
        self.moved.store(0, Ordering::Relaxed);
        self.passed.store(0, Ordering::Relaxed);
        *phase = Phase { name, size_bytes, since: Stopwatch::start() };
    }

    /// Counts bytes as done, waiting as long as the rate asks.
    pub fn moved(&self, bytes: u64) {
        let moved = self.moved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a wait needs no more than 52 bits")]
        let due = Duration::from_secs_f64(
            moved.saturating_sub(self.passed.load(Ordering::Relaxed)) as f64 / rate as f64,
        );
        let since = self.phase.lock().since;
        // Short naps, so that a cancelled job or a new rate is noticed.
        while since.elapsed() < due && !self.is_cancelled() && self.rate.load(Ordering::Relaxed) == rate {
            std::thread::sleep((due.saturating_sub(since.elapsed())).min(Duration::from_millis(50)));
        }
    }

    /// Counts bytes as done that nothing had to be read or written for (holes, say): no rate slows them.
    pub fn passed(&self, bytes: u64) {
        // Passed before moved: whoever sees the sum in between must not wait for these.
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how far the job is.
    pub fn state(&self) -> State {
        let Phase { name, size_bytes, since } = *self.phase.lock();
        let moved_bytes = self.moved.load(Ordering::Relaxed);
        State { phase: name, moved_bytes, size_bytes, elapsed: since.elapsed() }
    }

    /// Limits the job to `bytes_per_second`; 0 lifts the limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Asks the job to stop at its next clean checkpoint.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the job was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Goes on, or fails with `Interrupted` if the job was asked to stop.
    pub fn checkpoint(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "stopped at a clean point, as asked"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_job_stops_at_its_next_checkpoint() {
        let progress = Progress::default();
        progress.begin("copy", 100);
        progress.moved(40);
        assert!(progress.checkpoint().is_ok());
        progress.cancel();
        assert_eq!(progress.checkpoint().unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!((progress.state().moved_bytes, progress.state().size_bytes), (40, 100));
    }

    #[test]
    fn a_rate_makes_the_job_wait() {
        let progress = Progress::default();
        progress.set_rate(1_000_000);
        progress.begin("copy", 20_000);
        progress.moved(20_000);
        assert!(progress.state().elapsed >= Duration::from_millis(20));
    }

    #[test]
    fn holes_are_done_at_once_whatever_the_rate() {
        let progress = Progress::default();
        progress.set_rate(1_000_000);
        progress.begin("copy", 10_020_000);
        progress.passed(10_000_000);
        assert!(progress.state().elapsed < Duration::from_secs(5));
        progress.moved(20_000);
        assert_eq!(progress.state().moved_bytes, 10_020_000);
        assert!(progress.state().elapsed >= Duration::from_millis(20));
    }
}
