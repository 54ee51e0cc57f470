//! `dchain-lab`: long seeded simulations for those who work on deltachain.

use clap::{Args, Parser, Subcommand, ValueEnum};
use dchain_lab::{
    HISTORIES, History, crash, errors, fuzz, guest,
    jobs::{self, By, Forgotten, JOBS, Wanted},
    kill::{self, Job},
    mirror, mutants,
};
use std::{
    env,
    path::{self, PathBuf},
    process::ExitCode,
};

/// Looks for data that a power cut, a failing disk or a forgotten flush would lose.
#[derive(Parser)]
#[command(version)]
struct Lab {
    #[command(subcommand)]
    search: Search,
}

#[derive(Subcommand)]
enum Search {
    /// Cut the power behind every event of seeded histories, and again during the recovery.
    Crash(Campaign),
    /// Let every I/O of seeded histories fail in turn.
    Errors(Campaign),
    /// Forget each barrier and take away each guard in turn: something must show it.
    Mutants(Mutants),
    /// Do the same to whole jobs on seeded chains.
    Jobs(Jobs),
    /// Feed damaged files to every parser.
    Fuzz(Malformed),
    /// Fold disks under guests that write with real threads: both legs must be equal.
    Mirror(Writes),
    /// Kill `dchain` in the middle of jobs, give the same command again, and compare.
    Kill(Kills),
    /// Kill `dchaind` in the middle of snapshots and folds under guests that write, start it again, and compare.
    KillDaemon(KillsOfDaemon),
    /// Have Linux in an emulator write to an ext4 while snapshots are taken and folded, and look at its files afterwards.
    Guest(Guest),
}

#[derive(Args)]
struct Campaign {
    /// The first seed; the same seed finds the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cuts or failures to judge, for each history.
    #[arg(long, default_value_t = 1000)]
    points: u64,
    /// Only this history (default: all).
    #[arg(long, value_parser = History::find)]
    history: Option<&'static History>,
}

#[derive(Args)]
struct Mutants {
    /// The first seed; the same seed finds the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seeds whose barriers are forgotten, for each history and job, and more where those show nothing; 0: none are.
    #[arg(long, default_value_t = 8)]
    seeds: u64,
    /// Not the guards, only barriers.
    #[arg(long = "no-guards", action = clap::ArgAction::SetFalse)]
    has_guards: bool,
    /// Tell barriers apart by what needs them, too: some are there for the sake of others.
    #[arg(long = "fine")]
    is_fine: bool,
    /// Only barriers whose line in the code has this in it.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Args)]
struct Jobs {
    /// The first seed; the same seed finds the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cuts to judge, and failures, for each job.
    #[arg(long, default_value_t = 1000)]
    points: u64,
    /// Only this job (default: all).
    #[arg(long, value_parser = jobs::Job::find)]
    job: Option<&'static jobs::Job>,
}

#[derive(Args)]
struct Malformed {
    /// The first seed; the same seed finds the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Inputs to try.
    #[arg(long, default_value_t = 10_000)]
    inputs: u64,
    /// The folder of the golden images; what is found is kept in its folder `fuzz`.
    #[arg(long, default_value = "testdata")]
    corpus: PathBuf,
    /// Only sound inputs whose names start so: vhdx, vmdk, vpc, ova, vmx ...
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Args)]
struct Writes {
    /// The first seed; it gives the disks and the requests, but not who comes first.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes that guests have to make.
    #[arg(long, default_value_t = 100_000)]
    writes: u64,
}

#[derive(Args)]
struct KillsOfDaemon {
    /// The first seed; it gives the disks and the requests, but not the moment at which a kill strikes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills that have to count.
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// While it folds and takes snapshots, or while a disk goes to another store.
    #[arg(long, value_enum, default_value = "consolidate")]
    job: Killed,
}

/// What the daemon is killed at.
#[derive(Clone, Copy, ValueEnum)]
enum Killed {
    Consolidate,
    Migrate,
}

