//! Kills the real program in the middle of a job, gives the same command again, and judges what comes of it.
//!
//! A kill counts only between the first and the last durable step of a job. What the job left in `.dchain` is the
//! witness of the phase that it was killed in; each round waits for the phase that was hit least so far. Time
//! decides where exactly a kill strikes: a seed gives the same disks and the same intentions, not the same run.

mod client;
mod consolidate;
mod copy;
pub mod live;
mod remote;
mod scene;

use crate::{Told, told};
use deltachain::base::{clock::Stopwatch, seed::Seeded};
use scene::{Kind, Scene};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// How often the witness is looked at while a job runs.
const GLANCE: Duration = Duration::from_micros(150);
/// Of the rounds with qcow2 one in so many of all is judged by qemu-img, too; of others each that it can read.
const FOREIGN: u64 = 8;
/// One round in so many has a disk that is large enough for marks on the way.
const LARGE: u64 = 6;
/// Of a hundred counted kills at least this many fall into each phase.
const SHARE: u64 = 10;
/// How a near side ends whose far side is gone.
const RESUMABLE: i32 = 75;
/// Longest time that a job is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// `dchain consolidate`.
    Consolidate,
    /// `dchain copy`.
    Copy,
    /// `dchain copy` to another store: either side.
    Remote,
}

/// Where a job is, as its own notes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing durable has been done.
    Before,
    /// In the phase of this number; so much of the disk is promised to be done.
    In(usize, u64),
    /// Nothing is left to be done.
    Over,
}

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Kills that counted, by phase.
    pub counted: BTreeMap<&'static str, u64>,
    /// Kills that counted, by what the layers were.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Kills that came before the first or after the last durable step.
    pub uncounted: u64,
    /// Jobs that ended when they were gone on with, by the same command or by the daemon.
    pub ended: u64,
    /// Results that qemu-img compared, too.
    pub compared: u64,
    /// Kills after which a mark told how much need not be done again.
    pub marked: u64,
}

impl Tally {
    /// Returns how many kills counted.
    pub fn kills(&self) -> u64 {
        self.counted.values().sum()
    }

    /// Returns a phase into which too few kills fell.
    pub fn neglected(&self) -> Option<&'static str> {
        let least = self.kills() * SHARE / 100;
        self.counted.iter().find(|(_, hits)| **hits < least).map(|(phase, _)| *phase)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |hits: &BTreeMap<&str, u64>| {
            hits.iter().map(|(what, hits)| format!("{what} {hits}")).collect::<Vec<_>>().join(", ")
        };
        write!(f, "{} kills ({}), ", self.kills(), list(&self.counted))?;
        if !self.kinds.is_empty() {
            write!(f, "of {}, ", list(&self.kinds))?;
        }
        write!(f, "{} that did not count; ", self.uncounted)?;
        write!(f, "{} jobs that were gone on with ended, ", self.ended)?;
        write!(f, "{} with a mark to go on from, {} compared by qemu-img", self.marked, self.compared)
    }
}

impl Job {
    /// Finds a job by its name.
    pub fn find(name: &str) -> Result<Self, String> {
        match name {
            "consolidate" => Ok(Self::Consolidate),
            "copy" => Ok(Self::Copy),
            "remote" => Ok(Self::Remote),
            _ => Err(format!("no job is called '{name}': consolidate, copy, remote")),
        }
    }

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consolidate => "consolidate",
            Self::Copy => "copy",
            Self::Remote => "remote",
        }
    }

    const fn phases(self) -> &'static [&'static str] {
        match self {
            Self::Consolidate => &consolidate::PHASES,
            Self::Copy => &copy::PHASES,
            Self::Remote => &remote::PHASES,
        }
    }

    fn stage(self, scene: &Scene) -> Stage {
        match self {
            Self::Consolidate => consolidate::stage(scene),
            Self::Copy => copy::stage(scene),
            Self::Remote => remote::stage(scene),
        }
    }

    fn arguments(self, scene: &Scene) -> Vec<String> {
        let words = |words: &[&str]| words.iter().copied().map(str::to_owned).collect();
        match self {
            Self::Consolidate => words(&["consolidate", "--yes", "top"]),
            Self::Copy => words(&["copy", "top", "store"]),
            Self::Remote => {
                let there = format!("ssh://host{}", scene.path("store").display());
                words(&["copy", "--ssh", remote::SSH, "top", &there])
            }
        }
    }

    /// Whether a phase takes its time from the bytes that are moved.
    const fn is_moving(self, phase: usize) -> bool {
        match self {
            Self::Consolidate => phase == consolidate::COPYING,
            Self::Copy => phase.is_multiple_of(2),
            Self::Remote => true,
        }
    }

    /// Bytes a second that make the job last about half a second.
    const fn rate(self, scene: &Scene) -> u64 {
        match self {
            Self::Consolidate => scene.size() * 3,
            Self::Copy => 4 << 20,
            // Slow enough for a mark on the way; a VHD has whole blocks of zeros.
            Self::Remote if scene.size() > 64 << 20 => 4 << 20,
            Self::Remote => 1 << 20,
        }
    }

    fn judge_killed(self, scene: &Scene, stage: Stage) -> Told<()> {
        match self {
            Self::Consolidate => consolidate::judge_killed(scene, stage),
            Self::Copy => copy::judge_killed(scene, stage),
            Self::Remote => remote::judge_killed(scene, stage),
        }
    }

    /// Returns what a resume may move at most, in bytes.
    fn allowance(self, scene: &Scene) -> Told<u64> {
        match self {
            Self::Consolidate => Ok(consolidate::allowance(scene)),
            Self::Copy => copy::allowance(scene),
            Self::Remote => remote::allowance(scene),
        }
    }
}

