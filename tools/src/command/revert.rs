//! `dchain revert`: the head starts again from an older layer.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Source},
    output::Answer,
    plan::{Grade, Planned},
    size,
};
use clap::Args;
use deltachain::{format::Format, io::Access, job::snapshot::Revert};
use std::path::PathBuf;

/// Give up what was written to TOP: it starts again, empty, on LAYER
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    options: FormatOptions,
    #[command(flatten)]
    planned: Planned,
    /// The head
    top: PathBuf,
    /// One of the layers below it
    layer: PathBuf,
}

impl Arguments {
    /// Plans, asks, reverts.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            options::list_format_options(answer, Format::Qcow2)?;
            return Ok(Exit::Done);
        }
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let revert = Revert::prepare(&host, &self.top, &self.layer, &opening)?;
        let plan = revert.plan();
        let mut lines = vec![
            format!("{} starts again from {}", plan.head.display(), plan.layer.display()),
            format!("given up: what was written to it ({} on disk)", size::show(plan.head_bytes)),
        ];
        lines.extend(plan.left.iter().map(|layer| format!("left without this child: {}", layer.display())));
        if self.planned.agree(answer, plan, &lines, Grade::Destructive)? {
            let done = revert.run(&host, &self.options.pairs())?;
            answer.print(&done, |out| writeln!(out, "Reverted."))?;
        }
        Ok(Exit::Done)
    }
}
