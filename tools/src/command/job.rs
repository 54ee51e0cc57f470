//! `dchain job`: the jobs of a daemon; and following one until it ends.

use crate::{
    client::{Daemon, list, number, refused, text},
    failure::{Exit, Failure, quoted},
    options,
    output::{Answer, note, versioned},
    progress::Watching,
    size,
};
use clap::{Args, Subcommand};
use deltachain::{
    job::{State, consolidate::cut_off},
    service::CutOffView,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How often a job that is followed is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// The jobs of dchaind
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Args, Debug)]
struct One {
    #[command(flatten)]
    daemon: Daemon,
    /// The job's number
    id: u64,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All jobs since the daemon started, and those that were cut off
    List {
        #[command(flatten)]
        daemon: Daemon,
        /// Only those that were cut off, on disks in this folder or that of this image; no daemon is asked
        path: Vec<PathBuf>,
    },
    /// One job
    Show(One),
    /// Wait until a job has ended; ^C leaves it running
    Wait {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        watching: Watching,
    },
    /// Have a job wait; guests go on
    Pause(One),
    /// Have a job go on
    Resume(One),
    /// Give a job up: the disk keeps what its guests wrote
    Cancel(One),
    /// Make a job faster or slower from now on
    Speed {
        #[command(flatten)]
        one: One,
        /// Bytes a second; 0 is no limit
        #[arg(value_name = "BYTES/s", value_parser = size::parse, required_unless_present_any = ["share", "latency_target"])]
        rate: Option<u64>,
        /// The part of the time that the copier keeps for itself while guests write
        #[arg(long, value_name = "0..1", value_parser = size::part)]
        share: Option<f64>,
        /// Take more than that only while all but one of the guests' requests in a hundred take less; 0: whatever they take
        #[arg(long, value_name = "MS", value_parser = size::milliseconds)]
        latency_target: Option<f64>,
    },
}

impl Arguments {
    /// Asks the daemon.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let (one, what, body) = match &self.action {
            Action::List { daemon, path } => {
                let jobs = if path.is_empty() {
                    let all = [daemon.get("/v1/jobs")?, daemon.get("/v1/cut-off")?];
                    all.iter().filter_map(Value::as_array).flatten().cloned().collect()
                } else {
                    cut_off_in(path)?
                };
                answer.print_list(&jobs, |jobs, out| jobs.iter().try_for_each(|job| line(job, out)))?;
                return Ok(Exit::Done);
            }
            Action::Show(one) => {
                let job = one.daemon.get(&format!("/v1/jobs/{}", one.id))?;
                answer.print(&job, |out| line(&job, out))?;
                return Ok(Exit::Done);
            }
            Action::Wait { one, watching } => return follow(&one.daemon, one.id, watching, answer),
            Action::Pause(one) => (one, "pause", json!({})),
            Action::Resume(one) => (one, "resume", json!({})),
            Action::Cancel(one) => (one, "cancel", json!({})),
            Action::Speed { one, rate, share, latency_target } => {
                (one, "speed", json!({ "rate": rate, "share": share, "latency-target": latency_target }))
            }
        };
        let mut job = one.daemon.post(&format!("/v1/jobs/{}/{what}", one.id), &body)?;
        if what == "cancel" {
            job = one.daemon.get(&format!("/v1/jobs/{}/wait?timeout=10", one.id))?;
        }
        answer.print(&job, |out| line(&job, out))?;
        Ok(Exit::Done)
    }
}

/// Shows how far a job is until it has ended, and how it did. ^C leaves it running.
pub fn follow(daemon: &Daemon, id: u64, watching: &Watching, answer: &Answer) -> Result<Exit, Failure> {
    let look = || daemon.get(&format!("/v1/jobs/{id}"));
    let gone = |failure: Failure| {
        failure.hint(format!("with --state the next daemon goes on with it: dchain job wait {id} follows it"))
    };
    let mut is_known = false;
    let last = watching.run(|progress| {
        loop {
            let job = match look() {
                Ok(job) => job,
                failed => return Ok(if is_known { failed.map_err(gone) } else { failed }),
            };
            is_known = true;
            progress.follow(&seen(job.get("progress").unwrap_or(&Value::Null)));
            if progress.is_cancelled() || is_over(&job) {
                return Ok(Ok(job));
            }
            thread::sleep(GLANCE);
        }
    })?;
    let job = last?;
    if !is_over(&job) {
        note(&format!(
            "job {id} goes on: dchain job wait {id} follows it, dchain job cancel {id} gives it up"
        ));
        return Ok(Exit::Resumable);
    }
    if let Some(error) = job.get("error").filter(|error| !error.is_null()) {
        return Err(helped(refused(error), text(&job, "kind")));
    }
    answer.print(&job, |out| line(&job, out))?;
    Ok(if is_left(&job) { Exit::Resumable } else { Exit::Done })
}

/// Adds what helps a job that did not do what it was to do; the daemon knows nothing of commands.
fn helped(failure: Failure, kind: &str) -> Failure {
    match failure.exit {
        Exit::NoSpace => failure.hint("free some space, then run the same command again"),
        Exit::Resumable if kind == "migrate" => {
            failure.hint("the same command moves the disk; layers that are whole in the store are linked")
        }
        Exit::Resumable => {
            failure.hint("the same command folds the disk again, and goes on where that is possible")
        }
        _ => failure,
    }
}

