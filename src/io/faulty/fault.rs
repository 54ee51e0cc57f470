//! What goes wrong, and when: failures at a counted I/O, barriers that do nothing.

use rustix::io::Errno;
use std::backtrace::Backtrace;

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

/// Counts I/Os and barriers and says what befalls them.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) ios: u64,
    pub(super) fault: Option<Fault>,
    /// Barriers since the operation under way began.
    pub(super) barriers: u64,
    /// Those among them that do nothing.
    forgotten: Vec<u64>,
    /// Who asked for each, if that is noted.
    pub(super) names: Option<Vec<String>>,
}

impl Faults {
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
    // In full: paths are not relative to the working folder, whatever that is.
    let stack = format!("{:#}", Backtrace::force_capture());
    let places = stack.lines().filter_map(|line| line.trim().strip_prefix("at "));
    places.filter_map(line_of_library).collect::<Vec<_>>().join(" < ")
}

/// Returns the line of the library, above this room, that a place in the code names, without its column.
fn line_of_library(place: &str) -> Option<&str> {
    let place = place.strip_prefix(env!("CARGO_MANIFEST_DIR"))?.strip_prefix("/src/")?;
    let line = place.rsplit_once(':').map_or(place, |(line, _)| line);
    (!place.starts_with("io/")).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The project may lie in a folder called `rust` or `tools`.
    #[test]
    fn lines_of_the_library_are_told_from_others_by_its_folder_alone() {
        let own = |place: &str| line_of_library(place).map(str::to_owned);
        let here = env!("CARGO_MANIFEST_DIR");
        assert_eq!(own(&format!("{here}/src/store/draft.rs:90:19")), Some("store/draft.rs:90".to_owned()));
        for foreign in ["/src/io/real/mod.rs:7:1", "/tools/src/lab/crash.rs:7:1"] {
            assert_eq!(own(&format!("{here}{foreign}")), None);
        }
        assert_eq!(own("/rustc/0123/library/std/src/panic.rs:7:1"), None);
    }

    #[test]
    fn a_barrier_is_named_after_the_line_that_asks_for_it() {
        let stack = format!("{:#}", Backtrace::force_capture());
        assert!(
            stack.contains(&format!("{}/src/io/faulty/fault.rs:", env!("CARGO_MANIFEST_DIR"))),
            "{stack}"
        );
    }
}
