//! `dchain copy`: a chain to another folder; what is there already is linked, not copied.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    remote::Remote,
    size,
    ssh::Place,
};
use clap::{Args, ValueEnum};
use deltachain::{
    base::{Error, ErrorKind, name},
    chain::{Chain, Opening},
    disk::Disk,
    io::{Access, EntryKind, Host},
    job::{
        Progress,
        convert::convert,
        copy::{Copy, Placed, Plan, Removal, Request, Share, refuse_difference},
        diff::first_difference,
    },
};
use serde_json::json;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What may be linked instead of copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shared {
    /// Link to a layer that shows the same.
    Allow,
    /// Copy every layer.
    Deny,
    /// Copy the head alone; what its parent shows must be there.
    ChildOnly,
    /// Make one image of the whole disk.
    Flatten,
}

/// Copy the chain of TOP to the folder STORE: layers whose content is there already are linked
///
/// What other layers stand on gets its content ID there, so that later copies link to it: a layer whose blocks the
/// host shares is not read for that, and has none unless its source has. A copy that was cut off goes on when the same
/// command is given again (--share flatten begins anew); one that is whole, and was changed on neither side, moves
/// nothing then.
///
/// TOP or STORE may be on another machine: ssh://user@host:port/folder, user and port if needed. ssh starts the dchain
/// there, which keeps to that folder. What the target has is not sent, nor are zeros, nor leaves of 64 KiB that
/// something like the layer has there; each layer has its name only when it shows what its content ID promises.
/// Compressed clusters arrive unpacked.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "these are flags of a command line")]
pub struct Arguments {
    /// What may be linked instead of copied
    #[arg(long, value_enum, default_value = "allow")]
    share: Shared,
    /// Compare both disks byte by byte at the end (over ssh, content IDs have proved it by then)
    #[arg(long)]
    verify: bool,
    /// Take what something like a missing layer (an older base) has in STORE from there, leaf by leaf, as over ssh: layers
    /// are made anew, with their content IDs; internal snapshots and bitmaps are not taken along
    #[arg(long, conflicts_with = "remove_source")]
    relatives: bool,
    /// Move: remove the copied layers here when all of them are whole, durable and compared there; what another image
    /// needs stays
    #[arg(long)]
    remove_source: bool,
    /// Remove the sources although a file beside them cannot be read, which might lie on them
    #[arg(long, requires = "remove_source")]
    ignore_unread: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    /// The command that connects to another machine, with its options (default: `DCHAIN_SSH`, or ssh)
    #[arg(long, value_name = "COMMAND")]
    ssh: Option<String>,
    /// The head of the chain
    top: PathBuf,
    /// The folder
    store: PathBuf,
}

