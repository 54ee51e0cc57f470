//! Performs a consolidation: asks the machine for the next step, does it, reports back.
//!
//! Until the record has landed the job holds the write locks of TOP and of the target; the layers between them
//! are only read. What follows the record needs the journal alone, so that it can be done by whoever comes later.

use super::{
    carry::Carrier,
    ending::{Ending, refuse_foreign},
    images::{Images, Setup},
    machine::{Found, Machine, Pace, Step},
    plan::{self, Plan, Request, Verify},
    proof::{self, Proof},
    sides::Side,
    work::Work,
};
use crate::{
    base::{Error, ErrorKind, GuestOffset, GuestRange, Result, seed},
    chain::{Chain, Opening, relative_name},
    io::{Access, Host},
    job::Progress,
    store::{Epoch, Fold, Held, Journal, Ledger, Position, Removed},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

impl Pace {
    /// What a person wants: a crash costs a quarter of a gigabyte copied again.
    pub const USUAL: Self = Self { move_bytes: 16 << 20, mark_bytes: 256 << 20, adopted_pieces: 16 };
}

/// What a consolidation did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// What was to be done.
    pub plan: Plan,
    /// Bytes copied into the target.
    pub copied_bytes: u64,
    /// Bytes that the target shares with the folded layers with the host's help, nothing having been copied.
    pub shared_bytes: u64,
    /// Bytes marked as zero.
    pub zeroed_bytes: u64,
    /// How the result was proved in this life of the job; `None` if it was not.
    pub verified: Option<Verify>,
    /// Files that have the name of a folded layer, and are other files by now or were changed since: they stay.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub left_alone: Vec<PathBuf>,
}

impl Report {
    pub(super) const fn new(plan: Plan) -> Self {
        let left_alone = Vec::new();
        Self { plan, copied_bytes: 0, shared_bytes: 0, zeroed_bytes: 0, verified: None, left_alone }
    }
}

/// A consolidation that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Consolidation {
    host: Arc<dyn Host>,
    ledger: Ledger,
    opening: Opening,
    plan: Plan,
    ignores_unread: bool,
    stage: Stage,
}

/// What there is to do.
#[derive(Debug)]
enum Stage {
    /// The chain stands.
    Copy(Box<Copy>),
    /// The record of an earlier life has landed.
    End,
}

#[derive(Debug)]
struct Copy {
    chain: Chain,
    depth: usize,
    work: Work,
    held: Vec<Held>,
    request: Request,
}

