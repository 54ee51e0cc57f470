//! Programs that forgot one barrier: the crash search must notice each.

use crate::{
    crash,
    history::{History, Setup},
    log::Kind,
};
use std::collections::BTreeMap;

/// One forgotten barrier, and how it was noticed.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// In operations of this kind ...
    pub kind: Kind,
    /// ... the barrier of this number (from 0) does nothing.
    pub barrier: u64,
    /// The first wrong power cut; `None` if none was found.
    pub noticed: Option<String>,
}

/// Drops each barrier that the operations of `seeds` histories have, one at a time, and looks for a power cut
/// that shows it.
pub fn search(history: &History, seed: u64, seeds: u64) -> Vec<Mutant> {
    let mut barriers: BTreeMap<Kind, u64> = BTreeMap::new();
    for seed in seed..seed + seeds {
        let (_, log, _) = history.run(&history.steps(seed, crash::STEPS), Setup::default());
        for op in &log.ops {
            let most = barriers.entry(op.kind).or_default();
            *most = op.barriers.max(*most);
        }
    }
    let all = barriers.into_iter().flat_map(|(kind, most)| (0..most).map(move |barrier| (kind, barrier)));
    all.map(|(kind, barrier)| {
        let setup = Setup { dropped: Some((kind, barrier)), ..Setup::default() };
        let noticed =
            (seed..seed + seeds).find_map(|seed| crash::cut_everywhere(history, seed, setup, u64::MAX).err());
        Mutant { kind, barrier, noticed }
    })
    .collect()
}
