//! `dchain convert`: a disk in another image, flat.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Reading},
    output::Answer,
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    base::Error,
    chain::{Chain, Opening, open_layer},
    disk::Disk,
    format::Format,
    io::{Access, Host},
    job::convert::{Converted, Filling, convert, fill},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Write the disk of SRC, with all its layers, into one new image
#[derive(Args, Debug)]
#[command(override_usage = "dchain convert [OPTIONS] -O FMT SRC DST")]
pub struct Arguments {
    /// Format of DST
    #[arg(short = 'O', long, value_name = "FMT", value_parser = options::format)]
    target_format: Format,
    #[command(flatten)]
    options: FormatOptions,
    /// Compress the new image
    #[arg(short, long)]
    compress: bool,
    /// Write into DST as it is, an image or a device of at least that size
    #[arg(long, conflicts_with = "options")]
    no_create: bool,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    watching: Watching,
    /// The image to read
    #[arg(value_name = "SRC", required_unless_present = "options")]
    source: Option<PathBuf>,
    /// The image to make
    #[arg(value_name = "DST", required_unless_present = "options")]
    target: Option<PathBuf>,
}

impl Arguments {
    /// Converts.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if self.options.wants_help() {
            options::list_format_options(answer, self.target_format)?;
            return Ok(Exit::Done);
        }
        let (Some(source), Some(target)) = (&self.source, &self.target) else {
            return Err(Failure::usage("SRC and DST are wanted").hint("dchain convert --help"));
        };
        let host = options::host();
        let chain = Chain::open(&host, source, &self.reading.opening(&host)?)?;
        let done = if self.no_create {
            self.fill(&host, &chain, target)?
        } else {
            self.make(&host, &chain, target)?
        };
        answer.print(&done, |out| {
            let (size, written) = (size::show(done.size), size::show(done.written_bytes));
            writeln!(out, "{}: {}, {size}, of which {written} written", target.display(), done.format)
        })?;
        Ok(Exit::Done)
    }

    fn make(&self, host: &Arc<dyn Host>, chain: &Chain, target: &Path) -> Result<Converted, Failure> {
        let options = self.options.pairs();
        let new = (self.target_format, options.as_slice(), self.compress);
        self.watching.run(|progress| convert(host, &chain.view(0), target, new, progress))
    }

    fn fill(&self, host: &Arc<dyn Host>, chain: &Chain, target: &Path) -> Result<Converted, Failure> {
        let policy = self.reading.source.references.policy(host.as_ref())?;
        let opening = Opening { access: Access::Write, ..Opening::reading() }
            .with_format(Some(self.target_format))
            .with_policy(policy);
        let layer = open_layer(host, target, &opening)?;
        if layer.image.parent().is_some() {
            return Err(Error::unsupported("has a parent: only a flat image can be filled")
                .path(target)
                .into());
        }
        let filling = Filling { is_blank: false, is_packed: self.compress };
        let filled = |progress: &_| fill(&chain.view(0), layer.image.as_ref(), filling, progress);
        let written_bytes = self.watching.run(|progress| filled(progress).map_err(|e| e.path(target)))?;
        let (format, size) = (self.target_format, layer.size());
        Ok(Converted { image: target.to_path_buf(), format, size: size.max(chain.size()), written_bytes })
    }
}
