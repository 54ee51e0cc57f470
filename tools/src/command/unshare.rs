//! `dchain unshare`: a disk that stands on no layer which others use.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    io::Access,
    job::unshare::{Plan, Unshare},
};
use std::path::PathBuf;

/// Make the disk of TOP independent of layers that others use, too
///
/// Layers that another image lies on, in another folder, or read-only are shared. The oldest layer that is the disk's own
/// gets what it shows from them, and then no parent; the layers above it, and the shared ones, stay as they are. What was
/// copied is read back and compared before the link goes. Cut off, the same command goes on.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Copy the shared layers beside it, each as NAME-of-OWN, and have it stand on those
    #[arg(long)]
    keep_layers: bool,
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
    /// Plans and copies.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Read)?;
        let unshare = Unshare::prepare(&host, &self.top, &opening, self.keep_layers)?;
        if self.planned.agree(answer, unshare.plan(), &lines(unshare.plan()), Grade::Harmless)? {
            let done = self.watching.run(|progress| unshare.run(progress))?;
            answer.print(&done, |out| {
                if done.leaves.is_empty() {
                    writeln!(out, "Nothing of it is shared.")
                } else if let Some(copy) = done.copies.first() {
                    writeln!(out, "{} stands on {}; verified: bytes", done.base.display(), copy.display())
                } else {
                    writeln!(out, "{} stands alone; verified: bytes", done.base.display())
                }
            })?;
        }
        Ok(Exit::Done)
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    let why = |nth: usize| match (&plan.why, nth) {
        (Some(why), 0) => format!(": {why}"),
        _ => String::new(),
    };
    let leaves = plan.leaves.iter().enumerate();
    let mut lines: Vec<String> =
        leaves.map(|(nth, layer)| format!("stays, and is left: {}{}", layer.display(), why(nth))).collect();
    let (base, copied, free) =
        (plan.base.display(), size::show(plan.copy_bytes), size::show(plan.free_bytes));
    let copies = plan.leaves.iter().zip(&plan.copies);
    lines.extend(copies.map(|(layer, copy)| format!("copy {} -> {}", layer.display(), copy.display())));
    if let Some(copy) = plan.copies.first() {
        let copy = copy.display();
        lines.push(format!("{base} stands on {copy} then; to copy: {copied} of {free} free there"));
    } else if !lines.is_empty() {
        lines.push(format!("{base} stands alone then; copied into it: {copied} of {free} free there"));
    }
    lines
}
