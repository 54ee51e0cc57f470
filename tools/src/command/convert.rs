//! `dchain convert`: a disk in another image, flat; its layers in another format; or disks in an OVA.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Reading},
    output::Answer,
    package::{self, Packaged},
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    base::Error,
    chain::{Chain, Package},
    format::Format,
    io::{Access, Host},
    job::{
        Progress,
        convert::{Converted, convert},
        copy::{self, Conversion, Hierarchies, Share},
        ova::{Outcome, Taken, convert_disk, verify},
        overwrite::{self, Overwrite},
    },
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Write the disk of SRC, with all its layers, into one new image; with --chain, each layer into one of its own
///
/// With --chain DST is a folder, each layer shows there what it showed (proved by its content ID), and a job that was
/// cut off goes on when the same command is given again. SRC may then be a folder, whose heads are all taken with what
/// lies below them, or a .vmx or .vmsd file: the disks that it names with all their snapshots. qemu-img's -t, -T, -m, -W and -C are taken: what they set does
/// not change the result, which is durable at the end in any case.
#[derive(Args, Debug)]
#[command(override_usage = "dchain convert [OPTIONS] -O FMT SRC DST")]
pub struct Arguments {
    /// Format of DST; with ova the disks of all SRC are packed into one OVA, compressed
    #[arg(short = 'O', long, value_name = "FMT", value_parser = Target::parse)]
    target_format: Target,
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
    packaged: Packaged,
    /// Take a disk out of an OVA whatever its manifest says
    #[arg(long)]
    skip_manifest: bool,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    watching: Watching,
    /// SRC, the image to read, and DST, the one to make; with -O ova, several SRC and the archive
    #[arg(value_name = "PATH", num_args = 2.., required_unless_present = "options")]
    paths: Vec<PathBuf>,
}

/// What is made.
#[derive(Clone, Copy, Debug)]
enum Target {
    Image(Format),
    Ova,
}

impl Target {
    /// Returns the format of what is made; of an OVA, that of its disks.
    const fn format(self) -> Format {
        match self {
            Self::Image(format) => format,
            Self::Ova => Format::Vmdk,
        }
    }

    fn parse(name: &str) -> Result<Self, String> {
        if name == "ova" { Ok(Self::Ova) } else { options::format(name).map(Self::Image) }
    }
}

/// What becomes of the layers.
#[derive(Args, Debug)]
struct Layers {
    /// Keep the layers: DST is the folder that the new ones go to
    #[arg(long, conflicts_with_all = ["no_create", "force_share"])]
    chain: bool,
    /// With --chain or --no-create: only say what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// With --no-create: do not ask before what DST holds is given up
    #[arg(long, requires = "no_create")]
    yes: bool,
}

