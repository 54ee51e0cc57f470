//! `dchain repair`: what differs from what a layer's content ID promises is put back from a copy.

use crate::{
    failure::{Exit, Failure, quoted},
    options::{self, Source},
    output::{Answer, printable},
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    chain::Opening,
    format::Format,
    io::Access,
    job::repair::{Plan, Repair, Unproven},
};
use std::path::PathBuf;

/// Put back what differs in BASE from what its content ID promises
///
/// Each leaf (64 KiB) is taken from COPY and written only if its hash is the promised one, so that COPY may be
/// anything: another format, the head of a chain, a newer or older state of the disk. When all is right, the whole of
/// BASE is hashed, and its children are readable again. A repair that was cut off is repeated.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Where the bytes are taken from: an image, or the head of a chain
    #[arg(long, value_name = "COPY")]
    from: PathBuf,
    /// Format of COPY (recognised by its header if not given)
    #[arg(short = 'F', long, value_name = "FMT", value_parser = options::format)]
    backing_format: Option<Format>,
    /// Put back what COPY proves even if that is not all: the rest stays wrong, and BASE in doubt (exit code 77)
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    /// The layer
    base: PathBuf,
}

impl Arguments {
    /// Looks, plans and repairs.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let copy = Opening { format: self.backing_format, ..opening.clone() };
        let (ledger, paths) = (options::ledger(&host), (self.base.as_path(), self.from.as_path()));
        let repair = self
            .watching
            .run(|progress| Repair::prepare(&host, &ledger, paths, (&opening, &copy), progress))?;
        let plan = repair.plan();
        let is_short = !plan.unproven.is_empty();
        let grade = if plan.restored.is_empty() { Grade::Harmless } else { Grade::Destructive };
        if is_short && !self.partial && !self.planned.dry_run {
            return Err(self.refusal(plan));
        }
        if self.planned.agree(answer, plan, &lines(plan), grade)? {
            let unproven = if self.partial { Unproven::Leave } else { Unproven::Refuse };
            let done = self.watching.run(|progress| repair.run(unproven, progress))?;
            answer.print(&done, |out| {
                let restored = size::show(done.restored_bytes);
                let proven =
                    if done.is_proven { "proven: it shows what it promises" } else { "still in doubt" };
                writeln!(out, "{}: {restored} put back; {proven}", done.image.display())
            })?;
        }
        Ok(if is_short { Exit::Refused } else { Exit::Done })
    }

    fn refusal(&self, plan: &Plan) -> Failure {
        let (image, copy) = (plan.image.display().to_string(), plan.copy.display().to_string());
        let (image, copy) = (printable(&image), printable(&copy));
        let mut what =
            vec![format!("{image}: {copy} does not show all that is promised; nothing was written")];
        what.extend(plan.unproven.iter().map(|(at, n)| format!("  not proven: {n} bytes at {at:#x}")));
        let what = what.join("\n");
        Failure { exit: Exit::Refused, what, hint: None }.hint(format!(
            "try another copy, or dchain repair --partial {} --from {} puts back the {} that it proves",
            quoted(&self.base),
            quoted(&self.from),
            size::show(plan.restored_bytes())
        ))
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    let (image, copy) = (plan.image.display(), plan.copy.display());
    let mut lines = vec![format!("{image} promises to show {}", plan.id.short())];
    if plan.size != plan.promised_size {
        lines.push(format!("its size goes from {} back to {} bytes", plan.size, plan.promised_size));
    }
    let span = |(at, bytes): &(u64, u64)| format!("{bytes} bytes at {at:#x}");
    lines.extend(plan.restored.iter().map(|s| format!("put back from {copy}: {}", span(s))));
    lines.extend(plan.unproven.iter().map(|s| format!("not proven by {copy}: {}", span(s))));
    if plan.restored.is_empty() && plan.unproven.is_empty() {
        lines.push("nothing differs: only its record is made trusted again".to_owned());
    }
    let stale = |name: &String| format!("the bitmap '{name}' is marked as in use: it records nothing here");
    lines.extend(plan.bitmaps_stale.iter().filter(|_| !plan.restored.is_empty()).map(stale));
    lines
}
