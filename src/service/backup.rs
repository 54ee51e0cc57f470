//! Backups: one point in time of some disks, for programs that pull it over NBD while guests go on.
//!
//! ```text
//!   begin: all heads are frozen at once ─► what is frozen is exported, with what changed since an earlier point
//!   end:   the exports go ─► points that nobody needs any more are folded into the next older one
//! ```
//!
//! What stays true: the book names each point's layers by their epochs, so that the exports come back after a restart,
//! and show the same bytes. The layer of the newest point stays below the head: what lies above it is what the next
//! backup pulls. No layer is folded that is a point in time of somebody else, or that an open backup reads.

use super::{
    GLANCE, Happened, Job, LETTING_GO, Service, Settings,
    book::{Below, Book, Mark, Point, Written},
    changed::{self, Changed, NAMES, Since},
    fold::Stand,
    job::Told,
    snapshot::{SnapshotOf, fresh_name},
    view::ErrorView,
};
use crate::{
    base::{Error, ErrorKind, Guard, Result, clock, clock::Stopwatch, name::FileName, seed},
    chain::{Chain, Layer},
    disk::Disk,
    export::{Context, Export},
    format::Format,
    job::consolidate::{LiveConsolidation, Request},
    store::Ledger,
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// A backup whose exports are there.
#[derive(Debug)]
pub(super) struct Backup {
    since: Option<String>,
    taken_ms: u64,
    parts: Vec<Part>,
}

/// A backup's share in a disk.
#[derive(Clone, Debug)]
struct Part {
    disk: String,
    export: String,
    /// What is exported, or why that cannot be.
    frozen: std::result::Result<Frozen, Arc<Error>>,
}

#[derive(Clone, Debug)]
struct Frozen {
    chain: Arc<Chain>,
    since: Since,
}

/// What can be told of a backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupView {
    /// Names this point in time: a later backup tells what changed since.
    pub id: String,
    /// The earlier point that was named.
    pub since: Option<String>,
    /// When it was taken, in milliseconds since 1970.
    pub taken_ms: u64,
    /// The names under which clients ask for what changed: flag 1 where it did.
    pub contexts: [&'static str; 2],
    /// Its disks.
    pub disks: Vec<BackupPart>,
}

/// What can be told of a disk of a backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupPart {
    /// The disk's name.
    pub disk: String,
    /// The export that shows it as it was.
    pub export: String,
    /// The layer that keeps it.
    pub layer: Option<FileName>,
    /// Its size in bytes.
    pub size: u64,
    /// Whether everything counts as changed.
    pub is_full: bool,
    /// Why, if an earlier point was named.
    pub why_full: Option<String>,
    /// Why it is not exported.
    pub error: Option<ErrorView>,
}

/// What became of a backup that has ended.
#[derive(Clone, Debug, Serialize)]
pub struct BackupEnded {
    /// Its ID, since which the next one can tell what changed.
    pub id: String,
    /// The jobs that fold what nobody needs any more.
    pub jobs: Vec<u64>,
    /// Why layers stay that could have been folded.
    pub left: Vec<ErrorView>,
}

impl Part {
    fn view(&self) -> BackupPart {
        let ready = self.frozen.as_ref().ok();
        let why = ready.and_then(|frozen| match &frozen.since {
            Since::Ever(why) => why.clone(),
            Since::Layer { .. } => None,
        });
        BackupPart {
            disk: self.disk.clone(),
            export: self.export.clone(),
            layer: ready.and_then(|r| r.chain.head().ok()).map(|head| FileName(head.path.clone())),
            size: ready.map_or(0, |frozen| frozen.chain.size()),
            is_full: ready.is_none_or(|frozen| matches!(frozen.since, Since::Ever(_))),
            why_full: why,
            error: self.frozen.as_ref().err().map(|error| ErrorView::from(error.as_ref())),
        }
    }

    fn export(&self) -> Result<Export> {
        let Frozen { chain, since } = match &self.frozen {
            Ok(frozen) => frozen,
            Err(why) => return Err(Error::new(why.kind(), why.to_string())),
        };
        let disk: Arc<dyn Disk> = Arc::clone(chain) as _;
        let context = |name| {
            Arc::new(Changed { name, disk: Arc::clone(&disk), since: since.clone() }) as Arc<dyn Context>
        };
        Ok(Export {
            name: self.export.clone(),
            description: self.describe(),
            contexts: NAMES.map(context).to_vec(),
            disk: Arc::clone(&disk),
            is_read_only: true,
            is_multi_conn: true,
            guests: Arc::default(),
        })
    }