impl Consolidation {
    /// Opens the chain at `top` for reading and finds out what has to be done; or what is left to do, if a job on
    /// `top` was cut off (`request` says then only how to verify).
    ///
    /// Fails as [`Chain::open`]; `Busy` with the image named where another lies on what is to change; `Corrupt`
    /// for a journal that cannot be relied on.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{chain::{Chain, Opening}, job::{Progress, snapshot::snapshot}};
    /// use deltachain::job::consolidate::{Consolidation, Pace, Request};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let base = folder.path().join("base.qcow2");
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let top = folder.path().join("top.qcow2");
    /// snapshot(&host, &base, &top, &[], &Opening::writing())?;
    /// let fold = Consolidation::prepare(&host, &top, &Opening::reading(), &Request::default())?;
    /// assert_eq!(fold.plan().folded.len(), 1);
    /// fold.run(Pace::USUAL, &Progress::default())?;
    /// // The disk's name opens what it opened before, in one file.
    /// assert!(!base.exists() && Chain::open(&host, &top, &Opening::reading())?.layers().len() == 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(host: &Arc<dyn Host>, top: &Path, opening: &Opening, request: &Request) -> Result<Self> {
        let top = resolve(host.as_ref(), top)?;
        let journal = Journal::find(host, &top)?;
        let opening = opening.clone();
        if let Some(journal) = &journal {
            let new = request.new.as_ref().map(|new| resolve(host.as_ref(), &new.path)).transpose()?;
            let is_asked = |folder: &Path| new.as_deref().is_some_and(|new| plan::folder_of(new) == folder);
            refuse_foreign(host.as_ref(), journal, &opening.policy, &is_asked)?;
        }
        // The target changes its epoch, whether or not the caller looks at records.
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        let host = Arc::clone(host);
        if let Some(journal) = &journal
            && Ending::has_begun(host.as_ref(), journal)?
        {
            let plan = plan::of_journal(journal, &top);
            let ignores_unread = request.ignores_unread;
            return Ok(Self { host, ledger, opening, plan, ignores_unread, stage: Stage::End });
        }
        if let Some(journal) = &journal
            && host.kind(&top)?.is_none()
            && let Some(now) = journal.find_top()?
        {
            let what =
                format!("is called {} by now: its consolidation goes on under that name", now.display());
            return Err(Error::new(ErrorKind::NotFound, what).path(&top));
        }
        let access = if opening.access == Access::ReadShared { Access::ReadShared } else { Access::Read };
        let chain = Chain::open(&host, &top, &opening.clone().with_access(access))?;
        let mut request = match &journal {
            Some(journal) => plan::request_of(host.as_ref(), journal, &chain, request)?,
            None => request.clone(),
        };
        // The journal names files relative to the folder of TOP: every path is absolute from here on.
        if let Some(new) = &mut request.new {
            new.path = resolve(host.as_ref(), &new.path)?;
        }
        let planned = plan::make(&host, &chain, &request, journal.as_ref())?;
        let plan::Planned { plan, depth, work, held } = planned;
        let ignores_unread = request.ignores_unread;
        let copy = Copy { chain, depth, work, held, request };
        Ok(Self { host, ledger, opening, plan, ignores_unread, stage: Stage::Copy(Box::new(copy)) })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Stopped (`Interrupted`), failed or cut off at any moment, TOP's name opens what it opened before,
    /// or the result; [`Consolidation::prepare`] goes on from there.
    pub fn run(self, pace: Pace, progress: &Progress) -> Result<Report> {
        let Self { host, ledger, opening, plan, ignores_unread, stage } = self;
        let ending = Ending { host, ledger, opening, ignores_unread };
        let report = Report::new(plan);
        match stage {
            Stage::Copy(copy) => Runner::open(ending, report, *copy, pace)?.run(progress),
            Stage::End => {
                let journal = Journal::resume(&ending.host, &report.plan.top)?;
                let journal = journal.ok_or_else(|| gone(&report.plan.top))?;
                let folded = journal.fold().removed.len();
                let machine = Machine::new(crate::map::RangeSet::new(), folded, pace).resume(Found::Recorded);
                let runner = Runner { ending, report, machine, journal: Some(journal), fold: None };
                runner.run(progress)
            }
        }
    }
}

/// Returns whether the record of a job has landed, durably or not: then it can only be ended.
pub fn has_landed(host: &dyn Host, journal: &Journal) -> Result<bool> {
    Ending::has_begun(host, journal)
}

pub(super) fn gone(top: &Path) -> Error {
    Error::busy("another process ended the job on it meanwhile").path(top)
}

/// Returns the path without links, also where the file itself is gone.
pub(super) fn resolve(host: &dyn Host, top: &Path) -> Result<PathBuf> {
    if host.kind(top)?.is_some() {
        return host.canonical(top);
    }
    Ok(host.canonical(plan::folder_of(top))?.join(top.file_name().unwrap_or_default()))
}

/// A job under way.
struct Runner {
    ending: Ending,
    report: Report,
    machine: Machine,
    /// `None` until the job has been bound.
    journal: Option<Journal>,
    /// What is open until the record has landed.
    fold: Option<Folding>,
}

/// What a job needs until the record has landed.
struct Folding {
    images: Images,
    work: Work,
    /// The target's bitmaps before the job.
    held: Vec<Held>,
    carrier: Carrier,
    verify: Verify,
}

impl Runner {
    fn open(ending: Ending, report: Report, copy: Copy, pace: Pace) -> Result<Self> {
        let plan = &report.plan;
        let mut journal = Journal::resume(&ending.host, &plan.top)?;
        if journal.is_none() && plan.need_bytes > plan.free_bytes {
            let what = format!("may need {} bytes; {} are free there", plan.need_bytes, plan.free_bytes);
            let place = plan.target.as_ref().unwrap_or(&plan.result);
            return Err(Error::new(ErrorKind::NoSpace, what).path(place));
        }
        let Copy { chain, depth, work, held, request } = copy;
        let (is_first, paths) = (journal.is_none(), plan::paths(chain.layers()));
        let mut setup = Setup { plan, request: &request, work: &work, depth, journal: journal.as_mut() };
        let (images, found) = Images::open(&ending, chain, &mut setup)?;
        if is_first {
            // With the locks held: whoever makes a child opens what is below it, and finds the target in use.
            plan::check_again(ending.host.as_ref(), &paths, (depth, plan.mode), ending.ignores_unread)?;
        }
        let bound = journal.as_ref().filter(|_| found != Some(Found::Void));
        let folded = bound.map_or(plan.removed.len(), |journal| journal.fold().removed.len());
        let machine = Machine::new(work.list.clone(), folded, pace);
        let machine = match found {
            Some(found) => machine.resume(found),
            None => machine,
        };
        let doubted = journal.as_ref().filter(|_| found == Some(Found::Void));
        let doubted_until = doubted.map_or(GuestOffset::new(0), |journal| journal.position().mark);
        let verify = request.verify;
        let proof = (verify != Verify::Nothing).then(Proof::default);
        let carrier = Carrier::new(proof, doubted_until, pace);
        let fold = Some(Folding { images, work, held, carrier, verify });
        Ok(Self { ending, report, machine, journal, fold })
    }

