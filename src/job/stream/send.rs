//! A chain on its way out: what each layer holds, in guest order, zeros and what the receiver has left out.

use super::{
    extents::Sending,
    frame::Frame,
    terms::{LayerHead, SAMPLES_MAX, check_layers},
    token::Token,
    wire::Output,
};
use crate::{
    base::{
        Error, ErrorKind, GuestOffset, Result,
        name::FileName,
        units::{SECTOR_BYTES, count, index},
    },
    chain::{Chain, Opening, View},
    content::{ContentId, IdPrefix, LEAF_BYTES, Tree},
    io::{Access, Host},
    job::{Progress, copy::Names, create::options_like, seal},
    map::State,
    store::Ledger,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What of a format's own facts a layer keeps.
const KEPT: [&str; 5] = ["compat", "compression-type", "extended-l2", "lazy-refcounts", "refcount-bits"];

/// What is asked of a stream.
#[derive(Clone, Debug, Default)]
pub struct SendRequest {
    /// What the receiver has: the layer with such a content ID, and all below it, are not sent.
    pub have: Vec<IdPrefix>,
    /// Where a stream that was cut off goes on.
    pub resume: Option<Token>,
}

/// What is going to be sent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SendPlan {
    /// The head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// The layers, the deepest first.
    pub layers: Vec<SentLayer>,
    /// What the deepest one stands on at the receiver.
    pub parent: Option<ContentId>,
    /// Guest bytes at most.
    pub send_bytes: u64,
    /// What streams do not carry, as `FILE: what`.
    pub lost: Vec<String>,
}

/// A layer that is going to be sent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SentLayer {
    /// Its name at the receiver.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub name: PathBuf,
    /// What it shows.
    pub id: ContentId,
    /// Guest bytes at most.
    pub bytes: u64,
}

/// A chain that is planned to be sent.
#[derive(Debug)]
pub struct Outgoing {
    ledger: Ledger,
    chain: Chain,
    /// The deepest layer first.
    heads: Vec<LayerHead>,
    lost: Vec<String>,
}

impl Outgoing {
    /// Opens the chain at `top`, and finds out what each layer shows: what is not proven is hashed.
    ///
    /// Fails as [`Chain::open`]; `Invalid` for a chain with layers that no stream can carry.
    pub fn open(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        top: &Path,
        opening: &Opening,
        progress: &Progress,
    ) -> Result<Self> {
        let opening = Opening { access: Access::Read, ..opening.clone() }.with_ledger(ledger.clone());
        let chain = Chain::open(host, top, &opening)?;
        Self::of(ledger, chain, progress)
    }

    /// The same of a chain that is open.
    pub(super) fn of(ledger: &Ledger, chain: Chain, progress: &Progress) -> Result<Self> {
        let (mut names, mut own) = (Names::default(), Vec::new());
        for layer in chain.layers() {
            own.push(names.take(PathBuf::from(layer.path.file_name().unwrap_or_default()), &layer.path));
        }
        let (mut heads, mut tree): (Vec<LayerHead>, Option<Tree>) = (Vec::new(), None);
        for ((depth, layer), name) in chain.layers().iter().enumerate().rev().zip(own.into_iter().rev()) {
            let known = chain.standings().get(depth).and_then(|standing| standing.known.proven());
            let below = tree.take();
            tree = match known {
                Some(id) => ledger.tree(layer.image.as_ref(), &id)?,
                None => Some(hashed(&chain, depth, below, progress)?),
            };
            let id = known.or(tree.as_ref().map(Tree::id)).ok_or_else(|| Error::invalid("no such layer"))?;
            heads.push(LayerHead {
                name: FileName(name),
                format: layer.format(),
                options: options_like(layer.image.as_ref(), &KEPT)?,
                size: layer.size().next_multiple_of(SECTOR_BYTES),
                id,
                parent: heads.last().map(|below| below.id),
                bytes: 0,
                samples: tree
                    .as_ref()
                    .map(|tree| samples(&chain.view(depth), tree))
                    .transpose()?
                    .unwrap_or_default(),
            });
        }
        check_layers(&heads).map_err(|e| e.with_kind(ErrorKind::Invalid))?;
        let lost = losses(&chain)?;
        let mut outgoing = Self { ledger: ledger.clone(), chain, heads, lost };
        let layers = 0..outgoing.heads.len();
        let bytes = layers.map(|nth| outgoing.sending(nth, 0, None, progress)?.most_bytes());
        let bytes: Vec<u64> = bytes.collect::<Result<_>>()?;
        outgoing.heads.iter_mut().zip(bytes).for_each(|(head, bytes)| head.bytes = bytes);
        Ok(outgoing)
    }

    pub(super) fn heads(&self) -> &[LayerHead] {
        &self.heads
    }

    pub(super) fn lost(&self) -> &[String] {
        &self.lost
    }

