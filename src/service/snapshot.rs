//! Snapshots of open disks: of one or of several, all at one point in time, recorded in the book in one step.

use super::{
    Happened, Service,
    book::{Book, Intended, Written},
};
use crate::{
    base::{Error, ErrorKind, Result, clock},
    format::Format,
    job::snapshot::{Disk, Heads, LiveTaken, Taken, snapshot_live},
    store::{Draft, Journal},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A disk of which a snapshot is to be taken.
#[derive(Clone, Debug)]
pub struct SnapshotOf {
    /// The disk's name.
    pub disk: String,
    /// The name of its new head, in the folder of the present one unless it is absolute; `None`: made of the disk's name
    /// and the time.
    pub new: Option<PathBuf>,
    /// The new head's format, one that knows parents.
    pub format: Format,
}

impl SnapshotOf {
    /// Returns one with a qcow2 image for its new head.
    pub fn qcow2(disk: &str, new: Option<PathBuf>) -> Self {
        Self { disk: disk.to_owned(), new, format: Format::Qcow2 }
    }
}

/// Writes the heads into the book.
struct Recording<'a> {
    book: &'a mut Book,
    before: Written,
    asked: &'a [SnapshotOf],
}

impl Heads for Recording<'_> {
    fn intend(&mut self, taken: &[Taken]) -> Result<()> {
        self.book.change(|written| written.intended = taken.iter().map(Intended::from).collect())
    }

    fn record(&mut self, taken: &[Taken]) -> Result<()> {
        self.book.change(|written| {
            for (of, one) in self.asked.iter().zip(taken) {
                written.with(&of.disk, |known| known.set_head(&one.head, of.format));
            }
            written.intended.clear();
        })
    }

    fn take_back(&mut self) -> Result<()> {
        self.book.change(|written| written.clone_from(&self.before))
    }
}

impl Service {
    /// Freezes what the disks show at one moment; from then on their guests write to new heads.
    ///
    /// `Invalid` without a state folder: a restart would open the old heads. `Busy` while a job is on one of them. A guest
    /// that does not hold still as it is asked has no snapshot; all that were asked are asked to go on, whatever happens.
    pub fn snapshot(&self, asked: &[SnapshotOf]) -> Result<LiveTaken> {
        for one in asked {
            self.held(&one.disk)?.settle()?;
        }
        self.snapshot_by(&mut self.book.lock(), asked)
    }

    /// The same by the open book, where what a job left of the disks is settled.
    pub(super) fn snapshot_by(&self, book: &mut Book, asked: &[SnapshotOf]) -> Result<LiveTaken> {
        self.refuse_stopping()?;
        if !book.is_kept() {
            let what = "there is no state folder that would keep the new head's name over a restart";
            return Err(Error::invalid(what));
        }
        let names: Vec<String> = asked.iter().map(|one| one.disk.clone()).collect();
        let is_twice = |(at, name): (usize, &String)| names.iter().take(at).any(|other| other == name);
        if names.is_empty() || names.iter().enumerate().any(is_twice) {
            return Err(Error::invalid("a snapshot is of one disk or more, each once"));
        }
        let disks = asked.iter().map(|one| self.disk_of(one)).collect::<Result<Vec<_>>>()?;
        let mut places = BTreeSet::new();
        if let Some(disk) = disks.iter().find(|disk| !places.insert(&disk.new)) {
            return Err(Error::invalid("is to be the new head of two disks").path(&disk.new));
        }
        let taken = self.while_frozen(book, &names, |book| {
            let before = book.written().clone();
            let mut recording = Recording { book, before, asked };
            snapshot_live(&self.settings.host, &disks, &self.settings.opening, &mut recording)
        })?;
        for name in &names {
            if let Ok(held) = self.held(name) {
                held.lease(&self.settings.host, name);
            }
            self.events.say(Happened::Snapshot, name, None);
        }
        Ok(taken)
    }

    fn disk_of(&self, asked: &SnapshotOf) -> Result<Disk> {
        let held = self.held(&asked.disk)?;
        held.refuse_job(&asked.disk)?;
        let chain = held.disk.chain();
        let head = chain.head()?;
        if held.is_read_only {
            return Err(Error::policy("is served for reading only").path(&head.path));
        }
        if Journal::find(&self.settings.host, &head.path)?.is_some() {
            let what = "a consolidation of it was given up half-way: that has to be ended by another one, or cleared away by \
                        detaching and attaching the disk";
            return Err(Error::busy(format!("disk '{}': {what}", asked.disk)));
        }
        let folder = head.path.parent().unwrap_or(Path::new("/"));
        let new = match &asked.new {
            Some(new) => new.clone(),
            None => self.unused_name(folder, asked)?,
        };
        if new.as_os_str().is_empty() {
            return Err(Error::invalid(format!("the new head of disk '{}' has no name", asked.disk)));
        }
        let new = folder.join(new);
        Draft::check_name(&new)?;
        // The book has whole names, which it compares.
        let folder = new.parent().unwrap_or(folder);
        let folder = self.settings.host.canonical(folder).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Error::new(ErrorKind::NotFound, "there is no such folder for the new head").path(folder)
            }
            _ => error,
        })?;
        let new = folder.join(new.file_name().unwrap_or_default());
        Ok(Disk { disk: Arc::clone(&held.disk), new, format: asked.format, options: Vec::new() })
    }

    /// Returns a name for a new head that no file has: there may be several in a second.
    fn unused_name(&self, folder: &Path, asked: &SnapshotOf) -> Result<PathBuf> {
        let names = std::iter::once(String::new()).chain((2..100).map(|n| format!("-{n}")));
        let fresh = |more: &str| fresh_name(&asked.disk, more, asked.format);
        for name in names.map(|more| fresh(&more)) {
            if self.settings.host.kind(&folder.join(&name))?.is_none() {
                return Ok(name);
            }
        }
        Ok(fresh(""))
    }
}

/// Bytes of a disk's name that its heads' names have at most.
const NAME_BYTES: usize = 128;

/// Returns a name for a new head: the disk's, as far as it can be one of a file, the time, and `more`. Disks with different
/// names get different ones.
pub(super) fn fresh_name(disk: &str, more: &str, format: Format) -> PathBuf {
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let ns = i128::try_from(clock::since_epoch().as_nanos()).unwrap_or_default();
    let digits: String = clock::utc(ns).chars().filter(char::is_ascii_digit).collect();
    let (day, time) = digits.split_at(digits.len().min(8));
    let name: String = disk.chars().map(plain).collect();
    let name = name.trim_start_matches('.');
    let name = name.get(..name.floor_char_boundary(NAME_BYTES)).unwrap_or_default();
    let own = if name == disk { String::new() } else { format!("-{:08x}", crc32c::crc32c(disk.as_bytes())) };
    let called = format.suffixes().first().copied().unwrap_or_default();
    format!("{name}{own}-{day}-{time}{more}.{called}").into()
}
