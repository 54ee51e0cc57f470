//! Guests and the copier of a fold take as much of the machine as the copier's share says, counted in bytes.
//!
//! Where guests have many writes in flight, the copier is one thread among as many as there are, and gets as little of
//! the processors. So a guest's write waits once guests are ahead of their part. They are not held up by a copier that
//! moves nothing: one that has paused, or whose target is slow.

use crate::base::clock::Stopwatch;
use parking_lot::{Condvar, Mutex};
use std::time::Duration;

/// A copier that has moved nothing for so long is usually not waited for.
pub(super) const COURTESY: Duration = Duration::from_millis(4);

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
}

impl State {
    /// Returns for how long whoever is ahead waits at most; `None`: not at all.
    fn patience(&self, courtesy: Duration) -> Option<Duration> {
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

    /// The copier has moved something: guests may write `bytes` bytes more. Returns whether they are far behind their part.
    pub(super) fn grant(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        // What they wrote while nobody copied is not held against them.
        let before =
            if state.patience(self.courtesy).is_some() { state.balance } else { state.balance.max(0) };
        state.balance = before.saturating_add_unsigned(bytes).min(BURST_BYTES);
        state.since = Some(Stopwatch::start());
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
        fair.grant(10);
        fair.ask(10);
        let told = std::thread::scope(|scope| {
            let guest = scope.spawn(|| fair.ask(30));
            let mut told = 0;
            while !guest.is_finished() {
                fair.grant(1);
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
        fair.grant(0);
        (0..1000).for_each(|_| fair.ask(1 << 20));
        assert!(watch.elapsed() < Duration::from_secs(1));
    }
}
