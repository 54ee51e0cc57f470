//! What has happened, for those who follow it: the last events, numbered.

use super::JobState;
use crate::base::clock;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;

/// How many events are kept: who asks too late misses the oldest.
const KEPT_MAX: usize = 1024;

/// What happens to disks and jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// A disk is served from now on.
    Attached,
    /// A disk is served no more.
    Detached,
    /// A disk cannot be served.
    Refused,
    /// A disk has a new head.
    Snapshot,
    /// A disk started again from one of its layers.
    Reverted,
    /// A point in time of a disk is exported for a backup.
    Backup,
    /// It is exported no more.
    BackupEnded,
    /// A job went over to another state.
    Job,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// One more than that of the event before.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub event: Happened,
    /// To which disk.
    pub disk: String,
    /// To which job on it, and the state that it has now.
    pub job: Option<(u64, JobState)>,
}

/// The last events.
#[derive(Debug, Default)]
pub(super) struct Events(Mutex<Past>);

#[derive(Debug, Default)]
struct Past {
    last: u64,
    events: VecDeque<Event>,
}

impl Events {
    /// Tells of an event.
    pub(super) fn say(&self, event: Happened, disk: &str, job: Option<(u64, JobState)>) {
        let mut past = self.0.lock();
        past.last += 1;
        let at_ms = u64::try_from(clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        let number = past.last;
        past.events.push_back(Event { number, at_ms, event, disk: disk.to_owned(), job });
        if past.events.len() > KEPT_MAX {
            past.events.pop_front();
        }
    }

    /// Returns the number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.0.lock().last
    }

    /// Returns what happened after the event of that number.
    pub(super) fn after(&self, number: u64) -> Vec<Event> {
        self.0.lock().events.iter().filter(|event| event.number > number).cloned().collect()
    }
}
