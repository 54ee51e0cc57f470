//! Consolidations of seeded chains: the power goes behind every event of a job and of its resume, each I/O
//! fails, barriers are forgotten. At every moment TOP's name (or, after the record, the result's) opens what
//! TOP showed, under the rules of records and claims.

use deltachain::{
    base::{self, GuestOffset, seed::Seeded, units::index},
    chain::{Chain, Opening, freeze, join},
    disk::Disk,
    format::{self, Creation, Format, NoParts, ParentName, Repair},
    io::{
        Access, Host, Kept,
        faulty::{Failure, Fault, SimHost, crash_states},
    },
    job::{
        Progress,
        consolidate::{Consolidation, NewImage, Pace, Request},
    },
    store::{Journal, Ledger},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

const PACE: Pace = Pace { move_bytes: 4096, mark_bytes: 6000 };
const FOLDER: &str = "/vm";

/// What becomes of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The target takes TOP's name, or an empty TOP stays over it.
    TopsName,
    /// The target keeps its name.
    TargetsName,
    /// A new image.
    New,
}

/// One layer.
#[derive(Clone, Debug)]
struct Made {
    name: String,
    format: Format,
    cluster: u64,
    size: u64,
    /// Where, how many bytes, which byte; zero is marked as such.
    writes: Vec<(u64, u64, u8)>,
}

/// A seeded chain, and what is to be done with it.
#[derive(Clone, Debug)]
pub struct Scene {
    seed: u64,
    /// The base first.
    layers: Vec<Made>,
    /// The layer that the run goes into.
    target: usize,
    end: End,
}

impl Scene {
    /// Makes up the scene that belongs to `seed`.
    pub fn of(seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let depth = 2 + index(random.below(3));
        let usual = 1024 * (12 + random.below(16));
        let layers: Vec<Made> = (0..depth).map(|number| layer(number, depth, usual, &mut random)).collect();
        let target = index(random.below(depth as u64 - 1));
        let end = match random.below(4) {
            0 => End::TargetsName,
            1 => End::New,
            _ => End::TopsName,
        };
        Self { seed, layers, target, end }
    }

    /// Builds the chain on a machine whose trace starts afterwards; returns what TOP shows, too.
    fn build(&self) -> base::Result<(SimHost, Vec<u8>)> {
        let host = SimHost::new();
        host.make_folder(Path::new(FOLDER))?;
        host.sync_folder(Path::new("/"))?;
        for (number, layer) in self.layers.iter().enumerate() {
            let parent = number.checked_sub(1).and_then(|below| self.layers.get(below));
            layer.make(&host, parent)?;
        }
        host.sync_folder(Path::new(FOLDER))?;
        // One change that waits: the last state of the trace is then the machine with everything on its disk.
        drop(host.create(Path::new("/waits"))?);
        let host = crash_states(&host.trace(), 0, 0).last().map_or(host, |crash| crash.host);
        let view = view(&host, "top")?;
        Ok((host, view))
    }

    fn request(&self) -> Request {
        let new = (self.end == End::New).then(|| NewImage {
            path: path("new"),
            format: Some(Format::Qcow2),
            options: vec![("cluster_size".into(), "1024".into())],
        });
        let into = self.layers.get(self.target).map(|layer| path(&layer.name));
        Request { into, new, keeps_target_name: self.end == End::TargetsName, ..Request::default() }
    }

    fn fold(&self, host: &SimHost) -> base::Result<()> {
        let opening = Opening::reading().with_ledger(ledger(host));
        let job = Consolidation::prepare(&arc(host), &path("top"), &opening, &self.request())?;
        job.run(PACE, &Progress::default()).map(drop)
    }

    fn result(&self) -> &str {
        match (self.end, self.layers.get(self.target)) {
            (End::New, _) => "new",
            (End::TargetsName, Some(target)) => &target.name,
            _ => "top",
        }
    }

    /// The names that are left in the end, sorted.
    fn left(&self) -> Vec<String> {
        let raw_stays = self.layers.get(self.target).is_some_and(|target| target.format == Format::Raw);
        let below = match self.end {
            End::New => self.layers.len(),
            End::TargetsName => self.target + 1,
            End::TopsName => self.target + usize::from(raw_stays),
        };
        let mut names: Vec<String> = self.layers.iter().take(below).map(|layer| layer.name.clone()).collect();
        names.extend((self.end != End::TargetsName).then(|| self.result().to_owned()));
        names.sort();
        names.dedup();
        names
    }

