//! The book: which image is the head of which disk, in one file that is replaced whole.
//!
//! The command line names a disk's first head; snapshots and folds give it others. What stays true: the file on disk is
//! what this process goes by, or what it went by before its last change.

use super::{Hooks, job::Told};
use crate::{
    base::{Error, ErrorKind, HostOffset, Result, name::FileName, units::index},
    format::Format,
    io::{Access, File, Host, Witness},
    job::{migrate, snapshot::Taken},
    store::{Draft, Publish},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The book's name in the state folder.
const FILE: &str = "disks.json";
/// Held by the process that uses the folder.
const LOCK: &str = "lock";
/// The version of the book's shape.
const VERSION: u32 = 1;
/// No book of ours is longer.
const BYTES_MAX: u64 = 64 << 20;

/// A disk as somebody names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What clients ask for.
    pub name: String,
    /// Its head, or the one that it had first.
    pub path: PathBuf,
    /// The format of that image, if stated.
    pub format: Option<Format>,
    /// Whether it is only read.
    pub is_read_only: bool,
    /// What its guest is asked around a snapshot.
    pub hooks: Hooks,
}

/// Layers below a head that are folded: from the one down to the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Below {
    pub(super) top: FileName,
    pub(super) into: FileName,
}

/// A disk that goes to another store, as the next start goes on with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Going {
    store: FileName,
    format: Option<String>,
    options: Vec<(String, String)>,
    removes_source: bool,
    /// The topmost of the layers that stand in for those below the head, once they are there.
    pub(super) below: Option<FileName>,
}

impl Going {
    pub(super) fn of(request: &migrate::Request) -> Self {
        Self {
            store: FileName(request.store.clone()),
            format: request.format.map(|format| format.name().to_owned()),
            options: request.options.clone(),
            removes_source: request.removes_source,
            below: None,
        }
    }

    pub(super) fn request(&self) -> Result<migrate::Request> {
        Ok(migrate::Request {
            store: self.store.0.clone(),
            format: self.format.as_deref().map(Format::parse).transpose()?,
            options: self.options.clone(),
            removes_source: self.removes_source,
        })
    }
}

/// What is known of a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    /// The head that it had first.
    first: FileName,
    /// The head that it has.
    head: FileName,
    /// The head's format, if it was stated or is known since.
    format: Option<String>,
    pub(super) is_read_only: bool,
    /// Whether a start opens it that nobody tells to.
    reopens: bool,
    /// The head that it has once the job on it has ended, if that one's name goes.
    becomes: Option<FileName>,
    /// The number of a job on it that has not ended.
    pub(super) job: Option<u64>,
    /// The head that it had before that job, whose journal may still stand.
    #[serde(default)]
    before: Option<FileName>,
    /// Whether that job was given up: what is left of it goes as soon as nobody uses the disk.
    pub(super) is_cancelled: bool,
    /// What a job folds that has not done so yet, where that is below the head.
    #[serde(default)]
    pub(super) below: Option<Below>,
    /// Where it goes, while it does.
    #[serde(default)]
    pub(super) going: Option<Going>,
    /// How fast the job on it is to be.
    #[serde(default)]
    pub(super) told: Told,
    /// What its guest is asked around a snapshot.
    #[serde(default)]
    pub(super) hooks: Hooks,
}

impl Known {
    fn of(named: &Named, first: PathBuf) -> Self {
        let first = FileName(first);
        Self {
            head: first.clone(),
            first,
            format: named.format.map(|format| format.name().to_owned()),
            is_read_only: named.is_read_only,
            reopens: false,
            becomes: None,
            job: None,
            before: None,
            is_cancelled: false,
            below: None,
            going: None,
            told: Told::default(),
            hooks: named.hooks.clone(),
        }
    }

    /// Returns where its head is now. The job that was to give the disk another one may have ended with nobody left to
    /// write it down.
    pub(super) fn head(&self, host: &dyn Host) -> Result<PathBuf> {
        match &self.becomes {
            Some(next) if host.kind(&self.head.0)?.is_none() && host.kind(&next.0)?.is_some() => {
                Ok(next.0.clone())
            }
            _ => Ok(self.head.0.clone()),
        }
    }

    /// Returns the head that is written down.
    pub(super) fn place(&self) -> &Path {
        &self.head.0
    }

    /// Returns the head's format, if it is known.
    pub(super) fn format(&self) -> Result<Option<Format>> {
        self.format.as_deref().map(Format::parse).transpose()
    }

    /// Takes note of the head that the disk has now, no job being on it.
    pub(super) fn set_head(&mut self, path: &Path, format: Format) {
        self.head = FileName(path.to_path_buf());
        self.format = Some(format.name().to_owned());
        (self.becomes, self.job, self.before, self.is_cancelled) = (None, None, None, false);
        self.going = None;
        self.told = Told::default();
    }

