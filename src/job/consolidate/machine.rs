//! The life of a consolidation: which step comes next, and what a crash leaves behind.
//!
//! ```text
//!   Planned ─Bind─► Bound ─Renew─► Renewed ─Grow─► Copying ─(Move* Flush Mark)*─► Whole ─Cut─► Cut
//!     ─Check─► Proved ─Prepare─► Ready ─Record─► Recorded ─Settle─► Dropping ─Drop*─► Dropped ─Close─► Done
//! ```
//!
//! Eight rules keep the disk right, whenever power fails; the tests take each away in turn.
//!
//! 1. The journal that binds the target's new epoch is durable before that epoch is: else the chain would not
//!    open in between.
//! 2. The new epoch is durable before the first byte: else a trusted ID could stand on changed bytes.
//! 3. The done-mark passes a block only after a flush of the target: a crash then copies a block twice, never
//!    zero times.
//! 4. The target is flushed before the record: else TOP's name opens a target that lacks bytes.
//! 5. No folded layer goes before the record is durable: else the old head comes back without its parents.
//! 6. The journal goes last: without it a chain that is still needed would not open.
//! 7. A head that somebody else wrote since is copied again from the start: its blocks are not the copied ones.
//! 8. A larger target is cut to TOP's size before the record: TOP never shows what lies beyond its own end, and
//!    its name never opens a longer disk.
//!
//! Pure: this decides, the caller performs, and says so with [`Machine::landed`].

use crate::{
    base::{GuestOffset, GuestRange},
    map::RangeSet,
};

/// What the caller is to do next. Each may be done again after a crash in its midst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Make the journal durable: it names the target's new epoch.
    Bind,
    /// Make the new epoch durable in the target and drop its seal.
    Renew,
    /// Grow the target to TOP's size, if it is smaller.
    Grow,
    /// Bring the bytes of this range that the run holds to the target; it starts and ends with such a byte.
    Move(GuestRange),
    /// Make durable what reached the target.
    Flush,
    /// Note in the journal, durably, that everything before this place is done.
    Mark(GuestOffset),
    /// Cut the target to TOP's size, if it is larger; durable.
    Cut,
    /// Compare the target's view with TOP's.
    Check,
    /// Make everything that the record needs durable, then note in the journal that the record comes next.
    Prepare,
    /// Make TOP's name (or the target's) open the result: one step that every reader sees whole.
    Record,
    /// Make the record durable.
    Settle,
    /// Remove the folded layer of this number.
    Drop(usize),
    /// Make the removals durable, then remove the journal.
    Close,
}

/// What a crash or a stop left behind, as read from the journal and the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// The journal stands; everything before the mark is durable in the target.
    Bound(GuestOffset),
    /// The same, but what was copied does not count: somebody else wrote the head since, or a new image in the making
    /// is gone.
    Void,
    /// The target is whole and proved, and all that the record needs is durable; the record has not landed.
    Ready,
    /// The record has landed, durably or not.
    Recorded,
}

/// Where the job stands. A state carries what is true in it and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Planned,
    /// The journal is durable, and says that everything before the mark is done.
    Bound(GuestOffset),
    /// The target's new epoch is durable as well.
    Renewed(GuestOffset),
    Copying(Pass),
    /// Every listed byte is durable in the target.
    Whole,
    /// The target has TOP's size.
    Cut,
    Proved,
    Ready,
    Recorded,
    /// The record is durable; folded layers from this number on are still there.
    Dropping(usize),
    Dropped,
    Done,
}

/// One pass over the work list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pass {
    /// Listed bytes before this place are durable in the target, and the journal says so.
    mark: GuestOffset,
    /// Listed bytes before this place are durable in the target.
    flushed: GuestOffset,
    /// Listed bytes before this place reached the target.
    landed: GuestOffset,
    /// Bytes moved since the last flush.
    unflushed_bytes: u64,
}

impl Pass {
    const fn from(mark: GuestOffset) -> Self {
        Self { mark, flushed: mark, landed: mark, unflushed_bytes: 0 }
    }
}

/// How much is done at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pace {
    /// Guest bytes that one move spans, at most; moves do not cross a multiple of it.
    pub move_bytes: u64,
    /// Listed bytes between two marks: what a crash makes copied again, at most.
    pub mark_bytes: u64,
    /// A run of a folded layer's file that goes to so many places or more is shared whole, where the host shares.
    pub adopted_pieces: u64,
}

/// The job's position; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    list: RangeSet,
    pace: Pace,
    folded: usize,
    state: State,
    is_stopping: bool,
}

