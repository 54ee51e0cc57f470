//! The bound on memory for maps: measured on the program, with the same answer.

use crate::{dchain::command, foreign::Scratch};
use std::{
    fs::OpenOptions,
    io::Read,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
};
use wait4::Wait4;

/// The least that can be asked for.
const SMALL: &str = "8M";

fn word(file: &std::fs::File, at: u64) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at).unwrap();
    u64::from_be_bytes(word)
}

/// A disk of 32 GiB whose every cluster is a run of its own (the map of it takes 20 MiB), under 63 deltas.
fn chain() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 -o preallocation=metadata 0 32G");
    let file = OpenOptions::new().read(true).write(true).open(folder.file("0")).unwrap();
    let l1 = word(&file, 40);
    for table in 0..64 {
        let at = word(&file, l1 + table * 8) & 0x00ff_ffff_ffff_fe00;
        let mut entries = vec![0; 65536];
        file.read_exact_at(&mut entries, at).unwrap();
        // Neighbours change places.
        for pair in entries.chunks_exact_mut(16) {
            pair.rotate_left(8);
        }
        file.write_all_at(&entries, at).unwrap();
    }
    for layer in 1..64 {
        folder.qemu_img(&format!("create -q -u -f qcow2 -F qcow2 -b {} {layer} 32G", layer - 1));
        if layer % 16 == 0 {
            folder.qemu_io("qcow2", &layer.to_string(), &[&format!("write -P 1 {}M 64k", layer * 100)]);
        }
    }
    folder
}

/// Runs the program; returns the sum of what it printed, and the most memory that it took.
fn run(folder: &Scratch, arguments: &[&str]) -> (blake3::Hash, u64) {
    let mut child: std::process::Child =
        Command::stdout(&mut command(&folder.path(), arguments), Stdio::piped()).spawn().unwrap();
    let mut printed = blake3::Hasher::new();
    let mut buf = vec![0; 1 << 16];
    let mut out = child.stdout.take().unwrap();
    loop {
        match out.read(&mut buf).unwrap() {
            0 => break,
            bytes => printed.update(&buf[..bytes]),
        };
    }
    let used = child.wait4().unwrap();
    assert!(used.status.success(), "{arguments:?}");
    (printed.finalize(), used.rusage.maxrss)
}

#[test]
fn a_small_budget_bounds_the_memory_for_the_maps_of_a_long_chain() {
    let folder = chain();
    let (_, program) = run(&folder, &["--version"]);
    let map = |options: &[&str]| run(&folder, &[&["map", "--output", "json"], options, &["63"]].concat());
    let (expected, much) = map(&[]);
    let (found, little) = map(&["--memory", SMALL]);
    assert_eq!(found, expected);
    let (much, little) = ((much - program) >> 10, (little - program) >> 10);
    // The program itself, with 64 files open, takes some of it.
    assert!(little < 15 << 10 && much > 16 << 10, "{little} KiB, without a bound {much} KiB");
}

#[test]
fn less_than_a_chain_can_work_with_is_refused() {
    let folder = Scratch::new();
    let run = crate::dchain::dchain(&folder.path(), &["map", "--memory", "7M", "image"]);
    assert_eq!(run.code, Some(64));
    assert!(run.err.contains("--memory") && run.err.contains("at least 8 MiB"), "{}", run.err);
}
