//! What a running job tells, and what it is told: the one place where both sides meet.
//!
//! A job calls [`Progress::begin`], [`Progress::moved`], [`Progress::passed`] and [`Progress::checkpoint`]; whoever
//! started it reads [`Progress::state`] and calls [`Progress::cancel`], [`Progress::pause`] and [`Progress::set_rate`]
//! from another thread. The library draws nothing.

use super::live::Felt;
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
    is_paused: AtomicBool,
    /// Bytes a second; 0 is no limit.
    rate: AtomicU64,
    /// When the job should have ended: so long after that moment.
    deadline: Mutex<Option<(Stopwatch, Duration)>>,
    manners: Mutex<Manners>,
    felt: Mutex<Option<Recently>>,
}

/// How a job that goes on beside guests is to behave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Manners {
    /// The part of the time, above 0 and at most 1, that it keeps for itself; `None`: as it was begun.
    pub share: Option<f64>,
    /// What one of the guests' requests in a hundred may take longer than, while the job takes more than its share.
    pub latency_target: Option<Duration>,
}

/// What was so a moment ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recently {
    /// What guests' requests took.
    pub felt: Felt,
    /// Bytes a second that the job moved.
    pub rate: u64,
}

/// How often in a second a job with a limit moves something, and how much of it at least.
const STEPS_A_SECOND: u64 = 8;
const STEP_BYTES_MIN: u64 = 64 << 10;

/// How long a job that waits sleeps at a time: so soon it notices that it is asked for something.
const NAP: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
struct Phase {
    name: &'static str,
    size_bytes: u64,
    since: Stopwatch,
    /// How long the phase had gone on before that.
    before: Duration,
    /// How long the job was paused since then.
    idle: Duration,
    /// The rate counts from here on.
    paced: Stopwatch,
    /// What counted as done then.
    paced_from: u64,
}

impl Phase {
    fn start(name: &'static str, size_bytes: u64) -> Self {
        let since = Stopwatch::start();
        let none = Duration::ZERO;
        Self { name, size_bytes, since, before: none, idle: none, paced: since, paced_from: 0 }
    }
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
    /// Time since the phase began, pauses left out.
    pub elapsed: Duration,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            phase: Mutex::new(Phase::start("created", 0)),
            moved: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            is_cancelled: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            rate: AtomicU64::new(0),
            deadline: Mutex::new(None),
            manners: Mutex::default(),
            felt: Mutex::new(None),
        }
    }
}

impl Progress {
    /// Starts a phase of `size_bytes` bytes.
    pub fn begin(&self, name: &'static str, size_bytes: u64) {
        let mut phase = self.phase.lock();
        self.moved.store(0, Ordering::Relaxed);
        self.passed.store(0, Ordering::Relaxed);
        *phase = Phase::start(name, size_bytes);
    }

    /// Goes over to what follows a phase, which takes no time worth counting: its figures stay.
    pub fn go_over(&self, name: &'static str) {
        self.phase.lock().name = name;
    }

    /// Shows what was seen of a job that runs elsewhere.
    pub fn follow(&self, seen: &State) {
        let mut phase = self.phase.lock();
        self.moved.store(seen.moved_bytes, Ordering::Relaxed);
        *phase = Phase { before: seen.elapsed, ..Phase::start(seen.phase, seen.size_bytes) };
    }

