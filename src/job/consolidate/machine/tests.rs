//! Every crash of a consolidation on a naive disk model: three layers, three blocks of two sectors each, files
//! with a cache that a power cut empties in part and out of order, and a crash in the life after a crash.
//!
//! A crash is followed by everything that may be found: each subset of what was not flushed.

use super::{Found, Machine, Pace, Step};
use crate::{
    base::{GuestOffset, GuestRange},
    map::RangeSet,
};
use std::collections::HashSet;

/// Sectors of TOP's disk; a block is two of them.
const TOP_SECTORS: usize = 6;
const OLD_EPOCH: u8 = 1;
const NEW_EPOCH: u8 = 2;

/// A guard that is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    BindBeforeEpoch,
    EpochBeforeData,
    FlushBeforeMark,
    FlushBeforeRecord,
    RecordBeforeDrop,
    RecordDurableBeforeDrop,
    JournalLast,
    HeadChangedStartsAgain,
    CutBeforeRecord,
}

/// What a file or folder holds once a flush has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Target,
    Journal,
    Folder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Effect {
    Sector(usize, u8),
    Epoch,
    Length(usize),
    Journal(Journal),
    Rename,
    RemoveMiddle,
    RemoveJournal,
}

impl Effect {
    const fn place(self) -> Place {
        match self {
            Self::Sector(..) | Self::Epoch | Self::Length(_) => Place::Target,
            Self::Journal(_) => Place::Journal,
            Self::Rename | Self::RemoveMiddle | Self::RemoveJournal => Place::Folder,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Journal {
    mark: usize,
    is_ready: bool,
    head_version: u8,
}

/// What the machine's files are, durable or seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Disk {
    top: [Option<u8>; TOP_SECTORS],
    head_version: u8,
    middle: Option<[Option<u8>; TOP_SECTORS]>,
    target: Vec<u8>,
    epoch: u8,
    journal: Option<Journal>,
    /// Whether TOP's name opens the target.
    is_recorded: bool,
}

impl Disk {
    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Sector(at, byte) => {
                if let Some(sector) = self.target.get_mut(at) {
                    *sector = byte;
                }
            }
            Effect::Epoch => self.epoch = NEW_EPOCH,
            Effect::Length(sectors) => self.target.resize(sectors, 0),
            Effect::Journal(journal) => self.journal = Some(journal),
            Effect::Rename => self.is_recorded = true,
            Effect::RemoveMiddle => self.middle = None,
            Effect::RemoveJournal => self.journal = None,
        }
    }

    /// What a reader who opens TOP's name sees.
    fn view(&self) -> Result<Vec<u8>, &'static str> {
        if self.is_recorded {
            return Ok(self.target.clone());
        }
        let Some(middle) = self.middle else { return Err("TOP's parent is gone") };
        if self.epoch != OLD_EPOCH && self.journal.is_none() {
            return Err("the target is not the parent that the child was made on");
        }
        let sector = |i: usize| self.target.get(i).copied().unwrap_or(0);
        Ok((0..TOP_SECTORS).map(|i| self.top[i].or(middle[i]).unwrap_or_else(|| sector(i))).collect())
    }

    fn work(&self) -> RangeSet {
        let middle = self.middle.unwrap_or_default();
        (0..TOP_SECTORS)
            .filter(|&i| self.top[i].or(middle[i]).is_some())
            .map(|i| GuestOffset::new(i as u64).range(1))
            .collect()
    }
}

/// A micro-step: what one system call does.
#[derive(Clone, Copy, Debug)]
enum Call {
    Do(Effect),
    Sync(Place),
}

#[derive(Clone, Debug)]
struct World {
    durable: Disk,
    pending: Vec<Effect>,
    /// `None` after a crash, before the resume.
    machine: Option<Machine>,
    /// What TOP's view must be.
    expected: Vec<u8>,
    original_target: Vec<u8>,
    crashes_left: u8,
    strangers_left: u8,
}