    /// Returns what one layer holds, to be sent from `from` on but for what the receiver's `relative` has.
    pub(super) fn sending<'a>(
        &'a self,
        nth: usize,
        from: u64,
        relative: Option<&'a Tree>,
        progress: &'a Progress,
    ) -> Result<Sending<'a>> {
        let depth = self.heads.len().checked_sub(nth + 1);
        let found =
            depth.and_then(|depth| Some((depth, self.chain.layers().get(depth)?, self.heads.get(nth)?)));
        let (depth, layer, head) = found.ok_or_else(|| Error::invalid("no such layer"))?;
        let tree = self.ledger.tree(layer.image.as_ref(), &head.id)?;
        let has_parent = head.parent.is_some();
        Ok(Sending { view: self.chain.view(depth), has_parent, from, tree, relative, progress })
    }

    /// Plans a stream. `Invalid` if there is nothing to send, or a token names no layer of the chain.
    pub fn plan(self, request: &SendRequest) -> Result<Sent> {
        let head = self.chain.head()?.path.clone();
        let is_there = |layer: &LayerHead| request.have.iter().any(|prefix| prefix.matches(&layer.id));
        let (first, from) = match &request.resume {
            Some(token) => {
                let place = self.heads.iter().position(|layer| layer.id == token.id);
                let what = "holds no layer with the token's content ID: it was changed since";
                (place.ok_or_else(|| Error::invalid(what).path(&head))?, token.from)
            }
            None => (self.heads.iter().rposition(is_there).map_or(0, |place| place + 1), 0),
        };
        let sent = self.heads.get(first..).unwrap_or_default();
        let (Some(deepest), quiet) = (sent.first(), Progress::default()) else {
            return Err(
                Error::invalid("is there already, with all that it shows: nothing to send").path(&head)
            );
        };
        let mut plan = SendPlan {
            head,
            layers: Vec::new(),
            parent: deepest.parent,
            send_bytes: 0,
            lost: self.lost.clone(),
        };
        for (nth, layer) in self.heads.iter().enumerate().skip(first) {
            let is_cut = nth == first && from > 0;
            let bytes =
                if is_cut { self.sending(nth, from, None, &quiet)?.most_bytes()? } else { layer.bytes };
            plan.layers.push(SentLayer { name: layer.name.0.clone(), id: layer.id, bytes });
            plan.send_bytes += bytes;
        }
        Ok(Sent { outgoing: self, plan, first, from })
    }
}

/// A stream that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Sent {
    outgoing: Outgoing,
    plan: SendPlan,
    first: usize,
    from: u64,
}

impl Sent {
    /// Returns what is going to be sent.
    pub const fn plan(&self) -> &SendPlan {
        &self.plan
    }

    /// Writes the stream to `to`; returns how many guest bytes went.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{
    ///     chain::Opening,
    ///     job::{Progress, stream::{Incoming, Outgoing, SendRequest}},
    ///     store::Ledger,
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let base = folder.path().join("base.qcow2");
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let (ledger, there) = (Ledger::new(Arc::clone(&host), None), folder.path().join("there"));
    /// host.make_folder(&there)?;
    /// let (file, progress) = (folder.path().join("stream"), Progress::default());
    /// let chain = Outgoing::open(&host, &ledger, &base, &Opening::reading(), &progress)?;
    /// let to = Box::new(std::fs::File::create(&file)?);
    /// chain.plan(&SendRequest::default())?.run(to, &progress)?;
    /// let from = Box::new(std::fs::File::open(&file)?);
    /// let arriving = Incoming::begin(&host, &ledger, (&there, from), &Opening::reading(), &progress)?;
    /// assert!(arriving.run(&progress)?.head.ends_with("there/base.qcow2"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn run(self, to: Box<dyn std::io::Write + Send>, progress: &Progress) -> Result<u64> {
        progress.begin("send", self.plan.send_bytes);
        let mut out = Output::new(to);
        let sent = self.outgoing.heads.get(self.first..).unwrap_or_default();
        for layer in sent {
            out.put(&Frame::Layer(Box::new(layer.clone())), progress)?;
        }
        let layers = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        out.put(&Frame::Start { layers }, progress)?;
        for (nth, at) in (0..layers).zip(self.first..) {
            let from = if nth == 0 { self.from } else { 0 };
            self.outgoing.sending(at, from, None, progress)?.run(nth, &mut out)?;
        }
        out.put_end(progress)?;
        let bytes = out.data_bytes();
        out.finish(progress)?;
        Ok(bytes)
    }
}

fn hashed(chain: &Chain, depth: usize, below: Option<Tree>, progress: &Progress) -> Result<Tree> {
    let view = chain.view(depth);
    let is_base = depth + 1 == chain.layers().len();
    let hashed = match below {
        Some(below) if !is_base => seal::tree_over(&view, below, progress)?,
        _ => seal::full_tree(&view, progress)?,
    };
    Ok(hashed.tree)
}

/// Returns the hashes of leaves that are spread over what the view's topmost layer holds.
fn samples(view: &View, tree: &Tree) -> Result<Vec<(u64, String)>> {
    let mut held = Vec::new();
    for stride in GuestOffset::new(0).range(view.size()).pieces(seal::stride_bytes(view)?) {
        let mut extents = Vec::new();
        view.own_map(stride, &mut extents)?;
        let data = extents.iter().filter(|e| matches!(e.state, State::Data { .. } | State::Packed));
        let leaves = data.map(|extent| extent.range.outer(LEAF_BYTES));
        held.extend(leaves.map(|range| (range.start.bytes() / LEAF_BYTES, range.bytes / LEAF_BYTES)));
    }
    let all: u64 = held.iter().map(|(_, leaves)| leaves).sum();
    let step = index(all.div_ceil(count(SAMPLES_MAX)).max(1));
    let leaves = held.into_iter().flat_map(|(first, leaves)| first..first + leaves).step_by(step);
    let digests = leaves.map(|leaf| (leaf, tree.get(leaf)));
    let digests = digests.filter(|(_, digest)| !digest.is_zero()).take(SAMPLES_MAX);
    Ok(digests.map(|(leaf, digest)| (leaf, digest.short())).collect())
}

/// Returns what streams do not carry.
fn losses(chain: &Chain) -> Result<Vec<String>> {
    let mut lost = Vec::new();
    for layer in chain.layers() {
        let (details, name) = (layer.image.details()?, layer.path.display());
        lost.extend(details.snapshots.iter().map(|s| format!("{name}: snapshot {}", s.name)));
        lost.extend(details.bitmaps.iter().map(|bitmap| format!("{name}: bitmap {}", bitmap.name)));
    }
    Ok(lost)
}
