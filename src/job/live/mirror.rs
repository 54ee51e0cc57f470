//! Which legs a write must reach while a fold is under way, and what a crash leaves to do.
//!
//! One leg is the *current* handle, the whole chain as the guest sees it; the other is the *target* that the run of
//! layers is folded into, itself one of the layers of the chain. The copier brings the listed bytes from current to
//! the target, a block at a time; every write of the guest passes here first.
//!
//! ```text
//!   listed bytes    ▓▓▓ pending   ░░░ in the copier's hand   ··· landed, or left the list
//!   0 ····frontier ▓▓····▓▓▓▓░░░░▓▓····▓▓▓ size
//! ```
//!
//! | the bytes are | a guest's write, zero or trim |
//! |---|---|
//! | in the copier's hand | waits |
//! | pending, and the write covers only a part of what is pending in their block | current alone: their copy is still to come |
//! | pending, and all that is pending in their block is covered | both; they leave the list when both have it |
//! | not pending | both |
//!
//! Rules that keep both legs equal at the end, whatever overtakes what, and whenever power fails. Each was found by
//! taking it away; the tests do so again.
//!
//! 1. A write waits for the bytes in hand: let through, the copier would land older bytes on top of it.
//! 2. What is in hand is moved only once no write to it is in flight: its route was chosen before.
//! 3. Writes that overlap take turns: they could land in one order here and in the other there.
//! 4. A route holds from the moment it is chosen: it is chosen when the write is let in, not while it waits.
//! 5. A region is noted, durably, before either leg of a write to both begins in it ([`Admission::Note`]): after a
//!    crash one leg may have it without the other. Not past every mark that the journal may bear: all that is decided
//!    there is copied again anyway.
//! 6. The done-mark passes a byte only after a flush of *both* legs. Of the target: else a crash would lose the copy.
//!    Of current: else the copy would outlive the write that it copied, and come to light when the fold ends.
//! 7. What is written while the work list is being found is on the list: its map may have been looked at before.
//! 8. A region's note goes only after a flush of both legs that began when no write to both was in flight in it; and
//!    late, since whoever writes there again would wait for a durable write.
//!
//! Pure: this decides, the caller performs and reports back.

use crate::{
    base::{Guard, GuestOffset, GuestRange},
    map::RangeSet,
};
use std::collections::{BTreeMap, VecDeque};

/// Where bytes of a write must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// The current handle alone.
    Current,
    /// Current and target; the write is acknowledged when both have it.
    Both,
}

/// A run of a write's bytes that goes one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Which bytes.
    pub range: GuestRange,
    /// Where they go.
    pub route: Route,
}

/// What is to be done with a write that asks to be let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Something else is busy there: ask again when a write has ended or the copier's hand is empty.
    Later,
    /// Make these regions durable in the intent map beside those that are, say so with [`Mirror::noted`], ask again.
    Note(Vec<u64>),
    /// Go on, and call [`Mirror::end`] with the number when all parts have landed or failed.
    Go(u64, Vec<Part>),
}

/// How an admitted write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Every part is where it was to go.
    Landed,
    /// One of the places refused some of it: what current shows there now, the target has to be given again.
    Failed,
}

/// A write that was let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    number: u64,
    range: GuestRange,
    parts: Vec<Part>,
}

impl Flight {
    fn doubles(&self) -> impl Iterator<Item = GuestRange> + '_ {
        self.parts.iter().filter(|part| part.route == Route::Both).map(|part| part.range)
    }
}

/// What was true when a checkpoint began; both legs are flushed between [`Mirror::checkpoint`] and
/// [`Mirror::settle`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    frontier: GuestOffset,
    /// Regions in which no write to both was in flight.
    quiet: Vec<u64>,
    admitted: u64,
}

/// What the journal says, or must say next: durable as a whole, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Noted {
    /// Listed bytes before this place are durable in the target.
    pub mark: GuestOffset,
    /// Regions that may differ after a crash.
    pub regions: Vec<u64>,
}

