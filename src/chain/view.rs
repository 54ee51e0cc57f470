//! What is read at one layer and below it: the merged map of those layers, and reads through it.
//!
//! The map is kept in pages, built when first asked for and dropped, least recently used first, when together they
//! pass what the [`Budget`] has for them. How much a page describes depends on the layers' units, so that its runs
//! have a bound; so have those of layers that are being merged, whatever they hold. None of the layers is written
//! while a view on them is used, so that a page stays true.

use super::Layer;
use crate::{
    base::{
        Budget, Error, Guard, GuestOffset, GuestRange, Result,
        budget::{Held, Part},
        units::{count, index},
    },
    format::{Below, Image, Nothing},
    map::{self, Extent, State},
};
use parking_lot::Mutex;
use std::{collections::HashMap, fmt, sync::Arc};

/// Guest bytes that one page of the map describes at most: what one L2 table of a default qcow2 image covers.
const PAGE_BYTES_MAX: u64 = 512 << 20;

/// Units that one page of the map describes at most: so many runs it can have.
const PAGE_UNITS_MAX: u64 = 1 << 16;

/// What a run of one layer takes while maps are merged: it is found, and it is laid over others.
const MERGED_BYTES: u64 = 3 * size_of::<Run>() as u64;

/// Layers that are asked first: few enough that one that hides all below it saves reading those.
const ASKED_FIRST: usize = 8;

/// The most layers that are asked at once after that, if their maps are within the budget.
const ASKED_AT_ONCE: usize = 64;

/// A layer's map of this many pages is read sooner than another thread is woken.
const FEW_PAGES: u64 = 8;

/// A run of guest bytes, and the layer that decides what is read there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which bytes.
    pub range: GuestRange,
    /// What that layer says; never absent: where no layer says anything it is zero.
    pub state: State,
    /// Which layer, counted from the view's top; `None` where no layer says anything. Beyond the end of a short
    /// layer it is that layer which makes the zeros: it hides what is below.
    pub layer: Option<usize>,
}

impl Run {
    /// Returns whether the run is known to read as zeros.
    pub const fn is_zero(&self) -> bool {
        self.state.is_zero()
    }

    /// Returns the part of the run inside `range` (which may be empty).
    #[must_use]
    pub fn clip(self, range: GuestRange) -> Self {
        let part = Extent::new(self.range, self.state).clip(range);
        Self { range: part.range, state: part.state, layer: self.layer }
    }

    fn joins(&self, next: &Self) -> bool {
        self.layer == next.layer
            && Extent::new(self.range, self.state).joins(&Extent::new(next.range, next.state))
    }
}

/// What is read at one layer and below it.
pub struct View {
    images: Vec<Arc<dyn Image>>,
    budget: Budget,
    /// The smallest unit of a layer.
    unit: u64,
    /// Guest bytes that a page describes.
    page_bytes: u64,
    /// The most runs of one layer that are merged in one go, or those of a page.
    runs_max: usize,
    /// The most layers that are asked in one go.
    asked_max: usize,
    /// The most guest bytes that are looked at in one go.
    window_max: u64,
    pages: Mutex<Pages>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("images", &self.images).finish_non_exhaustive()
    }
}

/// The runs of one page, in order, covering it.
struct Page {
    runs: Vec<Run>,
    /// Where each run starts in the page. A search among these few bytes stays in the processor's cache; among
    /// the runs themselves each step of it would be a miss.
    starts: Vec<u32>,
    start: GuestOffset,
    _held: Held,
}

impl Page {
    fn new(start: GuestOffset, mut runs: Vec<Run>, budget: &Budget) -> Self {
        runs.shrink_to_fit();
        let place = |run: &Run| u32::try_from(run.range.start.since(start)).unwrap_or(u32::MAX);
        let starts = runs.iter().map(place).collect();
        let memory = page_memory(runs.len());
        Self { runs, starts, start, _held: budget.hold(Part::Views, memory) }
    }

    /// Returns the runs from the one that holds `at` on.
    fn from(&self, at: GuestOffset) -> impl Iterator<Item = &Run> {
        let place = at.since(self.start);
        let next = self.starts.partition_point(|start| u64::from(*start) <= place);
        self.runs.iter().skip(next.saturating_sub(1))
    }
}

/// Returns the bytes that a page of so many runs takes.
const fn page_memory(runs: usize) -> u64 {
    (runs * (size_of::<Run>() + size_of::<u32>()) + 256) as u64
}

