//! Whole jobs on seeded chains: the power goes behind every event of a job and of its resume, the program is
//! killed there, each I/O fails, barriers are forgotten.
//!
//! A `Scene` says what is there before and what must hold: at every moment each name that opens shows what it
//! must under the rules of records and claims, no seal stands on other bytes, and the job given again ends.

mod consolidate;
mod copy;
mod header;
mod live;
mod migrate;
mod moving;
mod repair;
mod reshape;
mod seal;
pub(crate) mod world;

use deltachain::{
    base::{
        self,
        units::{count, index},
    },
    io::faulty::{Crash, Failure, Fault, SimHost, Trace, crash_states, kill_states},
};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelBridge, ParallelIterator};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// What is done, and what must be true before, meanwhile and afterwards.
pub(crate) trait Scene: fmt::Debug + Sync {
    /// The machine before: all of it is on its disk.
    fn start(&self) -> &SimHost;

    /// Does the job once.
    fn perform(&self, host: &SimHost) -> base::Result<()>;

    /// Says what is wrong with what the names show; `is_done`: the job was acknowledged before.
    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String>;

    /// Does the job again, or what is left of it, and says what is wrong at the end.
    fn finish(&self, host: &SimHost) -> Result<(), String>;
}

/// A kind of job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What it is called on the command line.
    pub name: &'static str,
    scene: fn(u64) -> Result<Box<dyn Scene>, String>,
}

/// Every job.
pub static JOBS: [Job; 17] = [
    Job { name: "consolidate", scene: consolidate::scene },
    Job { name: "live", scene: live::scene },
    Job { name: "migrate", scene: migrate::scene },
    Job { name: "copy", scene: copy::scene },
    Job { name: "move", scene: moving::scene },
    Job { name: "repair", scene: repair::scene },
    Job { name: "header", scene: header::qcow2 },
    Job { name: "header-vhdx", scene: header::vhdx },
    Job { name: "header-vpc", scene: header::vpc },
    Job { name: "header-vmdk", scene: header::vmdk },
    Job { name: "seal", scene: seal::scene },
    Job { name: "snapshot", scene: reshape::snapshot },
    Job { name: "revert", scene: reshape::revert },
    Job { name: "rebase", scene: reshape::rebase },
    Job { name: "resize", scene: reshape::resize },
    Job { name: "compact", scene: reshape::compact },
    Job { name: "convert", scene: reshape::convert },
];

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs run.
    pub runs: u64,
    /// Power cuts and kills judged.
    pub points: u64,
    /// Those among them that struck while the job went on after another.
    pub second_points: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, points, second_points } = self;
        write!(
            f,
            "{runs} runs, {points} power cuts and kills ({second_points} of them after another), nothing lost"
        )
    }
}

/// A barrier as the code has it.
#[derive(Clone, Debug)]
pub struct Forgotten {
    /// Who asks for it.
    pub barrier: String,
    /// What went wrong first when it was forgotten; `None` if nothing did.
    pub noticed: Option<String>,
}

impl Forgotten {
    /// Returns the line that asks for it, without the operation in which it does.
    fn asks(&self) -> &str {
        self.barrier.split_once(": ").map_or(self.barrier.as_str(), |(_, line)| line)
    }
}

