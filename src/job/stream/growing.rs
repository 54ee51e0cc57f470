//! A layer that arrives: a draft that becomes what was promised, or goes.
//!
//! What stays true: the tree is that of what the draft shows over its parent, but for the one leaf that is open; what the
//! note promises is durable; the layer has its name only when the tree gives the promised content ID.

use super::{Target, relative::Relative, terms::LayerHead};
use crate::{
    base::{
        Budget, Error, ErrorKind, Guard, GuestOffset, GuestRange, Result, clock::Stopwatch, units::index,
    },
    chain::{Layer, View},
    content::{LEAF_BYTES, Tree, leaf},
    format::{self, Creation, Image, NoParts, Parts, Repair},
    io::{self, Access, File, Host, Kept},
    job::{
        Progress,
        copy::{Below, stand},
        seal,
    },
    map::State,
    store::{Arrival, Draft, Ledger, Publish},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a draft grows before it is made durable; small disks see it in tests, too.
const PAUSE: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };
/// One that grew by less is not made durable.
const LEAST_BYTES: u64 = if cfg!(test) { 4096 } else { 1 << 20 };
/// Making it durable takes at most one part in so many of the time.
const PAUSES: u32 = if cfg!(test) { 0 } else { 4 };
/// Zeros, and what is taken from a relative, go in steps of this length: a stop is noticed in between.
const STEP_BYTES: u64 = 64 << 20;

/// Where a layer is going to be.
pub(super) struct Spot<'a> {
    pub(super) target: &'a Target,
    pub(super) head: &'a LayerHead,
    pub(super) to: PathBuf,
    pub(super) below: Option<&'a Below>,
    /// What has some of its bytes.
    pub(super) relative: Option<&'a Relative>,
}

/// A layer in the making.
pub(super) struct Growing<'a> {
    spot: Spot<'a>,
    arrival: Arrival,
    draft: Draft,
    image: Arc<dyn Image>,
    lower: View,
    tree: Tree,
    /// What comes next lies behind this.
    at: GuestOffset,
    /// What lies before this came earlier, and may be damaged by now: where it comes again, it is held against that.
    from: GuestOffset,
    /// The leaf that was changed in part: its hash is not right yet.
    open_leaf: Option<u64>,
    /// How far it was when it was last made durable, and when that was.
    marked_at: GuestOffset,
    marked: Stopwatch,
    /// How long it grows until it is made durable again.
    pause: Duration,
    /// Bytes that came from the relative.
    pub(super) taken_bytes: u64,
}

/// An image whose bytes are in one file.
struct Alone(Budget);

impl Parts for Alone {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        NoParts.open_part(name)
    }

    fn budget(&self) -> Budget {
        self.0.clone()
    }
}

impl<'a> Growing<'a> {
    /// Goes on with what an earlier run left, or begins anew; `Busy` while another run goes on with it.
    pub(super) fn begin(spot: Spot<'a>, progress: &Progress) -> Result<Self> {
        let Target { host, folder, .. } = spot.target;
        let found = Arrival::find(host.as_ref(), folder, &spot.head.id)?;
        let (mut earlier, mut stale) = (None, None);
        if let Some(arrival) = found {
            let draft = match Draft::resume(host, &folder.join(&arrival.temporary.0)) {
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                draft => Some(draft?),
            };
            // Where nothing was promised, there is nothing to go on from.
            let is_alike = arrival.form == spot.head.form() && arrival.done_bytes > 0;
            if let Some(draft) = draft.filter(|_| is_alike) {
                earlier = reopen(&spot, &draft)?.map(|image| (arrival.clone(), draft, image));
            }
            stale = earlier.is_none().then_some(arrival);
        }
        if let Some(stale) = stale {
            remove_if_there(host.as_ref(), &folder.join(&stale.temporary.0))?;
            host.sync_folder(folder)?;
        }
        let is_resumed = earlier.is_some();
        let (arrival, draft, image) = match earlier {
            Some(earlier) => earlier,
            None => make(&spot)?,
        };
        spot.target.ledger.forget(image.as_ref())?;
        io::stream(image.data_file().as_ref());
        let lower = spot.below.map_or_else(|| View::new(&[]), |below| below.chain.view(0));
        let tree = Tree::new(spot.head.size);
        let from = GuestOffset::new(arrival.done_bytes);
        let at = GuestOffset::new(0);
        let (open_leaf, marked_at, marked) = (None, from, Stopwatch::start());
        let (pause, taken_bytes) = (PAUSE, 0);
        let mut growing = Self {
            spot,
            arrival,
            draft,
            image,
            lower,
            tree,
            at,
            from,
            open_leaf,
            marked_at,
            marked,
            pause,
            taken_bytes,
        };
        growing.hash_start(is_resumed, progress)?;
        Ok(growing)
    }

