//! Every interleaving of a copier, two guest writes, a checkpoint and a power cut, on a naive model: a disk of four
//! cells in two blocks; files with a cache that a power cut empties in part and out of order.
//!
//! A write is not one step: it is let in, lands on each leg cell by cell in any order, and ends.

use super::{Admission, Checkpoint, Ended, Grain, Mirror, Noted, Part, Route, left};
use crate::{
    base::{Guard, GuestOffset, GuestRange},
    map::RangeSet,
};
use std::collections::HashSet;

const CELLS: usize = 4;
const GRAIN: Grain = Grain { block_bytes: 2, region_bytes: 2 };

/// What the folded layers hold: a block held in part, and one held whole.
const RUN: [Option<u8>; CELLS] = [Some(1), None, Some(3), Some(4)];
const TARGET: [u8; CELLS] = [21, 22, 23, 24];

/// What guests may write: the first cell, and how many.
const WRITES: &[(u64, u64)] = &[(0, 1), (1, 1), (0, 2), (1, 2), (0, 4)];

/// The same within a block: power cuts are followed in each.
const SHORT_WRITES: &[(u64, u64)] = &[(0, 1), (1, 1), (0, 2), (2, 1)];

/// One in each block, so that no note of one write speaks of the other.
const FAR_WRITES: &[(u64, u64)] = &[(0, 1), (2, 1)];

/// One write to a file: durable after a flush of the file, perhaps before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Effect {
    /// The head's cell, and the other one of its block if the head had none of it: copied up from below.
    Head(usize, u8, Option<u8>),
    Target(usize, u8),
}

impl Effect {
    const fn block(self) -> usize {
        let (Self::Head(cell, ..) | Self::Target(cell, _)) = self;
        cell / 2
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Legs {
    head: [Option<u8>; CELLS],
    target: [u8; CELLS],
}

impl Legs {
    fn view(&self, cell: usize) -> u8 {
        self.head[cell].or(RUN[cell]).unwrap_or(self.target[cell])
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Head(cell, byte, other) => {
                self.head[cell] = Some(byte);
                self.head[cell ^ 1] = self.head[cell ^ 1].or(other);
            }
            Effect::Target(cell, byte) => self.target[cell] = byte,
        }
    }

    fn decided(&self) -> RangeSet {
        let is_decided = |cell: &usize| self.head[*cell].or(RUN[*cell]).is_some();
        (0..CELLS).filter(is_decided).map(|cell| GuestOffset::new(cell as u64).range(1)).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    number: u64,
    byte: u8,
    /// Cells that have still to land: on current, on the target.
    due: Vec<(usize, bool)>,
    range: GuestRange,
}

/// What becomes of a target that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Out {
    /// It works. It may fail, and the journal with it, if that is to be tried.
    Not { may_fail: bool },
    /// That nothing is done is being said, in the journal or, where that fails, by another epoch of the head.
    Telling { by_epoch: bool },
    /// That is durable; guests go on without the target.
    Told { by_epoch: bool },
}

/// A write to the journal, which lets one in at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Noting {
    said: Noted,
    /// Regions that are noted once it is durable.
    fresh: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flushing {
    checkpoint: Checkpoint,
    is_current_flushed: bool,
    is_target_flushed: bool,
    /// What each cell showed at the least when it began, if all flushes do what they say.
    acknowledged: [usize; CELLS],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    mirror: Mirror,
    /// The work list as it was found a moment ago.
    found: Option<RangeSet>,
    seen: Legs,
    durable: Legs,
    cached: Vec<Effect>,
    journal: Noted,
    noting: Option<Noting>,
    flushing: Option<Flushing>,
    checkpoints_left: u8,
    /// What the copier has read of what is in hand, and has still to land.
    copying: Option<Vec<(usize, u8)>>,
    writes: Vec<Write>,
    writes_left: Vec<u8>,
    choices: &'static [(u64, u64)],
    /// A write that chose its route before it was let in: only without that guard.
    early: Option<(GuestRange, Vec<Part>, u8)>,
    /// What each cell showed after each acknowledged write, oldest first; and how many of them a crash must leave.
    told: Vec<Vec<u8>>,
    safe: [usize; CELLS],
    out: Out,
}

fn cells(range: GuestRange) -> std::ops::Range<usize> {
    usize::try_from(range.start.bytes()).unwrap()..usize::try_from(range.end().bytes()).unwrap()
}

impl World {
    fn new(writes: usize, choices: &'static [(u64, u64)], checkpoints_left: u8) -> Self {
        let legs = Legs { head: [None; CELLS], target: TARGET };
        Self {
            mirror: Mirror::new(CELLS as u64, GRAIN, &Noted::default()),
            found: None,
            seen: legs,
            durable: legs,
            cached: vec![],
            journal: Noted::default(),
            noting: None,
            flushing: None,
            checkpoints_left,
            copying: None,
            writes: vec![],
            writes_left: (0..writes).map(|n| 50 + u8::try_from(n).unwrap()).collect(),
            choices,
            early: None,
            told: (0..CELLS).map(|cell| vec![legs.view(cell)]).collect(),
            safe: [0; CELLS],
            out: Out::Not { may_fail: false },
        }
    }

