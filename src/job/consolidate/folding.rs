//! A consolidation of a disk in use, under way.
//!
//! ```text
//!   Mirroring ─ copy, record ─► record has landed ─ end ─► Ending ─ files go ─► Over
//!       └────── retreat, before the record ──────────────────────────────────────┘
//! ```
//!
//! What stays true: what fails leaves the stage as it is, so that it can be tried again; guests see what they wrote in
//! each of them.

use super::{
    again::{again, leave_alone},
    ending::Ending,
    images::Images,
    live::{LivePace, LiveReport, Pacing},
    moving::{self, Move},
    noting::Noting,
    over::{Shown, wait_for_the_last},
    plan::{self, NewImage, Plan, Verify},
    run::{Bound, Report, bind, resolve},
    work::Work,
};
use crate::{
    base::{Error, GuestOffset, Result, clock::Stopwatch},
    chain::{Chain, Layer, View, open_layer},
    io::Access,
    job::{
        Progress, State,
        live::{
            Advance, Buffers, Leg, LiveDisk, Recorder,
            mirror::{Mirror, Noted, left},
        },
    },
    map::RangeSet,
    store::{FoldMode, Held, Journal, Position},
};
use crossbeam_channel::Sender;
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

/// No work list has this digest: that of a disk in use is found anew by whoever goes on.
const LIVE: [u8; 32] = [0; 32];

/// Bytes after which the host begins to write the target back, so that a mark waits for little.
const WRITE_BACK_BYTES: u64 = 16 << 20;

/// Checkpoints beside the copier after which the intent map forgets a region: a few seconds.
const LINGERS: usize = 4;

/// What is done beside the copier.
enum Due {
    WriteBack,
    Mark,
}

/// What is going to be made.
pub(super) struct Making {
    pub(super) plan: Plan,
    pub(super) depth: usize,
    pub(super) held: Vec<Held>,
    /// The file that gets the result's name, if it is not the target.
    pub(super) draft: PathBuf,
    pub(super) new: Option<NewImage>,
    pub(super) moves: Option<Move>,
}

/// Who is told of a disk's new head before what the head before needs is forgotten.
struct Teller(Box<Tell>);

type Tell = dyn FnMut(&Layer) -> Result<()> + Send;

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teller")
    }
}

/// Returns whether a journal is that of a disk in use.
pub fn is_live(journal: &Journal) -> bool {
    journal.fold().list_digest == LIVE
}

/// A consolidation of a disk in use, under way: for those who choose the moment of each step.
#[derive(Debug)]
pub struct Folding {
    pub(super) ending: Ending,
    shown: Shown,
    report: LiveReport,
    pace: LivePace,
    stage: Stage,
    teller: Option<Teller>,
}

/// How far a fold has come.
#[derive(Debug)]
enum Stage {
    /// Guests use the chain as it was, and write to the target as well.
    Mirroring(Box<Mirroring>),
    /// Guests use the result; what is left to do needs the journal alone.
    Ending(Box<Journal>),
    /// Nothing of it is left to do.
    Over,
}

/// What is held until guests go over to the result, or back.
#[derive(Debug)]
pub(super) struct Mirroring {
    pub(super) depth: usize,
    held: Vec<Held>,
    pub(super) images: Images,
    /// The chain while the target is written.
    pub(super) moving: Arc<Chain>,
    noting: Noting,
    /// What this life of the job has to copy; `None` until that is found out.
    list: Option<RangeSet>,
    /// The second leg, once writes pass it.
    leg: Option<Arc<Leg>>,
    /// Where the copier goes on.
    at: GuestOffset,
    buffers: Buffers,
}

impl Mirroring {
    fn leg(&self) -> Result<&Arc<Leg>> {
        self.leg.as_ref().ok_or_else(|| Error::invalid("the job has no second leg"))
    }

    /// Returns what the run and what guests wrote over it decide, where `noted` leaves it in doubt.
    fn find(&self, noted: &Noted, size: u64, pace: LivePace) -> Result<RangeSet> {
        let mut decided = Work::find(&self.images.sides.run, size)?.list;
        let grain = pace.grain(size);
        if self.images.is_new() {
            // What a crash left there alone is not what the disk shows, as it would be of one of its layers.
            let (path, image) = (self.images.target.clone(), Arc::clone(&self.images.sides.target));
            let own = View::new(&[Layer { path, is_stated: true, image }]);
            Work::find(&own, size)?.list.iter().for_each(|range| decided.insert(range));
        }
        Ok(left(&decided, noted, grain, size))
    }

