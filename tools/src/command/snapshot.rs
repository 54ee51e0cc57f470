//! `dchain snapshot`: freezes a layer and puts a new head on it.

use crate::{
    client::{Daemon, list, text},
    failure::{Exit, Failure},
    options::{self, FormatOptions, Source},
    output::Answer,
};
use clap::Args;
use deltachain::{format::Format, io::Access, job::snapshot::snapshot_as};
use serde_json::json;
use std::path::PathBuf;

/// Freeze TOP: NEW becomes the head that is written from now on
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Format of NEW: qcow2, or what VMware (vmdk), Hyper-V (vhdx) and its elders (vpc) know as children of theirs
    #[arg(short = 'O', long, value_name = "FMT", value_parser = options::format, default_value_t = Format::Qcow2)]
    target_format: Format,
    #[command(flatten)]
    options: FormatOptions,
    /// Take TOP as raw although it starts like another format
    #[arg(long, requires = "format")]
    yes: bool,
    /// Take it of this disk of dchaind, at one point in time with all others that are named (may be repeated); NEW is in
    /// the head's folder, and is made of the disk's name and the time if not given
    #[arg(long = "disk", value_name = "NAME[=NEW]", conflicts_with_all = ["top", "new", "format", "options", "allow_dir"])]
    disks: Vec<String>,
    #[command(flatten)]
    daemon: Daemon,
    /// The image that keeps this point in time
    #[arg(required_unless_present_any = ["disks", "options"])]
    top: Option<PathBuf>,
    /// The new head, an image on TOP
    #[arg(required_unless_present_any = ["disks", "options"])]
    new: Option<PathBuf>,
}

impl Arguments {
    /// Takes the snapshot.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            options::list_format_options(answer, self.target_format, FormatOptions::is_of_one_file)?;
            return Ok(Exit::Done);
        }
        self.options.refuse_data_file()?;
        let (top, new) = match (&self.top, &self.new) {
            (Some(top), Some(new)) => (top, new),
            _ if self.disks.is_empty() => return Err(Failure::usage("TOP and NEW are wanted")),
            _ => return self.take_live(answer),
        };
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        options::refuse_header(&host, top, self.source.format, self.yes)?;
        let taken = snapshot_as(&host, top, (new, self.target_format), &self.options.pairs(), &opening)?;
        answer.print(&taken, |out| {
            writeln!(out, "{} is frozen; the head is {}", top.display(), new.display())
        })?;
        Ok(Exit::Done)
    }

    fn take_live(&self, answer: &Answer) -> Result<Exit, Failure> {
        let format = self.target_format.name();
        let of = |text: &String| match text.split_once('=') {
            Some((name, new)) => json!({ "name": name, "new": new, "format": format }),
            None => json!({ "name": text, "format": format }),
        };
        let disks: Vec<_> = self.disks.iter().map(of).collect();
        let taken = self.daemon.post("/v1/snapshot", &json!({ "disks": disks }))?;
        answer.print(&taken, |out| {
            list(&taken, "taken").iter().try_for_each(|one| {
                writeln!(out, "{} is frozen; the head is {}", text(one, "frozen"), text(one, "head"))
            })
        })?;
        Ok(Exit::Done)
    }
}
