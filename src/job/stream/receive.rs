//! A chain on its way in: what is there already is linked, the rest arrives layer by layer, the deepest first.

use super::{
    Target, Token,
    frame::Frame,
    growing::{Growing, Spot, done_bytes, sweep},
    relative::Relative,
    terms::{LAYERS_MAX, LayerHead, check_layers, shown},
    wire::{Input, Output},
};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Opening},
    content::{ContentId, Digest},
    io::{Access, EntryKind, Host},
    job::{
        Progress,
        copy::{Below, Making, Match, Seen, Share, Shelf, Turns, Wanted},
        seal,
    },
    store::{Arrival, Draft, Ledger, Purpose},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Layers to which something like them is looked for.
const RELATIVES_MAX: usize = 16;
/// Leaves that those have together at most: so many hashes are held in memory, and told.
pub(super) const RELATIVES_LEAVES_MAX: u64 = 4 << 20;

/// What is done with one layer of a stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WhatArrives {
    /// The file that it is, or is going to be.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub to: PathBuf,
    /// What it shows.
    pub id: ContentId,
    /// Whether it is there already, or another image that shows the same.
    pub is_there: bool,
    /// How much of it is there: guest bytes before this place.
    pub done_bytes: u64,
}

/// What is going to be done with a stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ReceivePlan {
    /// The folder.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub folder: PathBuf,
    /// The layers, the deepest first.
    pub layers: Vec<WhatArrives>,
    /// What the deepest layer that is missing stands on, if it stands on something.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub link: Option<PathBuf>,
    /// Guest bytes that arrive at most.
    pub receive_bytes: u64,
    /// Space free there, in bytes.
    pub free_bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Received {
    /// As planned.
    pub plan: ReceivePlan,
    /// The head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// Guest bytes that came.
    pub received_bytes: u64,
    /// Guest bytes that came from a relative in the store.
    pub taken_bytes: u64,
}

/// A layer that has arrived in part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Arriving {
    /// The name that it will have.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub name: PathBuf,
    /// What it will show.
    pub id: ContentId,
    /// Guest bytes before this place are there.
    pub done_bytes: u64,
    /// What the sender has to be told so that it goes on from there.
    pub token: Token,
}

/// Returns the layers that have arrived in `folder` in part.
pub fn arriving(host: &dyn Host, folder: &Path) -> Result<Vec<Arriving>> {
    let mut shown = Vec::new();
    for Arrival { name, id, temporary, done_bytes, .. } in Arrival::all(host, folder)? {
        let is_there = host.kind(&folder.join(&temporary.0))?.is_some();
        let done_bytes = if is_there { done_bytes } else { 0 };
        shown.push(Arriving { name: name.0, id, done_bytes, token: Token::new(id, done_bytes) });
    }
    Ok(shown)
}

/// A chain that arrives, of which the layers' heads were read: nothing is written yet.
#[derive(Debug)]
pub struct Incoming {
    target: Target,
    pub(super) input: Input,
    shelf: Shelf,
    heads: Vec<LayerHead>,
    share: Share,
    /// What the folder had when this was planned.
    seen: Seen,
    /// Whether the sender was told of this plan.
    pub(super) is_told: bool,
    /// The deepest layer that is missing.
    first: usize,
    below: Option<Below>,
    /// By layer: what the store has that is like it.
    relatives: BTreeMap<usize, Relative>,
    /// What earlier runs have left of layers that are there.
    left: Vec<Arrival>,
    plan: ReceivePlan,
}

/// What became of a layer that came.
enum Came {
    /// It has its name; so many bytes were taken from its relative.
    Whole(u64),
    /// It does not show what was promised: nothing of it is left.
    Dropped(Error),
    /// It was not read, since less of it is here than its sender takes for granted.
    Short(Error),
}

