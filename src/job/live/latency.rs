//! How long guests' requests take while a fold is under way, and how much of the time its copier may take.
//!
//! What stays true: the copier keeps its share, whatever guests feel, so that the fold ends.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// A time is told apart from one that is an eighth longer.
const STEPS: u32 = 8;

/// Times up to 2^48 ns, three days: what took longer counts as that.
const CELLS: usize = 8 * 46;

/// Below this share of the goal the copier takes more of the time; above the goal it takes less.
const CONTENT: f64 = 0.85;

/// How much more of the time the copier takes while guests are content, and what part of it is left when they are not.
const MORE: f64 = 0.04;
const LESS: f64 = 0.7;

/// How much more of the time it takes when guests have asked for nothing.
const IDLE: f64 = 0.25;

/// So many requests tell what one in a hundred takes, more or less.
const ENOUGH: u32 = 50;

/// How often requests took so long; asked and written by many threads.
#[derive(Debug)]
pub struct Latencies {
    cells: Vec<AtomicU32>,
}

/// What requests took for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Felt {
    /// How many requests there were.
    pub requests: u32,
    /// Half of them took no longer.
    pub p50: Duration,
    /// All but one in a hundred took no longer.
    pub p99: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { cells: (0..CELLS).map(|_| AtomicU32::new(0)).collect() }
    }
}

/// Returns the cell of a time in nanoseconds.
fn cell(ns: u64) -> usize {
    let ns = ns.max(u64::from(STEPS));
    let power = ns.ilog2();
    let eighth = (ns >> (power - 3)) & 7;
    let cell = (power - 3) * STEPS + u32::try_from(eighth).unwrap_or(0);
    usize::try_from(cell).unwrap_or(CELLS).min(CELLS - 1)
}

/// Returns the longest time that belongs to a cell.
fn longest(cell: usize) -> Duration {
    let (power, eighth) = (cell / 8, (cell % 8) as u64);
    Duration::from_nanos(((9 + eighth) << power) - 1)
}

impl Latencies {
    /// Counts a request.
    pub fn count(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.cells.get(cell(ns)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Returns what requests took since this was last asked, unless those were too few to tell and more may come: then
    /// they count for the next time.
    pub fn take(&self, is_due: bool) -> Option<Felt> {
        let load = |count: &AtomicU32| count.load(Relaxed);
        if !is_due && self.cells.iter().map(load).sum::<u32>() < ENOUGH {
            return None;
        }
        let counts: Vec<u32> = self.cells.iter().map(|count| count.swap(0, Relaxed)).collect();
        let requests: u32 = counts.iter().sum();
        let reached = |part: u32| {
            let (wanted, mut sum) = (requests - requests / part, 0);
            let at = counts.iter().position(|count| {
                sum += count;
                sum >= wanted.max(1)
            });
            at.map_or(Duration::ZERO, longest)
        };
        Some(Felt { requests, p50: reached(2), p99: reached(100) })
    }
}

/// What part of the time the copier takes. Pure: who asks has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    part: f64,
}

impl Throttle {
    /// Begins at the copier's share.
    pub const fn new(share: f64) -> Self {
        Self { part: share }
    }

    /// Returns the part of the time that the copier takes from now on, after guests have `felt` that with the one before:
    /// at least its `share`, and as much more as leaves what one request in a hundred takes below `goal`.
    pub fn next(&mut self, share: f64, goal: Duration, felt: Felt) -> f64 {
        if felt.requests == 0 {
            self.part += IDLE;
        } else if felt.p99 > goal {
            self.part *= LESS;
        } else if felt.p99 < goal.mul_f64(CONTENT) {
            self.part += MORE;
        }
        self.part = self.part.clamp(share, 1.0);
        self.part
    }
}

#[cfg(test)]
mod tests;