    fn run(mut self, progress: &Progress) -> Result<Report> {
        progress.begin("copy", self.report.plan.copy_bytes + self.report.plan.zero_bytes);
        loop {
            if progress.is_cancelled() {
                self.machine.stop();
            }
            let Some(step) = self.machine.next() else { break };
            self.perform(step, progress)?;
            self.machine.landed(step);
        }
        if self.machine.is_done() { Ok(self.report) } else { Err(stopped(&self.report.plan)) }
    }

    fn perform(&mut self, step: Step, progress: &Progress) -> Result<()> {
        match step {
            Step::Bind => self.bind(),
            Step::Move(range) => self.move_range(range, progress),
            Step::Mark(mark) => self.note(Position { mark, is_ready: false }),
            Step::Check => self.check(progress),
            Step::Prepare => self.prepare_record(),
            Step::Settle => {
                self.fold = None;
                progress.begin("finish", 0);
                self.ending.settle(self.journal()?, None)
            }
            Step::Drop(number) => {
                let left = self.ending.remove(self.journal()?, number)?;
                self.report.left_alone.extend(left);
                Ok(())
            }
            Step::Close => {
                self.ending.close(self.journal()?)?;
                self.journal = None;
                Ok(())
            }
            Step::Record => self.fold()?.images.record(&self.ending, self.journal()?),
            Step::Renew => self.fold()?.images.renew(&self.ending, self.journal()?),
            Step::Grow => self.fold()?.images.grow(),
            Step::Flush => self.fold()?.images.sides.target.flush(),
            Step::Cut => self.fold()?.images.cut(),
        }
    }

    fn fold(&self) -> Result<&Folding> {
        self.fold.as_ref().ok_or_else(|| Error::invalid("the record has landed already"))
    }

    fn journal(&self) -> Result<&Journal> {
        self.journal.as_ref().ok_or_else(unbound)
    }

    fn note(&mut self, position: Position) -> Result<()> {
        self.journal.as_mut().ok_or_else(unbound)?.note(position)
    }

    /// Writes the journal, anew if one stands: the head was written since.
    fn bind(&mut self) -> Result<()> {
        let fold = self.fold()?;
        let head_epoch = fold.images.mark_head(&self.ending)?;
        // Whoever wrote the head changed its view: an ID from before that proves nothing.
        let is_hashed = fold.verify == Verify::Bytes;
        let view_id = is_hashed.then(|| fold.images.sides.view_id(Side::Top)).transpose()?;
        let (list_digest, list_bytes) = (fold.work.digest, fold.work.list.bytes());
        let bound = Bound { head_epoch, list_digest, list_bytes, view_id, bitmaps: fold.held.clone() };
        let stands = self.journal.take();
        self.journal = Some(bind(&self.ending, (&self.report.plan, &self.fold()?.images), stands, bound)?);
        Ok(())
    }

    fn move_range(&mut self, range: GuestRange, progress: &Progress) -> Result<()> {
        let fold = self.fold.as_mut().ok_or_else(unbound)?;
        let carried = fold.carrier.carry(&fold.images.sides, range, progress);
        let carried = carried.or_else(|error| self.doubt(error))?;
        self.report.copied_bytes += carried.copied;
        self.report.shared_bytes += carried.shared;
        self.report.zeroed_bytes += carried.zeroed;
        Ok(())
    }

    /// A target that differs is copied again from the start by the next life of the job.
    fn doubt<T>(&mut self, error: Error) -> Result<T> {
        if error.kind() == ErrorKind::Corrupt {
            self.note(Position { mark: GuestOffset::new(0), is_ready: false })?;
        }
        Err(error)
    }

