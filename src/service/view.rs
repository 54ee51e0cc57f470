//! What can be told of disks and jobs.

use super::{
    Entry, Event, Held, Service,
    job::{Job, JobState, Outcome, Task},
};
use crate::{
    base::{Error, ErrorKind, Result, name::FileName},
    chain::Layer,
    disk::Disk,
    export::Guest,
    job::consolidate::{CutOff, LiveReport, cut_off},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What went wrong.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorView {
    /// What a program can act on.
    pub kind: ErrorKind,
    /// What a person can.
    pub message: String,
}

impl From<&Error> for ErrorView {
    fn from(error: &Error) -> Self {
        Self { kind: error.kind(), message: error.to_string() }
    }
}

/// A consolidation or a move that was cut off.
#[derive(Clone, Debug, Serialize)]
pub struct CutOffView {
    /// What is left of it.
    #[serde(flatten)]
    pub cut_off: CutOff,
    /// The open disk that it is on.
    pub disk: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskView {
    /// Its name.
    pub name: String,
    /// Its head.
    pub path: FileName,
    /// Whether guests can use it.
    pub is_served: bool,
    /// Why they cannot, or what else of the disk cannot be told.
    pub error: Option<ErrorView>,
    /// Whether they can only read it.
    pub is_read_only: bool,
    /// Its size in bytes.
    pub size: u64,
    /// Its layers, the head first.
    pub layers: Vec<LayerView>,
    /// The number of the job on it that has not ended.
    pub job: Option<u64>,
    /// Who uses it.
    pub clients: Vec<ClientView>,
}

/// A client of a disk.
#[derive(Clone, Debug, Serialize)]
pub struct ClientView {
    /// Its address, or the number of its process.
    pub peer: String,
    /// Whether it speaks TLS.
    pub is_secret: bool,
    /// Seconds since it came.
    pub elapsed: f64,
}

/// A layer of an open disk.
#[derive(Clone, Debug, Serialize)]
pub struct LayerView {
    /// Its file.
    pub path: FileName,
    /// Its format.
    pub format: String,
    /// The size of its view in bytes.
    pub size: u64,
    /// The space that its files take on the host, in bytes, where that can be told.
    pub allocated: Option<u64>,
    /// Whether a person or a child stated its format; else it was recognised.
    pub is_stated: bool,
}

/// How far a job is.
#[derive(Clone, Debug, Serialize)]
pub struct Moving {
    /// What is being done, in a word.
    pub phase: &'static str,
    /// Bytes done in this phase.
    pub transferred: u64,
    /// Bytes to do in this phase.
    pub size: u64,
    /// Seconds since it began, pauses left out.
    pub elapsed: f64,
    /// Bytes a second so far.
    pub rate: u64,
    /// Seconds still to go, where that can be told.
    pub eta: Option<u64>,
    /// The most bytes a second; 0 is no limit.
    pub limit: u64,
    /// Bytes a second a moment ago.
    pub rate_now: Option<u64>,
    /// The part of the time that the copier keeps, if it was said.
    pub share: Option<f64>,
    /// Seconds within which it should end; 0 if that is over.
    pub deadline: Option<f64>,
    /// Milliseconds that one of the guests' requests in a hundred may take longer than.
    pub latency_target: Option<f64>,
    /// Milliseconds that half of the guests' requests took at most, a moment ago.
    pub guest_p50: Option<f64>,
    /// Milliseconds that all but one in a hundred took at most.
    pub guest_p99: Option<f64>,
}

/// A job.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub kind: &'static str,
    /// To which disk.
    pub disk: String,
    /// Its state.
    pub state: JobState,
    /// Whether it stopped with the service, or was cut off, and goes on with the next start.
    pub is_resumable: bool,
    /// How far it is.
    pub progress: Moving,
    /// What it does in detail.
    pub plan: Task,
    /// What it did, if it did it.
    pub report: Option<LiveReport>,
    /// Why it did not.
    pub error: Option<ErrorView>,
}

impl From<&Job> for JobView {
    fn from(job: &Job) -> Self {
        let state = job.moved();
        let elapsed_ms = u64::try_from(state.elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = u64::try_from(u128::from(state.moved_bytes) * 1000 / u128::from(elapsed_ms));
        let rate = rate.unwrap_or(u64::MAX);
        let (manners, recently) = (job.progress.manners(), job.progress.recently());
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let felt = recently.map(|now| now.felt).filter(|felt| felt.requests > 0);
        let (report, error) = match job.outcome() {
            Some(Outcome::Done(report)) => (Some(*report), None),
            Some(Outcome::Failed(error)) => (None, Some(ErrorView::from(error.as_ref()))),
            _ => (None, None),
        };
        Self {
            id: job.number,
            kind: job.plan.kind(),
            disk: job.disk.clone(),
            state: job.state(),
            is_resumable: matches!(job.outcome(), Some(Outcome::Left)),
            progress: Moving {
                phase: state.phase,
                transferred: state.moved_bytes,
                size: state.size_bytes,
                elapsed: state.elapsed.as_secs_f64(),
                rate,
                eta: state.size_bytes.saturating_sub(state.moved_bytes).checked_div(rate),
                limit: job.progress.rate(),
                rate_now: recently.map(|now| now.rate),
                share: manners.share,
                deadline: job.time_left().map(|left| left.as_secs_f64()),
                latency_target: manners.latency_target.map(ms),
                guest_p50: felt.map(|felt| ms(felt.p50)),
                guest_p99: felt.map(|felt| ms(felt.p99)),
            },
            plan: job.plan.clone(),
            report,
            error,
        }
    }
}

impl LayerView {
    fn of(layer: &Layer, allocated: Option<u64>) -> Self {
        Self {
            path: FileName(layer.path.clone()),
            format: layer.format().name().to_owned(),
            size: layer.size(),
            allocated,
            is_stated: layer.is_stated,
        }
    }
}

impl ClientView {
    fn of((since, guest): &(Duration, Arc<dyn Guest>)) -> Self {
        Self { peer: guest.peer(), is_secret: guest.is_secret(), elapsed: since.as_secs_f64() }
    }
}

impl DiskView {
    /// What of it cannot be found out is told in its place: it hides no other disk.
    fn of(name: &str, held: &Held) -> Self {
        let (chain, mut error) = (held.disk.chain(), None);
        let mut layer = |layer: &Layer| {
            let files = layer.image.files();
            let allocated = files.iter().map(|file| file.allocated_bytes()).sum::<Result<u64>>();
            LayerView::of(layer, allocated.map_err(|why| error = Some(ErrorView::from(&why))).ok())
        };
        let layers: Vec<_> = chain.layers().iter().map(&mut layer).collect();
        Self {
            name: name.to_owned(),
            path: layers.first().map_or_else(|| FileName(PathBuf::new()), |head| head.path.clone()),
            is_served: true,
            error,
            is_read_only: held.is_read_only,
            size: held.disk.size(),
            layers,
            job: held.running().map(|job| job.number),
            clients: held.guests.here().iter().map(ClientView::of).collect(),
        }
    }

    fn refused(name: &str, path: &Path, is_read_only: bool, why: &Error) -> Self {
        Self {
            name: name.to_owned(),
            path: FileName(path.to_path_buf()),
            is_served: false,
            error: Some(ErrorView::from(why)),
            is_read_only,
            size: 0,
            layers: Vec::new(),
            job: None,
            clients: Vec::new(),
        }
    }
}

impl Service {
    /// Returns what can be told of all disks, by name.
    pub fn view_disks(&self) -> Vec<DiskView> {
        let disks = self.disks.lock().clone();
        disks.iter().map(|(name, entry)| view(name, entry)).collect()
    }

    /// Returns what can be told of a disk; `NotFound` if there is none of that name.
    pub fn view_disk(&self, name: &str) -> Result<DiskView> {
        let entry = self.disks.lock().get(name).cloned();
        Ok(view(name, &entry.ok_or_else(|| super::none(name))?))
    }

    /// Returns what can be told of all jobs since the start, by number.
    pub fn view_jobs(&self) -> Vec<JobView> {
        let jobs: Vec<Arc<Job>> = self.jobs.lock().values().cloned().collect();
        jobs.iter().map(|job| JobView::from(job.as_ref())).collect()
    }

    /// Returns the consolidations that were cut off and that nobody is at, in the folders of the disks' layers. A folder that
    /// cannot be read hides those of no other.
    pub fn view_cut_off(&self) -> Vec<CutOffView> {
        let entries = self.disks.lock().clone();
        let (mut folders, mut heads) = (BTreeSet::new(), BTreeMap::new());
        for (name, entry) in entries {
            let mut of = |path: &Path| folders.extend(path.parent().map(Path::to_path_buf));
            match entry {
                Entry::Open(held) => {
                    let chain = held.disk.chain();
                    chain.layers().iter().for_each(|layer| of(&layer.path));
                    heads.extend(chain.layers().first().map(|head| (head.path.clone(), name)));
                }
                Entry::Refused(named, _) => of(&named.path),
            }
        }
        let look = |folder: &PathBuf| {
            let found = cut_off(&self.settings.host, folder);
            found.inspect_err(|error| tracing::warn!(%error, "jobs that were cut off there are not known"))
        };
        let found = folders.iter().filter_map(|folder| look(folder).ok()).flatten();
        let on = |cut_off: &CutOff| cut_off.top.as_ref().and_then(|top| heads.get(top)).cloned();
        found.map(|cut_off| CutOffView { disk: on(&cut_off), cut_off }).collect()
    }

    /// Returns what happened after the event of that number, as far as it is kept.
    pub fn events_after(&self, number: u64) -> Vec<Event> {
        self.events.after(number)
    }

    /// Returns the number of the last event.
    pub fn last_event(&self) -> u64 {
        self.events.last()
    }
}

fn view(name: &str, entry: &Entry) -> DiskView {
    match entry {
        Entry::Open(held) => DiskView::of(name, held),
        Entry::Refused(named, why) => DiskView::refused(name, &named.path, named.is_read_only, why),
    }
}
