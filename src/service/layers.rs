//! A disk's layers by name: what has changed since one of them, and going back to one.

use super::{Entry, Happened, Held, Service, book::Book};
use crate::{
    base::{Error, GuestRange, Result},
    chain::Chain,
    disk::Disk,
    io::Host,
    job::{
        Progress,
        diff::{Difference, Kind, differences, differences_from_layer},
        snapshot::{Plan, Revert},
    },
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The most ranges that are listed: an answer that a person or a program can still take.
const RANGES_MAX: usize = 1 << 18;

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct DiffOf {
    /// A layer, by its path or its name; `None`: the newest one below the head.
    pub from: Option<PathBuf>,
    /// Another; `None`: what guests see now.
    pub to: Option<PathBuf>,
    /// Ranges are multiples of this: a power of two from 512 to 1 MiB.
    pub granularity_bytes: u64,
}

/// A range in which a disk differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DiffRange {
    /// Where it starts.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// What the second side shows.
    pub kind: Kind,
}

impl Service {
    /// Returns where a disk differs from what one of its layers shows. Of what guests write meanwhile, some counts.
    ///
    /// `Invalid` for a layer that is not one of the disk's, or where more than 262,144 ranges would be listed; `Busy` while
    /// a job is on the disk.
    pub fn diff(&self, name: &str, of: &DiffOf) -> Result<Vec<DiffRange>> {
        let granularity = of.granularity_bytes;
        if !granularity.is_power_of_two() || !(512..=1 << 20).contains(&granularity) {
            return Err(Error::invalid("the granularity is a power of two from 512 to 1048576"));
        }
        let held = self.held(name)?;
        held.settle()?;
        held.refuse_job(name)?;
        let chain = held.disk.chain();
        let from =
            of.from.as_deref().map_or(Ok(1), |layer| Self::depth_of(&self.settings.host, &chain, layer))?;
        let to =
            of.to.as_deref().map_or(Ok(0), |layer| Self::depth_of(&self.settings.host, &chain, layer))?;
        if chain.layers().len() < 2 {
            return Err(Error::invalid(format!("disk '{name}' has no layer below its head")));
        }
        let mut ranges = Vec::new();
        let mut found = |Difference { range: GuestRange { start, bytes }, kind }| {
            ranges.push(DiffRange { offset: start.bytes(), length: bytes, kind });
            ranges.len() <= RANGES_MAX
        };
        let progress = Progress::default();
        if to == 0 && !held.is_read_only {
            differences_from_layer(&chain, from, granularity, &progress, &mut found)?;
        } else {
            differences(&chain.view(from), &chain.view(to), granularity, &progress, &mut found)?;
        }
        if ranges.len() > RANGES_MAX {
            return Err(Error::invalid("differs in too many ranges: ask for a larger granularity"));
        }
        Ok(ranges)
    }

    /// Returns which of a chain's layers is meant.
    pub(super) fn depth_of(host: &Arc<dyn Host>, chain: &Chain, wanted: &Path) -> Result<usize> {
        let place = if wanted.is_absolute() { Some(host.canonical(wanted)?) } else { None };
        let is_it = |path: &Path| match &place {
            Some(place) => path == place,
            None => path.file_name() == Some(wanted.as_os_str()),
        };
        let layers = chain.layers().iter();
        let found: Vec<usize> =
            layers.enumerate().filter(|(_, l)| is_it(&l.path)).map(|(at, _)| at).collect();
        match found.as_slice() {
            [one] => Ok(*one),
            [] => Err(Error::invalid("is not one of the disk's layers").path(wanted)),
            _ => Err(Error::invalid("is the name of several of the disk's layers: say the whole path")
                .path(wanted)),
        }
    }

    /// Returns what [`Service::revert`] would give up.
    pub fn plan_revert(&self, name: &str, layer: &Path) -> Result<Plan> {
        Ok(self.prepare_revert(name, layer)?.1.plan().clone())
    }

    fn prepare_revert(&self, name: &str, layer: &Path) -> Result<(Arc<Held>, Revert)> {
        let held = self.held(name)?;
        held.refuse_job(name)?;
        self.refuse_backup(name)?;
        let chain = held.disk.chain();
        if held.is_read_only {
            return Err(Error::policy("is served for reading only").path(&chain.head()?.path));
        }
        let depth = Self::depth_of(&self.settings.host, &chain, layer)?;
        let revert = Revert::of(&self.settings.host, chain, depth, &self.settings.opening)?;
        let size = revert.plan().size;
        if size != held.disk.size() {
            let what =
                format!("the layer has {size} bytes, and the size of a disk in use stays: detach it first");
            return Err(Error::invalid(what).path(layer));
        }
        Ok((held, revert))
    }

    /// Gives up what guests wrote since `layer` was frozen: the disk starts again, from an empty head on it. Requests that
    /// are under way end first; whoever has the disk mounted sees other bytes under it from one read to the next.
    ///
    /// `Busy` while clients use the disk, unless it `forces` them (those that come meanwhile are sent away), or while a job or
    /// a backup does; `Invalid` for a layer
    /// that is not below the head, or of another size.
    pub fn revert(&self, name: &str, layer: &Path, forces: bool) -> Result<Plan> {
        self.held(name)?.settle()?;
        let mut book = self.book.lock();
        self.refuse_stopping()?;
        let (held, revert) = self.prepare_revert(name, layer)?;
        let go_back = || self.go_back(&mut book, name, &held, revert);
        if forces { go_back() } else { self.while_alone(name, &held, go_back)? }
    }

    fn go_back(&self, book: &mut Book, name: &str, held: &Held, revert: Revert) -> Result<Plan> {
        for recorder in held.disk.recorders() {
            recorder.mark_all();
        }
        let format = revert.format();
        let done = revert.run_live(&self.settings.host, &held.disk, &held.opening);
        let plan = match done {
            Ok(plan) => plan,
            Err((error, true)) => {
                // The old head has no name any more: who has it still would write it for nobody.
                held.disk.swap(Chain::of(held.disk.chain().layers().to_vec(), false));
                held.guests.here().iter().for_each(|(_, guest)| guest.cut());
                let named = super::Named {
                    name: name.to_owned(),
                    path: held.disk.chain().head()?.path.clone(),
                    format: Some(format),
                    is_read_only: false,
                    hooks: super::Hooks::default(),
                };
                let error = Arc::new(error.doing("went back, and cannot be opened"));
                let refused = Error::new(error.kind(), error.to_string());
                self.disks.lock().insert(name.to_owned(), Entry::Refused(named, error));
                return Err(refused);
            }
            Err((error, false)) => return Err(error),
        };
        held.lease(&self.settings.host, name);
        book.change(|written| written.with(name, |known| known.set_head(&plan.head, format)))?;
        self.events.say(Happened::Reverted, name, None);
        Ok(plan)
    }
}
