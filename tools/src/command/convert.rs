//! `dchain convert`: a disk in another image, flat; or its layers in another format.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Reading},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    base::Error,
    chain::{Chain, open_layer},
    disk::Disk,
    format::Format,
    io::{Access, Host},
    job::{
        convert::{Converted, Filling, convert, fill},
        copy::{self, Conversion, Proved, Share},
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Write the disk of SRC, with all its layers, into one new image; with --chain, each layer into one of its own
///
/// With --chain DST is a folder, each layer shows there what it showed (proved by its content ID), and a job that was
/// cut off goes on when the same command is given again. qemu-img's -t, -T, -m, -W and -C are taken: what they set does
/// not change the result, which is durable at the end in any case.
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
    layers: Layers,
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

/// What becomes of the layers.
#[derive(Args, Debug)]
struct Layers {
    /// Keep the layers: DST is the folder that the new ones go to
    #[arg(long, conflicts_with_all = ["no_create", "force_share"])]
    chain: bool,
    /// With --chain: only say what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
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
        if self.layers.dry_run && !self.layers.chain {
            let what = "-n is --dry-run in every command, and goes with --chain here: nothing was done";
            return Err(
                Failure::usage(what).hint("--no-create writes into DST as it is, as -n of qemu-img does")
            );
        }
        let host = options::host();
        if self.layers.chain {
            return self.keep_layers(&host, (source, target), answer);
        }
        let chain = Chain::open(&host, source, &self.reading.opening(&host)?)?;
        let done =
            if self.no_create { self.fill(&host, &chain, target) } else { self.make(&host, &chain, target) };
        // Without --chain nothing is kept to go on from.
        let done = done.map_err(|failure| match failure.exit {
            Exit::Resumable => failure.hint("the same command begins again from the start"),
            _ => failure,
        })?;
        answer.print(&done, |out| {
            let (size, written) = (size::show(done.size), size::show(done.written_bytes));
            writeln!(out, "{}: {}, {size}, of which {written} written", target.display(), done.format)
        })?;
        Ok(Exit::Done)
    }

    fn keep_layers(
        &self,
        host: &Arc<dyn Host>,
        paths: (&Path, &Path),
        answer: &Answer,
    ) -> Result<Exit, Failure> {
        let opening = self.reading.opening(host)?;
        let (format, options, is_packed) = (self.target_format, self.options.pairs(), self.compress);
        let conversion = Some(Conversion { format, options, is_packed });
        let request = copy::Request { share: Share::Deny, conversion, ..copy::Request::default() };
        let job = copy::Copy::prepare(host, &options::ledger(host), paths, &opening, request)
            .map_err(|error| Failure::into_folder(&error, paths.1))?;
        let lines = super::copy::lines(job.plan());
        let planned = Planned { dry_run: self.layers.dry_run, yes: true };
        if planned.agree(answer, job.plan(), &lines, Grade::Harmless)? {
            let report = self.watching.run(|progress| job.run(progress))?;
            answer.print(&report, |out| {
                let line =
                    |proved: &Proved| format!("{}: shows {}", proved.image.display(), proved.id.short());
                let lines = report.proved.iter().map(line);
                lines.into_iter().try_for_each(|line| writeln!(out, "{line}, as before"))
            })?;
        }
        Ok(Exit::Done)
    }

    fn make(&self, host: &Arc<dyn Host>, chain: &Chain, target: &Path) -> Result<Converted, Failure> {
        let options = self.options.pairs();
        let new = (self.target_format, options.as_slice(), self.compress);
        self.watching.run(|progress| convert(host, &chain.view(0), target, new, progress))
    }

    fn fill(&self, host: &Arc<dyn Host>, chain: &Chain, target: &Path) -> Result<Converted, Failure> {
        let opening = self.reading.source.references.opening(host.as_ref(), Access::Write)?;
        let layer = open_layer(host, target, &opening.with_format(Some(self.target_format)))?;
        if layer.image.parent().is_some() {
            return Err(Error::unsupported("has a parent: only a flat image can be filled")
                .path(target)
                .into());
        }
        let filling = Filling { is_blank: false, is_packed: self.compress };
        let image = layer.image.as_ref();
        let filled = |progress: &_| {
            let filled = fill(&chain.view(0), image, filling, progress);
            filled.and_then(|written_bytes| image.flush().map(|()| written_bytes))
        };
        let written_bytes = self.watching.run(|progress| filled(progress).map_err(|e| e.path(target)))?;
        let (format, size) = (self.target_format, layer.size());
        Ok(Converted { image: target.to_path_buf(), format, size: size.max(chain.size()), written_bytes })
    }
}
