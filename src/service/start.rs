//! Opening disks: what was cut off is gone on with, or given up, before any guest comes in.

use super::{
    Entry, Happened, Held, Service, bitmaps,
    book::{Book, Known, Named},
    fold::Stand,
    job::{Job, Task},
};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Opening},
    io::Access,
    job::{
        Progress,
        consolidate::{
            Abandonment, Consolidation, Folding, LiveConsolidation, NewImage, Pace, Request, has_landed,
            is_live,
        },
        live::{LiveDisk, Recorder},
        snapshot::{Looked, Taken, forget_intended},
    },
    store::{FoldMode, Journal},
};
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// NBD has names of 4096 bytes at most: a list with a longer one would be of no use to anybody. Backups have longer names than
/// their disks.
const NAME_BYTES_MAX: usize = 1024;

/// Stands for a job that was begun before: a person has named its new image then, if it makes one.
fn named(new: Option<&Path>) -> Request {
    let image = |path: &Path| NewImage { path: path.to_path_buf(), format: None, options: Vec::new() };
    Request { new: new.map(image), ..Request::default() }
}

/// An open disk that nobody uses yet.
struct Opened {
    held: Arc<Held>,
    known: Known,
    /// A job that goes on, and what it is to do.
    goes_on: Option<(Task, Stand)>,
}

/// A fold whose second leg is on goes on.
fn begun(folding: Box<Folding>) -> (Task, Stand) {
    (folding.plan().clone().into(), Stand::Begun(folding))
}

impl Service {
    pub(super) fn open_all(self: &Arc<Self>, named: &[Named]) -> Result<()> {
        let mut book = self.book.lock();
        self.thaw_left(&mut book)?;
        self.forget_intended(&mut book)?;
        let mut looked = Looked::default();
        let others = book.reopened().into_iter().filter(|one| !named.iter().any(|n| n.name == one.name));
        for (disk, reopens) in named.iter().map(|n| (n.clone(), false)).chain(others.map(|one| (one, true))) {
            if self.disks.lock().contains_key(&disk.name) {
                return Err(Error::invalid(format!("two disks are called '{}'", disk.name)));
            }
            if let Err(error) = self.open_one(&mut book, &disk, reopens, &mut looked) {
                let refused = Entry::Refused(disk.clone(), Arc::new(error));
                self.disks.lock().insert(disk.name.clone(), refused);
                self.events.say(Happened::Refused, &disk.name, None);
            }
        }
        self.reopen_backups(&book);
        Ok(())
    }

    /// Heads that a crash left before they were recorded are nobody's.
    fn forget_intended(&self, book: &mut Book) -> Result<()> {
        let taken: Vec<Taken> = book.written().intended.iter().map(Taken::from).collect();
        if taken.is_empty() {
            return Ok(());
        }
        let (host, opening) = (&self.settings.host, &self.settings.opening);
        forget_intended(host, &self.ledger(), opening, &taken)?;
        book.change(|written| written.intended.clear())
    }

