//! The images that a job holds open until its record has landed, and what it does to them around the copying.

use super::{
    bitmaps::{self, Merge},
    ending::Ending,
    folding::Making,
    machine::Found,
    moving::Move,
    plan::{NewImage, Plan, Request, folder_of},
    sides::Sides,
    work::Work,
};
use crate::{
    base::{Error, Guard, GuestOffset, Result},
    chain::{Chain, Layer, View, header_name, open_layer},
    format::{self, Bits, Creation, Format, Image, NoParts, ParentName},
    io::{Access, Witness},
    job::create::{options_like, options_on},
    store::{Claim, Draft, Epoch, Fold, FoldMode, Held, Journal, LayerRecord, Position},
};
use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// The open images of a job.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) sides: Sides,
    mode: FoldMode,
    top: Layer,
    /// Where the target (or the new image in the making) is.
    pub(super) target: PathBuf,
    /// What lies right below the target.
    parent: Option<Layer>,
    /// The file that gets the result's name, if it is not the target.
    pub(super) draft: Option<PathBuf>,
    /// What lies below a new image in another store.
    elsewhere: Option<Move>,
    /// What a new image was asked for with.
    pub(super) options: Vec<(String, String)>,
    /// The bits of the target's bitmaps, from before a change of its size.
    bits: OnceLock<BTreeMap<String, Bits>>,
}

/// What a job starts, or goes on, from.
pub(super) struct Setup<'a> {
    pub(super) plan: &'a Plan,
    pub(super) request: &'a Request,
    pub(super) work: &'a Work,
    pub(super) depth: usize,
    pub(super) journal: Option<&'a mut Journal>,
}

impl Images {
    /// Locks what the job changes or removes, and opens the target for writing: the layer at the setup's depth, or
    /// an image in the making. Returns what an earlier life of the job left, too.
    ///
    /// `Busy` if somebody uses a layer that is to change or go, or wrote one since it was planned.
    pub(super) fn open(
        ending: &Ending,
        chain: Chain,
        setup: &mut Setup<'_>,
    ) -> Result<(Self, Option<Found>)> {
        let mut layers = chain.layers().to_vec();
        drop(chain);
        let mode = setup.plan.mode;
        let mut lower = layers.split_off(setup.depth.min(layers.len()));
        if !mode.makes_new() {
            layers = lock(ending, layers)?;
        }
        let run = View::new(&layers);
        let top = layers.into_iter().next().ok_or_else(|| Error::invalid("a run without layers"))?;
        if Work::find(&run, setup.plan.size)?.digest != setup.work.digest {
            return Err(Error::busy("was written while the job was being planned").path(&top.path));
        }
        let mut found = setup.journal.as_deref().map(|journal| found(&top, journal, setup)).transpose()?;
        let (target, draft) = match mode {
            mode if mode.makes_new() => {
                found = setup.take_back(ending, &top, found)?;
                let place = setup.new_image(ending, &top, lower.first(), found)?;
                (place.clone(), Some(place.path))
            }
            _ if lower.is_empty() => return Err(Error::invalid("has no layer below it").path(&top.path)),
            _ => {
                let draft = (mode == FoldMode::EmptyTop).then(|| setup.draft_name(&top.path));
                (reopen(ending, lower.remove(0), Access::Write)?, draft)
            }
        };
        let below = View::new(&lower);
        let sides = Sides { run, target: target.image, below, size: setup.plan.size };
        let parent = lower.into_iter().next();
        let bits = OnceLock::new();
        let options = setup.request.new.as_ref().map(|new| new.options.clone()).unwrap_or_default();
        let elsewhere = None;
        Ok((Self { sides, mode, top, target: target.path, parent, draft, elsewhere, options, bits }, found))
    }

