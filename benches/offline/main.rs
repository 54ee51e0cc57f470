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
mod measure;
mod place;
mod probe;
mod reach;
mod rows;
mod run;
mod table;

use clap::Parser;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Runs the offline tools side by side with qemu-img.
#[derive(Parser)]
struct Options {
    /// Rows whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Prints the rows' names.
    #[arg(long)]
    list: bool,
    /// Times each side of a row runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Size of the data, as 1/N of the real recipes.
    #[arg(long, default_value = "1", value_parser = data::parse_scale)]
    scale: u64,
    /// Prints the table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// What a measured run of this program does itself.
    #[command(subcommand)]
    probe: Option<probe::Probe>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.probe {
        Some(probe) => probe.run().map_err(|e| e.to_string()).map(|()| true),
        None => bench(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("offline: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Returns false if a result was wrong; slow is not wrong.
fn bench(options: &Options) -> Result<bool, String> {
    let rows: Vec<_> = rows::ROWS.iter().filter(|r| r.name.contains(&options.only)).collect();
    if options.list {
        for row in rows {
            println!("{}", row.name);
        }
        return Ok(true);
    }
    let data = data::Data::new(&data_folder(options.scale), options.scale)?;
    let mut bench = run::Bench::new(data, options.runs)?;
    let mut results = Vec::new();
    for row in rows {
        let outcome = bench.run(row);
        eprintln!("{}", table::progress(row, &outcome));
        results.push((row, outcome));
    }
    if options.scale != 1 {
        println!("Data at 1/{}: these ratios only show that the bench works.\n", options.scale);
    }
    print!("{}", table::table(&results, options.markdown));
    Ok(!results.iter().any(|(_, outcome)| matches!(outcome, run::Outcome::Wrong(_))))
}

fn data_folder(scale: u64) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("DCHAIN_BENCH_DIR") {
        Some(named) => root.join(named),
        None if scale == 1 => root.join("target/bench-data"),
        None => root.join(format!("target/bench-data-{scale}")),
    }
}
