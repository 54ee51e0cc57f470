//! Disks that go to another store while guests use them.
//!
//! What stays true: until the fold of the head is recorded the disk is what the book says it is; a start goes on with the move,
//! or serves the disk as it was. Where the record may have landed, and the other store is not there, the disk is not served.

use super::{
    GLANCE, Service,
    book::Going,
    fold::{Stand, check},
    job::{Job, JobState, Task, Told},
};
use crate::{
    base::{Error, ErrorKind, Result, name::FileName},
    chain::Opening,
    job::{
        Manners,
        consolidate::Folding,
        live::LiveDisk,
        migrate::{Migration, Plan, Request},
    },
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Where a disk is to go, and how fast.
#[derive(Clone, Debug, Default)]
pub struct MigrateRequest {
    /// Where.
    pub request: Request,
    /// As [`super::FoldRequest::share`].
    pub share: Option<f64>,
    /// As [`super::FoldRequest::latency_target`].
    pub latency_target: Option<Duration>,
    /// As [`super::FoldRequest::rate`].
    pub rate: u64,
    /// As [`super::FoldRequest::deadline`].
    pub deadline: Option<Duration>,
}

impl Service {
    /// Returns what a move of a disk to another store would do. Fails as [`Migration::prepare`].
    pub fn plan_migrate(&self, name: &str, request: &Request) -> Result<Plan> {
        let held = self.held(name)?;
        held.settle()?;
        held.refuse_job(name)?;
        Ok(self.prepare_move(name, request)?.plan().clone())
    }

    fn prepare_move(&self, name: &str, request: &Request) -> Result<Migration> {
        let held = self.held(name)?;
        if held.is_read_only {
            return Err(Error::policy("is served for reading only").path(&held.disk.chain().head()?.path));
        }
        Migration::prepare(&self.settings.host, &held.disk, &held.opening, request)
    }

    /// Starts to bring a disk to another store, and returns at once. Until it is there, no snapshot of it is taken, and no
    /// other job begins on it.
    ///
    /// Fails as [`Migration::prepare`]; `Invalid` without a state folder; `Busy` while another job is on the disk.
    pub fn migrate(self: &Arc<Self>, name: &str, asked: &MigrateRequest) -> Result<Arc<Job>> {
        let manners = Manners { share: asked.share, latency_target: asked.latency_target };
        check(manners)?;
        let held = self.held(name)?;
        held.settle()?;
        held.refuse_job(name)?;
        if self.settings.state.is_none() {
            let what = "there is no state folder that would keep the new head's place over a restart";
            return Err(Error::invalid(what));
        }
        // What the store has may have to be hashed here: others need the book meanwhile.
        let migration = self.prepare_move(name, &asked.request)?;
        let mut book = self.book.lock();
        let held = self.free_for_a_job(&book, name)?;
        if !migration.is_of(&held.disk)? {
            let what = format!("disk '{name}': was changed while its move was planned: ask again");
            return Err(Error::busy(what));
        }
        let told = Told::of(asked.rate, manners).due_within(asked.deadline);
        let number = book.change(|written| {
            let number = written.number();
            written.with(name, |known| {
                let store = migration.plan().store.clone();
                let going = Going::of(&Request { store, ..asked.request.clone() });
                known.begin_move(number, &migration.plan().result, going);
                known.told = told;
            });
            number
        })?;
        let job = Job::new(number, name, migration.plan().clone(), told);
        self.launch(&held, &job, Stand::Moving(Box::new(migration)))?;
        Ok(job)
    }

    /// Brings the layers below the head, and takes the second leg on; `None` if the service stopped meanwhile. What fails
    /// leaves at the store what is whole there.
    pub(super) fn bring(&self, job: &Job, migration: &Migration) -> Result<Option<Folding>> {
        job.copies();
        self.say(job, JobState::Running);
        let brought = self.seal(job, migration).and_then(|()| migration.bring(&job.progress));
        let is_stopped = brought.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted);
        if is_stopped && self.is_stopping.load(Relaxed) && !job.is_given_up() {
            return Ok(None);
        }
        let begun = brought.and_then(|below| {
            let place = below.place().map(|place| FileName(place.to_path_buf()));
            self.book.lock().change(|written| {
                written.with(&job.disk, |known| {
                    if let Some(going) = &mut known.going {
                        going.below = place;
                    }
                });
            })?;
            migration.fold(&below)?.begin(self.settings.pace)
        });
        begun.map(Some).inspect_err(|_| {
            if let Err(error) = migration.give_up() {
                tracing::warn!(%error, "what a move has in the making stays");
            }
        })
    }

    /// One after the other: disks that share a layer would each give it an epoch.
    fn seal(&self, job: &Job, migration: &Migration) -> Result<()> {
        let _turn = loop {
            job.progress.checkpoint()?;
            if let Some(turn) = self.sealing.try_lock_for(GLANCE) {
                break turn;
            }
        };
        migration.seal(&job.progress).map(drop)
    }

    /// Goes on with a move that was cut off: with its head, if that `is_begun` and everything is where it was; else from its
    /// beginning, in which what is there by now is found by content ID. `None` if it is given up.
    pub(super) fn go_on_moving(
        &self,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        going: &Going,
        is_begun: bool,
    ) -> Result<Option<(Task, Stand)>> {
        let request = going.request()?;
        let again = || Migration::again(&self.settings.host, disk, opening, &request);
        if is_begun {
            let begun = again().and_then(|migration| {
                let below = migration.reopen(going.below.as_ref().map(|below| below.0.as_path()))?;
                let folding = migration.fold(&below)?.begin(self.settings.pace)?;
                Ok((migration.plan().clone().into(), folding))
            });
            match begun {
                Ok((task, folding)) if self.settings.resumes => {
                    return Ok(Some((task, Stand::Begun(Box::new(folding)))));
                }
                Ok((_, mut folding)) => folding.retreat()?,
                Err(error) => {
                    tracing::warn!(%error, "a move begins again");
                    self.clear(&disk.chain().head()?.path)?;
                }
            }
        }
        if !self.settings.resumes {
            drop(again().and_then(|migration| migration.give_up()));
            return Ok(None);
        }
        match again() {
            Ok(migration) => Ok(Some((migration.plan().clone().into(), Stand::Moving(Box::new(migration))))),
            Err(error) => {
                tracing::warn!(%error, "a move is given up");
                Ok(None)
            }
        }
    }
}
