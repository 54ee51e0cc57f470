//! What is asked of guests around a snapshot: to hold still before (freeze), and to go on after it (thaw).
//!
//! What stays true: whoever was asked to freeze is asked to thaw, whatever became of the freeze, of the snapshot or of the
//! service: the book says first who is asked, so that the next start thaws whom a kill left frozen.

use super::{Service, book::Book};
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

/// What is asked of the guest of a disk, in words that whoever runs programs knows; nothing without any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// The program that has the guest hold still, and its arguments.
    pub freeze: Vec<String>,
    /// The program that has it go on, and its arguments.
    pub thaw: Vec<String>,
    /// Seconds that each may take; `None`: what the runner thinks right.
    pub timeout: Option<u64>,
}

impl Hooks {
    /// Returns whether there is nothing to ask.
    pub const fn is_empty(&self) -> bool {
        self.freeze.is_empty() && self.thaw.is_empty()
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest is to hold still.
    Freeze,
    /// It is to go on.
    Thaw,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        })
    }
}

/// Whoever asks guests: the library runs no programs.
pub trait Quiesce: Send + Sync + fmt::Debug {
    /// Asks the guest of a disk, and waits; fails where it did not do what it was asked, or not in time.
    fn ask(&self, disk: &str, hooks: &Hooks, phase: Phase) -> Result<()>;
}

/// Nobody is asked: a disk with hooks has no snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub struct AskNobody;

impl Quiesce for AskNobody {
    fn ask(&self, disk: &str, _hooks: &Hooks, phase: Phase) -> Result<()> {
        Err(Error::unsupported(format!("disk '{disk}': nobody is there to {phase} its guest")))
    }
}

/// Says that guests may hold still, until it goes.
struct Freezing<'a>(&'a AtomicBool);

impl<'a> Freezing<'a> {
    fn begin(flag: &'a AtomicBool) -> Self {
        flag.store(true, SeqCst);
        Self(flag)
    }
}

impl Drop for Freezing<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl Service {
    /// Does something while the guests of the disks hold still.
    pub(super) fn while_frozen<T>(
        &self,
        book: &mut Book,
        names: &[String],
        what: impl FnOnce(&mut Book) -> Result<T>,
    ) -> Result<T> {
        let hooks = |name: &String| {
            let known = book.written().disks.get(name)?;
            Some((name.clone(), known.hooks.clone())).filter(|(_, hooks)| !hooks.is_empty())
        };
        let guests: Vec<(String, Hooks)> = names.iter().filter_map(hooks).collect();
        if guests.is_empty() {
            return what(book);
        }
        let _freezing = Freezing::begin(&self.is_freezing);
        // A stop that came before this is seen here; one that comes now waits.
        self.refuse_stopping()?;
        self.ask_around(book, &guests, what)
    }

    fn ask_around<T>(
        &self,
        book: &mut Book,
        guests: &[(String, Hooks)],
        what: impl FnOnce(&mut Book) -> Result<T>,
    ) -> Result<T> {
        set_frozen(book, guests, true)?;
        let mut asked = 0;
        let frozen = guests.iter().try_for_each(|(name, hooks)| {
            asked += 1;
            self.ask(name, hooks, Phase::Freeze)
        });
        let done = frozen.and_then(|()| what(book));
        let thawed = self.thaw(guests.get(..asked).unwrap_or_default());
        let noted = set_frozen(book, guests, false);
        let done = done?;
        // The snapshot stands; who has the guest is to know that it may not go on.
        thawed.map_err(|error| error.doing("the snapshot was taken"))?;
        noted?;
        Ok(done)
    }

    fn ask(&self, name: &str, hooks: &Hooks, phase: Phase) -> Result<()> {
        let program = match phase {
            Phase::Freeze => &hooks.freeze,
            Phase::Thaw => &hooks.thaw,
        };
        if program.is_empty() { Ok(()) } else { self.settings.quiesce.ask(name, hooks, phase) }
    }

    /// Has all of them go on, the last one first; returns the first failure.
    fn thaw(&self, guests: &[(String, Hooks)]) -> Result<()> {
        let mut done = Ok(());
        for (name, hooks) in guests.iter().rev() {
            let thawed = self.ask(name, hooks, Phase::Thaw);
            if let Err(error) = &thawed {
                tracing::warn!(%error, disk = name, "a guest may hold still");
            }
            done = done.and(thawed);
        }
        done
    }

    /// Has those go on whom a kill left frozen.
    pub(super) fn thaw_left(&self, book: &mut Book) -> Result<()> {
        let written = book.written();
        let hooks = |name: &String| Some((name.clone(), written.disks.get(name)?.hooks.clone()));
        let left: Vec<_> = written.frozen.iter().filter_map(hooks).collect();
        if left.is_empty() {
            return Ok(());
        }
        // Said by now; nobody can do more about it.
        drop(self.thaw(&left));
        set_frozen(book, &left, false)
    }
}

fn set_frozen(book: &mut Book, guests: &[(String, Hooks)], is_frozen: bool) -> Result<()> {
    book.change(|written| {
        for (name, _) in guests {
            if is_frozen {
                written.frozen.insert(name.clone());
            } else {
                written.frozen.remove(name);
            }
        }
    })
}