/// Pages by number, with the moment each was last used.
#[derive(Default)]
struct Pages {
    held: HashMap<u64, (Arc<Page>, u64)>,
    moment: u64,
}

impl Pages {
    fn get(&mut self, number: u64) -> Option<Arc<Page>> {
        self.moment += 1;
        let (page, used) = self.held.get_mut(&number)?;
        *used = self.moment;
        Some(Arc::clone(page))
    }

    fn put(&mut self, number: u64, page: &Arc<Page>, budget: &Budget) {
        while !budget.has_room(Part::Views, 0) {
            let Some(oldest) = self.held.iter().min_by_key(|(_, (_, used))| *used).map(|(n, _)| *n) else {
                break;
            };
            self.held.remove(&oldest);
        }
        self.moment += 1;
        self.held.insert(number, (Arc::clone(page), self.moment));
    }
}

impl View {
    /// Looks at `layers`, the topmost first.
    pub fn new(layers: &[Layer]) -> Self {
        let images: Vec<_> = layers.iter().map(|l| Arc::clone(&l.image)).collect();
        let budget = images.first().map(|image| image.budget().clone()).unwrap_or_default();
        // Raw images have no unit of their own.
        let units = images.iter().map(|image| image.unit()).filter(|unit| *unit > 1);
        let unit = units.min().unwrap_or(64 << 10).min(PAGE_BYTES_MAX);
        let merged = budget.merged_bytes() / MERGED_BYTES;
        let units = 1 << (merged / 4).clamp(1, PAGE_UNITS_MAX).ilog2();
        let page_bytes = (unit * units).min(PAGE_BYTES_MAX);
        let runs_max = index(page_bytes / unit);
        let asked_max = (index(merged) / runs_max).clamp(1, ASKED_AT_ONCE);
        let window_max = (unit << 20).clamp(page_bytes, 128 * PAGE_BYTES_MAX);
        Self { images, budget, unit, page_bytes, runs_max, asked_max, window_max, pages: Mutex::default() }
    }

    /// Returns what the memory for the map is taken from.
    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Returns the size of the topmost layer in bytes, 0 if there is none.
    pub fn size(&self) -> u64 {
        self.images.first().map_or(0, |image| image.size())
    }

    /// Returns the layers' images, the topmost first.
    pub fn images(&self) -> &[Arc<dyn Image>] {
        &self.images
    }

    /// Appends the merged map of `range`, in order, covering it; past the end it is zero and nobody's.
    pub fn runs(&self, range: GuestRange, out: &mut Vec<Run>) -> Result<()> {
        self.first_runs(range, usize::MAX, out)
    }

    /// The same until `most` runs are there, and at the end of a step.
    pub(super) fn first_runs(&self, range: GuestRange, most: usize, out: &mut Vec<Run>) -> Result<()> {
        let (mut at, mut window) = (range.start, self.page_bytes);
        while at < range.end() && out.len() < most {
            let piece = GuestRange::between(at, range.end().min(at.floor(self.page_bytes).plus(window)));
            let known = if window == self.page_bytes {
                let page = self.page(at)?;
                let inside = page.from(at).take_while(|run| run.range.start < piece.end());
                inside.for_each(|run| push(out, run.clip(piece)));
                at = piece.end();
                page.runs.len()
            } else {
                let merged = self.merge(piece)?;
                for run in &merged {
                    push(out, *run);
                }
                at = merged.last().map_or(piece.end(), |run| run.range.end());
                merged.len()
            };
            // Where nearly nothing is, the steps grow: an empty disk of any size takes few.
            window = if known < 64 { (window * 4).min(self.window_max) } else { self.page_bytes };
        }
        Ok(())
    }

    /// The same with `head` over this view's layers, which count from 1 on then. What the head says is not kept.
    pub(super) fn runs_under(
        &self,
        head: &dyn Image,
        range: GuestRange,
        most: usize,
        out: &mut Vec<Run>,
    ) -> Result<()> {
        // What a head without a unit says is as fine as a host's blocks.
        let unit = Some(head.unit()).filter(|unit| *unit > 1).unwrap_or(4096);
        for piece in range.pieces(self.page_bytes.min(unit * PAGE_UNITS_MAX)) {
            if out.len() >= most {
                break;
            }
            let (mut extents, mut below) = (Vec::new(), Vec::new());
            describe(head, piece, &mut extents).map_err(|e| e.doing("reading the map"))?;
            check_cover(head, piece, &extents)?;
            self.runs(piece, &mut below)?;
            let lower = |run: Run| Run { layer: run.layer.map(|layer| layer + 1), ..run };
            let own = extents.into_iter().filter(|extent| extent.state.is_present());
            let own = own.map(|extent| Run { range: extent.range, state: extent.state, layer: Some(0) });
            for run in over(own.collect(), below.into_iter().map(lower).collect()) {
                push(out, run);
            }
        }
        Ok(())
    }