impl Job {
    /// Finds the job of that name; the failure lists those that there are.
    pub fn find(name: &str) -> Result<&'static Self, String> {
        let names: Vec<_> = JOBS.iter().map(|job| job.name).collect();
        let found = JOBS.iter().find(|job| job.name == name);
        found.ok_or_else(|| format!("known jobs: {}", names.join(", ")))
    }

    /// Runs seeded jobs and cuts the power everywhere, until `points` cuts are judged.
    pub fn crash(&self, seed: u64, points: u64) -> Result<Tally, String> {
        let (mut tally, mut seed) = (Tally::default(), seed);
        while tally.points < points {
            tally = tally.plus(cut_everywhere(&*self.scene(seed)?, seed, &[], points)?);
            seed += 1;
        }
        Ok(tally)
    }

    /// Lets each I/O of seeded jobs fail, until `points` failures are judged; returns how many.
    pub fn errors(&self, seed: u64, points: u64) -> Result<u64, String> {
        let (mut done, mut seed) = (0, seed);
        while done < points {
            done += fail_everywhere(&*self.scene(seed)?, points)?;
            seed += 1;
        }
        Ok(done)
    }

    /// Adds to `places` which barriers of which seeds stand for each: those of the job, and those of the job that
    /// goes on after a kill, right before each kind of barrier: when most is in the cache that it would make durable.
    fn find_barriers(&'static self, seeds: Range<u64>, by: By, places: &mut JobPlaces) -> Result<(), String> {
        for seed in seeds {
            let scene = self.scene(seed)?;
            let host = scene.start().twin();
            host.begin_named_operation();
            scene.perform(&host).map_err(|e| e.to_string())?;
            let mut add = |killed, host: &SimHost| {
                let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
                for (number, stack) in (0..).zip(host.barrier_names()) {
                    found.entry(by.place(&stack)).or_default().push(number);
                }
                for (place, numbers) in found {
                    places.entry(place).or_default().push(Run { job: self, seed, killed, numbers });
                }
            };
            add(None, &host);
            let (trace, mut asked) = (host.trace(), BTreeSet::new());
            let first: BTreeSet<usize> = trace
                .barriers()
                .into_iter()
                .zip(host.barrier_names())
                .filter_map(|(at, stack)| asked.insert(By::Need.place(&stack)).then_some(at))
                .collect();
            for crash in kill_states(&trace).filter(|crash| first.contains(&crash.after)) {
                crash.host.begin_named_operation();
                scene.finish(&crash.host)?;
                add(Some(crash.after), &crash.host);
            }
        }
        Ok(())
    }

    fn scene(&self, seed: u64) -> Result<Box<dyn Scene>, String> {
        (self.scene)(seed).map_err(|e| format!("{}, seed {seed}: making the scene: {e}", self.name))
    }
}

/// For each place in the code: the runs that ask for barriers there.
pub(crate) type Places<R> = BTreeMap<String, Vec<R>>;

type JobPlaces = Places<Run>;

/// A run that asks for barriers, by their numbers.
struct Run {
    job: &'static Job,
    seed: u64,
    /// After so many events the job was killed, and it is the next life that asks.
    killed: Option<usize>,
    numbers: Vec<u64>,
}

impl Run {
    /// Returns what shows that the barriers were forgotten.
    fn shows(&self) -> Option<String> {
        let scene = self.job.scene(self.seed).ok()?;
        let judge = || match self.killed {
            None => cut_everywhere(&*scene, self.seed, &self.numbers, u64::MAX).map(drop),
            Some(after) => self.cut_next_life(&*scene, after),
        };
        let judged = catch_unwind(AssertUnwindSafe(judge));
        let wrong = judged.unwrap_or_else(|_| Err("panicked".to_owned())).err()?;
        Some(format!("{}, seed {}: {wrong}", self.job.name, self.seed))
    }

    /// Kills the job, goes on without the barriers, and cuts the power everywhere there.
    fn cut_next_life(&self, scene: &dyn Scene, after: usize) -> Result<(), String> {
        let host = scene.start().twin();
        scene.perform(&host).map_err(|e| e.to_string())?;
        let killed = kill_states(&host.trace()).nth(after).ok_or("no such event")?.host;
        killed.begin_operation(self.numbers.iter().copied());
        scene.finish(&killed)?;
        let trace = killed.trace();
        let cuts = crash_states(&trace, self.seed, SAMPLES).filter(|cut| cut.after >= after);
        cuts.par_bridge().try_for_each(|cut| live(scene, &cut, trace.events()))
    }
}

