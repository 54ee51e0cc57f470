//! Consolidations of open disks, each in a thread of its own.

use super::{
    Happened, Held, Service,
    book::{Book, Known},
    job::{Job, JobState, Outcome, Told},
};
use crate::{
    base::{Error, ErrorKind, Result},
    job::{
        Manners,
        consolidate::{Folding, LiveConsolidation, LivePace, LiveReport, Plan, Request},
        migrate::Migration,
    },
    store::Journal,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

/// What is to be folded, and how fast.
#[derive(Clone, Debug, Default)]
pub struct FoldRequest {
    /// What.
    pub request: Request,
    /// The part of the time, above 0 and at most 1, that the copier keeps for itself while guests write.
    pub share: Option<f64>,
    /// What one of the guests' requests in a hundred may take longer than, while the copier takes more than its share.
    pub latency_target: Option<Duration>,
    /// The most bytes to move in a second; 0 is no limit.
    pub rate: u64,
    /// Within which time from now it should end, restarts included: a job that is behind goes before the guests.
    pub deadline: Option<Duration>,
}

/// How fast a job is to be; `None` leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// The most bytes to move in a second; 0 is no limit.
    pub rate: Option<u64>,
    /// As [`FoldRequest::share`].
    pub share: Option<f64>,
    /// As [`FoldRequest::latency_target`]; zero: guests are not listened to any more.
    pub latency_target: Option<Duration>,
}

pub(super) fn check(manners: Manners) -> Result<()> {
    if manners.share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
        return Err(Error::invalid("the share is a number above 0 and at most 1"));
    }
    Ok(())
}

/// Where a job's thread begins.
pub(super) enum Stand {
    Planned(Box<LiveConsolidation>, LivePace),
    /// The second leg is on already.
    Begun(Box<Folding>),
    /// Layers below the head are brought to another store first.
    Moving(Box<Migration>),
}

impl Service {
    /// Returns what a consolidation of a disk would do, into a layer that is named by its path or its name, or as the request
    /// says otherwise. Fails as [`LiveConsolidation::prepare`]; `Invalid` for a layer that is not one of the disk's.
    pub fn plan(&self, name: &str, request: &Request) -> Result<Plan> {
        let held = self.held(name)?;
        held.settle()?;
        held.refuse_job(name)?;
        Ok(self.prepare(&held, request)?.plan().clone())
    }

    fn prepare(&self, held: &Held, request: &Request) -> Result<LiveConsolidation> {
        if held.is_read_only {
            return Err(Error::policy("is served for reading only").path(&held.disk.chain().head()?.path));
        }
        let mut request = request.clone();
        if let Some(into) = &mut request.into {
            let chain = held.disk.chain();
            if let Some(layer) = chain.layers().get(Self::depth_of(&self.settings.host, &chain, into)?) {
                into.clone_from(&layer.path);
            }
        }
        LiveConsolidation::prepare(&self.settings.host, &held.disk, &held.opening, &request)
    }

    /// Starts a consolidation of a disk, and returns at once.
    ///
    /// Fails as [`LiveConsolidation::prepare`]; `Busy` while another job is on the disk.
    pub fn consolidate(self: &Arc<Self>, name: &str, asked: &FoldRequest) -> Result<Arc<Job>> {
        let manners = Manners { share: asked.share, latency_target: asked.latency_target };
        check(manners)?;
        self.held(name)?.settle()?;
        let mut book = self.book.lock();
        let held = self.free_for_a_job(&book, name)?;
        let fold = self.prepare(&held, &asked.request)?;
        let told = Told::of(asked.rate, manners).due_within(asked.deadline);
        let number = book.change(|written| {
            let number = written.number();
            written.with(name, |known| {
                known.begin(number, &fold.plan().result);
                known.told = told;
            });
            number
        })?;
        let job = Job::new(number, name, fold.plan().clone(), told);
        self.launch(&held, &job, Stand::Planned(Box::new(fold), self.settings.pace))?;
        Ok(job)
    }

    /// Returns a disk on which a job may begin.
    pub(super) fn free_for_a_job(&self, book: &Book, name: &str) -> Result<Arc<Held>> {
        self.refuse_stopping()?;
        let held = self.held(name)?;
        held.refuse_job(name)?;
        self.refuse_backup(name)?;
        if let Some(below) = book.written().disks.get(name).and_then(|known| known.below.as_ref())
            && Journal::find(&self.settings.host, &below.top.0)?.is_some()
        {
            let what = "a fold of older layers was given up: detach and attach it again";
            return Err(Error::busy(format!("disk '{name}': {what}")));
        }
        Ok(held)
    }

