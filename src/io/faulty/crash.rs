//! Every way in which the power can go during a history.
//!
//! After each event of a trace the disk holds at least what was made durable. Of the rest any part may be
//! there: this yields none of it, all of it, and seeded samples in between (bytes whole, torn in units of
//! 512 or 4096 bytes, or not at all; a new length with or without its bytes; names of a folder up to some
//! change, in their order). A file's time of change follows its bytes, or not.

use super::{
    SimHost,
    disk::{Disk, Event, Landed, NameChange},
};
use crate::base::seed::Seeded;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// What a machine did since it was switched on.
#[derive(Clone, Debug)]
pub struct Trace {
    pub(super) boot: u128,
    pub(super) start: Disk,
    pub(super) events: Vec<Event>,
}

impl Trace {
    /// Returns how many events there were.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Returns which of them are barriers that did their work, in order.
    pub fn barriers(&self) -> Vec<usize> {
        let is_barrier = |event: &Event| matches!(event, Event::Flush { .. } | Event::Sync { .. });
        self.events.iter().enumerate().filter(|(_, event)| is_barrier(event)).map(|(at, _)| at).collect()
    }
}

/// Which of the events that were not durable yet had reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Landing {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// A seeded part: the number of the sample.
    Part(u64),
}

/// A machine that was switched on again after its power went.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The machine: a new boot, no locks, an empty trace.
    pub host: SimHost,
    /// How many events of the trace had been issued.
    pub after: usize,
    /// What had landed.
    pub landing: Landing,
}

/// Returns the machine after a power cut behind each event of `trace`, the start included; where events were
/// waiting to become durable: with none of them, with all, and with `samples` seeded parts of them.
///
/// The same arguments give the same machines.
pub fn crash_states(trace: &Trace, seed: u64, samples: u64) -> impl Iterator<Item = Crash> + '_ {
    Walk {
        trace,
        durable: trace.start.clone(),
        landed: trace.start.clone(),
        pending: Vec::new(),
        after: 0,
        stage: 0,
        samples,
        seed: Seeded::new(seed),
    }
}

/// Returns the machine as it goes on behind each event of `trace`, the start included, when the program was
/// killed there: everything is seen, the boot is the same. What was not durable is still not: the machine's own
/// trace begins with those events.
pub fn kill_states(trace: &Trace) -> impl Iterator<Item = Crash> + '_ {
    let mut disk = trace.start.clone();
    (0..=trace.events.len()).map(move |after| {
        match after.checked_sub(1).and_then(|last| trace.events.get(last)) {
            Some(Event::Content { inode, change, time }) => {
                disk.apply(*inode, change);
                disk.set_modified(*inode, *time);
            }
            Some(Event::Name(change)) => disk.rename(change),
            Some(Event::Flush { .. } | Event::Sync { .. }) | None => {}
        }
        let events = trace.events.iter().take(after).cloned().collect();
        let host =
            SimHost::go_on(disk.clone(), Trace { events, start: trace.start.clone(), boot: trace.boot });
        Crash { host, after, landing: Landing::Everything }
    })
}

#[derive(Debug)]
struct Walk<'a> {
    trace: &'a Trace,
    durable: Disk,
    landed: Disk,
    /// Events before `after` that are not durable, in order.
    pending: Vec<&'a Event>,
    after: usize,
    /// What comes next here: 0 nothing landed, 1 everything, from 2 on samples.
    stage: u64,
    samples: u64,
    seed: Seeded,
}

impl Iterator for Walk<'_> {
    type Item = Crash;

    fn next(&mut self) -> Option<Crash> {
        let stages = if self.pending.is_empty() { 1 } else { 2 + self.samples };
        if self.stage == stages {
            let event = self.trace.events.get(self.after)?;
            self.advance(event);
            (self.after, self.stage) = (self.after + 1, 0);
        }
        let (landing, mut disk) = match self.stage {
            0 => (Landing::Nothing, self.durable.clone()),
            1 => (Landing::Everything, self.landed.clone()),
            n => (Landing::Part(n - 2), self.sample()),
        };
        self.stage += 1;
        disk.settle();
        let boot = u128::from(self.seed.next()) << 64 | u128::from(self.seed.next());
        Some(Crash { host: SimHost::boot(disk, boot), after: self.after, landing })
    }
}

impl<'a> Walk<'a> {
    /// Takes in the next event.
    fn advance(&mut self, event: &'a Event) {
        match event {
            Event::Content { inode, change, time } => {
                self.landed.apply(*inode, change);
                self.landed.set_modified(*inode, *time);
                self.pending.push(event);
            }
            Event::Name(change) => {
                self.landed.rename(change);
                self.pending.push(event);
            }
            Event::Flush { inode, has_time } => {
                let durable = &mut self.durable;
                if let Some(landed) = self.landed.inode(*inode).filter(|_| *has_time) {
                    durable.set_modified(*inode, landed.modified);
                }
                self.pending.retain(|event| match event {
                    Event::Content { inode: of, change, .. } if of == inode => {
                        // The time stays old: a flush of the bytes does not promise it.
                        durable.apply(*inode, change);
                        false
                    }
                    _ => true,
                });
            }
            Event::Sync { folder } => self.sync(folder),
        }
    }

    /// Makes the names of a folder durable, and what they depend on.
    fn sync(&mut self, folder: &std::path::Path) {
        let mut synced: Vec<&NameChange> = Vec::new();
        for event in self.pending.iter().rev() {
            if let Event::Name(change) = event
                && (change.is_in(folder) || synced.iter().any(|later| later.depends_on(change)))
            {
                synced.push(change);
            }
        }
        synced.iter().rev().for_each(|change| self.durable.rename(change));
        let is_synced = |change: &NameChange| synced.iter().any(|one| std::ptr::eq(*one, change));
        self.pending.retain(|event| !matches!(event, Event::Name(change) if is_synced(change)));
    }

    /// The durable disk with a part of what was pending.
    fn sample(&mut self) -> Disk {
        let (mut disk, seed) = (self.durable.clone(), &mut self.seed);
        // Few, half or most of the events: each shows other faults.
        let part = [1, 4, 7].get(crate::base::units::index(seed.below(3))).copied().unwrap_or(4);
        let mut stopped: BTreeSet<Option<PathBuf>> = BTreeSet::new();
        let mut times: BTreeMap<u64, u64> = BTreeMap::new();
        for event in &self.pending {
            match event {
                Event::Content { inode, change, time } => {
                    let landed = match (seed.chance(part, 8), seed.below(4)) {
                        (false, _) => Landed::Nothing,
                        (true, 0) => Landed::Torn(512),
                        (true, 1) => Landed::Torn(4096),
                        (true, _) => Landed::All,
                    };
                    disk.apply_part(*inode, change, landed, seed);
                    times.insert(*inode, *time);
                }
                Event::Name(change) => {
                    let folder = change.path.parent().map(PathBuf::from);
                    if !stopped.contains(&folder) && seed.chance(part, 8) {
                        disk.rename(change);
                    } else {
                        stopped.insert(folder);
                    }
                }
                Event::Flush { .. } | Event::Sync { .. } => {}
            }
        }
        for (inode, time) in times {
            if seed.chance(1, 2) {
                disk.set_modified(inode, time);
            }
        }
        disk
    }
}
