//! What goes wrong, and when: failures at a counted I/O, barriers that do nothing.

use rustix::io::Errno;
use std::{backtrace::Backtrace, collections::BTreeSet, fmt};

/// How an I/O fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// `EIO`, on any I/O; nothing is done.
    Io,
    /// `ENOSPC`, on what changes files or names; nothing is done.
    NoSpace,
    /// Half of the sectors of a write arrive, then `ENOSPC`; other changes fail with `ENOSPC`.
    Short,
}

impl Failure {
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Io => Errno::IO,
            Self::NoSpace | Self::Short => Errno::NOSPC,
        }
    }

    const fn befalls(self, action: Action) -> bool {
        match self {
            Self::Io => true,
            Self::NoSpace | Self::Short => matches!(action, Action::Change),
        }
    }
}

/// Which I/Os of a file wait ([`super::SimHost::hold`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waits {
    /// The next read, before it has read anything; those after it do not.
    NextRead,
    /// All changes and flushes, before anything has happened.
    Changes,
}

/// A failure that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The I/O that fails: 0 is the machine's first ([`super::SimHost::ios`] counts them).
    pub at: u64,
    /// Whether those after it fail too, until the fault is taken away.
    pub is_lasting: bool,
    /// How it fails.
    pub failure: Failure,
}

/// What an I/O does, as far as failures care.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Read,
    Change,
    Barrier,
}

/// Somebody else who acts at some I/O.
pub(super) struct Stranger(pub(super) Box<dyn FnOnce() + Send>);

impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stranger")
    }
}

/// Counts I/Os and barriers and says what befalls them.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) ios: u64,
    pub(super) fault: Option<Fault>,
    /// Barriers since the operation under way began.
    pub(super) barriers: u64,
    /// Those among them that do nothing.
    forgotten: Vec<u64>,
    /// Who asked for each, if that is noted.
    pub(super) names: Option<Vec<String>>,
    /// Files, by inode, that cannot be changed, flushed or measured.
    pub(super) broken: BTreeSet<u64>,
    /// What waits, by the inode of its file.
    pub(super) held: Option<(u64, Waits)>,
    /// Who acts next, and before which I/O.
    pub(super) stranger: Option<(u64, Stranger)>,
    /// How many I/Os wait now.
    pub(super) waiting: usize,
}

impl Faults {
    /// Returns who acts before the next I/O.
    pub(super) fn due(&mut self) -> Option<Stranger> {
        let ios = self.ios;
        self.stranger.take_if(|(at, _)| *at <= ios).map(|(_, stranger)| stranger)
    }

    /// Counts an I/O on a file; returns how it fails, if it does.
    pub(super) fn next_on(&mut self, inode: u64, action: Action) -> Option<Failure> {
        let is_broken = !matches!(action, Action::Read) && self.broken.contains(&inode);
        self.next(action).or(is_broken.then_some(Failure::Io))
    }

    /// Returns whether an I/O on a file has to wait.
    pub(super) fn waits(&self, inode: u64, action: Action) -> bool {
        self.held.is_some_and(|(held, waits)| {
            held == inode && (waits == Waits::NextRead) == matches!(action, Action::Read)
        })
    }

    /// Counts an I/O; returns how it fails, if it does.
    pub(super) fn next(&mut self, action: Action) -> Option<Failure> {
        let n = self.ios;
        self.ios += 1;
        let fault = self.fault.filter(|fault| n == fault.at || fault.is_lasting && n > fault.at)?;
        fault.failure.befalls(action).then_some(fault.failure)
    }

    /// Begins to count barriers at 0.
    pub(super) fn begin(&mut self, forgotten: Vec<u64>, is_named: bool) {
        (self.barriers, self.forgotten, self.names) = (0, forgotten, is_named.then(Vec::new));
    }

    /// Counts a barrier; returns whether it does its work.
    pub(super) fn barrier_works(&mut self) -> bool {
        let n = self.barriers;
        self.barriers += 1;
        self.names.as_mut().into_iter().for_each(|names| names.push(caller()));
        !self.forgotten.contains(&n)
    }
}

/// Returns from which lines of the library, above this room, a barrier was asked for, the innermost first.
fn caller() -> String {
    let stack = Backtrace::force_capture().to_string();
    let places = stack.lines().filter_map(|line| line.trim().strip_prefix("at ")).filter_map(|place| {
        let (root, place) = place.rsplit_once("/src/")?;
        let is_foreign = ["tools", "rust", "registry"].iter().any(|part| root.contains(part));
        // Without the column, and the folder of the build.
        let line = place.rsplit_once(':').map_or(place, |(line, _)| line);
        (!is_foreign && !place.starts_with("io/")).then_some(line)
    });
    places.collect::<Vec<_>>().join(" < ")
}
