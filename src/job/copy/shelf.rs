//! What the target folder has already: layers by content ID.

use crate::{
    base::{ErrorKind, Guard, Result},
    chain::{Chain, Family, Opening},
    content::ContentId,
    format::Format,
    io::{Access, Host},
    job::{Progress, seal::full_tree},
    store::{Ledger, Trust},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Layers of a folder that say of themselves which content they show.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Sorted by ID, then by path, so that a choice among several is the same each time.
    offers: Vec<Offer>,
}

#[derive(Debug)]
struct Offer {
    id: ContentId,
    path: PathBuf,
    format: Format,
}

/// A layer whose content is proven, open (and locked against writers) as long as this is held.
#[derive(Debug)]
pub(super) struct Match {
    pub(super) chain: Chain,
    pub(super) id: ContentId,
}

impl Shelf {
    /// Reads the records of the images in `folder`. Nothing is believed yet.
    pub(super) fn scan(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        folder: &Path,
        opening: &Opening,
    ) -> Result<Self> {
        let mut offers = Vec::new();
        for member in Family::scan(host.as_ref(), &[folder.to_path_buf()])?.members {
            let how =
                Opening { access: Access::ReadShared, ..opening.clone() }.with_format(Some(member.format));
            let Ok(layer) = crate::chain::open_layer(host, &member.path, &how) else { continue };
            let known = ledger.look(layer.image.as_ref())?;
            if let Some(id) = known.layer.frozen.and_then(|record| record.sealed) {
                offers.push(Offer { id, path: member.path, format: member.format });
            }
        }
        offers.sort_by(|a, b| (a.id.hex(), &a.path).cmp(&(b.id.hex(), &b.path)));
        Ok(Self { offers })
    }

    /// Returns whether nothing is offered.
    pub(super) const fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// Returns a layer that is proven to show `id`: by its witness, or by hashing it now.
    ///
    /// A layer that somebody writes, that is in doubt, or that shows something else is no match.
    pub(super) fn find(
        &self,
        host: &Arc<dyn Host>,
        id: ContentId,
        opening: &Opening,
        progress: &Progress,
    ) -> Result<Option<Match>> {
        for offer in self.offers.iter().filter(|offer| offer.id == id) {
            let how = Opening { access: Access::Read, parent_format: None, ..opening.clone() };
            let chain = match Chain::open(host, &offer.path, &how.with_format(Some(offer.format))) {
                Ok(chain) => chain,
                Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
                Err(_) => continue,
            };
            if is_proven(&chain, id, progress)? {
                return Ok(Some(Match { chain, id }));
            }
        }
        Ok(None)
    }
}

/// Returns whether the chain's topmost layer shows `id` for certain.
fn is_proven(chain: &Chain, id: ContentId, progress: &Progress) -> Result<bool> {
    let Some(standing) = chain.standings().first() else { return Ok(false) };
    if standing.known.layer.frozen.and_then(|record| record.sealed) != Some(id) {
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
