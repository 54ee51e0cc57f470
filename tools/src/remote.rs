//! The part of `dchain copy` that goes leaf by leaf: to another machine, from one, or to a folder that has something like it.

use crate::{
    failure::{Exit, Failure, quoted},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
    ssh::{Place, Session, shown},
};
use deltachain::{
    base::Result,
    io::Access,
    job::{
        Progress,
        copy::Share,
        stream::{Peer, Pull, Push, RemotePlan, RemoteReport, serve},
    },
};
use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
};

/// A copy over ssh.
#[derive(Debug)]
pub struct Remote<'a> {
    /// The command that is run instead of `ssh`.
    pub ssh: Option<&'a str>,
    pub share: Share,
    pub source: &'a Source,
    pub planned: &'a Planned,
    pub watching: &'a Watching,
}

/// What is said of a copy, by where it goes.
#[derive(Clone, Copy)]
struct Words {
    verb: &'static str,
    done: &'static str,
    /// Where the store is that it goes to.
    place: &'static str,
}

/// A copy that is planned.
trait Prepared {
    const WORDS: Words;

    fn plan(&self) -> &RemotePlan;

    fn run(self, progress: &Progress) -> Result<RemoteReport>;
}

impl Prepared for Push {
    const WORDS: Words = Words { verb: "send", done: "sent", place: "there" };

    fn plan(&self) -> &RemotePlan {
        self.plan()
    }

    fn run(self, progress: &Progress) -> Result<RemoteReport> {
        self.run(progress)
    }
}

impl Prepared for Pull {
    const WORDS: Words = Words { verb: "receive", done: "received", place: "here" };

    fn plan(&self) -> &RemotePlan {
        self.plan()
    }

    fn run(self, progress: &Progress) -> Result<RemoteReport> {
        self.run(progress)
    }
}

