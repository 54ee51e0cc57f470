//! `dchain check`: whether an image's metadata is sound, and repair.

use crate::{
    data::{Data, Span},
    failure::{Exit, Failure},
    options::{self, Reading},
    output::Answer,
    progress::Watching,
};
use clap::{Args, ValueEnum};
use deltachain::{
    base::{Error, ErrorKind, name},
    chain::{Chain, Opening, Standing, check_layer, check_lineage, lineage, open_layer},
    format::{Checked, Format, Repair},
    io::Access,
    job::verify::{Changed, changed_below, verify},
    store::{Ledger, Lineage},
};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// Check an image's metadata (exit code 0: sound, 1: could not check, 2: corrupt, 3: leaks only,
/// 63: the format has nothing to check)
#[derive(Args, Debug)]
pub struct Arguments {
    /// Mend what is wrong: leaks only, or all
    #[arg(long, value_enum, conflicts_with = "force_share")]
    repair: Option<What>,
    /// Then, whether every layer stands on the parent that it was made on (if not: exit code 77, and what changed
    /// underneath, where that is known)
    #[arg(long)]
    lineage: bool,
    /// Then, read all that the disk shows, and compare it with the content ID of the layer, or of the nearest one
    /// below that has one (exit code 1: cannot be read, 2: differs)
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    watching: Watching,
    /// The image
    image: PathBuf,
}

/// What is mended.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Space that is marked as used and is not
    Leaks,
    /// Everything that can be mended without losing data
    All,
}

/// The answer for programs: qemu-img's keys, and the findings in words.
#[derive(Debug, Serialize)]
struct Report {
    filename: String,
    format: Format,
    #[serde(flatten)]
    metadata: Option<Metadata>,
    /// Layers that must not be read on their parent, from the base up, if that was asked for.
    lineage: Option<Vec<Refused>>,
    /// How many layers say nothing of what their parent was, if that was asked for.
    unclaimed: Option<usize>,
    data: Option<Data>,
    /// Whether the data was not looked at, because the metadata does not lead to it.
    #[serde(skip)]
    is_data_skipped: bool,
}

/// What `qemu-img check` says, with its keys.
#[derive(Debug, Serialize)]
struct Metadata {
    check_errors: u64,
    image_end_offset: u64,
    corruptions: u64,
    leaks: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
    findings: Vec<String>,
}

/// A layer that does not stand on what it was made on.
#[derive(Debug, Serialize)]
struct Refused {
    filename: String,
    parent: String,
    why: String,
    /// What reads differently below it now; null where nothing is known of what was there.
    changed: Option<Vec<Span>>,
    /// Those of them that the layers above hide.
    hidden: Option<Vec<Span>>,
}

impl Arguments {
    /// Checks, mends what is asked, reports.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.reading.opening(&host)?;
        let mut report = match self.metadata(&opening) {
            // That there is nothing to check is an answer, too, and a program reads it.
            Err(failure) if failure.exit == Exit::Unsupported && answer.is_json() => {
                let how = opening.clone().with_access(Access::ReadShared);
                if let Ok(Format::Raw) = open_layer(&host, &self.image, &how).map(|layer| layer.format()) {
                    answer.print(&self.report(Format::Raw, None), |_| Ok(()))?;
                }
                return Err(failure);
            }
            report => report?,
        };
        let is_sound = matches!(report.metadata_exit(), Exit::Done | Exit::Leaks);
        report.is_data_skipped = self.data && !is_sound;
        let mut refused = None;
        if is_sound && (self.lineage || self.data) {
            let reading = Opening { access: self.reading.access(), ledger: None, ..opening };
            let chain = Chain::open(&host, &self.image, &reading).map_err(failure)?;
            let ledger = options::ledger(&host);
            report.format = chain.head()?.format();
            if self.lineage {
                refused = self.lineage(&ledger, &chain, &mut report)?;
            }
            if self.data {
                let verified = self.watching.run(|progress| verify(&ledger, &chain, progress))?;
                report.data = Some(Data::from(&verified));
            }
        }
        answer.print(&report, |out| report.write(out))?;
        refused.map_or_else(|| Ok(report.exit()), Err)
    }

    /// Looks at the metadata; a format that has none is no obstacle to what else was asked for.
    fn metadata(&self, opening: &Opening) -> Result<Report, Failure> {
        let repair = match self.repair {
            None => Repair::Nothing,
            Some(What::Leaks) => Repair::Leaks,
            Some(What::All) => Repair::All,
        };
        let access = if self.repair.is_some() { Access::Write } else { opening.access };
        let opening = Opening { access, ..opening.clone() };
        let (format, metadata) = match check_layer(&options::host(), &self.image, &opening, repair) {
            Ok((format, checked)) => (format, Some(Metadata::from(checked))),
            Err(error) if error.kind() == ErrorKind::Unsupported && (self.lineage || self.data) => {
                (Format::Raw, None)
            }
            Err(error) => return Err(failure(error)),
        };
        Ok(self.report(format, metadata))
    }

    fn report(&self, format: Format, metadata: Option<Metadata>) -> Report {
        let filename = name::text(&self.image).into_owned();
        let (lineage, unclaimed, data) = (None, None, None);
        Report { filename, format, metadata, lineage, unclaimed, data, is_data_skipped: false }
    }

    /// Looks at how each layer stands on its parent; returns the first refusal as a failure.
    fn lineage(
        &self,
        ledger: &Ledger,
        chain: &Chain,
        report: &mut Report,
    ) -> Result<Option<Failure>, Failure> {
        let (layers, standings) = (chain.layers(), lineage(ledger, chain.layers())?);
        let mut all = Vec::new();
        for (depth, (pair, standing)) in layers.windows(2).zip(&standings).enumerate().rev() {
            let ([layer, parent], Some(refusal)) = (pair, standing.refusal()) else { continue };
            let look = |id| self.watching.run(|progress| changed_below(ledger, chain, depth, &id, progress));
            let changed = refusal.wanted.map(look).transpose()?.flatten();
            let spans = |of: fn(&Changed) -> &Vec<_>| changed.as_ref().map(|c| of(c).iter().map(Span::from));
            all.push(Refused {
                filename: name::text(&layer.path).into_owned(),
                parent: name::text(&parent.path).into_owned(),
                why: refusal.error(&layer.path, &parent.path).to_string(),
                changed: spans(|changed| &changed.leaves).map(Iterator::collect),
                hidden: spans(|changed| &changed.hidden).map(Iterator::collect),
            });
        }
        report.lineage = Some(all);
        let is_unclaimed = |standing: &&Standing| matches!(standing.on_parent, Some(Ok(Lineage::Unknown)));
        report.unclaimed = Some(standings.iter().filter(is_unclaimed).count());
        Ok(check_lineage(layers, &standings).err().map(Failure::from))
    }
}

