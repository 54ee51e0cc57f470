//! A consolidation under a disk in use: one pass, whatever its guests write.
//!
//! ```text
//!   begin: journal, epoch, mirror ─► copy: block by block, checkpoints ─► finish: ready, record, swap ─► files go
//!                                      └── guests write to both legs meanwhile ──┘
//! ```
//!
//! What stays true: guests see what they wrote, at every moment; until the record the old chain is authoritative, and
//! a crash leaves a journal that says which parts of the two legs may differ. When something fails before the record
//! the mirror is dropped, not before the journal says that nothing is done, and the chain goes on as it was.

use super::{
    ending::Ending,
    images::Images,
    plan::{self, Plan, Request, Verify},
    run::{Bound, Report, bind},
    work::Work,
};
use crate::{
    base::{
        Budget, Error, ErrorKind, GuestOffset, Result,
        clock::{self, Stopwatch},
    },
    chain::{Chain, Layer, Opening, View, open_layer},
    format::{self, Parts},
    io::{Access, File, Host},
    job::{
        Progress,
        live::{
            Advance, Buffers, Leg, LiveDisk, Notes,
            mirror::{Grain, Mirror, Noted, left},
        },
    },
    map::RangeSet,
    store::{FoldMode, Held, Intent, Journal, Ledger, Position},
};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

/// No work list has this digest: that of a disk in use is found anew by whoever goes on.
const LIVE: [u8; 32] = [0; 32];

/// How long the requests that still use the old chain may take after the swap.
const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes after which the host begins to write the target back, so that a mark waits for little.
const WRITE_BACK_BYTES: u64 = 16 << 20;

/// What is done beside the copier.
enum Due {
    WriteBack,
    Mark,
}

/// How much a consolidation of a disk in use does at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LivePace {
    /// What the copier takes in hand at once; a power of two. Writes to it wait.
    pub block_bytes: u64,
    /// Bytes between two marks: what a crash makes copied again, at most.
    pub mark_bytes: u64,
    /// The part of the time, above 0 and at most 1, that the copier keeps for itself while guests write.
    pub share: f64,
}

impl LivePace {
    /// What a person wants.
    pub const USUAL: Self = Self { block_bytes: 1 << 20, mark_bytes: 256 << 20, share: 0.5 };

    /// How a disk of `size` bytes is cut.
    fn grain(self, size: u64) -> Grain {
        let fewest = size.div_ceil(Intent::REGIONS_MAX).next_power_of_two();
        let region_bytes = (size / 256).next_power_of_two().max(fewest).max(self.block_bytes);
        Grain { block_bytes: self.block_bytes, region_bytes }
    }

    /// Returns how long the copier lets guests go first, who wrote for `guest` while it copied for `own`.
    fn pause(self, own: Duration, guest: Duration) -> Duration {
        let share = self.share.clamp(0.01, 1.0);
        own.mul_f64((1.0 - share) / share).min(guest)
    }
}

/// What a consolidation of a disk in use did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LiveReport {
    /// The same as offline.
    #[serde(flatten)]
    pub report: Report,
    /// Bytes that guests wrote to both places meanwhile.
    pub mirrored_bytes: u64,
    /// How long guests were held back, at most, when the disk went over to the result.
    #[serde(serialize_with = "clock::serialize_seconds")]
    pub pause: Duration,
}

/// A consolidation of a disk in use that is planned: nothing is written yet.
#[derive(Debug)]
pub struct LiveConsolidation {
    ending: Ending,
    disk: Arc<LiveDisk>,
    plan: Plan,
    depth: usize,
    held: Vec<Held>,
    /// The image in the making of a job that was cut off.
    draft: Option<PathBuf>,
}

/// The journal of a job, which its leg writes, too.
#[derive(Clone, Debug)]
struct Noting {
    kept: Arc<Mutex<Kept>>,
    region_bytes: u64,
}

#[derive(Debug, Default)]
struct Kept {
    journal: Option<Journal>,
    /// Whether the target misses writes: what the journal says then is not said again.
    is_given_up: bool,
    /// Whether the record may have landed: the target is the disk from there on.
    is_recorded: bool,
}

impl Kept {
    /// Returns the journal of a job that still goes on.
    fn going_on(&mut self) -> Result<&mut Journal> {
        if self.is_given_up {
            return Err(Error::new(ErrorKind::Interrupted, "went on without the target"));
        }
        self.journal.as_mut().ok_or_else(|| Error::invalid("the job is over"))
    }
}

