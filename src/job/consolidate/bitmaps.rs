//! Persistent dirty bitmaps across a fold: what the result's say is never less than what has changed.
//!
//! A fold moves no guest's writes, it gathers them: what a layer above holds was written after the layer below it
//! was frozen. So the result's bitmap of a name has every bit that the bitmaps of that name in the run and in the
//! target have; and where one of them *records*, all that the layers above it hold as well, which were written
//! while nobody told it (as QEMU's commit marks what it writes in the bitmaps of its target). One that stands
//! still names a change of the past and gets no more. A bitmap that missed writes takes those of its name along. Under a
//! guest that writes meanwhile, one that records calls everything dirty.
//!
//! The target's recording bitmaps stand still while the job writes (the journal knows them): the moves are not the
//! guest's, and would make them stale. They are merged and record again right before the record.

use super::{plan::Plan, work::decided};
use crate::{
    base::{ErrorKind, GuestOffset, Result},
    chain::{Layer, View},
    format::{self, Bitmap, BitmapEdit, Bits, Creation, Details, Format, Image, Measure},
    job::measure::bitmap_bytes,
    map::RangeSet,
    store::{Held, HeldState},
};
use std::{collections::BTreeMap, sync::Arc};

/// Guest bytes whose runs are looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// Returns the bitmaps of a target as they are before a job.
pub(super) fn held(target: &dyn Image) -> Result<Vec<Held>> {
    let state = |bitmap: &Bitmap| match (bitmap.is_in_use, bitmap.is_auto) {
        (true, _) => HeldState::Stale,
        (false, true) => HeldState::Records,
        (false, false) => HeldState::Still,
    };
    let held = |bitmap: Bitmap| {
        let state = state(&bitmap);
        Held { name: bitmap.name, granularity_bytes: bitmap.granularity_bytes, state }
    };
    Ok(target.details()?.bitmaps.into_iter().map(held).collect())
}

/// Returns the bits of a target's bitmaps, of those that can be trusted: a change of size spoils them all.
pub(super) fn bits(target: &dyn Image) -> Result<BTreeMap<String, Bits>> {
    let sound = target.details()?.bitmaps.into_iter().filter(|bitmap| !bitmap.is_in_use);
    sound.map(|bitmap| Ok((bitmap.name.clone(), target.bitmap(&bitmap.name)?))).collect()
}

/// Goes before the first change of the target: no bitmap of it records what a job writes.
pub(super) fn hold(target: &dyn Image) -> Result<()> {
    let recording = target.details()?.bitmaps.into_iter().filter(|b| b.is_auto && !b.is_in_use);
    let mut edits = recording.map(|bitmap| BitmapEdit::Record { name: bitmap.name, is_auto: false });
    edits.try_for_each(|edit| target.edit_bitmap(&edit))
}

/// Gives the bitmaps of a target that a job leaves as it is back what they did; one that a change of size has
/// spoilt calls everything dirty.
pub(super) fn release(target: &dyn Image, held: &[Held]) -> Result<()> {
    for bitmap in target.details()?.bitmaps {
        let name = || bitmap.name.clone();
        let before = held.iter().find(|held| held.name == bitmap.name);
        let is_auto = before.is_some_and(|held| held.state == HeldState::Records);
        let edit = match before.map(|held| held.state) {
            // The job had merged it already: the layer that it came from still has it.
            None => BitmapEdit::Remove { name: name() },
            Some(HeldState::Stale) => continue,
            Some(_) if bitmap.is_in_use => {
                let mut bits = Bits::new(target.size(), bitmap.granularity_bytes);
                bits.mark(GuestOffset::new(0).range(target.size()));
                BitmapEdit::Put { name: name(), bits, is_auto }
            }
            Some(_) => BitmapEdit::Record { name: name(), is_auto },
        };
        target.edit_bitmap(&edit)?;
    }
    Ok(())
}