impl Arguments {
    /// Converts.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if matches!(self.target_format, Target::Ova) {
            return self.pack(answer);
        }
        if self.options.wants_help() {
            let format = self.target_format.format();
            // A VMDK of another kind has further files, or is written once.
            let is_of_layer = |name: &str| {
                FormatOptions::is_of_one_file(name) && (format, name) != (Format::Vmdk, "subformat")
            };
            options::list_format_options(answer, format, |name| !self.layers.chain || is_of_layer(name))?;
            return Ok(Exit::Done);
        }
        let [source, target] = self.paths.as_slice() else {
            return Err(Failure::usage("one SRC and DST are wanted").hint("dchain convert --help"));
        };
        if self.layers.dry_run && !self.layers.chain && !self.no_create {
            let what = "-n is --dry-run in every command, and goes with --chain and --no-create here: nothing was done";
            return Err(
                Failure::usage(what).hint("--no-create writes into DST as it is, as -n of qemu-img does")
            );
        }
        self.refuse_packed()?;
        let host = options::host();
        let opening = self.reading.opening(&host)?;
        if let Some(package) = self.packaged.open(&host, source, &opening)? {
            self.take(&host, (&package, target), answer).map_err(Failure::begins_again)?;
            return Ok(Exit::Done);
        }
        if self.layers.chain {
            self.options.refuse_data_file()?;
            return self.keep_layers(&host, (source, target), answer);
        }
        package::refuse_machine(&host, source, &opening)?;
        let chain = Chain::open(&host, source, &opening)?;
        let done = if self.no_create {
            self.fill(&host, (&chain, target), answer)
        } else {
            self.make(&host, &chain, target).map(Some)
        };
        // Without --chain nothing is kept to go on from.
        let Some(done) = done.map_err(Failure::begins_again)? else { return Ok(Exit::Done) };
        answer.print(&done, |out| writeln!(out, "{}", line(&done)))?;
        Ok(Exit::Done)
    }

    /// Makes an OVA of the disks.
    fn pack(&self, answer: &Answer) -> Result<Exit, Failure> {
        let Some((target, sources)) = self.paths.split_last().filter(|(_, sources)| !sources.is_empty())
        else {
            return Err(Failure::usage("SRC and DST are wanted").hint("dchain convert -O ova DISK... VM.ova"));
        };
        let is_asked = [
            (!self.options.pairs().is_empty() || self.options.wants_help(), "-o"),
            (self.no_create, "--no-create"),
            (self.layers.chain, "--chain"),
            (self.layers.dry_run, "--dry-run"),
            (self.packaged.is_named(), "--disk"),
        ];
        if let Some((_, option)) = is_asked.into_iter().find(|(is_asked, _)| *is_asked) {
            let what = format!("{option} does not go with -O ova: its disks are compressed VMDKs");
            return Err(Failure::usage(what));
        }
        let host = options::host();
        let opening = self.reading.opening(&host)?;
        package::pack(&host, (sources, target), &opening, &self.watching, answer)?;
        Ok(Exit::Done)
    }

    /// Takes a disk out of an OVA.
    fn take(
        &self,
        host: &Arc<dyn Host>,
        (package, target): (&Package, &Path),
        answer: &Answer,
    ) -> Result<(), Failure> {
        let archive = package.ova().file().path();
        if self.layers.chain {
            let what = format!("{}: the disks of an OVA have no layers to keep", archive.display());
            return Err(Failure::usage(what).hint("leave --chain out"));
        }
        let disk = self.packaged.disk(package)?;
        let inside = |error: &Error| package::failure(error, archive);
        if self.no_create {
            let layer = package.layer(&disk).map_err(|e| inside(&e))?;
            if !self.skip_manifest && !self.layers.dry_run {
                let verify =
                    |progress: &Progress| Ok(verify(package.ova(), &disk, &|| progress.checkpoint()));
                self.watching.run(verify)?.map_err(|e| inside(&e))?;
            }
            let done = self.fill(host, (&Chain::of(vec![layer], false), target), answer)?;
            return done.map_or(Ok(()), |done| answer.print(&done, |out| writeln!(out, "{}", line(&done))));
        }
        let (options, is_verified) = (self.options.pairs(), !self.skip_manifest);
        let new = (self.target_format.format(), options.as_slice(), self.compress);
        let from = (package, &disk, is_verified);
        let taken = self.watching.run(|progress| Ok(convert_disk(host, from, target, new, progress)))?;
        let taken = taken.map_err(|e| inside(&e))?;
        answer.print(&taken, |out| lines_of(&taken).iter().try_for_each(|line| writeln!(out, "{line}")))
    }

    /// Refuses what compressed clusters cannot be in.
    fn refuse_packed(&self) -> Result<(), Failure> {
        if !self.compress {
            return Ok(());
        }
        let format = self.target_format.format();
        let is_stream = |(key, value): &(String, String)| key == "subformat" && value == "streamOptimized";
        let hint = match format {
            Format::Qcow2 => None,
            // It is all that such a disk is, so that -c only says it again.
            Format::Vmdk if self.options.pairs().iter().any(is_stream) => None,
            Format::Vmdk if !self.no_create && !self.layers.chain => Some("-o subformat=streamOptimized"),
            _ => Some("-O qcow2"),
        };
        if let Some(hint) = hint {
            return Err(Failure::usage(format!("a {format} image cannot be compressed")).hint(hint));
        }
        let of_own = |(key, value): &(String, String)| match key.as_str() {
            "data_file" => true,
            "preallocation" => value != "off",
            _ => false,
        };
        match self.options.pairs().into_iter().find(of_own) {
            Some((key, _)) => {
                let what = format!("-c: compressed clusters go without {key}");
                Err(Failure::usage(what).hint(format!("leave -c or -o {key} out")))
            }
            None => Ok(()),
        }
    }

    fn keep_layers(
        &self,
        host: &Arc<dyn Host>,
        paths: (&Path, &Path),
        answer: &Answer,
    ) -> Result<Exit, Failure> {
        let opening = self.reading.opening(host)?;
        let (format, options, is_packed) = (self.target_format.format(), self.options.pairs(), self.compress);
        let conversion = Conversion { format, options, is_packed, names: BTreeMap::new() };
        let (ledger, explain) = (options::ledger(host), |error: Error| Failure::into_folder(&error, paths.1));
        let planned = Planned { dry_run: self.layers.dry_run, yes: true };
        if Hierarchies::are_meant(host.as_ref(), paths.0, &opening)? {
            let job = Hierarchies::prepare(host, &ledger, paths, &opening, conversion).map_err(explain)?;
            let lines: Vec<_> = job.plans().iter().flat_map(super::copy::lines).collect();
            let plans = json!({ "chains": job.plans() });
            if planned.agree(answer, &plans, &lines, Grade::Harmless)? {
                let reports = self.watching.run(|progress| job.run(progress))?;
                answer.print(&json!({ "chains": reports }), |out| write_proofs(out, &reports))?;
            }
            return Ok(Exit::Done);
        }
        let request =
            copy::Request { share: Share::Deny, conversion: Some(conversion), ..copy::Request::default() };
        let job = copy::Copy::prepare(host, &ledger, paths, &opening, request).map_err(explain)?;
        let lines = super::copy::lines(job.plan());
        if planned.agree(answer, job.plan(), &lines, Grade::Harmless)? {
            let report = self.watching.run(|progress| job.run(progress))?;
            answer.print(&report, |out| write_proofs(out, std::slice::from_ref(&report)))?;
        }
        Ok(Exit::Done)
    }

    fn make(&self, host: &Arc<dyn Host>, chain: &Chain, target: &Path) -> Result<Converted, Failure> {
        let options = self.options.pairs();
        let new = (self.target_format.format(), options.as_slice(), self.compress);
        self.watching.run(|progress| convert(host, &chain.view(0), target, new, progress))
    }

    /// Returns what was done, if it was to be done.
    fn fill(
        &self,
        host: &Arc<dyn Host>,
        (chain, target): (&Chain, &Path),
        answer: &Answer,
    ) -> Result<Option<Converted>, Failure> {
        let opening = self.reading.source.references.opening(host.as_ref(), Access::Write)?;
        let overwrite =
            Overwrite::prepare(host, chain, (target, self.target_format.format(), self.compress), &opening)?;
        let plan = overwrite.plan();
        let is_lost = plan.given_up_bytes > 0 || plan.is_frozen;
        let grade = if is_lost { Grade::Destructive } else { Grade::Harmless };
        let planned = Planned { dry_run: self.layers.dry_run, yes: self.layers.yes };
        if !planned.agree(answer, plan, &lines(plan), grade)? {
            return Ok(None);
        }
        self.watching.run(|progress| overwrite.run(chain, progress)).map(Some)
    }
}