    /// Every way in which the target fails a write, and what follows.
    fn failure_steps(&self) -> Vec<Self> {
        let to = |out: Out| Self { out, ..self.clone() };
        match self.out {
            Out::Not { may_fail: true }
                if self.writes.iter().any(|write| write.due.iter().any(|(_, t)| *t)) =>
            {
                let told = |by_epoch| {
                    let is_told = !Guard::MirrorGivenUp.trips(true);
                    to(if is_told { Out::Told { by_epoch: false } } else { Out::Telling { by_epoch } })
                };
                // The journal takes one note at a time, and fails whenever it is asked, or not at all.
                vec![told(false), told(true)]
            }
            Out::Not { .. } | Out::Told { .. } => vec![],
            Out::Telling { by_epoch: false } if self.noting.is_some() => vec![],
            Out::Telling { by_epoch } => vec![to(Out::Told { by_epoch })],
        }
    }

    /// What a resume believes, of what the journal says.
    fn believed(&self, said: &Noted) -> Vec<Noted> {
        match self.out {
            // Without the guard nothing was said.
            Out::Told { .. } if !Guard::MirrorGivenUp.trips(true) => vec![said.clone()],
            Out::Told { .. } => vec![Noted::default()],
            Out::Telling { .. } => vec![said.clone(), Noted::default()],
            Out::Not { .. } => vec![said.clone()],
        }
    }

    const fn is_out(&self) -> bool {
        matches!(self.out, Out::Told { .. })
    }

    fn put(&mut self, effect: Effect) {
        self.seen.apply(effect);
        self.cached.push(effect);
        // Only among those of one leg and block does the order matter: others are the same world.
        self.cached.sort_by_key(|effect| (effect.block(), matches!(effect, Effect::Target(..))));
    }

    fn flush(&mut self, is_target: bool) {
        let flushed = |effect: &Effect| matches!(effect, Effect::Target(..)) == is_target;
        let (flushed, left): (Vec<_>, Vec<_>) = self.cached.iter().copied().partition(flushed);
        for effect in flushed {
            self.durable.apply(effect);
        }
        self.cached = left;
    }

    /// Every world one step away.
    fn next(&self) -> Vec<Self> {
        let mut worlds = self.failure_steps();
        if !self.is_out() {
            worlds.extend(self.copier());
        }
        worlds.extend(self.journal_step());
        worlds.extend(self.flush_steps());
        worlds.extend(self.begin_steps());
        worlds.extend(self.land_steps());
        worlds
    }

    fn copier(&self) -> Vec<Self> {
        let mut world = self.clone();
        if self.mirror.touched.is_some() {
            match &self.found {
                None => world.found = Some(self.seen.decided()),
                Some(found) => world.mirror.survey(found),
            }
            return vec![world];
        }
        match &self.copying {
            None if self.mirror.hand.is_none() => {
                if world.mirror.take(GuestOffset::new(0)).is_none() {
                    return vec![];
                }
            }
            None if !self.mirror.is_free() => return vec![],
            None => {
                let held = self.mirror.in_hand().into_iter().flat_map(cells);
                world.copying = Some(held.map(|cell| (cell, self.seen.view(cell))).collect());
            }
            Some(due) if due.is_empty() => {
                world.mirror.landed();
                world.copying = None;
            }
            Some(due) => {
                let (cell, byte) = due[0];
                world.put(Effect::Target(cell, byte));
                world.copying = Some(due[1..].to_vec());
            }
        }
        vec![world]
    }

