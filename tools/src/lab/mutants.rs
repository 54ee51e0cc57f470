//! Programs that forgot one barrier: the crash search must notice each.

use crate::{
    crash,
    history::{Barrier, Barriers, History, Setup},
    jobs::{By, Forgotten, Places, Wanted, until_noticed},
    log::{Kind, Op},
};
use deltachain::format::Format;
use std::{collections::BTreeMap, ops::Range};

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
    // That VHDX pages are in their place before the log is said to be empty takes rarer steps to show when free space is
    // given back; the same line waits when the image is closed, where a cut shows it.
    let is_shown = |op: &Op| history.format != Format::Vhdx || op.kind != Kind::Release;
    for (operation, op) in log.ops.iter().enumerate().filter(|(_, op)| is_shown(op)) {
        for (number, stack) in (0..).zip(&op.barriers) {
            // That a VMDK has another CID before its data changes, no cut shows here either.
            if stack.contains("format/vmdk/desk.rs") && op.kind != Kind::Create {
                continue;
            }
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
        // Several files are flushed as one: that asks for nothing of its own.
        By::Line => {
            let line = stack.split(" < ").find(|line| !line.starts_with("format/vmdk/space.rs"));
            format!("{kind:?}: {}", line.unwrap_or_default())
        }
        By::Need => format!("{}: {kind:?}: {stack}", history.name),
    }
}