    /// Appends what the topmost layer itself says about `range` (within the size), in order, covering it.
    pub fn own_map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.images.first().map_or(Ok(()), |own| {
            describe(own.as_ref(), range, out)?;
            check_cover(own.as_ref(), range, out)
        })
    }

    /// Fills `buf` from `at`; zeros past the end.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{base::GuestOffset, chain::{Chain, Opening}};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let base = folder.path().join("base.qcow2");
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let view = Chain::open(&host, &base, &Opening::reading())?.view(0);
    /// let mut sector = [9; 512];
    /// view.read(GuestOffset::new(4096), &mut sector)?;
    /// assert_eq!(sector, [0; 512]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        let mut at = at;
        while !rest.is_empty() {
            let page = self.page(at)?;
            for run in page.from(at) {
                if rest.is_empty() {
                    break;
                }
                let run = run.clip(at.range(rest.len() as u64));
                let (part, after) = std::mem::take(&mut rest).split_at_mut(index(run.range.bytes));
                self.read_run(&run, part)?;
                (rest, at) = (after, run.range.end());
            }
        }
        Ok(())
    }

    /// Fills `buf` with what a run of this view (or its start) holds.
    pub fn read_run(&self, run: &Run, buf: &mut [u8]) -> Result<()> {
        let Some(image) = run.layer.and_then(|l| self.images.get(l)) else {
            buf.fill(0);
            return Ok(());
        };
        match run.state {
            State::Absent | State::Zero { .. } => buf.fill(0),
            State::Data { host } => image.data_file().read_at(host, buf)?,
            State::Packed => image.read(run.range.start, buf, &Nothing)?,
        }
        Ok(())
    }

    /// Returns the page that describes `at`, building it if it is not held.
    fn page(&self, at: GuestOffset) -> Result<Arc<Page>> {
        let number = at.bytes() / self.page_bytes;
        if let Some(page) = self.pages.lock().get(number) {
            return Ok(page);
        }
        let whole = GuestOffset::new(number * self.page_bytes).range(self.page_bytes);
        let page = Arc::new(Page::new(whole.start, self.merge(whole)?, &self.budget));
        self.pages.lock().put(number, &page, &self.budget);
        Ok(page)
    }

    /// Asks the layers from the top down, some at a time, about what those above them left open. Returns the map of
    /// the range, or of its start as far as the layers' maps fit: whole pages.
    fn merge(&self, mut range: GuestRange) -> Result<Vec<Run>> {
        let (mut seen, mut rest) = (Vec::new(), self.images.as_slice());
        let mut at_once = ASKED_FIRST.min(self.asked_max);
        while let Some(asked) = still_open(&seen, range).filter(|_| !rest.is_empty()) {
            let (batch, below) = rest.split_at(at_once.min(rest.len()));
            let (found, end) = self.describe_all(batch, self.images.len() - rest.len(), asked)?;
            if end < asked.end() {
                range = GuestRange::between(range.start, end);
            }
            seen = over(seen, found);
            (rest, at_once) = (below, self.asked_max);
        }
        let seen = over(seen, vec![Run { range, state: State::Zero { host: None }, layer: None }]);
        Ok(up_to(seen, range.end()))
    }

    /// Returns what is seen of `range`, or of its start, in `images`, of which the topmost is layer `first`, and how far
    /// they were asked: the caller's thread takes its share of them and the other cores theirs.
    fn describe_all(
        &self,
        images: &[Arc<dyn Image>],
        first: usize,
        range: GuestRange,
    ) -> Result<(Vec<Run>, GuestOffset)> {
        let pages = count(images.len()) * range.bytes.div_ceil(self.page_bytes);
        let shares = if pages > FEW_PAGES { rayon::current_num_threads() } else { 1 };
        let share = images.len().div_ceil(shares).max(1);
        let (own, others) = images.split_at(share.min(images.len()));
        let mut found: Vec<_> = others.chunks(share).map(|_| Ok((Vec::new(), range.end()))).collect();
        let own = rayon::in_place_scope(|scope| {
            for ((part, slot), nth) in others.chunks(share).zip(&mut found).zip(1..) {
                scope.spawn(move |_| *slot = self.describe_each(part, first + nth * share, range));
            }
            self.describe_each(own, first, range)
        });
        let all: Vec<_> = std::iter::once(own).chain(found).collect::<Result<_>>()?;
        let end = all.iter().map(|(_, end)| *end).min().unwrap_or(range.end());
        let lists = all.into_iter().map(|(runs, _)| up_to(runs, end)).collect();
        Ok((flatten(lists), end))
    }

    /// The same, in turn.
    fn describe_each(
        &self,
        images: &[Arc<dyn Image>],
        first: usize,
        range: GuestRange,
    ) -> Result<(Vec<Run>, GuestOffset)> {
        let (mut lists, mut extents, mut end) = (Vec::new(), Vec::new(), range.end());
        let mut canvas = (range.bytes <= self.page_bytes).then(|| Canvas::new(range, self.unit));
        for (image, layer) in images.iter().zip(first..) {
            extents.clear();
            let told =
                self.describe_start(image.as_ref(), GuestRange::between(range.start, end), &mut extents);
            end = told.map_err(|e| e.doing("reading the map"))?;
            let present = extents.iter().filter(|extent| extent.state.is_present());
            let runs = present.map(|e| Run { range: e.range, state: e.state, layer: Some(layer) });
            match &mut canvas {
                Some(canvas) if extents.iter().all(|extent| canvas.fits(extent.range)) => {
                    runs.for_each(|run| canvas.paint(run));
                }
                _ => {
                    lists.extend(canvas.as_mut().map(Canvas::take));
                    lists.push(runs.collect());
                }
            }
        }
        lists.extend(canvas.as_mut().map(Canvas::take));
        let lists = lists.into_iter().map(|runs| up_to(runs, end)).collect();
        Ok((flatten(lists), end))
    }

    /// Fills `extents`, which is empty, with what an image says about `range`, page by page until its runs are too many;
    /// returns how far it was asked.
    fn describe_start(
        &self,
        image: &dyn Image,
        range: GuestRange,
        extents: &mut Vec<Extent>,
    ) -> Result<GuestOffset> {
        let mut at = range.start;
        while at < range.end() && extents.len() < self.runs_max {
            let end = at.floor(self.page_bytes).plus(self.page_bytes).min(range.end());
            describe(image, GuestRange::between(at, end), extents)?;
            at = end;
        }
        check_cover(image, GuestRange::between(range.start, at), extents)?;
        Ok(at)
    }
}