    fn journal_step(&self) -> Option<Self> {
        let mut world = self.clone();
        let Noting { said, fresh } = world.noting.take()?;
        world.journal = said;
        world.mirror.noted(&fresh);
        Some(world)
    }

    fn flush_steps(&self) -> Vec<Self> {
        let mut world = self.clone();
        let Some(flushing) = &mut world.flushing else {
            if self.checkpoints_left == 0 {
                return vec![];
            }
            world.checkpoints_left -= 1;
            world.flushing = Some(Flushing {
                checkpoint: self.mirror.checkpoint(),
                is_current_flushed: !Guard::MirrorCurrentFlush.trips(true),
                is_target_flushed: !Guard::MirrorTargetFlush.trips(true),
                acknowledged: std::array::from_fn(|cell| self.told[cell].len() - 1),
            });
            return vec![world];
        };
        let (current, target) = (flushing.is_current_flushed, flushing.is_target_flushed);
        if current && target && !matches!(self.out, Out::Not { .. }) {
            return vec![];
        }
        if current && target {
            if self.noting.is_some() {
                return vec![];
            }
            let flushing = world.flushing.take().unwrap();
            let said = world.mirror.settle(&flushing.checkpoint, 0);
            world.noting = Some(Noting { said, fresh: vec![] });
            if Guard::MirrorCurrentFlush.trips(true) {
                world.safe = flushing.acknowledged;
            }
            return vec![world];
        }
        let flush = |is_target: bool| {
            let mut world = self.clone();
            world.flush(is_target);
            let flushing = world.flushing.as_mut().unwrap();
            *(if is_target { &mut flushing.is_target_flushed } else { &mut flushing.is_current_flushed }) =
                true;
            world
        };
        let wanted = [(false, current), (true, target)];
        wanted.into_iter().filter(|(_, is_done)| !is_done).map(|(is_target, _)| flush(is_target)).collect()
    }

    fn begin_steps(&self) -> Vec<Self> {
        if let Some((range, parts, byte)) = self.early.clone() {
            let mut world = self.clone();
            world.early = None;
            return world.admit(range, parts, byte).then_some(world).into_iter().collect();
        }
        let Some((&byte, rest)) = self.writes_left.split_first() else { return vec![] };
        let is_routed_first = !Guard::MirrorRoute.trips(true);
        let begin = |&(start, bytes): &(u64, u64)| {
            let range = GuestOffset::new(start).range(bytes);
            let mut world = self.clone();
            world.writes_left = rest.to_vec();
            let parts = self.mirror.route(range);
            if is_routed_first {
                world.early = Some((range, parts, byte));
                return Some(world);
            }
            world.admit(range, parts, byte).then_some(world)
        };
        self.choices.iter().filter_map(begin).collect()
    }

    /// Lets a write in, or notes its regions and lets it ask again; false if it has to wait.
    fn admit(&mut self, range: GuestRange, parts: Vec<Part>, byte: u8) -> bool {
        if self.is_out() {
            let due = cells(range).map(|cell| (cell, false)).collect();
            self.writes.push(Write { number: u64::from(byte) << 32, byte, due, range });
            return true;
        }
        match self.mirror.admit(range, parts.clone()) {
            Admission::Later => false,
            Admission::Note(_) if self.noting.is_some() => false,
            Admission::Note(fresh) => {
                self.noting = Some(Noting { said: self.mirror.to_note(&fresh), fresh });
                // It asks again later.
                if Guard::MirrorRoute.trips(true) {
                    self.writes_left.insert(0, byte);
                } else {
                    self.early = Some((range, parts, byte));
                }
                true
            }
            Admission::Go(number, parts) => {
                let mut due = vec![];
                for part in parts {
                    due.extend(cells(part.range).map(|cell| (cell, false)));
                    if part.route == Route::Both {
                        due.extend(cells(part.range).map(|cell| (cell, true)));
                    }
                }
                self.writes.push(Write { number, byte, due, range });
                true
            }
        }
    }

