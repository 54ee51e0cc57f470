//! Several copies to one folder at once: what more than one of them is about to make, one makes.
//!
//! A copy takes the turns for all that it is to make, by name and by content ID, in one order that all copies have, so that
//! no two wait for each other; it gives each back as soon as what it is for has its name. What stays true: whoever had to
//! wait, or finds the folder changed since it was planned, plans anew while it has its turns.

use super::{Copy, Placed};
use crate::{
    base::Result,
    content::ContentId,
    io::Host,
    job::Progress,
    store::{Draft, Turn},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What a job does while another copy makes the same, in the words of its progress.
pub const WAIT: &str = "wait for another copy";
/// How often it is looked whether it is our turn.
const GLANCE: Duration = Duration::from_millis(20);

/// The names in a folder of images.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::job) struct Seen(Vec<PathBuf>);

impl Seen {
    pub(in crate::job) fn of(host: &dyn Host, folder: &Path) -> Result<Self> {
        let names = host.list(folder)?.into_iter().map(|entry| entry.path);
        Ok(Self(names.filter(|path| Draft::check_name(path).is_ok()).collect()))
    }
}

/// The turns that a copy has, each with what is made there.
#[derive(Debug, Default)]
pub(in crate::job) struct Turns(BTreeMap<String, (PathBuf, Turn)>);

/// What is to be made: under which turns, and where.
#[derive(Debug, Default)]
pub(in crate::job) struct Wanted(BTreeMap<String, PathBuf>);

impl Wanted {
    /// Adds a layer that will be at `to`, and shows what `id` stands for, if that is known.
    pub(in crate::job) fn add(&mut self, to: &Path, id: Option<ContentId>) {
        let name = to.file_name().unwrap_or_default().as_encoded_bytes();
        self.0.insert(format!("name {}", blake3::hash(name).to_hex()), to.to_path_buf());
        self.0.extend(id.map(|id| (format!("id {}", id.hex()), to.to_path_buf())));
    }
}

/// Something that makes layers in a folder, planned.
pub(in crate::job) trait Making: Sized {
    /// Returns the folder, and what it had when this was planned.
    fn target(&self) -> (&Arc<dyn Host>, &Path, &Seen);

    /// Returns what it makes there.
    fn wanted(&self) -> Wanted;

    /// Plans it anew.
    fn again(self, progress: &Progress) -> Result<Self>;

    /// Returns it with the turns for all that it makes: as it was planned, or planned anew.
    fn take_turns(self, progress: &Progress) -> Result<(Self, Turns)> {
        self.take_turns_telling(&mut || Ok(()), progress)
    }

    /// The same; `waits` is called each time that it was looked, and another copy has a turn.
    fn take_turns_telling(
        self,
        waits: &mut dyn FnMut() -> Result<()>,
        progress: &Progress,
    ) -> Result<(Self, Turns)> {
        let mut this = self;
        loop {
            let (wanted, (host, folder, seen)) = (this.wanted(), this.target());
            let (mut turns, has_waited) = Turns::take((host, folder), &wanted, waits, progress)?;
            if !has_waited && *seen == Seen::of(host.as_ref(), folder)? {
                return Ok((this, turns));
            }
            this = this.again(progress)?;
            let new = this.wanted();
            if new.0.keys().all(|key| wanted.0.contains_key(key)) {
                turns.0.retain(|key, _| new.0.contains_key(key));
                return Ok((this, turns));
            }
        }
    }
}

impl Turns {
    /// Takes all of them, and waits where another copy has one; returns whether it had to.
    fn take(
        (host, folder): (&Arc<dyn Host>, &Path),
        wanted: &Wanted,
        waits: &mut dyn FnMut() -> Result<()>,
        progress: &Progress,
    ) -> Result<(Self, bool)> {
        let (mut turns, mut has_waited) = (Self::default(), false);
        for (key, place) in &wanted.0 {
            let turn = loop {
                if let Some(turn) = Turn::take(host, folder, key)? {
                    break turn;
                }
                if !has_waited {
                    progress.begin(WAIT, 0);
                    has_waited = true;
                }
                progress.checkpoint()?;
                waits()?;
                std::thread::sleep(GLANCE);
            };
            turns.0.insert(key.clone(), (place.clone(), turn));
        }
        Ok((turns, has_waited))
    }

    /// Waits until no other copy makes what is at `place`.
    pub(in crate::job) fn wait(host: &Arc<dyn Host>, place: &Path, progress: &Progress) -> Result<()> {
        let (mut wanted, folder) = (Wanted::default(), place.parent().unwrap_or(Path::new("/")));
        wanted.add(place, None);
        Self::take((host, folder), &wanted, &mut || Ok(()), progress).map(drop)
    }

    /// Gives those back that are for what is at `place` now.
    pub(in crate::job) fn end(&mut self, place: &Path) {
        self.0.retain(|_, (made, _)| made != place);
    }
}

impl Copy {
    /// Returns what is made of the layers from the one of that depth down.
    pub(super) fn wanted_from(&self, depth: usize) -> Wanted {
        let mut wanted = Wanted::default();
        for (depth, placed) in self.plan.layers.iter().enumerate().skip(depth) {
            let (Placed::Copy { to, .. } | Placed::Convert { to, .. }) = placed else { continue };
            let known = self.chain.standings().get(depth).and_then(|standing| standing.known.sealed());
            wanted.add(to, known);
        }
        wanted
    }
}

impl Making for Copy {
    fn target(&self) -> (&Arc<dyn Host>, &Path, &Seen) {
        (&self.host, &self.plan.folder, &self.seen)
    }

    fn wanted(&self) -> Wanted {
        self.wanted_from(0)
    }

    fn again(self, _: &Progress) -> Result<Self> {
        let paths = (self.plan.head.as_path(), self.plan.folder.as_path());
        Self::prepare(&self.host, &self.ledger, paths, &self.opening, self.request.clone())
    }
}
