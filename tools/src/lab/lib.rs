//! The laboratory: seeded histories on a simulated machine, and verdicts on what a power cut or a failing
//! I/O leaves of them.
//!
//! A [`History`] performs steps on a disk image and keeps a [`Log`] of what was asked and what was
//! acknowledged. [`crash`] cuts the power behind every event and compares; [`errors`] lets every I/O fail in
//! turn; [`mutants`] takes away one barrier after the other and expects to be caught. [`jobs`] does all that
//! to whole jobs on chains. [`mirror`] runs guests against the copier of a live fold, with real threads. `guards` takes away the checks that the library names, in builds that can. Apart from these, [`fuzz`] damages files and has every parser read them;
//! [`kill`] has the real program die in the middle of its jobs on this machine, and starts it again; [`guest`] has Linux
//! in an emulator write to a disk while it is reshaped.

pub mod crash;
pub mod errors;
pub mod fuzz;
#[cfg(debug_assertions)]
pub mod guards;
pub mod guest;
pub mod jobs;
pub mod kill;
pub mod mirror;
pub mod mutants;

mod daemon;
mod foreign;
mod guids;
mod history;
mod log;
mod mark;
mod verdict;

use std::fmt;

pub use history::{HISTORIES, History, Setup, Step};
pub use log::{Kind, Log, Op};
pub use verdict::Verdict;

/// What went wrong, in words.
type Told<T> = Result<T, String>;

fn told(error: impl fmt::Display) -> String {
    error.to_string()
}