    /// Sets the tree of what the draft shows at the start.
    fn hash_start(&mut self, is_resumed: bool, progress: &Progress) -> Result<()> {
        let under = match self.spot.below {
            None => None,
            Some(below) => Some(match below.tree(&self.spot.target.ledger)? {
                Some(tree) => tree,
                None => seal::full_tree(&self.lower, progress)?.tree,
            }),
        };
        if is_resumed {
            let mut layers =
                vec![Layer { path: self.spot.to.clone(), is_stated: true, image: Arc::clone(&self.image) }];
            layers.extend(self.spot.below.iter().flat_map(|below| below.chain.layers().iter().cloned()));
            let view = View::new(&layers);
            let under = under.unwrap_or_else(|| Tree::new(self.spot.head.size));
            self.tree = seal::tree_over(&view, under, progress)?.tree;
            return Ok(());
        }
        if let Some(under) = under {
            self.tree = under;
            if let Some(cut) = self.tree.resize(self.spot.head.size) {
                self.hash_leaf(cut)?;
            }
        }
        Ok(())
    }

    /// Says that nothing before `from` is sent again; `Invalid` if not all of that is here.
    pub(super) fn go_on_from(&mut self, from: u64) -> Result<()> {
        if from <= self.from.bytes() {
            self.at = GuestOffset::new(from);
            return Ok(());
        }
        let what = format!("goes on at byte {from:#x}, {:#x} bytes of it are here", self.from);
        Err(Error::invalid(what).path(&self.spot.to))
    }

    /// Takes in the layer's bytes at a place.
    pub(super) fn write(&mut self, at: GuestOffset, bytes: &[u8]) -> Result<()> {
        let range = at.range(bytes.len() as u64);
        self.admit(range)?;
        let (again, new) = bytes.split_at(index(self.from.since(at)).min(bytes.len()));
        for part in at.range(again.len() as u64).pieces(LEAF_BYTES) {
            let own = again.get(index(part.start.since(at))..).unwrap_or_default();
            self.write_if_other(part, own.get(..index(part.bytes)).unwrap_or_default())?;
        }
        let range = GuestRange::between(at.max(self.from).min(range.end()), range.end());
        if range.is_empty() {
            return Ok(());
        }
        self.image.write(range.start, new, &self.lower)?;
        let mut rest = new;
        for part in range.pieces(LEAF_BYTES) {
            let (own, after) = rest.split_at(index(part.bytes).min(rest.len()));
            rest = after;
            match self.whole_leaf(part) {
                Some(number) => self.tree.set(number, leaf(own))?,
                None => self.touch(part.start.bytes() / LEAF_BYTES)?,
            }
        }
        Ok(())
    }

    /// Takes in bytes within one leaf that came earlier already: what of them is there still is not written again.
    fn write_if_other(&mut self, part: GuestRange, bytes: &[u8]) -> Result<()> {
        if let Some(number) = self.whole_leaf(part) {
            let digest = leaf(bytes);
            if self.tree.get(number) != digest {
                self.image.write(part.start, bytes, &self.lower)?;
                self.tree.set(number, digest)?;
            }
            return Ok(());
        }
        let mut there = vec![0; bytes.len()];
        self.image.read(part.start, &mut there, &self.lower)?;
        if there != bytes {
            self.image.write(part.start, bytes, &self.lower)?;
            self.touch(part.start.bytes() / LEAF_BYTES)?;
        }
        Ok(())
    }

    /// Takes in zeros that the layer holds.
    pub(super) fn zero(&mut self, range: GuestRange, progress: &Progress) -> Result<()> {
        self.admit(range)?;
        for step in range.pieces(STEP_BYTES) {
            progress.checkpoint()?;
            self.image.zero(step, Kept::Nothing, &self.lower)?;
        }
        let whole = range.inner(LEAF_BYTES);
        if whole.is_empty() {
            return range.pieces(LEAF_BYTES).try_for_each(|part| self.touch(part.start.bytes() / LEAF_BYTES));
        }
        if range.start < whole.start {
            self.touch(range.start.bytes() / LEAF_BYTES)?;
        }
        self.tree.clear(whole.start.bytes() / LEAF_BYTES, whole.end().bytes() / LEAF_BYTES);
        if whole.end() < range.end() {
            self.touch(whole.end().bytes() / LEAF_BYTES)?;
        }
        Ok(())
    }