impl Arguments {
    /// Plans and copies.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if let Some(done) = self.by_leaves(answer)? {
            return Ok(done);
        }
        let host = options::host();
        let opening = self.source.opening(&host, Access::Read)?;
        let share = match self.share {
            Shared::Allow => Share::Allow,
            Shared::Deny => Share::Deny,
            Shared::ChildOnly => Share::ChildOnly,
            Shared::Flatten if self.remove_source => {
                let what = "--share flatten makes one image: the layers would be gone, so nothing is removed";
                return Err(Failure::usage(what).hint("leave --remove-source or --share flatten out"));
            }
            Shared::Flatten => return self.flatten(&host, &opening, answer),
        };
        let paths = (self.top.as_path(), self.store.as_path());
        if self.remove_source
            && let Some(rest) = Removal::find(&host, &options::ledger(&host), paths, &opening)
                .map_err(|error| self.explain(&error))?
        {
            return self.remove_rest(rest.ignoring_unread(self.ignore_unread), answer);
        }
        let (removes_source, ignores_unread) = (self.remove_source, self.ignore_unread);
        let request =
            Request { share, verify: self.verify, removes_source, ignores_unread, conversion: None };
        let job = Copy::prepare(&host, &options::ledger(&host), paths, &opening, request)
            .map_err(|error| self.explain(&error))?;
        let lines = lines(job.plan());
        let grade = if self.remove_source { Grade::Destructive } else { Grade::Harmless };
        if self.planned.agree(answer, job.plan(), &lines, grade)? {
            let report = self.watching.run(|progress| job.run(progress))?;
            answer.print(&report, |out| {
                let (copied, shared) = (size::show(report.copied_bytes), size::show(report.shared_bytes));
                let verified = if report.is_verified { "verified: bytes" } else { "not verified" };
                let head = report.head.display();
                if report.plan.is_there {
                    writeln!(out, "{head}: there already, nothing was moved; {verified}")?;
                } else {
                    writeln!(out, "{head}: copied {copied}, shared {shared}; {verified}")?;
                }
                report.removed.iter().try_for_each(|file| writeln!(out, "removed: {}", file.display()))
            })?;
        }
        Ok(Exit::Done)
    }

    /// Does it leaf by leaf if one of both is on another machine, or that is asked for.
    fn by_leaves(&self, answer: &Answer) -> Result<Option<Exit>, Failure> {
        let (from, to) = (Place::parse(&self.top)?, Place::parse(&self.store)?);
        if from.is_none() && to.is_none() && !self.relatives {
            return Ok(None);
        }
        let share = match self.share {
            Shared::Allow => Share::Allow,
            Shared::Deny => Share::Deny,
            Shared::ChildOnly => Share::ChildOnly,
            Shared::Flatten => {
                let failure =
                    Failure::usage("--share flatten is for folders of this machine, without --relatives");
                return Err(failure.hint("dchain convert makes one image, which copy then takes along"));
            }
        };
        if self.remove_source {
            return Err(Failure::usage("--remove-source is for folders of this machine"));
        }
        let (source, planned, watching) = (&self.source, &self.planned, &self.watching);
        let remote = Remote { ssh: self.ssh.as_deref(), share, source, planned, watching };
        match (from, to) {
            (None, Some(store)) => remote.push(&self.top, &store, answer).map(Some),
            (Some(top), None) => remote.pull(&top, &self.store, answer).map(Some),
            (None, None) => remote.push_here(&self.top, &self.store, answer).map(Some),
            _ => Err(Failure::usage("one of both is on this machine: start dchain on the other")),
        }
    }

    fn explain(&self, error: &Error) -> Failure {
        let failure = Failure::into_folder(error, &self.store);
        match (error.kind(), self.share) {
            (ErrorKind::Exists, Shared::Allow) => failure.hint(
                "it is another file, or one of both was changed since it was copied: choose another folder; a parent \
                 that shows the same is linked if it has its content ID there (dchain id seal)",
            ),
            (ErrorKind::NotFound, Shared::ChildOnly) if error.what().starts_with("nothing in ") => {
                failure.hint("--share allow copies the parent, too")
            }
            _ => failure,
        }
    }

    /// Goes on with a move whose copy is whole already.
    fn remove_rest(&self, rest: Removal, answer: &Answer) -> Result<Exit, Failure> {
        let mut lines = vec![format!("{} is copied: its sources are left to be removed", self.top.display())];
        lines.extend(rest.files().iter().map(|file| format!("to be removed: {}", file.display())));
        if self.planned.agree(
            answer,
            &json!({ "removed": texts(&rest.files()) }),
            &lines,
            Grade::Destructive,
        )? {
            let removed = self.watching.run(|progress| rest.run(progress))?;
            answer.print(&json!({ "removed": texts(&removed) }), |out| {
                removed.iter().try_for_each(|file| writeln!(out, "removed: {}", file.display()))
            })?;
        }
        Ok(Exit::Done)
    }

    fn flatten(&self, host: &Arc<dyn Host>, opening: &Opening, answer: &Answer) -> Result<Exit, Failure> {
        let chain = Chain::open(host, &self.top, opening)?;
        let head = chain.head()?;
        let own = head.path.file_name().ok_or_else(|| Error::invalid("has no name").path(&self.top))?;
        let target = self.store.join(own);
        if self.watching.run(|progress| is_flat_copy(host, &chain, &target, opening, progress))? {
            let there = json!({ "head": name::text(&target), "is-there": true });
            answer.print(&there, |out| {
                writeln!(out, "{}: there already, nothing was moved; verified: bytes", target.display())
            })?;
            return Ok(Exit::Done);
        }
        let lines = [format!("{} becomes one image: {}", self.top.display(), target.display())];
        if self.planned.agree(answer, &json!({ "head": name::text(&target) }), &lines, Grade::Harmless)? {
            let new = (head.format(), &[][..], false);
            let done = self.watching.run(|progress| {
                let done = convert(host, &chain.view(0), &target, new, progress)?;
                if self.verify {
                    let flat = Chain::open(host, &target, &opening.clone().with_format(Some(head.format())))?;
                    refuse_difference(&chain.view(0), &flat, progress)?;
                }
                Ok(done)
            });
            let done = done.map_err(Failure::begins_again)?;
            answer.print(&done, |out| {
                let verified = if self.verify { "verified: bytes" } else { "not verified" };
                let copied = size::show(done.written_bytes);
                writeln!(out, "{}: copied {copied}; {verified}", target.display())
            })?;
        }
        Ok(Exit::Done)
    }
}

