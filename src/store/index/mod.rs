//! Which files of a folder say that they show a content ID: a cache, so that one is found among very many.
//!
//! What stays true:
//! - it says where to look, never what is true: whoever follows it reads the records of the file that it names, which is
//!   in that folder;
//! - an entry holds as long as the file, and the note on it, look as they did (device, inode, length, times of the last
//!   change of bytes and of anything else); what changed within two seconds before it was looked at is looked at again;
//! - "no file does" is believed only while the folder and its notes look as they did when all of it was looked at: whoever
//!   gives a file an ID or a name changes one of them;
//! - it lives as long as the boot, in a file that belongs to this user alone; one that is damaged, of another boot or
//!   version, or that another process has open for too long is done without, and made anew with the next look at everything.
//!
//! Each reading and each change is a turn of its own: open, do, close. Readers share the file, a writer has it alone.

mod blocks;
#[cfg(test)]
mod tests;

use super::{
    Draft,
    place::{is_closed, is_plain, make_durable_folder},
};
use crate::{
    base::{
        Error, ErrorKind, Result,
        clock::{self, Stopwatch},
    },
    content::ContentId,
    io::{self, Access, EntryKind, File, Host, Likeness, Status},
};
use blocks::Blocks;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

/// By name: how file and note looked (32 bytes; zeros if that proves nothing), and the ID, if it says one.
const FILES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("files");
/// An ID and a name.
const IDS: TableDefinition<&[u8], ()> = TableDefinition::new("ids");
/// Under nothing: how folder and notes looked before all files were looked at, if nothing changed since that would not show.
const WHOLE: TableDefinition<(), &[u8]> = TableDefinition::new("whole");

const CACHE_BYTES: usize = 32 << 20;
/// How many files are looked at at once.
const LOOKERS: usize = 16;
/// How long another process is waited for.
const TURN_TIME: Duration = Duration::from_millis(500);
/// What changed later than this before it was looked at may have changed again without a trace: clocks that stamp files
/// stand still for up to two seconds (FAT).
const SETTLED_NS: i128 = 2_000_000_000;

/// Finds out which ID a file says that it shows; asked by several threads at once.
type Read<'a> = dyn Fn(&Path) -> Result<Option<ContentId>> + Sync + 'a;
type Tried<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Sum = [u8; 32];

/// What cannot be compared.
const UNKNOWN: Sum = [0; 32];

/// The index of one folder; nothing is open between two calls.
#[derive(Debug)]
pub struct Index {
    host: Arc<dyn Host>,
    /// Without links.
    folder: PathBuf,
    /// Where notes on the folder's images are.
    notes: Vec<PathBuf>,
    /// Where its file may be, the best place first.
    places: Vec<PathBuf>,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    looks: Sum,
    id: Option<ContentId>,
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let id = self.id.iter().flat_map(ContentId::bytes);
        self.looks.iter().chain(id).copied().collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (looks, id) = bytes.split_first_chunk()?;
        let id = if id.is_empty() { None } else { Some(ContentId::new(id.try_into().ok()?)) };
        Some(Self { looks: *looks, id })
    }
}

type Entries = BTreeMap<Vec<u8>, Entry>;

/// What a look at everything found.
struct Found {
    entries: Entries,
    /// Names whose entries are new, are others, or are gone.
    changed: Vec<Vec<u8>>,
    whole: Option<Sum>,
}

impl Index {
    /// Stands for the index of `folder`, which is a whole path without links; notes on its images are in `notes`, and where
    /// it cannot be kept beside them it is in the folder `state`.
    pub(super) fn new(host: &Arc<dyn Host>, folder: &Path, state: Option<&Path>) -> Self {
        let beside = folder.join(super::FOLDER);
        let machine = format!("{:032x}", host.machine());
        let machine = machine.get(..16).unwrap_or_default();
        let mut places = vec![beside.join(format!("index-{machine}.redb"))];
        let mut notes = vec![beside.join("notes")];
        if let Some(state) = state {
            let sum = blake3::hash(folder.as_os_str().as_bytes()).to_hex();
            let sum = sum.get(..16).unwrap_or_default();
            places.push(state.join("indexes").join(format!("{sum}-{machine}.redb")));
            notes.push(state.join("notes"));
        }
        Self { host: Arc::clone(host), folder: folder.to_path_buf(), notes, places }
    }

