//! `dchain snapshot`: freezes a layer and puts a new head on it.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Source},
    output::Answer,
};
use clap::Args;
use deltachain::{format::Format, io::Access, job::snapshot::snapshot};
use std::path::PathBuf;

/// Freeze TOP: NEW becomes the head that is written from now on
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    options: FormatOptions,
    /// Take TOP as raw although it starts like another format
    #[arg(long, requires = "format")]
    yes: bool,
    /// The image that keeps this point in time
    top: PathBuf,
    /// The new head, a qcow2 image on TOP
    new: PathBuf,
}

impl Arguments {
    /// Takes the snapshot.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            options::list_format_options(answer, Format::Qcow2)?;
            return Ok(Exit::Done);
        }
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        options::refuse_header(&host, &self.top, self.source.format, self.yes)?;
        let taken = snapshot(&host, &self.top, &self.new, &self.options.pairs(), &opening)?;
        answer.print(&taken, |out| {
            writeln!(out, "{} is frozen; the head is {}", self.top.display(), self.new.display())
        })?;
        Ok(Exit::Done)
    }
}
