//! `dchain disk`: the disks that a daemon holds open.

use crate::{
    client::{Daemon, absolute, list, number, refused, segment, text},
    failure::{Exit, Failure},
    options,
    output::Answer,
    size,
};
use clap::{Args, Subcommand};
use deltachain::{format::Format, service::Named};
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// The disks that dchaind serves
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All disks
    List {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// One disk with its layers
    Show {
        #[command(flatten)]
        daemon: Daemon,
        /// The disk
        name: String,
    },
    /// Open a disk and serve it; a restart of the daemon with --state opens it again
    Attach {
        #[command(flatten)]
        daemon: Daemon,
        /// The disk, and the image on top of its chain; a comma in PATH is written twice
        #[arg(value_name = "NAME=PATH[,format=FMT][,read-only]", value_parser = options::disk)]
        disk: Named,
        /// Before a snapshot or a backup, run PROGRAM, which has the guest hold still (it finds `DCHAIN_DISK` and
        /// `DCHAIN_PHASE` in its environment); where it fails, there is no snapshot. Its arguments follow in the same way, each
        /// with --freeze
        #[arg(long, value_name = "PROGRAM", allow_hyphen_values = true)]
        freeze: Vec<PathBuf>,
        /// Afterwards run PROGRAM, which has the guest go on, whatever became of the snapshot; arguments as with --freeze
        #[arg(long, value_name = "PROGRAM", allow_hyphen_values = true)]
        thaw: Vec<PathBuf>,
        /// Kill either program after so many seconds (30 if not given)
        #[arg(long, value_name = "SECONDS", value_parser = options::positive::<u64>)]
        hook_timeout: Option<u64>,
    },
    /// Flush and close a disk that nobody uses; forget one that is not served
    Detach {
        #[command(flatten)]
        daemon: Daemon,
        /// Disconnect its clients, once what is being done for them is done
        #[arg(long)]
        force: bool,
        /// The disk
        name: String,
    },
}

impl Arguments {
    /// Asks the daemon.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        match &self.action {
            Action::List { daemon } => {
                let disks = daemon.get("/v1/disks")?;
                let disks = disks.as_array().map_or(&[][..], Vec::as_slice);
                answer.print_list(disks, |disks, out| disks.iter().try_for_each(|disk| line(disk, out)))?;
            }
            Action::Show { daemon, name } => {
                let disk = daemon.get(&format!("/v1/disks/{}", segment(name)))?;
                answer.print(&disk, |out| show(&disk, out))?;
            }
            Action::Attach { daemon, disk, freeze, thaw, hook_timeout } => {
                // What the daemon runs it finds from the root; arguments are as they are.
                let program = |words: &[PathBuf]| {
                    let word = |(at, word): (usize, &PathBuf)| match at {
                        0 => absolute(word),
                        _ => Ok(word.to_string_lossy().into_owned()),
                    };
                    words.iter().enumerate().map(word).collect::<Result<Vec<_>, _>>()
                };
                let body = json!({
                    "path": absolute(&disk.path)?,
                    "format": disk.format.map(Format::name),
                    "read-only": disk.is_read_only,
                    "freeze": program(freeze)?,
                    "thaw": program(thaw)?,
                    "hook-timeout": hook_timeout,
                });
                let disk = daemon.post(&format!("/v1/disks/{}/attach", segment(&disk.name)), &body)?;
                answer.print(&disk, |out| line(&disk, out))?;
            }
            Action::Detach { daemon, force, name } => {
                let path = format!("/v1/disks/{}/detach", segment(name));
                let gone = daemon.post(&path, &json!({ "force": force })).map_err(|failure| {
                    let is_in_use = failure.exit == Exit::InUse && failure.what.contains("client");
                    if is_in_use { failure.hint("--force disconnects them") } else { failure }
                })?;
                answer.print(&gone, |out| writeln!(out, "{name}: detached"))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn line(disk: &Value, out: &mut dyn Write) -> io::Result<()> {
    let (name, path) = (text(disk, "name"), text(disk, "path"));
    let error = disk.get("error").filter(|error| !error.is_null()).map(|error| refused(error).what);
    let is_served = disk.get("is-served").and_then(Value::as_bool) == Some(true);
    if let Some(why) = error.as_ref().filter(|_| !is_served) {
        return writeln!(out, "{name}: not served: {why}");
    }
    let layers = match list(disk, "layers").len() {
        1 => "1 layer".to_owned(),
        n => format!("{n} layers"),
    };
    let is_read_only = disk.get("is-read-only").and_then(Value::as_bool) == Some(true);
    let access = if is_read_only { ", read-only" } else { "" };
    let job = disk.get("job").and_then(Value::as_u64);
    let job = job.map_or_else(String::new, |job| format!(", job {job} is on it"));
    let error = error.map_or_else(String::new, |why| format!("; {why}"));
    writeln!(out, "{name}: {path} ({}, {layers}{access}{job}){error}", size::show(number(disk, "size")))
}

fn show(disk: &Value, out: &mut dyn Write) -> io::Result<()> {
    line(disk, out)?;
    list(disk, "clients").iter().try_for_each(|client| {
        let is_secret = client.get("is-secret").and_then(Value::as_bool) == Some(true);
        writeln!(out, "  used by {}{}", text(client, "peer"), if is_secret { " (TLS)" } else { "" })
    })?;
    list(disk, "layers").iter().try_for_each(|layer| {
        let allocated = layer.get("allocated").and_then(Value::as_u64).map_or("?".to_owned(), size::show);
        let (path, format, size) = (text(layer, "path"), text(layer, "format"), number(layer, "size"));
        writeln!(out, "  {path} ({format}, {}, {allocated} on the host)", size::show(size))
    })
}
