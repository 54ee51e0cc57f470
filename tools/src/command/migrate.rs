//! `dchain migrate`: a disk in use goes to another store.

use super::job::follow;
use crate::{
    client::{Daemon, absolute, list, number, segment, text},
    failure::{Exit, Failure},
    options::{self, FormatOptions},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::format::Format;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Move a disk of dchaind to the folder STORE while its guests use it
///
/// Layers below the head go by content ID: what STORE has is linked, what it lacks is copied; a layer without an ID is hashed
/// first. Then the head is copied in one pass, guests' writes going to both places, and the disk is the one in STORE: the
/// daemon knows, whatever its own configuration says. The old head is kept as NAME.moved, so that nobody boots it by mistake.
///
/// Given up (dchain job cancel) or failed, the disk stays where it is, and layers that are whole in STORE stay there, sealed, for
/// the next time. Cut off, the move goes on when the daemon starts again.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The disk, by the name that the daemon knows it by
    #[arg(long, value_name = "NAME")]
    disk: String,
    /// Remove the old head at the end, and of the layers below it those that STORE has and nobody else needs
    #[arg(long)]
    remove_source: bool,
    /// Format of the new head (that of the old one if not given)
    #[arg(short = 'O', long, value_name = "FMT", value_parser = options::format)]
    target_format: Option<Format>,
    #[command(flatten)]
    options: FormatOptions,
    /// Leave the job to the daemon
    #[arg(long)]
    detach: bool,
    /// The part of the time that the copier keeps for itself while guests write (0.5 if not given)
    #[arg(long, value_name = "0..1", value_parser = size::part)]
    share: Option<f64>,
    /// Take more than the share only while all but one of the guests' requests in a hundred take less
    #[arg(long, value_name = "MS", value_parser = size::milliseconds)]
    latency_target: Option<f64>,
    /// End within that time; while the job is behind, guests' writes wait for it
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    #[command(flatten)]
    daemon: Daemon,
    /// The folder, on any file system of this host
    store: PathBuf,
}

impl Arguments {
    /// Plans, asks; the daemon does it.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            let format = self.target_format.unwrap_or(Format::Qcow2);
            options::list_format_options(answer, format, FormatOptions::is_of_one_file)?;
            return Ok(Exit::Done);
        }
        self.options.refuse_data_file()?;
        refuse_elsewhere(&self.store)?;
        let path = format!("/v1/disks/{}/migrate", segment(&self.disk));
        let options: BTreeMap<String, String> = self.options.pairs().into_iter().collect();
        let mut body = json!({
            "store": absolute(&self.store)?,
            "target-format": self.target_format.map(Format::name),
            "options": options,
            "remove-source": self.remove_source,
            "dry-run": true,
            "share": self.share,
            "latency-target": self.latency_target,
            "rate": self.watching.rate(),
            "deadline": self.deadline,
        });
        let plan = self.daemon.post(&path, &body)?;
        let grade = if self.remove_source { Grade::Destructive } else { Grade::Harmless };
        if !self.planned.agree(answer, &plan, &lines(&plan), grade)? {
            return Ok(Exit::Done);
        }
        if let Some(is_dry) = body.get_mut("dry-run") {
            *is_dry = Value::Bool(false);
        }
        let job = self.daemon.post(&path, &body)?;
        let id = number(&job, "id");
        if self.detach {
            answer.print(&job, |out| writeln!(out, "{id}: goes on; dchain job wait {id} follows it"))?;
            return Ok(Exit::Done);
        }
        follow(&self.daemon, id, &self.watching, answer)
    }
}

/// A disk in use lives in files of the daemon's host.
fn refuse_elsewhere(store: &Path) -> Result<(), Failure> {
    if !store.to_string_lossy().contains("://") || store.exists() {
        return Ok(());
    }
    let what =
        format!("{} is on another host: a disk in use lives on the host of its daemon", store.display());
    Err(Failure::usage(what).hint("dchain snapshot --disk, then dchain copy of the layer that froze"))
}

/// Returns the plan as a person reads it.
fn lines(plan: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let each = |key: &str, what: &str| {
        let texts = list(plan, key).iter().filter_map(Value::as_str);
        texts.map(|text| format!("{what}: {text}")).collect::<Vec<_>>()
    };
    lines.push(format!("move {} -> {}", text(plan, "top"), text(plan, "result")));
    lines.extend(each("unsealed", "to be hashed first"));
    for layer in list(plan, "layers") {
        let (from, to) = (text(layer, "from"), text(layer, "to"));
        lines.push(match text(layer, "action") {
            "link" => format!("link {from} -> {to}, which shows the same"),
            _ => format!("copy {from} -> {to} ({})", size::show(number(layer, "bytes"))),
        });
    }
    let bytes = |key| size::show(number(plan, key));
    let most = if list(plan, "unsealed").is_empty() { "" } else { " at most" };
    lines.push(format!(
        "to copy below the head: {}{most}; {} free there",
        bytes("copy-bytes"),
        bytes("free-bytes")
    ));
    lines.extend(
        plan.get("aside").and_then(Value::as_str).map(|aside| format!("the old head is kept as {aside}")),
    );
    lines.extend(each("lost", "not taken along, so that the old head stays"));
    lines.extend(each("removed", "removed afterwards, unless somebody needs it"));
    lines
}
