//! Several copies to one folder at once: what more than one of them is about to make, one makes.
//!
//! A copy takes the turns for all that it is to make, by name and by content ID, in one order that all copies have, so that
//! no two wait for each other; it gives each back as soon as what it is for has its name. What stays true: whoever had to
//! wait, or finds the folder changed since it was planned, plans anew while it has its turns.

use super::{Copy, Placed};
use crate::{
    base::Result,
    io::Host,
    job::Progress,
    store::{Draft, Turn},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How often it is looked whether it is our turn.
const GLANCE: Duration = Duration::from_millis(20);

/// The names in a folder of images.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen(Vec<PathBuf>);

impl Seen {
    pub(super) fn of(host: &dyn Host, folder: &Path) -> Result<Self> {
        let names = host.list(folder)?.into_iter().map(|entry| entry.path);
        Ok(Self(names.filter(|path| Draft::check_name(path).is_ok()).collect()))
    }
}

/// The turns that a copy has, each with what is made there.
#[derive(Debug, Default)]
pub(super) struct Turns(BTreeMap<String, (PathBuf, Turn)>);

impl Turns {
    /// Takes all of them, and waits where another copy has one; returns whether it had to.
    fn take(
        host: &Arc<dyn Host>,
        folder: &Path,
        wanted: &BTreeMap<String, PathBuf>,
        progress: &Progress,
    ) -> Result<(Self, bool)> {
        let (mut turns, mut has_waited) = (Self::default(), false);
        for (key, place) in wanted {
            let turn = loop {
                if let Some(turn) = Turn::take(host, folder, key)? {
                    break turn;
                }
                if !has_waited {
                    progress.begin("wait for another copy", 0);
                    has_waited = true;
                }
                progress.checkpoint()?;
                std::thread::sleep(GLANCE);
            };
            turns.0.insert(key.clone(), (place.clone(), turn));
        }
        Ok((turns, has_waited))
    }

    /// Gives those back that are for what is at `place` now.
    pub(super) fn end(&mut self, place: &Path) {
        self.0.retain(|_, (made, _)| made != place);
    }
}

impl Copy {
    /// Returns it with the turns for all that it makes: as it was planned, or planned anew.
    pub(super) fn take_turns(self, progress: &Progress) -> Result<(Self, Turns)> {
        let mut this = self;
        loop {
            let wanted = this.wanted();
            let (turns, has_waited) = Turns::take(&this.host, &this.plan.folder, &wanted, progress)?;
            if !has_waited && this.seen == Seen::of(this.host.as_ref(), &this.plan.folder)? {
                return Ok((this, turns));
            }
            let paths = (this.plan.head.as_path(), this.plan.folder.as_path());
            let again = Self::prepare(&this.host, &this.ledger, paths, &this.opening, this.request.clone())?;
            let keys = |wanted: BTreeMap<String, PathBuf>| wanted.into_keys().collect::<BTreeSet<_>>();
            let (new, held) = (keys(again.wanted()), keys(wanted));
            this = again;
            if new.is_subset(&held) {
                let mut turns = turns;
                turns.0.retain(|key, _| new.contains(key));
                return Ok((this, turns));
            }
        }
    }

    /// Returns what is to be made: under which turns, and where.
    fn wanted(&self) -> BTreeMap<String, PathBuf> {
        let mut wanted = BTreeMap::new();
        for (depth, placed) in self.plan.layers.iter().enumerate() {
            let (Placed::Copy { to, .. } | Placed::Convert { to, .. }) = placed else { continue };
            let name = to.file_name().unwrap_or_default().as_encoded_bytes();
            wanted.insert(format!("name {}", blake3::hash(name).to_hex()), to.clone());
            let known = self.chain.standings().get(depth).map(|standing| standing.known.layer.frozen);
            if let Some(id) = known.flatten().and_then(|record| record.sealed) {
                wanted.insert(format!("id {}", id.hex()), to.clone());
            }
        }
        wanted
    }
}