/// Returns how far the daemon says that a job is.
fn seen(moving: &Value) -> State {
    let phase = ["hash", "copy", "finish"].into_iter().find(|name| *name == text(moving, "phase"));
    let elapsed = moving.get("elapsed").and_then(Value::as_f64).unwrap_or_default();
    State {
        phase: phase.unwrap_or("wait"),
        moved_bytes: number(moving, "transferred"),
        size_bytes: number(moving, "size"),
        elapsed: Duration::try_from_secs_f64(elapsed).unwrap_or_default(),
    }
}

fn is_over(job: &Value) -> bool {
    text(job, "state") == "concluded"
}

fn is_left(job: &Value) -> bool {
    job.get("is-resumable").and_then(Value::as_bool) == Some(true)
}

/// What guests feel of it, if that is known.
fn felt(moving: &Value) -> String {
    let ms = |key| moving.get(key).and_then(Value::as_f64);
    match (ms("guest-p50"), ms("guest-p99")) {
        (Some(p50), Some(p99)) => format!("; guests wait {p50:.2} ms, one in a hundred {p99:.2} ms"),
        _ => String::new(),
    }
}

/// The jobs that were cut off in those folders, or beside those images.
fn cut_off_in(paths: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let host = options::host();
    let mut folders = BTreeSet::new();
    for path in paths {
        let place = host.canonical(path)?;
        let folder = if place.is_dir() { Some(place.as_path()) } else { place.parent() };
        folders.extend(folder.map(Path::to_path_buf));
    }
    let mut found = Vec::new();
    for folder in folders {
        for cut_off in cut_off(&host, &folder)? {
            found.push(versioned(&CutOffView { cut_off, disk: None })?);
        }
    }
    Ok(found)
}

/// A job that was cut off, and what can be done with it.
fn left_behind(job: &Value, out: &mut dyn Write) -> io::Result<()> {
    let (journal, top) = (text(job, "journal"), text(job, "top"));
    if let Some(error) = job.get("error").and_then(Value::as_str) {
        return writeln!(out, "cut off: {error}; dchain consolidate --abandon {journal} takes it away");
    }
    let far = match job.get("has-landed").and_then(Value::as_bool) {
        Some(true) => "all but ended".to_owned(),
        _ => format!("at {} of {}", size::show(number(job, "mark")), size::show(number(job, "size"))),
    };
    if text(job, "kind") == "migrate" {
        // Its other store is in the daemon's book alone.
        return writeln!(
            out,
            "cut off: migrate of {top}: {far}; its daemon goes on with it when it starts, dchain consolidate --abandon \
             {journal} gives it up"
        );
    }
    let how = match job.get("disk").and_then(Value::as_str) {
        // Nobody else gets at its layers.
        Some(disk) => format!("--disk {}", quoted(Path::new(disk))),
        None => top.to_owned(),
    };
    writeln!(out, "cut off: {top}: {far}; dchain consolidate {how} goes on with it")
}

/// What became of a job that was given up.
fn given_up(job: &Value) -> String {
    if text(job, "kind") == "migrate" {
        return "given up: the disk stays where it is; layers that are whole in the store stay there, too"
            .to_owned();
    }
    let lost = job.get("plan").map_or(&[][..], |plan| list(plan, "lost"));
    let lost: Vec<_> = lost.iter().map(|one| text(one, "layer")).collect();
    let gone = if lost.is_empty() {
        String::new()
    } else {
        format!("; no points in time any more: {}", lost.join(", "))
    };
    format!("given up: the disk goes on with all that its guests wrote{gone}")
}

fn line(job: &Value, out: &mut dyn Write) -> io::Result<()> {
    if job.get("journal").is_some() {
        return left_behind(job, out);
    }
    let (id, disk, state) = (number(job, "id"), text(job, "disk"), text(job, "state"));
    let moving = job.get("progress").unwrap_or(&Value::Null);
    let report = job.get("report").filter(|report| !report.is_null());
    let how = match (job.get("error").filter(|error| !error.is_null()), report) {
        (Some(error), _) if text(error, "kind") == "interrupted" => given_up(job),
        (Some(error), _) => format!("failed: {}", refused(error).what),
        (None, Some(report)) => format!(
            "done: copied {}, zeroed {}, mirrored {}",
            size::show(number(report, "copied-bytes")),
            size::show(number(report, "zeroed-bytes")),
            size::show(number(report, "mirrored-bytes"))
        ),
        (None, None) if is_left(job) => "stopped with the daemon, and goes on with it".to_owned(),
        (None, None) if text(moving, "phase") == "finish" => {
            format!("{state}: all bytes are there{}", felt(moving))
        }
        (None, None) => format!(
            "{state}: {} of {}, {}/s{}",
            size::show(number(moving, "transferred")),
            size::show(number(moving, "size")),
            size::show(number(
                moving,
                if moving.get("rate-now").is_some_and(Value::is_u64) { "rate-now" } else { "rate" }
            )),
            felt(moving)
        ),
    };
    writeln!(out, "{id}: {} of {disk}: {how}", text(job, "kind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_was_cut_off_is_its_daemons_to_go_on_with() {
        let told = |kind: &str| {
            let job = json!({
                "kind": kind, "journal": "/vm/.dchain/x.journal", "top": "/vm/top", "mark": 1, "size": 2,
                "has-landed": false, "disk": null
            });
            let mut out = Vec::new();
            left_behind(&job, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let migrate = told("migrate");
        assert!(
            migrate.contains("migrate of /vm/top") && migrate.contains("--abandon /vm/.dchain/x.journal"),
            "{migrate}"
        );
        assert!(!migrate.contains("goes on with it\n"), "{migrate}");
        assert!(told("consolidate").contains("dchain consolidate /vm/top goes on with it"));
    }
}
