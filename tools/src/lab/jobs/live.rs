//! Consolidations of a disk in use, of its head or of layers below it: a guest writes between any two steps, and notes
//! what it was told.
//!
//! The guest's notes lie on the same machine, each durable before the guest goes on, so that every crash has with it
//! what must be true there: what was begun may show, what was acknowledged before a flush that returned must.

use super::{
    Scene,
    world::{FOLDER, World, arc, check, judge_seals, ledger, path, reading, shows, view},
};
use deltachain::{
    base::{self, GuestOffset, GuestRange, HostOffset, seed::Seeded, units::index},
    chain::{Chain, Opening},
    disk::Disk,
    format::{self, Format},
    io::{
        Access, File, Host, Kept,
        faulty::{SimHost, Waits},
    },
    job::{
        Progress,
        consolidate::{
            Abandonment, Consolidation, LiveConsolidation, LivePace, NewImage, Pace, Patience, Request,
            has_landed,
        },
        live::LiveDisk,
    },
    store::Journal,
};
use std::{path::Path, sync::Arc, thread, time::Duration};

pub(super) const PACE: Pace = Pace { move_bytes: 4096, mark_bytes: 6000, adopted_pieces: 2 };
pub(super) const LIVE_PACE: LivePace = LivePace {
    block_bytes: 4096,
    mark_bytes: 6000,
    mark_pause: std::time::Duration::ZERO,
    share: 1.0,
    patience: Patience::Endless,
};
const IMPATIENT: LivePace = LivePace { patience: Patience::Always(Duration::from_millis(20)), ..LIVE_PACE };
const SECTOR: u64 = 512;
const NOTES: &str = "/told";
/// A note: what, the first sector, how many, the byte.
const NOTE_BYTES: u64 = 8;

/// A seeded chain, and what is to be done with it while a guest writes.
#[derive(Debug)]
pub(super) struct Live {
    world: World,
    /// The number of the topmost layer that is folded; the last one is the guest's head.
    run: usize,
    target: usize,
    keeps_target_name: bool,
    /// Whether it is folded into a new image.
    is_new: bool,
    /// Whether the target hangs in a fold before.
    hangs: bool,
    seed: u64,
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    let mut random = Seeded::new(seed);
    let world = World::new(&mut random, seed).map_err(|e| e.to_string())?;
    let target = index(random.below(world.layers.len() as u64 - 1));
    let keeps_target_name = random.chance(1, 4);
    let is_new = seed % 3 == 2;
    let keeps_target_name = keeps_target_name && !is_new;
    let hangs = seed % 7 == 3 && !is_new;
    let head = world.layers.len() - 1;
    let is_below = matches!(seed % 5, 1 | 3) && head > 1 && !is_new && !hangs;
    let run = if is_below { 1 + index(random.below(head as u64 - 1)) } else { head };
    let (target, keeps_target_name) = (target % run, keeps_target_name && !is_below);
    Ok(Box::new(Live { world, run, target, keeps_target_name, is_new, hangs, seed }))
}

/// A guest, and where it keeps its notes.
pub(super) struct Guest {
    pub(super) random: Seeded,
    notes: Arc<dyn File>,
    noted: u64,
    requests: u8,
}

/// What a note says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Begun = 1,
    Acknowledged = 2,
    Flushed = 3,
}

impl Guest {
    pub(super) fn new(host: &SimHost, seed: u64) -> base::Result<Self> {
        let notes = host.create(Path::new(NOTES))?;
        host.sync_folder(Path::new("/"))?;
        Ok(Self { random: Seeded::new(seed ^ 0x9e37), notes, noted: 0, requests: 0 })
    }

    fn note(&mut self, what: What, sectors: (u64, u64), byte: u8) -> base::Result<()> {
        let small = |n: u64| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
        let ([a, b], [c, d]) = (small(sectors.0), small(sectors.1));
        self.notes
            .write_at(HostOffset::new(self.noted * NOTE_BYTES), &[what as u8, byte, a, b, c, d, 0, 0])?;
        self.noted += 1;
        self.notes.flush()
    }

    /// One request, of any kind.
    pub(super) fn act(&mut self, disk: &dyn Disk) -> base::Result<()> {
        let all = disk.size() / SECTOR;
        if self.random.chance(1, 5) {
            disk.flush()?;
            return self.note(What::Flushed, (0, 0), 0);
        }
        let start = self.random.below(all);
        let most = if self.random.chance(1, 3) { all - start } else { (all - start).min(3) };
        let sectors = (start, 1 + self.random.below(most));
        let range = GuestOffset::new(start * SECTOR).range(sectors.1 * SECTOR);
        self.requests = self.requests.wrapping_add(1);
        let byte = if self.random.chance(1, 4) { 0 } else { 201 + self.requests % 50 };
        self.note(What::Begun, sectors, byte)?;
        change(disk, range, byte, self.random.chance(1, 2))?;
        self.note(What::Acknowledged, sectors, byte)
    }
}

fn change(disk: &dyn Disk, range: GuestRange, byte: u8, keeps: bool) -> base::Result<()> {
    match byte {
        0 => disk.zero(range, if keeps { Kept::Space } else { Kept::Nothing }),
        _ => disk.write(range.start, &vec![byte; index(range.bytes)]),
    }
}

