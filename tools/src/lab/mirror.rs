//! The mirror of a live fold with real threads: guests, the copier, and files that take their time.
//!
//! Each sector carries the number of the write that it comes from. When all is quiet both legs must be equal, and each
//! sector must hold the last acknowledged write to it, or one that was under way at the same time.

use deltachain::{
    base::{
        self, GuestOffset, GuestRange, HostOffset, HostRange,
        seed::Seeded,
        units::{count, index},
    },
    chain::{Chain, Layer, View},
    disk::Disk,
    format::{self, Creation, Format, NoParts, ParentName},
    io::{Access, Descriptor, File, Kept, Run, Witness, memory::MemoryFile},
    job::live::{
        Advance, Buffers, Leg, LiveDisk, Notes,
        mirror::{Grain, Mirror, Noted},
    },
    map::RangeSet,
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

const SIZE: u64 = 32 << 10;
const SECTOR: u64 = 512;
const SECTORS: usize = 64;
const GUESTS: u64 = 3;
const WRITES: u64 = 24;
const GRAIN: Grain = Grain { block_bytes: 4096, region_bytes: 8192 };

/// How long a target hangs in rounds in which it does.
const HANGS: Duration = Duration::from_millis(80);

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Disks folded.
    pub rounds: u64,
    /// Writes that guests made meanwhile.
    pub writes: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} folds under {} writes, both legs equal each time", self.rounds, self.writes)
    }
}

/// Folds seeded disks under guests until they have written `writes` times.
pub fn search(seed: u64, writes: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while tally.writes < writes {
        let seed = seed + tally.rounds;
        round(seed).map_err(|wrong| format!("seed {seed}: {wrong}"))?;
        tally = Tally { rounds: tally.rounds + 1, writes: tally.writes + GUESTS * WRITES };
    }
    Ok(tally)
}

/// A file that takes its time, so that others come in between.
#[derive(Debug)]
struct Slow {
    file: MemoryFile,
    naps: AtomicU64,
    /// While this is set, nothing that changes it returns.
    hangs: Arc<AtomicBool>,
}

impl Slow {
    fn nap(&self) {
        let mut random = Seeded::new(self.naps.fetch_add(1, SeqCst));
        match random.below(8) {
            0 => thread::sleep(Duration::from_micros(random.below(120))),
            1..4 => thread::yield_now(),
            _ => {}
        }
    }
}