impl Remote<'_> {
    /// Copies the chain at `top` to the folder `store` of another machine.
    pub fn push(&self, top: &Path, store: &Place, answer: &Answer) -> std::result::Result<Exit, Failure> {
        let host = options::host();
        let (opening, ledger) = (self.source.opening(&host, Access::Read)?, options::ledger(&host));
        let Session { peer, child } = store.connect(self.ssh, &store.path, true)?;
        let prepared = self
            .watching
            .run(|progress| Push::prepare((&host, &ledger), peer, (top, self.share), &opening, progress));
        let push = match prepared {
            Ok(push) => push,
            Err(failure) => {
                let failure = child.explain_start(failure);
                let is_missing = failure.what.ends_with("resolve: No such file or directory");
                let is_there = failure.what.starts_with("the other side says");
                return Err(if is_missing && is_there {
                    failure.hint("make the folder there first")
                } else {
                    failure
                });
            }
        };
        match self.agreed(push, &|head| shown(store, head), answer) {
            Ok(true) => child.wait().map(|()| Exit::Done),
            // The other side was hung up on.
            Ok(false) => Ok(Exit::Done),
            Err(failure) => Err(child.explain(failure)),
        }
    }

    /// Copies the chain at `top` of another machine to `folder`.
    pub fn pull(&self, top: &Place, folder: &Path, answer: &Answer) -> std::result::Result<Exit, Failure> {
        let host = options::host();
        let (opening, ledger) = (self.source.opening(&host, Access::Read)?, options::ledger(&host));
        let usage = || Failure::usage("the head of a chain is a file: ssh://host/folder/top.qcow2");
        let name = top.path.file_name().map(PathBuf::from).ok_or_else(usage)?;
        let from = top.path.parent().filter(|from| !from.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Session { peer, child } = top.connect(self.ssh, from, false)?;
        let prepared = self.watching.run(|progress| {
            let asked = (name.as_path(), self.source.format, folder);
            Pull::prepare((&host, &ledger), peer, asked, (&opening, self.share), progress)
        });
        let pull = match prepared {
            Ok(pull) => pull,
            Err(failure) => return Err(child.explain_start(failure)),
        };
        match self.agreed(pull, &|head| shown(top, head), answer) {
            Ok(true) => child.wait().map(|()| Exit::Done),
            // The other side was hung up on.
            Ok(false) => Ok(Exit::Done),
            Err(failure) => Err(child.explain(failure)),
        }
    }

    /// Copies the chain at `top` to a folder of this machine in the same way: the other side is a thread.
    pub fn push_here(
        &self,
        top: &Path,
        folder: &Path,
        answer: &Answer,
    ) -> std::result::Result<Exit, Failure> {
        let host = options::host();
        let (opening, ledger) = (self.source.opening(&host, Access::Read)?, options::ledger(&host));
        let ((near_in, far_out), (far_in, near_out)) = (UnixStream::pair()?, UnixStream::pair()?);
        let peer = |from: UnixStream, to: UnixStream| Peer::new(Box::new(from), Box::new(to));
        let agreed = thread::scope(|scope| {
            // What goes wrong there is told to this side; it ends with its end of the wire.
            scope.spawn(|| drop(serve(&host, &ledger, (folder, true), peer(far_in, far_out))));
            let asked = (top, self.share);
            let prepare = |progress: &Progress| {
                Push::prepare((&host, &ledger), peer(near_in, near_out), asked, &opening, progress)
            };
            let prepared = self.watching.run(prepare);
            let place = |head: &Path| quoted(&folder.join(head));
            prepared.and_then(|push| self.agreed(push, &place, answer))
        });
        agreed.map(|_| Exit::Done)
    }

    /// Copies, if that is not only planned; returns whether it did. `at` says where a head is.
    fn agreed<C: Prepared>(
        &self,
        copy: C,
        at: &dyn Fn(&Path) -> String,
        answer: &Answer,
    ) -> std::result::Result<bool, Failure> {
        let plan = copy.plan().clone();
        if !self.planned.agree(answer, &plan, &lines(&plan, C::WORDS), Grade::Harmless)? {
            return Ok(false);
        }
        let report = self.watching.run(|progress| copy.run(progress))?;
        answer.print(&report, |out| {
            let head = report.head.display();
            if report.plan.layers.iter().all(|layer| layer.is_there) {
                return writeln!(out, "{head}: there already, nothing was moved; verified: content ID");
            }
            let (sent, taken) = (size::show(report.sent_bytes), size::show(report.taken_bytes));
            let at = if report.head.is_absolute() { head.to_string() } else { at(&report.head) };
            let Words { done, place, .. } = C::WORDS;
            writeln!(out, "{at}: {done} {sent}, found {place} {taken}; verified: content ID")
        })?;
        Ok(true)
    }
}

fn lines(plan: &RemotePlan, Words { verb, place, .. }: Words) -> Vec<String> {
    let mut lines = Vec::new();
    for layer in plan.layers.iter().rev().filter(|layer| !layer.is_there) {
        let (name, id, bytes) = (layer.name.display(), layer.id.short(), size::show(layer.bytes));
        let on_from = match layer.done_bytes {
            0 => String::new(),
            done => format!(", on from {}", size::show(done)),
        };
        let relative =
            if layer.has_relative { format!(", what differs from a layer {place}") } else { String::new() };
        lines.push(format!("copy {name} ({id}, {bytes} at most{on_from}{relative})"));
    }
    if plan.layers.iter().all(|layer| layer.is_there) {
        lines.push("there already: nothing is copied".to_owned());
    } else if let Some(link) = &plan.link {
        lines.push(format!("link {}, which shows the same", link.display()));
    }
    lines.extend(plan.lost.iter().map(|what| format!("not taken along: {what}")));
    let (bytes, free) = (size::show(plan.send_bytes), size::show(plan.free_bytes));
    lines.push(format!("to {verb}: {bytes} at most, of {free} free {place}"));
    lines
}
