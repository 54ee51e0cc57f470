//! Guests and the copier of a fold take as much of the machine as the copier's share says, counted in bytes.
//!
//! Where guests have many writes in flight, the copier is one thread among as many as there are, and gets as little of
//! the processors, or of a slow target. So a guest's write waits once guests are ahead of their part. They are not held up
//! by a copier that moves nothing, one that has paused: it is waited for about as long as it takes while it does move.

use crate::base::clock::Stopwatch;
use parking_lot::{Condvar, Mutex};
use std::time::Duration;

/// A copier that has moved nothing for so long is usually not waited for, unless its last move took longer than half of it.
pub(super) const COURTESY: Duration = Duration::from_millis(4);

/// However slow its target is, it is not waited for longer.
const COURTESY_MAX: Duration = Duration::from_secs(1);

/// Guests that were idle may be ahead by so many bytes.
const BURST_BYTES: i64 = 1 << 20;

/// How far guests are ahead of the copier, or behind it.
#[derive(Debug)]
pub(super) struct Fairness {
    /// A copier that has moved nothing for so long is not waited for.
    courtesy: Duration,
    state: Mutex<State>,
    granted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that guests may write now; below 0 they wait.
    balance: i64,
    /// Since the copier moved something.
    since: Option<Stopwatch>,
    /// How long that took.
    took: Duration,
}

impl State {
    /// Returns for how long whoever is ahead waits at most; `None`: not at all.
    fn patience(&self, courtesy: Duration) -> Option<Duration> {
        let courtesy = courtesy.max((self.took * 2).min(COURTESY_MAX));
        let left = courtesy.saturating_sub(self.since?.elapsed());
        (self.balance < 0 && left > Duration::ZERO).then_some(left)
    }
}

impl Fairness {
    pub(super) fn new(courtesy: Duration) -> Self {
        Self { courtesy, state: Mutex::default(), granted: Condvar::new() }
    }

    /// Lets a guest's write of `bytes` bytes go on, now or a little later.
    pub(super) fn ask(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.balance = state.balance.saturating_sub_unsigned(bytes);
        while let Some(left) = state.patience(self.courtesy) {
            self.granted.wait_for(&mut state, left);
        }
    }

    /// The copier has moved something, which took so long: guests may write `bytes` bytes more. Returns whether they are far
    /// behind their part.
    pub(super) fn grant(&self, bytes: u64, took: Duration) -> bool {
        let mut state = self.state.lock();
        // What they wrote while nobody copied is not held against them.
        let before =
            if state.patience(self.courtesy).is_some() { state.balance } else { state.balance.max(0) };
        state.balance = before.saturating_add_unsigned(bytes).min(BURST_BYTES);
        (state.since, state.took) = (Some(Stopwatch::start()), took);
        if state.balance >= 0 {
            self.granted.notify_all();
        }
        state.balance == BURST_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_are_ahead_wait_until_the_copier_has_caught_up() {
        let fair = Fairness::new(Duration::from_hours(1));
        fair.grant(10, Duration::ZERO);
        fair.ask(10);
        let told = std::thread::scope(|scope| {
            let guest = scope.spawn(|| fair.ask(30));
            let mut told = 0;
            while !guest.is_finished() {
                fair.grant(1, Duration::ZERO);
                told += 1;
            }
            told
        });
        // It may not have come in when the first ones were granted, which others may use then.
        assert!(told >= 30 && fair.state.lock().balance >= 0, "{told}");
    }

    #[test]
    fn nobody_waits_for_a_copier_that_moves_nothing() {
        let fair = Fairness::new(COURTESY);
        let watch = Stopwatch::start();
        (0..1000).for_each(|_| fair.ask(1 << 20));
        fair.grant(0, Duration::ZERO);
        (0..1000).for_each(|_| fair.ask(1 << 20));
        assert!(watch.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_copier_whose_target_is_slow_is_waited_for_as_long_as_its_moves_take() {
        let fair = Fairness::new(COURTESY);
        let watch = Stopwatch::start();
        fair.grant(0, Duration::from_millis(30));
        fair.ask(1);
        assert!(watch.elapsed() >= Duration::from_millis(60), "{:?}", watch.elapsed());
        fair.grant(0, Duration::from_hours(1));
        fair.state.lock().balance = -1;
        let left = fair.state.lock().patience(COURTESY);
        assert!(left > Some(COURTESY) && left <= Some(COURTESY_MAX), "{left:?}");
    }
}