/// Returns, for each sector, the bytes that it may show.
fn allowed(host: &SimHost, first: &[u8]) -> base::Result<Vec<Vec<Vec<u8>>>> {
    let mut may: Vec<Vec<Vec<u8>>> = first.chunks(index(SECTOR)).map(|bytes| vec![bytes.to_vec()]).collect();
    if host.kind(Path::new(NOTES))?.is_none() {
        return Ok(may);
    }
    let notes = host.open(Path::new(NOTES), Access::ReadShared)?;
    let mut bytes = vec![0; index(notes.bytes()?)];
    notes.read_at(HostOffset::new(0), &mut bytes)?;
    // How many of what a sector may show are acknowledged: the last of them is what a flush makes certain.
    let mut told = vec![0; may.len()];
    for note in bytes.chunks(index(NOTE_BYTES)) {
        let &[what, byte, a, b, c, d, ..] = note else { break };
        let (start, count) = (u16::from_le_bytes([a, b]).into(), u16::from_le_bytes([c, d]).into());
        for (one, told) in may.iter_mut().zip(&mut told).skip(start).take(count) {
            match what {
                1 => one.push(vec![byte; one.first().map_or(0, Vec::len)]),
                _ => *told = one.len() - 1,
            }
        }
        if what == What::Flushed as u8 {
            for (one, told) in may.iter_mut().zip(&mut told) {
                one.drain(..std::mem::take(told));
            }
        }
    }
    Ok(may)
}

/// Says so if a disk that showed `first` shows something that its guest's notes do not allow.
pub(super) fn judge_told(host: &SimHost, place: &Path, first: &[u8]) -> Result<(), String> {
    let shown = view(host, place).map_err(|e| format!("{} does not open: {e}", place.display()))?;
    let may = allowed(host, first).map_err(|e| e.to_string())?;
    for (sector, (bytes, may)) in shown.chunks(index(SECTOR)).zip(may).enumerate() {
        if !may.iter().any(|one| one == bytes) {
            let may: Vec<_> = may.iter().map(|one| one.first().copied().unwrap_or_default()).collect();
            let shown = bytes.first().copied().unwrap_or_default();
            return Err(format!("sector {sector} shows {shown}; it may show {may:?}"));
        }
    }
    Ok(())
}

impl Live {
    pub(super) fn opening(host: &SimHost) -> Opening {
        Opening::writing().with_ledger(ledger(host)).for_live_use()
    }

    pub(super) fn disk(host: &SimHost) -> base::Result<Arc<LiveDisk>> {
        Ok(Arc::new(LiveDisk::new(Chain::open(&arc(host), &path("top"), &Self::opening(host))?)))
    }

    fn request(&self) -> Request {
        let into = Some(self.world.path(self.target));
        let new = NewImage { path: path("new"), format: Some(Format::Qcow2), options: vec![] };
        let new = self.is_new.then_some(new);
        Request { into, new, keeps_target_name: self.keeps_target_name, ..Request::default() }
    }

    fn is_below(&self) -> bool {
        self.run + 1 < self.world.layers.len()
    }

    fn prepare(&self, host: &SimHost, disk: &Arc<LiveDisk>) -> base::Result<LiveConsolidation> {
        let (opening, request) = (Self::opening(host), self.request());
        if !self.is_below() {
            return LiveConsolidation::prepare(&arc(host), disk, &opening, &request);
        }
        // Each layer above the run is there still.
        let depth = self.world.layers.len() - 1 - self.run;
        LiveConsolidation::prepare_below(&arc(host), disk, depth, &opening, &request)
    }

    fn result(&self) -> &str {
        if self.is_new {
            return "new";
        }
        match self.world.layers.get(self.target).filter(|_| self.keeps_target_name) {
            Some(target) => &target.name,
            None => "top",
        }
    }

    /// The name that opens the disk now.
    fn name(&self, host: &SimHost) -> &str {
        if self.is_new {
            return if host.kind(&path("new")).is_ok_and(|kind| kind.is_some()) { "new" } else { "top" };
        }
        let top = host.open(&path("top"), Access::ReadShared);
        let is_head = top.is_ok_and(|file| !format::is_retired(file.as_ref()).unwrap_or(true));
        if is_head { "top" } else { self.result() }
    }

    /// A fold whose target hangs when all is copied: the guest goes on, and it is taken back once that is over.
    fn hang(&self, host: &SimHost, disk: &Arc<LiveDisk>, guest: &mut Guest) -> base::Result<()> {
        let job = self.prepare(host, disk)?;
        let mut folding = job.begin(IMPATIENT)?;
        while folding.step()?.is_some() {
            guest.act(disk.as_ref())?;
        }
        folding.checkpoint()?;
        host.hold(&self.world.path(self.target), Waits::Changes)?;
        let told = (0..3).try_for_each(|_| guest.act(disk.as_ref())).and_then(|()| disk.flush());
        host.release();
        told?;
        folding.conclude()
    }