/// What the run and the target say about one name.
#[derive(Clone, Debug)]
struct Named {
    /// Of the newest.
    granularity_bytes: u64,
    /// Whether the newest records.
    is_recording: bool,
    /// How many layers lie above the oldest that records.
    above: Option<usize>,
    /// Whether one of them missed writes.
    is_stale: bool,
    /// Whether the run has one.
    is_in_run: bool,
}

impl Named {
    /// Returns whether the result gets one that the target has not got already as it will be.
    const fn is_merged(&self) -> bool {
        !self.is_stale && (self.is_in_run || self.above.is_some())
    }
}

/// All bitmaps of a run (newest layer first) and of the target, by name.
fn named(run: &[Arc<dyn Image>], target: &[Held]) -> Result<BTreeMap<String, Named>> {
    let mut all: BTreeMap<String, Named> = BTreeMap::new();
    let mut add = |depth: usize, bitmap: &Held| {
        let is_recording = bitmap.state == HeldState::Records;
        let (granularity_bytes, is_in_run) = (bitmap.granularity_bytes, depth < run.len());
        let first = Named { granularity_bytes, is_recording, above: None, is_stale: false, is_in_run };
        let entry = all.entry(bitmap.name.clone()).or_insert(first);
        entry.is_stale |= bitmap.state == HeldState::Stale;
        entry.above = if is_recording { Some(depth) } else { entry.above };
    };
    for (depth, image) in run.iter().enumerate() {
        for bitmap in held(image.as_ref())? {
            add(depth, &bitmap);
        }
    }
    for bitmap in target {
        add(run.len(), bitmap);
    }
    Ok(all)
}

/// Tells the plan which bitmaps are merged, which are lost, and the space that the merged ones may need.
///
/// `place` is what the result offers them.
pub(super) fn foresee(run: &[Layer], target: &[Held], place: Place, plan: &mut Plan) -> Result<()> {
    let images: Vec<_> = run.iter().map(|layer| Arc::clone(&layer.image)).collect();
    let all = named(&images, target)?;
    let is_carried = |name: &str| place.holds_bitmaps && all.get(name).is_some_and(Named::is_merged);
    for layer in run {
        for bitmap in layer.image.details()?.bitmaps {
            let line = format!("{}: {}", layer.path.display(), bitmap.name);
            let list =
                if is_carried(&bitmap.name) { &mut plan.bitmaps_merged } else { &mut plan.bitmaps_lost };
            list.push(line);
        }
    }
    // One that missed writes further up is no longer right about the disk.
    let is_lost = |bitmap: &&Held| {
        let named = all.get(&bitmap.name);
        bitmap.state != HeldState::Stale && named.is_some_and(|named| named.is_stale)
    };
    let target_name = plan.target.clone().unwrap_or_default();
    let lost = target.iter().filter(is_lost).map(|b| format!("{}: {}", target_name.display(), b.name));
    plan.bitmaps_lost.extend(lost);
    let merged = all.into_iter().filter(|(_, named)| place.holds_bitmaps && named.is_merged());
    let merged: Vec<Bitmap> = merged.map(|(name, named)| named.into_bitmap(name)).collect();
    if !merged.is_empty() {
        plan.need_bytes =
            plan.need_bytes.saturating_add(bitmap_bytes(&merged, plan.size, place.cluster_bytes));
    }
    Ok(())
}

/// What a result offers bitmaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    holds_bitmaps: bool,
    cluster_bytes: u64,
}

impl Place {
    /// Bitmaps go into this image, or into one of the same kind.
    pub(super) fn like(image: &dyn Image) -> Result<Self> {
        let Details { holds_bitmaps, cluster_bytes, .. } = image.details()?;
        Ok(Self { holds_bitmaps, cluster_bytes: cluster_bytes.unwrap_or(1) })
    }

    /// Bitmaps go into an image that is still to be made.
    pub(super) fn in_new(format: Format, creation: &Creation) -> Result<Self> {
        let Measure { has_bitmaps, unit, .. } = format::measure(format, creation)?;
        Ok(Self { holds_bitmaps: has_bitmaps, cluster_bytes: unit })
    }
}