    /// Returns whether there is a file of it.
    pub fn is_there(&self) -> bool {
        self.places.iter().any(|place| matches!(self.host.kind(place), Ok(Some(EntryKind::File))))
    }

    /// Returns the files that were seen to have IDs from `first` on as long as they are `meant`, at most `most`, by ID and
    /// name; `None` if there is no index that could be asked.
    pub fn offers(
        &self,
        first: &ContentId,
        is_meant: &dyn Fn(&ContentId) -> bool,
        most: usize,
    ) -> Option<Vec<(ContentId, PathBuf)>> {
        let names = self.read(&|db| {
            let table = db.begin_read()?.open_table(IDS)?;
            let mut found = Vec::new();
            for key in table.range(first.bytes().as_slice()..)? {
                let key = key?.0;
                let Some((id, name)) = key.value().split_first_chunk() else { return Err("a key".into()) };
                let id = ContentId::new(*id);
                if !is_meant(&id) || found.len() >= most {
                    break;
                }
                found.push((id, name.to_vec()));
            }
            Ok(found)
        })?;
        let names =
            names.into_iter().map(|(id, name)| (id, PathBuf::from(std::ffi::OsString::from_vec(name))));
        Some(
            names.filter(|(_, name)| is_plain(name)).map(|(id, name)| (id, self.folder.join(name))).collect(),
        )
    }

    /// Returns whether nothing has got an ID or a name since everything was looked at, as far as folder and notes tell.
    pub fn is_fresh(&self) -> bool {
        let Some(now) = self.looks_whole(clock::coarse_ns()) else { return false };
        self.read(&|db| {
            let table = db.begin_read()?.open_table(WHOLE)?;
            Ok(table.get(())?.is_some_and(|then| then.value() == now))
        })
        .unwrap_or(false)
    }

    /// Looks at every file of the folder, has `read` find out the IDs of those that changed, and keeps what it says.
    /// Returns all files that say an ID, by name.
    ///
    /// Fails if the folder cannot be read; that nothing can be kept is no failure.
    pub fn refresh(&self, read: &Read<'_>) -> Result<Vec<(ContentId, PathBuf)>> {
        let (place, known) = self.entries().unzip();
        let found = self.look(known.unwrap_or_default(), read)?;
        let offers = found
            .entries
            .iter()
            .filter_map(|(name, entry)| Some((entry.id?, self.folder.join(OsStr::from_bytes(name)))));
        let offers = offers.collect();
        if !place.is_some_and(|place| self.change(&place, &found)) {
            self.make(&found);
        }
        Ok(offers)
    }

    fn look(&self, mut known: Entries, read: &Read<'_>) -> Result<Found> {
        let now = clock::coarse_ns();
        let mut whole = self.looks_whole(now);
        let notes = self.noted();
        let mut all = self.host.list(&self.folder)?;
        // What a link leads to, and the notes on that, change without a trace here.
        whole = whole.filter(|_| all.iter().all(|entry| !entry.is_link));
        all.retain(|entry| entry.kind == EntryKind::File && !Draft::is_left_over(&entry.path));
        let look = |file: &io::Entry| -> Option<(Vec<u8>, Entry)> {
            let name = file.path.file_name()?.as_bytes();
            let status = self.host.status(&file.path).ok().filter(|_| !file.is_link);
            let looks = status.and_then(|status| {
                let note = notes.get(&status.inode).map(Vec::as_slice).unwrap_or_default();
                looks(note.iter().chain([&status]), now)
            });
            let entry = match known.get(name).filter(|then| looks == Some(then.looks)) {
                Some(then) => *then,
                None => match read(&file.path) {
                    Ok(id) => Entry { looks: looks.unwrap_or(UNKNOWN), id },
                    Err(_) => Entry { looks: UNKNOWN, id: None },
                },
            };
            Some((name.to_vec(), entry))
        };
        let entries: Entries = each(&all, &look).into_iter().flatten().collect();
        let is_other =
            |(name, entry): (&Vec<u8>, &Entry)| (known.remove(name) != Some(*entry)).then(|| name.clone());
        let mut changed: Vec<Vec<u8>> = entries.iter().filter_map(is_other).collect();
        changed.extend(known.into_keys());
        Ok(Found { entries, changed, whole })
    }

