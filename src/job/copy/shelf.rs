//! What the target folder has already: layers by content ID.

use crate::{
    base::{ErrorKind, Guard, Result},
    chain::{Chain, Opening},
    content::ContentId,
    format::Format,
    io::{Access, Host},
    job::{
        Progress,
        find::{Offer, Offers},
        seal::full_tree,
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
    pub(in crate::job) id: ContentId,
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
        Ok(is_proven(&chain, id, progress)?.then_some(Self { chain, id }))
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