impl Noting {
    fn intent(&self, regions: Vec<u64>) -> Intent {
        Intent { region_bytes: self.region_bytes, regions }
    }
}

impl Notes for Noting {
    fn note(&mut self, said: &Noted) -> Result<()> {
        let intent = self.intent(said.regions.clone());
        let mut kept = self.kept.lock();
        let journal = kept.going_on()?;
        let position = Position { mark: said.mark, is_ready: journal.position().is_ready };
        journal.note_with(position, intent)
    }

    fn give_up(&mut self) -> Result<()> {
        let intent = self.intent(Vec::new());
        let mut kept = self.kept.lock();
        if kept.is_recorded {
            return Err(Error::invalid("the target is the disk by now"));
        }
        kept.going_on()?.note_with(Position { mark: GuestOffset::new(0), is_ready: false }, intent)?;
        kept.is_given_up = true;
        Ok(())
    }
}

/// The files of an image that is open, and its budget, for opening it again in another way.
struct Again(Vec<Arc<dyn File>>, Budget);

impl Parts for Again {
    fn open_part(&self, _name: &[u8]) -> Result<Arc<dyn File>> {
        let part = self.0.get(1).cloned();
        part.ok_or_else(|| Error::invalid("names a further file, and has none open"))
    }

    fn budget(&self) -> Budget {
        self.1.clone()
    }
}

fn set_access(layer: &Layer, access: Access) -> Result<()> {
    layer.image.files().iter().try_for_each(|file| file.set_access(access))
}

/// Returns the layer with its image opened again on the same files.
fn again(layer: &Layer, is_writable: bool) -> Result<Layer> {
    let files = layer.image.files();
    let file = files.first().cloned().ok_or_else(|| Error::invalid("has no file").path(&layer.path))?;
    let image = format::open(layer.format(), file, is_writable, &Again(files, layer.image.budget().clone()))?;
    Ok(Layer { image, ..layer.clone() })
}

/// Goes back to reading a layer that was written. One that cannot make durable what it knows stays as it is.
fn leave_alone(layer: &mut Layer) -> Result<()> {
    if layer.image.flush().is_ok() {
        *layer = again(layer, false)?;
        set_access(layer, Access::ReadToWrite)?;
    }
    Ok(())
}