    fn land_steps(&self) -> Vec<Self> {
        let mut worlds = vec![];
        for (nth, write) in self.writes.iter().enumerate() {
            if write.due.is_empty() {
                let mut world = self.clone();
                world.writes.remove(nth);
                world.mirror.end(write.number, Ended::Landed);
                cells(write.range).for_each(|cell| world.told[cell].push(write.byte));
                worlds.push(world);
                continue;
            }
            for is_target in [false, true] {
                // The cells of one leg land in order: the legs against each other, and writes, in any.
                let Some(at) = write.due.iter().position(|(_, leg)| *leg == is_target) else { continue };
                let (cell, _) = write.due[at];
                let mut world = self.clone();
                world.writes[nth].due.remove(at);
                if is_target && !matches!(self.out, Out::Not { .. }) {
                    // It fails, but not before that is told.
                    worlds.extend(self.is_out().then_some(world));
                    continue;
                }
                let copied_up = self.seen.head[cell].is_none().then(|| self.seen.view(cell ^ 1));
                world.put(if is_target {
                    Effect::Target(cell, write.byte)
                } else {
                    Effect::Head(cell, write.byte, copied_up)
                });
                worlds.push(world);
            }
        }
        worlds
    }

    /// Cuts the power: whatever of the caches had reached the disk, the resume gives the target what current shows.
    fn cut(&self) -> Result<u64, String> {
        let journals = [Some(&self.journal), self.noting.as_ref().map(|noting| &noting.said)];
        let journals: Vec<Noted> =
            journals.into_iter().flatten().flat_map(|said| self.believed(said)).collect();
        let mut cuts = 0;
        for (journal, block) in journals.iter().flat_map(|j| [(j, 0), (j, 1)]) {
            // Cells of different blocks have nothing to do with each other.
            let cached: Vec<_> = self.cached.iter().filter(|effect| effect.block() == block).collect();
            for kept in 0..1_u32 << cached.len() {
                let mut legs = self.durable;
                let is_kept = |n: &usize| kept >> n & 1 == 1;
                (0..cached.len()).filter(is_kept).for_each(|n| legs.apply(*cached[n]));
                cuts += 1;
                self.resumed(legs, journal, block)?;
            }
        }
        Ok(cuts)
    }

