//! What a history asked for, and what each sector may hold after a power cut.
//!
//! A sector shows the last value that was made durable, or that of any later operation: one that was not
//! flushed, was under way, or failed. Never anything else. An operation is durable when it was acknowledged
//! before the start of a flush that was itself acknowledged; a change of size is durable by itself, and one that
//! cuts something off is done or not.

use crate::{
    guids::Stamp,
    mark::{Mark, PARENT},
};
use std::{fmt, ops::Range};

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Makes the image.
    Create,
    /// Writes sectors.
    Write,
    /// Makes sectors read as zeros.
    Zero,
    /// Makes all before it durable.
    Flush,
    /// Changes the size.
    Resize,
    /// Closes the image and opens it again.
    Reopen,
    /// Writes a compressed cluster.
    Pack,
    /// Writes from another file.
    Move,
    /// Makes all before it durable and gives free space back to the host.
    Release,
    /// Adds or removes a bitmap.
    Bitmap,
}

/// One operation of a history.
#[derive(Clone, Debug)]
pub struct Op {
    /// What it is.
    pub kind: Kind,
    /// The sectors that it changes.
    pub sectors: Range<u64>,
    /// Who they are said to be written by.
    pub(crate) mark: Mark,
    /// The disk's size in sectors afterwards.
    pub(crate) size: u64,
    /// Events in the machine's trace when it began.
    pub(crate) start: usize,
    /// Events when it was acknowledged; `None` if it failed.
    pub(crate) end: Option<usize>,
    /// Who asked for each of its barriers, in order, if that is noted.
    pub(crate) barriers: Vec<String>,
}

/// The operations of one history on one machine.
#[derive(Clone, Debug)]
pub struct Log {
    /// What the sectors held before; those beyond hold zeros.
    start: Vec<Mark>,
    /// The size before, in sectors; 0 if there was no image.
    start_size: u64,
    /// In the order in which they were asked for, one at a time.
    pub ops: Vec<Op>,
    /// What the image said of itself when it had been opened, and the events until then.
    pub(crate) opened: Vec<(usize, Stamp)>,
}

/// What may be seen at one moment.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    /// The value of each sector that is durable, and the number of operations up to the one that made it so.
    durable: Vec<(Mark, usize)>,
    /// Operations that are not durable, with their places.
    later: Vec<(usize, &'a Op)>,
    /// Sizes in sectors.
    pub(crate) sizes: Vec<u64>,
}

impl Log {
    /// Begins a log on a disk that holds `start`.
    pub(crate) const fn on(start: Vec<Mark>, start_size: u64) -> Self {
        Self { start, start_size, ops: Vec::new(), opened: Vec::new() }
    }

    /// Begins a log on a machine without the image; a parent of so many sectors shines through.
    pub(crate) fn on_nothing(parent: u64, size: u64) -> Self {
        let shown = usize::try_from(parent.min(size)).unwrap_or_default();
        Self::on(vec![PARENT; shown], size)
    }

