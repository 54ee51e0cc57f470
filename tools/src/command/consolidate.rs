//! `dchain consolidate`: folds layers into an older one, in one pass.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::{Args, ValueEnum};
use deltachain::{
    chain::Opening,
    format::Format,
    io::{Access, Host},
    job::consolidate::{Abandonment, Consolidation, NewImage, Pace, Plan, Report, Request, Verify},
    store::FoldMode,
};
use std::{path::PathBuf, sync::Arc};

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
    /// Fold into LAYER (by default down to the oldest layer that is this disk's own)
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
    #[arg(long)]
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
    /// The head of the chain
    top: PathBuf,
}

impl Arguments {
    /// Plans, asks, folds.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Read)?;
        if self.abandon {
            return self.give_up(&host, &opening, answer);
        }
        let job = Consolidation::prepare(&host, &self.top, &opening, &self.request())?;
        let lines = lines(job.plan());
        let grade = if job.plan().lost.is_empty() { Grade::Harmless } else { Grade::Destructive };
        if self.planned.agree(answer, job.plan(), &lines, grade)? {
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

    fn give_up(&self, host: &Arc<dyn Host>, opening: &Opening, answer: &Answer) -> Result<Exit, Failure> {
        let job = Abandonment::prepare(host, &self.top, opening).map_err(|error| Failure::inside(&error))?;
        let plan = job.plan();
        let mut lines = vec![plan.top.as_ref().map_or_else(
            || "the journal cannot be relied on: a disk that relied on it may no longer open".to_owned(),
            |top| format!("{}: the job on it is given up", top.display()),
        )];
        let removed = plan.removed.iter().chain([&plan.journal]);
        lines.extend(removed.map(|file| format!("removed: {}", file.display())));
        lines.extend(plan.lost.iter().map(|layer| format!("can no longer be restored: {}", layer.display())));
        // What is lost was lost when the job wrote its first byte, if that can be told.
        let grade = if plan.top.is_some() { Grade::Harmless } else { Grade::Destructive };
        if self.planned.agree(answer, plan, &lines, grade)? {
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
        Request { into: self.into.clone(), new, keeps_target_name, verify, ignores_unread }
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.is_resumed {
        lines.push(format!("{}: going on with a job that was cut off", plan.top.display()));
    }
    let target = plan.target.as_ref().unwrap_or(&plan.result);
    let folded = match plan.folded.len() {
        1 => "1 layer".to_owned(),
        n => format!("{n} layers"),
    };
    lines.push(format!("{folded} of {}, to be folded into {}", plan.top.display(), target.display()));
    lines.push(format!(
        "to copy: {}; to mark as zero: {}; space it may need: {} of {} free",
        size::show(plan.copy_bytes),
        size::show(plan.zero_bytes),
        size::show(plan.need_bytes),
        size::show(plan.free_bytes)
    ));
    let result = plan.result.display();
    lines.push(match (&plan.target, plan.mode) {
        (Some(target), FoldMode::TopName) => {
            format!("{} is renamed to {result}, which opens the result", target.display())
        }
        (_, FoldMode::NewImage) => format!("{result} opens the result; all layers stay, with their names"),
        _ => format!("{result} opens the result"),
    });
    lines.extend(plan.removed.iter().map(|file| format!("removed afterwards: {}", file.display())));
    lines.extend(plan.stays.iter().map(|(file, why)| format!("stays: {}: {why}", file.display())));
    for lost in &plan.lost {
        let what = lost.snapshot.as_ref().map_or_else(String::new, |name| format!(", snapshot {name}"));
        lines.push(format!("can no longer be restored: {}{what}", lost.layer.display()));
    }
    lines.extend(plan.bitmaps_merged.iter().map(|name| format!("bitmap kept: {name}")));
    lines.extend(plan.bitmaps_lost.iter().map(|name| format!("bitmap lost: {name}")));
    let folders: Vec<_> = plan.looked_in.iter().map(|f| f.display().to_string()).collect();
    lines.push(format!("looked for other children in: {}", folders.join(", ")));
    lines.extend(plan.unread.iter().map(|file| format!("could not be read: {}", file.display())));
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
