//! `dchain consolidate`: folds layers into an older one, in one pass.

use super::job::follow;
use crate::{
    client::{Daemon, absolute, layer, list, number, segment, text},
    failure::{Exit, Failure},
    options::{self, FormatOptions, Source},
    output::{Answer, versioned},
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::{Args, ValueEnum};
use deltachain::{
    chain::Opening,
    format::Format,
    io::{Access, Host},
    job::consolidate::{Abandonment, Consolidation, NewImage, Pace, Report, Request, Verify},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How the result is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Proof {
    /// Compare all that the job touches with the target as it passes.
    Tree,
    /// Hash the whole disk before and after.
    Bytes,
    /// Trust the copy.
    None,
}

/// Fold the layers of TOP into an older one, in one pass; TOP's name opens the result
///
/// The layer that they are folded into is renamed over TOP: its own name goes. With --keep-target-name TOP's name goes
/// instead; with --new both stay, and IMAGE opens the result.
///
/// A job that was cut off goes on when the same command is given again; --abandon gives it up.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Fold into LAYER (by default down to the oldest layer that is this disk's own); with --disk its name is enough
    #[arg(long, value_name = "LAYER")]
    into: Option<PathBuf>,
    /// Fold into a new image, which opens the result; TOP and its layers stay as they are, with their names
    #[arg(long, value_name = "IMAGE")]
    new: Option<PathBuf>,
    /// Format of the new image (TOP's if not given)
    #[arg(short = 'O', long, value_name = "FMT", value_parser = options::format, requires = "new")]
    target_format: Option<Format>,
    #[command(flatten)]
    options: FormatOptions,
    /// The result keeps the target's name; TOP's name goes
    #[arg(long, conflicts_with = "new")]
    keep_target_name: bool,
    /// How the result is proved
    #[arg(long, value_enum, default_value = "tree")]
    verify: Proof,
    /// Give up a job that was cut off: TOP (or the journal's file) names it, and TOP goes on showing what it shows
    #[arg(long, conflicts_with_all = ["into", "new", "keep_target_name"])]
    abandon: bool,
    /// Go on although a file beside the layers cannot be read, which might lie on one of them
    #[arg(long, conflicts_with = "abandon")]
    ignore_unread: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    #[command(flatten)]
    live: Live,
    /// The head of the chain
    #[arg(required_unless_present_any = ["disk", "options"])]
    top: Option<PathBuf>,
}

/// A disk in use, and how it is folded.
#[derive(Args, Debug)]
struct Live {
    /// Fold the layers of this disk of dchaind while its guests use it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["verify", "abandon", "format", "allow_dir", "top"])]
    disk: Option<String>,
    /// With --disk: leave the job to the daemon
    #[arg(long, requires = "disk")]
    detach: bool,
    /// With --disk: the part of the time that the copier keeps for itself while guests write (0.5 if not given)
    #[arg(long, value_name = "0..1", requires = "disk", value_parser = size::part)]
    share: Option<f64>,
    /// With --disk: take more than the share only while all but one of the guests' requests in a hundred take less
    #[arg(long, value_name = "MS", requires = "disk", value_parser = size::milliseconds)]
    latency_target: Option<f64>,
    /// With --disk: end within that time; while the job is behind, guests' writes wait for it
    #[arg(long, value_name = "SECONDS", requires = "disk")]
    deadline: Option<u64>,
    #[command(flatten)]
    daemon: Daemon,
}

impl Live {
    /// Whether anything is said about a disk in use.
    fn is_any(&self) -> bool {
        let is_timed = self.share.is_some() || self.latency_target.is_some() || self.deadline.is_some();
        self.detach || is_timed || self.daemon.is_named()
    }
}

impl Arguments {
    /// Plans, asks, folds.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            let format = self.target_format.unwrap_or(Format::Qcow2);
            options::list_format_options(answer, format, FormatOptions::is_of_one_file)?;
            return Ok(Exit::Done);
        }
        self.options.refuse_data_file()?;
        if self.new.is_none() && !self.options.pairs().is_empty() {
            return Err(Failure::usage("-o says how the image of --new is made").hint("--new IMAGE"));
        }
        if let Some(disk) = &self.live.disk {
            return self.fold_live(disk, answer);
        }
        // Not left to clap: what is required and conflicts with TOP is not asked for.
        if self.live.is_any() {
            let what = "--detach, --share, --latency-target, --deadline and --socket are for a disk in use";
            return Err(Failure::usage(what).hint("--disk NAME"));
        }
        let host = options::host();
        let opening = self.source.opening(&host, Access::Read)?;
        let top = self.top.clone().ok_or_else(|| Failure::usage("TOP, the head of a chain, is wanted"))?;
        if self.abandon {
            return self.give_up(&host, &top, &opening, answer);
        }
        let job = Consolidation::prepare(&host, &top, &opening, &self.request())?;
        let plan = versioned(job.plan())?;
        if self.planned.agree(answer, job.plan(), &lines(&plan), grade(&plan))? {
            let report = self.watching.run(|progress| job.run(Pace::USUAL, progress))?;
            answer.print(&report, |out| {
                let stays = |file: &PathBuf| {
                    format!("{}: another file by now, or changed since: it stays", file.display())
                };
                let left = report.left_alone.iter().map(stays);
                left.chain([outcome(&report)]).try_for_each(|line| writeln!(out, "{line}"))
            })?;
        }
        Ok(Exit::Done)
    }

    /// The same of a disk in use: the daemon does it.
    fn fold_live(&self, disk: &str, answer: &Answer) -> Result<Exit, Failure> {
        let path = format!("/v1/disks/{}/consolidate", segment(disk));
        let options: BTreeMap<String, String> = self.options.pairs().into_iter().collect();
        let mut body = json!({
            "into": self.into.as_deref().map(layer).transpose()?,
            "new": self.new.as_deref().map(absolute).transpose()?,
            "target-format": self.target_format.map(Format::name),
            "options": options,
            "keep-target-name": self.keep_target_name,
            "ignore-unread": self.ignore_unread,
            "dry-run": true,
            "share": self.live.share,
            "latency-target": self.live.latency_target,
            "rate": self.watching.rate(),
            "deadline": self.live.deadline,
        });
        let plan = self.live.daemon.post(&path, &body)?;
        if !self.planned.agree(answer, &plan, &lines(&plan), grade(&plan))? {
            return Ok(Exit::Done);
        }
        if let Some(is_dry) = body.get_mut("dry-run") {
            *is_dry = Value::Bool(false);
        }
        let job = self.live.daemon.post(&path, &body)?;
        let id = number(&job, "id");
        if self.live.detach {
            answer.print(&job, |out| writeln!(out, "{id}: goes on; dchain job wait {id} follows it"))?;
            return Ok(Exit::Done);
        }
        follow(&self.live.daemon, id, &self.watching, answer)
    }

    fn give_up(
        &self,
        host: &Arc<dyn Host>,
        top: &Path,
        opening: &Opening,
        answer: &Answer,
    ) -> Result<Exit, Failure> {
        let job = Abandonment::prepare(host, top, opening).map_err(|error| Failure::inside(&error))?;
        let plan = job.plan();
        let mut lines = vec![plan.top.as_ref().map_or_else(
            || "the journal cannot be relied on: a disk that relied on it may no longer open".to_owned(),
            |top| format!("{}: the job on it is given up", top.display()),
        )];
        let removed = plan.removed.iter().chain([&plan.journal]);
        lines.extend(removed.map(|file| format!("removed: {}", file.display())));
        lines.extend(plan.lost.iter().map(|layer| format!("can no longer be restored: {}", layer.display())));
        // What the job has done so far is given up, and with it the only way to its result.
        if self.planned.agree(answer, plan, &lines, Grade::Destructive)? {
            let done = job.run()?;
            answer.print(&done, |out| match &done.top {
                Some(top) => writeln!(out, "{}: shows what it showed", top.display()),
                None => writeln!(out, "{}: removed", done.journal.display()),
            })?;
        }
        Ok(Exit::Done)
    }

    fn request(&self) -> Request {
        let new = self.new.as_ref().map(|path| NewImage {
            path: path.clone(),
            format: self.target_format,
            options: self.options.pairs(),
        });
        let verify = match self.verify {
            Proof::Tree => Verify::Tree,
            Proof::Bytes => Verify::Bytes,
            Proof::None => Verify::Nothing,
        };
        let (keeps_target_name, ignores_unread) = (self.keep_target_name, self.ignore_unread);
        let into = self.into.clone();
        Request { into, new, keeps_target_name, verify, ignores_unread, moves: None }
    }
}

