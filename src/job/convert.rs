//! A disk in another image: flat, in any format.
//!
//! The merged map is walked once, in guest order. Long runs of plain data go from file to file with the host's
//! help; what is left (short runs, compressed clusters) is put together in memory, in whole units of the target,
//! so that no unit is written twice. Zeros are not written to an image that is new.

use super::{
    Progress,
    create::{Target, options_on},
};
use crate::{
    base::{
        Error, GuestOffset, GuestRange, Result,
        units::{SECTOR_BYTES, index},
    },
    chain::{Run, View},
    format::{self, Creation, Format, Image, Nothing},
    io::{self, Host, Kept},
    map::State,
    store::Ledger,
};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// How much of the map is looked at in one go.
const STRIDE_BYTES: u64 = 256 << 20;
/// How much is moved in one go.
const MOVED_BYTES: u64 = 8 << 20;
/// How much is put together in memory in one go.
const JOINED_BYTES: u64 = 1 << 20;
/// Units that are compressed before the first of them is stored, where they are stored in order.
const ORDERED_UNITS: usize = 64;
/// How much is written before the device is asked to begin with it.
const EARLY_BYTES: u64 = 32 << 20;
/// Runs shorter than this are cheaper to put together in memory than to move, unless the host can share them.
const SHORT_BYTES: u64 = 256 << 10;

/// How a disk is written into an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filling {
    /// Whether the image reads as zeros all over before.
    pub is_blank: bool,
    /// Whether clusters are compressed.
    pub is_packed: bool,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Converted {
    /// The new image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of its disk in bytes.
    pub size: u64,
    /// Bytes of the disk that were written; the rest is zeros.
    pub written_bytes: u64,
}

/// Makes a new image at `path` that shows what `source` shows; nothing is there before it is whole and durable.
///
/// `Exists` if a file has the name; `Interrupted` when told to stop, and then nothing is left behind.
///
/// ```
/// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
/// # use std::sync::Arc;
/// use deltachain::{chain::{Chain, Opening}, job::{Progress, convert::convert}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
/// let base = folder.path().join("base.qcow2");
/// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
/// create(&host, &base, &new, &Opening::reading())?;
/// let source = Chain::open(&host, &base, &Opening::reading())?.view(0);
/// let flat = folder.path().join("flat.raw");
/// let made = convert(&host, &source, &flat, (Format::Raw, &[], false), &Progress::default())?;
/// assert_eq!((made.size, std::fs::metadata(&flat)?.len()), (1 << 20, 1 << 20));
/// # Ok(())
/// # }
/// ```
pub fn convert(
    host: &Arc<dyn Host>,
    source: &View,
    path: &Path,
    new: (Format, &[(String, String)], bool),
    progress: &Progress,
) -> Result<Converted> {
    make(host, source, path, new, progress)?.publish()
}

/// An image that is whole, and has no name yet: it goes again unless it is published.
#[derive(Debug)]
pub(super) struct Made {
    target: Target,
    image: Arc<dyn Image>,
    converted: Converted,
}

impl Made {
    /// Makes the image durable and gives it its name.
    pub(super) fn publish(self) -> Result<Converted> {
        self.target.publish(self.image)?;
        Ok(self.converted)
    }
}

/// As [`convert`], up to where the image gets its name.
pub(super) fn make(
    host: &Arc<dyn Host>,
    source: &View,
    path: &Path,
    new: (Format, &[(String, String)], bool),
    progress: &Progress,
) -> Result<Made> {
    let (format, options, is_packed) = new;
    let target = Target::new(host, path)?;
    let size = source.size().next_multiple_of(SECTOR_BYTES);
    let layers = source.images().iter().map(AsRef::as_ref);
    let creation = Creation { size, parent: None, options: options_on(layers, format, options) };
    if is_packed {
        refuse_unpacked(format::measure(format, &creation).is_ok_and(|new| !new.packs), format)
            .map_err(|e| e.path(path))?;
    }
    let image = target.create(host, (format, &creation), source.budget())?;
    // A device holds what it held before.
    let filling = Filling { is_blank: !target.is_device(), is_packed };
    let written_bytes = fill(source, image.as_ref(), filling, progress).map_err(|e| target.named(e))?;
    Ledger::new(Arc::clone(host), None).know(image.as_ref())?;
    let converted = Converted { image: path.to_path_buf(), format, size, written_bytes };
    Ok(Made { target, image, converted })
}

/// Refuses what has no compressed units.
pub(super) fn refuse_unpacked(is_unpacked: bool, format: Format) -> Result<()> {
    if !is_unpacked {
        return Ok(());
    }
    let what =
        format!("cannot be compressed as {format}: qcow2 can, and vmdk with subformat=streamOptimized");
    Err(Error::unsupported(what))
}