    /// The same for a disk in use, whose `layers` are open: the target, which is at `depth`, for writing.
    pub(super) fn live(layers: &[Layer], depth: usize, plan: &Plan, draft: Option<PathBuf>) -> Result<Self> {
        let none = || Error::invalid("a run without a target").path(&plan.top);
        let (run, lower) = layers.split_at_checked(depth).ok_or_else(none)?;
        let (target, lower) = lower.split_first().ok_or_else(none)?;
        let top = run.first().ok_or_else(none)?.clone();
        let image = Arc::clone(&target.image);
        let sides = Sides { run: View::new(run), target: image, below: View::new(lower), size: plan.size };
        let (mode, target, parent) = (plan.mode, target.path.clone(), lower.first().cloned());
        let (elsewhere, options, bits) = (None, Vec::new(), OnceLock::new());
        Ok(Self { sides, mode, top, target, parent, draft, elsewhere, options, bits })
    }

    /// The same for a disk in use that is folded into a new image in the making, `draft`: that is opened again if the job
    /// `goes_on`, else made.
    pub(super) fn live_new(
        ending: &Ending,
        layers: &[Layer],
        making: &Making,
        new: &NewImage,
        goes_on: bool,
    ) -> Result<Self> {
        let Making { plan, depth, draft, .. } = making;
        let none = || Error::invalid("a run without layers").path(&plan.top);
        let (run, own) = layers.split_at_checked(*depth).ok_or_else(none)?;
        let elsewhere = making.moves.clone();
        let lower = elsewhere.as_ref().map_or(own, |moves| moves.below.as_slice());
        let top = run.first().ok_or_else(none)?.clone();
        let place = if goes_on {
            open_draft(ending, draft, new.format.unwrap_or_else(|| top.format()))?
        } else {
            make_draft(ending, (draft, plan.size), new, (&top, lower.first()))?
        };
        let sides =
            Sides { run: View::new(run), target: place.image, below: View::new(lower), size: plan.size };
        let (mode, parent, bits) = (plan.mode, lower.first().cloned(), OnceLock::new());
        let (target, draft, options) = (place.path.clone(), Some(place.path), new.options.clone());
        Ok(Self { sides, mode, top, target, parent, draft, elsewhere, options, bits })
    }

    /// Returns whether the target is no layer of the chain.
    pub(super) fn is_new(&self) -> bool {
        self.mode.makes_new()
    }

    /// Returns which layers lie below the target, by those of the chain.
    pub(super) fn lower<'a>(&'a self, layers: &'a [Layer], depth: usize) -> &'a [Layer] {
        let own = || layers.get(depth + usize::from(!self.is_new())..).unwrap_or_default();
        self.elsewhere().unwrap_or_else(own)
    }

    /// Returns what lies below a new image in another store.
    pub(super) fn elsewhere(&self) -> Option<&[Layer]> {
        self.elsewhere.as_ref().map(|moves| moves.below.as_slice())
    }

    /// Leaves TOP, which nobody uses any more, as a head that can be opened; one that `goes` so that a write to it shows.
    pub(super) fn let_top_go(&self, ending: &Ending, goes: bool) -> Result<()> {
        if goes {
            let known = ending.ledger.look(self.top.image.as_ref())?;
            return ending.ledger.refreeze(self.top.image.as_ref(), &known).map(drop);
        }
        if ending.has_children(&self.top)? {
            return self.top.image.flush();
        }
        ending.ledger.release(self.top.image.as_ref())?;
        self.top.image.flush()
    }

    /// Gives a TOP in use an epoch that a stranger's write takes away; no witness could stand for its bytes.
    pub(super) fn mark_live_head(&self, ending: &Ending) -> Result<Option<Epoch>> {
        let known = ending.ledger.thaw(self.top.image.as_ref(), Epoch::fresh())?;
        Ok(known.layer.frozen.map(|record| record.epoch))
    }

    /// Whether TOP is still the one that a job on a disk in use has marked, and no stranger wrote it.
    pub(super) fn is_still_head(top: &Layer, journal: &Journal) -> Result<bool> {
        let (fold, now) = (journal.fold(), head_witness(top)?);
        let is_marked = fold.head.same_file(&now) && fold.head_epoch.is_some();
        Ok(is_marked && bears(top.image.as_ref(), fold.head_epoch)?)
    }

