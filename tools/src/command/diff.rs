//! `dchain diff`: the ranges in which two disks differ.

use crate::{
    failure::{Exit, Failure},
    options::{self, Reading},
    output::Answer,
    progress::Watching,
    size,
};
use clap::Args;
use deltachain::{
    chain::{Chain, Opening},
    format::Format,
    job::diff::{Kind, differences},
};
use serde::Serialize;
use std::path::PathBuf;

/// List the ranges in which B differs from A
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    reading: Reading,
    /// Format of B
    #[arg(short = 'F', long, value_name = "FMT", value_parser = options::format)]
    backing_format: Option<Format>,
    /// Ranges are multiples of this (a power of two, 512 to 1M)
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = granularity)]
    granularity: u64,
    #[command(flatten)]
    watching: Watching,
    /// The one disk
    a: PathBuf,
    /// The other disk
    b: PathBuf,
}

/// A range in which the disks differ.
#[derive(Serialize)]
struct Range {
    offset: u64,
    length: u64,
    kind: Kind,
}

fn granularity(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    let fits = bytes.is_power_of_two() && (512..=1 << 20).contains(&bytes);
    if fits { Ok(bytes) } else { Err("a power of two from 512 to 1M is wanted".to_owned()) }
}

impl Arguments {
    /// Looks and prints.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.reading.opening(&host)?;
        let a = Chain::open(&host, &self.a, &opening)?;
        let other = Opening { format: self.backing_format, ..opening };
        let b = Chain::open(&host, &self.b, &other)?;
        let mut found = Vec::new();
        self.watching.run(|progress| {
            differences(&a.view(0), &b.view(0), self.granularity, progress, &mut |difference| {
                let range = difference.range;
                found.push(Range { offset: range.start.bytes(), length: range.bytes, kind: difference.kind });
                true
            })
        })?;
        answer.print_list(&found, |found, out| {
            found.iter().try_for_each(|range| {
                let kind = if range.kind == Kind::Zero { "zero" } else { "data" };
                writeln!(out, "{:#14x} {:>12} {kind}", range.offset, range.length)
            })
        })?;
        Ok(Exit::Done)
    }
}
