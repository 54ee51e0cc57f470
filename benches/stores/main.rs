//! `cargo bench --bench stores`: stores of many images, and chains on their way between stores, side by side with `cp` and
//! `rsync`.
//!
//! As `--bench offline` does it: ours, theirs, ours, theirs ... on the same data with a warm page cache, judged by the ratio
//! of the medians. Rows about many images have nothing to stand against, and have a time that they must not pass.
//!
//! Needs qemu-utils, rsync and OpenSSH; the data takes 16 GB and some minutes to make. Chains copied between folders with `cp` to
//! stand against are rows of `--bench offline`. Options, after `--`, and the data folder: as for
//! `--bench offline`, whose data is used.

#[path = "../offline/data.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod data;
#[path = "../offline/frame.rs"]
mod frame;
mod images;
#[path = "../offline/measure.rs"]
mod measure;
#[path = "../offline/place.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod place;
mod probe;
#[path = "../offline/reach.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod reach;
mod rows;
#[path = "../offline/run.rs"]
mod run;
#[path = "../offline/table.rs"]
mod table;

use clap::Parser;
use std::process::ExitCode;

/// Runs stores side by side with cp and rsync.
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
    frame::end("stores", done)
}