    /// Returns the epoch of the target's record, if it has one.
    pub(super) fn target_epoch(&self, ending: &Ending) -> Result<Option<Epoch>> {
        let known = ending.ledger.look(self.sides.target.as_ref())?;
        Ok(known.layer.frozen.filter(|_| !self.is_new()).map(|record| record.epoch))
    }

    /// Gives TOP a record, so that somebody else's write to it is noticed across a restart of the host; one that stays
    /// has the one that it has, or none.
    pub(super) fn mark_head(&self, ending: &Ending) -> Result<Option<Epoch>> {
        let top = self.top.image.as_ref();
        let known = if self.is_new() {
            // A guest that was killed may have left bytes in the cache: the copies of them must not outlive them.
            top.flush_with_time()?;
            ending.ledger.look(top)?
        } else {
            ending.ledger.freeze(top)?
        };
        Ok(known.layer.frozen.map(|record| record.epoch))
    }

    /// Returns what TOP looks like from outside.
    pub(super) fn head(&self) -> Result<Witness> {
        head_witness(&self.top)
    }

    /// Returns the format that the result's name opens.
    pub(super) fn result_format(&self) -> Format {
        match self.mode {
            FoldMode::EmptyTop => self.top.format(),
            _ => self.sides.target.format(),
        }
    }

    /// Makes the journal's epoch durable in the target and drops its seal.
    pub(super) fn renew(&self, ending: &Ending, journal: &Journal) -> Result<()> {
        let epoch = journal.fold().new_epoch;
        if !self.is_new() {
            if self.target_epoch(ending)? == Some(epoch) {
                // An earlier life may have been killed before it was durable.
                ending.ledger.settle(self.sides.target.as_ref())?;
            } else {
                ending.ledger.thaw(self.sides.target.as_ref(), epoch)?;
            }
        }
        // Now that nobody takes the target for what it was, its files may change.
        bitmaps::hold(self.sides.target.as_ref())
    }

    /// Grows the target to TOP's size if it is smaller.
    pub(super) fn grow(&self) -> Result<()> {
        let Sides { target, below, size, .. } = &self.sides;
        if target.size() != *size {
            // Now or at the end, its size changes.
            self.bits.get_or_init(|| bitmaps::bits(target.as_ref()).unwrap_or_default());
        }
        if target.size() < *size { target.resize(*size, below) } else { Ok(()) }
    }

    /// Cuts the target to TOP's size if it is larger.
    pub(super) fn cut(&self) -> Result<()> {
        let Sides { target, below, size, .. } = &self.sides;
        if target.size() > *size { target.resize(*size, below) } else { Ok(()) }
    }

    /// Makes durable what the record needs; returns the names of bitmaps that the result cannot hold. `held`
    /// is what bitmaps the target had, `fold` the job by its journal.
    /// `is_written`: guests write to the run, and to the result, until they go over.
    pub(super) fn prepare_record(
        &self,
        ending: &Ending,
        fold: &Fold,
        held: &[Held],
        is_written: bool,
    ) -> Result<Vec<String>> {
        let target = self.sides.target.as_ref();
        match self.mode {
            FoldMode::TopName => {
                imitate(target, &self.top);
                self.name_parent_for_both(ending)?;
                self.pass_identity(target, is_written)?;
            }
            FoldMode::EmptyTop => {
                let top = self.make_empty_top(ending, fold)?;
                self.pass_identity(top.as_ref(), is_written)?;
                let result = top.as_ref();
                let run = &self.sides.run;
                return Merge { run, held: &[], bits: None, result, is_written }.perform();
            }
            // Ready from here on, and neither here nor under its name, it would be taken for one that is away.
            FoldMode::Move => ending.host.sync_folder(folder_of(&self.target))?,
            FoldMode::TargetName | FoldMode::NewImage => {}
        }
        let (run, bits) = (&self.sides.run, self.bits.get());
        Merge { run, held, bits, result: target, is_written }.perform()
    }

    /// What takes TOP's name is the parent of TOP's children, which may know TOP by what its format says of it. A disk that is
    /// written has none, and shows something else soon.
    fn pass_identity(&self, result: &dyn Image, is_written: bool) -> Result<()> {
        match self.top.image.identity().filter(|_| !is_written) {
            Some(identity) => result.set_identity(identity),
            None => Ok(()),
        }
    }

