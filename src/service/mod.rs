//! Layer 8: which disks are open, which jobs run on them, and what of that a restart finds again.
//!
//! ```text
//!   Service ── disks by name ── LiveDisk ◄── guests, through the server (Service is what it exports)
//!      │            └── one job at a time, in a thread of its own
//!      └── book: each disk's head, durably, in one file
//! ```
//!
//! What stays true: a disk whose consolidation was cut off goes on with it before its first guest can write; no guest
//! writes an image that is not the head of its disk by the book; a disk that cannot be served says why. What stops the
//! service leaves each job's journal as it is, so that the next start goes on from its mark.
//!
//! Locks, in this order: sealing (by jobs that move disks), book, backups, disks, jobs, what one disk or job keeps. Whoever
//! changes which disks there are, or which jobs, holds the book all the while.
#![forbid(unsafe_code)]

mod backup;
mod bitmaps;
mod book;
mod changed;
mod event;
mod exports;
mod fold;
mod hooks;
mod job;
mod layers;
mod migrate;
mod snapshot;
mod start;
mod view;

pub use backup::{BackupEnded, BackupPart, BackupView};
pub use book::Named;
pub use event::{Event, Happened};
pub use fold::{FoldRequest, Speed};
pub use hooks::{AskNobody, Hooks, Phase, Quiesce};
pub use job::{Job, JobState, Task};
pub use layers::{DiffOf, DiffRange};
pub use migrate::MigrateRequest;
pub use snapshot::SnapshotOf;
pub use view::{ClientView, CutOffView, DiskView, ErrorView, JobView, LayerView, Moving};

use crate::{
    base::{Error, ErrorKind, Result, clock::Stopwatch},
    chain::{self, Opening},
    disk::Disk,
    export::{Context, Guests},
    io::{Host, Witness},
    job::{
        consolidate::{Folding, LivePace},
        live::LiveDisk,
        snapshot::Looked,
    },
    store::{Lease, Purpose},
};
use backup::Backup;
use book::Book;
use event::Events;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, SeqCst},
            fence,
        },
    },
    thread::JoinHandle,
    time::Duration,
};

/// How often it is looked whether somebody has let go.
const GLANCE: Duration = Duration::from_millis(10);

/// How long a client may take to let go of a disk that is to be detached.
const LETTING_GO: Duration = Duration::from_millis(300);

/// How long what clients have asked for may take that are made to leave; then their connections are cut.
const LEAVING: Duration = Duration::from_secs(3);
/// How long the disk may take to give back what was asked of it for clients that were cut.
const CUTTING: Duration = Duration::from_secs(1);

/// What a service works with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The machine.
    pub host: Arc<dyn Host>,
    /// Which references are followed, and what is known of layers.
    pub opening: Opening,
    /// The folder that keeps which image is which disk's head; `None`: nothing is kept.
    pub state: Option<PathBuf>,
    /// Whether jobs that were cut off go on by themselves.
    pub resumes: bool,
    /// How much a job does at a time.
    pub pace: LivePace,
    /// Who asks guests to hold still.
    pub quiesce: Arc<dyn Quiesce>,
}

/// Disks that are held open, and the jobs on them.
#[derive(Debug)]
pub struct Service {
    settings: Settings,
    book: Mutex<Book>,
    disks: Mutex<BTreeMap<String, Entry>>,
    jobs: Mutex<BTreeMap<u64, Arc<Job>>>,
    backups: Mutex<BTreeMap<String, Arc<Backup>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held by the job that gives layers their content IDs.
    sealing: Mutex<()>,
    events: Events,
    is_stopping: AtomicBool,
    /// Whether guests may hold still for a snapshot that is not over.
    is_freezing: AtomicBool,
}

/// A disk that somebody asked for.
#[derive(Clone, Debug)]
enum Entry {
    /// It is open.
    Open(Arc<Held>),
    /// It is not served, and this is why.
    Refused(Named, Arc<Error>),
}