    /// Takes note of the head that a job has given the disk, which is not quite over.
    pub(super) fn go_over(&mut self, path: &Path, format: Format) {
        let before = std::mem::replace(&mut self.head, FileName(path.to_path_buf()));
        self.format = Some(format.name().to_owned());
        if before != self.head {
            (self.becomes, self.before, self.going) = (None, Some(before), None);
        }
    }

    /// Takes note of the head that the disk has now, the job on it having failed. Where that has given the disk another
    /// head, its journal stands with the one before, and the next start ends it.
    pub(super) fn fail(&mut self, path: &Path, format: Format) {
        self.go_over(path, format);
        let before = self.before.take();
        self.set_head(path, format);
        self.before = before;
    }

    /// Returns the head before a job that may not be quite over.
    pub(super) fn before(&self) -> Option<&Path> {
        self.before.as_ref().map(|name| name.0.as_path())
    }

    /// Returns whether a job has to do with where the head is, which only a start that may write goes on with or ends.
    pub(super) const fn is_under_way(&self) -> bool {
        self.becomes.is_some() || self.before.is_some() || self.going.is_some()
    }

    /// Returns the head that the disk gets from the job on it, if that has another name.
    pub(super) fn becomes(&self) -> Option<&Path> {
        self.becomes.as_ref().map(|name| name.0.as_path())
    }

    /// Takes note of a job, after which the head has the name `result`.
    pub(super) fn begin(&mut self, job: u64, result: &Path) {
        let changes_name = result != self.head.0;
        self.becomes = changes_name.then(|| FileName(result.to_path_buf()));
        (self.job, self.is_cancelled, self.told) = (Some(job), false, Told::default());
    }

    /// Takes note of a job that brings the disk to another store, where its head has the name `result`.
    pub(super) fn begin_move(&mut self, job: u64, result: &Path, going: Going) {
        self.begin(job, result);
        self.going = Some(going);
    }

    /// Takes note of a job on layers below the head, which stays.
    pub(super) fn begin_below(&mut self, job: u64, below: Below) {
        self.begin(job, &self.head.0.clone());
        self.below = Some(below);
    }
}

/// How a frozen layer is found again, and known to show what it showed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The epoch of its record, as text.
    pub(super) epoch: String,
    /// What the files below it looked like that have no record of their own.
    pub(super) unrecorded: Vec<Witness>,
}

/// A point in time that a backup was taken at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Point {
    /// Since which earlier point it tells what changed.
    pub(super) since: Option<String>,
    /// When it was taken, in milliseconds since 1970.
    pub(super) taken_ms: u64,
    /// Whether its exports are there.
    pub(super) is_open: bool,
    /// The frozen layer of each disk.
    pub(super) marks: BTreeMap<String, Mark>,
}

/// A head of a snapshot that was not recorded when this was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Intended {
    frozen: FileName,
    head: FileName,
    name: String,
    size: u64,
}

impl From<&Taken> for Intended {
    fn from(taken: &Taken) -> Self {
        let (frozen, head) = (FileName(taken.frozen.clone()), FileName(taken.head.clone()));
        Self { frozen, head, name: taken.name.clone(), size: taken.size }
    }
}

impl From<&Intended> for Taken {
    fn from(intended: &Intended) -> Self {
        let Intended { frozen, head, name, size } = intended.clone();
        Self { frozen: frozen.0, head: head.0, name, size }
    }
}

/// What the file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Written {
    version: u32,
    /// The number of the last job.
    last_job: u64,
    /// Disks by name.
    pub(super) disks: BTreeMap<String, Known>,
    /// Heads that were about to be made.
    pub(super) intended: Vec<Intended>,
    /// Disks whose guests may have been asked to hold still, and not to go on.
    #[serde(default)]
    pub(super) frozen: BTreeSet<String>,
    /// Points in time that backups were taken at, by ID.
    #[serde(default)]
    pub(super) points: BTreeMap<String, Point>,
}

impl Written {
    /// Returns the number that comes next.
    pub(super) const fn next_number(&self) -> u64 {
        self.last_job + 1
    }

    /// Returns a new number, of a job or of a backup.
    pub(super) fn number(&mut self) -> u64 {
        self.last_job += 1;
        self.last_job
    }

    /// A disk is served no more. Where its head is not the one that it had first, that is kept: the old name must not
    /// come to be written again.
    pub(super) fn detach(&mut self, name: &str) {
        if self.disks.get(name).is_some_and(|known| known.head == known.first) {
            self.disks.remove(name);
        }
        if let Some(known) = self.disks.get_mut(name) {
            known.reopens = false;
        }
    }

    /// A backup has ended. Points go whose layers are gone: `epochs` has those of disks that are served.
    pub(super) fn end_point(&mut self, id: &str, epochs: &[(String, Option<Vec<String>>)]) {
        if let Some(point) = self.points.get_mut(id) {
            point.is_open = false;
        }
        for point in self.points.values_mut().filter(|point| !point.is_open) {
            for (disk, now) in epochs {
                let Some(now) = now else { continue };
                point.marks.retain(|name, mark| name != disk || now.contains(&mark.epoch));
            }
        }
        self.points.retain(|_, point| !point.marks.is_empty());
    }

