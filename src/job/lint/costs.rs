//! What folding the chains of a folder would cost and give back, and how long it would take.

use super::Look;
use crate::{
    base::{HostOffset, Result, clock::Stopwatch},
    chain::Layer,
    io::{File, is_marked_read_only},
    job::consolidate::estimate,
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// A chain that `dchain consolidate TOP` would fold.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Foldable {
    /// The head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub top: PathBuf,
    /// What it would be folded into: the oldest layer that is its own.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub into: PathBuf,
    /// How many layers would go.
    pub layers: usize,
    /// Bytes that would be copied.
    pub copy_bytes: u64,
    /// Space that the target may need, in bytes.
    pub need_bytes: u64,
    /// Space that would be given back at least, in bytes.
    pub gives_back_bytes: u64,
    /// How long it would take at the report's rate, in milliseconds.
    pub milliseconds: u64,
}

/// What times are reckoned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rate {
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Bytes that were read to measure it (from the host's cache, if they were there); `None`: it was given.
    pub probe_bytes: Option<u64>,
}

/// How much is read to measure a rate, and how long at most.
const PROBE_BYTES: u64 = 64 << 20;
const PROBE_TIME: Duration = Duration::from_millis(250);
const PIECE_BYTES: usize = 1 << 20;

impl Look<'_> {
    /// Returns what could be folded, and the rate that the times come from.
    pub(super) fn foldable(&mut self, rate: Option<u64>) -> (Vec<Foldable>, Option<Rate>) {
        let mut all = Vec::new();
        let mut probe = Probe::default();
        for head in 0..self.family.members.len() {
            let run = self.own_run(head);
            if run.len() < 2 || run.iter().any(|layer| self.jobs.contains(&layer.path)) {
                continue;
            }
            // What cannot be read has been found already.
            let Ok(foldable) = weigh(&run) else { continue };
            if rate.is_none() && probe.read(&run).is_err() {
                continue;
            }
            all.push(foldable);
        }
        if all.is_empty() {
            return (all, None);
        }
        let rate = match rate {
            Some(bytes_per_second) => Rate { bytes_per_second, probe_bytes: None },
            None => probe.rate(),
        };
        for chain in &mut all {
            let milliseconds = u128::from(chain.copy_bytes) * 1000 / u128::from(rate.bytes_per_second.max(1));
            chain.milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        }
        all.sort_by(|a, b| (b.gives_back_bytes, &a.top).cmp(&(a.gives_back_bytes, &b.top)));
        (all, Some(rate))
    }

    /// Opens a head and the layers below it that are its own: in its folder, writable, with no other child.
    fn own_run(&self, head: usize) -> Vec<Layer> {
        let mut run: Vec<Layer> = Vec::new();
        let mut next =
            Some(head).filter(|head| self.links.depth(*head) > 1 && self.links.children(*head).is_empty());
        while let Some(at) = next {
            let layer = self.family.members.get(at).and_then(|member| self.open(member).ok());
            let Some(layer) = layer else { break };
            let is_first = run.is_empty();
            let is_near = run.first().is_none_or(|top| top.path.parent() == layer.path.parent());
            let is_fixed = layer.image.files().iter().any(|file| is_marked_read_only(file.as_ref()));
            if !is_first && (!is_near || is_fixed || self.links.children(at).len() > 1) {
                break;
            }
            run.push(layer);
            next = self.links.parent(at);
        }
        run
    }
}

fn weigh(run: &[Layer]) -> Result<Foldable> {
    let cost = estimate(run)?;
    let folded = run.iter().take(run.len().saturating_sub(1));
    let mut held = 0_u64;
    for file in folded.flat_map(|layer| layer.image.files()) {
        held = held.saturating_add(file.allocated_bytes()?);
    }
    let path = |layer: Option<&Layer>| layer.map(|layer| layer.path.clone()).unwrap_or_default();
    Ok(Foldable {
        top: path(run.first()),
        into: path(run.last()),
        layers: run.len().saturating_sub(1),
        copy_bytes: cost.copy_bytes,
        need_bytes: cost.need_bytes,
        gives_back_bytes: held.saturating_sub(cost.need_bytes),
        milliseconds: 0,
    })
}

/// Reads a little of what would be copied.
#[derive(Default)]
struct Probe {
    bytes: u64,
    time: Duration,
}

impl Probe {
    fn read(&mut self, run: &[Layer]) -> Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        let folded = run.iter().take(run.len().saturating_sub(1)).map(|layer| layer.image.data_file());
        for file in folded.collect::<Vec<Arc<dyn File>>>() {
            let (mut at, end) = (HostOffset::new(0), file.bytes()?);
            while at.bytes() < end && self.bytes < PROBE_BYTES && self.time < PROBE_TIME {
                let watch = Stopwatch::start();
                file.read_at(at, &mut piece)?;
                self.time += watch.elapsed();
                let bytes = (end - at.bytes()).min(PIECE_BYTES as u64);
                self.bytes += bytes;
                at = at.plus(bytes);
            }
        }
        Ok(())
    }

    fn rate(&self) -> Rate {
        let nanoseconds = self.time.as_nanos().max(1);
        let rate = u128::from(self.bytes) * 1_000_000_000 / nanoseconds;
        Rate {
            bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX).max(1),
            probe_bytes: Some(self.bytes),
        }
    }
}
