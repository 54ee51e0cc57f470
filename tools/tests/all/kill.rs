//! The built program is killed in the middle of jobs and started again, for a bounded time; `dchain-lab` goes on.

use dchain_lab::kill::{Job, Tally, live, search};
use std::path::Path;

fn killed(job: Job) -> Tally {
    let tally = search(job, 7, 30, Path::new(env!("CARGO_BIN_EXE_dchain"))).unwrap();
    println!("{tally}");
    assert!(tally.kills() >= 30 && tally.neglected().is_none(), "{tally}");
    assert!(tally.ended >= 15 && tally.compared >= 2, "{tally}");
    // qcow2, VHDX, VHD, and VMDK as Workstation and as ESX make it.
    assert!(tally.kinds.len() == 5 && tally.kinds.values().all(|kills| *kills > 0), "{tally}");
    tally
}

#[test]
fn qemu_m6_a_killed_consolidation_goes_on_where_it_was() {
    let tally = killed(Job::Consolidate);
    assert!(tally.marked >= 10, "{tally}");
}

#[test]
fn cid_7_a_killed_copy_goes_on_where_it_was() {
    killed(Job::Copy);
}

#[test]
fn cid_7_a_copy_to_another_store_that_is_killed_on_either_side_goes_on_where_it_was() {
    let tally = search(Job::Remote, 7, 10, Path::new(env!("CARGO_BIN_EXE_dchain"))).unwrap();
    println!("{tally}");
    assert!(tally.kills() >= 10 && tally.ended >= 5 && tally.marked >= 3, "{tally}");
}

#[test]
fn con_6_a_daemon_that_is_killed_under_its_guests_has_what_they_flushed_and_goes_on() {
    let tally = live::search(7, 20, Path::new(env!("CARGO_BIN_EXE_dchain"))).unwrap();
    println!("{tally}");
    assert!(tally.kills() >= 20 && tally.neglected().is_none(), "{tally}");
    assert!(tally.ended >= 10 && tally.marked >= 2 && tally.compared >= 4, "{tally}");
}