impl Named {
    fn into_bitmap(self, name: String) -> Bitmap {
        let Self { granularity_bytes, is_recording: is_auto, .. } = self;
        Bitmap { name, granularity_bytes, is_in_use: false, is_auto }
    }
}

/// What is merged, and into what.
pub(super) struct Merge<'a> {
    /// The folded layers.
    pub(super) run: &'a View,
    /// The target's own, as they were before the job; empty if `result` is not the target.
    pub(super) held: &'a [Held],
    /// The bits of the target's own from before a change of its size in this life of the job.
    pub(super) bits: Option<&'a BTreeMap<String, Bits>>,
    /// What gets them. Has the disk's size by now.
    pub(super) result: &'a dyn Image,
    /// Whether guests write to the run meanwhile.
    pub(super) is_written: bool,
}

impl Merge<'_> {
    /// Merges all, durably; returns the names of those that the result cannot hold. Can be done again.
    pub(super) fn perform(&self) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        if !self.result.details()?.holds_bitmaps {
            return Ok(lost);
        }
        for (name, named) in named(self.run.images(), self.held)? {
            match self.merge(&name, &named) {
                Err(e) if matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported) => lost.push(name),
                done => done?,
            }
        }
        Ok(lost)
    }

    fn merge(&self, name: &str, named: &Named) -> Result<()> {
        let edit = |edit: BitmapEdit| self.result.edit_bitmap(&edit);
        let there = self.result.details()?.bitmaps.into_iter().find(|bitmap| bitmap.name == name);
        if named.is_stale {
            let is_wrong = there.is_some() && named.is_in_run;
            return if is_wrong { edit(BitmapEdit::Remove { name: name.to_owned() }) } else { Ok(()) };
        }
        // The target's own was sound: if it is not any more, a change of size in this job has spoilt it.
        let is_held = self.held.iter().any(|held| held.name == name);
        let is_spoilt = is_held && there.as_ref().is_none_or(|bitmap| bitmap.is_in_use);
        if !named.is_merged() && !is_spoilt {
            return Ok(());
        }
        let granularity_bytes = there.as_ref().map_or(named.granularity_bytes, |b| b.granularity_bytes);
        let size = self.result.size();
        let mut bits = Bits::new(size, granularity_bytes);
        if is_spoilt {
            // If an earlier life changed the size, nobody knows them any more.
            match self.bits.and_then(|before| before.get(name)) {
                Some(before) => bits.add(before),
                None => bits.mark(GuestOffset::new(0).range(size)),
            }
        } else if there.is_some() {
            bits.add(&self.result.bitmap(name)?);
        }
        for image in self.run.images() {
            if image.details()?.bitmaps.iter().any(|bitmap| bitmap.name == name) {
                bits.add(&image.bitmap(name)?);
            }
        }
        self.held_above(named.above.unwrap_or(0))?.iter().for_each(|range| bits.mark(range));
        if self.is_written && named.above.is_some() {
            // What guests have written since the list was made, and still write before they go over, may be anywhere.
            bits.mark(GuestOffset::new(0).range(size));
        }
        edit(BitmapEdit::Put { name: name.to_owned(), bits, is_auto: named.is_recording })
    }

    /// Returns what the topmost `layers` layers of the run hold.
    fn held_above(&self, layers: usize) -> Result<RangeSet> {
        let mut held = RangeSet::new();
        let strides = GuestOffset::new(0).range(self.result.size()).pieces(STRIDE_BYTES);
        for stride in strides.filter(|_| layers > 0) {
            let runs = decided(self.run, stride)?.into_iter();
            let above = runs.filter(|run| run.layer.is_some_and(|layer| layer < layers));
            above.for_each(|run| held.insert(run.range));
        }
        Ok(held)
    }
}