/// What layers say of each unit of a range. They are painted from the top down, and what is painted stays: a layer
/// costs no more than what it says itself, however many lie above it.
struct Canvas {
    range: GuestRange,
    unit: u64,
    runs: Vec<Run>,
    /// For each unit which run is seen there, counted from 1; 0 for none.
    cells: Vec<u32>,
}

impl Canvas {
    fn new(range: GuestRange, unit: u64) -> Self {
        let cells = vec![0; index(range.bytes.div_ceil(unit))];
        Self { range, unit, runs: Vec::new(), cells }
    }

    /// Returns whether a part of the range starts and ends with a unit.
    const fn fits(&self, part: GuestRange) -> bool {
        let from = part.start.since(self.range.start);
        from.is_multiple_of(self.unit) && part.bytes.is_multiple_of(self.unit)
    }

    /// Adds a run that fits, below all that is there.
    fn paint(&mut self, run: Run) {
        self.runs.push(run);
        let number = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        let from = index(run.range.start.since(self.range.start) / self.unit);
        let cells = self.cells.get_mut(from..from + index(run.range.bytes / self.unit));
        cells.into_iter().flatten().filter(|cell| **cell == 0).for_each(|cell| *cell = number);
    }

    /// Takes what is seen, in order; nothing is painted then.
    fn take(&mut self) -> Vec<Run> {
        let (mut seen, mut at) = (Vec::new(), self.range.start);
        for alike in self.cells.chunk_by(|a, b| a == b) {
            let part = at.range(count(alike.len()) * self.unit);
            at = part.end();
            let number = alike.first().and_then(|number| number.checked_sub(1));
            let run = number.and_then(|number| self.runs.get(index(number.into())));
            seen.extend(run.map(|run| run.clip(part)));
        }
        self.runs.clear();
        self.cells.fill(0);
        seen
    }
}

