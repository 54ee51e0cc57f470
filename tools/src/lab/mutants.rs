//! Programs that forgot one barrier: the crash search must notice each.

use crate::{
    crash,
    history::{Barrier, Barriers, History, Setup},
    jobs::{By, Forgotten, Places, Wanted, asks, until_noticed},
    log::Kind,
};
use std::{collections::BTreeMap, ops::Range};

/// Whatever a VHDX is changed for, its header and its log are written in one order (MS-VHDX 2.2.2.1, 2.3.3): a barrier of it is one,
/// though a cut shows it only where what follows relies on it. Of a release and of a close nothing does but the next opening.
const VHDX_ORDER: [&str; 2] = ["format/vhdx/header.rs", "format/vhdx/session.rs"];

/// Which barriers of which runs stand for each as the code has it.
type RunPlaces = Places<(&'static History, u64, Vec<Barrier>)>;

/// Forgets the barriers that histories have, those of one kind of operation and one place in the
/// code at a time, and looks for a power cut that shows it. More seeds than those are tried for what they do not show.
pub fn search(histories: &'static [History], wanted: &Wanted) -> Result<Vec<Forgotten>, String> {
    let find = |seeds: Range<u64>| {
        let mut places = RunPlaces::new();
        for history in histories {
            seeds.clone().for_each(|seed| find_barriers(history, seed, wanted.by, &mut places));
        }
        Ok(places)
    };
    until_noticed(wanted, find, |(history, seed, forgotten): &(&History, u64, Vec<Barrier>)| {
        let setup = Setup { barriers: Barriers::Forgotten(forgotten), ..Setup::default() };
        crash::cut_everywhere(history, *seed, setup, u64::MAX).err()
    })
}

/// Adds to `places` the barriers of one run.
fn find_barriers(history: &'static History, seed: u64, by: By, places: &mut RunPlaces) {
    let setup = Setup { barriers: Barriers::Named, ..Setup::default() };
    let (_, log, _) = history.run(&history.steps(seed, crash::STEPS), setup);
    let mut found: BTreeMap<String, Vec<Barrier>> = BTreeMap::new();
    for (operation, op) in log.ops.iter().enumerate() {
        for (number, stack) in (0..).zip(&op.barriers) {
            let place = place(history, op.kind, stack, by);
            found.entry(place).or_default().push(Barrier { operation, number });
        }
    }
    for (place, barriers) in found {
        places.entry(place).or_default().push((history, seed, barriers));
    }
}

fn place(history: &History, kind: Kind, stack: &str, by: By) -> String {
    match by {
        By::Line => {
            let line = asks(stack);
            if VHDX_ORDER.iter().any(|file| line.starts_with(file)) {
                return line.to_owned();
            }
            format!("{kind:?}: {line}")
        }
        By::Need => format!("{}: {kind:?}: {stack}", history.name),
    }
}
