//! The command line as a whole: what is asked for, and how the program ends.

use crate::{
    command,
    failure::{Exit, Failure},
    habits, help,
    output::{Answer, Output, note},
};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::{ffi::OsString, panic, process::ExitCode};

/// Inspect, change, name and fold disk images that form delta chains
#[derive(Debug, Parser)]
#[command(name = "dchain", version, max_term_width = 100, after_help = help::after())]
struct Cli {
    /// For whom the answer is
    #[arg(
        long,
        global = true,
        display_order = 100,
        value_enum,
        value_name = "human|json",
        default_value = "human",
        hide_possible_values = true,
        hide_default_value = true
    )]
    output: Output,
    /// Print nothing but errors and JSON
    #[arg(short, long, global = true, display_order = 101)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(command::info::Arguments),
    Map(command::map::Arguments),
    Compare(command::compare::Arguments),
    Measure(command::measure::Arguments),
    Check(command::check::Arguments),
    Create(command::create::Arguments),
    Convert(command::convert::Arguments),
    Resize(command::resize::Arguments),
    Compact(command::compact::Arguments),
    Bitmap(command::bitmap::Arguments),
    Snapshot(command::snapshot::Arguments),
    Revert(command::revert::Arguments),
    Rebase(command::rebase::Arguments),
    Consolidate(command::consolidate::Arguments),
    Copy(command::copy::Arguments),
    Migrate(command::migrate::Arguments),
    Send(command::send::Arguments),
    StoreAgent(command::store_agent::Arguments),
    Receive(command::receive::Arguments),
    Unshare(command::unshare::Arguments),
    Rm(command::rm::Arguments),
    Relink(command::relink::Arguments),
    Repair(command::repair::Arguments),
    Id(command::id::Arguments),
    Tree(command::tree::Arguments),
    Lint(command::lint::Arguments),
    Diff(command::diff::Arguments),
    Backup(command::backup::Arguments),
    Disk(command::disk::Arguments),
    Job(command::job::Arguments),
    Completions(command::completions::Arguments),
    Man(command::man::Arguments),
}

impl Command {
    fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        if answer.output().is_drawing() && !matches!(self, Self::Tree(_)) {
            return Err(Failure::usage("nothing to draw: --output dot and svg are for `dchain tree`"));
        }
        match self {
            Self::Info(arguments) => arguments.run(answer),
            Self::Map(arguments) => arguments.run(answer),
            Self::Compare(arguments) => arguments.run(answer),
            Self::Measure(arguments) => arguments.run(answer),
            Self::Check(arguments) => arguments.run(answer),
            Self::Create(arguments) => arguments.run(answer),
            Self::Convert(arguments) => arguments.run(answer),
            Self::Resize(arguments) => arguments.run(answer),
            Self::Compact(arguments) => arguments.run(answer),
            Self::Bitmap(arguments) => arguments.run(answer),
            Self::Snapshot(arguments) => arguments.run(answer),
            Self::Revert(arguments) => arguments.run(answer),
            Self::Rebase(arguments) => arguments.run(answer),
            Self::Consolidate(arguments) => arguments.run(answer),
            Self::Copy(arguments) => arguments.run(answer),
            Self::Migrate(arguments) => arguments.run(answer),
            Self::Send(arguments) => arguments.run(answer),
            Self::StoreAgent(arguments) => arguments.run(answer),
            Self::Receive(arguments) => arguments.run(answer),
            Self::Unshare(arguments) => arguments.run(answer),
            Self::Rm(arguments) => arguments.run(answer),
            Self::Relink(arguments) => arguments.run(answer),
            Self::Repair(arguments) => arguments.run(answer),
            Self::Id(arguments) => arguments.run(answer),
            Self::Tree(arguments) => arguments.run(answer),
            Self::Lint(arguments) => arguments.run(answer),
            Self::Diff(arguments) => arguments.run(answer),
            Self::Backup(arguments) => arguments.run(answer),
            Self::Disk(arguments) => arguments.run(answer),
            Self::Job(arguments) => arguments.run(answer),
            Self::Completions(arguments) => arguments.run(answer),
            Self::Man(arguments) => arguments.run(answer),
        }
    }
}

/// Returns the description of all commands and options.
pub fn description() -> clap::Command {
    let command = Cli::command();
    // Clap hands an option of all commands down only to those that have none of that name.
    let output = command.get_arguments().find(|option| option.get_id() == "output").cloned();
    let drawing = output.map(|option| option.value_name("human|json|dot|svg"));
    habits::taken(help::with_examples(command.mut_subcommand("tree", |tree| tree.args(drawing))))
}

/// Does what `arguments` ask for.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let parsed = description().try_get_matches_from(&arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(failure) = habits::failure(&error, &arguments) {
                note(&failure.to_string());
                return failure.exit.into();
            }
            // A reader that went away wants no help.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    panic::set_hook(Box::new(|bug| note(&format!("dchain: a fault of this program: {bug}"))));
    let answer = Answer::new(cli.output, cli.quiet);
    match panic::catch_unwind(panic::AssertUnwindSafe(|| cli.command.run(&answer))) {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(failure)) => {
            note(&failure.to_string());
            failure.exit.into()
        }
        Err(_) => {
            note("hint: the image was not harmed more than by a power cut; dchain check says how it is");
            Exit::Bug.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn clap_finds_no_contradiction() {
        description().debug_assert();
    }

    /// Fingers know options: a short one has one long twin, and they are the same pair in every command.
    #[test]
    fn a_short_option_means_the_same_everywhere() {
        let mut known: BTreeMap<char, String> = BTreeMap::new();
        let mut commands = vec![description()];
        while let Some(command) = commands.pop() {
            for option in command.get_arguments().filter(|a| !a.is_positional()) {
                let Some(short) = option.get_short() else { continue };
                let long = option.get_long().unwrap_or("none").to_owned();
                let first = known.entry(short).or_insert_with(|| long.clone());
                assert_eq!(*first, long, "-{short} in {}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
        assert_eq!(known.get(&'f').map(String::as_str), Some("format"));
    }
}