impl Incoming {
    /// Reads the start of a stream, and looks at what `folder` has.
    ///
    /// `Corrupt` for what is no stream; `NotFound` where what its deepest layer stands on is not there; `Exists` where a
    /// name is taken by something else; `NoSpace` if the folder's file system is too full.
    pub fn begin(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        (folder, from): (&Path, Box<dyn Read + Send>),
        opening: &Opening,
        progress: &Progress,
    ) -> Result<Self> {
        let target = Target::new(host, ledger, folder, opening)?;
        let mut input = Input::new(from);
        let heads = heads(&mut input, progress)?;
        Self::of(target, (input, heads), Share::Allow, progress)
    }

    /// The same of layers whose heads were read.
    pub(super) fn of(
        target: Target,
        (input, heads): (Input, Vec<LayerHead>),
        share: Share,
        progress: &Progress,
    ) -> Result<Self> {
        let seen = Seen::of(target.host.as_ref(), &target.folder)?;
        let mut shelf = Shelf::scan(&target.host, &target.ledger, &target.folder, &target.opening)?;
        let (first, below) = target.find(&mut shelf, &heads, share, progress)?;
        let (layers, left) = target.places(&heads, first)?;
        // A name that is taken may be that of a layer which another copy has brought, and not let go of when it was looked at.
        let is_named =
            |layer: &WhatArrives, head: &LayerHead| layer.is_there || layer.to.ends_with(&head.name.0);
        let are_named = layers.iter().zip(&heads).all(|(layer, head)| is_named(layer, head));
        let seen = if are_named { seen } else { Seen::default() };
        let link =
            below.as_ref().map(|below| below.chain.head().map(|head| head.path.clone())).transpose()?;
        let missing = heads.iter().skip(first);
        let receive_bytes = missing.clone().map(|head| head.bytes).fold(0, u64::saturating_add);
        let free_bytes = target.host.free_bytes(&target.folder)?;
        let is_resumed = layers.iter().any(|layer| layer.done_bytes > 0);
        if receive_bytes > free_bytes && !is_resumed {
            let what = format!("{receive_bytes} bytes are to come, {free_bytes} are free there");
            return Err(Error::new(ErrorKind::NoSpace, what).path(&target.folder));
        }
        let folder = target.folder.clone();
        let plan = ReceivePlan { folder, layers, link, receive_bytes, free_bytes };
        let (relatives, is_told) = (BTreeMap::new(), false);
        Ok(Self { target, input, shelf, heads, share, seen, is_told, first, below, relatives, left, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &ReceivePlan {
        &self.plan
    }

    /// Receives the rest. Cut off at any moment, no name stands for something that is not whole, and the same stream
    /// again, or one from where it was cut, goes on from there.
    ///
    /// What another copy brings at the same time is waited for, and linked; the report has the plan as it is then.
    pub fn run(self, progress: &Progress) -> Result<Received> {
        let (this, turns) = self.take_turns(progress)?;
        progress.begin("receive", this.heads.iter().map(|head| head.bytes).fold(0, u64::saturating_add));
        this.run_with(turns, None, progress)
    }

    /// The same, with the turns for all that is made. A sender that is told of each layer's end sends only what is missing.
    pub(super) fn run_with(
        mut self,
        mut turns: Turns,
        mut sender: Option<&mut Output>,
        progress: &Progress,
    ) -> Result<Received> {
        for left in std::mem::take(&mut self.left) {
            sweep(&self.target, left)?;
        }
        let (start, mut taken_bytes) = (if sender.is_some() { self.first } else { 0 }, 0);
        for nth in start..self.heads.len() {
            if nth < self.first {
                self.begin_layer(nth, progress)?;
                self.skip(progress)?;
                continue;
            }
            taken_bytes += self.receive(nth, sender.as_deref_mut(), progress)?;
            // The head's stands for all of it.
            if let Some(made) = self.plan.layers.get(nth).filter(|_| nth + 1 < self.heads.len()) {
                turns.end(&made.to);
            }
            if let Some(sender) = sender.as_mut() {
                sender.put(&Frame::Done { nth: number(nth) }, progress)?;
            }
        }
        match self.input.next(progress)? {
            Frame::End { .. } => self.report(taken_bytes),
            other => Err(other.misplaced("the end")),
        }
    }

    fn report(self, taken_bytes: u64) -> Result<Received> {
        let head = self.plan.layers.last().ok_or_else(|| Error::invalid("a stream without layers"))?;
        let head = head.to.clone();
        let received_bytes = self.input.data_bytes();
        Ok(Received { plan: self.plan, head, received_bytes, taken_bytes })
    }

    fn begin_layer(&mut self, nth: usize, progress: &Progress) -> Result<u64> {
        match self.input.next(progress)? {
            Frame::Begin { nth: told, from } if u32::try_from(nth) == Ok(told) => Ok(from),
            other => Err(other.misplaced("the next layer")),
        }
    }

    /// Passes over a layer that is there, or that has to come again.
    fn skip(&mut self, progress: &Progress) -> Result<()> {
        loop {
            match self.input.next(progress)? {
                Frame::Data(data) => progress.passed(data.bytes().len() as u64),
                Frame::Zero(_) | Frame::Take(_) => {}
                Frame::LayerEnd { .. } => return Ok(()),
                other => return Err(other.misplaced("an extent")),
            }
        }
    }

    /// Looks for what the store has that is like the layers that are missing.
    pub(super) fn find_relatives(&mut self, progress: &Progress) -> Result<()> {
        let mut leaves = 0;
        for (nth, head) in self.heads.iter().enumerate().skip(self.first).take(RELATIVES_MAX) {
            if let Some(found) = Relative::find(&self.target, &mut self.shelf, head, progress)? {
                leaves += found.tree().held_leaves();
                if leaves > RELATIVES_LEAVES_MAX {
                    break;
                }
                self.relatives.insert(nth, found);
            }
        }
        Ok(())
    }

    /// Returns the leaves of a layer's relative that the layer may have, too.
    pub(super) fn relative_leaves(&self, nth: usize) -> impl Iterator<Item = (u64, Digest)> + '_ {
        let leaves = self.heads.get(nth).map_or(0, LayerHead::leaves);
        let all = self.relatives.get(&nth).into_iter().flat_map(|relative| relative.tree().iter());
        all.take_while(move |(leaf, _)| *leaf < leaves)
    }

    /// Takes in one layer, and gives it its name; returns how many bytes its relative had. What an earlier run left of it may
    /// turn out not to be right: a sender that can be asked sends all of it then.
    fn receive(&mut self, nth: usize, mut sender: Option<&mut Output>, progress: &Progress) -> Result<u64> {
        loop {
            let from = self.begin_layer(nth, progress)?;
            match (self.take_layer(nth, from, progress)?, &sender) {
                (Came::Whole(taken_bytes), _) => return Ok(taken_bytes),
                (Came::Dropped(_), Some(_)) if from > 0 => {}
                (Came::Short(_), Some(_)) => self.skip(progress)?,
                (Came::Dropped(error) | Came::Short(error), _) => return Err(error),
            }
            if let Some(sender) = sender.as_mut() {
                sender.put(&Frame::Again { nth: number(nth) }, progress)?;
            }
        }
    }

    /// Takes in one layer, of which nothing is sent before `from`.
    fn take_layer(&mut self, nth: usize, from: u64, progress: &Progress) -> Result<Came> {
        let purpose = Purpose::job(format!("what arrives in {}", self.target.folder.display()));
        self.below.as_mut().map_or(Ok(()), |below| below.lease(&purpose))?;
        let place = self.heads.get(nth).zip(self.plan.layers.get(nth));
        let (head, planned) = place.ok_or_else(|| Error::invalid("no such layer"))?;
        let relative = self.relatives.get(&nth);
        let (target, below, to) = (&self.target, self.below.as_ref(), planned.to.clone());
        let before = progress.state();
        let mut growing = Growing::begin(Spot { target, head, to: to.clone(), below, relative }, progress)?;
        if progress.state().phase != before.phase {
            // What was there is hashed by now: what comes goes on to be counted.
            progress.begin(before.phase, before.size_bytes.saturating_sub(before.moved_bytes));
        }
        if let Err(error) = growing.go_on_from(from) {
            return Ok(Came::Short(error));
        }
        loop {
            let frame = match self.input.next(progress) {
                Ok(Frame::Failed(failed)) => Err(failed.error()),
                frame => frame,
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    // What came is kept if that goes; why no more came is what the caller hears of.
                    let _ = growing.mark();
                    return Err(error);
                }
            };
            let taken = match frame {
                Frame::Data(data) => {
                    progress.moved(data.bytes().len() as u64);
                    growing.write(data.at(), data.bytes())
                }
                Frame::Zero(range) => growing.zero(range, progress),
                Frame::Take(range) => growing.take(range, progress),
                Frame::LayerEnd { nth: told } if u32::try_from(nth) == Ok(told) => break,
                other => return Err(other.misplaced("an extent")),
            };
            taken.and_then(|()| growing.rest()).map_err(|error| Draft::name_target(error, &to))?;
        }
        let taken_bytes = growing.taken_bytes;
        if let Some(error) = growing.finish().map_err(|error| Draft::name_target(error, &to))? {
            return Ok(Came::Dropped(error));
        }
        let opening = target.opening.clone().with_format(Some(head.format));
        self.below = Some(Below::new(&target.host, Chain::open(&target.host, &to, &opening)?));
        Ok(Came::Whole(taken_bytes))
    }
}

impl Making for Incoming {
    fn target(&self) -> (&Arc<dyn Host>, &Path, &Seen) {
        (&self.target.host, &self.target.folder, &self.seen)
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for layer in self.plan.layers.iter().filter(|layer| !layer.is_there) {
            wanted.add(&layer.to, Some(layer.id));
        }
        wanted
    }

