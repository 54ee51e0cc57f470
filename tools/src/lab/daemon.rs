//! `dchaind` as a program of this machine.

use crate::{Told, told};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// The daemon, killed when this goes.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts `program` in `folder`, with its control socket `c` and its state there and with `arguments`, and waits until it
    /// is ready. `says`: what it says of guests and jobs is heard.
    pub(crate) fn start(program: &Path, folder: &Path, arguments: &[&str], says: bool) -> Told<Self> {
        let mut command = Command::new(program);
        command.current_dir(folder).args(["--control", "unix:c", "--state", "state"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(if says { Stdio::inherit() } else { Stdio::null() });
        let mut daemon = Self(command.spawn().map_err(told)?);
        let out = daemon.0.stdout.take().ok_or("no stdout")?;
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        if lines.any(|line| line == "ready") { Ok(daemon) } else { Err("dchaind did not start".to_owned()) }
    }

    /// Ends it as its unit does.
    pub(crate) fn stop(mut self) -> Told<()> {
        let killed = Command::new("kill").arg(self.0.id().to_string()).status().map_err(told)?;
        let status = self.0.wait().map_err(told)?;
        if killed.success() && status.success() { Ok(()) } else { Err(format!("dchaind: {status}")) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Where it has ended, there is nothing to kill.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