/// Whether the plan names something that is lost.
fn grade(plan: &Value) -> Grade {
    if list(plan, "lost").is_empty() { Grade::Harmless } else { Grade::Destructive }
}

/// Returns a plan as a person reads it; ours, or what the daemon says.
fn lines(plan: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let (top, result, mode) = (text(plan, "top"), text(plan, "result"), text(plan, "mode"));
    let target = plan.get("target").and_then(Value::as_str);
    let each = |key: &str, what: &str| {
        let texts = list(plan, key).iter().filter_map(Value::as_str);
        texts.map(|text| format!("{what}: {text}")).collect::<Vec<_>>()
    };
    if plan.get("is-resumed").and_then(Value::as_bool) == Some(true) {
        lines.push(format!("{top}: going on with a job that was cut off"));
    }
    let folded = match list(plan, "folded").len() {
        1 => "1 layer".to_owned(),
        n => format!("{n} layers"),
    };
    lines.push(format!("{folded} of {top}, to be folded into {}", target.unwrap_or(result)));
    let bytes = |key| size::show(number(plan, key));
    lines.push(format!(
        "to copy: {}; to mark as zero: {}; space it may need: {} of {} free",
        bytes("copy-bytes"),
        bytes("zero-bytes"),
        bytes("need-bytes"),
        bytes("free-bytes")
    ));
    lines.push(match (target, mode) {
        (Some(target), "top-name") => format!("{target} is renamed to {result}, which opens the result"),
        (_, "new-image") => format!("{result} opens the result; all layers stay, with their names"),
        _ => format!("{result} opens the result"),
    });
    lines.extend(each("removed", "removed afterwards"));
    lines.extend(list(plan, "stays").iter().map(|stays| {
        let part = |at: usize| stays.get(at).and_then(Value::as_str).unwrap_or_default();
        format!("stays: {}: {}", part(0), part(1))
    }));
    for lost in list(plan, "lost") {
        let snapshot = lost.get("snapshot").and_then(Value::as_str);
        let what = snapshot.map_or_else(String::new, |name| format!(", snapshot {name}"));
        lines.push(format!("can no longer be restored: {}{what}", text(lost, "layer")));
    }
    lines.extend(each("bitmaps-merged", "bitmap kept"));
    lines.extend(each("bitmaps-lost", "bitmap lost"));
    let folders: Vec<_> = list(plan, "looked-in").iter().filter_map(Value::as_str).collect();
    lines.push(format!("looked for other children in: {}", folders.join(", ")));
    lines.extend(each("unread", "could not be read"));
    lines
}

fn outcome(report: &Report) -> String {
    let verified = match report.verified {
        Some(Verify::Tree) => "verified: tree",
        Some(Verify::Bytes) => "verified: bytes",
        _ => "not verified",
    };
    format!(
        "{}: copied {}, shared {}, zeroed {}; {verified}",
        report.plan.result.display(),
        size::show(report.copied_bytes),
        size::show(report.shared_bytes),
        size::show(report.zeroed_bytes)
    )
}
