//! `dchain completions`: what a shell needs to complete our options.

use crate::{
    cli,
    failure::{Exit, Failure},
    output::Answer,
};
use clap::Args;
use clap_complete::Shell;
use serde::Serialize;

/// Print completions for a shell
#[derive(Args, Debug)]
pub struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The answer for programs.
#[derive(Serialize)]
struct Script {
    shell: String,
    script: String,
}

impl Arguments {
    /// Prints the script.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut cli::description(), "dchain", &mut script);
        let script = String::from_utf8_lossy(&script).into_owned();
        let found = Script { shell: self.shell.to_string(), script };
        answer.print(&found, |out| out.write_all(found.script.as_bytes()))?;
        Ok(Exit::Done)
    }
}
