//! The second leg of a disk in use: the target of a fold, kept equal by the mirror.

use super::{
    fair::{COURTESY, Fairness},
    hands::{Hands, Left},
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
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
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
    fn on_target(self, target: &Target, range: GuestRange, part: GuestRange) -> Result<()> {
        match self {
            Self::Write(bytes) => {
                let from = index(part.start.since(range.start));
                let bytes = bytes.get(from..from + index(part.bytes)).unwrap_or_default();
                target.image.write(part.start, bytes, &target.below)
            }
            Self::Zero(kept) => target.image.zero(part, kept, &target.below),
        }
    }
}

/// What the second leg writes, over what lies below it.
#[derive(Debug)]
struct Target {
    image: Arc<dyn Image>,
    below: View,
}

impl Target {
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
                self.image.zero(run.range, Kept::Nothing, &self.below)?;
                zeroed += run.range.bytes;
            } else {
                self.image.write(run.range.start, part, &self.below)?;
                copied += count(part.len());
            }
        }
        shown.resize(bytes.len(), 0);
        self.image.read(range.start, shown, &self.below)?;
        if shown == bytes {
            return Ok((copied, zeroed));
        }
        let what = format!(
            "does not show what was just copied to guest bytes {:#x} to {:#x}",
            range.start,
            range.end()
        );
        Err(Error::corrupt(what).path(self.image.data_file().path()))
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
    target: Arc<Target>,
    /// Who does I/O on a target that may hang; `None`: whoever wants it done.
    hands: Option<Hands>,
    /// How long a write waits for what is in its way on a target that may hang.
    patience: Option<Duration>,
    mirror: Mutex<Mirror>,
    /// One guest at a time writes to a target that does not hang: the host lets one writer into a file, and the copier
    /// would be one of as many as guests have requests in flight.
    turnstile: Mutex<()>,
    fairness: Fairness,
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
    /// Makes the leg of a target over what lies `below` it, to be kept equal by `mirror`. A target whose I/O takes longer
    /// than `patience` counts as failed; without that, it is waited for as long as it takes.
    pub fn new(
        image: Arc<dyn Image>,
        below: View,
        mirror: Mirror,
        notes: Box<dyn Notes>,
        patience: Option<Duration>,
    ) -> Self {
        Self {
            target: Arc::new(Target { image, below }),
            hands: patience.map(Hands::new),
            patience,
            mirror: Mutex::new(mirror),
            turnstile: Mutex::new(()),
            fairness: Fairness::new(COURTESY),
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

    /// Lets guests write so many bytes more, before they wait for the copier to move as much as is its share; its last
    /// move `took` so long. Returns whether they are far behind that.
    pub fn grant(&self, bytes: u64, took: Duration) -> bool {
        self.fairness.grant(bytes, took)
    }

    /// Returns how long guests' writes have taken, all together, since this was last asked.
    pub fn take_guest_time(&self) -> Duration {
        Duration::from_nanos(self.guest_ns.swap(0, Relaxed))
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
        self.fairness.ask(range.bytes);
        let waited = watch.elapsed();
        let Some((number, parts)) = self.enter(range)? else { return change.on_chain(current, range) };
        let mut answer = change.on_chain(current, range);
        let mut how = if answer.is_ok() { Ended::Landed } else { Ended::Failed };
        if answer.is_ok() {
            let doubles =
                parts.iter().filter(|part| part.route == Route::Both).map(|part| part.range).collect();
            let landed = self.change_target(range, doubles, change);
            if landed.is_err() {
                how = Ended::Failed;
            }
            answer = landed.or_else(|error| self.put_out(error));
        }
        self.mirror.lock().end(number, how);
        self.turned.notify_all();
        let took = watch.elapsed();
        self.latencies.count(took);
        let own = took.saturating_sub(waited);
        self.guest_ns.fetch_add(u64::try_from(own.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        answer
    }

    /// Does the parts of a change that go to both places on the target.
    fn change_target(&self, range: GuestRange, parts: Vec<GuestRange>, change: Change<'_>) -> Result<()> {
        self.mirrored_bytes.fetch_add(parts.iter().map(|part| part.bytes).sum(), Relaxed);
        if self.hands.is_none() || parts.is_empty() {
            let _turn = (!parts.is_empty()).then(|| self.turnstile.lock());
            return parts.into_iter().try_for_each(|part| change.on_target(&self.target, range, part));
        }
        // The guest's own bytes may be gone when a late write begins.
        let (bytes, kept) = match change {
            Change::Write(bytes) => (bytes.to_vec(), None),
            Change::Zero(kept) => (Vec::new(), Some(kept)),
        };
        self.on_target(move |target| {
            let change = kept.map_or(Change::Write(&bytes), Change::Zero);
            parts.into_iter().try_for_each(|part| change.on_target(target, range, part))
        })
    }

    /// Does something with the target that may take for ever: then the target counts as failed.
    fn on_target<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Target) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Some(hands) = &self.hands else { return work(&self.target) };
        let target = Arc::clone(&self.target);
        hands.run(move || work(&target)).unwrap_or_else(|Left| {
            self.put_out(self.hung())?;
            Err(self.hung())
        })
    }

    /// What is said of I/O on the target that is not waited for any longer.
    fn hung(&self) -> Error {
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "does not answer");
        Error::io("wait for the target", late).path(self.target.image.data_file().path())
    }

    /// Fails while I/O on the target has not returned: it may still land.
    pub fn check_quiet(&self) -> Result<()> {
        let in_file = |error: Error| error.path(self.target.image.data_file().path());
        self.hands.as_ref().map_or(Ok(()), Hands::check_quiet).map_err(in_file)
    }

    /// Waits for a write to end, or for the copier; gives the target up where that takes too long.
    fn wait_turn<'a>(
        &'a self,
        mut mirror: MutexGuard<'a, Mirror>,
        since: Stopwatch,
    ) -> Result<MutexGuard<'a, Mirror>> {
        let Some(patience) = self.patience else {
            self.turned.wait(&mut mirror);
            return Ok(mirror);
        };
        self.turned.wait_for(&mut mirror, patience);
        // What it waits for has begun before, and gets its own time.
        if since.elapsed() < patience * 2 {
            return Ok(mirror);
        }
        drop(mirror);
        self.put_out(self.hung())?;
        Ok(self.mirror.lock())
    }

    /// Waits until a write may begin; `None` once the target is out.
    fn enter(&self, range: GuestRange) -> Result<Option<(u64, Vec<Part>)>> {
        let since = Stopwatch::start();
        let mut mirror = self.mirror.lock();
        let early = if Guard::MirrorRoute.trips(true) { None } else { Some(mirror.route(range)) };
        loop {
            if self.is_out.load(Relaxed) {
                return Ok(None);
            }
            let parts = early.clone().unwrap_or_else(|| mirror.route(range));
            match mirror.admit(range, parts) {
                Admission::Go(number, parts) => return Ok(Some((number, parts))),
                Admission::Later => mirror = self.wait_turn(mirror, since)?,
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
        self.target.image.zeroes_fast(range, kept)
    }

    /// Makes everything written to the target before this call durable. The guest does not see a failure.
    pub(super) fn flush(&self) -> Result<()> {
        if self.is_out.load(Relaxed) {
            return Ok(());
        }
        self.on_target(|target| target.image.flush()).or_else(|error| self.put_out(error))
    }

    /// Brings the next listed block, from `at` on, to the target.
    pub fn advance(&self, current: &Arc<Chain>, at: GuestOffset, buf: &mut Buffers) -> Result<Advance> {
        let mut mirror = self.mirror.lock();
        let Some(hand) = mirror.take(at) else { return Ok(Advance::Complete) };
        while !mirror.is_free() {
            self.turned.wait(&mut mirror);
        }
        let held = mirror.in_hand();
        drop(mirror);
        let (current, mut own) = (Arc::clone(current), std::mem::take(buf));
        let carried = self.on_target(move |target| {
            let sums = held.iter().try_fold((0, 0), |(copied, zeroed), range| {
                let (more, zeros) = target.carry(&current, *range, &mut own)?;
                Ok((copied + more, zeroed + zeros))
            });
            Ok((sums?, own))
        });
        let carried = carried.map(|(sums, own)| {
            *buf = own;
            sums
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

    /// Has the host begin to write back what a checkpoint makes durable; nothing is waited for.
    pub fn begin_flush(&self, current: &Chain) {
        drop(current.head().map(|head| io::begin_flush(head.image.data_file().as_ref())));
        // What comes of it shows at the next flush.
        drop(self.on_target(|target| {
            io::begin_flush(target.image.data_file().as_ref());
            Ok(())
        }));
    }

    /// Returns what the journal must say once everything has landed and is durable; beside what it says by then.
    pub fn finish(&self) -> Noted {
        self.mirror.lock().finish()
    }

    /// Makes what has landed durable on both legs, and notes it; regions stay noted for `lingers` checkpoints after guests
    /// wrote there. Guests go on meanwhile.
    pub fn checkpoint(&self, current: &Chain, lingers: usize) -> Result<()> {
        let checkpoint: Checkpoint = self.mirror.lock().checkpoint();
        if Guard::MirrorCurrentFlush.trips(true) {
            current.flush()?;
        }
        if Guard::MirrorTargetFlush.trips(true) {
            self.on_target(|target| target.image.flush())?;
        }
        let mut notes = self.notes.lock();
        self.check()?;
        let said = self.mirror.lock().settle(&checkpoint, lingers);
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