    /// Makes the leg, which is not in use yet; the journal says `noted`.
    fn new_leg(&self, noted: &Noted, size: u64, pace: LivePace) -> Result<Arc<Leg>> {
        let mirror = Mirror::new(size, pace.grain(size), noted);
        let lower = View::new(self.images.lower(self.moving.layers(), self.depth));
        let target = Arc::clone(&self.images.sides.target);
        let notes = Box::new(self.noting.clone());
        let patience = pace.patience.with(target.as_ref(), self.moving.head()?.image.as_ref())?;
        Ok(Arc::new(Leg::new(target, lower, mirror, notes, patience)))
    }
}

impl Folding {
    /// Takes the second leg on for a plan whose layers nobody else uses.
    pub(super) fn begin(ending: Ending, shown: Shown, making: Making, pace: LivePace) -> Result<Self> {
        let mut stands = Journal::resume(&ending.host, &making.plan.top)?;
        let region_bytes = pace.grain(making.plan.size).region_bytes;
        let noting = Noting::new(region_bytes, shown.written()?, ending.ledger.clone());
        let images = match &making.new {
            Some(new) => Self::open_new(&ending, &shown.disk, &making, new, (stands.as_mut(), pace))?,
            None => Self::open_own(&shown, &making)?,
        };
        let Making { plan, depth, held, .. } = making;
        let moving = shown.disk.chain();
        let report = LiveReport { report: Report::new(plan), mirrored_bytes: 0, pause: Duration::ZERO };
        let (at, buffers) = (GuestOffset::new(0), Buffers::default());
        let mirroring = Mirroring { depth, held, images, moving, noting, list: None, leg: None, at, buffers };
        let stage = Stage::Mirroring(Box::new(mirroring));
        let mut folding = Self { ending, shown, report, pace, stage, teller: None };
        match folding.bind(stands) {
            Ok(()) => Ok(folding),
            Err(error) => {
                // Without a leg there is nothing that could fail.
                folding.retreat()?;
                Err(error)
            }
        }
    }

    /// Opens the target, a layer of the chain, for writing.
    fn open_own(shown: &Shown, making: &Making) -> Result<Images> {
        let mut layers = shown.disk.chain().layers().to_vec();
        if let Some(target) = layers.get_mut(making.depth) {
            *target = again(target, true)?;
        }
        let draft = (making.plan.mode == FoldMode::EmptyTop).then(|| making.draft.clone());
        let images = Images::live(&layers, making.depth, &making.plan, draft)?;
        shown.swap(Chain::of_moving(layers));
        Ok(images)
    }

    /// Opens or makes the image in the making. Before one is made anew, the journal says that nothing is done.
    fn open_new(
        ending: &Ending,
        disk: &LiveDisk,
        making: &Making,
        new: &NewImage,
        (stands, pace): (Option<&mut Journal>, LivePace),
    ) -> Result<Images> {
        let (chain, draft) = (disk.chain(), &making.draft);
        let mut goes_on = false;
        if let Some(journal) = stands {
            let is_there = ending.host.kind(draft)?.is_some();
            let is_as_left = is_there && !disk.is_changed();
            goes_on = is_as_left && goes_on_from(journal, chain.head()?, (making.plan.size, pace))?;
            goes_on = goes_on && moving::stands_as_asked(ending, making)?;
            if !goes_on {
                journal.note(Position { mark: GuestOffset::new(0), is_ready: false })?;
            }
        }
        Images::live_new(ending, chain.layers(), making, new, goes_on)
    }

    /// Has `tell` be called with the disk's new head, as soon as guests use it and before the journal goes.
    pub fn tell_head(&mut self, tell: impl FnMut(&Layer) -> Result<()> + Send + 'static) {
        self.teller = Some(Teller(Box::new(tell)));
    }

    /// Returns what is done.
    pub const fn plan(&self) -> &Plan {
        &self.report.report.plan
    }

