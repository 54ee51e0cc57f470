//! `dchain backup`: points in time of live disks, for programs that pull them over NBD.

use crate::{
    client::{Daemon, list, refused, segment, text},
    failure::{Exit, Failure},
    output::Answer,
    size,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Export live disks as they are at one point in time, for backup programs
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Freeze disks at one moment, and export that over NBD with what changed since an earlier backup
    Begin {
        #[command(flatten)]
        daemon: Daemon,
        /// A disk of dchaind (may be repeated)
        #[arg(long = "disk", value_name = "NAME", required = true)]
        disks: Vec<String>,
        /// Tell what changed since that backup; where that is not certain, all counts as changed
        #[arg(long, value_name = "ID")]
        since: Option<String>,
    },
    /// Take the exports of a backup away; fold layers that only older backups needed
    End {
        #[command(flatten)]
        daemon: Daemon,
        /// Fold nothing
        #[arg(long)]
        keep: bool,
        /// The backup
        id: String,
    },
    /// All backups whose exports are there
    List {
        #[command(flatten)]
        daemon: Daemon,
    },
}

impl Arguments {
    /// Asks the daemon.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        match &self.action {
            Action::Begin { daemon, disks, since } => {
                let begun = daemon.post("/v1/backups", &json!({ "disks": disks, "since": since }))?;
                answer.print(&begun, |out| show(&begun, out))?;
            }
            Action::End { daemon, keep, id } => {
                let ended =
                    daemon.post(&format!("/v1/backups/{}/end", segment(id)), &json!({ "keep": keep }))?;
                answer.print(&ended, |out| show_end(&ended, out))?;
            }
            Action::List { daemon } => {
                let backups = daemon.get("/v1/backups")?;
                let backups = backups.as_array().map_or(&[][..], Vec::as_slice);
                answer.print_list(backups, |all, out| all.iter().try_for_each(|one| show(one, out)))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn show(backup: &Value, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "backup {}", text(backup, "id"))?;
    for disk in list(backup, "disks") {
        let name = text(disk, "disk");
        if let Some(error) = disk.get("error").filter(|error| !error.is_null()) {
            writeln!(out, "  {name}: not exported: {}", refused(error).what)?;
            continue;
        }
        let is_full = disk.get("is-full").and_then(Value::as_bool) == Some(true);
        let what = match (is_full, disk.get("why-full").and_then(Value::as_str)) {
            (false, _) => format!("changes since {}", text(backup, "since")),
            (true, None) => "all of it".to_owned(),
            (true, Some(why)) => format!("all of it: {why}"),
        };
        let bytes = disk.get("size").and_then(Value::as_u64).unwrap_or_default();
        writeln!(out, "  {name}: {} ({what})", size::show(bytes))?;
        for uri in list(disk, "uris").iter().filter_map(Value::as_str) {
            writeln!(out, "    {uri}")?;
        }
    }
    Ok(())
}

fn show_end(ended: &Value, out: &mut dyn Write) -> io::Result<()> {
    let id = text(ended, "id");
    writeln!(out, "{id}: ended; `backup begin --since {id}` tells what changes from there")?;
    for job in list(ended, "jobs") {
        writeln!(out, "job {job} folds what only older backups needed")?;
    }
    list(ended, "left").iter().try_for_each(|why| writeln!(out, "not folded: {}", refused(why).what))
}