    /// A name that must open the disk now does.
    fn judge(&self, host: &SimHost, expected: &[u8]) -> Result<(), String> {
        let top = host.open(&path("top"), Access::ReadShared);
        let is_head = top.is_ok_and(|file| !format::is_retired(file.as_ref()).unwrap_or(true));
        let name = if is_head { "top" } else { self.result() };
        let shown = view(host, name).map_err(|e| format!("{name} does not open: {e}"))?;
        if shown == expected { Ok(()) } else { Err(format!("{name} shows something else")) }
    }

    /// Goes on until the job is done, or does it all if nothing of it is left; then the result is there, and
    /// nothing that should be gone.
    fn finish(&self, host: &SimHost, expected: &[u8]) -> Result<(), String> {
        let stands = Journal::find(&arc(host), &path("top")).map_err(|e| e.to_string())?.is_some();
        if stands || !self.is_over(host) {
            self.fold(host).map_err(|e| format!("the resume failed: {e}"))?;
        }
        let result = self.result();
        let shown = view(host, result).map_err(|e| format!("{result} does not open: {e}"))?;
        if shown != expected {
            return Err(format!("the result, {result}, shows something else"));
        }
        let names = names(host)?;
        if names != self.left() {
            return Err(format!("left are {names:?}, not {:?}", self.left()));
        }
        check(host, result)
    }

    fn is_over(&self, host: &SimHost) -> bool {
        names(host).is_ok_and(|names| names == self.left()) && {
            let depth = Chain::open(&arc(host), &path(self.result()), &Opening::reading());
            let below = self.target + 1 + usize::from(self.left().len() > self.target + 1);
            self.end == End::New || depth.is_ok_and(|chain| chain.layers().len() <= below)
        }
    }
}

/// The names in the folder that are not hidden, sorted.
fn names(host: &SimHost) -> Result<Vec<String>, String> {
    let entries = host.list(Path::new(FOLDER)).map_err(|e| e.to_string())?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(entries.iter().map(|e| name(&e.path)).filter(|name| !name.starts_with('.')).collect())
}

fn layer(number: usize, depth: usize, usual: u64, random: &mut Seeded) -> Made {
    let is_base = number == 0;
    let size = if random.chance(1, 3) { 512 * (16 + random.below(48)) } else { usual };
    let format = if is_base && random.chance(1, 3) { Format::Raw } else { Format::Qcow2 };
    let cluster = 512 << random.below(3);
    let name = if number + 1 == depth { "top".to_owned() } else { format!("layer{number}") };
    let mut writes = if is_base { vec![(0, size, 200)] } else { vec![] };
    for _ in 0..=random.below(4) {
        let at = random.below(size);
        let bytes = (1 + random.below(3000)).min(size - at);
        let byte = if random.chance(1, 4) { 0 } else { 1 + u8::try_from(random.below(199)).unwrap_or(1) };
        writes.push((at, bytes, byte));
    }
    Made { name, format, cluster, size, writes }
}