    fn again(self, progress: &Progress) -> Result<Self> {
        let Self { target, input, heads, share, is_told, relatives, plan, .. } = self;
        let new = Self::of(target, (input, heads), share, progress)?;
        // What the sender was told still holds.
        let is_same = (&new.plan.layers, &new.plan.link) == (&plan.layers, &plan.link);
        Ok(if is_same { Self { is_told, relatives, ..new } } else { new })
    }
}

/// A layer's number, as frames have it.
fn number(nth: usize) -> u32 {
    u32::try_from(nth).unwrap_or(u32::MAX)
}

/// Reads the heads of the layers.
pub(super) fn heads(input: &mut Input, progress: &Progress) -> Result<Vec<LayerHead>> {
    let mut heads = Vec::new();
    loop {
        match input.next(progress)? {
            Frame::Layer(head) if heads.len() < LAYERS_MAX => heads.push(*head),
            Frame::Start { layers } if heads.len() as u64 == u64::from(layers) && layers > 0 => break,
            other => return Err(other.misplaced("a layer's head")),
        }
    }
    check_layers(&heads)?;
    let mut names = BTreeSet::new();
    match heads.iter().find(|head| !names.insert(&head.name)) {
        Some(twice) => Err(Error::corrupt(format!("two layers are called {}", shown(&twice.name)))),
        None => Ok(heads),
    }
}

impl Target {
    /// Looks at the folder; `Invalid` if it is none.
    pub(super) fn new(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        folder: &Path,
        opening: &Opening,
    ) -> Result<Self> {
        let folder = host.canonical(folder)?;
        if host.kind(&folder)? != Some(EntryKind::Folder) {
            return Err(Error::invalid("is not a folder").path(&folder));
        }
        let opening = Opening { access: Access::Read, format: None, parent_format: None, ..opening.clone() };
        let (host, ledger) = (Arc::clone(host), ledger.clone());
        Ok(Self { host, opening: opening.with_ledger(ledger.clone()), ledger, folder })
    }