    /// Opens a disk, has its job go on, and lets guests in.
    pub(super) fn open_one(
        self: &Arc<Self>,
        book: &mut Book,
        named: &Named,
        reopens: bool,
        looked: &mut Looked,
    ) -> Result<()> {
        if named.name.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format!("the name of a disk has at most {NAME_BYTES_MAX} bytes")));
        }
        let mut known = book.agree(self.settings.host.as_ref(), named, reopens)?;
        if let Some(below) = &known.below {
            looked.forget();
            if self.end_below(&below.top.0)? {
                known.below = None;
            }
        }
        let folds_again = known.below.is_some() && self.settings.resumes;
        let Opened { held, mut known, goes_on } = self.open_disk(known, looked)?;
        let told = known.told;
        let number = book.change(|written| {
            let number = goes_on.as_ref().map(|_| known.job.unwrap_or_else(|| written.number()));
            if !(known.is_read_only && known.is_under_way()) {
                known.job = number;
            }
            written.disks.insert(named.name.clone(), known);
            number
        })?;
        held.lease(&self.settings.host, &named.name);
        if let (Some((task, stand)), Some(number)) = (goes_on, number) {
            let job = Job::new(number, &named.name, task, told);
            self.launch(&held, &job, stand)?;
        }
        self.disks.lock().insert(named.name.clone(), Entry::Open(held));
        self.events.say(Happened::Attached, &named.name, None);
        if folds_again {
            // The disk is served all the same; the end of the next backup asks for it again.
            let again = self.fold_points(book, &named.name);
            drop(
                again.inspect_err(|error| tracing::warn!(%error, disk = named.name, "points are not folded")),
            );
        }
        Ok(())
    }

    /// Ends what was cut off of a fold of layers below a head, one way or the other; returns whether it is done.
    fn end_below(&self, top: &Path) -> Result<bool> {
        let Some(journal) = Journal::find(&self.settings.host, top)? else { return Ok(false) };
        if has_landed(self.settings.host.as_ref(), &journal)? {
            drop(journal);
            return self.end_landed(top, None).map(|_| true);
        }
        drop(journal);
        self.clear(top).map(|()| false)
    }

    fn open_disk(&self, mut known: Known, looked: &mut Looked) -> Result<Opened> {
        let host = &self.settings.host;
        let is_read_only = known.is_read_only;
        let mut head = self.head_of(&known)?;
        let access = if is_read_only { Access::Read } else { Access::Write };
        let opening = self.settings.opening.clone().with_access(access).for_live_use();
        // A head that went to another store may have lost its name before that was written down.
        let before = known.before().or_else(|| Some(known.place()).filter(|place| *place != head));
        if let Some(before) = before.filter(|_| !is_read_only)
            && let Some(landed) = Journal::find(host, before)?
            && has_landed(host.as_ref(), &landed)?
        {
            looked.forget();
            self.end_landed(before, Some(&head))?;
        }
        let mut journal = if is_read_only { None } else { Journal::find(host, &head)? };
        if journal.is_some() {
            looked.forget();
        }
        if let Some(landed) = &journal
            && has_landed(host.as_ref(), landed)?
        {
            journal = None;
            head = self.end_landed(&head, known.becomes())?;
        } else if journal.is_some() && known.is_cancelled {
            journal = None;
            self.clear(&head)?;
        }
        if head != known.place() {
            known.going = None;
        }
        let opening = opening.with_format(known.format()?.filter(|_| head == known.place()));
        let chain = Chain::open(host, &head, &opening)?;
        let found = chain.head()?;
        if !is_read_only {
            // What guests wrote here would show through in those, which may be disks of their own.
            let refused = looked.refuse_dependants(host, found);
            refused.map_err(|error| error.doing("guests may only read it"))?;
        }
        let (path, format) = (found.path.clone(), found.format());
        let opening = opening.with_format(None);
        let recorders = if is_read_only { Vec::new() } else { Recorder::of(found.image.as_ref())? };
        if !is_read_only {
            found.image.keep_bitmaps(Recorder::region_bytes(found.size()))?;
        }
        let opened_as = bitmaps::header(found.image.as_ref())?;
        let disk = Arc::new(LiveDisk::new(chain).recording(recorders));
        // What `--new` makes of a disk that nobody uses shows what the disk showed then: guests do not disturb it.
        let is_move = journal.as_ref().is_some_and(|journal| journal.fold().mode == FoldMode::Move);
        let goes_on = journal.is_some_and(|journal| !journal.fold().mode.makes_new() || is_live(&journal));
        let goes_on = match known.going.clone().filter(|_| !is_read_only) {
            Some(going) => self.go_on_moving(&disk, &opening, &going, goes_on)?,
            // Nobody knows of the move any more: the disk is what it was.
            None if goes_on && is_move => self.clear(&path).map(|()| None)?,
            None if goes_on => self.go_on(&disk, &opening, known.becomes())?.map(begun),
            None => None,
        };
        if goes_on.is_none() && !(is_read_only && known.is_under_way()) {
            known.set_head(&path, format);
        }
        let contexts =
            if is_read_only { bitmaps::contexts(&disk.chain())? } else { bitmaps::live_contexts(&disk) };
        let held = Arc::new(Held {
            disk,
            opened_as,
            opening,
            is_read_only,
            contexts,
            guests: Arc::default(),
            is_closed: AtomicBool::new(false),
            job: Mutex::new(None),
            lease: Mutex::default(),
            stuck: Mutex::default(),
        });
        Ok(Opened { held, known, goes_on })
    }

    /// Returns where the head of a disk is. Where a job has given it another one, and was cut off before it was over, who may
    /// write ends that; until then one that is only read is not shown as it was before.
    fn head_of(&self, known: &Known) -> Result<PathBuf> {
        let host = &self.settings.host;
        let head = known.head(host.as_ref())?;
        if !known.is_read_only {
            return Ok(head);
        }
        let Some(journal) = Journal::find(host, &head)? else { return Ok(head) };
        if !has_landed(host.as_ref(), &journal)? {
            return Ok(head);
        }
        match known.becomes() {
            Some(result) => Ok(result.to_path_buf()),
            None if journal.fold().mode == FoldMode::Move => {
                let what = "is the disk no more: its migrate was cut off before it was over, and a start that may write ends it";
                Err(Error::busy(what).path(head))
            }
            None => Ok(head),
        }
    }

    /// Ends a job whose record has landed; returns what opens its result. By the book the disk has, or is to have,
    /// `asked` as its head.
    fn end_landed(&self, head: &Path, asked: Option<&Path>) -> Result<PathBuf> {
        let opening = self.settings.opening.clone().with_access(Access::Read);
        let job = Consolidation::prepare(&self.settings.host, head, &opening, &named(asked))?;
        Ok(job.run(Pace::USUAL, &Progress::default())?.plan.result)
    }

    /// Takes the second leg on again, so that no write misses it; or gives it up durably, if jobs are not to go on.
    fn go_on(
        &self,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        asked: Option<&Path>,
    ) -> Result<Option<Box<Folding>>> {
        let what = "a consolidation that was cut off cannot go on";
        let fold = LiveConsolidation::prepare(&self.settings.host, disk, opening, &named(asked));
        let mut folding = fold.and_then(|fold| fold.begin(self.settings.pace)).map_err(|e| e.doing(what))?;
        if self.settings.resumes {
            return Ok(Some(Box::new(folding)));
        }
        folding.retreat()?;
        Ok(None)
    }

    /// Takes away what is left of a job that was given up, on a disk that nobody uses.
    pub(super) fn clear(&self, head: &Path) -> Result<()> {
        let opening = self.settings.opening.clone().with_access(Access::Read);
        match Abandonment::prepare(&self.settings.host, head, &opening) {
            Ok(abandonment) => abandonment.run().map(drop),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}
