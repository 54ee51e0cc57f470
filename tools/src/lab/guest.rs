//! A real guest on a served disk: Linux in qemu's emulator mounts an ext4, writes, removes and discards, while
//! snapshots are taken and folded under it, round after round.
//!
//! Afterwards the image is clean to qemu-img, the file system to e2fsck, and it holds those files, with those hashes,
//! that the guest has said. All of it goes by the programs that users have.

mod machine;
mod served;

use crate::{Told, told};
use deltachain::base::clock::Stopwatch;
pub use machine::emulator;
use machine::{Files, Machine};
use served::Served;
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How a guest comes to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// qemu is a client of NBD.
    Nbd,
    /// The disk's queues lie in the guest's memory.
    VhostUser,
}

/// What takes part.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The program `dchain`.
    pub dchain: PathBuf,
    /// The program `dchaind`.
    pub dchaind: PathBuf,
    /// The folder into which `tools/test.sh --install` unpacks a kernel and busybox.
    pub kernel: PathBuf,
}

/// What was done and seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds: a snapshot or two, and a fold.
    pub rounds: u64,
    /// Files that the guest wrote.
    pub writes: u64,
    /// Files that were there at the end, each with the hash that it had to have.
    pub files: u64,
    /// Bytes that folds copied.
    pub copied_bytes: u64,
    /// Bytes that the guest wrote while they did, to both places.
    pub mirrored_bytes: u64,
    /// The longest time for which a fold held the guest back at its end.
    pub pause: Duration,
    /// How long all of it took.
    pub took: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes| bytes >> 10;
        write!(f, "{} rounds in {:.0?}; {} files written, ", self.rounds, self.took, self.writes)?;
        write!(f, "{} KiB copied and {} mirrored, ", kib(self.copied_bytes), kib(self.mirrored_bytes))?;
        write!(f, "longest pause {:.1?}; fsck clean, {} hashes right", self.pause, self.files)
    }
}

/// Has a guest write for so many rounds; the first thing that is wrong ends it.
pub fn search(wire: Wire, rounds: u64, programs: &Programs) -> Result<Tally, String> {
    let watch = Stopwatch::start();
    let folder = tempfile::tempdir().map_err(told)?;
    let folder = folder.path();
    let mut served = Served::start(folder, programs, wire)?;
    let mut machine = Machine::boot(folder, &programs.kernel, &served.device())?;
    let mut tally = Tally::default();
    for round in 1..=rounds {
        reshape(round, &mut served, &mut machine, &mut tally)
            .map_err(|wrong| format!("round {round}: {wrong}"))?;
    }
    let (files, writes) = machine.stop()?;
    let head = served.stop()?;
    tally.files = judge(folder, &head, &files)?;
    Ok(Tally { rounds, writes, took: watch.elapsed(), ..tally })
}

/// A snapshot, in every third round two, and a fold of all; between any two of them the guest has written.
fn reshape(round: u64, served: &mut Served, machine: &mut Machine, tally: &mut Tally) -> Told<()> {
    machine.wait_for_write()?;
    served.snapshot()?;
    if round.is_multiple_of(3) {
        machine.wait_for_write()?;
        served.snapshot()?;
    }
    machine.wait_for_write()?;
    let fold = served.fold()?;
    tally.copied_bytes += fold.copied_bytes;
    tally.mirrored_bytes += fold.mirrored_bytes;
    tally.pause = tally.pause.max(fold.pause);
    Ok(())
}

/// Holds the disk against what the guest has said; returns how many files were right.
fn judge(folder: &Path, head: &Path, files: &Files) -> Told<u64> {
    let name = head.display().to_string();
    run(folder, "qemu-img", &["check", "-q", &name])?;
    run(folder, "qemu-img", &["convert", "-O", "raw", &name, "seen.raw"])?;
    run(folder, "e2fsck", &["-fn", "seen.raw"])?;
    let seen = folder.join("seen");
    fs::create_dir(&seen).map_err(told)?;
    run(folder, "debugfs", &["-R", "rdump / seen", "seen.raw"])?;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&seen).map_err(told)? {
        let name = entry.map_err(told)?.file_name().to_string_lossy().into_owned();
        if name != "lost+found" {
            let said = run(&seen, "sha256sum", &[&name])?;
            found.insert(name, said.split(' ').next().unwrap_or_default().to_owned());
        }
    }
    let differ = files.keys().chain(found.keys()).find(|name| files.get(*name) != found.get(*name));
    match differ {
        Some(name) => {
            let (has, should) = (found.get(name), files.get(name));
            Err(format!("file {name} has the hash {has:?}; the guest said {should:?}"))
        }
        None => Ok(found.len().try_into().unwrap_or(u64::MAX)),
    }
}

/// Runs a program in `folder`, which must succeed; returns what it prints.
fn run(folder: &Path, program: impl AsRef<Path>, arguments: &[&str]) -> Told<String> {
    let program = program.as_ref();
    let output = Command::new(program).current_dir(folder).args(arguments).output();
    let output = output.map_err(|e| format!("{}: {e}", program.display()))?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let err = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} {}: {}: {out}{err}", program.display(), arguments.join(" "), output.status))
}
