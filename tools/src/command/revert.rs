//! `dchain revert`: the head starts again from an older layer.

use crate::{
    client::{Daemon, layer, list, number, segment, text},
    failure::{Exit, Failure},
    options::{self, FormatOptions, Source},
    output::Answer,
    plan::{Grade, Planned},
    size,
};
use clap::Args;
use deltachain::{chain::member, format::Format, io::Access, job::snapshot::Revert};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Give up what was written to TOP: it starts again, empty, on LAYER
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    options: FormatOptions,
    #[command(flatten)]
    planned: Planned,
    /// Revert this disk of dchaind; only LAYER is named then, by its name or path
    #[arg(long, value_name = "NAME", conflicts_with_all = ["format", "options", "allow_dir"])]
    disk: Option<String>,
    /// Revert the disk while clients use it: what they have mounted changes under them
    #[arg(long, requires = "disk")]
    force: bool,
    #[command(flatten)]
    daemon: Daemon,
    /// The head, and one of the layers below it
    #[arg(required = true, num_args = 1..=2, value_names = ["TOP", "LAYER"])]
    images: Vec<PathBuf>,
}

impl Arguments {
    /// Plans, asks, reverts.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            // The new head is of the old one's format.
            let top = self.images.first().and_then(|top| member(options::host().as_ref(), top).ok());
            let format = self.source.format.or(top.map(|top| top.format)).unwrap_or(Format::Qcow2);
            options::list_format_options(answer, format, FormatOptions::is_of_one_file)?;
            return Ok(Exit::Done);
        }
        self.options.refuse_data_file()?;
        let (top, layer) = match (&self.disk, self.images.as_slice()) {
            (Some(disk), [layer]) => return self.run_live(disk, layer, answer),
            (None, [top, layer]) => (top, layer),
            (Some(_), _) => return Err(Failure::usage("with --disk, only the layer is named")),
            (None, _) => return Err(Failure::usage("the head and one of the layers below it are wanted")),
        };
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let revert = Revert::prepare(&host, top, layer, &opening)?;
        let plan = revert.plan();
        let left = plan.left.iter().map(|layer| layer.display().to_string());
        let (head, base) = (plan.head.display().to_string(), plan.layer.display().to_string());
        let lines = lines(&head, &base, plan.head_bytes, left);
        if self.planned.agree(answer, plan, &lines, Grade::Destructive)? {
            let done = revert.run(&host, &self.options.pairs())?;
            answer.print(&done, |out| writeln!(out, "Reverted."))?;
        }
        Ok(Exit::Done)
    }

    fn run_live(&self, disk: &str, wanted: &Path, answer: &Answer) -> Result<Exit, Failure> {
        let path = format!("/v1/disks/{}/revert", segment(disk));
        let wanted = layer(wanted)?;
        let plan = self.daemon.post(&path, &json!({ "layer": wanted, "dry-run": true }))?;
        let left = list(&plan, "left").iter().filter_map(Value::as_str).map(str::to_owned);
        let lines = lines(text(&plan, "head"), text(&plan, "layer"), number(&plan, "head-bytes"), left);
        if self.planned.agree(answer, &plan, &lines, Grade::Destructive)? {
            let asked = json!({ "layer": wanted, "force": self.force });
            let done = self.daemon.post(&path, &asked).map_err(|failure| {
                let is_in_use = failure.exit == Exit::InUse && failure.what.contains("client");
                if is_in_use { failure.hint("--force changes it under them") } else { failure }
            })?;
            answer.print(&done, |out| writeln!(out, "Reverted."))?;
        }
        Ok(Exit::Done)
    }
}

/// Returns what the plan says to a person.
fn lines(head: &str, layer: &str, head_bytes: u64, left: impl Iterator<Item = String>) -> Vec<String> {
    let said = [
        format!("{head} starts again from {layer}"),
        format!("given up: what was written to it ({} on disk)", size::show(head_bytes)),
    ];
    said.into_iter().chain(left.map(|layer| format!("left without this child: {layer}"))).collect()
}
