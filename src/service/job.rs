//! A job of the service: what state it is in, and what it is told meanwhile.

use crate::{
    base::{
        Error,
        clock::{self, Stopwatch},
    },
    job::{
        Manners, Progress, State,
        consolidate::{self, LiveReport},
        migrate,
    },
};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// The states of a job, in libvirt's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It has not begun.
    Created,
    /// It moves bytes.
    Running,
    /// It waits until it is told to go on.
    Paused,
    /// All bytes have landed; the disk goes over to the result.
    Pending,
    /// It has ended, one way or another.
    Concluded,
}

/// What a job is to do.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Task {
    /// It folds layers.
    Consolidate(consolidate::Plan),
    /// It brings the disk to another store.
    Migrate(migrate::Plan),
}

impl Task {
    /// Returns what is done, in a word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Consolidate(_) => "consolidate",
            Self::Migrate(_) => "migrate",
        }
    }

    /// Returns the image that bears the job's journal.
    pub(super) fn top(&self) -> &Path {
        match self {
            Self::Consolidate(plan) => &plan.top,
            Self::Migrate(plan) => &plan.top,
        }
    }
}

impl From<consolidate::Plan> for Task {
    fn from(plan: consolidate::Plan) -> Self {
        Self::Consolidate(plan)
    }
}

impl From<migrate::Plan> for Task {
    fn from(plan: migrate::Plan) -> Self {
        Self::Migrate(plan)
    }
}

/// How a job ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// It did what it was to do.
    Done(Box<LiveReport>),
    /// It did not; the disk goes on as it was.
    Failed(Arc<Error>),
    /// The service stopped; the next start goes on with it.
    Left,
}

/// What a job was told of its pace, as the next start has to know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Bytes a second; 0 is no limit.
    rate: u64,
    share: Option<f64>,
    latency_target: Option<Duration>,
    is_paused: bool,
    /// When it should have ended, by the wall clock: time since 1970. The daemon's own pauses count.
    #[serde(default)]
    due: Option<Duration>,
}

impl Told {
    pub(super) const fn of(rate: u64, Manners { share, latency_target }: Manners) -> Self {
        Self { rate, share, latency_target, is_paused: false, due: None }
    }

    /// Says within which time from now the job should end.
    pub(super) fn due_within(self, deadline: Option<Duration>) -> Self {
        Self { due: deadline.map(|within| clock::since_epoch().saturating_add(within)), ..self }
    }
}

/// What a job is at.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Created,
    Copying,
    Ending,
    /// And how far it was then.
    Over(Outcome, State),
}

/// A job on a disk in use.
#[derive(Debug)]
pub struct Job {
    /// Its number, also after a restart of the service.
    pub number: u64,
    /// The disk's name.
    pub disk: String,
    /// What it does.
    pub plan: Task,
    /// How far it is, and what it is told.
    pub progress: Progress,
    stage: Mutex<Stage>,
    is_over: Condvar,
    is_given_up: AtomicBool,
    due: Option<Duration>,
}

impl Job {
    pub(super) fn new(number: u64, disk: &str, plan: impl Into<Task>, told: Told) -> Arc<Self> {
        let progress = Progress::default();
        progress.set_rate(told.rate);
        progress.set_manners(Manners { share: told.share, latency_target: told.latency_target });
        if told.is_paused {
            progress.pause();
        }
        if let Some(due) = told.due {
            progress.set_deadline(due.saturating_sub(clock::since_epoch()));
        }
        let (stage, is_over) = (Mutex::default(), Condvar::new());
        let is_given_up = AtomicBool::new(false);
        let (disk, plan, due) = (disk.to_owned(), plan.into(), told.due);
        Arc::new(Self { number, disk, plan, progress, stage, is_over, is_given_up, due })
    }

    /// Returns what it was told of its pace so far.
    pub(super) fn told(&self) -> Told {
        let told = Told::of(self.progress.rate(), self.progress.manners());
        Told { is_paused: self.progress.is_paused(), due: self.due, ..told }
    }

    /// Returns how far it is, or was when it ended.
    pub fn moved(&self) -> State {
        match &*self.stage.lock() {
            Stage::Over(_, last) => *last,
            _ => self.progress.state(),
        }
    }

    /// Returns within which time it should end, if that was said.
    pub fn time_left(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(clock::since_epoch()))
    }

    /// Returns its state.
    pub fn state(&self) -> JobState {
        match &*self.stage.lock() {
            Stage::Over(..) => JobState::Concluded,
            Stage::Ending => JobState::Pending,
            _ if self.progress.is_paused() => JobState::Paused,
            Stage::Copying => JobState::Running,
            Stage::Created => JobState::Created,
        }
    }

    /// Returns whether it has ended.
    pub fn is_over(&self) -> bool {
        matches!(&*self.stage.lock(), Stage::Over(..))
    }

    /// Waits until it has ended, for at most `patience`; returns whether it has.
    pub fn wait(&self, patience: Duration) -> bool {
        let watch = Stopwatch::start();
        let mut stage = self.stage.lock();
        while !matches!(&*stage, Stage::Over(..)) {
            let left = patience.saturating_sub(watch.elapsed());
            if left.is_zero() {
                return false;
            }
            self.is_over.wait_for(&mut stage, left);
        }
        true
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        match &*self.stage.lock() {
            Stage::Over(outcome, _) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// Has it end for good.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Relaxed);
        self.progress.cancel();
    }

    /// Returns whether somebody gave it up; one that only stops with the service goes on later.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Relaxed)
    }

    pub(super) fn copies(&self) {
        *self.stage.lock() = Stage::Copying;
    }

    pub(super) fn ends(&self) {
        *self.stage.lock() = Stage::Ending;
    }

    pub(super) fn conclude(&self, outcome: Outcome) {
        *self.stage.lock() = Stage::Over(outcome, self.progress.state());
        self.is_over.notify_all();
    }
}
