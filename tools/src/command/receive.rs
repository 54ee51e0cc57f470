//! `dchain receive`: the layers of a stream on stdin become images of a store.

use crate::{
    failure::{Exit, Failure, quoted},
    options::{self, References},
    output::{Answer, wires},
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    io::Access,
    job::stream::{Incoming, NO_STREAM, ReceivePlan, arriving},
};
use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

/// Make the layers of a stream from `dchain send` images of the folder STORE
///
/// The stream is read from stdin. A layer has its name only when it shows what its content ID promises; layers that are
/// there already are linked. Of a stream that was cut off, what came stays: the same stream again goes on there, and so
/// does one that was made with the token that --state shows.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Show what has arrived in part, with the token that lets `dchain send --resume` go on from there; read nothing
    #[arg(long)]
    state: bool,
    #[command(flatten)]
    references: References,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    /// The folder
    store: PathBuf,
}

impl Arguments {
    /// Plans and receives.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        if self.state {
            let arriving = arriving(host.as_ref(), &self.store)?;
            answer.print_list(&arriving, |layers, out| {
                layers.iter().try_for_each(|layer| {
                    let (name, done) = (layer.name.display(), size::show(layer.done_bytes));
                    writeln!(out, "{name}: up to {done}; dchain send --resume {}", layer.token)
                })
            })?;
            return Ok(Exit::Done);
        }
        let (stdin, _) = wires()?;
        if stdin.is_terminal() {
            let failure = Failure::usage("a stream does not come from a terminal");
            return Err(
                failure.hint("redirect it: dchain receive STORE < FILE, or from dchain send by a pipe")
            );
        }
        let opening = self.references.opening(host.as_ref(), Access::Read)?;
        let ledger = options::ledger(&host);
        let incoming = self.watching.run(|progress| {
            let from = (self.store.as_path(), Box::new(stdin) as Box<dyn io::Read + Send>);
            Incoming::begin(&host, &ledger, from, &opening, progress)
        });
        let incoming = incoming.map_err(|failure| self.explain(failure))?;
        let plan = incoming.plan().clone();
        if self.planned.agree(answer, &plan, &lines(&plan), Grade::Harmless)? {
            let received = self.watching.run(|progress| incoming.run(progress));
            let received = received.map_err(|failure| self.explain(failure))?;
            answer.print(&received, |out| {
                let (head, came) = (received.head.display(), size::show(received.received_bytes));
                if received.plan.layers.iter().all(|layer| layer.is_there) {
                    return writeln!(out, "{head}: there already, nothing was made; verified: content ID");
                }
                writeln!(out, "{head}: received {came}; verified: content ID")
            })?;
        }
        Ok(Exit::Done)
    }

    /// What helps where a stream did not come whole, or cannot.
    fn explain(&self, failure: Failure) -> Failure {
        match failure.exit {
            Exit::Resumable => failure.hint(
                "what came stays: the same stream again goes on there, or one from `dchain send --resume` with what \
                 `dchain receive --state` shows",
            ),
            Exit::BadInput if failure.what.contains(NO_STREAM) => {
                failure.hint("a stream is what `dchain send TOP` writes")
            }
            Exit::BadInput if failure.hint.is_none() => failure.hint(
                "layers that came whole stay: the same stream again, if it was damaged on its way, or a new one, \
                 made without --resume",
            ),
            Exit::Failed if !self.store.exists() => {
                failure.hint(format!("make the folder first: mkdir {}", quoted(&self.store)))
            }
            Exit::Failed if failure.what.contains("is there already") => failure.hint("choose another folder"),
            _ => failure,
        }
    }
}

pub(super) fn lines(plan: &ReceivePlan) -> Vec<String> {
    let mut lines = Vec::new();
    for layer in plan.layers.iter().rev().filter(|layer| !layer.is_there) {
        let (to, id) = (layer.to.display(), layer.id.short());
        lines.push(match layer.done_bytes {
            0 => format!("receive {to} ({id})"),
            done => format!("receive {to} ({id}), on from {}", size::show(done)),
        });
    }
    if let Some(link) = &plan.link {
        lines.push(format!("link {}, which shows the same", link.display()));
    }
    if plan.layers.iter().all(|layer| layer.is_there) {
        lines.push("there already: nothing is received".to_owned());
    }
    lines.push(format!(
        "to receive: {} at most, of {} free there",
        size::show(plan.receive_bytes),
        size::show(plan.free_bytes)
    ));
    lines
}
