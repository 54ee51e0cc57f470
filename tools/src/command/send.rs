//! `dchain send`: a chain as a stream on stdout, for pipes and for disks that are carried.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::{Answer, Lines, note, printable, versioned, wires},
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    content::IdPrefix,
    io::Access,
    job::stream::{Outgoing, SendPlan, SendRequest, Token},
};
use serde_json::json;
use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

/// Write the chain of TOP to stdout, as a stream for `dchain receive`
///
/// The stream holds what each layer holds, and what each has to show in the end: whoever receives it need not trust
/// what carried it. What is asked for with --output json is printed on stderr.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Leave out the layer with this content ID, and all below it: the receiver has it (may be repeated)
    #[arg(long, value_name = "ID")]
    have: Vec<IdPrefix>,
    /// Go on with a stream that was cut off: TOKEN is from `dchain receive --state`
    #[arg(long, value_name = "TOKEN", conflicts_with = "have")]
    resume: Option<Token>,
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
    /// Plans and sends.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let (_, to) = wires()?;
        if !self.planned.dry_run && to.is_terminal() {
            let failure = Failure::usage("a stream is not for a terminal");
            return Err(failure.hint("redirect it: dchain send TOP > FILE, or into dchain receive by a pipe"));
        }
        let host = options::host();
        let opening = self.source.opening(&host, Access::Read)?;
        let ledger = options::ledger(&host);
        let request = SendRequest { have: self.have.clone(), resume: self.resume };
        let sent = self
            .watching
            .run(|progress| Outgoing::open(&host, &ledger, &self.top, &opening, progress)?.plan(&request))
            .map_err(Failure::begins_again)?;
        let plan = sent.plan().clone();
        if self.planned.agree(answer, &plan, &lines(&plan), Grade::Harmless)? {
            let bytes = self.watching.run(|progress| sent.run(Box::new(to), progress)).map_err(explain)?;
            let report = versioned(&json!({ "plan": plan, "sent_bytes": bytes }))?;
            if answer.is_json() {
                note(&report.to_string());
            } else if !answer.is_silent() {
                writeln!(Lines(&mut io::stderr().lock()), "sent: {}", size::show(bytes))?;
            }
        }
        Ok(Exit::Done)
    }
}

/// A stream that was begun is not gone on with by itself.
fn explain(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Resumable => failure.hint(
            "the same command begins again from the start; who received a part keeps it: `dchain receive --state STORE` \
             shows what --resume needs to go on from there",
        ),
        _ => failure,
    }
}

fn lines(plan: &SendPlan) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for layer in plan.layers.iter().rev() {
        let name = layer.name.display();
        lines.push(format!("send {name} ({}, {} at most)", layer.id.short(), size::show(layer.bytes)));
    }
    if let Some(parent) = plan.parent {
        lines.push(format!("the receiver has to have {parent}"));
    }
    lines.extend(plan.lost.iter().map(|what| format!("not taken along: {}", printable(what))));
    lines.push(format!("to send: {} at most", size::show(plan.send_bytes)));
    lines
}