    /// Takes bytes from the relative.
    pub(super) fn take(&mut self, range: GuestRange, progress: &Progress) -> Result<()> {
        let relative = self
            .spot
            .relative
            .ok_or_else(|| Error::corrupt("bytes are to be taken from a relative, and none was named"))?;
        self.admit(range)?;
        let view = relative.view();
        for step in range.pieces(STEP_BYTES) {
            progress.checkpoint()?;
            let mut runs = Vec::new();
            view.runs(step, &mut runs)?;
            for run in runs {
                let image = run.layer.and_then(|layer| view.images().get(layer));
                match (run.state, image) {
                    (State::Data { host }, Some(image)) => {
                        let file = image.data_file();
                        self.image.write_from(run.range, file.as_ref(), host, &self.lower)?;
                    }
                    (State::Packed, Some(_)) => self.copy(view, run.range)?,
                    _ => self.image.zero(run.range, Kept::Nothing, &self.lower)?,
                }
            }
        }
        self.taken_bytes += range.bytes;
        for part in range.pieces(LEAF_BYTES) {
            let number = part.start.bytes() / LEAF_BYTES;
            match self.whole_leaf(part) {
                Some(number) => self.tree.set(number, relative.tree().get(number))?,
                None => self.touch(number)?,
            }
        }
        Ok(())
    }

    fn copy(&self, view: &View, range: GuestRange) -> Result<()> {
        for piece in range.pieces(1 << 20) {
            let mut bytes = vec![0; index(piece.bytes)];
            view.read(piece.start, &mut bytes)?;
            self.image.write(piece.start, &bytes, &self.lower)?;
        }
        Ok(())
    }

    /// Refuses as `Corrupt` an extent that is empty, past the end, or not behind the one before.
    fn admit(&mut self, range: GuestRange) -> Result<()> {
        let end = range.start.bytes().checked_add(range.bytes).filter(|end| *end <= self.spot.head.size);
        if range.is_empty() || range.start < self.at || end.is_none() {
            let what = format!("an extent at {:#x} of {} bytes is out of place", range.start, range.bytes);
            return Err(Error::corrupt(what).path(&self.spot.to));
        }
        self.at = range.end();
        Ok(())
    }

    /// Returns which leaf `part` is, if it is all of it.
    fn whole_leaf(&self, part: GuestRange) -> Option<u64> {
        let number = part.start.bytes() / LEAF_BYTES;
        (self.tree.range(number) == part).then_some(number)
    }

    /// Notes that a leaf was changed in part; the one before is whole now.
    fn touch(&mut self, number: u64) -> Result<()> {
        match self.open_leaf.replace(number) {
            Some(before) if before != number => self.hash_leaf(before),
            _ => Ok(()),
        }
    }

    fn hash_leaf(&mut self, number: u64) -> Result<()> {
        let range = self.tree.range(number);
        let mut bytes = vec![0; index(range.bytes)];
        self.image.read(range.start, &mut bytes, &self.lower)?;
        self.tree.set(number, leaf(&bytes))
    }

    /// Makes durable what came so far, from time to time.
    pub(super) fn rest(&mut self) -> Result<()> {
        let is_early = self.at.since(self.marked_at) < LEAST_BYTES || self.marked.elapsed() < self.pause;
        if is_early { Ok(()) } else { self.mark() }
    }

    /// Makes durable what came so far, and notes how far that is.
    pub(super) fn mark(&mut self) -> Result<()> {
        if self.at <= self.from {
            return Ok(());
        }
        let watch = Stopwatch::start();
        let Target { host, folder, .. } = self.spot.target;
        self.image.flush()?;
        // What is promised of the file is of use only if a power cut leaves its name.
        host.sync_folder(folder)?;
        self.arrival.mark(host, folder, self.at.bytes())?;
        self.pause = PAUSE.max(watch.elapsed() * PAUSES);
        (self.marked, self.marked_at) = (Stopwatch::start(), self.at);
        Ok(())
    }

    /// Gives the layer its name, durably. If it does not show what was promised the draft goes, and this returns what is wrong
    /// (`Corrupt`). Fails with `Busy` if what it stands on was changed meanwhile.
    pub(super) fn finish(mut self) -> Result<Option<Error>> {
        if let Some(number) = self.open_leaf.take() {
            self.hash_leaf(number)?;
        }
        let Target { host, ledger, folder, .. } = self.spot.target;
        let (shown, promised) = (self.tree.id(), self.spot.head.id);
        if Guard::ArrivalProved.trips(shown != promised) {
            drop(self.image);
            host.remove(self.draft.path())?;
            self.arrival.close(host.as_ref(), folder)?;
            let what =
                format!("shows {}, and {} was promised: it is dropped", shown.short(), promised.short());
            return Ok(Some(Error::corrupt(what).path(&self.spot.to)));
        }
        self.image.flush()?;
        stand(ledger, (&self.image, &self.spot.to), self.spot.below, true)?;
        self.seal(ledger)?;
        if let Some(below) = self.spot.below {
            below.look_again(ledger)?;
        }
        drop(self.image);
        self.draft.file().flush_with_time()?;
        let temporary = self.draft.path().to_path_buf();
        match self.draft.publish_flushed(&self.spot.to, Publish::New) {
            // Somebody else has made it meanwhile: his note stands, or nobody needs one.
            Err(e) if e.kind() == ErrorKind::Exists => {
                remove_if_there(host.as_ref(), &temporary)?;
                let leads = host.kind(&self.spot.to)?.is_some();
                let what =
                    if leads { "is there already" } else { "is there already: a link that leads nowhere" };
                Err(Error::new(ErrorKind::Exists, what).path(&self.spot.to))
            }
            published => published.and_then(|()| self.arrival.close(host.as_ref(), folder)).map(|()| None),
        }
    }