/// Forgets the barriers that every job has for each of `seeds`, those of one place in the code at a time, and
/// looks for a power cut or a kill that shows it; not those that are in `noticed` already. More seeds than those are
/// tried for what they do not show.
pub fn forget(wanted: &Wanted, noticed: &[Forgotten]) -> Result<Vec<Forgotten>, String> {
    let find = |seeds: Range<u64>| {
        let (mut places, mut live) = (Places::new(), Places::new());
        // Those of a live fold itself have names: they are guards. What it shares with others it may be the one to show.
        for job in &JOBS {
            let places = if ["live", "migrate"].contains(&job.name) { &mut live } else { &mut places };
            job.find_barriers(seeds.clone(), wanted.by, places)?;
        }
        for (place, runs) in live {
            places.entry(place).and_modify(|others: &mut Vec<Run>| others.extend(runs));
        }
        places.retain(|place, _| !noticed.iter().any(|one| one.noticed.is_some() && one.asks() == place));
        Ok(places)
    };
    until_noticed(wanted, find, Run::shows)
}

/// How many times as many seeds are tried as were asked for: a few scenes need not have the one that shows a barrier.
const ROUNDS: u64 = 8;

/// Which barriers are forgotten.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Those of these seeds, and of more where these show nothing.
    pub seeds: Range<u64>,
    /// What counts as one.
    pub by: By,
    /// Only those whose line has this in it.
    pub only: Option<String>,
}

/// Forgets what `find` finds with each of the seeds until `shows` says what went wrong; then with the seeds that follow,
/// as long as something has not been noticed.
pub(crate) fn until_noticed<R: Send + Sync>(
    wanted: &Wanted,
    find: impl Fn(Range<u64>) -> Result<Places<R>, String>,
    shows: impl Fn(&R) -> Option<String> + Sync,
) -> Result<Vec<Forgotten>, String> {
    let Wanted { seeds, only, .. } = wanted;
    let (mut found, count) = (BTreeMap::new(), seeds.end - seeds.start);
    let is_wanted = |place: &str| only.as_ref().is_none_or(|only| place.contains(only));
    for round in 0..ROUNDS {
        let first = seeds.start + round * count;
        let mut places = find(first..first + count)?;
        places.retain(|place, _| is_wanted(place) && !found.get(place).is_some_and(Option::is_some));
        let judged = places.into_par_iter().map(|(place, runs)| {
            let noticed = runs.iter().find_map(&shows);
            if noticed.is_none() {
                eprintln!("{place}: {} runs do not show it", runs.len());
            }
            (place, noticed)
        });
        found.extend(judged.collect::<Vec<_>>());
        let open = || found.iter().filter(|(_, noticed)| noticed.is_none()).map(|(place, _)| place.as_str());
        if open().next().is_none() {
            break;
        }
        let seeds = first..first + count;
        eprintln!("seeds {seeds:?} do not show: {}", open().collect::<Vec<_>>().join(", "));
    }
    Ok(found.into_iter().map(|(barrier, noticed)| Forgotten { barrier, noticed }).collect())
}

/// What counts as one barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Every line that asks for one.
    Line,
    /// The same, for each line of a job that leads there: some are there for the sake of others.
    Need,
}

impl By {
    fn place(self, stack: &str) -> String {
        let asks = asks(stack);
        match stack.split(" < ").find(|line| line.starts_with("job/")) {
            Some(job) if self == Self::Need && job != asks => format!("{asks} for {job}"),
            _ => asks.to_owned(),
        }
    }
}

/// Returns the line that asks for a barrier. Several files of a VMDK are flushed as one: that asks for nothing of its own.
pub(crate) fn asks(stack: &str) -> &str {
    stack.split(" < ").find(|line| !line.starts_with("format/vmdk/space.rs")).unwrap_or_default()
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            points: self.points + other.points,
            second_points: self.second_points + other.second_points,
        }
    }
}

