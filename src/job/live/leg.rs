//! The second leg of a disk in use: the target of a fold, kept equal by the mirror.

use super::{
    latency::Latencies,
    mirror::{Admission, Checkpoint, Ended, Mirror, Noted, Part, Route},
};
use crate::{
    base::{
        Error, ErrorKind, Guard, GuestOffset, GuestRange, Result,
        clock::Stopwatch,
        units::{count, index},
    },
    chain::{Chain, View},
    disk::Disk,
    format::Image,
    io::{self, Kept},
    map::RangeSet,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Where a fold's progress is kept.
pub trait Notes: Send + fmt::Debug {
    /// Makes `said` durable; torn by a crash, it leaves what was said before.
    fn note(&mut self, said: &Noted) -> Result<()>;

    /// Says durably that nothing is done: from here on the target misses writes. Fails where it must not.
    fn give_up(&mut self) -> Result<()>;
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    Write(&'a [u8]),
    Zero(Kept),
}

impl Change<'_> {
    pub(super) fn on_chain(self, chain: &Chain, range: GuestRange) -> Result<()> {
        match self {
            Self::Write(bytes) => chain.write(range.start, bytes),
            Self::Zero(kept) => chain.zero(range, kept),
        }
    }

    /// Does the part of it that covers `part` of `range`.
    fn on_target(self, leg: &Leg, range: GuestRange, part: GuestRange) -> Result<()> {
        match self {
            Self::Write(bytes) => {
                let from = index(part.start.since(range.start));
                let bytes = bytes.get(from..from + index(part.bytes)).unwrap_or_default();
                leg.target.write(part.start, bytes, &leg.below)
            }
            Self::Zero(kept) => leg.target.zero(part, kept, &leg.below),
        }
    }
}

/// What one step of the copier did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// Every listed byte has landed.
    Complete,
    /// A block has landed.
    Moved {
        /// Bytes copied.
        copied_bytes: u64,
        /// Bytes marked as zero.
        zeroed_bytes: u64,
        /// Where to go on.
        next: GuestOffset,
    },
}

/// The second leg.
#[derive(Debug)]
pub struct Leg {
    target: Arc<dyn Image>,
    below: View,
    mirror: Mutex<Mirror>,
    /// A write has ended, or the copier's hand is empty.
    turned: Condvar,
    notes: Mutex<Box<dyn Notes>>,
    /// Regions that writers wait for to be noted: one durable write notes all of them.
    wanted: Mutex<BTreeSet<u64>>,
    /// Whether the target misses writes; the fold cannot go on then.
    is_out: AtomicBool,
    why_out: Mutex<Option<Error>>,
    /// How long guests' writes have taken since this was last asked, in nanoseconds.
    guest_ns: AtomicU64,
    mirrored_bytes: AtomicU64,
    /// What guests' requests take.
    latencies: Latencies,
}

impl Leg {
    /// Makes the leg of a target over what lies `below` it, to be kept equal by `mirror`.
    pub fn new(target: Arc<dyn Image>, below: View, mirror: Mirror, notes: Box<dyn Notes>) -> Self {
        Self {
            target,
            below,
            mirror: Mutex::new(mirror),
            turned: Condvar::new(),
            notes: Mutex::new(notes),
            wanted: Mutex::default(),
            is_out: AtomicBool::new(false),
            why_out: Mutex::new(None),
            guest_ns: AtomicU64::new(0),
            mirrored_bytes: AtomicU64::new(0),
            latencies: Latencies::default(),
        }
    }

    /// Says what is to be copied; see [`Mirror::survey`].
    pub fn survey(&self, list: &RangeSet) {
        self.mirror.lock().survey(list);
    }

    /// Returns whether every listed byte has landed; nothing gets on the list any more then.
    pub fn close(&self) -> bool {
        self.mirror.lock().close()
    }

