//! `dchain lint`: what is wrong, or at risk, in folders of images; what folding would give back.

use crate::{
    failure::{Exit, Failure},
    options,
    output::Answer,
    size,
};
use clap::Args;
use deltachain::job::lint::{Finding, Foldable, Grade, Rate, Report, Request, lint};
use std::path::PathBuf;

/// Look for what is wrong or at risk in folders of images, and what folding their chains would give back
///
/// Nothing is written or locked: the disks may be running. Exit code 1 if something is wrong, 0 if there are only
/// warnings and notes, or nothing.
#[derive(Args, Debug)]
pub struct Arguments {
    /// How many layers a chain may have
    #[arg(long, value_name = "LAYERS", default_value = "32")]
    max_depth: usize,
    /// Bytes per second that a fold is taken to copy (measured by reading for a moment if not given)
    #[arg(short, long, value_name = "BYTES/s", value_parser = size::parse)]
    rate: Option<u64>,
    /// Folders, or images whose folders are meant
    #[arg(default_value = ".", value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

impl Arguments {
    /// Looks and tells.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        if self.rate == Some(0) {
            return Err(Failure::usage("at 0 bytes per second nothing is ever folded"));
        }
        let folder = |path: &PathBuf| options::folder(host.as_ref(), path);
        let folders = self.folders.iter().map(folder).collect::<Result<Vec<_>, _>>()?;
        let request = Request { folders, depth_max: self.max_depth, rate: self.rate };
        let report = lint(&host, &options::ledger(&host), &request)?;
        answer.print(&report, |out| lines(&report).iter().try_for_each(|line| writeln!(out, "{line}")))?;
        Ok(if report.has_errors() { Exit::Failed } else { Exit::Done })
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines: Vec<String> = report.findings.iter().map(line).collect();
    lines.extend(report.foldable.iter().map(foldable));
    let count = |grade| report.findings.iter().filter(|finding| finding.grade == grade).count();
    lines.push(format!(
        "{} images: {} errors, {} warnings, {} notes; folding would give back {}{}",
        report.images,
        count(Grade::Error),
        count(Grade::Warning),
        count(Grade::Note),
        size::show(report.gives_back_bytes),
        report.rate.as_ref().map_or_else(String::new, rate)
    ));
    lines
}

fn line(finding: &Finding) -> String {
    let grade = match finding.grade {
        Grade::Error => "error",
        Grade::Warning => "warning",
        Grade::Note => "note",
    };
    let about: Vec<String> = finding.about.iter().map(|file| file.display().to_string()).collect();
    let about = if about.is_empty() { String::new() } else { format!(" [{}]", about.join(", ")) };
    format!("{grade}: {}: {}{about}", finding.image.display(), finding.what)
}

fn foldable(chain: &Foldable) -> String {
    format!(
        "could be folded: {} into {}: {} layers go, {} to copy, at least {} s, gives back {}",
        chain.top.display(),
        chain.into.display(),
        chain.layers,
        size::show(chain.copy_bytes),
        chain.milliseconds.div_ceil(1000),
        size::show(chain.gives_back_bytes)
    )
}

fn rate(rate: &Rate) -> String {
    let speed = size::show(rate.bytes_per_second);
    match rate.probe_bytes {
        Some(bytes) => format!(
            ", at {speed}/s at most ({} were read, by the host's cache where they were there; --rate states another)",
            size::show(bytes)
        ),
        None => format!(", at {speed}/s (as given)"),
    }
}
