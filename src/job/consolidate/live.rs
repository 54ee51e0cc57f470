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
    again::set_access,
    ending::{Ending, refuse_foreign},
    folding::{Folding, Making},
    moving::Move,
    noting::{Noting, forget_before},
    over::Shown,
    plan::{self, NewImage, Plan, Request},
    run::{Report, resolve},
};
use crate::{
    base::{
        Error, ErrorKind, Result,
        clock::{self, Stopwatch},
    },
    chain::{Layer, Opening},
    format::Image,
    io::{Access, Host},
    job::{
        Progress, Recently,
        live::{Leg, LiveDisk, Throttle, mirror::Grain},
    },
    store::{Draft, FoldMode, Held, Intent, Journal, Ledger},
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// How much a consolidation of a disk in use does at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LivePace {
    /// What the copier takes in hand at once; a power of two. Writes to it wait.
    pub block_bytes: u64,
    /// Bytes between two marks, at least: what a crash makes copied again.
    pub mark_bytes: u64,
    /// Time between two marks, at least: guests write to the part that is done, whose places have to be noted first.
    pub mark_pause: Duration,
    /// The part of the target's time, above 0 and at most 1, that the copier keeps for itself while guests write; more
    /// than half only where a goal for their latency is set.
    pub share: f64,
    /// How long the target may take for something before it counts as failed.
    pub patience: Patience,
}

/// How long a target may take for something before the fold goes on without it, so that guests do not hang with it.
///
/// Other threads write the target then, which can be left behind: a write to both places takes tens of microseconds more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as it likes.
    Endless,
    /// So long, where the target is a device, or on another file system than the disk's head; else as long as it likes:
    /// what makes it hang would make the head hang as well.
    WhereApart(Duration),
    /// So long.
    Always(Duration),
}

impl Patience {
    /// Returns how long a target is waited for beside that head; `None` is for ever.
    pub(super) fn with(self, target: &dyn Image, head: &dyn Image) -> Result<Option<Duration>> {
        let patience = match self {
            Self::Endless => return Ok(None),
            Self::Always(patience) => return Ok(Some(patience)),
            Self::WhereApart(patience) => patience,
        };
        let home = head.files().iter().map(|file| file.witness()).collect::<Result<Vec<_>>>()?;
        for file in target.files() {
            let place = file.witness()?.file_system;
            if file.is_device() || home.iter().all(|own| own.file_system != place) {
                return Ok(Some(patience));
            }
        }
        Ok(None)
    }
}

impl LivePace {
    /// What a person wants.
    pub const USUAL: Self = Self {
        block_bytes: 1 << 20,
        mark_bytes: 256 << 20,
        mark_pause: Duration::from_secs(1),
        share: 0.5,
        patience: Patience::WhereApart(Duration::from_secs(30)),
    };

    /// How a disk of `size` bytes is cut.
    pub(super) fn grain(self, size: u64) -> Grain {
        let fewest = size.div_ceil(Intent::REGIONS_MAX).next_power_of_two();
        let region_bytes = (size / 256).next_power_of_two().max(fewest).max(self.block_bytes);
        Grain { block_bytes: self.block_bytes, region_bytes }
    }
}

/// How long guests are listened to before the copier changes its pace.
const WINDOW: Duration = Duration::from_millis(100);

/// After so long it does, however few requests there were.
const WINDOW_MAX: Duration = Duration::from_millis(500);

/// Being woken takes about as long where processors are busy.
const OWED_MIN: Duration = Duration::from_millis(2);

/// No pause is longer: whoever tells the job something waits for its end.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The copier's pace among guests, and what both felt since it was last told.
#[derive(Debug)]
pub(super) struct Pacing {
    pace: LivePace,
    throttle: Throttle,
    /// The part of the time that the copier takes, while a goal is set.
    part: f64,
    since: Stopwatch,
    moved: u64,
    /// Time that is left to guests once it is worth to sleep.
    owed: Duration,
}

impl Pacing {
    pub(super) fn new(pace: LivePace) -> Self {
        let since = Stopwatch::start();
        Self {
            pace,
            throttle: Throttle::new(pace.share),
            part: pace.share,
            since,
            moved: 0,
            owed: Duration::ZERO,
        }
    }

    /// Returns how long the copier lets guests go first, which has copied so many bytes in that time.
    pub(super) fn pause(
        &mut self,
        (bytes, own): (u64, Duration),
        leg: &Leg,
        progress: &Progress,
    ) -> Duration {
        let manners = progress.manners();
        let share = manners.share.unwrap_or(self.pace.share).clamp(0.01, 1.0);
        self.moved += bytes;
        self.listen(leg, progress, share);
        let is_ahead = leg.grant(part_of(bytes, (1.0 - share) / share), own);
        let rest = |fair: f64, part: f64| own.mul_f64((fair - part).max(0.0) / part).min(PAUSE_MAX);
        let guest = leg.take_guest_time();
        if manners.latency_target.is_some() {
            return rest(1.0, self.part.max(share));
        }
        if is_ahead {
            // Guests write little: giving way costs the copier little.
            std::thread::yield_now();
            if guest > own * 2 {
                // Not for want of requests, then: they are many, and small.
                self.owed += rest(1.0, share) / 2;
            }
        }
        if self.owed > OWED_MIN {
            return std::mem::take(&mut self.owed);
        }
        // Guests write to the target one at a time: the copier has half of it as it is.
        rest(0.5, share).min(guest)
    }