/// How the mirror cuts the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grain {
    /// What the copier takes in hand at once; a power of two.
    pub block_bytes: u64,
    /// What one bit of the intent map stands for; a multiple of a block.
    pub region_bytes: u64,
}

/// The copier's hand, the writes in flight, and what is still to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mirror {
    size: u64,
    grain: Grain,
    pending: RangeSet,
    /// What writes to current alone have covered; `None` once the work list is known.
    touched: Option<RangeSet>,
    hand: Option<GuestRange>,
    flights: Vec<Flight>,
    /// Regions in doubt, with the number of the last write let into each: the durable intent map names those that begin
    /// before `noted_until`.
    intent: BTreeMap<u64, u64>,
    admitted: u64,
    /// How many writes had been let in when each of the last checkpoints began.
    settled: VecDeque<u64>,
    mark: GuestOffset,
    /// The furthest mark that the journal may bear.
    noted_until: GuestOffset,
    /// Whether the record comes next: nothing gets on the list any more.
    is_closing: bool,
}

impl Mirror {
    /// Starts for a disk of `size` bytes, of which the journal says `noted`. Until [`Mirror::survey`] every byte
    /// counts as pending, and nothing is taken in hand.
    pub fn new(size: u64, grain: Grain, noted: &Noted) -> Self {
        let intent = noted.regions.iter().map(|region| (*region, 0)).collect();
        let pending = [GuestOffset::new(0).range(size)].into_iter().collect();
        let touched = Some(RangeSet::new());
        Self {
            size,
            grain,
            pending,
            touched,
            hand: None,
            flights: Vec::new(),
            intent,
            admitted: 0,
            settled: VecDeque::new(),
            mark: noted.mark,
            noted_until: noted.mark,
            is_closing: false,
        }
    }

    /// Says what is to be copied: `list` was found while guests went on writing. What they wrote meanwhile is on the
    /// list as well. A journal that says anything but that nothing is done is surveyed before the first write.
    pub fn survey(&mut self, list: &RangeSet) {
        let Some(touched) = self.touched.take() else { return };
        let mut wanted = list.clone();
        if Guard::MirrorTouched.trips(true) {
            touched.iter().for_each(|range| wanted.insert(range));
        }
        self.pending = common(&wanted, &self.pending);
    }