    /// Returns whether nothing is left to do; else [`Folding::conclude`] does it.
    pub const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    pub(super) fn mirroring(&mut self) -> Result<&mut Mirroring> {
        match &mut self.stage {
            Stage::Mirroring(mirroring) => Ok(mirroring),
            Stage::Ending(_) | Stage::Over => Err(gone_over()),
        }
    }

    /// Writes the journal, makes the target ready, and starts to mirror, which is the last thing that is done here:
    /// whatever failed before, no write has gone to the target.
    fn bind(&mut self, stands: Option<Journal>) -> Result<()> {
        let (size, pace) = (self.plan().size, self.pace);
        let head = self.shown.disk.chain();
        let stands = match stands {
            Some(journal) if self.is_on(&journal)? && goes_on_from(&journal, head.head()?, (size, pace))? => {
                match self.go_on(journal)? {
                    None => return Ok(()),
                    stands => stands,
                }
            }
            stands => stands,
        };
        let journal = self.new_journal(stands)?;
        self.make_ready(journal)?;
        let mirroring = self.mirroring()?;
        let leg = mirroring.new_leg(&Noted::default(), size, pace)?;
        mirroring.leg = Some(Arc::clone(&leg));
        self.shown.disk.take_leg(&leg);
        Ok(())
    }

    /// Returns whether a journal is about the image that is written now.
    fn is_on(&mut self, journal: &Journal) -> Result<bool> {
        let draft = self.mirroring()?.images.draft.clone();
        let named = journal.fold().draft.as_ref().map(|draft| journal.place(draft));
        Ok(match (self.plan().mode, draft, named) {
            (mode, Some(draft), Some(named)) if mode.makes_new() => {
                resolve(self.ending.host.as_ref(), &named)? == draft
            }
            (mode, ..) if mode.makes_new() => false,
            _ => true,
        })
    }

    /// Starts to mirror from where an earlier life of the job was; returns its journal if guests have written since the
    /// disk was opened, of which it does not know.
    fn go_on(&mut self, journal: Journal) -> Result<Option<Journal>> {
        let noted = Noted { mark: journal.position().mark, regions: journal.intent().regions.clone() };
        self.make_ready(journal)?;
        let (size, pace, disk) = (self.plan().size, self.pace, Arc::clone(&self.shown.disk));
        let mirroring = self.mirroring()?;
        let leg = mirroring.new_leg(&noted, size, pace)?;
        // Before the first write: one to a part that is done, taken for one that is still to come, would be lost with
        // the power, since nothing that lasts would name it.
        let list = mirroring.find(&noted, size, pace)?;
        leg.survey(&list);
        if !disk.take_leg_unchanged(&leg) {
            if mirroring.images.is_new() {
                // What it holds may not be what the disk shows, where no list says so.
                return Err(Error::busy("was written just now: the new image has to be made anew"));
            }
            return Ok(mirroring.noting.kept.lock().journal.take());
        }
        (mirroring.list, mirroring.leg) = (Some(list), Some(leg));
        Ok(None)
    }

    fn make_ready(&mut self, journal: Journal) -> Result<()> {
        let Stage::Mirroring(mirroring) = &mut self.stage else { return Err(gone_over()) };
        mirroring.images.renew(&self.ending, &journal)?;
        mirroring.noting.kept.lock().journal = Some(journal);
        mirroring.images.grow()
    }

    fn new_journal(&self, stands: Option<Journal>) -> Result<Journal> {
        let Stage::Mirroring(mirroring) = &self.stage else { return Err(gone_over()) };
        let head_epoch = match self.shown.over {
            // It is frozen: what lies on it knows it by the epoch that it has.
            Some(_) => mirroring.images.mark_head(&self.ending)?,
            None => mirroring.images.mark_live_head(&self.ending)?,
        };
        let plan = self.plan();
        let (list_bytes, bitmaps) = (plan.copy_bytes + plan.zero_bytes, mirroring.held.clone());
        let bound = Bound { head_epoch, list_digest: LIVE, list_bytes, view_id: None, bitmaps };
        bind(&self.ending, (plan, &mirroring.images), stands, bound)
    }

