//! `dchain diff`: the ranges in which two disks differ.

use crate::{
    client::{Daemon, layer, number, segment, text},
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

/// List the ranges in which B differs from A, also of a disk in use
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
    /// Look at this disk of dchaind: A and B are layers of it, by name or path (else A is the newest layer below its head,
    /// B what guests see now)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["format", "backing_format", "allow_dir"])]
    disk: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
    /// The one disk
    #[arg(required_unless_present = "disk")]
    a: Option<PathBuf>,
    /// The other disk
    #[arg(required_unless_present = "disk")]
    b: Option<PathBuf>,
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
        if let Some(disk) = &self.disk {
            return self.look_live(disk, answer);
        }
        let (Some(a), Some(b)) = (&self.a, &self.b) else { return Err(Failure::usage("A and B are wanted")) };
        let host = options::host();
        let opening = self.reading.opening(&host)?;
        let a = Chain::open(&host, a, &opening)?;
        let other = Opening { format: self.backing_format, ..opening };
        let b = Chain::open(&host, b, &other)?;
        let mut found = Vec::new();
        self.watching.run(|progress| {
            differences(&a.view(0), &b.view(0), self.granularity, progress, &mut |difference| {
                let range = difference.range;
                found.push(Range { offset: range.start.bytes(), length: range.bytes, kind: difference.kind });
                true
            })
        })?;
        show(&found, answer)
    }

    fn look_live(&self, disk: &str, answer: &Answer) -> Result<Exit, Failure> {
        let mut path = format!("/v1/disks/{}/diff?granularity={}", segment(disk), self.granularity);
        for (key, side) in [("from", &self.a), ("to", &self.b)] {
            if let Some(side) = side {
                path = format!("{path}&{key}={}", segment(&layer(side)?));
            }
        }
        let found = self.daemon.get(&path)?;
        let found = found.as_array().map_or(&[][..], Vec::as_slice);
        let ranges = found.iter().map(|one| Range {
            offset: number(one, "offset"),
            length: number(one, "length"),
            kind: if text(one, "kind") == "zero" { Kind::Zero } else { Kind::Data },
        });
        show(&ranges.collect::<Vec<_>>(), answer)
    }
}

fn show(found: &[Range], answer: &Answer) -> Result<Exit, Failure> {
    answer.print_list(found, |found, out| {
        found.iter().try_for_each(|range| {
            let kind = if range.kind == Kind::Zero { "zero" } else { "data" };
            writeln!(out, "{:#14x} {:>12} {kind}", range.offset, range.length)
        })
    })?;
    Ok(Exit::Done)
}
