//! `cargo bench --bench formats`: images of other formats than qcow2, side by side with `qemu-img`, `cp` and our own qcow2.
//!
//! As `--bench offline` does it: ours, theirs, ours, theirs ... on the same data with a warm page cache, judged by the ratio of
//! the medians. In the rows of served disks fio does the same requests on either side, and the start of the daemon counts.
//!
//! Needs qemu-utils, and fio for the served disks; the images take 20 GB. Options, after `--`, and the data folder: as for
//! `--bench offline`, whose data is used.

#[path = "../offline/data.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod data;
#[path = "../offline/frame.rs"]
mod frame;
#[path = "../offline/measure.rs"]
mod measure;
#[path = "../offline/place.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod place;
#[path = "../offline/reach.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod reach;
mod rows;
#[path = "../offline/run.rs"]
#[allow(dead_code, reason = "some of it is for the other benches alone")]
mod run;
#[path = "../offline/table.rs"]
mod table;

use clap::Parser;
use std::process::ExitCode;

/// Runs images of other formats side by side with other programs.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: frame::Options,
}

fn main() -> ExitCode {
    let Arguments { options } = Arguments::parse();
    frame::end("formats", frame::bench(rows::ROWS, &options))
}