    /// Finds out what is to be copied, unless that is known; returns how many bytes that are.
    fn survey(&mut self) -> Result<u64> {
        let (size, pace) = (self.plan().size, self.pace);
        let mirroring = self.mirroring()?;
        if mirroring.list.is_none() {
            let list = mirroring.find(&Noted::default(), size, pace)?;
            mirroring.leg()?.survey(&list);
            mirroring.list = Some(list);
        }
        Ok(mirroring.list.as_ref().map_or(0, RangeSet::bytes))
    }

    /// Brings everything that is listed to the target, and makes it durable: flushes go on beside the copier. Stopped
    /// (`Interrupted`), [`Folding::checkpoint`] lets a later life of the job go on from here.
    pub fn copy(&mut self, progress: &Progress) -> Result<()> {
        progress.begin("copy", self.survey()?);
        let mirroring = self.mirroring()?;
        let (leg, moving) = (Arc::clone(mirroring.leg()?), Arc::clone(&mirroring.moving));
        let (ask, asked) = crossbeam_channel::bounded(1);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| {
                asked.into_iter().try_for_each(|due| match due {
                    Due::WriteBack => {
                        leg.begin_flush(&moving);
                        Ok(())
                    }
                    Due::Mark => leg.checkpoint(&moving, LINGERS),
                })
            });
            let copied = self.copy_all(&leg, &ask, progress).and_then(|()| self.prove_below(progress));
            drop(ask);
            let marked = flusher.join().unwrap_or_else(|_| Err(Error::invalid("a checkpoint failed")));
            copied.and(marked)
        })?;
        // What guests have written as a whole is there, too.
        let State { moved_bytes, size_bytes, .. } = progress.state();
        progress.passed(size_bytes.saturating_sub(moved_bytes));
        self.checkpoint()
    }

    fn copy_all(&mut self, leg: &Leg, ask: &Sender<Due>, progress: &Progress) -> Result<()> {
        let (mut unwritten, mut unmarked, mut marked) = (0, 0, Stopwatch::start());
        let mut pacing = Pacing::new(self.pace);
        loop {
            progress.checkpoint()?;
            leg.take_guest_time();
            let watch = Stopwatch::start();
            let Some(bytes) = self.step()? else { return Ok(()) };
            let own = watch.elapsed();
            progress.moved(bytes);
            (unwritten, unmarked) = (unwritten + bytes, unmarked + bytes);
            // One that is under way is not waited for: it is asked again after the next block.
            let is_due = unmarked >= self.pace.mark_bytes && marked.elapsed() >= self.pace.mark_pause;
            if is_due && ask.try_send(Due::Mark).is_ok() {
                (unwritten, unmarked, marked) = (0, 0, Stopwatch::start());
            }
            if unwritten >= WRITE_BACK_BYTES && ask.try_send(Due::WriteBack).is_ok() {
                unwritten = 0;
            }
            if !progress.is_late() {
                std::thread::sleep(pacing.pause((bytes, own), leg, progress));
            }
        }
    }

    /// Brings one block to the target; returns how many bytes that were, or `None` once all have landed.
    pub fn step(&mut self) -> Result<Option<u64>> {
        self.survey()?;
        let mirroring = self.mirroring()?;
        let leg = Arc::clone(mirroring.leg()?);
        leg.check()?;
        let Advance::Moved { copied_bytes, zeroed_bytes, next } =
            leg.advance(&mirroring.moving, mirroring.at, &mut mirroring.buffers)?
        else {
            return Ok(None);
        };
        mirroring.at = next;
        self.report.report.copied_bytes += copied_bytes;
        self.report.report.zeroed_bytes += zeroed_bytes;
        Ok(Some(copied_bytes + zeroed_bytes))
    }

    /// Does what follows [`Folding::copy`], which said `copied`: the disk goes over to the result, or back. Where that
    /// fails half-way, the fold is not over: guests go on, and [`Folding::conclude`] tries again.
    pub fn finish(&mut self, copied: Result<()>, progress: &Progress) -> Result<LiveReport> {
        match copied.and_then(|()| self.record(progress)) {
            Err(error) if !self.has_landed()? => {
                self.retreat()?;
                Err(error)
            }
            _ => self.end(),
        }
    }

    /// Ends a fold that could not be ended before: the disk goes over to the result if its name opens that by now, else
    /// back.
    pub fn conclude(&mut self) -> Result<()> {
        if self.has_landed()? { self.end().map(drop) } else { self.retreat() }
    }

    /// Makes what has landed durable, and notes it.
    pub fn checkpoint(&self) -> Result<()> {
        match &self.stage {
            Stage::Mirroring(mirroring) => mirroring.leg()?.checkpoint(&mirroring.moving, 0),
            Stage::Ending(_) | Stage::Over => Err(gone_over()),
        }
    }

    /// Returns whether the disk's name opens the result by now, durably or not.
    pub fn has_landed(&self) -> Result<bool> {
        let Stage::Mirroring(mirroring) = &self.stage else {
            return Ok(matches!(self.stage, Stage::Ending(_)));
        };
        match &mirroring.noting.kept.lock().journal {
            Some(journal) => Ending::has_begun(self.ending.host.as_ref(), journal),
            None => Ok(false),
        }
    }

    /// Makes the disk's name open the result, while guests' writes go on to both. Everything has landed and a
    /// checkpoint has followed.
    pub fn record(&mut self, progress: &Progress) -> Result<()> {
        progress.go_over("finish");
        let Stage::Mirroring(mirroring) = &mut self.stage else { return Err(gone_over()) };
        let Mirroring { images, noting, list, held, .. } = mirroring.as_ref();
        if !mirroring.leg()?.close() {
            let what = "a write of a guest failed after its place had been copied: to be copied again";
            return Err(Error::busy(what).path(&self.report.report.plan.top));
        }
        images.cut()?;
        if list.is_none() {
            return Err(Error::invalid("nothing has been copied"));
        }
        let fold = noting.kept.lock().going_on()?.fold().clone();
        let is_written = self.shown.over.is_none();
        if is_written {
            // They record again before guests go over.
            images.sides.target.keep_bitmaps(Recorder::region_bytes(images.sides.size))?;
        }
        let unheld = images.prepare_record(&self.ending, &fold, held, is_written)?;
        self.report.report.plan.lose_bitmaps(&unheld);
        if self.report.report.plan.verify != Verify::Nothing {
            self.report.report.verified = Some(Verify::Tree);
        }
        let said = mirroring.leg()?.finish();
        let mut kept = noting.kept.lock();
        let mut intent = kept.going_on()?.intent().clone();
        intent.regions.extend(said.regions);
        intent.regions.sort_unstable();
        intent.regions.dedup();
        kept.going_on()?.note_with(Position { mark: said.mark, is_ready: true }, intent)?;
        kept.is_recorded = true;
        let journal = kept.going_on()?;
        let recorded = images.record(&self.ending, journal);
        if recorded.is_err() {
            kept.is_recorded = Ending::has_begun(self.ending.host.as_ref(), kept.going_on()?)?;
        }
        recorded?;
        // Durable while guests still write to both: what they write later must not be the old head's after a cut.
        let journal = kept.going_on()?;
        for place in [journal.place(&journal.fold().result), images.target.clone()] {
            self.ending.host.sync_folder(plan::folder_of(&place))?;
        }
        Ok(())
    }

    /// The record has landed: guests go over to the result, and what was folded goes.
    pub fn end(&mut self) -> Result<LiveReport> {
        self.go_over()?;
        let Stage::Ending(journal) = &self.stage else { return Err(gone_over()) };
        let chain = self.shown.disk.chain();
        self.ending.settle(journal, Some(chain.head()?))?;
        if let Some(Teller(tell)) = self.teller.as_mut().filter(|_| self.shown.over.is_none()) {
            tell(chain.head()?)?;
        }
        self.shown.freeze(&self.ending.ledger, journal.fold().mode)?;
        let mut left_alone = Vec::new();
        for number in 0..journal.fold().removed.len() {
            left_alone.extend(self.ending.remove(journal, number)?);
        }
        self.ending.close(journal)?;
        self.stage = Stage::Over;
        self.report.report.left_alone = left_alone;
        Ok(self.report.clone())
    }

    /// Guests go over to the result, unless they have.
    fn go_over(&mut self) -> Result<()> {
        let Stage::Mirroring(mirroring) = &self.stage else { return Ok(()) };
        let Mirroring { depth, images, moving, noting, .. } = mirroring.as_ref();
        let mut layers = moving.layers().get(*depth..).unwrap_or_default().to_vec();
        let plan = &self.report.report.plan;
        match layers.first_mut() {
            Some(target) if plan.mode == FoldMode::TopName => target.path.clone_from(&plan.top),
            _ if plan.mode.makes_new() => {
                let image = Arc::clone(&images.sides.target);
                layers = images.lower(moving.layers(), *depth).to_vec();
                layers.insert(0, Layer { path: plan.result.clone(), is_stated: true, image });
            }
            _ => {}
        }
        let mut pause = Duration::ZERO;
        if plan.mode == FoldMode::EmptyTop {
            let opening = self.ending.opening.clone().with_access(Access::Write).with_format(None);
            let top = open_layer(&self.ending.host, &plan.top, &opening)?;
            top.image.keep_bitmaps(Recorder::region_bytes(top.size()))?;
            layers.insert(0, top);
            // Writes that were under way end in the target: only after the first swap has it all, and can be read only. Until
            // that is durable, flushes cover it beside the head.
            pause = self.shown.disk.swap_keeping(Chain::of(layers.clone(), true), &images.sides.target).pause;
            layers.get_mut(1).into_iter().for_each(leave_alone);
        }
        self.report.mirrored_bytes = mirroring.leg()?.mirrored_bytes();
        let before = self.shown.in_use();
        self.report.pause = pause.max(self.shown.swap(Chain::of(layers, true)).pause);
        // Guests' flushes fail until this succeeds: nobody else can do anything about it.
        drop(self.shown.disk.settle_before());
        // Up to the swap guests' writes note their regions in it.
        let journal = noting.kept.lock().journal.take().ok_or_else(|| Error::invalid("the job is over"))?;
        if plan.mode.makes_new() {
            // It shows what the disk showed, and nobody relies on that: where it fails, it is as after a power cut.
            drop(images.let_top_go(&self.ending, plan.removed.contains(&plan.top)));
        }
        let last = Arc::clone(moving);
        // With it go the images that only the fold still held.
        self.stage = Stage::Ending(Box::new(journal));
        [Some(last), before].into_iter().flatten().for_each(wait_for_the_last);
        Ok(())
    }

    /// Goes on without the target, as if the job had not begun; the journal binds the target's epoch.
    pub fn retreat(&mut self) -> Result<()> {
        let Stage::Mirroring(mirroring) = &self.stage else {
            return if self.is_over() { Ok(()) } else { Err(gone_over()) };
        };
        if let Some(leg) = &mirroring.leg {
            leg.leave()?;
            // A late write would land in what another job has begun to write.
            leg.check_quiet()?;
        }
        let mut layers = mirroring.moving.layers().to_vec();
        if self.report.report.plan.mode.makes_new() {
            self.shown.disk.swap(Chain::of(layers, true));
            // Nothing needs either of them; where they stay, `--abandon` takes them away, or the next job does.
            if let (Some(draft), Some(journal)) =
                (&mirroring.images.draft, mirroring.noting.kept.lock().journal.take())
            {
                drop(self.ending.remove_file(draft).and_then(|()| self.ending.close(&journal)));
            }
            self.stage = Stage::Over;
            return Ok(());
        }
        // Writes that were under way end in the target; nothing passes its mirror after this.
        self.shown.swap(Chain::of_moving(layers.clone()));
        layers.get_mut(mirroring.depth).into_iter().for_each(leave_alone);
        self.stage = Stage::Over;
        self.shown.swap(Chain::of(layers, true));
        Ok(())
    }
}

/// Returns whether what an earlier life of the job on that head noted can be believed.
fn goes_on_from(journal: &Journal, head: &Layer, (size, pace): (u64, LivePace)) -> Result<bool> {
    let is_alike = is_live(journal) && journal.intent().region_bytes == pace.grain(size).region_bytes;
    // A new image of which nothing was made durable may not even be one.
    let is_begun = !journal.fold().mode.makes_new() || journal.position().mark > GuestOffset::new(0);
    Ok(is_alike && is_begun && Images::is_still_head(head, journal)?)
}

fn gone_over() -> Error {
    Error::invalid("guests do not write to both places any more")
}
