//! Power cuts behind every event of a history, and during the first steps after them.

use crate::{
    history::{History, Setup},
    log::Log,
    mark::Mark,
};
use deltachain::{
    base::{
        seed::Seeded,
        units::{count, index},
    },
    io::faulty::{Crash, crash_states},
};
use rayon::iter::{ParallelBridge, ParallelIterator};
use std::fmt;

/// Steps of one history.
pub(crate) const STEPS: usize = 24;
/// Steps after a crash.
const STEPS_AFTER: usize = 4;
/// Parts of what was not durable that are tried at each event.
const SAMPLES: u64 = 3;
/// One in so many crashes is followed by steps that are themselves crashed everywhere.
const CRASHED_AGAIN: u64 = 16;

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Histories run.
    pub runs: u64,
    /// Power cuts judged.
    pub points: u64,
    /// Power cuts among them that struck while the image was used after a power cut.
    pub second_points: u64,
    /// Durable writes that were looked for, all cuts together.
    pub acknowledged: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, points, second_points, acknowledged } = self;
        write!(f, "{runs} runs, {points} power cuts ({second_points} of them after a power cut), ")?;
        write!(f, "{acknowledged} durable changes looked for, none lost")
    }
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            points: self.points + other.points,
            second_points: self.second_points + other.second_points,
            acknowledged: self.acknowledged + other.acknowledged,
        }
    }
}

/// Runs seeded histories until `points` power cuts are judged; the first wrong one ends it, with words that
/// name the seed.
pub fn search(history: &History, seed: u64, points: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut seed = seed;
    while tally.points < points {
        tally = tally.plus(cut_everywhere(history, seed, Setup::default(), points)?);
        seed += 1;
    }
    Ok(tally)
}

/// Runs one history and cuts the power everywhere; where `points` are fewer, at about as many places.
pub(crate) fn cut_everywhere(
    history: &History,
    seed: u64,
    setup: Setup<'_>,
    points: u64,
) -> Result<Tally, String> {
    let steps = history.steps(seed, STEPS);
    let (host, log, image) = history.run(&steps, setup);
    drop(image);
    let trace = host.trace();
    let step = index(count(trace.events()) * (2 + SAMPLES) / points.max(1)).max(1);
    let tallies =
        crash_states(&trace, seed, SAMPLES).enumerate().step_by(step).par_bridge().map(|(n, crash)| {
            let place = format!(
                "{}, seed {seed}, cut {n} ({:?} after event {})",
                history.name, crash.landing, crash.after
            );
            let seed = seed.wrapping_mul(1 << 32).wrapping_add(n as u64);
            cut(history, &log, &crash, (seed, step)).map_err(|wrong| format!("{place}: {wrong}\n{log}"))
        });
    let sum = tallies.try_reduce(Tally::default, |a, b| Ok(a.plus(b)))?;
    Ok(Tally { runs: 1, ..sum })
}

/// Judges one power cut, goes on writing, and now and then cuts the power again.
fn cut(history: &History, log: &Log, crash: &Crash, (seed, step): (u64, usize)) -> Result<Tally, String> {
    let found = history.judge(&crash.host, log, crash.after)?;
    let tally = Tally { points: 1, acknowledged: log.acknowledged(crash.after), ..Tally::default() };
    if found.is_empty() {
        return Ok(tally);
    }
    // Double allocation shows only when the image is used again.
    let steps = history.steps(seed, STEPS_AFTER);
    let first: Mark = 1 << 20;
    let after = history.resume(&crash.host, found, &steps, first);
    history.judge(&crash.host, &after, usize::MAX).map_err(|wrong| format!("after {steps:?}: {wrong}"))?;
    if !Seeded::new(seed).chance(1, CRASHED_AGAIN) {
        return Ok(tally);
    }
    let trace = crash.host.trace();
    let mut second_points = 0;
    for again in crash_states(&trace, seed, SAMPLES).step_by(step) {
        let judged = history.judge(&again.host, &after, again.after);
        let place =
            || format!("after {steps:?} and a second cut ({:?} after event {})", again.landing, again.after);
        judged.map_err(|wrong| format!("{}: {wrong}", place()))?;
        second_points += 1;
    }
    Ok(Tally { points: 1 + second_points, second_points, ..tally })
}
