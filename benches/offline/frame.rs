//! What the benches of commands have in common: their options, and the way from rows to a table.

use crate::{
    data,
    run::{Bench, Outcome, Row},
    table,
};
use clap::Args;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Which rows are run, and how often.
#[derive(Args)]
pub(crate) struct Options {
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
}

/// Returns false if a result was wrong; slow is not wrong.
pub(crate) fn bench(all: &[Row], options: &Options) -> Result<bool, String> {
    let rows: Vec<_> = all.iter().filter(|r| r.name.contains(&options.only)).collect();
    if options.list {
        for row in rows {
            println!("{}", row.name);
        }
        return Ok(true);
    }
    let data = data::Data::new(&data_folder(options.scale), options.scale)?;
    let mut bench = Bench::new(data, options.runs)?;
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
    Ok(!results.iter().any(|(_, outcome)| matches!(outcome, Outcome::Wrong(_))))
}

/// Returns how the program ends.
pub(crate) fn end(name: &str, done: Result<bool, String>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn data_folder(scale: u64) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("DCHAIN_BENCH_DIR") {
        Some(named) => root.join(named),
        None if scale == 1 => root.join("target/bench-data"),
        None => root.join(format!("target/bench-data-{scale}")),
    }
}