impl LiveConsolidation {
    /// Finds out what has to be done with a disk in use, whose layers were opened [`Opening::for_live_use`].
    ///
    /// Fails as [`super::Consolidation::prepare`]; `Unsupported` for a new image as the target.
    pub fn prepare(
        host: &Arc<dyn Host>,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        request: &Request,
    ) -> Result<Self> {
        let chain = disk.chain();
        if request.new.is_some() {
            let what = "a disk in use is folded into one of its own layers only";
            return Err(Error::unsupported(what).path(&chain.head()?.path));
        }
        let journal = Journal::find(host, &chain.head()?.path)?;
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        let ignores_unread = request.ignores_unread;
        let ending = Ending { host: Arc::clone(host), ledger, opening: opening.clone(), ignores_unread };
        let request = match &journal {
            Some(journal) => plan::request_of(host.as_ref(), journal, &chain, request)?,
            None => request.clone(),
        };
        let planned = plan::make(host, &chain, &request, journal.as_ref())?;
        let plan::Planned { plan, depth, held, .. } = planned;
        let draft = journal.and_then(|journal| Some(journal.place(journal.fold().draft.as_ref()?)));
        Ok(Self { ending, disk: Arc::clone(disk), plan, depth, held, draft })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Stopped (`Interrupted`) or failed, the disk goes on as it was, and the journal says that nothing is
    /// done; [`LiveConsolidation::prepare`] starts over from there.
    pub fn run(self, pace: LivePace, progress: &Progress) -> Result<LiveReport> {
        let mut folding = self.begin(pace)?;
        let copied = folding.copy(progress);
        folding.finish(copied, progress)
    }

    /// Takes the second leg on: from here on guests' writes reach both.
    pub fn begin(self, pace: LivePace) -> Result<Folding> {
        let Self { ending, disk, plan, depth, held, draft } = self;
        let draft = draft.unwrap_or_else(|| plan::draft_name(&plan.top));
        if plan.need_bytes > plan.free_bytes {
            let what = format!("may need {} bytes; {} are free there", plan.need_bytes, plan.free_bytes);
            let place = plan.target.as_ref().unwrap_or(&plan.result);
            return Err(Error::new(ErrorKind::NoSpace, what).path(place));
        }
        let before = disk.chain();
        if disk.is_folding() {
            return Err(Error::busy("is being consolidated already").path(&plan.top));
        }
        plan::check_again(&ending.host, &before, (depth, plan.mode), ending.ignores_unread)?;
        claim(before.layers().get(1..=depth).unwrap_or_default())?;
        let mut folding = Folding::open(ending, disk, (plan, depth, held, draft), &before, pace)?;
        match folding.bind() {
            Ok(()) => Ok(folding),
            Err(error) => {
                folding.retreat()?;
                Err(error)
            }
        }
    }
}

/// Makes sure that nobody else uses the layers that go or change; the last of them, the target, is to be written.
fn claim(layers: &[Layer]) -> Result<()> {
    let (Some(target), run) = layers.split_last().map_or((None, layers), |(t, run)| (Some(t), run)) else {
        return Ok(());
    };
    for layer in run {
        set_access(layer, Access::Write)?;
        set_access(layer, Access::ReadToWrite)?;
    }
    set_access(target, Access::Write)
}

/// A consolidation of a disk in use, under way: for those who choose the moment of each step.
#[derive(Debug)]
pub struct Folding {
    ending: Ending,
    disk: Arc<LiveDisk>,
    report: LiveReport,
    depth: usize,
    held: Vec<Held>,
    pace: LivePace,
    images: Images,
    /// The chain while the target is written.
    moving: Arc<Chain>,
    noting: Noting,
    list: RangeSet,
    leg: Option<Arc<Leg>>,
    /// Where the copier goes on.
    at: GuestOffset,
    buffers: Buffers,
}

impl Folding {
    fn open(
        ending: Ending,
        disk: Arc<LiveDisk>,
        (plan, depth, held, draft): (Plan, usize, Vec<Held>, PathBuf),
        before: &Chain,
        pace: LivePace,
    ) -> Result<Self> {
        let mut layers = before.layers().to_vec();
        if let Some(target) = layers.get_mut(depth) {
            *target = again(target, true)?;
        }
        let draft = (plan.mode == FoldMode::EmptyTop).then_some(draft);
        let images = Images::live(&layers, depth, &plan, draft)?;
        disk.swap(Chain::of_moving(layers));
        let region_bytes = pace.grain(plan.size).region_bytes;
        let noting = Noting { kept: Arc::default(), region_bytes };
        let report = Report::new(plan);
        Ok(Self {
            moving: disk.chain(),
            ending,
            disk,
            report: LiveReport { report, mirrored_bytes: 0, pause: Duration::ZERO },
            depth,
            held,
            pace,
            images,
            noting,
            list: RangeSet::new(),
            leg: None,
            at: GuestOffset::new(0),
            buffers: Buffers::default(),
        })
    }

    /// Returns what is done.
    pub const fn plan(&self) -> &Plan {
        &self.report.report.plan
    }

    /// Writes the journal, makes the target ready, and starts to mirror.
    fn bind(&mut self) -> Result<()> {
        let stands = Journal::resume(&self.ending.host, &self.plan().top)?;
        let grain = self.pace.grain(self.plan().size);
        // What guests wrote since the disk was opened did not reach the target.
        let goes_on = |journal: &Journal| {
            Ok::<_, Error>(
                journal.fold().list_digest == LIVE
                    && journal.intent().region_bytes == grain.region_bytes
                    && !self.disk.is_changed()
                    && self.images.is_still_head(journal)?,
            )
        };
        let noted = match &stands {
            Some(journal) if goes_on(journal)? => {
                Noted { mark: journal.position().mark, regions: journal.intent().regions.clone() }
            }
            _ => Noted::default(),
        };
        let journal = match stands {
            Some(journal) if noted != Noted::default() => journal,
            stands => self.new_journal(stands)?,
        };
        self.images.renew(&self.ending, &journal)?;
        self.noting.kept.lock().journal = Some(journal);
        self.images.grow()?;
        let mirror = Mirror::new(self.plan().size, grain, &noted);
        let lower = self.moving.layers().get(self.depth + 1..).unwrap_or_default();
        let target = Arc::clone(&self.images.sides.target);
        let below = View::new(lower);
        let leg = Arc::new(Leg::new(target, below, mirror, Box::new(self.noting.clone())));
        self.leg = Some(Arc::clone(&leg));
        self.disk.take_leg(&leg);
        let decided = Work::find(&self.images.sides.run, self.plan().size)?.list;
        self.list = left(&decided, &noted, grain, self.plan().size);
        leg.survey(&self.list);
        Ok(())
    }

