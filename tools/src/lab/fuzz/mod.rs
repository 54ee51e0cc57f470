//! Malformed inputs: seeded damages of sound files, fed to every parser that a stranger's bytes reach.
//!
//! An input may be read or refused. It must not panic, read on for ever, take much memory, or be refused
//! with an error that names neither file nor field; an image that `check` calls clean stays clean when it
//! is written; what a repair calls clean is clean. Whatever breaks this is kept as a [`Recipe`], as short
//! as it still breaks it.

mod bounded;
mod feed;
mod mutate;
mod package;
mod recipe;
mod streams;
mod subject;
mod vhdx;
mod vmdk;
mod vpc;
mod wire;

pub use feed::{Fed, Wrong};
pub use recipe::Recipe;
pub use streams::Side;
pub use subject::{Parser, Subject};

use deltachain::{base::seed::Seeded, format::Format};
use std::{
    fmt, panic,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How much more memory one input may take than any before it, in bytes.
const GROWTH_BYTES: u64 = 64 << 20;

/// What came of many inputs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Inputs tried.
    pub inputs: u64,
    /// Of these, damaged images.
    pub images: u64,
    /// Damaged images that passed the checks of their header.
    pub past_header: u64,
    /// Damaged images that were written.
    pub written: u64,
    /// Damaged images that a repair made clean.
    pub mended: u64,
    /// Inputs at which something panicked.
    pub panics: u64,
    /// The processor time that the slowest input took, and the input.
    pub slowest: (Duration, Recipe),
    /// What must not be: the input, and what came of it.
    pub wrong: Vec<(Recipe, Wrong)>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.past_header * 100 / self.images.max(1);
        write!(
            f,
            "{} malformed inputs, {} of them images: {percent} % past the header, {} written, {} mended; \
             {} panics, {} wrong in all; the slowest took {} ms ({})",
            self.inputs,
            self.images,
            self.written,
            self.mended,
            self.panics,
            self.wrong.len(),
            self.slowest.0.as_millis(),
            self.slowest.1.subject
        )
    }
}

/// What the last panic said, in whatever thread: a server has many.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn panic_said() -> MutexGuard<'static, Option<String>> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what a panic says instead of printing it, from now on and for the whole program.
pub fn listen() {
    panic::set_hook(Box::new(|info| *panic_said() = Some(info.to_string())));
}

/// Feeds one input to its parser.
pub fn feed(subjects: &[Subject], recipe: &Recipe) -> Result<Fed, Wrong> {
    let subject = subjects.iter().find(|s| s.name == recipe.subject);
    let subject = subject.ok_or_else(|| format!("no sound input is called '{}'", recipe.subject))?;
    let input = recipe.apply(&subject.bytes);
    let before = peak_bytes();
    let fed = panic::catch_unwind(|| subject.feed(&input));
    let grown = peak_bytes().saturating_sub(before);
    if grown > GROWTH_BYTES {
        return Err(format!("takes {} MiB of memory", grown >> 20));
    }
    let said = panic_said().take();
    match (fed, said) {
        (Ok(fed), None) => fed,
        (_, said) => Err(format!("{PANICKED}: {}", said.unwrap_or_default())),
    }
}

/// Puts the sums right that an image's own structures have, where its format has any: else a damage ends there.
pub fn put_sums_right(format: Format, bytes: &mut [u8]) {
    match format {
        Format::Vhdx => drop(vhdx::mend_all(bytes)),
        Format::Vpc => {
            let sound = vpc::header_at(bytes);
            drop(vpc::mend_all(bytes, sound));
        }
        _ => {}
    }
}

const PANICKED: &str = "panicked";

/// The most memory that this program has had, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0_u64) << 10
}

/// The processor time that this program has had.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Feeds `inputs` damaged inputs, the ones that belong to `seed` and the numbers that follow it.
pub fn search(subjects: &[Subject], seed: u64, inputs: u64) -> Tally {
    let mut tally = Tally::default();
    for n in 0..inputs {
        let recipe = mutate::recipe(subjects, &mut Seeded::new(seed.wrapping_add(n)));
        let is_image = subjects.iter().any(|s| s.name == recipe.subject && s.is_image());
        tally.inputs += 1;
        tally.images += u64::from(is_image);
        let before = cpu_time();
        let fed = feed(subjects, &recipe);
        let took = cpu_time().saturating_sub(before);
        if took > tally.slowest.0 {
            tally.slowest = (took, recipe.clone());
        }
        match fed {
            Ok(fed) if is_image => {
                tally.past_header += u64::from(fed.is_past_header);
                tally.written += u64::from(fed.is_written);
                tally.mended += u64::from(fed.is_mended);
            }
            Ok(_) => {}
            Err(wrong) => {
                tally.past_header += u64::from(is_image);
                tally.panics += u64::from(wrong.starts_with(PANICKED));
                let short = shorten(subjects, recipe, &wrong);
                tally.wrong.push((short, wrong));
            }
        }
    }
    tally
}

/// Leaves out what is not needed for something to be wrong in the same way.
fn shorten(subjects: &[Subject], mut recipe: Recipe, wrong: &str) -> Recipe {
    let kind = |wrong: &str| wrong.split(':').next().unwrap_or_default().to_owned();
    let is_same = |recipe: &Recipe| feed(subjects, recipe).is_err_and(|again| kind(&again) == kind(wrong));
    let uncut = Recipe { cut: None, ..recipe.clone() };
    if recipe.cut.is_some() && is_same(&uncut) {
        recipe = uncut;
    }
    for n in (0..recipe.edits.len()).rev() {
        let mut less = recipe.clone();
        less.edits.remove(n);
        if is_same(&less) {
            recipe = less;
        }
    }
    recipe
}