    /// Proves the target.
    fn check(&mut self, progress: &Progress) -> Result<()> {
        let fold = self.fold()?;
        let Some(proof) = &fold.carrier.proof else { return Ok(()) };
        progress.begin("verify", fold.work.list.bytes());
        let mut checked = proof.check(&fold.images.sides, &fold.work.list, &|bytes| progress.moved(bytes));
        if let (Ok(()), Verify::Bytes) = (&checked, fold.verify) {
            checked = self.check_bytes(fold);
        }
        let verify = fold.verify;
        checked.or_else(|error| self.doubt(error))?;
        self.report.verified = Some(verify);
        Ok(())
    }

    fn check_bytes(&self, fold: &Folding) -> Result<()> {
        let sides = &fold.images.sides;
        let before = match self.journal()?.fold().view_id {
            Some(id) => id,
            // The job began without: TOP's view is still what it was.
            None => sides.view_id(Side::Top)?,
        };
        if sides.view_id(Side::Target)? == before {
            return Ok(());
        }
        Err(proof::differs(sides, GuestOffset::new(0).range(sides.size)))
    }

    fn prepare_record(&mut self) -> Result<()> {
        let fold = self.fold()?;
        let unheld = fold.images.prepare_record(&self.ending, self.journal()?.fold(), &fold.held, false)?;
        self.report.plan.lose_bitmaps(&unheld);
        let mark = GuestOffset::new(self.report.plan.size);
        self.note(Position { mark, is_ready: true })
    }
}

/// What a journal says that was found out for it.
#[derive(Debug)]
pub(super) struct Bound {
    /// TOP's own epoch, if it has a record.
    pub(super) head_epoch: Option<Epoch>,
    pub(super) list_digest: [u8; 32],
    pub(super) list_bytes: u64,
    pub(super) view_id: Option<[u8; 32]>,
    /// The target's bitmaps before the job.
    pub(super) bitmaps: Vec<Held>,
}

/// Writes the journal of a job, durably; one that `stands` keeps its epochs, so that there is no moment without a
/// binding.
pub(super) fn bind(
    ending: &Ending,
    (plan, images): (&Plan, &Images),
    stands: Option<Journal>,
    bound: Bound,
) -> Result<Journal> {
    let (old_epoch, new_epoch) = match stands.as_ref().map(Journal::fold) {
        Some(before) => (before.old_epoch, before.new_epoch),
        None => (images.target_epoch(ending)?, Epoch::fresh()),
    };
    let names = Names::new(&plan.top);
    let fold = Fold {
        job: seed::fresh(),
        mode: plan.mode,
        old_epoch,
        new_epoch,
        head: images.head()?,
        head_epoch: bound.head_epoch,
        list_digest: bound.list_digest,
        list_bytes: bound.list_bytes,
        view_id: bound.view_id,
        size: plan.size,
        layers: names.all(plan.folded.iter().chain([&images.target])),
        result: names.one(&plan.result),
        format: images.result_format().name().to_owned(),
        draft: images.draft.as_deref().map(|draft| names.one(draft)),
        removed: names.removed(ending.host.as_ref(), &plan.removed)?,
        options: images.options.clone(),
        bitmaps: bound.bitmaps,
    };
    match stands {
        Some(stands) => stands.restart(fold),
        None => Journal::create(&ending.host, &plan.top, fold),
    }
}

fn unbound() -> Error {
    Error::invalid("the job has no journal yet")
}

fn stopped(plan: &Plan) -> Error {
    let what =
        "stopped at a clean point, as asked: the disk opens as before, `consolidate` goes on from here";
    Error::new(ErrorKind::Interrupted, what).path(&plan.top)
}

/// Makes paths relative to TOP's folder.
struct Names<'a> {
    folder: &'a Path,
}

impl<'a> Names<'a> {
    fn new(top: &'a Path) -> Self {
        Self { folder: plan::folder_of(top) }
    }

    fn one(&self, path: &Path) -> PathBuf {
        relative_name(self.folder, path)
    }

    fn removed(&self, host: &dyn Host, paths: &[PathBuf]) -> Result<Vec<Removed>> {
        let removed = |path: &PathBuf| Ok(Removed { name: self.one(path), file: host.witness(path)? });
        paths.iter().map(removed).collect()
    }

    fn all<'p>(&self, paths: impl Iterator<Item = &'p PathBuf>) -> Vec<PathBuf> {
        paths.map(|path| self.one(path)).collect()
    }
}