    fn new_journal(&self, stands: Option<Journal>) -> Result<Journal> {
        let head_epoch = self.images.mark_live_head(&self.ending)?;
        let plan = self.plan();
        let (list_bytes, bitmaps) = (plan.copy_bytes + plan.zero_bytes, self.held.clone());
        let bound = Bound { head_epoch, list_digest: LIVE, list_bytes, view_id: None, bitmaps };
        bind(&self.ending, (plan, &self.images), stands, bound)
    }

    fn leg(&self) -> Result<&Arc<Leg>> {
        self.leg.as_ref().ok_or_else(|| Error::invalid("the job has no second leg"))
    }

    /// Brings everything that is listed to the target, and makes it durable: flushes go on beside the copier. Stopped
    /// (`Interrupted`), [`Folding::checkpoint`] lets a later life of the job go on from here.
    pub fn copy(&mut self, progress: &Progress) -> Result<()> {
        let (leg, moving) = (Arc::clone(self.leg()?), Arc::clone(&self.moving));
        progress.begin("copy", self.list.bytes());
        let (ask, asked) = crossbeam_channel::bounded(1);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| {
                asked.into_iter().try_for_each(|due| match due {
                    Due::WriteBack => {
                        leg.begin_flush();
                        Ok(())
                    }
                    Due::Mark => leg.checkpoint(&moving),
                })
            });
            let copied = self.copy_all(&leg, &ask, progress);
            drop(ask);
            let marked = flusher.join().unwrap_or_else(|_| Err(Error::invalid("a checkpoint failed")));
            copied.and(marked)
        })?;
        self.checkpoint()
    }

    fn copy_all(&mut self, leg: &Leg, ask: &Sender<Due>, progress: &Progress) -> Result<()> {
        let (mut unwritten, mut unmarked) = (0, 0);
        loop {
            progress.checkpoint()?;
            leg.take_guest_time();
            let watch = Stopwatch::start();
            let Some(bytes) = self.step()? else { return Ok(()) };
            let own = watch.elapsed();
            progress.moved(bytes);
            (unwritten, unmarked) = (unwritten + bytes, unmarked + bytes);
            // One that is under way is not waited for: it is asked again after the next block.
            if unmarked >= self.pace.mark_bytes && ask.try_send(Due::Mark).is_ok() {
                (unwritten, unmarked) = (0, 0);
            }
            if unwritten >= WRITE_BACK_BYTES && ask.try_send(Due::WriteBack).is_ok() {
                unwritten = 0;
            }
            if !progress.is_late() {
                std::thread::sleep(self.pace.pause(own, leg.take_guest_time()));
            }
        }
    }

    /// Brings one block to the target; returns how many bytes that were, or `None` once all have landed.
    pub fn step(&mut self) -> Result<Option<u64>> {
        let leg = Arc::clone(self.leg()?);
        leg.check()?;
        let Advance::Moved { copied_bytes, zeroed_bytes, next } =
            leg.advance(&self.moving, self.at, &mut self.buffers)?
        else {
            return Ok(None);
        };
        self.at = next;
        self.report.report.copied_bytes += copied_bytes;
        self.report.report.zeroed_bytes += zeroed_bytes;
        Ok(Some(copied_bytes + zeroed_bytes))
    }

    /// Does what follows [`Folding::copy`], which said `copied`: the disk goes over to the result, or back.
    pub fn finish(mut self, copied: Result<()>, progress: &Progress) -> Result<LiveReport> {
        match copied.and_then(|()| self.record(progress)) {
            Err(error) if !self.has_landed()? => {
                self.retreat()?;
                Err(error)
            }
            _ => self.end(),
        }
    }

    /// Makes what has landed durable, and notes it.
    pub fn checkpoint(&self) -> Result<()> {
        self.leg()?.checkpoint(&self.moving)
    }

    /// Returns whether the disk's name opens the result by now, durably or not.
    pub fn has_landed(&self) -> Result<bool> {
        match &self.noting.kept.lock().journal {
            Some(journal) => Ending::has_begun(self.ending.host.as_ref(), journal),
            None => Ok(false),
        }
    }

    /// Makes the disk's name open the result, while guests' writes go on to both. Everything has landed and a
    /// checkpoint has followed.
    pub fn record(&mut self, progress: &Progress) -> Result<()> {
        progress.begin("finish", 0);
        if !self.leg()?.close() {
            let what = "a write of a guest failed after its place had been copied: to be copied again";
            return Err(Error::busy(what).path(&self.plan().top));
        }
        self.images.cut()?;
        let held = std::mem::take(&mut self.held);
        let unheld = {
            let mut kept = self.noting.kept.lock();
            self.images.prepare_record(&self.ending, kept.going_on()?, (&self.list, &held))?
        };
        self.report.report.plan.lose_bitmaps(&unheld);
        if self.plan().verify != Verify::Nothing {
            self.report.report.verified = Some(Verify::Tree);
        }
        let mark = GuestOffset::new(self.plan().size);
        let mut kept = self.noting.kept.lock();
        let intent = kept.going_on()?.intent().clone();
        kept.going_on()?.note_with(Position { mark, is_ready: true }, intent)?;
        kept.is_recorded = true;
        let journal = kept.going_on()?;
        let recorded = self.images.record(&self.ending, journal);
        if recorded.is_err() {
            kept.is_recorded = Ending::has_begun(self.ending.host.as_ref(), kept.going_on()?)?;
        }
        recorded?;
        // Durable while guests still write to both: what they write later must not be the old head's after a cut.
        let journal = kept.going_on()?;
        for place in [journal.place(&journal.fold().result), self.images.target.clone()] {
            self.ending.host.sync_folder(plan::folder_of(&place))?;
        }
        Ok(())
    }

    /// The record has landed: guests go over to the result, and what was folded goes.
    pub fn end(self) -> Result<LiveReport> {
        let Self { ending, disk, mut report, depth, images, moving, noting, leg, .. } = self;
        let mut layers = moving.layers().get(depth..).unwrap_or_default().to_vec();
        let plan = &report.report.plan;
        if let Some(target) = layers.first_mut()
            && plan.mode == FoldMode::TopName
        {
            target.path.clone_from(&plan.top);
        }
        if plan.mode == FoldMode::EmptyTop {
            let opening = ending.opening.clone().with_access(Access::Write).with_format(None);
            let target = Arc::clone(&images.sides.target);
            layers.insert(0, open_layer(&ending.host, &plan.top, &opening)?);
            // Writes that were under way end in the target: only after the first swap has it all, and can be read only.
            report.pause = disk.swap_keeping(Chain::of(layers.clone(), true), &target).pause;
            layers.get_mut(1).map_or(Ok(()), leave_alone)?;
        }
        report.pause = report.pause.max(disk.swap(Chain::of(layers, true)).pause);
        disk.forget_before();
        report.mirrored_bytes = leg.as_ref().map_or(0, |leg| leg.mirrored_bytes());
        let gone = Arc::downgrade(&moving);
        drop((images, moving, leg));
        wait_for_the_last(&gone);
        let journal = noting.kept.lock().journal.take().ok_or_else(|| Error::invalid("the job is over"))?;
        let chain = disk.chain();
        ending.settle(&journal, Some(chain.head()?))?;
        for number in 0..journal.fold().removed.len() {
            report.report.left_alone.extend(ending.remove(&journal, number)?);
        }
        ending.close(journal)?;
        Ok(report)
    }

    /// Goes on without the target, as if the job had not begun; the journal binds the target's epoch.
    pub fn retreat(self) -> Result<()> {
        let Self { ending: _, disk, depth, images, moving, leg, .. } = self;
        if let Some(leg) = &leg {
            leg.leave()?;
        }
        let mut layers = moving.layers().to_vec();
        // Writes that were under way end in the target; nothing passes its mirror after this.
        disk.swap(Chain::of_moving(layers.clone()));
        layers.get_mut(depth).map_or(Ok(()), leave_alone)?;
        drop(images);
        disk.swap(Chain::of(layers, true));
        Ok(())
    }
}

/// Waits for the requests that began before the swap, as long as that is worth it.
fn wait_for_the_last(chain: &Weak<Chain>) {
    let watch = Stopwatch::start();
    while chain.strong_count() > 0 && watch.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}