/// Makes `target` show what `source` shows; returns how many bytes were written. Durable once `target` is flushed.
///
/// A larger target shows zeros behind; a smaller one is `Invalid`.
pub fn fill(source: &View, target: &dyn Image, filling: Filling, progress: &Progress) -> Result<u64> {
    if target.size() < source.size() {
        let what = format!("a disk of {} bytes has no room for {} bytes", target.size(), source.size());
        return Err(Error::invalid(what));
    }
    let details = target.details()?;
    let filling = Filling { is_packed: filling.is_packed || details.is_stream, ..filling };
    let unit = if filling.is_packed {
        refuse_unpacked(!details.packs, target.format())?;
        details.cluster_bytes.unwrap_or(JOINED_BYTES)
    } else {
        target.unit().max(4096)
    };
    progress.begin("convert", target.size());
    io::stream(target.data_file().as_ref());
    let (is_shared, unflushed) = (AtomicBool::new(false), AtomicU64::new(0));
    let job = Fill { source, target, filling, unit, is_shared, unflushed, progress };
    let mut written = 0;
    for stride in GuestOffset::new(0).range(target.size()).pieces(STRIDE_BYTES) {
        progress.checkpoint()?;
        let steps = job.plan(stride)?;
        written += steps.iter().map(Step::written_bytes).sum::<u64>();
        if details.is_stream {
            job.perform_in_order(&steps)?;
        } else if !steps.is_empty() {
            job.perform(&steps)?;
        }
        progress.passed(stride.bytes - steps.iter().map(|s| s.range().bytes).sum::<u64>());
    }
    Ok(written)
}

struct Fill<'a> {
    source: &'a View,
    target: &'a dyn Image,
    filling: Filling,
    /// What the target allocates at once.
    unit: u64,
    /// Whether the host shares bytes between source and target instead of copying them.
    is_shared: AtomicBool,
    /// Bytes written since the device was last asked to begin.
    unflushed: AtomicU64,
    progress: &'a Progress,
}

/// Something to be done to a range of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Move a run of plain data from file to file.
    Move(Run),
    /// Read through the map, then write.
    Join(GuestRange),
    /// Make it zero.
    Zero(GuestRange),
}

impl Step {
    const fn range(&self) -> GuestRange {
        match self {
            Self::Move(run) => run.range,
            Self::Join(range) | Self::Zero(range) => *range,
        }
    }

    const fn written_bytes(&self) -> u64 {
        match self {
            Self::Zero(_) => 0,
            _ => self.range().bytes,
        }
    }
}

