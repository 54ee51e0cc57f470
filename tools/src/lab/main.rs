//! `dchain-lab`: long seeded simulations for those who work on deltachain.

use clap::{Args, Parser, Subcommand};
use dchain_lab::{HISTORIES, History, crash, errors, mutants};
use std::process::ExitCode;

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

fn main() -> ExitCode {
    let search = Lab::parse().search;
    let (Search::Crash(campaign) | Search::Errors(campaign) | Search::Mutants(campaign)) = &search;
    let chosen = HISTORIES.iter().filter(|h| campaign.history.is_none_or(|one| one.name == h.name));
    let (seed, points) = (campaign.seed, campaign.points);
    let mut is_sound = true;
    for history in chosen {
        let said = match &search {
            Search::Crash(_) => crash::search(history, seed, points).map(|tally| tally.to_string()),
            Search::Errors(_) => {
                errors::search(history, seed, points).map(|n| format!("{n} failed I/Os, nothing lost"))
            }
            Search::Mutants(_) => forget(history, seed, points),
        };
        match said {
            Ok(said) => println!("{}: seeds from {seed}: {said}", history.name),
            Err(wrong) => {
                is_sound = false;
                println!("WRONG: {wrong}");
            }
        }
    }
    if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