    /// A target from another folder names its parent by its whole path while it moves: right from both folders.
    fn name_parent_for_both(&self, ending: &Ending) -> Result<()> {
        match &self.parent {
            Some(parent) if folder_of(&self.target) != folder_of(&self.top.path) => {
                ending.ledger.note_child(parent.image.as_ref(), self.top.image.as_ref())?;
                ending.name_parent(self.sides.target.as_ref(), parent.path.as_os_str().as_bytes())
            }
            _ => Ok(()),
        }
    }

    /// Makes the empty delta that takes TOP's name, on the target, which is of another format.
    fn make_empty_top(&self, ending: &Ending, fold: &Fold) -> Result<Arc<dyn Image>> {
        let draft = self.draft.as_ref().ok_or_else(|| Error::invalid("the job has no draft"))?;
        if ending.host.kind(draft)?.is_some() {
            ending.host.remove(draft)?;
        }
        let has_children = ending.has_children(&self.top)?;
        let name = header_name(folder_of(&self.top.path), &self.target);
        let parent = ParentName::of(self.sides.target.as_ref(), name);
        let options = kept_options(self.top.image.as_ref())?;
        let creation = Creation { size: self.sides.size, parent: Some(parent.clone()), options };
        let file = ending.host.create(draft)?;
        let image = format::create(self.top.format(), file, &creation, &NoParts)?;
        imitate(image.as_ref(), &self.top);
        let claim = claim(fold.new_epoch, parent);
        ending.ledger.note_child(self.sides.target.as_ref(), image.as_ref())?;
        ending.ledger.claim(image.as_ref(), Some(claim))?;
        if let Some(epoch) = fold.head_epoch.filter(|_| has_children) {
            // What lies on TOP knows it by that, as soon as it has the name.
            ending.ledger.thaw(image.as_ref(), epoch)?;
        }
        image.flush()?;
        ending.host.sync_folder(folder_of(draft))?;
        Ok(image)
    }

    /// Makes the result's name open the result.
    pub(super) fn record(&self, ending: &Ending, journal: &Journal) -> Result<()> {
        let result = journal.place(&journal.fold().result);
        let draft = || self.draft.as_ref().ok_or_else(|| Error::invalid("the job has no draft"));
        match self.mode {
            FoldMode::TopName => self.replace_top(ending, &self.target),
            FoldMode::EmptyTop => self.replace_top(ending, draft()?),
            FoldMode::TargetName => self.retire_top(ending),
            FoldMode::NewImage | FoldMode::Move => ending.host.rename_new(draft()?, &result),
        }
    }
}

impl Images {
    fn replace_top(&self, ending: &Ending, by: &Path) -> Result<()> {
        ending.host.rename(by, &self.top.path)?;
        // Durable before what is noted of the old TOP goes: a power cut that brings it back must find its claim.
        ending.host.sync_folder(folder_of(&self.top.path))?;
        ending.ledger.forget_replaced(&self.top.path, self.top.image.as_ref())
    }

    /// Makes TOP an image that nobody opens any more; where its format has no such mark, it goes at once.
    fn retire_top(&self, ending: &Ending) -> Result<()> {
        let name = self.target.file_name().unwrap_or_default().display();
        let files = self.top.image.files();
        let file = files.first().ok_or_else(|| Error::invalid("has no file").path(&self.top.path))?;
        if format::retire(self.top.format(), file.as_ref(), &format!("folded into {name}"))? {
            return Ok(());
        }
        ending.host.remove(&self.top.path)
    }
}

/// What takes TOP's place belongs to whom TOP belongs, and is as private.
fn imitate(result: &dyn Image, top: &Layer) {
    let Some(likeness) = top.likeness() else { return };
    for file in result.files() {
        likeness.give(file.as_ref());
    }
}

fn claim(parent_epoch: Epoch, parent: ParentName) -> Claim {
    Claim { parent_epoch, parent_id: None, name: parent.name, format: parent.format }
}

