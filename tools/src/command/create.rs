//! `dchain create`: an empty image, or a delta on a parent.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, References},
    output::{Answer, note},
    size,
};
use clap::Args;
use deltachain::{
    format::Format,
    io::Access,
    job::{
        create::{NewImage, create},
        rebase::NewParent,
    },
};
use std::path::PathBuf;

/// Make an empty image, or a delta on a parent
#[derive(Args, Debug)]
#[command(override_usage = "dchain create [OPTIONS] IMAGE [SIZE]")]
pub struct Arguments {
    /// Format of the new image (raw if not given, qcow2 with a parent)
    #[arg(short, long, value_name = "FMT", value_parser = options::format)]
    format: Option<Format>,
    /// Make a delta on PARENT, which then must not change any more
    #[arg(short, long, value_name = "PARENT", requires = "backing_format")]
    backing: Option<PathBuf>,
    /// Format of PARENT
    #[arg(short = 'F', long, value_name = "FMT", value_parser = options::format, requires = "backing")]
    backing_format: Option<Format>,
    /// Take PARENT as raw although it starts like another format
    #[arg(long, requires = "backing")]
    yes: bool,
    #[command(flatten)]
    options: FormatOptions,
    #[command(flatten)]
    references: References,
    /// The image
    image: Option<PathBuf>,
    /// Size of the disk (suffixes K M G T P E; with a parent, its size if not given)
    #[arg(value_parser = size::parse)]
    size: Option<u64>,
}

impl Arguments {
    /// Makes the image.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        // A raw image cannot have a parent: who names one wants a delta.
        let usual = if self.backing.is_some() { Format::Qcow2 } else { Format::Raw };
        let format = self.format.unwrap_or(usual);
        if self.options.wants_help() {
            options::list_format_options(answer, format, |_| true)?;
            return Ok(Exit::Done);
        }
        if format == Format::Raw && self.backing.is_some() {
            return Err(Failure::usage("a raw image cannot have a parent").hint("-f qcow2 makes a delta"));
        }
        let Some(image) = &self.image else {
            return Err(Failure::usage("which IMAGE is to be made?").hint("dchain create --help"));
        };
        let host = options::host();
        let opening = self.references.opening(host.as_ref(), Access::Read)?;
        let opening = opening.with_ledger(options::ledger(&host));
        let parent = self.backing.clone().zip(self.backing_format);
        let new = NewImage {
            format,
            size: self.size,
            parent: parent.map(|(path, format)| NewParent { path, format }),
            options: self.options.pairs(),
        };
        if let Some(parent) = &new.parent {
            options::refuse_header(&host, &parent.path, Some(parent.format), self.yes)?;
        }
        let made = create(&host, image, &new, &opening)?;
        let named =
            image.extension().and_then(|suffix| suffix.to_str()).and_then(|name| Format::parse(name).ok());
        if let (None, Some(named), false) = (self.format, named, answer.is_silent())
            && named != made.format
        {
            note(&format!(
                "note: {} is {}: -f {named} makes what its name says",
                image.display(),
                made.format
            ));
        }
        answer.print(&made, |out| {
            let on = made.parent.as_ref().map_or_else(String::new, |parent| format!(", on {parent}"));
            writeln!(out, "{}: {}, {}{on}", image.display(), made.format, size::show(made.size))
        })?;
        Ok(Exit::Done)
    }
}