impl Fill<'_> {
    /// Returns what is to be done to `stride`, in guest order; every unit of the target in one step at most.
    fn plan(&self, stride: GuestRange) -> Result<Vec<Step>> {
        let mut runs = Vec::new();
        self.source.runs(stride, &mut runs)?;
        let least = if self.is_shared.load(Relaxed) { self.unit } else { SHORT_BYTES.max(self.unit) };
        let joined_bytes = JOINED_BYTES.max(self.unit);
        let mut plan =
            Plan { unit: self.unit, joined_bytes, within: stride, steps: Vec::new(), at: stride.start };
        for run in runs {
            let whole = run.range.inner(self.unit).clip(stride);
            let is_long = whole.bytes >= least && whole.start >= plan.at;
            match run.state {
                State::Data { .. } if is_long && !self.filling.is_packed => {
                    plan.join(GuestRange::between(run.range.start, whole.start));
                    plan.add(whole, MOVED_BYTES, |range| Step::Move(run.clip(range)));
                    plan.join(GuestRange::between(whole.end(), run.range.end()));
                }
                State::Zero { .. } | State::Absent => {
                    let rest = GuestRange::between(run.range.start.max(plan.at), run.range.end());
                    if !self.filling.is_blank {
                        // A unit that is partly data is put together, zeros and all.
                        let whole = rest.inner(self.unit);
                        plan.join(GuestRange::between(rest.start, whole.start.min(rest.end())));
                        plan.add(whole, u64::MAX, Step::Zero);
                        plan.join(GuestRange::between(whole.end().max(rest.start), rest.end()));
                    }
                }
                _ => plan.join(run.range),
            }
        }
        Ok(plan.steps)
    }

    /// Does the steps on all cores, each thread taking the next one: the target fills nearly in order.
    fn perform(&self, steps: &[Step]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let results = rayon::broadcast(|_| -> Result<()> {
            let mut buf = Vec::new();
            while let Some(step) = steps.get(next.fetch_add(1, Relaxed)) {
                self.progress.checkpoint()?;
                self.step(step, &mut buf).inspect_err(|_| next.store(steps.len(), Relaxed))?;
                self.progress.moved(step.range().bytes);
                self.wrote(step.written_bytes());
            }
            Ok(())
        });
        results.into_iter().collect()
    }

    /// Lets the device write while more is copied.
    fn wrote(&self, bytes: u64) {
        let unflushed = self.unflushed.fetch_add(bytes, Relaxed) + bytes;
        let is_due = unflushed >= EARLY_BYTES
            && self.unflushed.compare_exchange(unflushed, 0, Relaxed, Relaxed).is_ok();
        if is_due {
            io::begin_flush(self.target.data_file().as_ref());
        }
    }

    fn step(&self, step: &Step, buf: &mut Vec<u8>) -> Result<()> {
        match step {
            Step::Zero(range) => self.target.zero(*range, Kept::Nothing, &Nothing),
            Step::Join(range) if self.filling.is_packed => self.pack(*range),
            Step::Join(range) => {
                buf.resize(buf.len().max(index(range.bytes)), 0);
                let bytes = buf.get_mut(..index(range.bytes)).unwrap_or_default();
                self.source.read(range.start, bytes)?;
                self.target.write(range.start, bytes, &Nothing)
            }
            Step::Move(run) => self.move_run(run),
        }
    }

    fn move_run(&self, run: &Run) -> Result<()> {
        let image = run.layer.and_then(|layer| self.source.images().get(layer));
        let (Some(image), State::Data { host }) = (image, run.state) else {
            return Err(Error::invalid("a run of data without a layer"));
        };
        let file = image.data_file();
        let (mut at, mut host) = (run.range.start, host);
        while at < run.range.end() {
            let left = run.range.end().since(at);
            // Space that was reserved and never written is a hole in an image, too; what is shared is so with its holes.
            let found = if self.is_shared.load(Relaxed) { None } else { Some(file.run_at(host)?) };
            let found = found.filter(|found| !found.range.is_empty());
            let held = found.map_or(left, |found| found.range.bytes);
            let hole = if held >= left { left } else { held - held % self.unit };
            let is_hole = found.is_some_and(|found| !found.is_data) && self.filling.is_blank && hole > 0;
            let bytes = if is_hole { hole } else { held.next_multiple_of(self.unit).min(left) };
            if !is_hole {
                let moved = self.target.write_from(at.range(bytes), file.as_ref(), host, &Nothing)?;
                self.is_shared.fetch_or(moved.shared_bytes > 0, Relaxed);
            }
            (at, host) = (at.plus(bytes), host.plus(bytes));
        }
        Ok(())
    }

    /// Does the steps one behind the other: all cores compress what comes next, one stores it.
    fn perform_in_order(&self, steps: &[Step]) -> Result<()> {
        let units: Vec<GuestRange> = steps.iter().flat_map(|step| step.range().pieces(self.unit)).collect();
        for some in units.chunks(ORDERED_UNITS) {
            self.progress.checkpoint()?;
            let packed: Vec<_> = some.par_iter().map(|unit| self.packed(*unit)).collect::<Result<_>>()?;
            for (unit, packed) in some.iter().zip(&packed) {
                packed.iter().try_for_each(|packed| self.target.write_packed(unit.start, packed))?;
                self.progress.moved(unit.bytes);
                self.wrote(unit.bytes);
            }
        }
        Ok(())
    }

    /// Returns a unit compressed; `None` for zeros, which the image shows anyway.
    fn packed(&self, unit: GuestRange) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; index(unit.bytes)];
        self.source.read(unit.start, &mut bytes)?;
        if self.filling.is_blank && bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let refusal = || Error::unsupported(format!("cannot compress the unit at 0x{:x}", unit.start));
        self.target.pack(&bytes).map(Some).ok_or_else(refusal)
    }

    /// Writes clusters compressed, where that saves something.
    fn pack(&self, range: GuestRange) -> Result<()> {
        let mut bytes = vec![0; index(self.unit)];
        for cluster in range.pieces(self.unit) {
            bytes.resize(index(cluster.bytes), 0);
            self.source.read(cluster.start, &mut bytes)?;
            if self.filling.is_blank && bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            match self.target.pack(&bytes) {
                Some(packed) => self.target.write_packed(cluster.start, &packed)?,
                None => self.target.write(cluster.start, &bytes, &Nothing)?,
            }
        }
        Ok(())
    }
}

/// Steps in the making.
struct Plan {
    unit: u64,
    /// How much is put together at once: whole units.
    joined_bytes: u64,
    within: GuestRange,
    steps: Vec<Step>,
    /// Where the next step may start: before it, all is planned.
    at: GuestOffset,
}

impl Plan {
    fn add(&mut self, range: GuestRange, piece_bytes: u64, step: impl Fn(GuestRange) -> Step) {
        if !range.is_empty() {
            self.steps.extend(range.pieces(piece_bytes).map(step));
            self.at = range.end();
        }
    }

    /// Adds what is not planned yet of the units that `range` touches.
    fn join(&mut self, range: GuestRange) {
        if range.is_empty() {
            return;
        }
        let wide = range.outer(self.unit).clip(self.within);
        let mut rest = GuestRange::between(wide.start.max(self.at), wide.end());
        if let Some(Step::Join(last)) = self.steps.last_mut()
            && last.end() == rest.start
        {
            let room = last.start.plus(self.joined_bytes).since(last.end()).min(rest.bytes);
            last.bytes += room;
            rest = GuestRange::between(rest.start.plus(room), rest.end());
            self.at = last.end();
        }
        self.add(rest, self.joined_bytes, Step::Join);
    }
}

#[cfg(test)]
mod tests;
