//! The journal of a consolidation: what a crash needs to know, in the folder's `.dchain`, found by the name of
//! the run's top.
//!
//! ```text
//!   0     slot A: sequence, done-mark, phase, intent map, checksum   ┐ written in turn: a torn write leaves
//!   4096  slot B                                                     ┘ the other one
//!   8192  the plan: job, epochs, head's witness, names, bitmaps, checksum; written once, before the file has its name
//! ```
//!
//! While it stands it binds the child's recorded parent epoch to the target's new one ([`Journal::binds`]), so
//! that the chain opens. It lives here and not with the job, since the chain asks it.

mod plan;

pub use plan::{Fold, FoldMode, Held, HeldState, Removed};

use super::{Draft, Epoch, Publish, place};
use crate::{
    base::{
        Error, ErrorKind, Guard, GuestOffset, HostOffset, Result,
        units::{count, index},
    },
    io::{Access, File, Host},
    record,
};
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const SLOT_MAGIC: [u8; 8] = *b"dchnmark";
const SLOTS: [HostOffset; 2] = [HostOffset::new(0), HostOffset::new(4096)];
const PLAN_AT: HostOffset = HostOffset::new(8192);

record! {
    /// One of the two places that tell how far the job is; the intent map follows: a bit a region.
    struct Slot: LittleEndian, 64 bytes {
        0 => magic: bytes 8,
        /// Ties the slot to its plan.
        8 => job: bytes 16,
        24 => sequence: u64,
        32 => mark: u64,
        40 => phase: u32,
        /// Length of the intent map.
        44 => map_bytes: u32,
        /// Guest bytes that one of its bits stands for.
        48 => region_bytes: u64,
        56 => reserved: u32,
        /// CRC32C of the bytes before it, then of the map.
        60 => checksum: u32,
    }
}

/// How far a consolidation is, as its journal tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Listed bytes before this place are durable in the target.
    pub mark: GuestOffset,
    /// Whether all is done but the record and what follows it.
    pub is_ready: bool,
}

/// Parts of a disk in use that may have reached one of the two places of a guest's write and not the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// Guest bytes in a region; 0 if no guest uses the disk.
    pub region_bytes: u64,
    /// The regions by number, in order.
    pub regions: Vec<u64>,
}

impl Intent {
    /// No journal tells of more regions.
    pub const REGIONS_MAX: u64 = (SLOTS[1].bytes() - Slot::SIZE as u64) * 8;

    fn map(&self) -> Result<Vec<u8>> {
        let last = self.regions.iter().max().copied();
        if last.is_some_and(|last| last >= Self::REGIONS_MAX) {
            return Err(Error::invalid(format!("more than {} regions", Self::REGIONS_MAX)));
        }
        let mut map = vec![0; last.map_or(0, |last| index(last / 8) + 1)];
        for region in &self.regions {
            map.get_mut(index(region / 8)).into_iter().for_each(|byte| *byte |= 1 << (region % 8));
        }
        Ok(map)
    }

    fn of(region_bytes: u64, map: &[u8]) -> Self {
        let is_set =
            |region: &u64| map.get(index(region / 8)).is_some_and(|byte| byte >> (region % 8) & 1 == 1);
        Self { region_bytes, regions: (0..count(map.len()) * 8).filter(is_set).collect() }
    }
}

/// The journal of one consolidation, on disk.
#[derive(Debug)]
pub struct Journal {
    host: Arc<dyn Host>,
    path: PathBuf,
    file: Arc<dyn File>,
    fold: Fold,
    position: Position,
    intent: Intent,
    sequence: u64,
}

/// Returns where the journal of a job on `top` is.
fn path_of(top: &Path) -> PathBuf {
    let name = top.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let short = hash.get(..16).unwrap_or_default();
    folder_of(top).join(super::FOLDER).join(format!("consolidate-{short}.journal"))
}

