//! One timed run of a shell script: wall clock, processor time and peak memory of everything it started.
//!
//! Linux hands the peak of the process that starts another on to it, so this program stays small: all that
//! holds much memory runs in a process of its own.

use deltachain::base::clock::Stopwatch;
use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use wait4::Wait4;

/// What one run took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// From start to end.
    pub(crate) wall: Duration,
    /// User and system time of the process and its children.
    pub(crate) cpu: Duration,
    /// Largest resident set of any of them, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Runs `script` in `folder`, its answer thrown away; an error holds what it complained about.
pub(crate) fn run(script: &str, folder: &Path, names: &[(&str, String)]) -> Result<Sample, String> {
    let mut complaints = tempfile::tempfile().map_err(|e| e.to_string())?;
    let copy = complaints.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(copy);
    command.envs(names.iter().map(|(name, value)| (name, value)));
    let watch = Stopwatch::start();
    let child = command.spawn().map_err(|e| format!("sh: {e}"))?;
    let used = child.wait4().map_err(|e| e.to_string())?;
    let wall = watch.elapsed();
    if !used.status.success() {
        return Err(complaint(&mut complaints, script));
    }
    let cpu = used.rusage.utime + used.rusage.stime;
    Ok(Sample { wall, cpu, peak_bytes: used.rusage.maxrss })
}

fn complaint(file: &mut File, script: &str) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match text.lines().map(str::trim).find(|l| !l.is_empty()) {
        Some(line) if read.is_ok() => line.to_owned(),
        _ => format!("failed: {script}"),
    }
}

/// Returns the medians of each figure.
pub(crate) fn medians(samples: &[Sample]) -> Sample {
    Sample {
        wall: median(samples.iter().map(|s| s.wall).collect()),
        cpu: median(samples.iter().map(|s| s.cpu).collect()),
        peak_bytes: median(samples.iter().map(|s| s.peak_bytes).collect()),
    }
}

fn median<T: Ord + Copy + Default>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