    /// Returns how many bytes guests wrote to both places.
    pub fn mirrored_bytes(&self) -> u64 {
        self.mirrored_bytes.load(Relaxed)
    }

    /// Returns how long guests' writes have taken, all together, since this was last asked.
    pub fn take_guest_time(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.guest_ns.swap(0, Relaxed))
    }

    /// What guests' requests take while writes pass the leg.
    pub const fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Fails with what put the target out, if it misses writes.
    pub fn check(&self) -> Result<()> {
        match self.why_out.lock().take() {
            Some(error) => Err(error),
            None if self.is_out.load(Relaxed) => Err(Error::io("went on without the target", out())),
            None => Ok(()),
        }
    }

    pub(super) fn change(&self, current: &Chain, range: GuestRange, change: Change<'_>) -> Result<()> {
        let watch = Stopwatch::start();
        let Some((number, parts)) = self.enter(range)? else { return change.on_chain(current, range) };
        let mut answer = change.on_chain(current, range);
        let mut how = if answer.is_ok() { Ended::Landed } else { Ended::Failed };
        if answer.is_ok() {
            let mut doubles = parts.iter().filter(|part| part.route == Route::Both);
            let landed = doubles.try_for_each(|part| {
                self.mirrored_bytes.fetch_add(part.range.bytes, Relaxed);
                change.on_target(self, range, part.range)
            });
            if landed.is_err() {
                how = Ended::Failed;
            }
            answer = landed.or_else(|error| self.put_out(error));
        }
        self.mirror.lock().end(number, how);
        self.turned.notify_all();
        let took = watch.elapsed();
        self.latencies.count(took);
        self.guest_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        answer
    }

    /// Waits until a write may begin; `None` once the target is out.
    fn enter(&self, range: GuestRange) -> Result<Option<(u64, Vec<Part>)>> {
        let mut mirror = self.mirror.lock();
        let early = if Guard::MirrorRoute.trips(true) { None } else { Some(mirror.route(range)) };
        loop {
            if self.is_out.load(Relaxed) {
                return Ok(None);
            }
            let parts = early.clone().unwrap_or_else(|| mirror.route(range));
            match mirror.admit(range, parts) {
                Admission::Go(number, parts) => return Ok(Some((number, parts))),
                Admission::Later => self.turned.wait(&mut mirror),
                Admission::Note(fresh) => {
                    drop(mirror);
                    self.note(&fresh)?;
                    mirror = self.mirror.lock();
                }
            }
        }
    }

    /// Makes regions durable in the intent map, with those that other writers wait for.
    fn note(&self, fresh: &[u64]) -> Result<()> {
        self.wanted.lock().extend(fresh);
        let mut notes = self.notes.lock();
        let wanted: Vec<u64> = std::mem::take(&mut *self.wanted.lock()).into_iter().collect();
        if wanted.is_empty() || self.is_out.load(Relaxed) {
            return Ok(());
        }
        let said = self.mirror.lock().to_note(&wanted);
        if let Err(error) = notes.note(&said) {
            return self.put_out_with(notes.as_mut(), error);
        }
        self.mirror.lock().noted(&wanted);
        Ok(())
    }

    /// Goes on without the target: the guest does not see that it failed. Not before a crash would know of it.
    fn put_out(&self, error: Error) -> Result<()> {
        self.put_out_with(self.notes.lock().as_mut(), error)
    }

    fn put_out_with(&self, notes: &mut dyn Notes, error: Error) -> Result<()> {
        if !self.is_out.load(Relaxed) {
            if Guard::MirrorGivenUp.trips(true) && notes.give_up().is_err() {
                return Err(error);
            }
            *self.why_out.lock() = Some(error);
            // Under its lock: nobody looks before and waits afterwards.
            let _mirror = self.mirror.lock();
            self.is_out.store(true, Relaxed);
        }
        self.turned.notify_all();
        Ok(())
    }

    /// Goes on without the target, as asked. Writes that begin after this returns do not reach it.
    pub fn leave(&self) -> Result<()> {
        self.put_out(Error::new(ErrorKind::Interrupted, "stopped, as asked"))
    }

    pub(super) fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        self.target.zeroes_fast(range, kept)
    }

    /// Makes everything written to the target before this call durable. The guest does not see a failure.
    pub(super) fn flush(&self) -> Result<()> {
        if self.is_out.load(Relaxed) {
            return Ok(());
        }
        self.target.flush().or_else(|error| self.put_out(error))
    }

    /// Brings the next listed block, from `at` on, to the target.
    pub fn advance(&self, current: &Chain, at: GuestOffset, buf: &mut Buffers) -> Result<Advance> {
        let mut mirror = self.mirror.lock();
        let Some(hand) = mirror.take(at) else { return Ok(Advance::Complete) };
        while !mirror.is_free() {
            self.turned.wait(&mut mirror);
        }
        let held = mirror.in_hand();
        drop(mirror);
        let carried = held.iter().try_fold((0, 0), |(copied, zeroed), range| {
            let (more, zeros) = self.carry(current, *range, buf)?;
            Ok((copied + more, zeroed + zeros))
        });
        let mut mirror = self.mirror.lock();
        match carried {
            Ok(_) => mirror.landed(),
            Err(_) => mirror.dropped(),
        }
        drop(mirror);
        self.turned.notify_all();
        let (copied_bytes, zeroed_bytes) = carried?;
        Ok(Advance::Moved { copied_bytes, zeroed_bytes, next: hand.end() })
    }

    /// Brings `range`, which no guest writes meanwhile, to the target, and looks whether it is there.
    fn carry(&self, current: &Chain, range: GuestRange, buf: &mut Buffers) -> Result<(u64, u64)> {
        let (mut copied, mut zeroed) = (0, 0);
        let Buffers { runs, bytes, shown } = buf;
        runs.clear();
        current.runs(range, runs)?;
        bytes.resize(index(range.bytes), 0);
        current.read(range.start, bytes)?;
        for run in runs.iter() {
            let from = index(run.range.start.since(range.start));
            let part = bytes.get(from..from + index(run.range.bytes)).unwrap_or_default();
            if run.is_zero() {
                self.target.zero(run.range, Kept::Nothing, &self.below)?;
                zeroed += run.range.bytes;
            } else {
                self.target.write(run.range.start, part, &self.below)?;
                copied += count(part.len());
            }
        }
        shown.resize(bytes.len(), 0);
        self.target.read(range.start, shown, &self.below)?;
        if shown == bytes {
            return Ok((copied, zeroed));
        }
        let what = format!(
            "does not show what was just copied to guest bytes {:#x} to {:#x}",
            range.start,
            range.end()
        );
        Err(Error::corrupt(what).path(self.target.data_file().path()))
    }

    /// Has the host begin to write the target back; nothing is waited for.
    pub fn begin_flush(&self) {
        io::begin_flush(self.target.data_file().as_ref());
    }

    /// Makes what has landed durable on both legs, and notes it. Guests go on meanwhile.
    pub fn checkpoint(&self, current: &Chain) -> Result<()> {
        let checkpoint: Checkpoint = self.mirror.lock().checkpoint();
        if Guard::MirrorCurrentFlush.trips(true) {
            current.flush()?;
        }
        if Guard::MirrorTargetFlush.trips(true) {
            self.target.flush()?;
        }
        let mut notes = self.notes.lock();
        self.check()?;
        let said = self.mirror.lock().settle(&checkpoint);
        notes.note(&said)
    }
}

/// What the copier uses again from block to block.
#[derive(Debug, Default)]
pub struct Buffers {
    runs: Vec<crate::chain::Run>,
    bytes: Vec<u8>,
    shown: Vec<u8>,
}

fn out() -> std::io::Error {
    std::io::Error::other("the target failed")
}