impl Made {
    fn make(&self, host: &SimHost, parent: Option<&Self>) -> base::Result<()> {
        let link = parent.map(|parent| ParentName {
            name: parent.name.as_bytes().to_vec(),
            format: Some(parent.format.name().to_owned()),
        });
        let is_qcow2 = self.format == Format::Qcow2;
        let options = is_qcow2.then(|| ("cluster_size".to_owned(), self.cluster.to_string()));
        let creation = Creation { size: self.size, parent: link, options: options.into_iter().collect() };
        let image = format::create(self.format, host.create(&path(&self.name))?, &creation, &NoParts)?;
        if let Some(parent) = parent {
            let below = Chain::open(&arc(host), &path(&parent.name), &Opening::writing())?;
            if let Some(known) = freeze(&ledger(host), below.layers())? {
                join(&ledger(host), image.as_ref(), &known)?;
            }
        }
        image.flush()?;
        drop(image);
        let chain = Chain::open(&arc(host), &path(&self.name), &Opening::writing())?;
        for (at, bytes, byte) in &self.writes {
            let at = GuestOffset::new(*at);
            if *byte == 0 {
                chain.zero(at.range(*bytes), Kept::Nothing)?;
            } else {
                chain.write(at, &vec![*byte; index(*bytes)])?;
            }
        }
        chain.flush()
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

/// What a name shows to a reader who holds children to what they claim of their parents.
fn view(host: &SimHost, name: &str) -> base::Result<Vec<u8>> {
    let chain = Chain::open(&arc(host), &path(name), &Opening::reading().with_ledger(ledger(host)))?;
    let mut bytes = vec![0xee; index(chain.size())];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

fn check(host: &SimHost, name: &str) -> Result<(), String> {
    let file = host.open(&path(name), Access::Read).map_err(|e| e.to_string())?;
    if Format::recognise(file.as_ref()).map_err(|e| e.to_string())? == Format::Raw {
        return Ok(());
    }
    let checked = format::check(Format::Qcow2, file, Repair::Nothing, &NoParts).map_err(|e| e.to_string())?;
    if checked.corruptions == 0 { Ok(()) } else { Err(format!("{name}: {:?}", checked.findings)) }
}

/// Runs seeded jobs and cuts the power everywhere, until `points` cuts are judged; returns how many, and how
/// many of them struck a resume.
pub fn crash(seed: u64, points: u64) -> Result<(u64, u64), String> {
    let (mut done, mut second, mut seed) = (0, 0, seed);
    while done < points {
        let (one, nested) = cut_everywhere(&Scene::of(seed), None)?;
        (done, second, seed) = (done + one + nested, second + nested, seed + 1);
    }
    Ok((done, second))
}

/// One job, with a barrier forgotten or none, and every crash of it.
fn cut_everywhere(scene: &Scene, forgotten: Option<u64>) -> Result<(u64, u64), String> {
    let tell = |wrong: String| format!("consolidate, {scene:?}: {wrong}");
    let (host, expected) = scene.build().map_err(|e| tell(format!("making the chain: {e}")))?;
    host.begin_operation(forgotten);
    scene.fold(&host).map_err(|e| tell(format!("without a crash: {e}")))?;
    let (mut points, mut nested) = (0_u64, 0);
    for crash in crash_states(&host.trace(), scene.seed, 2) {
        let tell = |wrong| tell(format!("power cut after {} ({:?}): {wrong}", crash.after, crash.landing));
        scene.judge(&crash.host, &expected).map_err(tell)?;
        scene.finish(&crash.host, &expected).map_err(tell)?;
        points += 1;
        if forgotten.is_some() || !points.is_multiple_of(25) {
            continue;
        }
        for again in crash_states(&crash.host.trace(), scene.seed, 1).step_by(5) {
            let tell = |wrong| tell(format!("again after {} ({:?}): {wrong}", again.after, again.landing));
            scene.judge(&again.host, &expected).map_err(tell)?;
            scene.finish(&again.host, &expected).map_err(tell)?;
            nested += 1;
        }
    }
    Ok((points, nested))
}

/// Lets each I/O of seeded jobs fail, until `points` failures are judged; returns how many.
pub fn errors(seed: u64, points: u64) -> Result<u64, String> {
    let (mut done, mut seed) = (0, seed);
    while done < points {
        let scene = Scene::of(seed);
        let tell = |wrong: String| format!("consolidate, {scene:?}: {wrong}");
        let (host, expected) = scene.build().map_err(|e| tell(e.to_string()))?;
        let again = || crash_states(&host.trace(), 0, 0).last().map_or_else(SimHost::new, |crash| crash.host);
        let whole = again();
        scene.fold(&whole).map_err(|e| tell(e.to_string()))?;
        for at in 0..whole.ios() {
            for (failure, is_lasting) in
                [(Failure::Io, false), (Failure::Io, true), (Failure::NoSpace, true), (Failure::Short, false)]
            {
                let machine = again();
                machine.fail(Some(Fault { at, is_lasting, failure }));
                let ended = scene.fold(&machine);
                machine.fail(None);
                let tell = |wrong| tell(format!("{failure:?} at I/O {at} (lasting: {is_lasting}): {wrong}"));
                if ended.is_err() {
                    scene.judge(&machine, &expected).map_err(tell)?;
                }
                scene.finish(&machine, &expected).map_err(tell)?;
                done += 1;
            }
        }
        seed += 1;
    }
    Ok(done)
}

/// Forgets each barrier of a seeded job in turn; returns the numbers of those that a crash shows, and how many
/// there are. The others guard what a repeated step mends.
pub fn mutants(seed: u64) -> Result<(Vec<u64>, u64), String> {
    let scene = Scene::of(seed);
    let (host, _) = scene.build().map_err(|e| e.to_string())?;
    host.begin_operation(None);
    scene.fold(&host).map_err(|e| e.to_string())?;
    let is_noticed = |barrier: &u64| {
        let judged = catch_unwind(AssertUnwindSafe(|| cut_everywhere(&scene, Some(*barrier))));
        !matches!(judged, Ok(Ok(_)))
    };
    Ok(((0..host.barriers()).filter(is_noticed).collect(), host.barriers()))
}