    /// Takes in what guests felt, now and then.
    fn listen(&mut self, leg: &Leg, progress: &Progress, share: f64) {
        let window = self.since.elapsed();
        if window < WINDOW {
            return;
        }
        let Some(felt) = leg.latencies().take(window >= WINDOW_MAX) else { return };
        let rate = u128::from(self.moved) * 1_000_000 / window.as_micros().max(1);
        progress.feel(Recently { felt, rate: u64::try_from(rate).unwrap_or(u64::MAX) });
        if let Some(goal) = progress.manners().latency_target {
            self.part = self.throttle.next(share, goal, felt);
        }
        (self.since, self.moved) = (Stopwatch::start(), 0);
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
    pub(super) shown: Shown,
    plan: Plan,
    depth: usize,
    held: Vec<Held>,
    /// The image in the making of a job that was cut off.
    draft: Option<PathBuf>,
    new: Option<NewImage>,
    moves: Option<Move>,
}

impl LiveConsolidation {
    /// Finds out what has to be done with a disk in use, whose layers were opened [`Opening::for_live_use`].
    ///
    /// Fails as [`super::Consolidation::prepare`].
    pub fn prepare(
        host: &Arc<dyn Host>,
        disk: &Arc<LiveDisk>,
        opening: &Opening,
        request: &Request,
    ) -> Result<Self> {
        let chain = disk.chain();
        let mut request = request.clone();
        if let Some(new) = &mut request.new {
            new.path = resolve(host.as_ref(), &new.path)?;
        }
        let journal = Journal::find(host, &chain.head()?.path)?;
        if let Some(journal) = &journal {
            let new = request.new.as_ref().map(|new| plan::folder_of(&new.path));
            refuse_foreign(host.as_ref(), journal, &opening.policy, &|folder| new == Some(folder))?;
        }
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        let ignores_unread = request.ignores_unread;
        let ending = Ending { host: Arc::clone(host), ledger, opening: opening.clone(), ignores_unread };
        let mut request = match &journal {
            Some(journal) => plan::request_of(host.as_ref(), journal, &chain, &request)?,
            None => request,
        };
        if let Some(new) = &mut request.new {
            new.path = resolve(host.as_ref(), &new.path)?;
        }
        let planned = plan::make(host, &chain, &request, journal.as_ref())?;
        let plan::Planned { plan, depth, held, .. } = planned;
        let draft = journal.and_then(|journal| Some(journal.place(journal.fold().draft.as_ref()?)));
        let draft = draft.map(|draft| resolve(host.as_ref(), &draft)).transpose()?;
        // Nobody but this job has named it: it can only be where the result is to be.
        let is_near = |draft: &PathBuf| plan::folder_of(draft) == plan::folder_of(&plan.result);
        let draft = draft.filter(is_near);
        let shown = Shown { disk: Arc::clone(disk), over: None };
        Ok(Self { ending, shown, plan, depth, held, draft, new: request.new, moves: request.moves })
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

    /// Takes the second leg on: from here on guests' writes reach both. Where that fails, the journal of an earlier life
    /// of the job says that nothing is done, since it does not know what guests write from here on.
    pub fn begin(self, pace: LivePace) -> Result<Folding> {
        if self.shown.disk.is_folding() {
            return Err(Error::busy("is being consolidated already").path(&self.plan.top));
        }
        let (host, top) = (Arc::clone(&self.ending.host), self.plan.top.clone());
        let region_bytes = pace.grain(self.plan.size).region_bytes;
        let noting = Noting::new(region_bytes, self.shown.written()?, self.ending.ledger.clone());
        self.try_to_begin(pace).or_else(|error| forget_before(&host, &top, &noting).and(Err(error)))
    }

    fn try_to_begin(self, pace: LivePace) -> Result<Folding> {
        let Self { ending, shown, plan, depth, held, draft, new, moves } = self;
        // Of a new image that is in the making, a part is there.
        let is_begun = new.is_some() && draft.is_some();
        let draft = draft.unwrap_or_else(|| match plan.mode {
            FoldMode::Move => Draft::name_from(&plan.result, &plan.top),
            _ => Draft::temporary_name(&plan.result),
        });
        if !is_begun && plan.need_bytes > plan.free_bytes {
            let what = format!("may need {} bytes; {} are free there", plan.need_bytes, plan.free_bytes);
            let place = plan.target.as_ref().unwrap_or(&plan.result);
            return Err(Error::new(ErrorKind::NoSpace, what).path(place));
        }
        let before = shown.disk.chain();
        let paths = plan::paths(before.layers());
        plan::check_again(ending.host.as_ref(), &paths, (depth, plan.mode), ending.ignores_unread)?;
        if new.is_none() {
            claim(before.layers().get(1..=depth).unwrap_or_default())?;
        }
        drop(before);
        Folding::begin(ending, shown, Making { plan, depth, held, draft, new, moves }, pace)
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

/// Returns so many times `bytes`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of what was just moved: neither negative nor exact"
)]
fn part_of(bytes: u64, times: f64) -> u64 {
    (bytes as f64 * times) as u64
}