    /// Returns whether every listed byte has landed and nothing is in hand.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty() && self.hand.is_none() && self.touched.is_none()
    }

    /// Lets nothing on the list from now on, if nothing is on it; returns whether nothing is.
    pub fn close(&mut self) -> bool {
        self.is_closing = self.is_complete();
        self.is_closing
    }

    /// Reserves the next block that holds pending bytes, from `at` on and then from the start: writes to it wait from
    /// now on. `None` if nothing is pending. What is in hand is moved once [`Mirror::is_free`].
    pub fn take(&mut self, at: GuestOffset) -> Option<GuestRange> {
        if self.touched.is_some() {
            return None;
        }
        let next = self.pending.next_from(at).or_else(|| self.pending.next_from(GuestOffset::new(0)))?;
        let block = next.start.floor(self.grain.block_bytes).range(self.grain.block_bytes);
        let held: Vec<_> = self.pending_in(block).collect();
        let (first, last) = (held.first()?, held.last()?);
        let hand = GuestRange::between(first.start, last.end());
        self.hand = Some(hand);
        Some(hand)
    }

    /// Returns whether what is in hand may be moved: no write to it is in flight.
    pub fn is_free(&self) -> bool {
        let is_busy = |hand: GuestRange| self.flights.iter().any(|flight| flight.range.overlaps(hand));
        !Guard::MirrorFlight.trips(self.hand.is_some_and(is_busy))
    }

    /// Returns the pending bytes of what is in hand: none, if writes that were in flight took all of them off the list.
    pub fn in_hand(&self) -> Vec<GuestRange> {
        self.hand.map(|hand| self.pending_in(hand).collect()).unwrap_or_default()
    }

    /// Takes note that what was in hand has reached the target.
    pub fn landed(&mut self) {
        if let Some(hand) = self.hand.take() {
            self.pending.remove(hand);
        }
    }

    /// Takes note that what was in hand has not reached the target: it stays on the list.
    pub fn dropped(&mut self) {
        self.hand = None;
    }

    fn pending_in(&self, range: GuestRange) -> impl Iterator<Item = GuestRange> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let next = self.pending.next_from(at).filter(|next| next.start < range.end())?;
            at = next.end();
            Some(next.clip(range))
        })
    }

    /// Lets a write to `range` (not empty, within the disk) in, or says what it has to wait for.
    pub fn begin(&mut self, range: GuestRange) -> Admission {
        let parts = self.route(range);
        self.admit(range, parts)
    }

    /// Chooses the route of each byte of `range`, as things stand now.
    pub fn route(&self, range: GuestRange) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut add = |range: GuestRange, route: Route| match parts.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.route == route => last.range.bytes += range.bytes,
            _ => parts.push(Part { range, route }),
        };
        let mut at = range.start;
        while let Some(listed) = self.pending.next_from(at).filter(|next| next.start < range.end()) {
            add(GuestRange::between(at, listed.start), Route::Both);
            let block = listed.start.floor(self.grain.block_bytes).range(self.grain.block_bytes);
            let piece = listed.clip(range).clip(block);
            let covers = |part: GuestRange| part.start >= range.start && part.end() <= range.end();
            let is_whole = self.pending_in(block).all(covers);
            add(piece, if is_whole { Route::Both } else { Route::Current });
            at = piece.end();
        }
        add(GuestRange::between(at, range.end()), Route::Both);
        parts
    }

    /// Lets a write in that goes where `parts` says, which [`Mirror::route`] has just said.
    pub fn admit(&mut self, range: GuestRange, parts: Vec<Part>) -> Admission {
        let is_in_hand = self.hand.is_some_and(|hand| hand.overlaps(range));
        let is_in_flight = self.flights.iter().any(|flight| flight.range.overlaps(range));
        if Guard::MirrorHand.trips(is_in_hand) || Guard::MirrorTurns.trips(is_in_flight) {
            return Admission::Later;
        }
        let flight = Flight { number: self.admitted + 1, range, parts };
        let regions: Vec<u64> = flight.doubles().flat_map(|part| self.regions(part)).collect();
        let is_fresh = |region: &u64| self.is_noted(*region) && !self.intent.contains_key(region);
        let fresh: Vec<u64> = regions.iter().copied().filter(is_fresh).collect();
        if Guard::MirrorIntent.trips(!fresh.is_empty()) {
            return Admission::Note(fresh);
        }
        self.admitted += 1;
        if let Some(touched) = &mut self.touched {
            let alone = flight.parts.iter().filter(|part| part.route == Route::Current);
            alone.for_each(|part| touched.insert(part.range));
        }
        for region in regions {
            self.intent.insert(region, self.admitted);
        }
        let (number, parts) = (flight.number, flight.parts.clone());
        self.flights.push(flight);
        Admission::Go(number, parts)
    }

    fn regions(&self, range: GuestRange) -> std::ops::RangeInclusive<u64> {
        let last = range.end().bytes().saturating_sub(1);
        range.start.bytes() / self.grain.region_bytes..=last / self.grain.region_bytes
    }

    /// Returns whether a region in doubt has to be noted.
    fn is_noted(&self, region: u64) -> bool {
        region * self.grain.region_bytes < self.noted_until.bytes()
    }

    /// Takes note that the durable intent map names these regions, too.
    pub fn noted(&mut self, regions: &[u64]) {
        for region in regions {
            self.intent.entry(*region).or_insert(self.admitted);
        }
    }

    /// Returns what a journal that notes `fresh` regions has to say.
    pub fn to_note(&self, fresh: &[u64]) -> Noted {
        let doubtful = self.intent.keys().filter(|region| self.is_noted(**region));
        let mut regions: Vec<u64> = doubtful.chain(fresh).copied().collect();
        regions.sort_unstable();
        regions.dedup();
        Noted { mark: self.mark, regions }
    }

    /// Takes note that an admitted write has ended, everywhere it went to.
    pub fn end(&mut self, number: u64, how: Ended) {
        let Some(at) = self.flights.iter().position(|flight| flight.number == number) else { return };
        let flight = self.flights.swap_remove(at);
        match how {
            Ended::Landed => flight.doubles().for_each(|range| self.pending.remove(range)),
            // The target is the disk from here on: the guest knows that its write has failed.
            Ended::Failed if self.is_closing => {}
            Ended::Failed => {
                self.pending.insert(flight.range);
                self.touched.iter_mut().for_each(|touched| touched.insert(flight.range));
            }
        }
    }

    /// Begins a checkpoint: both legs are to be flushed now.
    pub fn checkpoint(&self) -> Checkpoint {
        let is_quiet = |region: &u64| {
            !self.flights.iter().flat_map(Flight::doubles).any(|part| self.regions(part).contains(region))
        };
        let quiet = self.intent.keys().copied().filter(is_quiet).collect();
        let first = self.pending.next_from(GuestOffset::new(0));
        let frontier = first.map_or(GuestOffset::new(self.size), |first| first.start);
        Checkpoint { frontier, quiet, admitted: self.admitted }
    }

    /// Ends a checkpoint, both legs having been flushed since it began; returns what the journal must say next.
    ///
    /// Regions that nobody wrote since, nor for the last `lingers` checkpoints before it, are not in doubt any more: from here
    /// on a write to them notes them again.
    pub fn settle(&mut self, checkpoint: &Checkpoint, lingers: usize) -> Noted {
        self.settled.push_back(checkpoint.admitted);
        let past = self.settled.len().saturating_sub(lingers);
        if let Some(before) = self.settled.drain(..past).next_back() {
            for region in &checkpoint.quiet {
                if self.intent.get(region).is_some_and(|last| *last <= before) {
                    self.intent.remove(region);
                }
            }
        }
        self.move_mark(checkpoint.frontier)
    }

    /// Moves the mark behind the last byte; returns what the journal must say once everything has landed and is durable.
    pub fn finish(&mut self) -> Noted {
        self.move_mark(GuestOffset::new(self.size))
    }

    /// Before the journal says so: from here on what begins before the mark is noted.
    fn move_mark(&mut self, mark: GuestOffset) -> Noted {
        self.mark = mark;
        self.noted_until = self.noted_until.max(mark);
        self.to_note(&[])
    }
}

/// Returns what is left to copy after a crash, of `decided` (what the run decides now, the head with it): what lies
/// behind the mark, and what may have reached one leg alone.
pub fn left(decided: &RangeSet, noted: &Noted, grain: Grain, size: u64) -> RangeSet {
    let disk = GuestOffset::new(0).range(size);
    let mut doubtful = RangeSet::new();
    doubtful.insert(GuestRange::between(noted.mark, disk.end()));
    for region in &noted.regions {
        doubtful.insert(GuestOffset::new(region * grain.region_bytes).range(grain.region_bytes).clip(disk));
    }
    common(decided, &doubtful)
}

fn common(a: &RangeSet, b: &RangeSet) -> RangeSet {
    let mut both = RangeSet::new();
    for range in b.iter() {
        let mut at = range.start;
        while let Some(next) = a.next_from(at).filter(|next| next.start < range.end()) {
            both.insert(next.clip(range));
            at = next.end();
        }
    }
    both
}

#[cfg(test)]
mod tests;
