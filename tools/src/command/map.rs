//! `dchain map`: where the bytes of a disk are, and which layer owns them.

use crate::{
    failure::{Exit, Failure},
    options::{self, Reading},
    output::{Answer, Lines, SCHEMA, to_stdout},
    size,
};
use clap::Args;
use deltachain::{
    base::{GuestOffset, GuestRange, HostOffset, Result, name},
    chain::{Chain, Layer, Run},
    disk::Disk,
    map::State,
};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// Guest bytes whose map is asked for at once.
const STRIDE_BYTES: u64 = 8 << 30;

/// Show where each range of the disk is, and which layer owns it
#[derive(Args, Debug)]
pub struct Arguments {
    /// Start there
    #[arg(long, value_name = "OFFSET", value_parser = size::parse, default_value = "0", hide_default_value = true)]
    start_offset: u64,
    /// Show no more than that many bytes
    #[arg(long, value_name = "LENGTH", value_parser = size::parse)]
    max_length: Option<u64>,
    #[command(flatten)]
    reading: Reading,
    /// The image
    image: PathBuf,
}

/// A range in one state: qemu-img's keys and values, then ours.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the keys are qemu-img's")]
struct Entry<'a> {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The file of the layer that owns the range.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<&'a str>,
    schema: u32,
}

/// What entries are made from.
struct Layers {
    /// Size of each layer's view in bytes, the head first.
    sizes: Vec<u64>,
    /// The file that holds each layer's data.
    names: Vec<String>,
}

impl Layers {
    fn of(chain: &Chain) -> Self {
        let name = |file: &std::path::Path| name::text(file).into_owned();
        Self {
            sizes: chain.layers().iter().map(Layer::size).collect(),
            names: chain.layers().iter().map(|l| name(l.image.data_file().path())).collect(),
        }
    }

    /// Describes a run the way qemu-img does.
    fn entry(&self, run: &Run) -> Entry<'_> {
        // Beyond the end of a short layer it is the layer above which is said to be silent.
        let is_beyond =
            |layer: usize| self.sizes.get(layer).is_some_and(|size| run.range.start.bytes() >= *size);
        let (depth, is_present) = match run.layer {
            None => (self.sizes.len().saturating_sub(1), false),
            Some(layer) if is_beyond(layer) => (layer.saturating_sub(1), false),
            Some(layer) => (layer, true),
        };
        let host = match run.state {
            State::Data { host } => Some(host),
            State::Zero { host } => host,
            State::Packed | State::Absent => None,
        };
        Entry {
            start: run.range.start.bytes(),
            length: run.range.bytes,
            depth,
            present: is_present,
            zero: run.is_zero(),
            data: run.state.is_data(),
            compressed: run.state == State::Packed,
            offset: host.filter(|_| is_present).map(HostOffset::bytes),
            layer: self.names.get(depth).filter(|_| is_present).map(String::as_str),
            schema: SCHEMA,
        }
    }
}

impl Entry<'_> {
    /// Takes `next` in if it goes on in the same state and place.
    fn join(&mut self, next: &Self) -> bool {
        let follows = match (self.offset, next.offset) {
            (Some(own), Some(other)) => own + self.length == other,
            (None, None) => true,
            _ => false,
        };
        let same = |e: &Self| (e.depth, e.present, e.zero, e.data, e.compressed);
        let joins = follows && same(self) == same(next) && self.start + self.length == next.start;
        if joins {
            self.length += next.length;
        }
        joins
    }

    fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(out, self).map_err(io::Error::from)
    }

    fn write_line(&self, out: &mut dyn Write) -> io::Result<()> {
        let kind = match (self.zero, self.compressed) {
            (true, _) => "zero",
            (_, true) => "compressed",
            _ => "data",
        };
        let place = self.offset.map_or_else(|| "-".to_owned(), |at| format!("{at:#x}"));
        let (start, length, layer) = (self.start, self.length, self.layer.unwrap_or("-"));
        writeln!(out, "{start:<#15x} {length:<#15x} {kind:<11} {place:<15} {layer}")
    }
}

impl Arguments {
    /// Prints the map.
    pub fn run(&self, answer: &Answer) -> std::result::Result<Exit, Failure> {
        let host = options::host();
        let chain = Chain::open(&host, &self.image, &self.reading.opening(&host)?)?;
        let start = GuestOffset::new(self.start_offset.min(chain.size()));
        let whole = GuestRange::between(start, GuestOffset::new(chain.size()));
        let range = self.max_length.map_or(whole, |bytes| whole.clip(start.range(bytes)));
        let layers = Layers::of(&chain);
        let mut failed = None;
        to_stdout(|out| {
            let mut count = 0_u64;
            let result = each_entry(&chain, &layers, range, |entry| {
                count += 1;
                match answer.is_json() {
                    true => {
                        out.write_all(if count == 1 { b"[" } else { b",\n" })?;
                        entry.write_json(out)
                    }
                    false if answer.is_silent() || (entry.zero && !entry.present) => Ok(()),
                    false => {
                        if count == 1 {
                            writeln!(
                                out,
                                "Offset          Length          Kind        At              Layer"
                            )?;
                        }
                        entry.write_line(&mut Lines(out))
                    }
                }
            });
            if answer.is_json() {
                out.write_all(if count == 0 { b"[]\n" } else { b"]\n" })?;
            }
            result.unwrap_or_else(|error| {
                failed = Some(error);
                Ok(())
            })
        })?;
        failed.map_or(Ok(Exit::Done), |error| Err(error.into()))
    }
}

/// Calls `show` for each entry of the map of `range`, joined; stops when it fails.
fn each_entry<'a>(
    chain: &Chain,
    layers: &'a Layers,
    range: GuestRange,
    mut show: impl FnMut(&Entry<'a>) -> io::Result<()>,
) -> Result<io::Result<()>> {
    let mut open: Option<Entry<'a>> = None;
    let mut runs = Vec::new();
    for stride in range.pieces(STRIDE_BYTES) {
        runs.clear();
        chain.runs(stride, &mut runs)?;
        for entry in runs.iter().map(|run| layers.entry(run)) {
            if open.as_mut().is_some_and(|open| open.join(&entry)) {
                continue;
            }
            if let Some(done) = open.replace(entry)
                && let Err(error) = show(&done)
            {
                return Ok(Err(error));
            }
        }
    }
    Ok(open.map_or(Ok(()), |last| show(&last)))
}