    /// Returns what may be seen when the power goes behind `events` events of the trace.
    pub(crate) fn expected(&self, events: usize) -> Expected<'_> {
        self.expected_with(events, &self.flushed(events, false))
    }

    /// Whether the image was about to be closed, or had been, when the power went behind `events` events.
    pub(crate) fn is_closing(&self, events: usize) -> bool {
        let last = self.ops.iter().rfind(|op| op.start <= events);
        let is_over = || self.ops.last().is_none_or(|op| op.end.is_none_or(|end| end < events));
        last.is_none_or(|op| op.kind == Kind::Reopen) || is_over()
    }

    /// Returns what may be seen by who still has the image open.
    pub(crate) fn seen(&self) -> Expected<'_> {
        self.expected_with(usize::MAX, &self.flushed(usize::MAX, true))
    }

    /// Whether each operation was followed by a flush that was acknowledged before the image was closed; with
    /// `is_open`, also those since the image was opened last.
    fn flushed(&self, events: usize, is_open: bool) -> Vec<bool> {
        let mut is_covered = is_open;
        let mut flushed: Vec<bool> = self
            .ops
            .iter()
            .rev()
            .map(|op| {
                match op.kind {
                    Kind::Flush | Kind::Release if op.end.is_some_and(|end| end <= events) => {
                        is_covered = true;
                    }
                    Kind::Reopen => is_covered = false,
                    _ => {}
                }
                is_covered
            })
            .collect();
        flushed.reverse();
        flushed
    }

    /// What may be seen where of the acknowledged operations the `flushed` ones are there for sure.
    fn expected_with(&self, events: usize, flushed: &[bool]) -> Expected<'_> {
        let is_done = |op: &Op| op.end.is_some_and(|end| end <= events);
        let longest = self.ops.iter().map(|op| op.sectors.end).max().unwrap_or_default().max(self.start_size);
        let mut durable: Vec<(Mark, usize)> = self.start.iter().map(|mark| (*mark, 0)).collect();
        durable.resize(usize::try_from(longest).unwrap_or_default(), (0, 0));
        let (mut later, mut sizes) = (Vec::new(), vec![self.start_size]);
        for (n, op) in self.ops.iter().enumerate().filter(|(_, op)| op.start < events || is_done(op)) {
            let is_flushed = flushed.get(n).copied().unwrap_or_default();
            let is_durable = is_done(op) && (is_flushed || op.kind == Kind::Resize);
            if !is_durable {
                // What is being cut off stays whole as long as the disk has it.
                if op.kind != Kind::Resize || op.size > op.sectors.start {
                    later.push((n, op));
                }
            } else if let Some(sectors) = durable.get_mut(places(&op.sectors)) {
                sectors.fill((op.mark, n + 1));
            }
            if op.kind == Kind::Resize {
                if is_durable {
                    sizes.clear();
                }
                sizes.push(op.size);
            }
        }
        Expected { durable, later, sizes }
    }

    /// Returns whether an operation failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.ops.iter().any(|op| op.end.is_none())
    }

    /// Returns whether the log begins with the image's making.
    pub(crate) fn is_first_life(&self) -> bool {
        self.ops.first().is_some_and(|op| op.kind == Kind::Create)
    }

    /// Returns the events after which the image is there; `None` if making it failed.
    pub(crate) fn created(&self) -> Option<usize> {
        match self.ops.first() {
            Some(op) if op.kind == Kind::Create => op.end,
            _ => Some(0),
        }
    }

    /// Returns how many writes and zeros were acknowledged as durable before `events`.
    pub(crate) fn acknowledged(&self, events: usize) -> u64 {
        let flushed = self.flushed(events, false);
        let durable = self.ops.iter().zip(flushed).filter(|(op, flushed)| *flushed && !op.sectors.is_empty());
        durable.filter(|(op, _)| op.end.is_some_and(|end| end <= events)).count() as u64
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Op { kind, sectors, mark, start, end, .. } in &self.ops {
            let end = end.map_or_else(|| "failed".to_owned(), |end| end.to_string());
            writeln!(f, "  events {start}..{end}: {kind:?} {sectors:?} as {mark:#x}")?;
        }
        Ok(())
    }
}

fn places(sectors: &Range<u64>) -> Range<usize> {
    let place = |sector: u64| usize::try_from(sector).unwrap_or(usize::MAX);
    place(sectors.start)..place(sectors.end)
}

impl Expected<'_> {
    /// Returns whether `sector` may show `mark`.
    pub(crate) fn allows(&self, sector: u64, mark: Mark) -> bool {
        let place = usize::try_from(sector).unwrap_or(usize::MAX);
        let (durable, since) = self.durable.get(place).copied().unwrap_or_default();
        let is_newer =
            |(n, op): &(usize, &Op)| *n >= since && op.sectors.contains(&sector) && op.mark == mark;
        mark == durable || self.later.iter().any(is_newer)
    }

    /// Returns whether the log durably changed `sector`.
    pub(crate) fn was_written(&self, sector: u64) -> bool {
        let place = usize::try_from(sector).unwrap_or(usize::MAX);
        self.durable.get(place).is_some_and(|(_, since)| *since > 0)
    }

    /// Says what `sector` may show, for people.
    pub(crate) fn describe(&self, sector: u64) -> String {
        let place = usize::try_from(sector).unwrap_or(usize::MAX);
        let (durable, since) = self.durable.get(place).copied().unwrap_or_default();
        let newer = self.later.iter().filter(|(n, op)| *n >= since && op.sectors.contains(&sector));
        let newer: Vec<String> = newer.map(|(_, op)| format!("or {:#x}", op.mark)).collect();
        format!("{durable:#x} {}", newer.join(" "))
    }
}