/// An open disk.
struct Held {
    disk: Arc<LiveDisk>,
    /// The header of the head that it had when it was opened.
    opened_as: Witness,
    /// How its layers are opened.
    opening: Opening,
    is_read_only: bool,
    contexts: Vec<Arc<dyn Context>>,
    /// Its clients.
    guests: Arc<Guests>,
    /// Whether nobody new comes in: changed while holding the disks, as whoever comes in finds it.
    is_closed: AtomicBool,
    /// The last job on it.
    job: Mutex<Option<Arc<Job>>>,
    /// Tells other processes which layers it uses.
    lease: Mutex<Option<Lease>>,
    /// A fold whose job has failed and which could not be taken back, or ended, either: guests go on with it.
    stuck: Mutex<Option<Box<Folding>>>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Held {
    /// Returns the job on it that has not ended.
    fn running(&self) -> Option<Arc<Job>> {
        self.job.lock().clone().filter(|job| !job.is_over())
    }

    /// Refuses what cannot be done while a job changes the layers, or has failed and is not settled.
    fn refuse_job(&self, name: &str) -> Result<()> {
        if let Some(job) = self.running() {
            return Err(Error::busy(format!("disk '{name}': job {} is on it", job.number)));
        }
        // Whoever settles it now may ask for the book: it is not waited for.
        let is_settled = self.stuck.try_lock().is_some_and(|stuck| stuck.is_none());
        if is_settled {
            Ok(())
        } else {
            Err(Error::busy(format!("disk '{name}': a job on it has failed, and is not over")))
        }
    }

    /// Whether nobody has it but `own` holders that are known, and nobody else its disk.
    fn is_alone(self: &Arc<Self>, own: usize) -> bool {
        // Who finds a disk takes hold of it before it lets go of this: looked at in the same order.
        let is_known = Arc::strong_count(self) <= own;
        fence(Acquire);
        is_known && Arc::strong_count(&self.disk) == 1
    }

    /// Refuses who comes in while nobody may.
    fn refuse_closed(&self, name: &str) -> Result<()> {
        if self.is_closed.load(SeqCst) {
            return Err(Error::busy(format!("disk '{name}': goes back to one of its layers")));
        }
        Ok(())
    }

    /// Makes its bitmaps sound, now that nobody writes it; those that cannot be so stay marked as in use.
    fn keep_bitmaps(&self, name: &str) {
        if let Err(error) = bitmaps::keep(&self.disk, &self.opened_as) {
            tracing::warn!(%error, disk = name, "bitmaps stay marked as in use");
        }
    }

    /// Leases the layers that it uses now, but for a head that guests write: that one is locked as a whole. Where that fails,
    /// the locks on the open layers have to do.
    fn lease(&self, host: &Arc<dyn Host>, name: &str) {
        let chain = self.disk.chain();
        let used = chain.layers().get(usize::from(!self.is_read_only)..).unwrap_or_default();
        match chain::lease(host, used, &Purpose::disk(name)) {
            // The one before goes last: there is no moment without.
            Ok(lease) => *self.lease.lock() = (!used.is_empty()).then_some(lease),
            Err(error) => tracing::warn!(%error, disk = name, "its layers are not leased"),
        }
    }

    /// Takes back, or ends, what a job before could not. The book must not be held: the head may become another one.
    fn settle(&self) -> Result<()> {
        let mut stuck = self.stuck.lock();
        if let Some(folding) = stuck.as_mut() {
            let what = "a job on it has failed, and can be neither ended nor taken back yet";
            folding.conclude().map_err(|error| error.doing(what))?;
            *stuck = None;
        }
        Ok(())
    }
}

impl Service {
    /// Opens the disks that are `named` and those that the book says were attached. One that cannot be served is listed
    /// with the reason ([`Service::refused`]).
    ///
    /// Fails if the state folder cannot be used: `Busy` while another process does, `Corrupt` for a book that cannot be
    /// read.
    pub fn start(settings: Settings, named: &[Named]) -> Result<Arc<Self>> {
        let book = Book::open(&settings.host, settings.state.as_deref())?;
        let service = Arc::new(Self {
            settings,
            book: Mutex::new(book),
            disks: Mutex::default(),
            jobs: Mutex::default(),
            backups: Mutex::default(),
            threads: Mutex::default(),
            sealing: Mutex::default(),
            events: Events::default(),
            is_stopping: AtomicBool::new(false),
            is_freezing: AtomicBool::new(false),
        });
        service.open_all(named)?;
        Ok(service)
    }

