//! `dchain`: the toolbox. Arguments, terminals and the environment live here; the work is the library's.
#![allow(unreachable_pub, reason = "a program's items are all its own")]

mod cli;
mod client;
mod command;
mod config;
mod data;
mod failure;
mod habits;
mod help;
mod options;
mod output;
mod package;
mod plan;
mod progress;
mod remote;
mod size;
mod ssh;
mod svg;

fn main() -> std::process::ExitCode {
    deltachain::io::real::raise_descriptors();
    cli::run(std::env::args_os())
}