    fn describe(&self) -> String {
        format!("{} at one point in time", self.disk)
    }
}

impl Backup {
    fn view(&self, id: &str) -> BackupView {
        BackupView {
            id: id.to_owned(),
            since: self.since.clone(),
            taken_ms: self.taken_ms,
            contexts: NAMES,
            disks: self.parts.iter().map(Part::view).collect(),
        }
    }

    /// Waits until no client reads it; `Busy` if one goes on.
    fn wait_alone(&self) -> Result<()> {
        let watch = Stopwatch::start();
        let is_read = |part: &&Part| part.frozen.as_ref().is_ok_and(|f| Arc::strong_count(&f.chain) > 1);
        while let Some(part) = self.parts.iter().find(is_read) {
            if watch.elapsed() > LETTING_GO {
                return Err(Error::busy(format!("export '{}': clients use it", part.export)));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }
}

/// Returns the ID's part that people say, which names exports as well.
fn short(id: &str) -> &str {
    id.split_once('-').map_or(id, |(number, _)| number)
}

impl Service {
    /// Freezes what the disks show at one moment, and exports it for reading, with what changed since the point `since`.
    /// Where that is not certain, everything counts as changed, and the answer says why.
    ///
    /// Fails as [`Service::snapshot`]; `Exists` if a disk has the name of an export.
    pub fn begin_backup(&self, disks: &[String], since: Option<&str>) -> Result<BackupView> {
        for disk in disks {
            self.held(disk)?.settle()?;
        }
        let mut book = self.book.lock();
        let coming = format!("b{}", book.written().next_number());
        let is_taken = |disk: &&String| self.disks.lock().contains_key(&export_name(disk, &coming));
        if let Some(disk) = disks.iter().find(is_taken) {
            let what = format!("a disk is called '{}' already", export_name(disk, &coming));
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let since = since.map(|since| find_id(book.written(), since).unwrap_or_else(|_| since.to_owned()));
        let new = |disk: &str| fresh_name(disk, &format!("-{coming}"), Format::Qcow2);
        let of: Vec<_> = disks.iter().map(|d| SnapshotOf::qcow2(d, Some(new(d)))).collect();
        self.snapshot_by(&mut book, &of)?;
        let ledger = self.ledger();
        let mut marks = BTreeMap::new();
        for disk in disks {
            let chain = self.held(disk)?.disk.chain();
            let mark = changed::mark(&ledger, frozen_layers(&chain))?;
            let mark =
                mark.ok_or_else(|| Error::invalid(format!("disk '{disk}': its layer got no record")))?;
            marks.insert(disk.clone(), mark);
        }
        let taken_ms = u64::try_from(clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        let point = Point { since, taken_ms, is_open: true, marks };
        let id = book.change(|written| {
            let id = format!("b{}-{:016x}", written.number(), seed::fresh() >> 64);
            written.points.insert(id.clone(), point.clone());
            id
        })?;
        let backup = self.assemble(book.written(), (&id, &point), None);
        let view = backup.view(&id);
        self.backups.lock().insert(id, Arc::new(backup));
        for disk in disks {
            self.events.say(Happened::Backup, disk, None);
        }
        Ok(view)
    }

    pub(super) fn ledger(&self) -> Ledger {
        let Settings { host, opening, .. } = &self.settings;
        opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None))
    }

    /// Puts a backup together; what is there already stays, since clients may read it.
    fn assemble(&self, written: &Written, (id, point): (&str, &Point), there: Option<&Backup>) -> Backup {
        let part = |(disk, mark): (&String, &Mark)| {
            let mut parts = there.into_iter().flat_map(|backup| &backup.parts);
            if let Some(part) = parts.find(|part| part.disk == *disk && part.frozen.is_ok()) {
                return part.clone();
            }
            let frozen = self.freeze_view(written, (disk, mark), point.since.as_deref()).map_err(Arc::new);
            Part { disk: disk.clone(), export: export_name(disk, short(id)), frozen }
        };
        let parts = point.marks.iter().map(part).collect();
        Backup { since: point.since.clone(), taken_ms: point.taken_ms, parts }
    }

    fn freeze_view(
        &self,
        written: &Written,
        (disk, mark): (&str, &Mark),
        since: Option<&str>,
    ) -> Result<Frozen> {
        let chain = self.held(disk)?.disk.chain();
        let ledger = self.ledger();
        let layers = frozen_layers(&chain);
        let Some(at) = changed::find(&ledger, layers, mark)? else {
            return Err(Error::new(ErrorKind::NotFound, "the layer that kept this point is gone"));
        };
        let layers = layers.get(at..).unwrap_or_default();
        let since = match since.map(|since| (since, written.points.get(since))) {
            None => Since::Ever(None),
            Some((since, point)) => match point.and_then(|point| point.marks.get(disk)) {
                Some(mark) => changed::since(&ledger, layers, mark)?,
                None => Since::Ever(Some(format!("no backup '{since}' of this disk is known"))),
            },
        };
        Ok(Frozen { chain: Arc::new(Chain::of(layers.to_vec(), false)), since })
    }

    /// Brings back what open backups export, where it is not there.
    pub(super) fn reopen_backups(&self, book: &Book) {
        let mut backups = self.backups.lock();
        for (id, point) in book.written().points.iter().filter(|(_, point)| point.is_open) {
            let backup = self.assemble(book.written(), (id, point), backups.get(id).map(AsRef::as_ref));
            backups.insert(id.clone(), Arc::new(backup));
        }
    }

    /// Takes a backup's exports away. Unless it `keeps` them, layers go that were frozen for backups alone and whose points
    /// in time nobody needs any more: jobs fold them.
    ///
    /// `NotFound` for an ID that no open backup has; `Busy` while clients read one of its exports.
    pub fn end_backup(self: &Arc<Self>, id: &str, keeps: bool) -> Result<BackupEnded> {
        let mut book = self.book.lock();
        self.refuse_stopping()?;
        let id = find_id(book.written(), id)?;
        let open = || Error::new(ErrorKind::NotFound, format!("backup '{id}' has ended"));
        let backup = self.backups.lock().remove(&id).ok_or_else(open)?;
        let epochs: Vec<_> =
            backup.parts.iter().map(|part| (part.disk.clone(), self.epochs(&part.disk))).collect();
        let ended = backup.wait_alone().and_then(|()| book.change(|written| written.end_point(&id, &epochs)));
        if let Err(error) = ended {
            self.backups.lock().insert(id, backup);
            return Err(error);
        }
        let disks: Vec<String> = backup.parts.iter().map(|part| part.disk.clone()).collect();
        drop(backup);
        let mut ended = BackupEnded { id, jobs: Vec::new(), left: Vec::new() };
        for disk in disks.iter().filter(|_| !keeps) {
            match self.fold_points(&mut book, disk) {
                Ok(job) => ended.jobs.extend(job.map(|job| job.number)),
                Err(error) => ended.left.push(ErrorView::from(&error)),
            }
        }
        for disk in &disks {
            self.events.say(Happened::BackupEnded, disk, None);
        }
        Ok(ended)
    }

    /// Returns the epochs of a disk's frozen layers; `None` where nobody can look.
    fn epochs(&self, disk: &str) -> Option<Vec<String>> {
        let chain = self.held(disk).ok()?.disk.chain();
        let ledger = self.ledger();
        let epoch = |layer: &Layer| {
            let known = ledger.look(layer.image.as_ref()).ok()?;
            Some(known.layer.frozen.map_or(String::new(), |record| record.epoch.to_string()))
        };
        frozen_layers(&chain).iter().map(epoch).collect()
    }

    /// Folds the newest point of a disk and those right below it, which backups alone were taken at, into the oldest of
    /// them; it shows the newest then. `None` where there is nothing to fold, or an open backup reads the layers.
    pub(super) fn fold_points(self: &Arc<Self>, book: &mut Book, disk: &str) -> Result<Option<Arc<Job>>> {
        let held = self.held(disk)?;
        held.refuse_job(disk)?;
        if self.backup_of(disk).is_some() {
            return Ok(None);
        }
        let points = book.written().points.values();
        let points: Vec<&str> = points.filter_map(|p| Some(p.marks.get(disk)?.epoch.as_str())).collect();
        let epochs = self.epochs(disk).unwrap_or_default();
        let is_point = |epoch: &String| points.contains(&epoch.as_str());
        let chain = held.disk.chain();
        let layers = frozen_layers(&chain);
        let at = |place: &FileName| layers.iter().position(|layer| layer.path == place.0);
        // One that was given up, or cut off, comes first: what it has changed is no point in time any more.
        let stopped = book.written().disks.get(disk).and_then(|known| known.below.as_ref());
        let stopped = stopped.and_then(|below| Some((at(&below.top)?, at(&below.into)?)));
        let found = || {
            let newest = epochs.iter().position(is_point)?;
            let others = epochs.iter().skip(newest + 1).take_while(|epoch| is_point(epoch)).count();
            Some((newest, newest + others)).filter(|_| others > 0)
        };
        let Some((newest, oldest)) = stopped.or_else(found) else { return Ok(None) };
        let Some(into) = layers.get(oldest).map(|layer| layer.path.clone()) else { return Ok(None) };
        let folder = |layer: Option<&Layer>| layer.and_then(|layer| Some(layer.path.parent()?.to_path_buf()));
        if folder(chain.layers().get(newest)) != folder(chain.layers().get(newest + 1)) {
            // Whoever ends a fold that was cut off looks for children there.
            return Err(Error::policy(format!(
                "disk '{disk}': what lies on its backup is in another folder"
            )));
        }
        let request = Request { into: Some(into.clone()), ..Request::default() };
        let Settings { host, pace, .. } = &self.settings;
        let fold = LiveConsolidation::prepare_below(host, &held.disk, newest + 1, &held.opening, &request)?;
        let number = book.change(|written| {
            let number = written.number();
            let below = Below { top: FileName(fold.plan().top.clone()), into: FileName(into) };
            written.with(disk, |known| known.begin_below(number, below));
            number
        })?;
        let job = Job::new(number, disk, fold.plan().clone(), Told::default());
        self.launch(&held, &job, Stand::Planned(Box::new(fold), *pace))?;
        Ok(Some(job))
    }

    /// Returns the ID of an open backup that is of that disk.
    pub(super) fn backup_of(&self, disk: &str) -> Option<String> {
        let backups = self.backups.lock();
        let is_of = |backup: &Arc<Backup>| backup.parts.iter().any(|part| part.disk == disk);
        backups.iter().find(|(_, backup)| is_of(backup)).map(|(id, _)| id.clone())
    }

    /// Refuses what would change the layers that an open backup reads.
    pub(super) fn refuse_backup(&self, disk: &str) -> Result<()> {
        match self.backup_of(disk).filter(|_| Guard::BackupReads.trips(true)) {
            Some(id) => Err(Error::busy(format!("disk '{disk}': backup {} is of it", short(&id)))),
            None => Ok(()),
        }
    }

    /// Returns what can be told of all open backups, the oldest first.
    pub fn view_backups(&self) -> Vec<BackupView> {
        let backups = self.backups.lock();
        let mut all: Vec<_> = backups.iter().map(|(id, backup)| backup.view(id)).collect();
        all.sort_by_key(|view| view.taken_ms);
        all
    }

    /// Returns name and description of what backups export.
    pub(super) fn list_backups(&self) -> Vec<(String, String)> {
        let backups = self.backups.lock();
        let parts = backups.values().flat_map(|backup| &backup.parts);
        parts.map(|part| (part.export.clone(), part.describe())).collect()
    }

    /// Returns a backup's export; `None` if none has that name.
    pub(super) fn backup_export(&self, name: &str) -> Option<Result<Export>> {
        let backups = self.backups.lock();
        let mut parts = backups.values().flat_map(|backup| &backup.parts);
        parts.find(|part| part.export == name).map(Part::export)
    }
}

/// Returns the layers below a disk's head.
fn frozen_layers(chain: &Chain) -> &[Layer] {
    chain.layers().get(1..).unwrap_or_default()
}

fn export_name(disk: &str, short: &str) -> String {
    format!("{disk}.{short}")
}

/// Returns the whole ID of a backup that is named by it, or by the part that people say.
fn find_id(written: &Written, id: &str) -> Result<String> {
    let found = written.points.keys().find(|known| *known == id || short(known) == id);
    let none = || Error::new(ErrorKind::NotFound, format!("no backup is called '{id}'"));
    found.cloned().ok_or_else(none)
}