/// Cuts a list of runs at `end`.
fn up_to(mut runs: Vec<Run>, end: GuestOffset) -> Vec<Run> {
    runs.truncate(runs.partition_point(|run| run.range.start < end));
    if let Some(last) = runs.last_mut() {
        *last = last.clip(GuestRange::between(last.range.start, end));
    }
    runs
}

impl Below for View {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        View::read(self, at, buf)
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        let mut runs = Vec::new();
        self.runs(range, &mut runs)?;
        Ok(runs.iter().all(Run::is_zero))
    }
}

/// Lays lists of runs, the topmost first, over each other: in pairs, so that no list is gone through often.
fn flatten(mut lists: Vec<Vec<Run>>) -> Vec<Run> {
    while lists.len() > 1 {
        let mut rest = lists.into_iter();
        lists = std::iter::from_fn(|| {
            let top = rest.next()?;
            Some(match rest.next() {
                Some(below) => over(top, below),
                None => top,
            })
        })
        .collect();
    }
    lists.pop().unwrap_or_default()
}

/// Appends what an image says about `range`; past its end it makes zeros.
fn describe(image: &dyn Image, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
    let end = GuestOffset::new(image.size());
    let held = range.clip(GuestRange::between(GuestOffset::new(0), end));
    if !held.is_empty() {
        image.map(held, out)?;
    }
    let beyond = GuestRange::between(range.start.max(end), range.end());
    if !beyond.is_empty() {
        let is_zero = Guard::ShortLayer.trips(true);
        map::push(out, Extent::new(beyond, if is_zero { State::Zero { host: None } } else { State::Absent }));
    }
    Ok(())
}

/// A map that does not cover what was asked would make holes in the merged one: refuse it.
fn check_cover(image: &dyn Image, range: GuestRange, map: &[Extent]) -> Result<()> {
    let covers = map.first().map(|e| e.range.start) == Some(range.start)
        && map.last().map(|e| e.range.end()) == Some(range.end());
    if covers {
        return Ok(());
    }
    let error = Error::corrupt(format!(
        "its map does not cover guest bytes {:#x} to {:#x}",
        range.start,
        range.end()
    ));
    Err(error.path(image.data_file().path()))
}

/// Returns the part of `range` outside which `seen` (in order, without overlap) leaves nothing open.
fn still_open(seen: &[Run], range: GuestRange) -> Option<GuestRange> {
    let follows = |at: &mut GuestOffset, run: &Run| (run.range.start == *at).then(|| *at = run.range.end());
    let precedes = |at: &mut GuestOffset, run: &Run| (run.range.end() == *at).then(|| *at = run.range.start);
    let (mut start, mut end) = (range.start, range.end());
    seen.iter().map_while(|run| follows(&mut start, run)).for_each(drop);
    (start < end).then(|| {
        seen.iter().rev().map_while(|run| precedes(&mut end, run)).for_each(drop);
        GuestRange::between(start, end)
    })
}

/// Returns what is seen when `top` lies over `below`; both, and the result, are in order without overlap.
fn over(top: Vec<Run>, below: Vec<Run>) -> Vec<Run> {
    if top.is_empty() || below.is_empty() {
        return if top.is_empty() { below } else { top };
    }
    let mut out = Vec::with_capacity(top.len() + below.len());
    let mut below = below.into_iter();
    // What is left of the run of `below` that `top` has come to.
    let mut next = below.next();
    for run in top {
        while let Some(lower) = next.filter(|lower| lower.range.start < run.range.end()) {
            let end = lower.range.end();
            if end <= run.range.start {
                out.push(lower);
            } else if lower.range.start < run.range.start {
                out.push(lower.clip(GuestRange::between(lower.range.start, run.range.start)));
            }
            let rest = GuestRange::between(run.range.end().min(end), end);
            next = if rest.is_empty() { below.next() } else { Some(lower.clip(rest)) };
        }
        out.push(run);
    }
    out.extend(next);
    out.extend(below);
    out
}

/// Adds a run to a list in guest order, joining it to the last one where it goes on from there.
fn push(list: &mut Vec<Run>, run: Run) {
    match list.last_mut() {
        _ if run.range.is_empty() => {}
        Some(last) if last.joins(&run) => last.range.bytes += run.range.bytes,
        _ => list.push(run),
    }
}

#[cfg(test)]
mod tests;