    /// Returns the deepest layer that is missing, and what it stands on: the walk goes from the head down.
    fn find(
        &self,
        shelf: &mut Shelf,
        heads: &[LayerHead],
        share: Share,
        progress: &Progress,
    ) -> Result<(usize, Option<Below>)> {
        let mut find = |id| shelf.find(&self.host, id, &self.opening, progress);
        let Some((top, parents)) = heads.split_last() else { return Ok((0, None)) };
        if self.is_there(top, progress)? {
            return Ok((heads.len(), None));
        }
        for (nth, head) in parents.iter().enumerate().rev().filter(|_| share != Share::Deny) {
            // Not every raw image tells by its name that it is one.
            let named = || {
                let place = self.folder.join(&head.name.0);
                Match::open(&self.host, (&place, head.format), head.id, &self.opening, progress)
            };
            if let Some(found) = find(head.id)?.map_or_else(named, |found| Ok(Some(found)))? {
                return Ok((nth + 1, Some(Below::new(&self.host, found.chain))));
            }
            if share == Share::ChildOnly {
                let what = format!("nothing in {} shows what its parent shows", self.folder.display());
                return Err(Error::new(ErrorKind::NotFound, what).path(&top.name.0));
            }
        }
        let Some(parent) = heads.first().and_then(|head| head.parent) else { return Ok((0, None)) };
        let none = || {
            let what = format!("has no layer that shows {parent}, on which what comes stands");
            Error::new(ErrorKind::NotFound, what).path(&self.folder)
        };
        let found = find(parent)?.ok_or_else(none)?;
        Ok((0, Some(Below::new(&self.host, found.chain))))
    }

