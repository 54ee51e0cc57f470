//! A disk in use.

use super::{
    leg::{Change, Leg},
    recorder::Recorder,
};
use crate::{
    base::{Claims, GuestOffset, GuestRange, Result, clock::Stopwatch},
    chain::Chain,
    disk::{Disk, Status},
    format::Image,
    io::Kept,
};
use parking_lot::RwLock;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// How long requests are held back, at most, by the first attempt to change the legs under them. Where requests take
/// longer, each attempt may take twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(8);

/// No attempt takes longer.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long requests go on between two attempts, at least.
const BREATH: Duration = Duration::from_millis(12);

/// Zeros go in pieces of this size: the legs can change between two.
const ZERO_BYTES: u64 = 1 << 30;

/// A disk that guests use, whose layers may change underneath.
#[derive(Debug)]
pub struct LiveDisk {
    size: u64,
    legs: RwLock<Legs>,
    /// Writes that overlap take turns.
    turns: Claims,
    is_changed: AtomicBool,
    recorders: Vec<Arc<Recorder>>,
}

/// Where requests go.
#[derive(Clone, Debug)]
struct Legs {
    current: Arc<Chain>,
    fold: Option<Arc<Leg>>,
    /// What was written before, whose last writes may not be durable yet: a flush covers them.
    before: Vec<Arc<dyn Image>>,
}

/// How long a change of the legs held requests back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swapped {
    /// The longest time that a request had to wait for the change.
    pub pause: Duration,
}

impl LiveDisk {
    /// Starts to serve a chain that is open for writing.
    pub fn new(chain: Chain) -> Self {
        let size = chain.size();
        let legs = Legs { current: Arc::new(chain), fold: None, before: Vec::new() };
        Self {
            size,
            legs: RwLock::new(legs),
            turns: Claims::default(),
            is_changed: AtomicBool::new(false),
            recorders: Vec::new(),
        }
    }

    /// Has dirty bitmaps go on recording what guests change.
    #[must_use]
    pub fn recording(self, recorders: Vec<Arc<Recorder>>) -> Self {
        Self { recorders, ..self }
    }

    /// Returns the dirty bitmaps that record.
    pub fn recorders(&self) -> &[Arc<Recorder>] {
        &self.recorders
    }