    fn seal(&self, ledger: &Ledger) -> Result<()> {
        let known = ledger.look(self.image.as_ref())?;
        ledger.seal(self.image.as_ref(), &self.tree, &known).map(drop)
    }
}

/// Opens the draft of an earlier run; `None` if a kill has left it in a state that is not worth mending.
fn reopen(spot: &Spot<'_>, draft: &Draft) -> Result<Option<Arc<dyn Image>>> {
    open_sound(spot.target, spot.head, (draft.file(), Access::Write))
}

/// Opens a draft, if it can be gone on with: written as an image of that form, and not contradicting itself. Open for
/// writing, space that nothing uses is given back first.
fn open_sound(
    target: &Target,
    head: &LayerHead,
    (file, access): (Arc<dyn File>, Access),
) -> Result<Option<Arc<dyn Image>>> {
    let (parts, writes) = (Alone(target.opening.budget.clone()), access == Access::Write);
    let repair = if writes { Repair::Leaks } else { Repair::Nothing };
    // What is none of ours to open is as good as nothing: it is made anew.
    let is_spoilt =
        |e: &Error| matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Invalid);
    match format::check(head.format, Arc::clone(&file), repair, &parts) {
        Ok(checked) if checked.corruptions == 0 && checked.errors == 0 => {}
        Err(e) if e.kind() == ErrorKind::Unsupported => {}
        Ok(_) => return Ok(None),
        Err(e) if is_spoilt(&e) => return Ok(None),
        Err(e) => return Err(e),
    }
    match format::open(head.format, file, writes, &parts) {
        Ok(image) => Ok((image.size() == head.size).then_some(image)),
        Err(e) if is_spoilt(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns how much is here of a layer that an earlier run noted: nothing where its draft is not, or cannot be gone on with.
/// Nothing is written.
pub(super) fn done_bytes(target: &Target, head: &LayerHead, note: &Arrival) -> Result<u64> {
    if note.form != head.form() {
        return Ok(0);
    }
    let is_sound = match target.host.open(&target.folder.join(&note.temporary.0), Access::Read) {
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        // Somebody is at it: whoever goes on with it finds out.
        Err(e) if e.kind() == ErrorKind::Busy => true,
        opened => open_sound(target, head, (opened?, Access::Read))?.is_some(),
    };
    Ok(if is_sound { note.done_bytes } else { 0 })
}

/// Takes away what an earlier run has left of a layer that is there; what somebody is at stays.
pub(super) fn sweep(target: &Target, note: Arrival) -> Result<()> {
    let (host, folder) = (&target.host, &target.folder);
    let draft = match Draft::resume(host, &folder.join(&note.temporary.0)) {
        Err(e) if e.kind() == ErrorKind::Busy => return Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        draft => Some(draft?),
    };
    if let Some(draft) = &draft {
        remove_if_there(host.as_ref(), draft.path())?;
        host.sync_folder(folder)?;
    }
    note.close(host.as_ref(), folder)
}

fn make(spot: &Spot<'_>) -> Result<(Arrival, Draft, Arc<dyn Image>)> {
    let Target { host, folder, opening, .. } = spot.target;
    // Noted first: nothing is left behind that nobody knows of.
    let arrival = Arrival::begin(host, spot.head.id, &spot.to, spot.head.form())?;
    let draft = Draft::noted(host, &folder.join(&arrival.temporary.0))?;
    let parent = match spot.below {
        Some(below) => Some(below.chain.head()?.name_in(folder)),
        None => None,
    };
    let creation = Creation { size: spot.head.size, parent, options: spot.head.options.clone() };
    let parts = Alone(opening.budget.clone());
    let image = format::create(spot.head.format, draft.file(), &creation, &parts);
    let image = image.map_err(|e| {
        let e = e.renamed(draft.path(), &spot.to);
        // What was asked for is what came, not what a person said; a full disk is none of the sender's.
        let is_asked = matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported);
        if is_asked { e.with_kind(ErrorKind::Corrupt) } else { e }
    })?;
    Ok((arrival, draft, image))
}

/// Removes a file, if it is there.
fn remove_if_there(host: &dyn Host, path: &Path) -> Result<()> {
    match host.remove(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