impl World {
    fn new(target_sectors: usize) -> Self {
        let durable = Disk {
            top: [Some(11), Some(12), None, None, None, None],
            head_version: 0,
            middle: Some([Some(21), None, Some(22), Some(0), None, None]),
            target: (0..target_sectors).map(|i| 31 + u8::try_from(i).unwrap()).collect(),
            epoch: OLD_EPOCH,
            journal: None,
            is_recorded: false,
        };
        let (expected, original_target) = (durable.view().unwrap(), durable.target.clone());
        let machine = Some(fresh(&durable));
        let pending = vec![];
        Self { durable, pending, machine, expected, original_target, crashes_left: 2, strangers_left: 1 }
    }

    fn seen(&self) -> Disk {
        let mut disk = self.durable.clone();
        self.pending.iter().for_each(|e| disk.apply(*e));
        disk
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Do(effect) => self.pending.push(effect),
            Call::Sync(place) => {
                let (synced, left): (Vec<_>, _) = self.pending.iter().partition(|e| e.place() == place);
                for effect in synced {
                    self.durable.apply(effect);
                }
                self.pending = left;
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let disk = self.seen();
        if disk.view()? != self.expected {
            return Err(format!("TOP's name shows {:?} instead of {:?}", disk.view()?, self.expected));
        }
        if disk.epoch == OLD_EPOCH && disk.target != self.original_target {
            return Err("a trusted epoch stands on changed bytes".into());
        }
        Ok(())
    }
}

fn fresh(disk: &Disk) -> Machine {
    Machine::new(disk.work(), 1, Pace { move_bytes: 2, mark_bytes: 2, adopted_pieces: 2 })
}

fn index(at: GuestOffset) -> usize {
    usize::try_from(at.bytes()).unwrap()
}

/// The calls that perform a step: what the runner does, on the model.
fn calls(step: Step, disk: &Disk, without: Option<Without>) -> Vec<Call> {
    use Call::{Do, Sync};
    let note = |journal| vec![Do(Effect::Journal(journal)), Sync(Place::Journal)];
    let bind = note(Journal { mark: 0, is_ready: false, head_version: disk.head_version });
    let renew = vec![Do(Effect::Epoch), Sync(Place::Target)];
    let record = vec![Do(Effect::Rename)];
    let close = vec![Sync(Place::Folder), Do(Effect::RemoveJournal), Sync(Place::Folder)];
    let cut = vec![Do(Effect::Length(TOP_SECTORS)), Sync(Place::Target)];
    let off = |guard| without == Some(guard);
    match step {
        Step::Bind if off(Without::BindBeforeEpoch) => [renew, bind].concat(),
        Step::Bind => bind,
        Step::Renew if off(Without::EpochBeforeData) => vec![],
        Step::Renew => renew,
        Step::Grow if disk.target.len() < TOP_SECTORS => cut,
        Step::Move(range) => moves(range, disk),
        Step::Flush if off(Without::EpochBeforeData) => [vec![Sync(Place::Target)], renew].concat(),
        Step::Flush if off(Without::FlushBeforeMark) || off(Without::FlushBeforeRecord) => vec![],
        Step::Flush => vec![Sync(Place::Target)],
        Step::Mark(_) if off(Without::FlushBeforeRecord) => vec![],
        Step::Mark(at) => note(Journal { mark: index(at), ..disk.journal.unwrap() }),
        Step::Prepare if off(Without::FlushBeforeMark) => {
            [vec![Sync(Place::Target)], note(Journal { is_ready: true, ..disk.journal.unwrap() })].concat()
        }
        Step::Grow | Step::Check => vec![],
        Step::Cut if off(Without::CutBeforeRecord) || off(Without::FlushBeforeRecord) => vec![],
        Step::Cut if off(Without::FlushBeforeMark) => vec![Do(Effect::Length(TOP_SECTORS))],
        Step::Cut => cut,
        Step::Prepare => note(Journal { is_ready: true, ..disk.journal.unwrap() }),
        Step::Record if off(Without::RecordBeforeDrop) => {
            [vec![Do(Effect::RemoveMiddle), Sync(Place::Folder)], record].concat()
        }
        Step::Record if off(Without::JournalLast) => [close, record].concat(),
        Step::Record => record,
        Step::Settle if off(Without::RecordDurableBeforeDrop) => vec![],
        Step::Settle if off(Without::CutBeforeRecord) => [vec![Sync(Place::Folder)], cut].concat(),
        Step::Settle => vec![Sync(Place::Folder)],
        Step::Drop(_) => vec![Do(Effect::RemoveMiddle)],
        Step::Close => close,
    }
}

fn moves(range: GuestRange, disk: &Disk) -> Vec<Call> {
    let sectors = index(range.start)..index(range.end());
    let middle = disk.middle.unwrap();
    sectors.filter_map(|i| disk.top[i].or(middle[i]).map(|b| Call::Do(Effect::Sector(i, b)))).collect()
}

/// What a resume finds, as the runner finds it out.
fn found(disk: &Disk, without: Option<Without>) -> Option<Found> {
    let journal = disk.journal?;
    let is_same_head = journal.head_version == disk.head_version;
    Some(if disk.is_recorded {
        Found::Recorded
    } else if !is_same_head && without != Some(Without::HeadChangedStartsAgain) {
        Found::Void
    } else if journal.is_ready {
        Found::Ready
    } else {
        Found::Bound(GuestOffset::new(journal.mark as u64))
    })
}

/// The ways in which the pending effects may have reached the disk.
fn remains(world: &World) -> Vec<Disk> {
    let subsets = 0..1_u32 << world.pending.len();
    let kept = |subset: u32| {
        let mut disk = world.durable.clone();
        let is_kept = |i: &usize| subset >> i & 1 == 1;
        (0..world.pending.len()).filter(is_kept).for_each(|i| disk.apply(world.pending[i]));
        disk
    };
    subsets.map(kept).collect()
}

struct Explorer {
    without: Option<Without>,
    seen: HashSet<String>,
    crashes: u64,
    ends: u64,
}

impl Explorer {
    /// Follows every history from `start`; the first wrong state ends the search.
    fn run(&mut self, start: World) -> Result<(), String> {
        let mut todo = vec![start];
        while let Some(world) = todo.pop() {
            world.check()?;
            if !self.seen.insert(format!("{world:?}")) {
                continue;
            }
            match world.machine.clone() {
                None => todo.extend(self.after_crash(&world)),
                Some(machine) => self.go_on(world, machine, &mut todo)?,
            }
        }
        Ok(())
    }

