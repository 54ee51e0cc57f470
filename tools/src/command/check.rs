//! `dchain check`: whether an image's metadata is sound, and repair.

use crate::{
    failure::{Exit, Failure},
    options::{self, Reading},
    output::Answer,
};
use clap::{Args, ValueEnum};
use deltachain::{
    base::{Error, ErrorKind},
    chain::{Chain, Opening, check_layer, check_lineage, lineage},
    format::{Checked, Format, Repair},
    io::Access,
};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// Check an image's metadata (exit code 0: sound, 1: could not check, 2: corrupt, 3: leaks only,
/// 63: the format has nothing to check)
#[derive(Args, Debug)]
pub struct Arguments {
    /// Mend what is wrong: leaks only, or all
    #[arg(long, value_enum, conflicts_with = "force_share")]
    repair: Option<What>,
    /// Then, whether every layer stands on the parent that it was made on (if not: exit code 77)
    #[arg(long)]
    lineage: bool,
    #[command(flatten)]
    reading: Reading,
    /// The image
    image: PathBuf,
}

/// What is mended.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Space that is marked as used and is not
    Leaks,
    /// Everything that can be mended without losing data
    All,
}

/// The answer for programs: qemu-img's keys, and the findings in words.
#[derive(Debug, Serialize)]
struct Report {
    filename: String,
    format: Format,
    check_errors: u64,
    image_end_offset: u64,
    corruptions: u64,
    leaks: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
    findings: Vec<String>,
}

impl Arguments {
    /// Checks, mends what is asked, reports.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let repair = match self.repair {
            None => Repair::Nothing,
            Some(What::Leaks) => Repair::Leaks,
            Some(What::All) => Repair::All,
        };
        let opening = self.reading.opening(&host)?;
        let access = if self.repair.is_some() { Access::Write } else { opening.access };
        let opening = Opening { access, ..opening };
        let (format, checked) = check_layer(&host, &self.image, &opening, repair).map_err(failure)?;
        let report = Report::new(self.image.display().to_string(), format, checked);
        answer.print(&report, |out| report.write(out))?;
        if self.lineage && report.exit() == Exit::Done {
            let reading = Opening { access: self.reading.access(), ledger: None, ..opening };
            let chain = Chain::open(&host, &self.image, &reading).map_err(failure)?;
            check_lineage(chain.layers(), &lineage(&options::ledger(&host), chain.layers())?)?;
        }
        Ok(report.exit())
    }
}

/// `check` has exit codes of its own: all that stops it is 1, but for what cannot be checked and wrong parents.
fn failure(error: Error) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error);
    match kind {
        ErrorKind::Unsupported => failure.exit(Exit::Unsupported),
        ErrorKind::Policy | ErrorKind::Invalid => failure,
        ErrorKind::Corrupt => Failure { hint: None, ..failure }.exit(Exit::Failed),
        _ => failure.exit(Exit::Failed),
    }
}

impl Report {
    fn new(filename: String, format: Format, checked: Checked) -> Self {
        Self {
            filename,
            format,
            check_errors: checked.errors,
            image_end_offset: checked.end.bytes(),
            corruptions: checked.corruptions,
            leaks: checked.leaks,
            corruptions_fixed: checked.corruptions_fixed,
            leaks_fixed: checked.leaks_fixed,
            total_clusters: checked.total_units,
            allocated_clusters: checked.allocated_units,
            fragmented_clusters: checked.fragmented_units,
            compressed_clusters: checked.compressed_units,
            findings: checked.findings,
        }
    }

    const fn exit(&self) -> Exit {
        match (self.check_errors, self.corruptions, self.leaks) {
            (1.., _, _) => Exit::Failed,
            (_, 1.., _) => Exit::Corruptions,
            (_, _, 1..) => Exit::Leaks,
            _ => Exit::Done,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for finding in &self.findings {
            writeln!(out, "{finding}")?;
        }
        if self.leaks_fixed + self.corruptions_fixed > 0 {
            writeln!(
                out,
                "mended: {} leaked clusters, {} corruptions",
                self.leaks_fixed, self.corruptions_fixed
            )?;
        }
        if self.check_errors + self.corruptions + self.leaks == 0 {
            writeln!(out, "No errors were found on the image.")?;
        }
        if self.corruptions > 0 {
            writeln!(out, "{} errors were found on the image: data may be corrupt.", self.corruptions)?;
        }
        if self.leaks > 0 {
            writeln!(
                out,
                "{} leaked clusters were found on the image: space is wasted, data is not harmed.",
                self.leaks
            )?;
        }
        if self.check_errors > 0 {
            writeln!(out, "{} places could not be checked.", self.check_errors)?;
        }
        if self.allocated_clusters > 0 && self.total_clusters > 0 {
            #[expect(clippy::cast_precision_loss, reason = "percentages are shown with two digits")]
            let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
            let allocated = self.allocated_clusters;
            writeln!(
                out,
                "{allocated}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
                self.total_clusters,
                percent(allocated, self.total_clusters),
                percent(self.fragmented_clusters, allocated),
                percent(self.compressed_clusters, allocated),
            )?;
        }
        writeln!(out, "Image end offset: {}", self.image_end_offset)
    }
}