/// Kills `program` in the middle of the job until `kills` of them counted; the first wrong result ends it, with
/// words that name the seed.
pub fn search(job: Job, seed: u64, kills: u64, program: &Path) -> Result<Tally, String> {
    let mut tally = Tally::default();
    tally.counted.extend(job.phases().iter().map(|phase| (*phase, 0)));
    let mut round = 0;
    while tally.kills() < kills || tally.neglected().is_some() {
        let mut seeded = Seeded::new(seed.wrapping_add(round));
        let at = seed.wrapping_add(round);
        Round { job, program, number: round }
            .run(&mut seeded, &mut tally)
            .map_err(|wrong| format!("{}, {}, seed {at}: {wrong}", job.name(), Kind::of(round).name))?;
        round += 1;
        if round > kills * 4 + 40 {
            return Err(format!("{}: too few kills strike in time: {tally}", job.name()));
        }
    }
    Ok(tally)
}

struct Round<'a> {
    job: Job,
    program: &'a Path,
    number: u64,
}

impl Round<'_> {
    fn run(&self, seeded: &mut Seeded, tally: &mut Tally) -> Told<()> {
        let is_large = self.number % LARGE == LARGE - 1;
        let kind = Kind::of(self.number);
        let scene = Scene::build(seeded, is_large, kind)?;
        if self.job == Job::Remote {
            remote::prepare(&scene, self.program)?;
        }
        let mut stage = Stage::Before;
        for _ in 0..=u64::from(seeded.chance(1, 3)) {
            stage = self.kill(&scene, seeded, tally)?;
            if matches!(stage, Stage::In(..)) {
                *tally.kinds.entry(kind.name).or_default() += 1;
            }
            self.job.judge_killed(&scene, stage).map_err(|wrong| format!("killed at {stage:?}: {wrong}"))?;
            if stage == Stage::Over {
                break;
            }
        }
        if stage != Stage::Over {
            self.finish(&scene, tally).map_err(|wrong| format!("killed at {stage:?}, resumed: {wrong}"))?;
        }
        scene.judge(self.job, self.program)?;
        let is_due = kind != Kind::of(0) || self.number.is_multiple_of(FOREIGN);
        if is_due && scene.is_read_by_qemu() {
            scene.judge_by_qemu(self.job)?;
            tally.compared += 1;
        }
        Ok(())
    }

    /// Runs the job and kills it in the phase that was hit least; returns where it was then.
    fn kill(&self, scene: &Scene, seeded: &mut Seeded, tally: &mut Tally) -> Told<Stage> {
        let phases = self.job.phases();
        let hits = |phase: &usize| phases.get(*phase).and_then(|name| tally.counted.get(name));
        // A resume does not come by the phases before the one that it was killed in.
        let first = if let Stage::In(phase, _) = self.job.stage(scene) { phase } else { 0 };
        let wanted = (first..phases.len()).min_by_key(hits).unwrap_or(first);
        let is_moving = self.job.is_moving(wanted);
        let mut command = self.command(scene);
        if is_moving {
            command.args(["--rate", &self.job.rate(scene).to_string()]);
        }
        let wait = Duration::from_micros(seeded.below(if is_moving { 120_000 } else { 2500 }));
        let mut child = command.spawn().map_err(told)?;
        let struck = self.strike(scene, &mut child, wanted, wait);
        let is_far = self.job == Job::Remote && seeded.chance(1, 2);
        if is_far {
            // The near side ends of itself.
            remote::kill_agent(scene);
        } else {
            child.kill().map_err(told)?;
        }
        let output = child.wait_with_output().map_err(told)?;
        remote::wait_for_agent(scene)?;
        struck?;
        let is_cut = |code: i32| code == RESUMABLE || remote::had_said_nothing(&output.stderr);
        let is_wrong = |code: &i32| *code != 0 && !(is_far && is_cut(*code));
        if let Some(code) = output.status.code().filter(is_wrong) {
            return Err(format!("exit code {code}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let stage = self.job.stage(scene);
        match stage {
            Stage::In(phase, mark) => {
                let name = phases.get(phase).copied().unwrap_or("?");
                *tally.counted.entry(name).or_default() += 1;
                tally.marked += u64::from(mark > 0);
            }
            Stage::Before | Stage::Over => tally.uncounted += 1,
        }
        Ok(stage)
    }

    /// Waits until the job is in the wanted phase, and a little longer.
    fn strike(&self, scene: &Scene, child: &mut Child, wanted: usize, wait: Duration) -> Told<()> {
        let since = Stopwatch::start();
        while child.try_wait().map_err(told)?.is_none() {
            match self.job.stage(scene) {
                Stage::In(phase, _) if phase >= wanted => {
                    thread::sleep(wait);
                    break;
                }
                _ => thread::sleep(GLANCE),
            }
            if since.elapsed() > PATIENCE {
                return Err("the job hangs".to_owned());
            }
        }
        Ok(())
    }

    fn finish(&self, scene: &Scene, tally: &mut Tally) -> Told<()> {
        let allowed = self.job.allowance(scene)?;
        let output = self.command(scene).output().map_err(told)?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let report: Value = serde_json::from_slice(&output.stdout).map_err(told)?;
        let field = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or_default();
        let moved =
            field("sent-bytes") + field("copied-bytes") + field("shared-bytes") + field("zeroed-bytes");
        if moved > allowed {
            return Err(format!("{moved} bytes were moved; {allowed} were left at most"));
        }
        tally.ended += 1;
        Ok(())
    }

    fn command(&self, scene: &Scene) -> Command {
        let mut command = Command::new(self.program);
        command.current_dir(scene.folder()).args(self.job.arguments(scene)).args(["--output", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}
