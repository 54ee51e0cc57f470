//! Every I/O of a history fails in turn.

use crate::{
    crash::STEPS,
    history::{History, Setup},
    log::Log,
};
use deltachain::io::faulty::{Failure, Fault, SimHost, crash_states};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

const STEPS_AFTER: usize = 6;

/// How I/Os fail.
const FAILURES: [(Failure, bool); 5] = [
    (Failure::Io, false),
    (Failure::Io, true),
    (Failure::NoSpace, false),
    (Failure::NoSpace, true),
    (Failure::Short, false),
];

/// Runs seeded histories in which each I/O fails once, or from there on, until `points` failures are judged;
/// returns how many.
///
/// No operation that failed may have been acknowledged: what was, is read from the image still open, after a
/// power cut at the end, and after reopening, with more writes on top.
pub fn search(history: &History, seed: u64, points: u64) -> Result<u64, String> {
    let (mut done, mut seed) = (0, seed);
    while done < points {
        let steps = history.steps(seed, STEPS);
        let (clean, ..) = history.run(&steps, Setup::default());
        let ios = clean.ios();
        let all = (0..ios)
            .into_par_iter()
            .flat_map_iter(|at| FAILURES.map(|(failure, is_lasting)| Fault { at, is_lasting, failure }));
        done += all
            .map(|fault| {
                let setup = Setup { fault: Some(fault), ..Setup::default() };
                let (host, log, image) = history.run(&steps, setup);
                host.fail(None);
                let live = image.map_or(Ok(()), |image| history.compare(&*image, &log.seen()).map(drop));
                let judged = live.and_then(|()| judge(history, &host, &log, seed));
                judged
                    .map(|()| 1)
                    .map_err(|wrong| format!("{}, seed {seed}, {fault:?}: {wrong}\n{log}", history.name))
            })
            .try_reduce(|| 0, |a, b| Ok(a + b))?;
        seed += 1;
    }
    Ok(done)
}

/// Judges what is left after a failure, by a power cut and by use.
fn judge(history: &History, host: &SimHost, log: &Log, seed: u64) -> Result<(), String> {
    let trace = host.trace();
    for crash in crash_states(&trace, seed, 2).filter(|crash| crash.after == trace.events()) {
        let judged = history.judge(&crash.host, log, crash.after);
        judged.map_err(|wrong| format!("after a power cut ({:?}): {wrong}", crash.landing))?;
    }
    let found = history.judge(host, log, usize::MAX).map_err(|wrong| format!("reopened: {wrong}"))?;
    if found.is_empty() {
        return Ok(());
    }
    let steps = history.steps(seed ^ 1, STEPS_AFTER);
    let after = history.resume(host, found, &steps, 1 << 20);
    let judged = history.judge(host, &after, usize::MAX);
    judged.map(drop).map_err(|wrong| format!("after {steps:?}: {wrong}"))
}