impl Machine {
    /// Starts a job: `list` is what the run holds, `folded` how many layers are to be removed at the end.
    pub const fn new(list: RangeSet, folded: usize, pace: Pace) -> Self {
        Self { list, pace, folded, state: State::Planned, is_stopping: false }
    }

    /// Goes on with a job after a crash or a stop.
    #[must_use]
    pub fn resume(mut self, found: Found) -> Self {
        self.state = match found {
            Found::Bound(mark) => State::Bound(mark),
            Found::Void => State::Planned,
            Found::Ready => State::Ready,
            Found::Recorded => State::Recorded,
        };
        self
    }

    /// Asks for a stop at the next clean checkpoint. Once the record comes next there is none: the job ends.
    pub const fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Returns whether every step has landed.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Returns what to do next; `None` when the job is done or has stopped.
    pub fn next(&self) -> Option<Step> {
        Some(match &self.state {
            State::Copying(pass) => return self.next_in(pass),
            State::Ready => Step::Record,
            State::Recorded => Step::Settle,
            State::Dropping(from) => Step::Drop(*from),
            State::Dropped => Step::Close,
            State::Done => return None,
            _ if self.is_stopping => return None,
            State::Planned => Step::Bind,
            State::Bound(_) => Step::Renew,
            State::Renewed(_) => Step::Grow,
            State::Whole => Step::Cut,
            State::Cut => Step::Check,
            State::Proved => Step::Prepare,
        })
    }

    /// The pass: moves until enough is unflushed, then a flush, then the mark.
    fn next_in(&self, pass: &Pass) -> Option<Step> {
        if pass.flushed > pass.mark {
            return Some(Step::Mark(pass.flushed));
        }
        let next = self.list.next_from(pass.landed);
        let is_due = next.is_none() || self.is_stopping || pass.unflushed_bytes >= self.pace.mark_bytes;
        match next {
            _ if is_due && pass.landed > pass.flushed => Some(Step::Flush),
            _ if self.is_stopping => None,
            Some(next) => Some(Step::Move(self.stride(next.start).0)),
            // Nothing was left to move: what an earlier life moved is flushed once more, to be sure of it.
            None => Some(Step::Flush),
        }
    }

    /// Returns the next range to move, which starts at a listed byte, and how many of its bytes are listed.
    fn stride(&self, start: GuestOffset) -> (GuestRange, u64) {
        let stop = start.floor(self.pace.move_bytes).plus(self.pace.move_bytes);
        let (mut end, mut bytes) = (start, 0);
        while let Some(part) = self.list.next_from(end).filter(|part| part.start < stop) {
            end = part.end().min(stop);
            bytes += end.since(part.start);
            if end == stop {
                break;
            }
        }
        (GuestRange::between(start, end), bytes)
    }

    /// Takes note that `step`, which [`Machine::next`] asked for, has been done.
    pub fn landed(&mut self, step: Step) {
        self.state = match (self.state.clone(), step) {
            (State::Planned, Step::Bind) => State::Bound(GuestOffset::new(0)),
            (State::Bound(mark), Step::Renew) => State::Renewed(mark),
            (State::Renewed(mark), Step::Grow) => State::Copying(Pass::from(mark)),
            (State::Copying(pass), _) => self.landed_in(pass, step),
            (State::Whole, Step::Cut) => State::Cut,
            (State::Cut, Step::Check) => State::Proved,
            (State::Proved, Step::Prepare) => State::Ready,
            (State::Ready, Step::Record) => State::Recorded,
            (State::Recorded, Step::Settle) => self.dropping(0),
            (State::Dropping(from), Step::Drop(_)) => self.dropping(from + 1),
            (State::Dropped, Step::Close) => State::Done,
            (state, _) => {
                debug_assert!(false, "{step:?} was not asked for in {state:?}");
                state
            }
        };
    }

    fn landed_in(&self, mut pass: Pass, step: Step) -> State {
        match step {
            Step::Move(range) => {
                pass.landed = range.end();
                pass.unflushed_bytes += self.stride(range.start).1;
            }
            Step::Flush => {
                pass.flushed = pass.landed;
                pass.unflushed_bytes = 0;
            }
            Step::Mark(at) => pass.mark = at,
            _ => debug_assert!(false, "{step:?} was not asked for in the pass"),
        }
        let is_marked = pass.mark == pass.flushed && pass.flushed == pass.landed;
        let is_whole = is_marked && self.list.next_from(pass.mark).is_none();
        if is_whole { State::Whole } else { State::Copying(pass) }
    }

    const fn dropping(&self, from: usize) -> State {
        if from < self.folded { State::Dropping(from) } else { State::Dropped }
    }
}

#[cfg(test)]
mod tests;
