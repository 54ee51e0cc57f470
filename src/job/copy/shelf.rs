//! What the target folder has already: layers by content ID.

use super::Share;
use crate::{
    base::{Error, ErrorKind, Guard, Result},
    chain::{Chain, Layer, Opening},
    content::{ContentId, Tree},
    format::Format,
    io::{Access, Host},
    job::{
        Progress,
        find::{Offer, Offers},
        seal::{self, full_tree},
    },
    store::{Ledger, Trust},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Layers of a folder that say of themselves which content they show.
#[derive(Debug)]
pub(in crate::job) struct Shelf(Offers);

/// A layer whose content is proven, open (and locked against writers) as long as this is held.
#[derive(Debug)]
pub(in crate::job) struct Match {
    pub(in crate::job) chain: Chain,
    /// What it shows; `None` where it is the very layer that is looked for, and that is not known.
    pub(in crate::job) id: Option<ContentId>,
}

impl Shelf {
    /// Looks at what is in `folder`. Nothing is believed yet.
    pub(in crate::job) fn scan(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        folder: &Path,
        opening: &Opening,
    ) -> Result<Self> {
        Offers::of(host, ledger, folder, opening).map(Self)
    }

    /// Returns whether nothing is offered.
    pub(in crate::job) fn is_empty(&mut self) -> Result<bool> {
        self.0.is_empty()
    }

    /// Returns all that is offered.
    pub(in crate::job) fn offers(&mut self) -> Result<&[(ContentId, PathBuf)]> {
        self.0.complete()
    }

    /// Returns a layer that is proven to show `id`: by its witness, or by hashing it now.
    ///
    /// A layer that somebody writes, that is in doubt, or that shows something else is no match.
    pub(in crate::job) fn find(
        &mut self,
        host: &Arc<dyn Host>,
        id: ContentId,
        opening: &Opening,
        progress: &Progress,
    ) -> Result<Option<Match>> {
        let proven = |offer: &Offer| Match::open(host, (&offer.path, offer.format), id, opening, progress);
        self.0.first(id, &proven)
    }
}

impl Match {
    /// Opens an image that is proven to show `id`; `None` if it cannot be opened or is not.
    pub(in crate::job) fn open(
        host: &Arc<dyn Host>,
        (path, format): (&Path, Format),
        id: ContentId,
        opening: &Opening,
        progress: &Progress,
    ) -> Result<Option<Self>> {
        let how = Opening { access: Access::Read, parent_format: None, ..opening.clone() };
        let chain = match Chain::open(host, path, &how.with_format(Some(format))) {
            Ok(chain) => chain,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(_) => return Ok(None),
        };
        Ok(is_proven(&chain, id, progress)?.then_some(Self { chain, id: Some(id) }))
    }
}

/// Returns whether the chain's topmost layer shows `id` for certain.
fn is_proven(chain: &Chain, id: ContentId, progress: &Progress) -> Result<bool> {
    let Some(standing) = chain.standings().first() else { return Ok(false) };
    if standing.known.sealed() != Some(id) {
        return Ok(false);
    }
    match standing.known.trust {
        Trust::Claimed if Guard::MatchHashed.trips(true) => {
            Ok(full_tree(&chain.view(0), progress)?.tree.id() == id)
        }
        Trust::Trusted | Trust::Claimed => Ok(true),
        Trust::Doubted(_) | Trust::Unknown => Ok(false),
    }
}

/// Returns how many layers have to be copied, and what the deepest of them will stand on.
pub(super) fn find_match(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    chain: &Chain,
    (folder, opening): (&Path, &Opening),
    share: Share,
) -> Result<(usize, Option<Match>)> {
    let depth = chain.layers().len();
    if share == Share::Deny || depth == 1 {
        return Ok((depth, None));
    }
    let (mut shelf, progress) = (Shelf::scan(host, ledger, folder, opening)?, Progress::default());
    let deepest = if share == Share::ChildOnly { 2 } else { depth };
    // What lies there already, whatever it shows, is not in its own way.
    let lies_there = |layer: &Layer| layer.path.parent() == Some(folder);
    let there = (1..deepest).find(|at| chain.layers().get(*at).is_some_and(lies_there));
    if !shelf.is_empty()? && there != Some(1) {
        let ids = ids(chain, &progress)?;
        for (at, id) in ids.iter().enumerate().take(there.unwrap_or(deepest)).skip(1) {
            if let Some(found) = shelf.find(host, *id, opening, &progress)? {
                return Ok((at, Some(found)));
            }
        }
    }
    if let Some((at, layer)) = there.and_then(|at| Some((at, chain.layers().get(at)?))) {
        let how = Opening { parent_format: None, ..opening.clone() }.with_format(Some(layer.format()));
        let chain = Chain::open(host, &layer.path, &how)?;
        let id = chain.standings().first().and_then(|standing| standing.known.proven());
        return Ok((at, Some(Match { chain, id })));
    }
    if share == Share::ChildOnly {
        let what = format!("nothing in {} shows what its parent shows", folder.display());
        return Err(Error::new(ErrorKind::NotFound, what).path(&chain.head()?.path));
    }
    Ok((depth, None))
}

/// Returns the content ID of every layer of the chain but the head, which comes first and is not looked at: what
/// is proven is taken, the rest is computed from the base up.
fn ids(chain: &Chain, progress: &Progress) -> Result<Vec<ContentId>> {
    let proven: Option<Vec<_>> = chain.standings().iter().skip(1).map(|s| s.known.proven()).collect();
    let below_head = match proven {
        Some(ids) => ids,
        None => computed(chain, progress)?,
    };
    let nobody = Tree::new(0).id();
    Ok(std::iter::once(nobody).chain(below_head).collect())
}

fn computed(chain: &Chain, progress: &Progress) -> Result<Vec<ContentId>> {
    let (mut ids, mut tree) = (Vec::new(), None);
    for depth in (1..chain.layers().len()).rev() {
        let view = chain.view(depth);
        let hashed = match tree.take() {
            None => full_tree(&view, progress)?,
            Some(below) => seal::tree_over(&view, below, progress)?,
        };
        ids.push(hashed.tree.id());
        tree = Some(hashed.tree);
    }
    ids.reverse();
    Ok(ids)
}
