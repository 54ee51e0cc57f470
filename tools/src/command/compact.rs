//! `dchain compact`: space back to the host.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{io::Access, job::compact::Compaction};
use std::path::PathBuf;

/// Give space back to the host: stored zeros, and what the image does not use
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    /// The image
    image: PathBuf,
}

impl Arguments {
    /// Plans and does it.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let compaction = Compaction::prepare(&host, &self.image, &opening)?;
        let plan = compaction.plan();
        let (takes, reads) = (size::show(plan.allocated_bytes), size::show(plan.read_bytes));
        let mut lines = vec![format!("{}: takes {takes}; {reads} are read for zeros", self.image.display())];
        let stale =
            |name: &String| format!("the bitmap '{name}' is marked as in use: it records nothing here");
        lines.extend(plan.bitmaps_stale.iter().map(stale));
        if self.planned.agree(answer, plan, &lines, Grade::Harmless)? {
            let done = self.watching.run(|progress| compaction.run(progress))?;
            answer.print(&done, |out| {
                let (back, takes) = (size::show(done.released_bytes), size::show(done.allocated_bytes));
                writeln!(out, "{back} went back to the host; the image takes {takes}.")
            })?;
        }
        Ok(Exit::Done)
    }
}