    /// Returns how the folder and those of notes look; `None` if a change might not show.
    fn looks_whole(&self, now: i128) -> Option<Sum> {
        let mut all = vec![self.host.status(&self.folder).ok()?];
        for notes in &self.notes {
            match self.host.status(notes) {
                Ok(status) => all.push(status),
                Err(error) if error.kind() == ErrorKind::NotFound || is_closed(&error) => {}
                Err(_) => return None,
            }
        }
        looks(all.iter(), now)
    }

    /// Returns how the notes on images look, by the inode of the image.
    fn noted(&self) -> BTreeMap<u64, Vec<Status>> {
        let mut noted: BTreeMap<u64, Vec<Status>> = BTreeMap::new();
        for entry in self.notes.iter().filter_map(|notes| self.host.list(notes).ok()).flatten() {
            let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
            let inode = name.rsplit_once('-').and_then(|(_, inode)| u64::from_str_radix(inode, 16).ok());
            let Some((inode, status)) = inode.zip(self.host.status(&entry.path).ok()) else { continue };
            noted.entry(inode).or_default().push(status);
        }
        noted
    }

    /// Returns all that is known, and where it was kept.
    fn entries(&self) -> Option<(PathBuf, Entries)> {
        let read = |db: &Database| {
            let table = db.begin_read()?.open_table(FILES)?;
            let mut entries = Entries::new();
            for row in table.iter()? {
                let (name, entry) = row?;
                entries.insert(name.value().to_vec(), Entry::decode(entry.value()).ok_or("an entry")?);
            }
            Ok(entries)
        };
        self.places.iter().find_map(|place| Some((place.clone(), self.read_at(place, &read)?)))
    }

    /// Reads the first index that can be read.
    fn read<T>(&self, work: &dyn Fn(&Database) -> Tried<T>) -> Option<T> {
        self.places.iter().find_map(|place| self.read_at(place, work))
    }

    fn read_at<T>(&self, place: &Path, work: &dyn Fn(&Database) -> Tried<T>) -> Option<T> {
        let file = self.open(place, Access::Read)?;
        turn(Blocks::reading(file).ok()??, work)
    }

    /// Changes what was read at that place; false if that did not go.
    fn change(&self, place: &Path, found: &Found) -> bool {
        let file = self.open(place, Access::Write);
        let blocks = file.and_then(|file| Blocks::writing(file).ok().flatten());
        blocks.and_then(|blocks| turn(blocks, &|db| put(db, found, &found.changed))).is_some()
    }

    /// Keeps everything in a new file, in the first place where that goes.
    fn make(&self, found: &Found) {
        let all: Vec<Vec<u8>> = found.entries.keys().cloned().collect();
        let make = |place: &PathBuf| -> Result<()> {
            // Two users who replaced each other's would have none.
            let there = self.host.open(place, Access::ReadShared).ok();
            if there.and_then(|file| Likeness::of(file.as_ref())).is_some_and(|there| !there.is_own()) {
                return Err(Error::policy("belongs to somebody else").path(place));
            }
            make_durable_folder(self.host.as_ref(), place.parent().unwrap_or(Path::new("/")))?;
            Draft::sweep(self.host.as_ref(), place)?;
            let draft = Draft::new(&self.host, place)?;
            match turn(Blocks::create(draft.file())?, &|db| put(db, found, &all)) {
                Some(()) => draft.publish_sometime(place),
                None => Ok(()),
            }
        };
        // Where nothing can be kept, everything is looked at again the next time.
        let _ = self.places.iter().any(|place| make(place).is_ok());
    }

