//! `dchain compare`: whether two images show the same disk.

use crate::{
    failure::{Exit, Failure},
    options::{self, References},
    output::Answer,
    progress::Watching,
};
use clap::Args;
use deltachain::{
    base::GuestOffset,
    chain::Chain,
    disk::Disk,
    format::Format,
    io::{Access, Host},
    job::diff::first_difference,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Say whether two images show the same disk (exit code 0: same, 1: different, 2: could not compare)
#[derive(Args, Debug)]
pub struct Arguments {
    /// Format of A (recognised by its header if not given)
    #[arg(short, long, value_name = "FMT", value_parser = options::format)]
    format: Option<Format>,
    /// Format of B (recognised by its header if not given)
    #[arg(short = 'F', long = "backing-format", visible_alias = "b-format", value_name = "FMT",
          value_parser = options::format)]
    format_b: Option<Format>,
    /// Read even while another program writes: what is read may be inconsistent
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Different sizes are a difference, even where the longer disk only adds zeros
    #[arg(short, long)]
    strict: bool,
    #[command(flatten)]
    references: References,
    #[command(flatten)]
    watching: Watching,
    /// An image
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another
    #[arg(value_name = "B")]
    b: PathBuf,
}

/// The answer for programs.
#[derive(Serialize)]
struct Verdict {
    identical: bool,
    first_difference: Option<u64>,
    size_a: u64,
    size_b: u64,
}

impl Arguments {
    /// Compares and says so.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let verdict = self.compare().map_err(|failure| match failure.exit {
            Exit::Resumable => failure,
            _ => failure.exit(Exit::Corruptions),
        })?;
        answer.print(&verdict, |out| {
            if verdict.size_a != verdict.size_b {
                writeln!(out, "Warning: Image size mismatch!")?;
            }
            match verdict.first_difference {
                Some(at) => writeln!(out, "Content mismatch at offset {at}!"),
                None if verdict.identical => writeln!(out, "Images are identical."),
                None => Ok(()),
            }
        })?;
        Ok(if verdict.identical { Exit::Done } else { Exit::Failed })
    }

    fn compare(&self) -> Result<Verdict, Failure> {
        let host = options::host();
        let (a, b) = (self.open(&host, &self.a, self.format)?, self.open(&host, &self.b, self.format_b)?);
        let first = self.watching.run(|progress| first_difference(&a.view(0), &b.view(0), progress))?;
        let same_size = a.size() == b.size();
        Ok(Verdict {
            identical: first.is_none() && (same_size || !self.strict),
            first_difference: first.map(GuestOffset::bytes),
            size_a: a.size(),
            size_b: b.size(),
        })
    }

    fn open(&self, host: &Arc<dyn Host>, image: &Path, format: Option<Format>) -> Result<Chain, Failure> {
        let access = if self.force_share { Access::ReadShared } else { Access::Read };
        let opening = self.references.opening(host.as_ref(), access)?.with_format(format);
        Ok(Chain::open(host, image, &opening.with_ledger(options::ledger(host)))?)
    }
}
