//! `dchain resize`: another size for an image.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    size::{self, Wanted},
};
use clap::Args;
use deltachain::{io::Access, job::resize::Resize};
use std::path::PathBuf;

/// Change the size of the disk
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    /// As --yes, for those whose fingers know qemu-img
    #[arg(long)]
    shrink: bool,
    /// The image
    image: PathBuf,
    /// The new size, or +SIZE or -SIZE to change it by that (suffixes K M G T P E)
    #[arg(value_parser = Wanted::parse, allow_hyphen_values = true)]
    size: Wanted,
}

impl Arguments {
    /// Plans, asks, resizes.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let resize = Resize::prepare(&host, &self.image, &opening, |size| self.size.from(size))?;
        let plan = resize.plan();
        let [from, to] = size::show_apart([plan.from, plan.to]);
        let mut lines = vec![format!("{}: {from} -> {to}", self.image.display())];
        let grade = if plan.lost_bytes > 0 {
            lines.push(format!("the last {} of the disk are lost", size::show(plan.lost_bytes)));
            if self.shrink { Grade::Harmless } else { Grade::Destructive }
        } else {
            Grade::Harmless
        };
        lines.extend(plan.bitmaps_lost.iter().map(|name| lost(name)));
        let foreseen = plan.bitmaps_lost.clone();
        if self.planned.agree(answer, plan, &lines, grade)? {
            let done = resize.run()?;
            answer.print(&done, |out| {
                let news = done.bitmaps_lost.iter().filter(|name| !foreseen.contains(name));
                news.into_iter().try_for_each(|name| writeln!(out, "{}", lost(name)))?;
                writeln!(out, "Image resized.")
            })?;
        }
        Ok(Exit::Done)
    }
}

fn lost(name: &str) -> String {
    format!("the bitmap '{name}' cannot have that size and is marked as in use: it records nothing any more")
}