    /// Gives a job its thread.
    pub(super) fn launch(self: &Arc<Self>, held: &Arc<Held>, job: &Arc<Job>, stand: Stand) -> Result<()> {
        *held.job.lock() = Some(Arc::clone(job));
        self.jobs.lock().insert(job.number, Arc::clone(job));
        self.say(job, JobState::Created);
        let (service, held, own) = (Arc::clone(self), Arc::clone(held), Arc::clone(job));
        let work = move || {
            let done = service.carry_out(&held, &own, stand);
            service.conclude(&held, &own, done);
        };
        let spawned = thread::Builder::new().name(format!("job-{}", job.number)).spawn(work);
        match spawned {
            Ok(thread) => {
                let mut threads = self.threads.lock();
                // The stack of one that has ended is kept until nobody may ask for it any more.
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(e) => {
                let error = Arc::new(Error::io("start a job's thread", e));
                job.conclude(Outcome::Failed(Arc::clone(&error)));
                return Err(Error::new(error.kind(), error.to_string()));
            }
        }
        Ok(())
    }

    pub(super) fn say(&self, job: &Job, state: JobState) {
        self.events.say(Happened::Job, &job.disk, Some((job.number, state)));
    }

    /// Does it; `None` if the service stopped meanwhile: then the journal stands as it is.
    fn carry_out(self: &Arc<Self>, held: &Held, job: &Job, stand: Stand) -> Result<Option<LiveReport>> {
        let mut folding = match stand {
            Stand::Planned(fold, pace) => fold.begin(pace)?,
            Stand::Begun(folding) => *folding,
            Stand::Moving(migration) => match self.bring(job, &migration)? {
                Some(folding) => folding,
                None => return Ok(None),
            },
        };
        let (service, disk) = (Arc::downgrade(self), job.disk.clone());
        folding.tell_head(move |head| {
            let Some(service) = service.upgrade() else { return Ok(()) };
            let go_over = |known: &mut Known| known.go_over(&head.path, head.format());
            service.book.lock().change(|written| written.with(&disk, go_over))
        });
        job.copies();
        self.say(job, JobState::Running);
        let copied = folding.copy(&job.progress);
        let is_stopped = copied.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted);
        if is_stopped && self.is_stopping.load(Relaxed) && !job.is_given_up() {
            folding.checkpoint()?;
            return Ok(None);
        }
        job.ends();
        self.say(job, JobState::Pending);
        let finished = folding.finish(copied, &job.progress).map(Some);
        if !folding.is_over() {
            *held.stuck.lock() = Some(Box::new(folding));
        }
        finished
    }

    fn conclude(&self, held: &Held, job: &Job, done: Result<Option<LiveReport>>) {
        held.lease(&self.settings.host, &job.disk);
        let outcome = match done {
            Ok(None) => Outcome::Left,
            Ok(Some(report)) => match self.note_end(held, job, true) {
                Ok(()) => Outcome::Done(Box::new(report)),
                Err(error) => Outcome::Failed(Arc::new(error.doing("the result stands, but is not noted"))),
            },
            Err(error) => {
                let noted = self.note_end(held, job, false);
                Outcome::Failed(Arc::new(noted.err().unwrap_or(error)))
            }
        };
        job.conclude(outcome);
        self.say(job, JobState::Concluded);
    }

    /// Writes down that the job is over, and which image is the head now.
    fn note_end(&self, held: &Held, job: &Job, is_done: bool) -> Result<()> {
        let chain = held.disk.chain();
        let head = chain.head()?;
        // Whoever settles it asks for the book: not the other way round.
        let is_stuck = held.stuck.lock().is_some();
        self.book.lock().change(|written| {
            written.with(&job.disk, |known| {
                if is_stuck {
                    known.fail(&head.path, head.format());
                } else {
                    known.set_head(&head.path, head.format());
                }
                known.is_cancelled = !is_done && job.is_given_up();
                if is_done {
                    known.below = None;
                }
            });
        })
    }

    /// Returns a job; `NotFound` if no job had that number since the start.
    pub fn job(&self, number: u64) -> Result<Arc<Job>> {
        let found = self.jobs.lock().get(&number).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no job has the number {number}")))
    }

    /// Asks a job to wait, with nothing in hand; guests go on. `Invalid` if it has ended.
    ///
    /// Like all else that a job is told it waits for nobody; [`Service::note_told`] has restarts know of it.
    pub fn pause(&self, number: u64) -> Result<Arc<Job>> {
        self.tell(number, |job| job.progress.pause())
    }

    /// Has a job that was paused go on.
    pub fn resume(&self, number: u64) -> Result<Arc<Job>> {
        self.tell(number, |job| job.progress.resume())
    }

    /// Gives a job up: the disk goes on with all that its guests wrote; the points in time that the plan names as lost
    /// are gone all the same.
    pub fn cancel(&self, number: u64) -> Result<Arc<Job>> {
        self.tell(number, Job::give_up)
    }

    /// Changes how fast a job is from now on; what is not named stays. `Invalid` for a share that is none.
    pub fn set_speed(&self, number: u64, speed: Speed) -> Result<Arc<Job>> {
        let Speed { rate, share, latency_target } = speed;
        check(Manners { share, latency_target })?;
        self.tell(number, |job| {
            let now = job.progress.manners();
            let latency_target = latency_target.or(now.latency_target).filter(|goal| !goal.is_zero());
            job.progress.set_manners(Manners { share: share.or(now.share), latency_target });
            if let Some(rate) = rate {
                job.progress.set_rate(rate);
            }
        })
    }

    fn tell(&self, number: u64, what: impl FnOnce(&Job)) -> Result<Arc<Job>> {
        let job = self.job(number)?;
        if job.is_over() {
            return Err(Error::invalid(format!("job {number} has ended")));
        }
        what(&job);
        self.say(&job, job.state());
        Ok(job)
    }

    /// Writes down what a job was told, so that the next start knows of it; waits for whoever has the book, which a
    /// snapshot has as long as its guests take to hold still.
    pub fn note_told(&self, job: &Job) -> Result<()> {
        let note = |known: &mut Known| {
            if known.job == Some(job.number) {
                known.told = job.told();
            }
        };
        let noted = self.book.lock().change(|written| written.with(&job.disk, note));
        noted.map_err(|error| error.doing("it is done, but the next start will not know of it"))
    }
}
