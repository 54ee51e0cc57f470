//! Histories: what is done to an image, step by step.

mod table;

use crate::{
    foreign,
    log::{Kind, Log, Op},
    mark::{self, Mark, PARENT},
};
use deltachain::{
    base::{
        Budget, GuestOffset, GuestRange, HostOffset, Result,
        seed::Seeded,
        units::{SECTOR_BYTES, count, index},
    },
    format::{self, Below, BitmapEdit, Creation, Format, Image, ParentName, Parts},
    io::{
        Access, File, Host, Kept,
        faulty::{Fault, SimHost},
        memory::MemoryFile,
    },
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use table::HISTORIES;
use table::SMALL_SECTORS;

/// A kind of image, and the operations that it can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The image's format.
    pub format: Format,
    /// Options of its making.
    pub options: &'static [(&'static str, &'static str)],
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// Size of the parent in sectors; 0 without one.
    pub parent: u64,
    /// Whether the size changes.
    pub is_resized: bool,
    /// What there is before the first step.
    pub before: Before,
    /// Steps that it takes besides the usual ones.
    pub deeds: &'static [Deed],
}

/// What there is before the first step; all of it is on the disk, and its making can no longer be cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing: making the image is the first step.
    Nothing,
    /// Clusters that an internal snapshot shares.
    Snapshot,
    /// Compressed clusters.
    Packed,
    /// Compressed clusters that an internal snapshot shares.
    PackedSnapshot,
    /// A persistent bitmap that says that nothing has changed.
    Bitmap,
    /// The same, and it is to stay sound.
    KeptBitmap,
}

/// A kind of step beyond writes, zeros, flushes and changes of size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Write a whole cluster compressed.
    Pack,
    /// Write from another file.
    Move,
    /// Adopt whole clusters of another file, and point to them.
    Adopt,
    /// Give free space back to the host.
    Release,
    /// Add or remove a persistent bitmap.
    Bitmap,
    /// Add sectors to the disk.
    Grow,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Write so many sectors at a sector.
    Write(u64, u64),
    /// Make so many sectors at a sector read as zeros.
    Zero(u64, u64, Kept),
    /// Make all before durable.
    Flush,
    /// Change the size to so many sectors.
    Resize(u64),
    /// Flush, close, open again.
    Reopen,
    /// Do this to the sectors from one on, as far as that concerns sectors.
    Do(Deed, u64, u64),
}

/// What goes wrong during a history.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup<'a> {
    /// An I/O that fails.
    pub fault: Option<Fault>,
    /// What becomes of barriers.
    pub barriers: Barriers<'a>,
}

/// What becomes of the barriers of a history.
#[derive(Clone, Copy, Debug, Default)]
pub enum Barriers<'a> {
    /// They work.
    #[default]
    Work,
    /// They work, and the log names who asked for each.
    Named,
    /// These do nothing.
    Forgotten(&'a [Barrier]),
}

/// One barrier of a history.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    /// The operation, as the log counts them.
    pub operation: usize,
    /// The number within that operation.
    pub number: u64,
}

/// The image's name on the machine.
pub(crate) const DISK: &str = "/disk";
/// The name of its external data file, if it has one.
pub(crate) const DATA: &str = "/data";
/// The bitmap that is there before; it records writes.
pub(crate) const BITMAP: &str = "before";
/// How much of a disk is marked at once in bitmaps that stay sound.
const REGION_BYTES: u64 = 16 << 10;
/// Who wrote what is there before, and those after it.
const BEFORE: Mark = 1 << 21;

/// Opens, or makes, an image's further files.
pub(crate) struct Beside<'a>(pub(crate) &'a SimHost);

impl Parts for Beside<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let path: PathBuf = Path::new("/").join(OsStr::from_bytes(name));
        match self.0.kind(&path)? {
            None => self.0.create(&path),
            Some(_) => self.0.open(&path, Access::Write),
        }
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

impl Below for History {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let range = at.range(count(buf.len())).outer(SECTOR_BYTES);
        let (first, sectors) = (range.start.bytes() / SECTOR_BYTES, range.bytes / SECTOR_BYTES);
        let mut shown = mark::sectors(PARENT, first, self.parent.saturating_sub(first).min(sectors));
        let skip = index(at.since(range.start));
        shown.resize(skip + buf.len(), 0);
        buf.copy_from_slice(shown.get(skip..).unwrap_or_default());
        Ok(())
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        Ok(range.start.bytes() >= self.parent * SECTOR_BYTES)
    }
}