#[derive(Args)]
struct Kills {
    /// The first seed; it gives the disks, but not the moment at which a kill strikes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills that have to count, for each job.
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Only this job: consolidate, copy or remote (default: all).
    #[arg(long, value_parser = Job::find)]
    job: Option<Job>,
}

#[derive(Args)]
struct Guest {
    /// Rounds: a snapshot or two, and a fold.
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// The folder with kernel and busybox, as `tools/test.sh --install` fills it.
    #[arg(long, default_value = "target/guest")]
    kernel: PathBuf,
}

fn main() -> ExitCode {
    deltachain::io::real::raise_descriptors();
    let is_sound = match Lab::parse().search {
        Search::Crash(campaign) => run(&campaign, |history| {
            crash::search(history, campaign.seed, campaign.points).map(|tally| tally.to_string())
        }),
        Search::Errors(campaign) => run(&campaign, |history| {
            let done = errors::search(history, campaign.seed, campaign.points);
            done.map(|n| format!("{n} failed I/Os, nothing lost"))
        }),
        Search::Mutants(wanted) => {
            let guards = !wanted.has_guards || take_guards_away();
            (wanted.seeds == 0 || forget_all(&wanted)) && guards
        }
        Search::Jobs(chosen) => run_jobs(&chosen),
        Search::Fuzz(malformed) => say(&feed(&malformed)),
        Search::Mirror(Writes { seed, writes }) => {
            say(&mirror::search(seed, writes).map(|tally| format!("seeds from {seed}: {tally}")))
        }
        Search::Kill(kills) => kill_jobs(&kills),
        Search::KillDaemon(kills) => say(&kill_daemon(&kills)),
        Search::Guest(guest) => say(&serve_guest(&guest)),
    };
    if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a search over the chosen histories; returns whether nothing was wrong.
fn run(campaign: &Campaign, search: impl Fn(&History) -> Result<String, String>) -> bool {
    let chosen = HISTORIES.iter().filter(|h| campaign.history.is_none_or(|one| one.name == h.name));
    let mut is_sound = true;
    for history in chosen {
        let done = search(history);
        is_sound &= say(&done.map(|said| format!("{}: seeds from {}: {said}", history.name, campaign.seed)));
    }
    is_sound
}

fn say(done: &Result<String, String>) -> bool {
    match done {
        Ok(said) => println!("{said}"),
        Err(wrong) => println!("WRONG: {wrong}"),
    }
    done.is_ok()
}

fn feed(malformed: &Malformed) -> Result<String, String> {
    fuzz::listen();
    let mut subjects = fuzz::Subject::all(&malformed.corpus)?;
    subjects.retain(|subject| subject.name.starts_with(&malformed.only));
    let tally = fuzz::search(&subjects, malformed.seed, malformed.inputs);
    for (n, (recipe, wrong)) in tally.wrong.iter().enumerate() {
        let path = malformed.corpus.join("fuzz").join(format!("seed-{}-{n}", malformed.seed));
        println!("{}: {wrong}\n{recipe}", path.display());
        let (Malformed { seed, only, .. }, what) = (malformed, wrong.lines().next().unwrap_or_default());
        let kept = format!("# dchain-lab fuzz --seed {seed} --only '{only}': {what}\n{recipe}");
        std::fs::write(&path, kept).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    println!("the slowest input:\n{}", tally.slowest.1);
    let said = format!("seeds from {}: {tally}", malformed.seed);
    if tally.wrong.is_empty() { Ok(said) } else { Err(said) }
}

/// Kills the `dchain` beside this program; returns whether nothing was wrong.
fn kill_jobs(kills: &Kills) -> bool {
    let jobs = [Job::Consolidate, Job::Copy, Job::Remote]
        .into_iter()
        .filter(|job| kills.job.is_none_or(|one| one == *job));
    let mut is_sound = true;
    for job in jobs {
        let program = env::current_exe().map(|own| own.with_file_name("dchain"));
        let done = program.map_err(|e| e.to_string());
        let done = done.and_then(|program| kill::search(job, kills.seed, kills.rounds, &program));
        is_sound &= say(&done.map(|tally| format!("{}: seeds from {}: {tally}", job.name(), kills.seed)));
    }
    is_sound
}

fn kill_daemon(kills: &KillsOfDaemon) -> Result<String, String> {
    let (seed, rounds) = (kills.seed, kills.rounds);
    let program = env::current_exe().map_err(|e| e.to_string())?.with_file_name("dchain");
    let tally = match kills.job {
        Killed::Consolidate => kill::live::search(seed, rounds, &program)?,
        Killed::Migrate => kill::live::migrate::search(seed, rounds, &program)?,
    };
    Ok(format!("dchaind: seeds from {seed}: {tally}"))
}

/// Has a guest use a disk of the `dchaind` beside this program.
fn serve_guest(guest: &Guest) -> Result<String, String> {
    let own = env::current_exe().map_err(|e| e.to_string())?;
    let programs = guest::Programs {
        dchain: own.with_file_name("dchain"),
        dchaind: own.with_file_name("dchaind"),
        kernel: path::absolute(&guest.kernel).map_err(|e| e.to_string())?,
    };
    let nbd = guest::search(guest::Wire::Nbd, guest.rounds, &programs)?;
    let vhost_user = guest::search(guest::Wire::VhostUser, guest.rounds, &programs)?;
    Ok(format!("over NBD: {nbd}\nover vhost-user-blk: {vhost_user}"))
}

/// Takes guards away; returns whether each was noticed.
#[cfg(debug_assertions)]
fn take_guards_away() -> bool {
    // What goes wrong is wanted, and not worth a line each.
    std::panic::set_hook(Box::new(|_| {}));
    let found = dchain_lab::guards::search();
    let missed = found.iter().filter(|one| !one.holds || !one.is_noticed);
    let missed: Vec<String> = missed.map(|one| format!("{one:?}")).collect();
    drop(std::panic::take_hook());
    say(&match missed.as_slice() {
        [] => Ok(format!("{} guards taken away, each noticed", found.len())),
        missed => Err(format!("{} guards taken away, not noticed: {}", found.len(), missed.join(", "))),
    })
}

#[cfg(not(debug_assertions))]
fn take_guards_away() -> bool {
    say(&Err(
        "guards cannot be taken away in this build: `cargo run --profile lab --bin dchain-lab`".to_owned()
    ))
}

/// Forgets barriers of histories and of jobs; returns whether each was noticed.
fn forget_all(wanted: &Mutants) -> bool {
    let Mutants { seed, seeds, is_fine, only, .. } = wanted;
    let by = if *is_fine { By::Need } else { By::Line };
    let wanted = Wanted { seeds: *seed..seed + seeds, by, only: only.clone() };
    let forget = || {
        let found = mutants::search(&HISTORIES, &wanted)?;
        let is_sound = say_missed("histories", &found);
        let others = jobs::forget(&wanted, &found)?;
        Ok(say_missed("jobs, what histories do not have", &others) && is_sound)
    };
    forget().unwrap_or_else(|wrong| say(&Err(wrong)))
}

fn say_missed(what: &str, all: &[Forgotten]) -> bool {
    let done = format!("{what}: {} forgotten barriers", all.len());
    let missed = all.iter().filter(|one| one.noticed.is_none());
    let missed: Vec<&str> = missed.map(|one| one.barrier.as_str()).collect();
    say(&match missed.as_slice() {
        [] => Ok(format!("{done}, each noticed")),
        missed => Err(format!("{done}, not noticed: {}", missed.join(", "))),
    })
}

fn run_jobs(chosen: &Jobs) -> bool {
    let wanted = JOBS.iter().filter(|job| chosen.job.is_none_or(|one| one.name == job.name));
    wanted.fold(true, |is_sound, job| {
        let done = search_job(job, chosen);
        say(&done.map(|said| format!("{}: seeds from {}: {said}", job.name, chosen.seed))) && is_sound
    })
}

fn search_job(job: &jobs::Job, Jobs { seed, points, .. }: &Jobs) -> Result<String, String> {
    let cuts = job.crash(*seed, *points)?;
    let failures = job.errors(*seed, *points)?;
    Ok(format!("{cuts}; {failures} failed I/Os"))
}