    fn stands(&self, host: &SimHost) -> Result<bool, String> {
        let found = Journal::find(&arc(host), &self.world.path(self.run));
        found.map(|found| found.is_some()).map_err(|e| e.to_string())
    }

    fn is_over(&self, host: &SimHost) -> bool {
        let is_raw = self.world.layers.get(self.target).is_some_and(|layer| layer.format == Format::Raw);
        let most = self.target + 1 + usize::from(is_raw && !self.keeps_target_name);
        if self.is_below() {
            let chain = Chain::open(&arc(host), &self.world.path(self.run), &Opening::reading());
            return chain.is_ok_and(|chain| chain.layers().len() <= most);
        }
        let chain = Chain::open(&arc(host), &path(self.name(host)), &Opening::reading());
        self.name(host) != "top" || !self.is_new && chain.is_ok_and(|chain| chain.layers().len() <= most)
    }

    /// The point in time that stays below the head shows what it showed, and no layer is sealed as something else.
    fn judge_below(&self, host: &SimHost) -> Result<(), String> {
        let Some(then) = self.world.views.get(self.run).filter(|_| self.is_below()) else { return Ok(()) };
        shows(host, &self.world.path(self.run), then)?;
        judge_seals(host, Path::new(FOLDER))
    }

    /// Ends what was cut off below the head, or gives it up and begins again, as a start of the daemon does.
    fn go_on_below(&self, host: &SimHost) -> base::Result<()> {
        let run = self.world.path(self.run);
        if let Some(journal) = Journal::find(&arc(host), &run)? {
            if has_landed(host, &journal)? {
                let job = Consolidation::prepare(&arc(host), &run, &reading(host), &Request::default())?;
                return job.run(PACE, &Progress::default()).map(drop);
            }
            Abandonment::prepare(&arc(host), &run, &reading(host))?.run()?;
        }
        self.prepare(host, &Self::disk(host)?)?.run(LIVE_PACE, &Progress::default()).map(drop)
    }

    /// Goes on with the job, or begins it: every other time under a disk in use.
    fn go_on(&self, host: &SimHost) -> base::Result<()> {
        if self.is_below() {
            return self.go_on_below(host);
        }
        if self.seed.is_multiple_of(2)
            && self.name(host) == "top"
            && let Ok(disk) = Self::disk(host)
            && let Ok(job) = self.prepare(host, &disk)
        {
            return job.run(LIVE_PACE, &Progress::default()).map(drop);
        }
        let job = Consolidation::prepare(&arc(host), &path("top"), &reading(host), &self.request())?;
        job.run(PACE, &Progress::default()).map(drop)
    }
}

impl Scene for Live {
    fn start(&self) -> &SimHost {
        &self.world.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let disk = Self::disk(host)?;
        let mut guest = Guest::new(host, self.seed)?;
        let job = self.prepare(host, &disk)?;
        guest.act(disk.as_ref())?;
        if self.hangs
            && let Err(error) = self.hang(host, &disk, &mut guest)
        {
            drop((job, disk));
            // What hung has been let go, and lets go of the target in its own time.
            while host.open(&self.world.path(self.target), Access::Write).is_err() {
                thread::sleep(Duration::from_millis(1));
            }
            return Err(error);
        }
        let mut folding = job.begin(LIVE_PACE)?;
        let mut fold = || {
            loop {
                for _ in 0..guest.random.below(4) {
                    guest.act(disk.as_ref())?;
                }
                if guest.random.chance(1, 4) {
                    folding.checkpoint()?;
                } else if folding.step()?.is_none() {
                    break;
                }
            }
            folding.checkpoint()?;
            guest.act(disk.as_ref())?;
            folding.record(&Progress::default())
        };
        let recorded = fold();
        if recorded.is_err() && !folding.has_landed()? {
            folding.retreat()?;
            // The guest goes on as if there had been no job.
            guest.act(disk.as_ref())?;
            return recorded;
        }
        guest.act(disk.as_ref())?;
        folding.end()?;
        guest.act(disk.as_ref())?;
        disk.flush()
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        let name = self.name(host);
        judge_told(host, &path(name), self.world.top())?;
        self.judge_below(host)?;
        if is_done && (self.stands(host)? || !self.is_over(host)) {
            return Err("is not over, although that was acknowledged".to_owned());
        }
        Ok(())
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        let before = view(host, &path(self.name(host))).map_err(|e| e.to_string())?;
        if self.stands(host)? || !self.is_over(host) {
            self.go_on(host).map_err(|e| format!("the resume failed: {e}"))?;
        }
        let result = path(self.name(host));
        if view(host, &result).map_err(|e| e.to_string())? != before {
            return Err("shows something else than before the resume".to_owned());
        }
        if self.stands(host)? {
            return Err("a journal is left".to_owned());
        }
        self.judge_below(host)?;
        if self.is_below() {
            check(host, &self.world.path(self.run))?;
        }
        // Nobody may have had the head since: who serves it again puts right what the cut left of a VHD's footers.
        drop(Chain::open(&arc(host), &result, &Self::opening(host)).map_err(|e| e.to_string())?);
        check(host, &result)
    }
}