/// Returns the disk that a journal's name stands for; `None` if that may have another name by now: if nothing is called
/// so, or if another job's journal is named after it, too.
fn top_by_name(host: &dyn Host, journal: &Path, all: &[PathBuf]) -> Result<Option<PathBuf>> {
    let stem = |path: &Path| {
        path.file_name().unwrap_or_default().to_string_lossy().split('.').next().map(str::to_owned)
    };
    if all.iter().any(|other| other != journal && stem(other) == stem(journal)) {
        return Ok(None);
    }
    let mut entries = host.list(folder_of(folder_of(journal)))?.into_iter().map(|entry| entry.path);
    Ok(entries.find(|path| path_of(path).file_name() == journal.file_name()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Journal {
    /// Writes the journal of a job on `top`, durably.
    pub fn create(host: &Arc<dyn Host>, top: &Path, fold: Fold) -> Result<Self> {
        let mut path = path_of(top);
        let folder = folder_of(&path);
        if host.kind(folder)?.is_none() {
            host.make_folder(folder)?;
            host.sync_folder(folder_of(folder))?;
        }
        if host.kind(&path)?.is_some() {
            // That of a disk which was called so, and was given another name while its job stands.
            path = path.with_extension(format!("{:016x}.journal", fold.job >> 64));
        }
        Self::write(host, path, fold, Position { mark: GuestOffset::new(0), is_ready: false })
    }

    /// Starts the job over, durably, in one step: `fold` stands in place of what this journal says.
    pub fn restart(self, fold: Fold) -> Result<Self> {
        let Self { host, path, file, .. } = self;
        let begun = Self::write(&host, path, fold, Position { mark: GuestOffset::new(0), is_ready: false });
        // Held until now: nobody else may go on with either.
        drop(file);
        begun
    }

    fn write(host: &Arc<dyn Host>, path: PathBuf, fold: Fold, position: Position) -> Result<Self> {
        let draft = Draft::new(host, &path)?;
        let file = draft.file();
        let intent = Intent::default();
        let journal = Self { host: Arc::clone(host), path, file, fold, position, intent, sequence: 0 };
        journal.file.write_at(PLAN_AT, &plan::encode(&journal.fold)?)?;
        journal.write_slot()?;
        draft.publish(&journal.path, Publish::Replace)?;
        Ok(journal)
    }

    /// Opens the journal of a job on `top` to look at it; `None` if there is none. A disk that was given another
    /// name in its folder since is known by its file.
    ///
    /// `Corrupt`, with the field, for one that cannot be relied on.
    pub fn find(host: &Arc<dyn Host>, top: &Path) -> Result<Option<Self>> {
        let is_tops = |journal: &Self| journal.fold.layers.first().map(|n| n.as_os_str()) == top.file_name();
        let named = Self::open_at(host, path_of(top), Access::ReadShared)?;
        if let Some(journal) = named.filter(is_tops) {
            return Ok(if journal.is_disk_elsewhere(top)? { None } else { Some(journal) });
        }
        let mut others = Self::all(host, folder_of(top))?.into_iter().filter_map(|(_, found)| found.ok());
        Ok(others.find_map(|found| {
            let found = found.adopt(top).ok()?;
            Some(found).filter(is_tops)
        }))
    }

    /// Opens the journal of a job on `top` to go on with it, under the name that the disk has now; `Busy` while
    /// another process does.
    pub fn resume(host: &Arc<dyn Host>, top: &Path) -> Result<Option<Self>> {
        let Some(found) = Self::find(host, top)? else { return Ok(None) };
        let Some(journal) = Self::open_at(host, found.path, Access::Write)? else { return Ok(None) };
        // What is found may not be durable yet: the process before may have been killed in between.
        place::settle(host.as_ref(), &journal.path)?;
        let then = journal.fold.clone();
        let journal = journal.adopt(top)?;
        if journal.fold == then {
            return Ok(Some(journal));
        }
        let Self { host, path, file, fold, position, .. } = journal;
        let renamed = Self::write(&host, path, fold, position)?;
        drop(file);
        Ok(Some(renamed))
    }

    /// Opens the journal that is the file at `path` itself, to end it; `NotFound` if there is none.
    pub fn open_file(host: &Arc<dyn Host>, path: &Path, access: Access) -> Result<Self> {
        let journal = Self::open_at(host, path.to_path_buf(), access)?;
        journal.ok_or_else(|| Error::new(ErrorKind::NotFound, "is not there").path(path))
    }

    /// Returns whether a path is that of a journal, by its name.
    pub fn is_name(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("consolidate-") && name.ends_with(".journal")
    }

    /// Returns the journals of all jobs on disks in `folder`, each with its path, or why it cannot be relied on.
    pub fn all(host: &Arc<dyn Host>, folder: &Path) -> Result<Vec<(PathBuf, Result<Self>)>> {
        let entries = match host.list(&folder.join(super::FOLDER)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.into_iter().map(|entry| entry.path).filter(|path| Self::is_name(path));
        let open = |path: PathBuf| {
            let opened = Self::open_at(host, path.clone(), Access::ReadShared).transpose();
            opened.map(|opened| (path, opened))
        };
        Ok(names.filter_map(open).collect())
    }

    /// Returns the journal of a job that was cut off and that names the image at `image` (a path without links),
    /// as its top or as a layer below it; `None` if there is none in the image's folder.
    ///
    /// Fails for a journal that cannot be relied on if its job may be about the image: `is_apart` tells of the disk that
    /// it is on, known by the journal's name, whether the image is neither that nor below it.
    pub fn of_layer(
        host: &Arc<dyn Host>,
        image: &Path,
        is_apart: &dyn Fn(&Path) -> bool,
    ) -> Result<Option<Self>> {
        let all = Self::all(host, folder_of(image))?;
        let names: Vec<PathBuf> = all.iter().map(|(path, _)| path.clone()).collect();
        for (path, journal) in all {
            let journal = match journal {
                Err(_) if top_by_name(host.as_ref(), &path, &names)?.is_some_and(|top| is_apart(&top)) => {
                    continue;
                }
                journal => journal?.adopt(image)?,
            };
            for layer in &journal.fold.layers {
                if journal.is_at(layer, image)? {
                    return Ok(Some(journal));
                }
            }
        }
        Ok(None)
    }

    /// Takes note of the name that the job's disk was given since: nothing has the old one, `image` is its file.
    fn adopt(mut self, image: &Path) -> Result<Self> {
        let Some(old) = self.fold.layers.first().cloned() else { return Ok(self) };
        let new = PathBuf::from(image.file_name().unwrap_or_default());
        let place = self.place(&old);
        let is_moved = old != new
            && self.host.kind(image)?.is_some()
            && self.host.witness(image)?.same_file(&self.fold.head)
            && (self.host.kind(&place)?.is_none() || self.is_disk_elsewhere(&place)?);
        let Fold { layers, result, removed, .. } = &mut self.fold;
        let names = layers.iter_mut().chain([result]).chain(removed.iter_mut().map(|gone| &mut gone.name));
        names.filter(|name| is_moved && **name == old).for_each(|name| name.clone_from(&new));
        Ok(self)
    }

    fn open_at(host: &Arc<dyn Host>, path: PathBuf, access: Access) -> Result<Option<Self>> {
        let file = match host.open(&path, access) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let fold = plan::read(file.as_ref()).map_err(|e| e.path(&path))?;
        let (slot, intent) = read_slots(file.as_ref(), fold.job).map_err(|e| e.path(&path))?;
        let position = Position { mark: GuestOffset::new(slot.mark), is_ready: slot.phase == 1 };
        let sequence = slot.sequence;
        Ok(Some(Self { host: Arc::clone(host), path, file, fold, position, intent, sequence }))
    }

    /// Returns what the job is.
    pub const fn fold(&self) -> &Fold {
        &self.fold
    }

    /// Returns how far it is.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Returns which parts of the disk are in doubt after a crash.
    pub const fn intent(&self) -> &Intent {
        &self.intent
    }

    /// Returns where the journal is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes, durably, how far the job is. Torn by a crash, it leaves what was noted before.
    pub fn note(&mut self, position: Position) -> Result<()> {
        self.note_with(position, self.intent.clone())
    }

    /// The same, and which parts of the disk are in doubt from here on; both or neither after a crash.
    pub fn note_with(&mut self, position: Position, intent: Intent) -> Result<()> {
        let before = (self.sequence, self.position, std::mem::replace(&mut self.intent, intent));
        (self.sequence, self.position) = (self.sequence + 1, position);
        let noted = self.write_slot().and_then(|()| self.file.flush());
        if noted.is_err() {
            // The next one goes to the same slot: the other one is the one that holds together.
            (self.sequence, self.position, self.intent) = before;
        }
        noted
    }

    /// Removes the journal, durably: the job is over. Where that failed, it can be tried again.
    pub fn close(&self) -> Result<()> {
        match self.host.remove(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed?,
        }
        self.host.sync_folder(folder_of(&self.path))
    }

    /// Returns whether this job is why the parent's epoch, `found`, is not the one that the child was made on: the child
    /// is the run's oldest layer, the parent is the target, and both epochs are the journal's, if the child claims one at
    /// all; or the child was made on TOP, whose name opens the target by now.
    pub fn binds(&self, child: &Path, parent: &Path, claimed: Option<Epoch>, found: Epoch) -> Result<bool> {
        let is_target = self.fold.new_epoch == found;
        if is_target && self.position.is_ready && claimed.is_some() && self.fold.head_epoch == claimed {
            return self.is_at(&self.fold.result, parent);
        }
        let is_epoch = is_target && (claimed.is_none() || self.fold.old_epoch == claimed);
        let (Some(target), run) =
            self.fold.layers.split_last().map_or((None, &[][..]), |(t, r)| (Some(t), r))
        else {
            return Ok(false);
        };
        let Some(oldest) = run.last().filter(|_| is_epoch) else { return Ok(false) };
        Ok(self.is_at(oldest, child)? && self.is_at(target, parent)?)
    }

    /// Returns the absolute path of a file that the journal names.
    pub fn place(&self, name: &Path) -> PathBuf {
        folder_of(folder_of(&self.path)).join(name)
    }

    /// Opens the run's top to look at it; `None` if nothing has that name any more.
    pub fn top(&self) -> Result<Option<Arc<dyn File>>> {
        let Some(top) = self.fold.layers.first() else { return Ok(None) };
        match self.host.open(&self.place(top), Access::ReadShared) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Returns whether a file that the journal names is the one at `path`.
    pub fn is_at(&self, name: &Path, path: &Path) -> Result<bool> {
        let place = self.place(name);
        Ok(self.host.kind(&place)?.is_some() && self.host.canonical(&place)? == self.host.canonical(path)?)
    }

    /// Returns the name that the run's top has in its folder now; `None` if it is not there any more.
    pub fn find_top(&self) -> Result<Option<PathBuf>> {
        let Some(top) = self.fold.layers.first().map(|top| self.place(top)) else { return Ok(None) };
        if self.host.kind(&top)?.is_some() && !self.is_disk_elsewhere(&top)? {
            return Ok(Some(top));
        }
        self.find_head(folder_of(&top))
    }

    fn find_head(&self, folder: &Path) -> Result<Option<PathBuf>> {
        let mut entries = self.host.list(folder)?.into_iter().map(|entry| entry.path);
        let is_head = |path: &PathBuf| self.host.witness(path).is_ok_and(|w| w.same_file(&self.fold.head));
        Ok(entries.find(is_head))
    }

    /// Returns whether `top` is another file than the job's disk, which has another name by now. Once the record
    /// may have landed the disk is another file by rights, and what was its inode may be anybody's.
    fn is_disk_elsewhere(&self, top: &Path) -> Result<bool> {
        let is_other = |top: &Path| Ok(!self.host.witness(top)?.same_file(&self.fold.head));
        let is_other = !self.position.is_ready && self.host.kind(top)?.is_some() && is_other(top)?;
        Ok(is_other && self.find_head(folder_of(top))?.is_some())
    }

    fn write_slot(&self) -> Result<()> {
        let map = self.intent.map()?;
        let mut slot = Slot {
            magic: SLOT_MAGIC,
            job: self.fold.job.to_le_bytes(),
            sequence: self.sequence,
            mark: self.position.mark.bytes(),
            phase: u32::from(self.position.is_ready),
            map_bytes: u32::try_from(map.len()).unwrap_or(u32::MAX),
            region_bytes: self.intent.region_bytes,
            reserved: 0,
            checksum: 0,
        };
        slot.checksum = slot_checksum(&slot, &map);
        let at = if self.sequence.is_multiple_of(2) { SLOTS[0] } else { SLOTS[1] };
        self.file.write_at(at, &[slot.to_bytes().as_slice(), &map].concat())
    }
}

fn slot_checksum(slot: &Slot, map: &[u8]) -> u32 {
    let bytes = slot.to_bytes();
    crc32c::crc32c_append(crc32c::crc32c(bytes.get(..Slot::SIZE - 4).unwrap_or_default()), map)
}

/// Returns the newer of the slots that hold together, and its intent map.
fn read_slots(file: &dyn File, job: u128) -> Result<(Slot, Intent)> {
    let mut newest: Option<(Slot, Intent)> = None;
    for at in SLOTS {
        let mut bytes = vec![0; index(SLOTS[1].bytes())];
        file.read_at(at, &mut bytes)?;
        let Some((slot, rest)) = bytes.split_first_chunk().map(|(slot, rest)| (Slot::parse(slot), rest))
        else {
            continue;
        };
        let Some(map) = rest.get(..index(slot.map_bytes.into())) else { continue };
        let is_whole = slot.magic == SLOT_MAGIC
            && slot.job == job.to_le_bytes()
            && !Guard::SlotWhole.trips(slot.checksum != slot_checksum(&slot, map))
            && slot.phase <= 1;
        if is_whole && newest.as_ref().is_none_or(|(n, _)| n.sequence < slot.sequence) {
            let intent = Intent::of(slot.region_bytes, map);
            newest = Some((slot, intent));
        }
    }
    newest.ok_or_else(|| Error::corrupt("neither slot of the done-mark holds together"))
}

#[cfg(test)]
mod tests;
