//! `dchain man`: manual pages, one for the program and one for each command.

use crate::{
    cli,
    failure::{Exit, Failure},
    help,
    output::Answer,
};
use clap::Args;
use clap_mangen::Man;
use deltachain::base::Error;
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Write the manual pages into a folder
#[derive(Args, Debug)]
pub struct Arguments {
    /// Where to (made if it is not there)
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// The answer for programs.
#[derive(Serialize)]
struct Pages {
    #[serde(serialize_with = "deltachain::base::name::serialize")]
    pages: Vec<PathBuf>,
}

impl Arguments {
    /// Writes the pages.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let mut description = cli::description();
        description.build();
        let mut pages = Vec::new();
        write_pages(&description, &self.folder, &mut pages)
            .map_err(|e| Error::io("write manual pages", e).path(&self.folder))?;
        let found = Pages { pages };
        answer.print(&found, |out| {
            found.pages.iter().try_for_each(|page| writeln!(out, "{}", page.display()))
        })?;
        Ok(Exit::Done)
    }
}

fn write_pages(command: &clap::Command, folder: &Path, pages: &mut Vec<PathBuf>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut text = Vec::new();
    // Sections of their own say it.
    Man::new(command.clone().after_help("")).render(&mut text)?;
    text.extend(help::sections(command.get_name()).into_bytes());
    let page = folder.join(format!("{}.1", command.get_display_name().unwrap_or(command.get_name())));
    fs::write(&page, text)?;
    pages.push(page);
    let below = command.get_subcommands().filter(|c| c.get_name() != "help");
    below.into_iter().try_for_each(|command| write_pages(command, folder, pages))
}
