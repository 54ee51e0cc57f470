//! Who this process is, as others read it.

use crate::base::seed;
use serde::{Deserialize, Serialize};
use std::{fmt, fs, sync::OnceLock};

/// A process, on whatever host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program's name.
    pub program: String,
    /// Its number on its host.
    pub pid: u32,
    /// The host's name.
    pub host: String,
    /// Tells it from all others: numbers come back.
    token: u128,
}

impl Process {
    /// Returns this one.
    pub fn this() -> &'static Self {
        static THIS: OnceLock<Process> = OnceLock::new();
        THIS.get_or_init(|| Self {
            program: fs::read_to_string("/proc/self/comm").unwrap_or_default().trim_end().to_owned(),
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            token: seed::fresh(),
        })
    }

    /// Returns whether it is this one.
    pub fn is_this(&self) -> bool {
        self.token == Self::this().token
    }

    /// Returns whether it runs on this host, by the host's name.
    pub fn is_here(&self) -> bool {
        self.host == Self::this().host
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}", self.program, self.pid)?;
        if !self.is_here() {
            write!(f, " on {}", self.host)?;
        }
        f.write_str(")")
    }
}
