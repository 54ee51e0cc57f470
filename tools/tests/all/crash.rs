//! Power cuts, failing disks and forgotten barriers, searched for a bounded time; `dchain-lab` goes on.

use dchain_lab::{
    HISTORIES, History, crash, errors,
    jobs::{By, JOBS, Job, Wanted},
    mutants,
};
use std::process::Command;

#[test]
fn no_power_cut_loses_what_was_flushed() {
    let tallies: Vec<_> = HISTORIES.iter().map(|history| crash::search(history, 1, 330).unwrap()).collect();
    let sum = |part: fn(&crash::Tally) -> u64| tallies.iter().map(part).sum::<u64>();
    let (points, second, writes) = (sum(|t| t.points), sum(|t| t.second_points), sum(|t| t.acknowledged));
    println!(
        "{points} power cuts, {second} of them during the first writes after another, {writes} durable changes"
    );
    assert!(points >= 5000 && second >= 1000 && writes >= 10_000, "{points}, {second}, {writes}");
}

#[test]
fn no_failed_io_is_reported_as_done_or_spoils_what_follows() {
    let names = [
        "raw",
        "qcow2-parent",
        "qcow2-resize",
        "qcow2-kept-bitmap",
        "vhdx-child",
        "vhdx-fixed",
        "vpc-fixed",
        "vpc-dynamic",
    ];
    let others = ["vpc-differencing", "vmdk", "vmdk-zeroed", "vmdk-pieces", "vmdk-esx", "vmdk-flat"];
    for history in names.into_iter().chain(others).map(|name| History::find(name).unwrap()) {
        let failed = errors::search(history, 3, 1).unwrap();
        assert!(failed >= 100, "{}: {failed}", history.name);
    }
}

/// Those of whole jobs are searched for by `dchain-lab mutants`: that takes longer than this may.
#[test]
fn each_barrier_that_is_forgotten_is_missed() {
    let found = mutants::search(&HISTORIES, &Wanted { seeds: 1..4, by: By::Line, only: None }).unwrap();
    println!("{} forgotten barriers", found.len());
    let unnoticed: Vec<_> = found.iter().filter(|one| one.noticed.is_none()).collect();
    assert!(found.len() >= 19 && unnoticed.is_empty(), "{unnoticed:?} of {}", found.len());
}

#[test]
fn every_job_ends_whatever_cuts_it_short() {
    for job in &JOBS {
        // Layers of qcow2, VHDX, VHD and VMDK.
        for seed in [2, 17, 33, 49] {
            let tally = job.crash(seed, 40).unwrap();
            println!("{}: {tally}; {} failed I/Os", job.name, job.errors(seed + 1, 40).unwrap());
        }
    }
}

/// In a program of its own: without a guard, the other tests would fail.
#[test]
fn each_guard_that_is_taken_away_is_missed() {
    let lab =
        Command::new(env!("CARGO_BIN_EXE_dchain-lab")).args(["mutants", "--seeds", "0"]).output().unwrap();
    let said = String::from_utf8_lossy(&lab.stdout);
    println!("{said}");
    assert!(lab.status.success() && said.contains("each noticed"));
}

/// A cut after a layer had its name: it was found by its content ID, and its draft's name stayed for good.
#[test]
fn cid_7_a_copy_that_finds_its_own_layer_by_id_leaves_no_draft() {
    println!("{}", Job::find("copy").unwrap().crash(6, 300).unwrap());
}

/// Seed 1012 is a new image that had to be made again while the journal took it for ready.
#[test]
fn con_6_seeded_chains_fold_through_every_power_cut() {
    for seed in [1, 7, 1012] {
        println!("seed {seed}: {}", Job::find("consolidate").unwrap().crash(seed, 200).unwrap());
    }
}

/// A guest was killed before its flush, what it wrote was copied, and a power cut took it away from the disk alone.
#[test]
fn con_6_copies_do_not_outlive_what_a_killed_guest_left_in_the_cache() {
    println!("{}", Job::find("live").unwrap().crash(120_005, 900).unwrap());
}

/// The guest's head lies on what is folded, as at the end of a backup. Of seed 6 the result is an empty delta on a raw base.
#[test]
fn con_6_layers_below_a_head_in_use_fold_through_every_power_cut() {
    for seed in [6, 13] {
        println!("seed {seed}: {}", Job::find("live").unwrap().crash(seed, 60).unwrap());
    }
    println!("{} failed I/Os", Job::find("live").unwrap().errors(6, 60).unwrap());
}

#[test]
fn con_7_seeded_chains_fold_through_every_failing_io() {
    let failures = Job::find("consolidate").unwrap().errors(3, 400).unwrap();
    println!("{failures} failed I/Os");
}