/// Returns the guest range of a run of sectors.
pub(crate) fn range(sector: u64, sectors: u64) -> GuestRange {
    GuestOffset::new(sector * SECTOR_BYTES).range(sectors * SECTOR_BYTES)
}

impl History {
    /// Returns the history of that name; the failure lists those that there are.
    pub fn find(name: &str) -> std::result::Result<&'static Self, String> {
        let found = HISTORIES.iter().find(|history| history.name == name);
        found.ok_or_else(|| format!("known histories: {}", HISTORIES.map(|history| history.name).join(", ")))
    }

    /// Returns `length` seeded steps; every fifth or so makes what went before durable.
    pub fn steps(&self, seed: u64, length: usize) -> Vec<Step> {
        let mut seed = Seeded::new(seed);
        let mut size = self.sectors;
        let mut step = || {
            let at = seed.below(size);
            let most = [1, 8, 40, 200].get(usize::try_from(seed.below(4)).unwrap_or_default());
            let sectors = (1 + seed.below(most.copied().unwrap_or(8))).min(size - at);
            if !self.deeds.is_empty() && seed.chance(1, 4) {
                let deed = self.deeds.get(index(seed.below(count(self.deeds.len()))));
                return Step::Do(*deed.unwrap_or(&Deed::Release), at, sectors);
            }
            match seed.below(20) {
                0..10 => Step::Write(at, sectors),
                10..12 => Step::Zero(at, sectors, Kept::Space),
                12..15 => Step::Zero(at, sectors, Kept::Nothing),
                15 => Step::Reopen,
                16 if self.is_resized => {
                    size = self.sectors / 4 + seed.below(self.sectors * 2);
                    Step::Resize(size)
                }
                _ => Step::Flush,
            }
        };
        (0..length).map(|_| step()).collect()
    }

    /// Makes the image on a new machine, unless it is there before, and performs the steps.
    pub fn run(&self, steps: &[Step], setup: Setup<'_>) -> (SimHost, Log, Option<Arc<dyn Image>>) {
        let found = (self.before != Before::Nothing).then(|| self.prepare().ok()).flatten();
        let (host, log) = match &found {
            Some(host) => (host.clone(), Log::on(self.shown_before(), self.sectors)),
            None => (SimHost::new(), Log::on_nothing(self.parent, self.sectors)),
        };
        host.fail(setup.fault);
        let image = found.and_then(|_| self.open(&host).ok());
        let mut hand = Hand { history: self, host: &host, log, setup, image, next: 1 };
        if self.before == Before::Nothing {
            hand.create();
        }
        for step in steps {
            hand.take(step);
        }
        let (log, image) = (hand.log, hand.image);
        (host, log, image)
    }

    /// Makes the machine that the history starts from.
    fn prepare(&self) -> Result<SimHost> {
        let host = SimHost::new();
        let file = host.create(Path::new(DISK))?;
        let image = format::create(self.format, file, &self.creation(), &Beside(&host))?;
        let is_packed = matches!(self.before, Before::Packed | Before::PackedSnapshot);
        for (mark, sectors) in self.written_before() {
            let bytes = mark::sectors(mark, sectors.start, sectors.end - sectors.start);
            let place = range(sectors.start, 0).start;
            match image.pack(&bytes).filter(|_| is_packed) {
                Some(packed) => image.write_packed(place, &packed)?,
                None => image.write(place, &bytes, self)?,
            }
        }
        if self.has_bitmap() {
            image.edit_bitmap(&add(BITMAP))?;
        }
        image.flush()?;
        drop(image);
        if matches!(self.before, Before::Snapshot | Before::PackedSnapshot) {
            foreign::take_snapshot(&*host.open(Path::new(DISK), Access::Write)?)?;
        }
        Ok(host.twin())
    }

    /// The clusters that are written before the first step; every fourth one, and the last ones, are not.
    fn written_before(&self) -> impl Iterator<Item = (Mark, std::ops::Range<u64>)> {
        let starts = (0..self.sectors * 3 / 4).step_by(index(SMALL_SECTORS));
        let all = (BEFORE..).zip(starts.map(|at| at..at + SMALL_SECTORS));
        all.filter(|(mark, _)| !mark.is_multiple_of(4))
    }

    /// Who wrote what is shown before the first step.
    pub(crate) fn shown_before(&self) -> Vec<Mark> {
        let mut shown = vec![PARENT; index(self.parent.min(self.sectors))];
        shown.resize(index(self.sectors), 0);
        for (mark, sectors) in self.written_before() {
            let place = index(sectors.start)..index(sectors.end);
            shown.get_mut(place).into_iter().for_each(|sectors| sectors.fill(mark));
        }
        shown
    }

    /// Performs steps on an image that is there; `start` is what it shows, `next` the first mark.
    pub(crate) fn resume(&self, host: &SimHost, start: Vec<Mark>, steps: &[Step], next: Mark) -> Log {
        let size = count(start.len());
        let log = Log::on(start, size);
        let image = self.open(host).ok();
        let mut hand = Hand { history: self, host, log, setup: Setup::default(), image, next };
        hand.note_opened();
        for step in steps {
            hand.take(step);
        }
        hand.log
    }

    /// Opens the image for writing.
    pub(crate) fn open(&self, host: &SimHost) -> Result<Arc<dyn Image>> {
        let file = host.open(Path::new(DISK), Access::Write)?;
        let image = format::open(self.format, file, true, &Beside(host))?;
        if self.before == Before::KeptBitmap {
            image.keep_bitmaps(REGION_BYTES)?;
        }
        Ok(image)
    }

    /// Whether there is a bitmap that says what has changed since the history began.
    pub(crate) const fn has_bitmap(&self) -> bool {
        matches!(self.before, Before::Bitmap | Before::KeptBitmap)
    }

    fn creation(&self) -> Creation {
        let parent = (self.parent > 0).then(|| ParentName::new(b"parent".to_vec(), Some("raw".to_owned())));
        let options = self.options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Creation { size: self.sectors * SECTOR_BYTES, parent, options: options.collect() }
    }
}