    /// Returns the chain that guests see now.
    pub fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.legs.read().current)
    }

    /// Returns whether a guest has changed anything since the disk was opened.
    pub fn is_changed(&self) -> bool {
        self.is_changed.load(Relaxed)
    }

    /// Returns whether writes pass the mirror of a fold now.
    pub fn is_folding(&self) -> bool {
        self.legs.read().fold.is_some()
    }

    /// Has guests use `chain`, which shows what they see now, from the next request on, and nothing else.
    pub fn swap(&self, chain: Chain) -> Swapped {
        let current = Arc::new(chain);
        self.change_legs(|legs| (legs.current, legs.fold) = (Arc::clone(&current), None))
    }

    /// The same, where `unflushed` has what flushes must cover until [`LiveDisk::settle_before`].
    pub fn swap_keeping(&self, chain: Chain, unflushed: &Arc<dyn Image>) -> Swapped {
        let current = Arc::new(chain);
        self.change_legs(|legs| {
            (legs.current, legs.fold) = (Arc::clone(&current), None);
            legs.before.push(Arc::clone(unflushed));
        })
    }

    /// Has every write from the next one on pass the mirror of a second leg.
    pub fn take_leg(&self, leg: &Arc<Leg>) -> Swapped {
        self.change_legs(|legs| legs.fold = Some(Arc::clone(leg)))
    }

    /// The same, unless a guest has changed anything since the disk was opened; returns whether none has.
    pub fn take_leg_unchanged(&self, leg: &Arc<Leg>) -> bool {
        let mut is_taken = false;
        self.change_legs(|legs| {
            // A write that comes in now says so first, and then finds the leg.
            is_taken = !self.is_changed.load(Relaxed);
            if is_taken {
                legs.fold = Some(Arc::clone(leg));
            }
        });
        is_taken
    }

    /// Several disks go over to chains that show what their guests see now, all at one point in time.
    ///
    /// The heads of before are covered by flushes until [`LiveDisk::settle_before`].
    pub fn swap_all(disks: Vec<(&Self, Chain)>) -> Swapped {
        let (disks, chains): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
        let mut chains = chains.into_iter();
        Self::change_all(&disks, |legs| {
            let Some(chain) = chains.next() else { return };
            let before = std::mem::replace(&mut legs.current, Arc::new(chain));
            legs.before.extend(before.head().map(|head| Arc::clone(&head.image)));
        })
    }

    /// Makes durable what was written before, so that flushes need not cover it any more. What cannot be made durable
    /// they cover still: its guests are not told that it is.
    pub fn settle_before(&self) -> Result<()> {
        let before = self.legs.read().before.clone();
        let is_same = |one: &Arc<dyn Image>, other: &Arc<dyn Image>| Arc::ptr_eq(one, other);
        let mut settled = Ok(());
        for image in &before {
            let flushed = image.flush();
            if flushed.is_ok() {
                self.change_legs(|legs| legs.before.retain(|kept| !is_same(kept, image)));
            }
            settled = settled.and(flushed);
        }
        settled
    }

    fn change_legs(&self, change: impl FnMut(&mut Legs)) -> Swapped {
        Self::change_all(&[self], change)
    }

    /// Changes the legs of each disk in turn, while no request is under way on any of them.
    ///
    /// No request waits longer than an attempt takes, and requests go on as long as that between two. The disk that was
    /// last waited for in vain comes first in the next one: while its requests end, the others stay open.
    fn change_all(disks: &[&Self], mut change: impl FnMut(&mut Legs)) -> Swapped {
        let mut patience = PAUSE;
        let mut order: Vec<_> = disks.iter().copied().enumerate().collect();
        loop {
            let (watch, mut locked) = (Stopwatch::start(), Vec::with_capacity(order.len()));
            for (at, disk) in &order {
                let left = patience.saturating_sub(watch.elapsed());
                match disk.legs.try_write_for(left) {
                    Some(legs) => locked.push((*at, legs)),
                    None => break,
                }
            }
            let busy = locked.len();
            if busy == order.len() {
                locked.sort_by_key(|(at, _)| *at);
                for (_, legs) in &mut locked {
                    change(legs);
                }
                return Swapped { pause: watch.elapsed() };
            }
            drop(locked);
            order.get_mut(..=busy).into_iter().for_each(|tried| tried.rotate_right(1));
            std::thread::sleep(patience.max(BREATH));
            patience = (patience * 2).min(PAUSE_MAX);
        }
    }

    fn change(&self, range: GuestRange, change: Change<'_>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if !self.is_changed.load(Relaxed) {
            self.is_changed.store(true, Relaxed);
        }
        for recorder in &self.recorders {
            recorder.mark(range);
        }
        let legs = self.legs.read();
        if let Some(leg) = &legs.fold {
            return leg.change(&legs.current, range, change);
        }
        let _turn = self.turns.take(range);
        change.on_chain(&legs.current, range)
    }
}

impl Disk for LiveDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_writable(&self) -> bool {
        self.legs.read().current.is_writable()
    }

    fn sector_bytes(&self) -> u32 {
        self.legs.read().current.sector_bytes()
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let legs = self.legs.read();
        let Some(leg) = &legs.fold else { return legs.current.read(at, buf) };
        let watch = Stopwatch::start();
        let answer = legs.current.read(at, buf);
        leg.latencies().count(watch.elapsed());
        answer
    }

    fn write(&self, at: GuestOffset, buf: &[u8]) -> Result<()> {
        self.change(at.range(buf.len() as u64), Change::Write(buf))
    }

    fn zero(&self, range: GuestRange, kept: Kept) -> Result<()> {
        range.pieces(ZERO_BYTES).try_for_each(|piece| self.change(piece, Change::Zero(kept)))
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        let legs = self.legs.read();
        let is_fast = legs.fold.as_ref().is_none_or(|leg| leg.zeroes_fast(range, kept));
        is_fast && legs.current.zeroes_fast(range, kept)
    }

    fn cache(&self, range: GuestRange) -> Result<()> {
        self.chain().cache(range)
    }

    fn flush(&self) -> Result<()> {
        // A flush may take long: the legs may change meanwhile, and those that it began with have the writes.
        let Legs { current, fold, before } = self.legs.read().clone();
        before.iter().try_for_each(|image| image.flush())?;
        current.flush()?;
        fold.map_or(Ok(()), |leg| leg.flush())
    }

    fn status(&self, range: GuestRange, out: &mut Vec<Status>) -> Result<()> {
        // Of a large disk it takes longer than the legs may be held.
        self.chain().status(range, out)
    }
}