    /// A resume; or first a stranger who writes the head, as long as there is an old head.
    fn after_crash(&self, world: &World) -> Vec<World> {
        let mut resumed = world.clone();
        let machine = fresh(&world.durable);
        resumed.machine = Some(match found(&world.durable, self.without) {
            Some(found) => machine.resume(found),
            None => machine,
        });
        let mut worlds = vec![resumed];
        if world.strangers_left > 0 && !world.durable.is_recorded {
            let mut written = world.clone();
            written.strangers_left -= 1;
            written.durable.top[0] = Some(99);
            written.durable.head_version += 1;
            written.expected[0] = 99;
            worlds.push(written);
        }
        worlds
    }

    fn go_on(&mut self, world: World, mut machine: Machine, todo: &mut Vec<World>) -> Result<(), String> {
        let Some(step) = machine.next() else {
            self.ends += 1;
            let disk = world.seen();
            let is_clean = disk.is_recorded && disk.middle.is_none() && disk.journal.is_none();
            return if is_clean { Ok(()) } else { Err(format!("ended with {disk:?}")) };
        };
        if world.durable.is_recorded && world.durable.journal.is_none() {
            // The crash came after the job's last act: there is nothing to resume.
            self.ends += 1;
            return Ok(());
        }
        let mut world = world;
        for call in calls(step, &world.seen(), self.without) {
            self.crash(&world, todo);
            world.call(call);
            world.check()?;
        }
        self.crash(&world, todo);
        machine.landed(step);
        world.machine = Some(machine);
        todo.push(world);
        Ok(())
    }

