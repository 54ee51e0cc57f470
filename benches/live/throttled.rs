//! A fold into a file that takes 20 MB a second, under a guest that could write faster.
//!
//! The slow file is raw, seen through `nbdfuse` and nbdkit's filter `rate`, which limits writes and reads each. FUSE
//! has no cache for writes here: a write returns when nbdkit has taken it, so who writes feels the rate, the kernel
//! holds nothing back, and a sync finds nothing left to do. The kernel lets one writer at a time into such a file, as
//! into most. The delta is a fast file. Reads of the slow file are few: the guest writes whole clusters.
//!
//! What the fold has to move is its list and what the guest wrote to both places meanwhile; it is compared with the
//! time that these bytes take, and with the time that the list alone takes, of which the copier's default share, half,
//! makes twice as much.

use crate::{
    data::Data,
    folds::{self, Fio, Guest, LEAD, Server, Side},
};
use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The row's name.
pub(crate) const ROW: &str = "fold 64 MiB into a file of 20 MB/s, guest faster, 64K";

/// Bytes a second of the slow file.
const RATE: f64 = 20e6;
/// A job of qemu that does not end is given up after so long.
const LIMIT: Duration = Duration::from_mins(1);

/// What a fold moved, and how long it took.
struct Sample {
    seconds: f64,
    list: f64,
    mirrored: f64,
}

/// Folds with ours so many times, and once with qemu's job.
pub(crate) fn lines(data: &Data, runs: u32) -> Result<Vec<[String; 7]>, String> {
    let samples: Vec<_> = (0..runs).map(|_| ours(&data.folder)).collect::<Result<_, _>>()?;
    let all = compared(&samples, "list and mirrored bytes / rate", 1.1, |s| s.list + s.mirrored);
    let list = compared(&samples, "list / rate, default share", 2.2, |s| s.list);
    Ok(vec![all, list, line("QEMU block-commit", "-", &qemu(&data.folder)?, "-", "(shown)")])
}

/// Compares the time with what `bytes` take at the rate; of all samples the middle one counts.
fn compared(samples: &[Sample], against: &str, reach: f64, bytes: impl Fn(&Sample) -> f64) -> [String; 7] {
    let mut ratios: Vec<_> = samples.iter().map(|s| (s.seconds * RATE / bytes(s), s.seconds)).collect();
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, seconds) = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    let mark = if ratio > reach { " **missed**" } else { "" };
    let (own, least) = (format!("{seconds:.1} s"), format!("{:.1} s", seconds / ratio));
    line(against, &own, &least, &format!("{ratio:.2}"), &format!("<= {reach}x{mark}"))
}

fn line(against: &str, ours: &str, theirs: &str, ratio: &str, reach: &str) -> [String; 7] {
    [ROW, against, ours, theirs, ratio, "-", reach].map(str::to_owned)
}

fn ours(folder: &Path) -> Result<Sample, String> {
    under_guest(Side::Ours, folder, |place, watch| {
        let job = folds::ask(place, &["consolidate", "--disk", "x", "--yes"])?;
        let seconds = watch.elapsed().as_secs_f64();
        let bytes = |name| folds::figure(&job, name).ok_or_else(|| format!("no {name} in the job"));
        let (list, mirrored) = (bytes("/report/plan/copy-bytes")?, bytes("/report/mirrored-bytes")?);
        Ok(Sample { seconds, list, mirrored })
    })
}

/// Returns how long qemu's job took, or that it does not end.
fn qemu(folder: &Path) -> Result<String, String> {
    under_guest(Side::Commit, folder, |place, watch| {
        let copied = folds::qemu_job(Side::Commit, place, watch, LIMIT)?;
        let took = watch.elapsed();
        let seconds = took.as_secs_f64();
        let end = if took > LIMIT { "no end after" } else { "ended after" };
        Ok(format!("{end} {seconds:.1} s, {:.0} MiB copied", copied / 1048576.0))
    })
}

/// Makes a chain of two on the slow file, and does `fold` while a guest writes.
fn under_guest<T>(
    side: Side,
    folder: &Path,
    fold: impl FnOnce(&Path, Instant) -> Result<T, String>,
) -> Result<T, String> {
    let place = TempDir::new_in(folder).map_err(|e| e.to_string())?;
    let place = place.path();
    let slow = slow_base(place)?;
    folds::run(place, "qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "w.base", "w.d"])?;
    folds::run(place, "qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 64M", "w.d"])?;
    folds::run(place, "sync", &["w.d"])?;
    let server = folds::start(side, place, "raw")?;
    let guest = Fio::start(Guest::Full(64), place)?;
    thread::sleep(LEAD);
    let done = fold(place, Instant::now());
    drop(guest.stop(0, 0));
    drop(server);
    drop(slow);
    done
}

/// Puts the slow file over `w.base`; it goes with what is returned.
fn slow_base(place: &Path) -> Result<Server, String> {
    let wrong = |e: std::io::Error| format!("nbdfuse: {e}");
    File::create(place.join("slow.raw")).and_then(|file| file.set_len(1 << 30)).map_err(wrong)?;
    File::create(place.join("w.base")).map_err(wrong)?;
    let mut command = Command::new("nbdfuse");
    command.args(["w.base", "--command", "nbdkit", "-s", "--exit-with-parent", "--filter=rate", "file"]);
    // In bits. A bucket of a tenth of a second: what came before is no start for the fold.
    command.args(["slow.raw".to_owned(), format!("rate={}", RATE * 8.0), "burstiness=0.1".to_owned()]);
    // It says so when it is ended.
    command.stderr(Stdio::null());
    let slow = Server(command.current_dir(place).stdin(Stdio::null()).spawn().map_err(wrong)?);
    for _ in 0..250 {
        if fs::metadata(place.join("w.base")).is_ok_and(|found| found.len() > 0) {
            return Ok(slow);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err("nbdfuse does not mount, or nbdkit has no filter rate".to_owned())
}