    /// Returns whether the head is there under its name; `Exists` if something else has that.
    fn is_there(&self, top: &LayerHead, progress: &Progress) -> Result<bool> {
        let place = self.folder.join(&top.name.0);
        if self.host.kind(&place)?.is_none() {
            return Ok(false);
        }
        let taken = || Error::new(ErrorKind::Exists, "is there already").path(&place);
        let opening = self.opening.clone().with_format(Some(top.format));
        let chain = match Chain::open(&self.host, &place, &opening) {
            Err(e) if e.kind() == ErrorKind::Busy => {
                // Another copy that has just brought it lets go of it in a moment.
                Turns::wait(&self.host, &place, progress)?;
                Chain::open(&self.host, &place, &opening)
            }
            opened => opened,
        };
        let chain = match chain {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(_) => return Err(taken()),
            Ok(chain) => chain,
        };
        // The very thing, and not something that shows the same over a link that leads elsewhere.
        let known = chain.standings().first().and_then(|standing| standing.known.proven());
        let id = match known {
            Some(id) => id,
            None => seal::full_tree(&chain.view(0), progress)?.tree.id(),
        };
        if id == top.id { Ok(true) } else { Err(taken()) }
    }

    /// Returns where the layers are, or will be, and what earlier runs have left of those that are there.
    fn places(&self, heads: &[LayerHead], first: usize) -> Result<(Vec<WhatArrives>, Vec<Arrival>)> {
        let (mut places, mut notes) = (Vec::new(), BTreeMap::new());
        for head in heads {
            if let Some(note) = Arrival::find(self.host.as_ref(), &self.folder, &head.id)? {
                notes.insert(head.id.hex(), note);
            }
        }
        for (nth, head) in heads.iter().enumerate() {
            let mut to = self.folder.join(&head.name.0);
            if nth < first {
                places.push(WhatArrives { to, id: head.id, is_there: true, done_bytes: 0 });
                continue;
            }
            if self.host.kind(&to)?.is_some() {
                // Another layer has the name: what lies below a head is found by what it shows.
                to = self.folder.join(with_id(&head.name, &head.id));
                if self.host.kind(&to)?.is_some() {
                    return Err(Error::new(ErrorKind::Exists, "is there already").path(&to));
                }
            }
            // Several layers may show the same: one of them had begun to come.
            let note = notes.remove(&head.id.hex());
            let done_bytes = note.map_or(Ok(0), |note| done_bytes(self, head, &note))?;
            places.push(WhatArrives { to, id: head.id, is_there: false, done_bytes });
        }
        Ok((places, notes.into_values().collect()))
    }
}

/// Returns a name that only a layer with this content ID has.
fn with_id(name: &Path, id: &ContentId) -> PathBuf {
    let mut distinct = name.file_stem().unwrap_or_default().to_owned();
    distinct.push("-");
    distinct.push(id.hex().get(..12).unwrap_or_default());
    if let Some(suffix) = name.extension() {
        distinct.push(".");
        distinct.push(suffix);
    }
    PathBuf::from(distinct)
}
