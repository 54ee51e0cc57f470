//! `cargo bench --bench offline`: the offline tools against qemu-img and other yardsticks, side by side.
//!
//! Every row runs ours, theirs, ours, theirs ... on the same data with a warm page cache, both sides ending
//! durable, and is judged by the ratio of the medians; absolute times only say which machine it was. Where a
//! row makes an image, the two results are compared once, untimed.
//!
//! Needs qemu-utils and b3sum; xfsprogs and root for the rows with reflink (skipped otherwise, with the
//! reason); 60 GB of disk and about half an hour for everything. Options, after `--`:
//!
//! - `--only PATTERN`: rows whose name contains it · `--list`: their names · `--runs N` (default 3)
//! - `--markdown`: the table as the README shows it
//! - `--scale 1/16`: smaller data, to try the bench itself; its ratios say nothing
//!
//! `DCHAIN_BENCH_DIR` names the data folder (relative to the workspace; default `target/bench-data`); it is
//! made on first use and kept.

mod data;
mod frame;
mod measure;
mod place;
mod probe;
mod reach;
mod rows;
mod run;
mod table;

use clap::Parser;
use std::process::ExitCode;

/// Runs the offline tools side by side with qemu-img.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: frame::Options,
    /// What a measured run of this program does itself.
    #[command(subcommand)]
    probe: Option<probe::Probe>,
}

fn main() -> ExitCode {
    let Arguments { options, probe } = Arguments::parse();
    let done = match &probe {
        Some(probe) => probe.run().map_err(|e| e.to_string()).map(|()| true),
        None => frame::bench(rows::ROWS, &options),
    };
    frame::end("offline", done)
}
