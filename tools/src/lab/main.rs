//! `dchain-lab`: long seeded simulations for those who work on deltachain.

use clap::{Args, Parser, Subcommand};
use dchain_lab::{
    HISTORIES, History, crash, errors, fold, fuzz,
    kill::{self, Job},
    mutants,
};
use std::{env, path::PathBuf, process::ExitCode};

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
    /// Forget each barrier in turn: a power cut must show it.
    Mutants(Campaign),
    /// Do the same to whole consolidations of seeded chains.
    Fold(Folds),
    /// Feed damaged files to every parser.
    Fuzz(Malformed),
    /// Kill `dchain` in the middle of jobs, give the same command again, and compare.
    Kill(Kills),
}

#[derive(Args)]
struct Campaign {
    /// The first seed; the same seed finds the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cuts or failures to judge, for each history (mutants: seeds to try).
    #[arg(long, default_value_t = 1000)]
    points: u64,
    /// Only this history (default: all).
    #[arg(long, value_parser = History::find)]
    history: Option<&'static History>,
}

#[derive(Args)]
struct Folds {
    /// The first seed; the same seed finds the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cuts to judge, and failures.
    #[arg(long, default_value_t = 1000)]
    points: u64,
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
}

#[derive(Args)]
struct Kills {
    /// The first seed; it gives the disks, but not the moment at which a kill strikes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills that have to count, for each job.
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Only this job, consolidate or copy (default: both).
    #[arg(long, value_parser = Job::find)]
    job: Option<Job>,
}

fn main() -> ExitCode {
    let is_sound = match Lab::parse().search {
        Search::Crash(campaign) => run(&campaign, |history| {
            crash::search(history, campaign.seed, campaign.points).map(|tally| tally.to_string())
        }),
        Search::Errors(campaign) => run(&campaign, |history| {
            let done = errors::search(history, campaign.seed, campaign.points);
            done.map(|n| format!("{n} failed I/Os, nothing lost"))
        }),
        Search::Mutants(campaign) => {
            run(&campaign, |history| forget(history, campaign.seed, campaign.points))
        }
        Search::Fold(Folds { seed, points }) => say(&folds(seed, points)),
        Search::Fuzz(malformed) => say(&feed(&malformed)),
        Search::Kill(kills) => kill_jobs(&kills),
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
    let subjects = fuzz::Subject::all(&malformed.corpus)?;
    let tally = fuzz::search(&subjects, malformed.seed, malformed.inputs);
    for (n, (recipe, wrong)) in tally.wrong.iter().enumerate() {
        let path = malformed.corpus.join("fuzz").join(format!("seed-{}-{n}", malformed.seed));
        println!("{}: {wrong}\n{recipe}", path.display());
        std::fs::write(&path, recipe.to_string()).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if tally.wrong.is_empty() { Ok(tally.to_string()) } else { Err(tally.to_string()) }
}

/// Kills the `dchain` beside this program; returns whether nothing was wrong.
fn kill_jobs(kills: &Kills) -> bool {
    let jobs =
        [Job::Consolidate, Job::Copy].into_iter().filter(|job| kills.job.is_none_or(|one| one == *job));
    let mut is_sound = true;
    for job in jobs {
        let program = env::current_exe().map(|own| own.with_file_name("dchain"));
        let done = program.map_err(|e| e.to_string());
        let done = done.and_then(|program| kill::search(job, kills.seed, kills.rounds, &program));
        is_sound &= say(&done.map(|tally| format!("{}: seeds from {}: {tally}", job.name(), kills.seed)));
    }
    is_sound
}

fn forget(history: &History, seed: u64, seeds: u64) -> Result<String, String> {
    let found = mutants::search(history, seed, seeds);
    let missed: Vec<String> =
        found.iter().filter(|m| m.noticed.is_none()).map(|m| format!("{:?} {}", m.kind, m.barrier)).collect();
    if missed.is_empty() {
        Ok(format!("{} forgotten barriers, each noticed", found.len()))
    } else {
        Err(format!("{}: not noticed: {}", history.name, missed.join(", ")))
    }
}

fn folds(seed: u64, points: u64) -> Result<String, String> {
    let (cuts, second) = fold::crash(seed, points)?;
    let failures = fold::errors(seed, points)?;
    let (missed, barriers) = fold::mutants(seed)?;
    Ok(format!(
        "consolidate: seeds from {seed}: {cuts} power cuts ({second} of them during a resume), {failures} failed \
         I/Os, nothing lost; {} of {barriers} barriers are missed when they are forgotten",
        missed.len()
    ))
}