/// Returns the creation options that make an image like this one.
pub(in crate::job) fn kept_options(image: &dyn Image) -> Result<Vec<(String, String)>> {
    options_like(image, &["compat", "extended-l2"])
}

impl Setup<'_> {
    /// Returns whether a draft that is there can be gone on with although nothing it holds counts: some of it was made
    /// durable, and only the host was started anew, so that what it holds is on the list still.
    fn keeps_draft(&self, top: &Layer) -> Result<bool> {
        let is_begun = |journal: &Journal| journal.position().mark > GuestOffset::new(0);
        Ok(self.journal.as_deref().is_some_and(is_begun) && self.lists_the_same(top)?)
    }

    /// Returns whether the work of an earlier life was on the same places of a disk that looks the same.
    fn lists_the_same(&self, top: &Layer) -> Result<bool> {
        let Some(fold) = self.journal.as_deref().map(Journal::fold) else { return Ok(false) };
        let is_listed = fold.list_digest == self.work.digest && fold.size == self.plan.size;
        Ok(is_listed && fold.head.is_unchanged(&head_witness(top)?))
    }

    /// Returns what there is to go on from: nothing without the draft, which a power cut or a person may have taken.
    ///
    /// A draft that is made anew is not there for a moment, and then it is empty: before that, the journal says so.
    /// One that is kept is compared first, up to the mark that it had.
    fn take_back(&mut self, ending: &Ending, top: &Layer, found: Option<Found>) -> Result<Option<Found>> {
        let is_there = ending.host.kind(&self.draft_name(&self.plan.result))?.is_some();
        let found = found.map(|found| if is_there { found } else { Found::Void });
        let stays = is_there && self.keeps_draft(top)?;
        if let (Some(journal), Some(Found::Void)) = (self.journal.as_deref_mut(), found) {
            let mark = if stays { journal.position().mark } else { GuestOffset::new(0) };
            journal.note(Position { mark, is_ready: false })?;
        }
        Ok(found)
    }

    fn draft_name(&self, result: &Path) -> PathBuf {
        let known = self.journal.as_deref().and_then(|j| j.fold().draft.as_ref().map(|draft| j.place(draft)));
        known.unwrap_or_else(|| Draft::temporary_name(result))
    }

    /// Opens the image in the making, or makes it: on `parent`, if there is one.
    fn new_image(
        &self,
        ending: &Ending,
        top: &Layer,
        parent: Option<&Layer>,
        found: Option<Found>,
    ) -> Result<Layer> {
        let new = self.request.new.as_ref().ok_or_else(|| Error::invalid("no new image was asked for"))?;
        let format = new.format.unwrap_or_else(|| top.format());
        let path = self.draft_name(&self.plan.result);
        let is_there = ending.host.kind(&path)?.is_some();
        let is_begun = match found {
            // Up to the first mark it may be one that a life before was making anew.
            Some(Found::Bound(mark)) => mark > GuestOffset::new(0),
            Some(Found::Ready) => true,
            Some(Found::Void) => is_there && self.keeps_draft(top)?,
            _ => false,
        };
        if is_begun {
            return open_draft(ending, &path, format);
        }
        make_draft(ending, (&path, self.plan.size), new, (top, parent))
    }
}

fn open_draft(ending: &Ending, path: &Path, format: Format) -> Result<Layer> {
    let opening = ending.opening.clone().with_access(Access::Write).with_format(Some(format));
    open_layer(&ending.host, path, &opening)
}