impl Slow {
    fn hang(&self) {
        while self.hangs.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl File for Slow {
    fn path(&self) -> &Path {
        self.file.path()
    }
    fn bytes(&self) -> base::Result<u64> {
        self.file.bytes()
    }
    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> base::Result<()> {
        self.nap();
        self.file.read_at(at, buf)
    }
    fn write_at(&self, at: HostOffset, buf: &[u8]) -> base::Result<()> {
        self.nap();
        self.hang();
        self.file.write_at(at, buf)?;
        self.nap();
        Ok(())
    }
    fn zero(&self, range: HostRange, kept: Kept) -> base::Result<()> {
        self.nap();
        self.hang();
        self.file.zero(range, kept)
    }
    fn zeroes_fast(&self, kept: Kept) -> bool {
        self.file.zeroes_fast(kept)
    }
    fn allocate(&self, range: HostRange) -> base::Result<()> {
        self.file.allocate(range)
    }
    fn set_bytes(&self, bytes: u64) -> base::Result<()> {
        self.file.set_bytes(bytes)
    }
    fn flush(&self) -> base::Result<()> {
        self.nap();
        self.hang();
        self.file.flush()
    }
    fn flush_with_time(&self) -> base::Result<()> {
        self.file.flush_with_time()
    }
    fn run_at(&self, at: HostOffset) -> base::Result<Run> {
        self.file.run_at(at)
    }
    fn witness(&self) -> base::Result<Witness> {
        self.file.witness()
    }
    fn allocated_bytes(&self) -> base::Result<u64> {
        self.file.allocated_bytes()
    }
    fn descriptor(&self) -> Option<Descriptor> {
        self.file.descriptor()
    }
    fn is_device(&self) -> bool {
        self.file.is_device()
    }
    fn set_access(&self, access: Access) -> base::Result<()> {
        self.file.set_access(access)
    }
}

/// A journal in memory.
#[derive(Debug)]
struct Remembered;

impl Notes for Remembered {
    fn note(&mut self, _said: &Noted) -> base::Result<()> {
        thread::yield_now();
        Ok(())
    }

    fn give_up(&mut self) -> base::Result<()> {
        Ok(())
    }
}

fn layer(name: &str, parent: Option<&str>, seed: u64, hangs: &Arc<AtomicBool>) -> base::Result<Layer> {
    let (naps, hangs) = (AtomicU64::new(seed << 20), Arc::clone(hangs));
    let file: Arc<dyn File> = Arc::new(Slow { file: MemoryFile::new(name), naps, hangs });
    let parent = parent.map(|name| ParentName::new(name.into(), Some("qcow2".to_owned())));
    let options = vec![("cluster_size".to_owned(), "1024".to_owned())];
    let image = format::create(Format::Qcow2, file, &Creation { size: SIZE, parent, options }, &NoParts)?;
    Ok(Layer { path: PathBuf::from(name), is_stated: true, image })
}

/// Base, middle and top, the top first; all of them written in part.
fn layers(random: &mut Seeded, seed: u64, hangs: &Arc<AtomicBool>) -> base::Result<Vec<Layer>> {
    let base = layer("base", None, seed, hangs)?;
    let middle = layer("middle", Some("base"), seed + 1, &Arc::default())?;
    let top = layer("top", Some("middle"), seed + 2, &Arc::default())?;
    let all = vec![top, middle, base];
    for depth in (0..all.len()).rev() {
        let below = View::new(all.get(depth + 1..).unwrap_or_default());
        let image = all.get(depth).map(|layer| &layer.image);
        for _ in 0..6 {
            let range = somewhere(random);
            image.map_or(Ok(()), |image| {
                image.write(range.start, &sectors(range, 1 + count(depth)), &below)
            })?;
        }
    }
    Ok(all)
}

fn somewhere(random: &mut Seeded) -> GuestRange {
    let start = random.below(count(SECTORS));
    let most = if random.chance(1, 5) { 24 } else { 3 };
    let bytes = (1 + random.below(most)).min(count(SECTORS) - start) * SECTOR;
    GuestOffset::new(start * SECTOR).range(bytes)
}

fn sectors(range: GuestRange, number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(index(range.bytes / 8))
}

/// A write, with the moments before and after it.
#[derive(Clone, Copy, Debug)]
struct Told {
    range: GuestRange,
    number: u64,
    begun: u64,
    ended: u64,
}

fn guest(disk: &LiveDisk, clock: &AtomicU64, seed: u64, first: u64) -> base::Result<Vec<Told>> {
    let mut random = Seeded::new(seed);
    let mut told = Vec::new();
    for number in first..first + WRITES {
        let range = somewhere(&mut random);
        let begun = clock.fetch_add(1, SeqCst);
        let number = if random.chance(1, 5) {
            disk.zero(range, if random.chance(1, 2) { Kept::Space } else { Kept::Nothing })?;
            0
        } else {
            disk.write(range.start, &sectors(range, number))?;
            number
        };
        let ended = clock.fetch_add(1, SeqCst);
        told.push(Told { range, number, begun, ended });
        if random.chance(1, 10) {
            disk.flush()?;
        }
    }
    Ok(told)
}

/// Copies until nothing is left, with a checkpoint now and then.
fn copy(leg: &Leg, current: &Arc<Chain>, run: &View, seed: u64) -> base::Result<()> {
    let mut runs = Vec::new();
    run.runs(GuestOffset::new(0).range(SIZE), &mut runs)?;
    thread::yield_now();
    let list: RangeSet = runs.iter().filter(|run| run.layer.is_some()).map(|run| run.range).collect();
    leg.survey(&list);
    let (mut at, mut buffers, mut random) = (GuestOffset::new(0), Buffers::default(), Seeded::new(seed));
    while let Advance::Moved { next, .. } = leg.advance(current, at, &mut buffers)? {
        at = next;
        if random.chance(1, 4) {
            leg.checkpoint(current, 1)?;
        }
    }
    leg.checkpoint(current, 0)
}

fn round(seed: u64) -> Result<(), String> {
    let fail = |error: base::Error| error.to_string();
    let mut random = Seeded::new(seed);
    let (does_hang, hangs) = (seed % 8 == 7, Arc::default());
    let all = layers(&mut random, seed, &hangs).map_err(fail)?;
    let target = all.last().map(|base| Arc::clone(&base.image)).ok_or("no base")?;
    let run = View::new(all.get(..2).unwrap_or_default());
    let disk = LiveDisk::new(Chain::of_moving(all));
    let current = disk.chain();
    let mirror = Mirror::new(SIZE, GRAIN, &Noted::default());
    // Every other one by threads of the leg's own.
    let patience = seed.is_multiple_of(2).then(|| Duration::from_mins(1));
    let patience = patience.or(does_hang.then_some(HANGS / 4));
    let leg = Arc::new(Leg::new(Arc::clone(&target), View::new(&[]), mirror, Box::new(Remembered), patience));
    disk.take_leg(&leg);
    let (clock, mut told) = (AtomicU64::new(0), Vec::new());
    let outcome: Result<(), base::Error> = thread::scope(|scope| {
        let (disk, clock) = (&disk, &clock);
        let start =
            |number: u64| scope.spawn(move || guest(disk, clock, seed ^ (number << 32), 1000 * number + 100));
        let guests: Vec<_> = (1..=GUESTS).map(start).collect();
        if does_hang {
            scope.spawn(|| {
                thread::sleep(HANGS / 40);
                hangs.store(true, SeqCst);
                thread::sleep(HANGS);
                hangs.store(false, SeqCst);
            });
        }
        let copied = copy(&leg, &current, &run, seed);
        if !does_hang {
            copied?;
        }
        for guest in guests {
            told.extend(guest.join().unwrap_or_else(|_| Err(base::Error::invalid("a guest panicked")))?);
        }
        Ok(())
    });
    outcome.map_err(fail)?;
    leg.check_quiet().map_err(fail)?;
    let is_out = leg.check();
    if !does_hang {
        is_out.as_ref().map_err(ToString::to_string)?;
    }
    let (mut shown, mut mirrored) = (vec![0; index(SIZE)], vec![0; index(SIZE)]);
    disk.read(GuestOffset::new(0), &mut shown).map_err(fail)?;
    target.read(GuestOffset::new(0), &mut mirrored, &View::new(&[])).map_err(fail)?;
    for sector in 0..SECTORS {
        let at = GuestOffset::new(count(sector) * SECTOR);
        let bytes =
            |all: &[u8]| all.chunks(index(SECTOR)).nth(sector).map(<[u8]>::to_vec).unwrap_or_default();
        let (here, there) = (bytes(&shown), bytes(&mirrored));
        if here != there && is_out.is_ok() {
            return Err(format!("sector {sector} differs between the legs"));
        }
        judge(at, &here, &told)?;
    }
    Ok(())
}

/// A sector holds a write that no other one followed.
fn judge(at: GuestOffset, bytes: &[u8], told: &[Told]) -> Result<(), String> {
    let here: Vec<&Told> = told.iter().filter(|one| one.range.contains(at)).collect();
    let number = bytes.first_chunk().map(|first| u64::from_le_bytes(*first)).unwrap_or_default();
    if number.to_le_bytes().repeat(index(SECTOR / 8)) != bytes {
        return Err(format!("the sector at {at:#x} is torn"));
    }
    let is_last = |one: &&&Told| one.number == number && !here.iter().any(|other| other.begun > one.ended);
    if here.is_empty() || here.iter().any(|one| is_last(&one)) {
        return Ok(());
    }
    Err(format!("the sector at {at:#x} shows write {number}, which others followed"))
}