    fn resumed(&self, legs: Legs, journal: &Noted, block: usize) -> Result<(), String> {
        let listed = left(&legs.decided(), journal, GRAIN, CELLS as u64);
        for cell in [2 * block, 2 * block + 1] {
            let shown = legs.view(cell);
            let allowed = self.told[cell][self.safe[cell]..].iter().copied();
            let in_flight =
                self.writes.iter().filter(|write| cells(write.range).contains(&cell)).map(|write| write.byte);
            if !allowed.chain(in_flight).any(|byte| byte == shown) {
                return Err(format!("cell {cell} lost an acknowledged write: {shown} in {self:?}"));
            }
            let is_copied = listed.touches(GuestOffset::new(cell as u64).range(1));
            let ends_as = if is_copied { shown } else { legs.target[cell] };
            if ends_as != shown {
                return Err(format!("cell {cell} showed {shown} after the cut, {ends_as} at last: {self:?}"));
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Found {
    worlds: usize,
    ends: u64,
    cuts: u64,
}

/// Follows every history; the first wrong state ends the search.
fn explore(start: World, is_cut: bool) -> Result<Found, String> {
    let (mut seen, mut todo, mut found) = (HashSet::from([start.clone()]), vec![start], Found::default());
    while let Some(world) = todo.pop() {
        if is_cut {
            found.cuts += world.cut()?;
        }
        let worlds = world.next();
        if worlds.is_empty() && world.is_out() {
            if !world.writes.is_empty() || !world.writes_left.is_empty() {
                return Err(format!("stuck: {world:?}"));
            }
        } else if worlds.is_empty() {
            found.ends += 1;
            let is_over = world.mirror.is_complete() && world.writes_left.is_empty() && world.early.is_none();
            if !is_over {
                return Err(format!("stuck: {world:?}"));
            }
            if let Some(cell) = (0..CELLS).find(|cell| world.seen.view(*cell) != world.seen.target[*cell]) {
                return Err(format!("the legs differ in cell {cell}: {world:?}"));
            }
        }
        todo.extend(worlds.into_iter().filter(|world| seen.insert(world.clone())));
    }
    found.worlds = seen.len();
    Ok(found)
}

#[test]
fn con_4_every_interleaving_ends_with_equal_legs() {
    let found = explore(World::new(2, WRITES, 0), false).unwrap();
    println!("{} worlds, {} ends", found.worlds, found.ends);
    assert!(found.worlds > 10_000 && found.ends > 10);
}

#[test]
fn con_6_a_power_cut_in_every_interleaving_leaves_what_a_resume_puts_right() {
    let found = explore(World::new(1, SHORT_WRITES, 1), true).unwrap();
    println!("{} worlds, {} cuts", found.worlds, found.cuts);
    assert!(found.cuts > 10_000);
}

/// The target fails, and the journal, too, or not: one of two ways says that nothing is done before a write that the
/// target lacks is acknowledged, and power cuts fall before, between and after.
#[test]
fn con_7_a_target_that_failed_is_never_believed_after_a_power_cut() {
    let start = || {
        // All is copied: what is believed of the target makes the difference.
        let mut world = World::new(2, FAR_WRITES, 1);
        while let Some(next) = world.copier().pop() {
            world = next;
        }
        World { out: Out::Not { may_fail: true }, ..world }
    };
    let found = explore(start(), true).unwrap();
    println!("{} worlds, {} cuts", found.worlds, found.cuts);
    assert!(found.cuts > 10_000);
    let wrong = Guard::MirrorGivenUp.without(|| explore(start(), true)).err().expect("nothing noticed");
    assert!(wrong.contains("at last"), "{wrong}");
}

#[test]
fn each_guard_is_missed_when_it_is_off() {
    let interleaved = || explore(World::new(2, WRITES, 0), false);
    let cut = || explore(World::new(1, SHORT_WRITES, 1), true);
    let others = [Guard::MirrorHand, Guard::MirrorFlight, Guard::MirrorTurns, Guard::MirrorRoute];
    for guard in others.into_iter().chain([Guard::MirrorTouched]) {
        let wrong = guard.without(interleaved).err().unwrap_or_else(|| panic!("nothing noticed {guard:?}"));
        assert!(wrong.contains("the legs differ"), "{guard:?}: {wrong}");
    }
    for guard in [Guard::MirrorIntent, Guard::MirrorTargetFlush, Guard::MirrorCurrentFlush] {
        let wrong = guard.without(cut).err().unwrap_or_else(|| panic!("nothing noticed {guard:?}"));
        assert!(wrong.contains("at last"), "{guard:?}: {wrong}");
    }
}

#[test]
fn what_lies_past_every_mark_is_not_noted() {
    let mut mirror = Mirror::new(CELLS as u64, GRAIN, &Noted::default());
    mirror.survey(&RangeSet::new());
    let cell = |at| GuestOffset::new(at).range(1);
    let Admission::Go(first, _) = mirror.begin(cell(0)) else { panic!("had to wait") };
    let checkpoint = mirror.checkpoint();
    mirror.end(first, Ended::Landed);
    // The mark passes it: it is noted with the mark, as nothing says that both legs have it.
    assert_eq!(mirror.settle(&checkpoint, 0), Noted { mark: GuestOffset::new(4), regions: vec![0] });
    assert_eq!(mirror.begin(cell(2)), Admission::Note(vec![1]));
    // A write that failed moves the mark back; the journal may bear the one before until it is told.
    let Admission::Go(failed, _) = mirror.begin(cell(1)) else { panic!("had to wait") };
    mirror.end(failed, Ended::Failed);
    let back = mirror.checkpoint();
    assert_eq!(mirror.settle(&back, 0).mark, GuestOffset::new(1));
    assert_eq!(mirror.begin(cell(2)), Admission::Note(vec![1]));
}

#[test]
fn a_region_stays_noted_while_somebody_writes_there() {
    let mut mirror = Mirror::new(CELLS as u64, GRAIN, &Noted::default());
    mirror.survey(&RangeSet::new());
    let settle = |mirror: &mut Mirror| {
        let checkpoint = mirror.checkpoint();
        mirror.settle(&checkpoint, 2).regions
    };
    assert_eq!(settle(&mut mirror), [0; 0]);
    mirror.noted(&[0]);
    let Admission::Go(number, _) = mirror.begin(GuestOffset::new(0).range(1)) else { panic!("had to wait") };
    mirror.end(number, Ended::Landed);
    assert_eq!([(); 3].map(|()| settle(&mut mirror)), [vec![0], vec![0], vec![]]);
}
