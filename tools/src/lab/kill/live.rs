//! Kills `dchaind` under guests that write, in the middle of snapshots and folds, and starts it again.
//!
//! Each guest knows which of its writes were flushed: after every start they are there, and of those after them each
//! sector is old or new. A job that was cut off goes on by itself and moves again what its journal leaves open, no
//! more. A snapshot is of two disks: both have their new heads, or neither.

pub mod migrate;

use super::{
    FOREIGN, GLANCE, PATIENCE, Stage, Tally, Told,
    client::{Client, Done, Guest, Written},
    consolidate,
    scene::{Kind, Scene, check, names},
    told,
};
use crate::{
    daemon::Daemon,
    mark::{self, Mark, SECTOR},
};
use deltachain::{
    base::{
        GuestOffset,
        clock::Stopwatch,
        seed::Seeded,
        units::{count, index},
    },
    chain::{Chain, Opening},
    disk::Disk as _,
    format::Format,
    io::Access,
    job::create::{NewImage, create},
    store::Journal,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

/// Where a kill may strike: in a snapshot, or in a fold as its journal tells.
const PHASES: [&str; 5] = ["snapshot", "begin", "copy", "record", "drop"];
/// The disks, and how many guests each has.
const DISKS: [(&str, u64); 2] = [("vm", 2), ("log", 1)];
const LOG_BYTES: u64 = 4 << 20;
/// Writes that each guest makes at most after a start that is not to be killed.
const WRITES: u64 = 400;

/// Kills the `dchaind` beside `program`, which is `dchain`, until `kills` of them counted; the first wrong result ends
/// it, with words that name the seed.
pub fn search(seed: u64, kills: u64, program: &Path) -> Result<Tally, String> {
    rounds("live", &PHASES, (seed, kills), program, |live, seeded, tally, round| {
        live.run(seeded, tally, round)
    })
}

/// Does rounds of one kind until `kills` counted, in each of `phases` some.
fn rounds(
    name: &str,
    phases: &[&'static str],
    (seed, kills): (u64, u64),
    program: &Path,
    run: impl Fn(&mut Live, &mut Seeded, &mut Tally, u64) -> Told<()>,
) -> Result<Tally, String> {
    let mut tally = Tally::default();
    tally.counted.extend(phases.iter().map(|phase| (*phase, 0)));
    for round in 0..kills * 4 + 40 {
        if tally.kills() >= kills && tally.neglected().is_none() {
            return Ok(tally);
        }
        let at = seed.wrapping_add(round);
        let wrong = |wrong| format!("{name}, seed {at}: {wrong}");
        let mut seeded = Seeded::new(at);
        let mut live = Live::new(&mut seeded, program).map_err(wrong)?;
        run(&mut live, &mut seeded, &mut tally, round).map_err(wrong)?;
    }
    Err(format!("{name}: too few kills strike in time: {tally}"))
}

/// A served disk, and what it has to show.
struct Served {
    name: &'static str,
    guests: u64,
    expected: Vec<u8>,
    /// The mark that no guest has used yet.
    mark: Mark,
    /// Writes that were not durable when the daemon was killed: each of their sectors is old or new.
    open: Vec<Written>,
}

impl Served {
    /// Fails unless it shows what it has to; what was open is known from here on.
    fn hold_against(&mut self, shown: &[u8]) -> Told<()> {
        for open in std::mem::take(&mut self.open) {
            let at = index(open.sector) * SECTOR;
            let new = mark::sectors(open.mark, open.sector, open.sectors);
            let seen = shown.get(at..at + new.len()).unwrap_or_default();
            let old = self.expected.get_mut(at..at + new.len()).unwrap_or_default();
            for ((old, new), seen) in old.chunks_mut(SECTOR).zip(new.chunks(SECTOR)).zip(seen.chunks(SECTOR))
            {
                if seen == new {
                    old.copy_from_slice(new);
                }
            }
        }
        let differs = self.expected.chunks(SECTOR).zip(shown.chunks(SECTOR)).position(|(a, b)| a != b);
        match differs {
            None if shown.len() == self.expected.len() => Ok(()),
            at => {
                let at = at.unwrap_or_default();
                let who =
                    |disk: &[u8]| disk.chunks(SECTOR).nth(at).and_then(|bytes| mark::read(count(at), bytes));
                let (shown, expected) = (who(shown), who(&self.expected));
                Err(format!("{} shows {shown:?} in sector {at}, its guests wrote {expected:?}", self.name))
            }
        }
    }
}

/// One folder with its disks, and the daemon of the moment.
struct Live<'a> {
    /// The first to go: the folder goes with the scene.
    daemon: Option<Daemon>,
    scene: Scene,
    program: &'a Path,
    disks: Vec<Served>,
}

impl<'a> Live<'a> {
    fn new(seeded: &mut Seeded, program: &'a Path) -> Told<Self> {
        let scene = Scene::build(seeded, false, Kind::of(0))?;
        let new =
            NewImage { format: Format::Qcow2, size: Some(LOG_BYTES), parent: None, options: Vec::new() };
        create(&scene.host, &scene.path("log"), &new, &Opening::reading()).map_err(told)?;
        let top = all_of(&scene.open("top", Access::Read).map_err(told)?)?;
        let zeros = vec![0; usize::try_from(LOG_BYTES).map_err(told)?];
        let disks = DISKS.into_iter().zip([top, zeros]);
        let disks = disks.map(|((name, guests), expected)| Served {
            name,
            guests,
            expected,
            mark: 1,
            open: Vec::new(),
        });
        Ok(Self { scene, program, disks: disks.collect(), daemon: None })
    }

    fn run(&mut self, seeded: &mut Seeded, tally: &mut Tally, round: u64) -> Told<()> {
        let phase =
            (0..PHASES.len()).min_by_key(|phase| PHASES.get(*phase).and_then(|p| tally.counted.get(p)));
        self.start()?;
        let mut left = match phase {
            None | Some(0) => self.kill_in_snapshot(seeded, tally)?,
            Some(wanted) => self.kill_in_fold(wanted - 1, seeded, tally)?,
        };
        if seeded.chance(1, 3) && matches!(left, Stage::In(..)) {
            self.start()?;
            left = self.kill_while(seeded, |live, seeded| {
                thread::sleep(Duration::from_micros(seeded.below(30_000)));
                Ok(consolidate::stage(&live.scene))
            })?;
            count_kill(tally, left);
        }
        let allowed = self.allowance(left)?;
        self.start()?;
        self.look()?;
        self.write(seeded, WRITES, |_, _| Ok(()))?;
        self.end_jobs(left, allowed)?;
        tally.ended += 1;
        self.look()?;
        let heads = self.heads()?;
        self.stop()?;
        self.judge(&heads, round.is_multiple_of(FOREIGN), tally)
    }

    /// Takes a snapshot of all disks and kills the daemon while it is taken; no fold is left.
    fn kill_in_snapshot(&mut self, seeded: &mut Seeded, tally: &mut Tally) -> Told<Stage> {
        let wait = Duration::from_micros(seeded.below(4000));
        let mut is_counted = false;
        self.kill_while(seeded, |live, _| {
            let pairs = DISKS.map(|(name, _)| format!("{name}=new-{name}"));
            let pairs = pairs.iter().flat_map(|pair| ["--disk", pair.as_str()]);
            let mut asking = live.ask(["snapshot"].into_iter().chain(pairs)).spawn().map_err(told)?;
            let since = Stopwatch::start();
            while !live.scene.is_there("new-vm") && asking.try_wait().map_err(told)?.is_none() {
                thread::sleep(GLANCE);
                if since.elapsed() > PATIENCE {
                    return Err("the snapshot hangs".to_owned());
                }
            }
            thread::sleep(wait);
            live.kill();
            let is_done = asking.wait().map_err(told)?.success();
            is_counted = !is_done && live.scene.is_there("new-vm");
            Ok(())
        })?;
        if is_counted {
            *tally.counted.entry("snapshot").or_default() += 1;
        } else {
            tally.uncounted += 1;
        }
        Ok(Stage::Before)
    }

    /// Folds the disk and kills the daemon in that phase of the fold, or in a later one.
    fn kill_in_fold(&mut self, wanted: usize, seeded: &mut Seeded, tally: &mut Tally) -> Told<Stage> {
        let is_copying = wanted == consolidate::COPYING;
        let wait = Duration::from_micros(seeded.below(if is_copying { 150_000 } else { 2500 }));
        let stage = self.kill_while(seeded, |live, _| {
            let rate = if is_copying { (live.scene.size() * 2).to_string() } else { "0".to_owned() };
            let fold = ["consolidate", "--disk", "vm", "--yes", "--detach", "--rate", &rate];
            let mut asking = live.ask(fold).spawn().map_err(told)?;
            let since = Stopwatch::start();
            loop {
                match consolidate::stage(&live.scene) {
                    Stage::In(phase, _) if phase >= wanted => break,
                    Stage::Over => break,
                    _ => thread::sleep(GLANCE),
                }
                if since.elapsed() > PATIENCE {
                    return Err("the fold hangs".to_owned());
                }
            }
            thread::sleep(wait);
            live.kill();
            asking.wait().map_err(told)?;
            Ok(consolidate::stage(&live.scene))
        })?;
        count_kill(tally, stage);
        Ok(stage)
    }

    /// Lets guests write while `deed` is done, which ends with the daemon killed.
    fn kill_while<T>(
        &mut self,
        seeded: &mut Seeded,
        deed: impl FnOnce(&mut Self, &mut Seeded) -> Told<T>,
    ) -> Told<T> {
        self.write(seeded, u64::MAX, |live, seeded| {
            // Not before the guests have begun.
            thread::sleep(Duration::from_millis(5));
            let done = deed(live, seeded);
            live.kill();
            done
        })
    }

    /// Lets guests write until `deed` is done, each so many times at most, and notes what they wrote.
    fn write<T>(
        &mut self,
        seeded: &mut Seeded,
        most: u64,
        deed: impl FnOnce(&mut Self, &mut Seeded) -> Told<T>,
    ) -> Told<T> {
        let stop = AtomicBool::new(false);
        let socket = self.scene.path("s");
        let mut guests = Vec::new();
        for (disk, served) in self.disks.iter().enumerate() {
            for number in 0..served.guests {
                let sectors = count(served.expected.len() / SECTOR);
                let guest = Guest { number, of: served.guests, sectors, after: served.mark };
                guests.push((
                    disk,
                    guest,
                    Client::connect(&socket, served.name)?,
                    Seeded::new(seeded.next()),
                ));
            }
        }
        let (deed, done) = thread::scope(|scope| {
            let started = guests.into_iter().map(|(disk, guest, mut client, mut own)| {
                let stop = &stop;
                (disk, scope.spawn(move || guest.run(&mut client, &mut own, (stop, most))))
            });
            let started: Vec<_> = started.collect();
            let deed = deed(self, seeded);
            stop.store(most == u64::MAX, Relaxed);
            let done = started.into_iter().map(|(disk, thread)| thread.join().map(|done| (disk, done)));
            (deed, done.collect::<Result<Vec<_>, _>>())
        });
        for (disk, done) in done.map_err(|_| "a guest panicked")? {
            self.note(disk, &done, most)?;
        }
        deed
    }

    /// Takes in what a guest has written; what was not durable when the daemon was killed is looked up.
    fn note(&mut self, disk: usize, done: &Done, most: u64) -> Told<()> {
        let served = self.disks.get_mut(disk).ok_or("no such disk")?;
        let all = done.all();
        served.mark =
            all.iter().map(|written| written.mark + 1).chain([served.mark]).max().unwrap_or_default();
        let is_killed = most == u64::MAX;
        match &done.broke {
            Some(wrong) if !is_killed => return Err(format!("{}: {wrong}", served.name)),
            _ => {}
        }
        let known = if is_killed { &done.durable } else { &all };
        for written in known {
            written.apply(&mut served.expected);
        }
        served.open.extend(done.open.iter().filter(|_| is_killed));
        Ok(())
    }

    /// Reads both disks through the daemon: they show what they have to.
    fn look(&mut self) -> Told<()> {
        let socket = self.scene.path("s");
        for served in &mut self.disks {
            let mut client = Client::connect(&socket, served.name)?;
            let mut shown = Vec::with_capacity(served.expected.len());
            while shown.len() < served.expected.len() {
                shown.extend(
                    client.read(count(shown.len()), (served.expected.len() - shown.len()).min(1 << 20))?,
                );
            }
            served.hold_against(&shown)?;
        }
        Ok(())
    }

    /// Waits for the job that goes on by itself; where none does, folds the disk.
    fn end_jobs(&self, left: Stage, allowed: u64) -> Told<()> {
        let jobs = self.answer(["job", "list"])?;
        let own = jobs
            .as_array()
            .and_then(|jobs| jobs.last())
            .and_then(|job| job.get("id"))
            .and_then(Value::as_u64);
        let job = match (own, left) {
            (Some(id), _) => self.answer(["job", "wait", &id.to_string()])?,
            (None, Stage::In(..)) if left != Stage::Over && self.layers("vm")? > self.layers_at_end() => {
                return Err("the job that was cut off does not go on".to_owned());
            }
            (None, _) if self.layers("vm")? > self.layers_at_end() => {
                self.answer(["consolidate", "--disk", "vm", "--yes"])?
            }
            _ => return Ok(()),
        };
        if job.get("error").is_some_and(|error| !error.is_null()) {
            return Err(format!("the job failed: {job}"));
        }
        let bytes =
            |name: &str| job.get("report").and_then(|report| report.get(name)).and_then(Value::as_u64);
        let moved = bytes("copied-bytes").unwrap_or_default() + bytes("zeroed-bytes").unwrap_or_default();
        if own.is_some() && moved > allowed {
            return Err(format!("{moved} bytes were moved again; {allowed} were left at most"));
        }
        Ok(())
    }

    /// Returns what a job that goes on may move at most, in bytes.
    fn allowance(&self, left: Stage) -> Told<u64> {
        let Stage::In(_, mark) = left else { return Ok(self.scene.size()) };
        let journal = Journal::find(&self.scene.host, &self.scene.path("top")).map_err(told)?;
        let intent = journal.map(|journal| journal.intent().clone()).unwrap_or_default();
        Ok(self.scene.size().saturating_sub(mark) + intent.region_bytes * count(intent.regions.len()))
    }

    fn layers_at_end(&self) -> usize {
        1 + usize::from(self.scene.base == Format::Raw)
    }

    fn layers(&self, disk: &str) -> Told<usize> {
        let shown = self.answer(["disk", "show", disk])?;
        Ok(shown.get("layers").and_then(Value::as_array).map_or(0, Vec::len))
    }

    /// Returns the names of the heads that the daemon has.
    fn heads(&self) -> Told<Vec<String>> {
        let head = |served: &Served| {
            let shown = self.answer(["disk", "show", served.name])?;
            let path = shown.get("path").and_then(Value::as_str).map(Path::new);
            let name = path.and_then(Path::file_name).ok_or("a disk without a path")?;
            Ok(name.to_string_lossy().into_owned())
        };
        self.disks.iter().map(head).collect()
    }

    /// Judges what is left once the daemon has ended.
    fn judge(&self, heads: &[String], by_qemu: bool, tally: &mut Tally) -> Told<()> {
        let mut left = vec!["log".to_owned()];
        for (served, head) in self.disks.iter().zip(heads) {
            let chain = self.scene.open(head, Access::Read).map_err(told)?;
            if all_of(&chain)? != served.expected {
                return Err(format!("{head} shows something else than its guests wrote"));
            }
            drop(chain);
            check(self.program, &self.scene.path(head))?;
            if by_qemu {
                self.compare_by_qemu(head, &served.expected)?;
                tally.compared += 1;
            }
            left.push(head.clone());
        }
        if heads != ["top", "log"] && heads != ["new-vm", "new-log"] {
            return Err(format!("one of two disks has its new head: {heads:?}"));
        }
        left.extend((self.scene.base == Format::Raw).then(|| "base".to_owned()));
        left.sort();
        left.dedup();
        let names = names(self.scene.folder())?;
        if names == left { Ok(()) } else { Err(format!("{names:?} are left, not {left:?}")) }
    }

    /// Lets qemu-img compare a disk with what it has to show.
    fn compare_by_qemu(&self, name: &str, expected: &[u8]) -> Told<()> {
        let place = self.scene.path("store/expected");
        fs::write(&place, expected).map_err(told)?;
        let mut compare = Command::new("qemu-img");
        compare.current_dir(self.scene.folder()).args(["compare", "-q", "-f", "qcow2", "-F", "raw", name]);
        let status = compare.arg(&place).status().map_err(told)?;
        if status.success() { Ok(()) } else { Err(format!("qemu-img compare {name}: {status}")) }
    }

    fn start(&mut self) -> Told<()> {
        let program = self.program.with_file_name("dchaind");
        let arguments = ["--nbd", "unix:s", "--disk", "vm=top", "--disk", "log=log"];
        self.daemon = Some(Daemon::start(&program, self.scene.folder(), &arguments, false)?);
        Ok(())
    }

    fn kill(&mut self) {
        self.daemon = None;
    }

    fn stop(&mut self) -> Told<()> {
        self.daemon.take().ok_or("no daemon")?.stop()
    }

    fn ask<'b>(&self, arguments: impl IntoIterator<Item = &'b str>) -> Command {
        let mut command = Command::new(self.program);
        command.current_dir(self.scene.folder()).args(arguments).args(["--socket", "c", "--output", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn answer<'b>(&self, arguments: impl IntoIterator<Item = &'b str>) -> Told<Value> {
        let output = self.ask(arguments).output().map_err(told)?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(told)
    }
}

fn count_kill(tally: &mut Tally, stage: Stage) {
    match stage {
        Stage::In(phase, mark) => {
            let name = PHASES.get(phase + 1).copied().unwrap_or("?");
            *tally.counted.entry(name).or_default() += 1;
            tally.marked += u64::from(mark > 0);
        }
        Stage::Before | Stage::Over => tally.uncounted += 1,
    }
}

fn all_of(chain: &Chain) -> Told<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(chain.size()).map_err(told)?];
    chain.read(GuestOffset::new(0), &mut bytes).map_err(told)?;
    Ok(bytes)
}
