//! Programs that are run around a snapshot: bounded in time and in what they say. Whoever asks holds the book, which nobody
//! else gets meanwhile: one that cannot even be killed (it waits in the kernel, for a host that does not answer) is left to a
//! thread of its own.

use deltachain::{
    base::Error,
    service::{Hooks, Phase, Quiesce},
};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How long a program may take unless its disk says otherwise: guests do not hold still for long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long one that was killed may take to end, and one that is started to begin.
const DYING: Duration = Duration::from_secs(2);
/// How often it is looked whether it has ended.
const GLANCE: Duration = Duration::from_millis(5);
/// How much of what it says is kept.
const SAID_MAX: u64 = 4096;

/// Runs programs.
#[derive(Clone, Copy, Debug)]
pub struct Programs;

impl Quiesce for Programs {
    fn ask(&self, disk: &str, hooks: &Hooks, phase: Phase) -> Result<(), Error> {
        let argv = match phase {
            Phase::Freeze => &hooks.freeze,
            Phase::Thaw => &hooks.thaw,
        };
        let what = || format!("{phase} of disk '{disk}' ({})", argv.join(" "));
        let timeout = hooks.timeout.map_or(TIMEOUT, Duration::from_secs);
        let program =
            Program { argv: argv.clone(), disk: disk.to_owned(), phase, timeout, began: Instant::now() };
        let patience = timeout.saturating_add(DYING);
        let ran = within(patience, move || program.run()).map_err(|e| Error::io("run", e).doing(what()))?;
        let Some(ran) = ran else {
            let why = format!("took more than {} s, and cannot be killed", timeout.as_secs());
            return Err(failed(why).doing(what()));
        };
        let (ended, said) = ran.map_err(|e| Error::io("run", e).doing(what()))?;
        let said = String::from_utf8_lossy(&said);
        let said = said.trim_end().escape_debug().to_string();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failed(format!("ended with {status}{said}")).doing(what())),
            None => Err(failed(format!("took more than {} s{said}", timeout.as_secs())).doing(what())),
        }
    }
}

fn failed(why: String) -> Error {
    Error::io("hook", io::Error::other(why))
}

/// Does something in a thread of its own; returns `None` if it has not ended by then, and leaves it alone.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (tell, told) = mpsc::channel();
    // Nobody may listen any more.
    thread::Builder::new().name("hook".to_owned()).spawn(move || drop(tell.send(work())))?;
    Ok(told.recv_timeout(patience).ok())
}

/// A program that is to be run.
struct Program {
    argv: Vec<String>,
    disk: String,
    phase: Phase,
    timeout: Duration,
    /// Its time counts from here, even where it takes long to start: afterwards nobody waits for it any more.
    began: Instant,
}

impl Program {
    /// Returns how it ended, `None` if it was killed for its time, and what it said.
    fn run(&self) -> io::Result<(Option<ExitStatus>, Vec<u8>)> {
        let (program, arguments) = self.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let (mut reader, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(arguments).env("DCHAIN_DISK", &self.disk).env("DCHAIN_PHASE", self.phase.to_string());
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let child = command.spawn()?;
        // The ends that it was given are closed here, or its last word would never come.
        drop(command);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut said = Vec::new();
            // What is too much is read all the same, so that it can go on.
            let _ = reader.by_ref().take(SAID_MAX).read_to_end(&mut said);
            let _ = tell.send(said);
            let _ = io::copy(&mut reader, &mut io::sink());
        });
        let ended = self.wait(child)?;
        // What it started may have the pipe open still.
        Ok((ended, told.recv_timeout(Duration::from_millis(200)).unwrap_or_default()))
    }

    /// Waits; kills it, and all that it started, when its time is over.
    fn wait(&self, mut child: Child) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if self.began.elapsed() >= self.timeout {
                let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                child.wait()?;
                return Ok(None);
            }
            thread::sleep(GLANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(script: &str, timeout: u64) -> Result<(), Error> {
        let freeze = ["sh", "-c", script].map(str::to_owned).to_vec();
        Programs.ask("vm", &Hooks { freeze, timeout: Some(timeout), ..Hooks::default() }, Phase::Freeze)
    }

    #[test]
    fn a_program_is_told_what_for_and_its_failure_is_said() {
        ask("test $DCHAIN_DISK-$DCHAIN_PHASE = vm-freeze", 10).unwrap();
        let said = ask("echo no guest; exit 3", 10).unwrap_err().to_string();
        assert!(
            said.contains("no guest") && said.contains('3') && said.contains("freeze of disk 'vm'"),
            "{said}"
        );
        // More than a pipe holds.
        ask("head -c 1000000 /dev/zero", 10).unwrap();
        assert!(
            Programs
                .ask("vm", &Hooks { thaw: vec!["/none".to_owned()], ..Hooks::default() }, Phase::Thaw)
                .is_err()
        );
    }

    #[test]
    fn a_program_that_takes_too_long_goes_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("late");
        let began = Instant::now();
        let said =
            ask(&format!("(sleep 1; touch {}) & sleep 600", file.display()), 0).unwrap_err().to_string();
        assert!(said.contains("took more than") && began.elapsed() < Duration::from_mins(1), "{said}");
        thread::sleep(Duration::from_millis(1300));
        assert!(!file.exists());
    }

    #[test]
    fn what_cannot_even_be_killed_is_waited_for_no_longer_than_that() {
        let (go_on, hangs) = mpsc::channel::<()>();
        let hung = within(Duration::from_millis(20), move || hangs.recv());
        assert!(hung.unwrap().is_none());
        go_on.send(()).unwrap();
        assert_eq!(within(Duration::from_mins(1), || 7).unwrap(), Some(7));
    }
}