/// Says what each new layer shows, each once: chains may share some.
fn write_proofs(out: &mut dyn Write, reports: &[copy::Report]) -> std::io::Result<()> {
    let mut told = BTreeSet::new();
    let new = reports.iter().flat_map(|report| &report.proved).filter(|proved| told.insert(&proved.image));
    new.into_iter().try_for_each(|proved| {
        writeln!(out, "{}: shows {}, as before", proved.image.display(), proved.id.short())
    })
}

/// What was made.
fn line(done: &Converted) -> String {
    let (size, written) = (size::show(done.size), size::show(done.written_bytes));
    format!("{}: {}, {size}, of which {written} written", done.image.display(), done.format)
}

/// What was made of a disk of an OVA, and how far that is proved.
fn lines_of(taken: &Taken) -> Vec<String> {
    let Taken { converted, disk, file, capacity, manifest, certificate } = taken;
    let mut lines = vec![format!("{}, from disk {disk} ({file})", line(converted))];
    lines.push(match (manifest.outcome, manifest.algorithm) {
        (Outcome::Verified, Some(algorithm)) => format!("manifest: {file} verified ({})", algorithm.name()),
        (Outcome::NoManifest, _) => {
            "manifest: there is none, so that nothing says what the bytes should be".to_owned()
        }
        (Outcome::Skipped, _) => "manifest: not looked at (--skip-manifest)".to_owned(),
        _ => format!("manifest: does not speak of {file}"),
    });
    lines.extend(certificate.iter().map(|name| format!("certificate: {name} is not verified")));
    if let Some(capacity) = capacity.filter(|capacity| *capacity != converted.size) {
        lines.push(format!(
            "capacity: {capacity} bytes by the descriptor, {} by the disk itself",
            converted.size
        ));
    }
    lines
}

/// What becomes of an image that is written as it is.
fn lines(plan: &overwrite::Plan) -> Vec<String> {
    let name = plan.image.display();
    let (size, given_up) = (size::show(plan.size), size::show(plan.given_up_bytes));
    let mut lines = vec![match plan.given_up_bytes {
        0 => format!("{name}: {}, {size}, holds nothing and is written", plan.format),
        _ => {
            format!("{name}: {}, {size}, is overwritten: the {given_up} that it holds are lost", plan.format)
        }
    }];
    if plan.is_frozen {
        lines.push(
            "it was frozen as the parent of others: those that are elsewhere are no longer what they were"
                .into(),
        );
    }
    let stale = |name: &String| format!("the bitmap '{name}' is marked as in use: it records nothing here");
    lines.extend(plan.bitmaps_stale.iter().map(stale));
    lines
}