/// `check` has exit codes of its own: all that stops it is 1, but for what cannot be checked and wrong parents.
fn failure(error: Error) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error);
    match kind {
        ErrorKind::Unsupported => failure.exit(Exit::Unsupported),
        ErrorKind::Policy | ErrorKind::Invalid => failure,
        ErrorKind::Corrupt => Failure { hint: None, ..failure }.exit(Exit::Failed),
        _ => failure.exit(Exit::Failed),
    }
}

impl From<Checked> for Metadata {
    fn from(checked: Checked) -> Self {
        Self {
            check_errors: checked.errors,
            image_end_offset: checked.end.bytes(),
            corruptions: checked.corruptions,
            leaks: checked.leaks,
            corruptions_fixed: checked.corruptions_fixed,
            leaks_fixed: checked.leaks_fixed,
            total_clusters: checked.total_units,
            allocated_clusters: checked.allocated_units,
            fragmented_clusters: checked.fragmented_units,
            compressed_clusters: checked.compressed_units,
            findings: checked.findings,
        }
    }
}

impl Report {
    fn metadata_exit(&self) -> Exit {
        self.metadata.as_ref().map_or(Exit::Done, Metadata::exit)
    }

    fn exit(&self) -> Exit {
        let data = self.data.as_ref();
        match self.metadata_exit() {
            Exit::Done | Exit::Leaks if data.is_some_and(Data::is_broken) => Exit::Corruptions,
            Exit::Done | Exit::Leaks if data.is_some_and(Data::has_unread) => Exit::Failed,
            metadata => metadata,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.metadata.iter().try_for_each(|metadata| metadata.write(out))?;
        for refused in self.lineage.iter().flatten() {
            refused.write(out)?;
        }
        if let (Some([]), Some(unclaimed)) = (self.lineage.as_deref(), self.unclaimed) {
            match unclaimed {
                0 => writeln!(out, "lineage: every layer lies on what it was made on")?,
                n => writeln!(
                    out,
                    "lineage: nothing speaks against it; what {n} of the layers lie on is not recorded \
                     (`dchain id seal --chain` does that)"
                )?,
            }
        }
        if self.is_data_skipped {
            writeln!(out, "data: not looked at, because the metadata does not lead to it")?;
        }
        let mut lines = self.data.iter().flat_map(Data::lines);
        lines.try_for_each(|line| writeln!(out, "{line}"))
    }
}

impl Refused {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let (Some(changed), Some(hidden)) = (&self.changed, &self.hidden) else {
            return writeln!(out, "lineage: what changed below {} is not known", self.filename);
        };
        for (spans, how) in [(changed, "changed"), (hidden, "of that, hidden by the layers above")] {
            for span in spans {
                writeln!(out, "lineage: below {}, {how}: {span}", self.filename)?;
            }
        }
        Ok(())
    }
}

impl Metadata {
    const fn exit(&self) -> Exit {
        match (self.check_errors, self.corruptions, self.leaks) {
            (1.., _, _) => Exit::Failed,
            (_, 1.., _) => Exit::Corruptions,
            (_, _, 1..) => Exit::Leaks,
            _ => Exit::Done,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for finding in &self.findings {
            writeln!(out, "{finding}")?;
        }
        if self.leaks_fixed + self.corruptions_fixed > 0 {
            writeln!(
                out,
                "mended: {} leaked clusters, {} corruptions",
                self.leaks_fixed, self.corruptions_fixed
            )?;
        }
        if self.check_errors + self.corruptions + self.leaks == 0 {
            writeln!(out, "No errors were found on the image.")?;
        }
        if self.corruptions > 0 {
            writeln!(out, "{} errors were found on the image: data may be corrupt.", self.corruptions)?;
        }
        if self.leaks > 0 {
            writeln!(
                out,
                "{} leaked clusters were found on the image: space is wasted, data is not harmed.",
                self.leaks
            )?;
        }
        if self.check_errors > 0 {
            writeln!(out, "{} places could not be checked.", self.check_errors)?;
        }
        if self.allocated_clusters > 0 && self.total_clusters > 0 {
            #[expect(clippy::cast_precision_loss, reason = "percentages are shown with two digits")]
            let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
            let allocated = self.allocated_clusters;
            writeln!(
                out,
                "{allocated}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
                self.total_clusters,
                percent(allocated, self.total_clusters),
                percent(self.fragmented_clusters, allocated),
                percent(self.compressed_clusters, allocated),
            )?;
        }
        writeln!(out, "Image end offset: {}", self.image_end_offset)
    }
}