    /// Returns the disks that are not served, each with the reason.
    pub fn refused(&self) -> Vec<(String, Arc<Error>)> {
        let disks = self.disks.lock();
        let refused = disks.iter().filter_map(|(name, entry)| match entry {
            Entry::Refused(_, why) => Some((name.clone(), Arc::clone(why))),
            Entry::Open(_) => None,
        });
        refused.collect()
    }

    /// Opens a disk; guests can come as soon as this returns. It is opened again by the next start.
    ///
    /// `Exists` if the name is taken, `Policy` where the book has another head for it; else as opening the chain, or
    /// going on with a job on it that was cut off.
    pub fn attach(self: &Arc<Self>, named: &Named) -> Result<()> {
        let mut book = self.book.lock();
        self.refuse_stopping()?;
        if let Some(Entry::Open(_)) = self.disks.lock().get(&named.name) {
            return Err(Error::new(ErrorKind::Exists, format!("a disk is called '{}' already", named.name)));
        }
        if self.backup_export(&named.name).is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("a backup exports '{}'", named.name)));
        }
        self.open_one(&mut book, named, true, &mut Looked::default())?;
        self.reopen_backups(&book);
        Ok(())
    }

    /// Stops to serve a disk: it is flushed and closed. One that is not served is forgotten, whatever the book says.
    ///
    /// `forces`: its clients are disconnected, as soon as what is being done for them is done, and after 4 seconds at
    /// the latest.
    ///
    /// `Busy` while clients use it that are not made to leave, while a job does, or where the disk does not give back
    /// what was asked of it: then it is served on.
    pub fn detach(&self, name: &str, forces: bool) -> Result<()> {
        let is_open = matches!(self.disks.lock().get(name), Some(Entry::Open(_)));
        if is_open {
            self.held(name)?.settle()?;
        }
        let mut book = self.book.lock();
        let entry = self.disks.lock().get(name).cloned();
        let Some(Entry::Open(held)) = entry else {
            let is_known = book.written().disks.contains_key(name);
            if entry.is_none() && !is_known {
                return Err(none(name));
            }
            book.change(|written| drop(written.disks.remove(name)))?;
            self.disks.lock().remove(name);
            self.events.say(Happened::Detached, name, None);
            return Ok(());
        };
        held.refuse_job(name)?;
        self.refuse_backup(name)?;
        // Nobody new comes in from here on.
        self.disks.lock().remove(name);
        let closed = Self::wait_alone(name, &held, 1, forces)
            .and_then(|()| held.disk.flush())
            .map(|()| held.keep_bitmaps(name))
            .and_then(|()| book.change(|written| written.detach(name)));
        if let Err(error) = closed {
            self.disks.lock().insert(name.to_owned(), Entry::Open(held));
            return Err(error);
        }
        self.close(name, held);
        self.events.say(Happened::Detached, name, None);
        Ok(())
    }

    /// Waits until nobody has the disk but the `own` holders of the service; nobody new comes in meanwhile.
    fn wait_alone(name: &str, held: &Arc<Held>, own: usize, forces: bool) -> Result<()> {
        let watch = Stopwatch::start();
        let patience = if forces { LEAVING + CUTTING } else { LETTING_GO };
        while !held.is_alone(own) {
            let elapsed = watch.elapsed();
            let guests = held.guests.here();
            if elapsed > patience {
                let what = match guests.len() {
                    _ if forces => "what was asked of it does not come back".to_owned(),
                    0 => "it is in use".to_owned(),
                    1 => "1 client uses it".to_owned(),
                    n => format!("{n} clients use it"),
                };
                return Err(Error::busy(format!("disk '{name}': {what}")));
            }
            if forces {
                // Again and again: one may have been on its way in.
                for (_, guest) in &guests {
                    if elapsed < LEAVING { guest.stop() } else { guest.cut() }
                }
            }
            drop(guests);
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Does something with a disk that no client has, and none gets meanwhile; `Busy` if one has it.
    fn while_alone<T>(&self, name: &str, held: &Arc<Held>, what: impl FnOnce() -> T) -> Result<T> {
        let close = |is_closed| {
            // Who came in before this is counted; who comes in after it sees it.
            let _disks = self.disks.lock();
            held.is_closed.store(is_closed, SeqCst);
        };
        close(true);
        let done = Self::wait_alone(name, held, 2, false).map(|()| what());
        close(false);
        done
    }

    /// Closes a disk; what a job left that was given up goes with it, if nobody else holds the disk.
    fn close(&self, name: &str, held: Arc<Held>) {
        let cancelled =
            held.job.lock().as_ref().filter(|job| job.is_given_up()).map(|job| job.plan.top().to_path_buf());
        let Some(top) = cancelled else { return };
        // A client's last thread lets go after its connection is gone.
        let cleared = Self::wait_alone(name, &held, 1, false).and_then(|()| {
            drop(held);
            self.clear(&top)
        });
        if let Err(error) = cleared {
            // The next start tries again.
            tracing::warn!(%error, "what a job left stays");
        }
    }

    fn held(&self, name: &str) -> Result<Arc<Held>> {
        match self.disks.lock().get(name) {
            Some(Entry::Open(held)) => Ok(Arc::clone(held)),
            Some(Entry::Refused(named, why)) => {
                Err(Error::new(why.kind(), format!("disk '{name}' is not served: {why}")).path(&named.path))
            }
            None => Err(none(name)),
        }
    }

    fn refuse_stopping(&self) -> Result<()> {
        if self.is_stopping.load(SeqCst) { Err(Error::busy("the daemon stops")) } else { Ok(()) }
    }

    /// Stops: running jobs stop at a mark from which the next start goes on, then every disk is flushed and closed.
    /// Exports have to be stopped before, so that no guest writes any more.
    ///
    /// Takes `patience` and little more; `Busy` if a job was not done by then, and goes on as after a power cut.
    pub fn stop(&self, patience: Duration) -> Result<()> {
        let watch = Stopwatch::start();
        self.is_stopping.store(true, SeqCst);
        // Whoever was asked to hold still is asked to go on: as long as that takes, which has a bound of its own.
        while self.is_freezing.load(SeqCst) {
            std::thread::sleep(GLANCE);
        }
        // Who holds the book began before this, and may be about to start a job.
        drop(self.book.try_lock_for(patience));
        let jobs: Vec<_> = self.jobs.lock().values().cloned().collect();
        for job in &jobs {
            job.progress.cancel();
        }
        let mut stopped = Ok(());
        for job in jobs {
            if !job.wait(patience.saturating_sub(watch.elapsed())) {
                stopped = Err(Error::busy(format!("job {} did not stop in time", job.number)));
            }
        }
        if stopped.is_ok() {
            // They have nothing left to do but to let go of what they held.
            let threads = std::mem::take(&mut *self.threads.lock());
            for thread in threads {
                drop(thread.join());
            }
        }
        self.backups.lock().clear();
        let disks = std::mem::take(&mut *self.disks.lock());
        // Each is flushed, whatever becomes of the others.
        for (name, entry) in disks {
            if let Entry::Open(held) = entry {
                // What stays stuck is gone on with by the next start, as after a power cut.
                let is_settled = held.settle().is_ok();
                tracing::debug!(disk = name, is_settled, "closed");
                let flushed = held.disk.flush().map_err(|error| error.doing(format!("disk '{name}'")));
                if flushed.is_ok() && stopped.is_ok() {
                    held.keep_bitmaps(&name);
                }
                stopped = stopped.and(flushed);
                self.close(&name, held);
            }
        }
        stopped
    }
}

fn none(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no disk is called '{name}'"))
}

#[cfg(test)]
mod tests;
