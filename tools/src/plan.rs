//! Plans: what a command is going to do, said before it is done.

use crate::{
    failure::Failure,
    output::{Answer, note, printable},
};
use clap::Args;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Options of every command that changes something.
#[derive(Args, Debug)]
pub struct Planned {
    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do not ask before something that cannot be taken back
    #[arg(long)]
    pub yes: bool,
}

/// Whether what is planned can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// Nothing is lost.
    Harmless,
    /// Something that could be read before cannot be read afterwards.
    Destructive,
}

impl Planned {
    /// Shows the plan and returns whether to go on.
    ///
    /// With `--dry-run` the plan is the answer. Otherwise it goes to stderr, and if it is destructive a person at
    /// the terminal is asked, who fails the command by saying no; in a script `--yes` is wanted.
    pub fn agree<T: Serialize>(
        &self,
        answer: &Answer,
        plan: &T,
        lines: &[String],
        grade: Grade,
    ) -> Result<bool, Failure> {
        if self.dry_run {
            answer.print(plan, |out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?;
            return Ok(false);
        }
        if !answer.is_silent() {
            for line in lines {
                note(&printable(line));
            }
        }
        match grade {
            Grade::Harmless => Ok(true),
            Grade::Destructive if self.yes => Ok(true),
            Grade::Destructive if io::stdin().is_terminal() && io::stderr().is_terminal() => {
                if ask()? {
                    Ok(true)
                } else {
                    Err(Failure::declined())
                }
            }
            Grade::Destructive => {
                let what = "this cannot be taken back, and there is no terminal to ask on";
                Err(Failure::usage(what).hint("--dry-run shows the plan, --yes does it"))
            }
        }
    }
}

fn ask() -> io::Result<bool> {
    let mut err = io::stderr().lock();
    write!(err, "Go on? [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