/// Returns whether `target` is one image, and shows what `chain` shows: an earlier run was whole.
fn is_flat_copy(
    host: &Arc<dyn Host>,
    chain: &Chain,
    target: &Path,
    opening: &Opening,
    progress: &Progress,
) -> Result<bool, Error> {
    let head = chain.head()?;
    if host.kind(target)? != Some(EntryKind::File) || host.canonical(target)? == head.path {
        return Ok(false);
    }
    // What is another image is found to be in the way.
    let Ok(flat) = Chain::open(host, target, &opening.clone().with_format(Some(head.format()))) else {
        return Ok(false);
    };
    if flat.layers().len() != 1 || flat.size() != chain.size() {
        return Ok(false);
    }
    Ok(first_difference(&chain.view(0), &flat.view(0), progress)?.is_none())
}

fn texts(files: &[PathBuf]) -> Vec<Cow<'_, str>> {
    files.iter().map(|file| name::text(file)).collect()
}

pub(super) fn lines(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = plan.layers.iter().map(line).collect();
    lines.extend(plan.lost.iter().map(|what| format!("not taken along: {what}")));
    lines.push(format!(
        "to copy: {} of {} free there",
        size::show(plan.copy_bytes),
        size::show(plan.free_bytes)
    ));
    lines.extend(plan.removed.iter().map(|file| format!("removed afterwards: {}", file.display())));
    if let (false, Some(Placed::Link { from, .. })) = (plan.removed.is_empty(), plan.layers.last()) {
        lines.push(format!("stays: {} and what lies below it: not copied", from.display()));
    }
    lines.extend(plan.stays.iter().map(|(layer, why)| format!("stays: {}: {why}", layer.display())));
    lines
}

fn line(placed: &Placed) -> String {
    match placed {
        Placed::Copy { to, is_done: true, .. } | Placed::Convert { to, is_done: true, .. } => {
            format!("there already: {}", to.display())
        }
        Placed::Copy { from, to, bytes, .. } => {
            format!("copy {} -> {} ({})", from.display(), to.display(), size::show(*bytes))
        }
        Placed::Convert { from, to, format, bytes, .. } => {
            let bytes = size::show(*bytes);
            format!("convert {} -> {} ({format}, {bytes})", from.display(), to.display())
        }
        Placed::Link { to, id: None, .. } => format!("link {}, which lies there", to.display()),
        Placed::Link { from, to, id: Some(id) } => {
            format!("link {} -> {}, which shows the same ({})", from.display(), to.display(), id.short())
        }
    }
}