    /// Counts bytes as done, waiting as long as the rate asks.
    pub fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let Phase { paced, paced_from, .. } = *self.phase.lock();
        #[expect(clippy::cast_precision_loss, reason = "a wait needs no more than 52 bits")]
        let due = Duration::from_secs_f64(self.carried().saturating_sub(paced_from) as f64 / rate as f64);
        // Short naps, so that a cancelled job or a new rate is noticed.
        while paced.elapsed() < due && !self.is_cancelled() && self.rate.load(Ordering::Relaxed) == rate {
            std::thread::sleep((due.saturating_sub(paced.elapsed())).min(NAP));
        }
    }

    /// Returns the bytes that count for the rate.
    fn carried(&self) -> u64 {
        self.moved.load(Ordering::Relaxed).saturating_sub(self.passed.load(Ordering::Relaxed))
    }

    /// The rate counts from now on: what was faster or slower before is not made up for.
    fn pace_anew(&self) {
        let mut phase = self.phase.lock();
        (phase.paced, phase.paced_from) = (Stopwatch::start(), self.carried());
    }

    /// Counts bytes as done that nothing had to be read or written for (holes, say): no rate slows them.
    pub fn passed(&self, bytes: u64) {
        // Passed before moved: whoever sees the sum in between must not wait for these.
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how far the job is.
    pub fn state(&self) -> State {
        let Phase { name, size_bytes, since, before, idle, .. } = *self.phase.lock();
        let moved_bytes = self.moved.load(Ordering::Relaxed);
        let elapsed = (before + since.elapsed()).saturating_sub(idle);
        State { phase: name, moved_bytes, size_bytes, elapsed }
    }

    /// Limits the job to `bytes_per_second` from now on; 0 lifts the limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.pace_anew();
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Says how the job is to behave beside guests from now on.
    pub fn set_manners(&self, manners: Manners) {
        *self.manners.lock() = manners;
    }

    /// Returns how the job is to behave beside guests.
    pub fn manners(&self) -> Manners {
        *self.manners.lock()
    }

    /// Tells what was so a moment ago.
    pub fn feel(&self, recently: Recently) {
        *self.felt.lock() = Some(recently);
    }

    /// Returns what was so a moment ago; `None` as long as nobody has looked.
    pub fn recently(&self) -> Option<Recently> {
        *self.felt.lock()
    }

    /// Says within which time from now the job should end: one that is behind goes before the guest.
    pub fn set_deadline(&self, within: Duration) {
        *self.deadline.lock() = Some((Stopwatch::start(), within));
    }

    /// Returns whether the job would miss its deadline at the pace that it had so far.
    pub fn is_late(&self) -> bool {
        let Some((since, within)) = *self.deadline.lock() else { return false };
        let State { moved_bytes, size_bytes, elapsed, .. } = self.state();
        let to_do = u128::from(size_bytes.saturating_sub(moved_bytes)) * elapsed.as_nanos();
        let left = within.saturating_sub(since.elapsed()).as_nanos();
        to_do > left.saturating_mul(u128::from(moved_bytes))
    }

    /// Returns how many bytes to move at once: `most_bytes`, or less where a limit would make rare bursts of that.
    pub fn step_bytes(&self, most_bytes: u64) -> u64 {
        match self.rate() {
            0 => most_bytes,
            rate => (rate / STEPS_A_SECOND).max(1).next_multiple_of(STEP_BYTES_MIN).min(most_bytes),
        }
    }

    /// Returns the limit in bytes a second; 0 is none.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Asks the job to wait at its next clean checkpoint until [`Progress::resume`].
    pub fn pause(&self) {
        self.is_paused.store(true, Ordering::Relaxed);
    }

    /// Has a job that was paused go on.
    pub fn resume(&self) {
        self.is_paused.store(false, Ordering::Relaxed);
    }

    /// Returns whether the job was asked to wait.
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }

    /// Asks the job to stop at its next clean checkpoint.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the job was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Goes on, as soon as the job is not paused; fails with `Interrupted` if it was asked to stop.
    pub fn checkpoint(&self) -> Result<()> {
        if self.is_paused() && !self.is_cancelled() {
            let watch = Stopwatch::start();
            while self.is_paused() && !self.is_cancelled() {
                std::thread::sleep(NAP);
            }
            self.phase.lock().idle += watch.elapsed();
            self.pace_anew();
        }
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
    fn a_job_that_is_followed_is_as_old_as_it_says() {
        let progress = Progress::default();
        let seen =
            State { phase: "copy", moved_bytes: 60, size_bytes: 100, elapsed: Duration::from_hours(1) };
        progress.follow(&seen);
        let State { elapsed, .. } = progress.state();
        assert_eq!(State { elapsed: seen.elapsed, ..progress.state() }, seen);
        assert!(elapsed >= seen.elapsed && elapsed < seen.elapsed + Duration::from_mins(1), "{elapsed:?}");
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
    fn a_slow_job_moves_little_at_a_time() {
        let progress = Progress::default();
        assert_eq!(progress.step_bytes(16 << 20), 16 << 20);
        for (rate, step) in [(1, 64 << 10), (4 << 20, 512 << 10), (1 << 40, 16 << 20), (u64::MAX, 16 << 20)] {
            progress.set_rate(rate);
            assert_eq!(progress.step_bytes(16 << 20), step, "{rate}");
        }
        assert_eq!(progress.step_bytes(4096), 4096);
    }

    #[test]
    fn a_new_rate_does_not_make_up_for_what_was_before() {
        let progress = Progress::default();
        progress.begin("copy", 2_000_000_000);
        progress.moved(1_000_000_000);
        progress.set_rate(1_000_000);
        progress.moved(20_000);
        let elapsed = progress.state().elapsed;
        assert!(elapsed >= Duration::from_millis(20) && elapsed < Duration::from_mins(1), "{elapsed:?}");
    }

    #[test]
    fn con_10_a_paused_job_waits_and_the_pause_does_not_count() {
        let progress = Progress::default();
        progress.begin("copy", 100);
        progress.pause();
        let is_there = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let job = scope.spawn(|| {
                is_there.store(true, Ordering::Relaxed);
                progress.checkpoint().unwrap();
                progress.moved(1);
            });
            while !is_there.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(progress.state().moved_bytes, 0);
            progress.resume();
            job.join().unwrap();
        });
        assert_eq!(progress.state().moved_bytes, 1);
        assert!(progress.phase.lock().idle > Duration::ZERO);
        progress.pause();
        progress.cancel();
        assert_eq!(progress.checkpoint().unwrap_err().kind(), ErrorKind::Interrupted);
    }

    #[test]
    fn con_2_a_job_that_would_miss_its_deadline_knows_it() {
        let progress = Progress::default();
        progress.begin("copy", 1000);
        progress.moved(10);
        assert!(!progress.is_late());
        progress.set_deadline(Duration::from_hours(1));
        assert!(!progress.is_late());
        progress.set_deadline(Duration::ZERO);
        assert!(progress.is_late());
        progress.moved(990);
        assert!(!progress.is_late());
    }

    #[test]
    fn holes_are_done_at_once_whatever_the_rate() {
        let progress = Progress::default();
        progress.set_rate(1_000_000);
        progress.begin("copy", 1_000_020_000);
        progress.passed(1_000_000_000);
        assert!(progress.state().elapsed < Duration::from_mins(1));
        progress.moved(20_000);
        assert_eq!(progress.state().moved_bytes, 1_000_020_000);
        assert!(progress.state().elapsed >= Duration::from_millis(20));
    }
}
