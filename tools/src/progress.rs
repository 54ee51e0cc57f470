//! How far a job is: a bar, JSON lines, a line on SIGUSR1; and ^C, which stops it at a clean point.
//!
//! The job runs on the thread that called; a second thread looks at it a few times a second. All of it goes to
//! stderr.

use crate::{failure::Failure, output::note, size};
use clap::{Args, ValueEnum};
use deltachain::{
    base::Result,
    job::{Progress, State, copy::WAIT},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    flag,
};
use std::{
    io::{self, IsTerminal},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::Duration,
};

/// How often the watching thread looks.
const GLANCE: Duration = Duration::from_millis(100);
/// Every how many glances a JSON line is printed.
const GLANCES_A_LINE: u32 = 5;
/// What a second ^C ends with: at once.
const AT_ONCE: i32 = 130;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shown {
    /// A bar, on a terminal only.
    Bar,
    /// One JSON object a line: phase, transferred, size, elapsed, rate, eta.
    Json,
}

/// Options of every command that may take long.
#[derive(Args, Debug)]
pub struct Watching {
    /// Show progress on stderr: a bar on a terminal, or JSON lines
    #[arg(short, long, value_name = "bar|json", num_args = 0..=1, require_equals = true,
          default_missing_value = "bar", hide_possible_values = true)]
    progress: Option<Shown>,
    /// Move at most that many bytes a second
    #[arg(short, long, value_name = "BYTES/s", value_parser = size::parse)]
    rate: Option<u64>,
}

/// What signals ask for.
#[derive(Debug, Default)]
struct Asked {
    stop: Arc<AtomicBool>,
    line: Arc<AtomicBool>,
}

impl Asked {
    fn listen() -> io::Result<Self> {
        let asked = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal only sets the flag, which arms the second.
            flag::register_conditional_shutdown(signal, AT_ONCE, Arc::clone(&asked.stop))?;
            flag::register(signal, Arc::clone(&asked.stop))?;
        }
        flag::register(SIGUSR1, Arc::clone(&asked.line))?;
        Ok(asked)
    }
}

/// Tells the watching thread that the job ended, however it ended.
struct Ended<'a> {
    flag: &'a AtomicBool,
    watcher: Thread,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.flag.store(true, Relaxed);
        self.watcher.unpark();
    }
}

impl Watching {
    /// Returns how many bytes a second are asked for, at most; 0 is no limit.
    pub fn rate(&self) -> u64 {
        self.rate.unwrap_or(0)
    }

    /// Runs a job while showing how far it is.
    pub fn run<T>(&self, job: impl FnOnce(&Progress) -> Result<T>) -> std::result::Result<T, Failure> {
        let progress = Progress::default();
        progress.set_rate(self.rate());
        let asked = Asked::listen()?;
        let has_ended = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch(&progress, &asked, &has_ended));
            let _ended = Ended { flag: &has_ended, watcher: watcher.thread().clone() };
            job(&progress)
        });
        Ok(result?)
    }

    fn watch(&self, progress: &Progress, asked: &Asked, has_ended: &AtomicBool) {
        let bar = (self.progress == Some(Shown::Bar) && io::stderr().is_terminal()).then(new_bar);
        let (mut glances, mut is_told) = (0, self.progress.is_some() || !io::stderr().is_terminal());
        while !has_ended.load(Relaxed) {
            thread::park_timeout(GLANCE);
            let state = progress.state();
            if asked.stop.load(Relaxed) {
                progress.cancel();
            }
            if asked.line.swap(false, Relaxed) {
                note(&line(&state));
            }
            if let Some(bar) = &bar {
                draw(bar, &state);
            }
            // Who sees no progress is told why there is none.
            if state.phase == WAIT && !mem::replace(&mut is_told, true) {
                note("waits for another copy, which brings the same; ^C ends the waiting");
            }
            if self.progress == Some(Shown::Json)
                && (glances % GLANCES_A_LINE == 0 || has_ended.load(Relaxed))
            {
                note(&json_line(&state));
            }
            glances += 1;
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style =
        "{msg} [{bar:32}] {percent:>3} %  {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn draw(bar: &ProgressBar, state: &State) {
    if bar.message() != state.phase {
        bar.set_message(state.phase);
        bar.reset_eta();
    }
    bar.set_length(state.size_bytes);
    bar.set_position(state.moved_bytes);
}

/// Bytes a second so far, and seconds still to go where that can be said.
fn rate_and_rest(state: &State) -> (u64, Option<u64>) {
    let elapsed_ms = u64::try_from(state.elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = u128::from(state.moved_bytes) * 1000 / u128::from(elapsed_ms);
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    (rate, state.size_bytes.saturating_sub(state.moved_bytes).checked_div(rate))
}

fn line(state: &State) -> String {
    let percent =
        (u128::from(state.moved_bytes) * 100).checked_div(u128::from(state.size_bytes)).unwrap_or(100);
    let (rate, rest) = rate_and_rest(state);
    let rest = rest.map_or_else(String::new, |s| format!(", {s} s left"));
    let (moved, of) = (size::show(state.moved_bytes), size::show(state.size_bytes));
    format!("{} {percent} % ({moved} of {of}), {}/s{rest}", state.phase, size::show(rate))
}

fn json_line(state: &State) -> String {
    let (rate, eta) = rate_and_rest(state);
    let line = json!({
        "phase": state.phase,
        "transferred": state.moved_bytes,
        "size": state.size_bytes,
        "elapsed": state.elapsed.as_secs_f64(),
        "rate": rate,
        "eta": eta,
    });
    line.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(moved_bytes: u64, size_bytes: u64) -> State {
        State { phase: "copy", moved_bytes, size_bytes, elapsed: Duration::from_secs(2) }
    }

    #[test]
    fn a_line_says_how_far_and_how_long() {
        assert_eq!(line(&state(1 << 20, 4 << 20)), "copy 25 % (1 MiB of 4 MiB), 512 KiB/s, 6 s left");
        assert_eq!(line(&state(0, 0)), "copy 100 % (0 B of 0 B), 0 B/s");
    }

    #[test]
    fn a_json_line_has_the_promised_keys() {
        let line: serde_json::Value = serde_json::from_str(&json_line(&state(1 << 20, 4 << 20))).unwrap();
        assert_eq!(line["phase"], "copy");
        assert_eq!((line["transferred"].as_u64(), line["size"].as_u64()), (Some(1 << 20), Some(4 << 20)));
        assert_eq!((line["elapsed"].as_f64(), line["rate"].as_u64()), (Some(2.0), Some(512 << 10)));
        assert_eq!(line["eta"].as_u64(), Some(6));
    }

    #[test]
    fn a_job_that_panics_does_not_hang_its_watcher() {
        let watching = Watching { progress: None, rate: None };
        let caught = std::panic::catch_unwind(|| watching.run(|_| -> Result<()> { panic!("on purpose") }));
        assert!(caught.is_err());
    }
}