    /// Opens a file of the index, if it is this user's own and where it seems to be; waits a moment for its turn.
    fn open(&self, place: &Path, access: Access) -> Option<Arc<dyn File>> {
        let watch = Stopwatch::start();
        let file = loop {
            match self.host.open(place, access) {
                Err(error) if error.kind() == ErrorKind::Busy && watch.elapsed() < TURN_TIME => {
                    thread::sleep(Duration::from_millis(2));
                }
                opened => break opened.ok()?,
            }
        };
        let is_own = match Likeness::of(file.as_ref()) {
            Some(likeness) => likeness.is_own() && !likeness.is_written_by_others(),
            // Of a simulated machine.
            None => file.descriptor().is_none(),
        };
        let folder = self.host.canonical(place.parent()?).ok()?;
        let is_there = self.host.opened_as(file.as_ref()).ok()? == folder.join(place.file_name()?);
        (is_own && is_there).then_some(file)
    }
}

/// Does the same for each of very many files, in order: their headers are all over the disk, and it takes as long to read
/// sixteen of them as one.
fn each<T: Sync, U: Send>(all: &[T], work: &(dyn Fn(&T) -> U + Sync)) -> Vec<U> {
    let share = all.len().div_ceil(LOOKERS).max(LOOKERS);
    let run = |share: &[T]| share.iter().map(work).collect::<Vec<U>>();
    thread::scope(|scope| {
        let begin = |share| (share, thread::Builder::new().spawn_scoped(scope, move || run(share)).ok());
        let begun: Vec<_> = all.chunks(share).map(begin).collect();
        let end = |(share, thread): (_, Option<thread::ScopedJoinHandle<'_, Vec<U>>>)| match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            None => run(share),
        };
        begun.into_iter().flat_map(end).collect()
    })
}

/// Returns the sum of what was looked at; `None` if a change after `now` might look the same.
fn looks<'a>(all: impl Iterator<Item = &'a Status>, now: i128) -> Option<Sum> {
    let mut sum = blake3::Hasher::new();
    for status in all {
        let Status { device, inode, bytes, modified_ns, changed_ns } = *status;
        if modified_ns.max(changed_ns).saturating_add(SETTLED_NS) > now {
            return None;
        }
        for number in [device, inode, bytes] {
            sum.update(&number.to_le_bytes());
        }
        for time in [modified_ns, changed_ns] {
            sum.update(&time.to_le_bytes());
        }
    }
    Some(*sum.finalize().as_bytes())
}

/// Opens the engine on `blocks`, works, and closes it; `None` if anything is wrong with it, whatever that is.
fn turn<T>(blocks: Blocks, work: &dyn Fn(&Database) -> Tried<T>) -> Option<T> {
    let run = || -> Tried<T> {
        let mut builder = Builder::new();
        // One that was not closed is made anew.
        builder.set_cache_size(CACHE_BYTES).set_repair_callback(redb::RepairSession::abort);
        work(&builder.create_with_backend(blocks)?)
    };
    catch_unwind(AssertUnwindSafe(run)).ok()?.ok()
}

/// Puts what was found of `names` into the tables.
fn put(db: &Database, found: &Found, names: &[Vec<u8>]) -> Tried<()> {
    let write = db.begin_write()?;
    {
        let (mut files, mut ids) = (write.open_table(FILES)?, write.open_table(IDS)?);
        let key = |id: ContentId, name: &[u8]| [id.bytes().as_slice(), name].concat();
        for name in names {
            let (name, entry) = (name.as_slice(), found.entries.get(name));
            let then = match entry {
                Some(entry) => files.insert(name, entry.encode().as_slice())?,
                None => files.remove(name)?,
            };
            let then = then.map(|then| Entry::decode(then.value())).ok_or(()).unwrap_or_default();
            if let Some(id) = then.and_then(|then| then.id) {
                ids.remove(key(id, name).as_slice())?;
            }
            if let Some(id) = entry.and_then(|entry| entry.id) {
                ids.insert(key(id, name).as_slice(), ())?;
            }
        }
        let mut whole = write.open_table(WHOLE)?;
        match &found.whole {
            Some(looks) => drop(whole.insert((), looks.as_slice())?),
            None => drop(whole.remove(())?),
        }
    }
    Ok(write.commit()?)
}