/// Brings what `source` holds to `to`: whole clusters, pointed to from the last one on.
fn adopt(image: &dyn Image, to: GuestRange, source: &MemoryFile, below: &dyn Below) -> Result<()> {
    let adopted = image.adopt(source, HostOffset::new(0).range(to.bytes))?;
    let place = adopted.map_or(HostOffset::new(0).range(0), |adopted| adopted.place);
    let pieces: Vec<GuestRange> = to.pieces(image.unit()).collect();
    for piece in pieces.into_iter().rev() {
        let from = HostOffset::new(piece.start.since(to.start));
        let is_there = from.bytes() < place.bytes && image.point(piece, place.start.plus(from.bytes()))?;
        if !is_there {
            image.write_from(piece, source, from, below)?;
        }
    }
    Ok(())
}

fn add(name: &str) -> BitmapEdit {
    BitmapEdit::Add { name: name.to_owned(), granularity_bytes: Some(1024) }
}

/// Who performs the steps and writes them down.
struct Hand<'a> {
    history: &'a History,
    host: &'a SimHost,
    log: Log,
    setup: Setup<'a>,
    image: Option<Arc<dyn Image>>,
    next: Mark,
}

impl Hand<'_> {
    fn size(&self) -> u64 {
        self.image.as_ref().map_or(0, |image| image.size() / SECTOR_BYTES)
    }

    /// Performs one operation and notes what came of it.
    fn note(&mut self, op: Op, perform: impl FnOnce(&mut Self) -> Result<()>) {
        match self.setup.barriers {
            Barriers::Work => self.host.begin_operation([]),
            Barriers::Named => self.host.begin_named_operation(),
            Barriers::Forgotten(all) => {
                let number = self.log.ops.len();
                let own = all.iter().filter(|barrier| barrier.operation == number);
                self.host.begin_operation(own.map(|barrier| barrier.number));
            }
        }
        let start = self.host.events();
        let is_done = perform(self).is_ok();
        let end = is_done.then(|| self.host.events());
        self.log.ops.push(Op { start, end, barriers: self.host.barrier_names(), ..op });
    }

    fn create(&mut self) {
        let op = self.op(Kind::Create, 0..0, 0);
        self.note(op, |hand| {
            let file = hand.host.create(Path::new(DISK))?;
            let parts = Beside(hand.host);
            let made = format::create(hand.history.format, file, &hand.history.creation(), &parts)?;
            made.flush()?;
            hand.image = Some(made);
            hand.host.sync_folder(Path::new("/"))
        });
        if self.history.is_known_when_made() {
            self.note_opened();
        }
    }

    /// Notes what the image that is open says of itself.
    fn note_opened(&mut self) {
        // Whoever closed it may have failed to: what it says may go with the power then.
        if self.setup.fault.is_some_and(|fault| fault.at < self.host.ios()) {
            return;
        }
        let file = self.image.as_ref().and_then(|image| image.files().into_iter().next());
        let stamp = file.and_then(|file| self.history.stamp(self.host, file.as_ref()));
        self.log.opened.extend(stamp.map(|stamp| (self.host.events(), stamp)));
    }

    fn op(&self, kind: Kind, sectors: std::ops::Range<u64>, mark: Mark) -> Op {
        Op { kind, sectors, mark, size: self.size(), start: 0, end: None, barriers: Vec::new() }
    }

    fn take(&mut self, step: &Step) {
        let Some(image) = self.image.clone() else { return };
        let below = self.history;
        let inside = |at: u64, sectors: u64| at.min(self.size())..(at + sectors).min(self.size());
        match *step {
            Step::Write(at, sectors) => {
                let sectors = inside(at, sectors);
                let bytes = mark::sectors(self.next, sectors.start, sectors.end - sectors.start);
                let at = range(sectors.start, 0).start;
                let op = self.op(Kind::Write, sectors, self.next);
                self.note(op, |_| image.write(at, &bytes, below));
                self.next += 1;
            }
            Step::Zero(at, sectors, kept) => {
                let sectors = inside(at, sectors);
                let zeroed = range(sectors.start, sectors.end - sectors.start);
                let op = self.op(Kind::Zero, sectors, 0);
                self.note(op, |_| image.zero(zeroed, kept, below));
            }
            Step::Flush => {
                let op = self.op(Kind::Flush, 0..0, 0);
                self.note(op, |_| image.flush());
            }
            Step::Resize(size) => {
                let cut = self.size().min(size)..self.size().max(size);
                let op = Op { size, ..self.op(Kind::Resize, cut, 0) };
                self.note(op, |_| image.resize(size * SECTOR_BYTES, below));
            }
            Step::Do(deed, at, sectors) => self.do_deed(deed, inside(at, sectors), &image),
            Step::Reopen => {
                let op = self.op(Kind::Flush, 0..0, 0);
                self.note(op, |_| image.flush());
                let op = self.op(Kind::Reopen, 0..0, 0);
                self.note(op, |hand| {
                    drop((image, hand.image.take()));
                    hand.image = Some(hand.history.open(hand.host)?);
                    Ok(())
                });
                self.note_opened();
            }
        }
    }

    fn do_deed(&mut self, deed: Deed, sectors: std::ops::Range<u64>, image: &Arc<dyn Image>) {
        let (below, mark) = (self.history, self.next);
        self.next += 1;
        match deed {
            Deed::Pack => {
                let unit = image.unit() / SECTOR_BYTES;
                let start = sectors.start / unit * unit;
                let sectors = start..(start + unit).min(self.size());
                let bytes = mark::sectors(mark, start, sectors.end - start);
                let Some(packed) = image.pack(&bytes) else { return };
                let op = self.op(Kind::Pack, sectors, mark);
                self.note(op, |_| image.write_packed(range(start, 0).start, &packed));
            }
            Deed::Move => {
                let source = MemoryFile::new("source");
                let bytes = mark::sectors(mark, sectors.start, sectors.end - sectors.start);
                let to = range(sectors.start, sectors.end - sectors.start);
                let op = self.op(Kind::Move, sectors, mark);
                self.note(op, |_| {
                    source.write_at(HostOffset::new(0), &bytes)?;
                    image.write_from(to, &source, HostOffset::new(0), below).map(drop)
                });
            }
            Deed::Adopt => {
                let whole = range(sectors.start, sectors.end - sectors.start).inner(image.unit());
                let source = MemoryFile::new("source");
                let first = whole.start.bytes() / SECTOR_BYTES;
                let bytes = mark::sectors(mark, first, whole.bytes / SECTOR_BYTES);
                let op = self.op(Kind::Move, first..first + whole.bytes / SECTOR_BYTES, mark);
                self.note(op, |_| {
                    source.write_at(HostOffset::new(0), &bytes)?;
                    adopt(image.as_ref(), whole, &source, below)
                });
            }
            Deed::Release => {
                let op = self.op(Kind::Release, 0..0, 0);
                self.note(op, |_| image.release().map(drop));
            }
            Deed::Grow => self.take(&Step::Resize(self.size() + 1 + sectors.end - sectors.start)),
            Deed::Bitmap => {
                let op = self.op(Kind::Bitmap, 0..0, 0);
                let name = format!("new{}", sectors.start % 3);
                self.note(op, |_| {
                    let is_there = image.details()?.bitmaps.iter().any(|bitmap| bitmap.name == name);
                    image.edit_bitmap(&if is_there { BitmapEdit::Remove { name } } else { add(&name) })
                });
            }
        }
    }
}
