//! `cargo bench --bench live`: served disks against nbdkit, qemu-nbd and ourselves, side by side.
//!
//! Every row runs ours, theirs, ours, theirs ... with fio's nbd engine on copies of the same data in a warm page cache,
//! a fresh server each time, and is judged by the ratio of the medians; absolute figures only say which machine it
//! was. Server and fio share the machine's cores.
//!
//! Folds and snapshots (`folds.rs`) are measured under fio, too, against qemu-storage-daemon's jobs; `throttled.rs` folds
//! into a slow file, and `vhost.rs` reads in a virtual machine.
//!
//! Needs qemu-utils, nbdkit with its filter rate, nbdfuse (of libnbd-bin; who is not root needs fuse3), fio,
//! qemu-system-x86 and what `tools/test.sh --install` unpacks into `target/guest`; 25 GB of disk, and memory for the data
//! to stay cached. Options, after `--`:
//!
//! - `--only PATTERN`: rows whose name contains it · `--list`: their names · `--runs N` (default 3)
//! - `--seconds N`: how long fio runs each time (default 2) · `--markdown`: the table as the README shows it
//! - `--scale 1/4`: smaller data, where memory is short
//!
//! `DCHAIN_BENCH_DIR` names the data folder, as for `--bench offline`, whose data is used.

#[path = "../offline/data.rs"]
#[allow(dead_code, reason = "some of it is for the offline bench alone")]
mod data;
mod folds;
mod load;
mod qmp;
mod rows;
mod server;
mod throttled;
mod vhost;

use clap::Parser;
use load::Figures;
use rows::{ROWS, Row};
use server::Server;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Runs served disks side by side.
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
    /// How long fio runs each time.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
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

/// What a row that is unlike others does; returns the table's lines.
type Other = fn(&mut data::Data, &Options) -> Result<Vec<[String; 7]>, String>;

/// The rows that are unlike others.
const OTHERS: [(&str, Other); 3] = [
    (throttled::ROW, |data, options| throttled::lines(data, options.runs)),
    (folds::PAUSE_ROW, |data, _| folds::pauses(data)),
    (vhost::ROW, vhost::lines),
];

const HEAD: [&str; 7] = ["work", "against", "ours", "theirs", "ratio", "server CPU a request", "reach"];

fn main() -> ExitCode {
    match bench(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("live: {why}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<(), String> {
    let is_wanted = |name: &str| name.contains(&options.only);
    let rows: Vec<_> = ROWS.iter().filter(|row| is_wanted(row.name)).collect();
    let folds: Vec<_> = folds::ROWS.iter().filter(|row| is_wanted(row.name)).collect();
    let others: Vec<_> = OTHERS.iter().filter(|(name, _)| is_wanted(name)).collect();
    if options.list {
        let names = rows.iter().map(|row| row.name).chain(folds.iter().map(|row| row.name));
        names.chain(others.iter().map(|(name, _)| *name)).for_each(|name| println!("{name}"));
        return Ok(());
    }
    let mut data = data::Data::new(&data_folder(options.scale), options.scale)?;
    let mut lines = vec![HEAD.map(str::to_owned)];
    let mut add = |all: Vec<[String; 7]>| {
        for line in &all {
            eprintln!("{}", line.join(" | "));
        }
        lines.extend(all);
    };
    for row in rows {
        data.make(row.pieces)?;
        add(run(row, &data, options)?);
    }
    for row in folds {
        add(row.run(&mut data, options.runs)?);
    }
    for (_, work) in others {
        add(work(&mut data, options)?);
    }
    print!("{}", table(&lines, options.markdown));
    Ok(())
}

/// Runs all sides of a row in turn; returns a line for each of theirs.
fn run(row: &Row, data: &data::Data, options: &Options) -> Result<Vec<[String; 7]>, String> {
    let sides: Vec<&Server> =
        std::iter::once(&row.ours).chain(row.theirs.iter().map(|(server, _)| server)).collect();
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); sides.len()];
    for _ in 0..options.runs {
        for (server, figures) in sides.iter().zip(&mut figures) {
            let running = server.start(&data.folder)?;
            let work = load::run(row.work, running.uri(), data.size(), options.seconds)?;
            figures.push(work.with_cpu(running.cpu()));
        }
    }
    let mut medians = figures.iter().map(|samples| load::median(samples));
    let ours = medians.next().unwrap_or_default();
    let line = |((server, reach), theirs): (&(Server, Option<f64>), Figures)| {
        let ratio = ours.rate / theirs.rate;
        let mark = if reach.is_some_and(|reach| ratio < reach) { " **missed**" } else { "" };
        [
            row.name.to_owned(),
            server.name().to_owned(),
            row.work.shown(&ours),
            row.work.shown(&theirs),
            format!("{ratio:.2}"),
            format!("{:.1} us, {:.1} us", ours.cpu_us, theirs.cpu_us),
            reach.map_or("(shown)".to_owned(), |reach| format!(">= {reach}x{mark}")),
        ]
    };
    Ok(row.theirs.iter().zip(medians).map(line).collect())
}

fn table(lines: &[[String; 7]], is_markdown: bool) -> String {
    if is_markdown {
        let rule = HEAD.map(|_| "---".to_owned());
        let all = lines.iter().take(1).chain([&rule]).chain(lines.iter().skip(1));
        let line = |line: &[String; 7]| format!("| {} |\n", line.join(" | "));
        return all.map(line).collect();
    }
    let width = |column: usize| lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    let padded = |line: &[String; 7]| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(padded).collect()
}

fn data_folder(scale: u64) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("DCHAIN_BENCH_DIR") {
        Some(named) => root.join(named),
        None if scale == 1 => root.join("target/bench-data"),
        None => root.join(format!("target/bench-data-{scale}")),
    }
}