    fn crash(&mut self, world: &World, todo: &mut Vec<World>) {
        if world.crashes_left == 0 {
            return;
        }
        for disk in remains(world) {
            self.crashes += 1;
            let crashes_left = world.crashes_left - 1;
            let (pending, machine) = (vec![], None);
            todo.push(World { durable: disk, pending, machine, crashes_left, ..world.clone() });
        }
    }
}

fn explore(without: Option<Without>) -> Result<(u64, u64), String> {
    let mut explorer = Explorer { without, seen: HashSet::new(), crashes: 0, ends: 0 };
    for target_sectors in [TOP_SECTORS - 2, TOP_SECTORS, TOP_SECTORS + 2] {
        explorer.run(World::new(target_sectors))?;
    }
    Ok((explorer.crashes, explorer.ends))
}

#[test]
fn con_6_every_crash_and_every_crash_of_the_resume_ends_right() {
    let (crashes, ends) = explore(None).unwrap();
    println!("{crashes} crashes, {ends} ends");
    assert!(crashes > 1000 && ends > 10);
}

#[test]
fn con_6_each_guard_is_missed_when_it_is_off() {
    let guards = [
        (Without::BindBeforeEpoch, "not the parent"),
        (Without::EpochBeforeData, "trusted epoch"),
        (Without::FlushBeforeMark, "instead of"),
        (Without::FlushBeforeRecord, "instead of"),
        (Without::RecordBeforeDrop, "parent is gone"),
        (Without::RecordDurableBeforeDrop, "parent is gone"),
        (Without::JournalLast, "not the parent"),
        (Without::HeadChangedStartsAgain, "instead of"),
        (Without::CutBeforeRecord, "instead of"),
    ];
    for (guard, story) in guards {
        let wrong = explore(Some(guard)).expect_err(&format!("nothing noticed that {guard:?} is off"));
        assert!(wrong.contains(story), "{guard:?}: {wrong}");
    }
}

#[test]
fn a_stop_flushes_and_marks_first() {
    let mut machine = Machine::new(
        [GuestOffset::new(0).range(100)].into_iter().collect(),
        0,
        Pace { move_bytes: 10, mark_bytes: 1000, adopted_pieces: 2 },
    );
    let mut steps = vec![];
    while let Some(step) = machine.next() {
        steps.push(step);
        machine.landed(step);
        if matches!(step, Step::Move(_)) && steps.len() > 4 {
            machine.stop();
        }
    }
    let moved = |start| Step::Move(GuestOffset::new(start).range(10));
    let end = GuestOffset::new(20);
    let expected = [Step::Bind, Step::Renew, Step::Grow, moved(0), moved(10), Step::Flush, Step::Mark(end)];
    assert_eq!(steps, expected);
    assert!(!machine.is_done());
}

#[test]
fn con_2_each_listed_byte_is_moved_once_and_no_other() {
    let list: RangeSet = [GuestOffset::new(3).range(4), GuestOffset::new(20).range(25)].into_iter().collect();
    let mut machine =
        Machine::new(list.clone(), 2, Pace { move_bytes: 10, mark_bytes: 12, adopted_pieces: 2 });
    let (mut moved, mut bytes) = (RangeSet::new(), 0);
    while let Some(step) = machine.next() {
        if let Step::Move(range) = step {
            assert!(!moved.touches(range), "{range:?} moves twice");
            assert!(range.bytes <= 10, "{range:?}");
            for listed in list.iter().map(|listed| listed.clip(range)).filter(|part| !part.is_empty()) {
                moved.insert(listed);
                bytes += listed.bytes;
            }
        }
        machine.landed(step);
    }
    assert_eq!((moved, bytes), (list.clone(), list.bytes()));
    assert!(machine.is_done());
}