    /// Changes what is known of a disk.
    pub(super) fn with(&mut self, name: &str, change: impl FnOnce(&mut Known)) {
        self.disks.get_mut(name).map(change);
    }
}

/// The book, and its file.
#[derive(Debug)]
pub(super) struct Book {
    kept: Option<Kept>,
    now: Written,
}

#[derive(Debug)]
struct Kept {
    host: Arc<dyn Host>,
    path: PathBuf,
    /// Nobody else uses the folder while this is held.
    _lock: Arc<dyn File>,
}

impl Book {
    /// Opens the book in `folder`, which is made if need be; a book of nowhere without one.
    pub(super) fn open(host: &Arc<dyn Host>, folder: Option<&Path>) -> Result<Self> {
        let empty = Written {
            version: VERSION,
            last_job: 0,
            disks: BTreeMap::new(),
            intended: Vec::new(),
            frozen: BTreeSet::new(),
            points: BTreeMap::new(),
        };
        let Some(folder) = folder else { return Ok(Self { kept: None, now: empty }) };
        if host.kind(folder)?.is_none() {
            host.make_folder(folder)?;
            host.sync_folder(folder.parent().unwrap_or(Path::new("/")))?;
        }
        let lock = folder.join(LOCK);
        if host.kind(&lock)?.is_none() {
            // Another process may have made it just now.
            drop(host.create(&lock));
        }
        let lock = host.open(&lock, Access::Write)?;
        let path = folder.join(FILE);
        let now = match host.kind(&path)? {
            Some(_) => read(host, &path)?,
            None => empty,
        };
        Ok(Self { kept: Some(Kept { host: Arc::clone(host), path, _lock: lock }), now })
    }

    /// Returns what it says.
    pub(super) const fn written(&self) -> &Written {
        &self.now
    }

    /// Returns whether what it says is there after a restart.
    pub(super) const fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Changes it, durably, in one step. Failed, this process goes by what was there before.
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut Written) -> T) -> Result<T> {
        let mut next = self.now.clone();
        let answer = change(&mut next);
        if let Some(Kept { host, path, .. }) = &self.kept {
            let bytes = serde_json::to_vec_pretty(&next)
                .map_err(|e| Error::invalid(format!("cannot be written: {e}")).path(path))?;
            let draft = Draft::new(host, path)?;
            draft.file().write_at(HostOffset::new(0), &bytes)?;
            draft.publish(path, Publish::Replace)?;
        }
        self.now = next;
        Ok(answer)
    }

    /// Returns what is known of a disk that somebody names, or what is known of it from now on.
    ///
    /// `Policy` if the book has it elsewhere: which one is meant is a person's to say.
    pub(super) fn agree(&self, host: &dyn Host, named: &Named, reopens: bool) -> Result<Known> {
        let folder = named.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = host.canonical(folder.unwrap_or(Path::new(".")))?;
        let first = folder.join(named.path.file_name().unwrap_or_default());
        let Some(known) = self.now.disks.get(&named.name) else {
            return Ok(Known { reopens, ..Known::of(named, first) });
        };
        if first != known.first.0 && first != known.head.0 {
            let what = format!(
                "disk '{}' is known with the head {} (first {}): one of these is to be named, or the disk to be \
                 detached, which forgets them",
                named.name,
                known.head.0.display(),
                known.first.0.display()
            );
            return Err(Error::policy(what).path(&first));
        }
        let is_first = first == known.head.0;
        let format = named.format.map(|format| format.name().to_owned()).filter(|_| is_first);
        let format = format.or_else(|| known.format.clone());
        let reopens = known.reopens || reopens;
        let hooks = named.hooks.clone();
        Ok(Known { format, is_read_only: named.is_read_only, reopens, hooks, ..known.clone() })
    }

    /// Returns the disks that a start opens by itself.
    pub(super) fn reopened(&self) -> Vec<Named> {
        let named = |(name, known): (&String, &Known)| Named {
            name: name.clone(),
            path: known.head.0.clone(),
            format: None,
            is_read_only: known.is_read_only,
            hooks: known.hooks.clone(),
        };
        self.now.disks.iter().filter(|(_, known)| known.reopens).map(named).collect()
    }
}

fn read(host: &Arc<dyn Host>, path: &Path) -> Result<Written> {
    let file = host.open(path, Access::ReadShared)?;
    let bytes = file.bytes()?;
    if bytes > BYTES_MAX {
        return Err(Error::corrupt(format!("has {bytes} bytes, more than any book of disks")).path(path));
    }
    let mut text = vec![0; index(bytes)];
    file.read_at(HostOffset::new(0), &mut text)?;
    let written: Written = serde_json::from_slice(&text)
        .map_err(|e| Error::corrupt(format!("does not tell which disks there are: {e}")).path(path))?;
    if written.version != VERSION {
        let what = format!("is of version {}; this program knows {VERSION}", written.version);
        return Err(Error::new(ErrorKind::Unsupported, what).path(path));
    }
    Ok(written)
}