/// Makes the image in the making, in place of one that is there, for what TOP shows: on `parent`, if there is one.
fn make_draft(
    ending: &Ending,
    (path, size): (&Path, u64),
    new: &NewImage,
    (top, parent): (&Layer, Option<&Layer>),
) -> Result<Layer> {
    if ending.host.kind(path)?.is_some() {
        ending.host.remove(path)?;
        // It must not come back under its name once the journal speaks of the one that is made now.
        ending.host.sync_folder(folder_of(path))?;
    }
    let file = ending.host.create(path)?;
    if let Some(likeness) = top.likeness() {
        likeness.at_work().give(file.as_ref());
    }
    let path = ending.host.opened_as(file.as_ref())?;
    let name = parent.map(|parent| parent.name_in(folder_of(&path)));
    let format = new.format.unwrap_or_else(|| top.format());
    let images = [Some(top), parent].into_iter().flatten().map(|layer| layer.image.as_ref());
    let creation = Creation { size, parent: name.clone(), options: options_on(images, format, &new.options) };
    let image = format::create(format, file, &creation, &NoParts)?;
    if let (Some(parent), Some(name)) = (parent, name) {
        let known = ending.ledger.freeze(parent.image.as_ref())?;
        let claim = known.layer.frozen.map(|record| claim(record.epoch, name));
        ending.ledger.note_child(parent.image.as_ref(), image.as_ref())?;
        ending.ledger.claim(image.as_ref(), claim)?;
    }
    ending.ledger.know(image.as_ref())?;
    image.flush()?;
    Ok(Layer { path, is_stated: true, image })
}

/// Opens a layer again, in another way.
fn reopen(ending: &Ending, layer: Layer, access: Access) -> Result<Layer> {
    let (path, format) = (layer.path.clone(), layer.format());
    drop(layer);
    let opening = ending.opening.clone().with_access(access).with_format(Some(format));
    open_layer(&ending.host, &path, &opening)
}

/// Opens TOP for writing, and makes sure that nobody else uses the layers below it.
///
/// Those stay open for reading: whoever came later would need the target, which the job holds.
fn lock(ending: &Ending, run: Vec<Layer>) -> Result<Vec<Layer>> {
    let mut locked = Vec::with_capacity(run.len());
    for layer in run {
        let is_top = locked.is_empty();
        let (path, format) = (layer.path.clone(), layer.format());
        if is_top {
            locked.push(reopen(ending, layer, Access::Write)?);
            continue;
        }
        drop(layer);
        if Guard::FoldedLock.trips(true) {
            drop(ending.host.open(&path, Access::Write)?);
        }
        let opening = ending.opening.clone().with_access(Access::Read).with_format(Some(format));
        locked.push(open_layer(&ending.host, &path, &opening)?);
    }
    Ok(locked)
}

/// Returns what an earlier life of the job left.
fn found(top: &Layer, journal: &Journal, setup: &Setup<'_>) -> Result<Found> {
    let (fold, position) = (journal.fold(), journal.position());
    let now = head_witness(top)?;
    let is_same = setup.lists_the_same(top)?;
    let is_rewritten = fold.head.boot != now.boot && !bears(top.image.as_ref(), fold.head_epoch)?;
    Ok(match position {
        _ if Guard::HeadWritten.trips(!is_same) || Guard::HeadEpoch.trips(is_rewritten) => Found::Void,
        _ if position.is_ready => Found::Ready,
        _ => Found::Bound(position.mark),
    })
}

/// Returns what TOP looks like: the file with its header, whose length and time stand for those of all its files, so
/// that a write to its data file alone shows.
fn head_witness(top: &Layer) -> Result<Witness> {
    let mut files = top.image.files().into_iter();
    let header = files.next().ok_or_else(|| Error::invalid("has no file").path(&top.path))?.witness()?;
    files.try_fold(header, |sum, file| {
        let Witness { bytes, modified_ns, .. } = file.witness()?;
        let (bytes, modified_ns) = (sum.bytes.wrapping_add(bytes), sum.modified_ns.wrapping_add(modified_ns));
        Ok(Witness { bytes, modified_ns, ..sum })
    })
}

/// Whether an image still bears the epoch that the job gave it, and no sign of another program: what a witness of
/// an earlier boot cannot tell.
pub(super) fn bears(image: &dyn Image, epoch: Option<Epoch>) -> Result<bool> {
    let stored = image.record()?.filter(|stored| stored.is_untouched);
    let own = stored.and_then(|stored| LayerRecord::decode(&stored.bytes).frozen);
    Ok(own.is_some_and(|record| Some(record.epoch) == epoch))
}
