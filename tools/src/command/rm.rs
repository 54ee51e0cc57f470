//! `dchain rm`: images that nobody needs.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    size,
};
use clap::Args;
use deltachain::{
    base::ErrorKind,
    io::Access,
    job::remove::{Plan, Remove},
};
use std::path::PathBuf;

/// Remove images with all that belongs to them, unless others need them
///
/// Refused are images that another one lies on (in their folder, or where `dchain` made children of theirs), that
/// somebody uses or has leased, and those that a job names which was cut off. Images that lie on each other go together.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Remove them although a file beside them cannot be read, which might lie on them
    #[arg(long)]
    ignore_unread: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

impl Arguments {
    /// Plans, asks, removes.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Read)?;
        let remove =
            Remove::prepare(&host, &options::ledger(&host), &self.images, &opening, self.ignore_unread)
                .map_err(|error| {
                    let failure = Failure::from_error(&error);
                    let is_unread = error.kind() == ErrorKind::Policy && error.about().is_some();
                    if is_unread {
                        failure.hint("--ignore-unread removes them all the same")
                    } else {
                        failure
                    }
                })?;
        if self.planned.agree(answer, remove.plan(), &lines(remove.plan()), Grade::Destructive)? {
            let done = remove.run()?;
            answer.print(&done, |out| {
                done.removed.iter().try_for_each(|file| writeln!(out, "removed: {}", file.display()))
            })?;
        }
        Ok(Exit::Done)
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> =
        plan.removed.iter().map(|file| format!("removed: {}", file.display())).collect();
    lines.extend(plan.stays.iter().map(|device| format!("stays: {}: it is a device", device.display())));
    lines.extend(plan.unread.iter().map(|file| format!("could not be read: {}", file.display())));
    let folders: Vec<String> = plan.looked_in.iter().map(|folder| folder.display().to_string()).collect();
    lines.push(format!(
        "given back: {}; who needs them was looked for in {}",
        size::show(plan.freed_bytes),
        folders.join(", ")
    ));
    lines
}