/// Parts of what was not durable that are tried at each event.
const SAMPLES: u64 = 2;
/// One in so many lives after a crash is crashed again.
const CRASHED_AGAIN: usize = 25;

/// One job, with barriers forgotten or none, and every crash of it; where `points` are fewer, about as many.
fn cut_everywhere(scene: &dyn Scene, seed: u64, forgotten: &[u64], points: u64) -> Result<Tally, String> {
    let host = scene.start().twin();
    host.begin_operation(forgotten.iter().copied());
    scene.perform(&host).map_err(|e| format!("{scene:?}: without a crash: {e}"))?;
    let trace = host.trace();
    let end = trace.events();
    let crashes = crash_states(&trace, seed, SAMPLES).map(|crash| ("power cut", crash));
    let kills = kill_states(&trace).map(|crash| ("kill", crash));
    let step = index(count(end) * (3 + SAMPLES) / points.max(1)).max(1);
    let lives = crashes.chain(kills).step_by(step).enumerate().par_bridge().map(
        |(number, (how, crash))| -> Result<Tally, String> {
            let tell =
                |wrong| format!("{scene:?}: {how} after {} ({:?}): {wrong}", crash.after, crash.landing);
            let left = crash.host.events();
            live(scene, &crash, end).map_err(tell)?;
            let is_nested = forgotten.is_empty() && number.is_multiple_of(CRASHED_AGAIN);
            let nested = if is_nested {
                crash_again(scene, seed, &crash.host.trace(), (left, step)).map_err(tell)?
            } else {
                0
            };
            Ok(Tally { runs: 0, points: 1 + nested, second_points: nested })
        },
    );
    let sum = lives.try_reduce(Tally::default, |a, b| Ok(a.plus(b)))?;
    Ok(Tally { runs: 1, ..sum })
}

/// Judges what a crash left, and goes on from there.
fn live(scene: &dyn Scene, crash: &Crash, end: usize) -> Result<(), String> {
    scene.judge(&crash.host, crash.after == end)?;
    scene.finish(&crash.host)
}

/// Crashes what has just been finished after a crash; `trace` begins with `left` events that a kill has left.
fn crash_again(
    scene: &dyn Scene,
    seed: u64,
    trace: &Trace,
    (left, step): (usize, usize),
) -> Result<u64, String> {
    let mut nested = 0;
    let cuts = crash_states(trace, seed, 1).filter(|cut| cut.after >= left);
    for again in cuts.step_by(5 * step) {
        let tell = |wrong| format!("again after {} ({:?}): {wrong}", again.after, again.landing);
        live(scene, &again, usize::MAX).map_err(tell)?;
        nested += 1;
    }
    Ok(nested)
}

/// How I/Os fail.
const FAILURES: [(Failure, bool); 4] =
    [(Failure::Io, false), (Failure::Io, true), (Failure::NoSpace, true), (Failure::Short, false)];

/// One job; each of its I/Os fails in turn, or where `points` are fewer, about as many.
fn fail_everywhere(scene: &dyn Scene, points: u64) -> Result<u64, String> {
    let whole = scene.start().twin();
    scene.perform(&whole).map_err(|e| format!("{scene:?}: without a failure: {e}"))?;
    let step = whole.ios() * count(FAILURES.len()) / points.max(1);
    let judged = (0..index(whole.ios())).into_par_iter().step_by(index(step.max(1))).map(|at| {
        for (failure, is_lasting) in FAILURES {
            let host = scene.start().twin();
            host.fail(Some(Fault { at: count(at), is_lasting, failure }));
            let ended = scene.perform(&host);
            host.fail(None);
            let judged = scene.judge(&host, ended.is_ok()).and_then(|()| scene.finish(&host));
            judged.map_err(|wrong| {
                format!("{scene:?}: {failure:?} at I/O {at} (lasting: {is_lasting}): {wrong}")
            })?;
        }
        Ok(FAILURES.len() as u64)
    });
    judged.try_reduce(|| 0, |a, b| Ok(a + b))
}
