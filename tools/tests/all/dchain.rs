//! Runs the built program, for the tests of its manners.

use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// What a run left.
pub(crate) struct Run {
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed on stdout.
    pub(crate) out: String,
    /// What it printed on stderr.
    pub(crate) err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Run {
    /// The JSON on stdout.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }
}

/// The program, to be run in `folder`.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dchain"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).env_remove("DCHAIN_ALLOW_DIRS");
    command
}

/// Runs the program in `folder`.
pub(crate) fn dchain(folder: &Path, arguments: &[&str]) -> Run {
    command(folder, arguments).output().unwrap().into()
}

/// Runs the program, which must succeed.
pub(crate) fn done(folder: &Path, arguments: &[&str]) -> Run {
    let run = dchain(folder, arguments);
    assert_eq!(run.code, Some(0), "{arguments:?}: {}{}", run.out, run.err);
    run
}

/// Runs a tool of qemu in `folder`, which must succeed; returns its stdout.
pub(crate) fn qemu(folder: &Path, tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).current_dir(folder).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
