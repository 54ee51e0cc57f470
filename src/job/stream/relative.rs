//! Something in the store that is like a layer which is missing there: an older base, say. Leaves that both have are not
//! sent.

use super::{Target, terms::LayerHead};
use crate::{
    base::Result,
    chain::View,
    content::Tree,
    job::{
        Progress,
        copy::{Match, Shelf},
    },
};

/// Layers that are looked at, at most.
const CANDIDATES_MAX: usize = 8;

/// A layer whose content is proven, open (and locked against writers) as long as this is held.
#[derive(Debug)]
pub(super) struct Relative {
    /// Holds its lock.
    _found: Match,
    view: View,
    tree: Tree,
}

impl Relative {
    /// Finds the layer that has most of the leaves of which `head` tells the hashes; `None` if none has an eighth of them.
    pub(super) fn find(
        target: &Target,
        shelf: &mut Shelf,
        head: &LayerHead,
        progress: &Progress,
    ) -> Result<Option<Self>> {
        let mut offers = shelf.offers()?.to_vec();
        // Most likely it had the same name, if it is the same thing of an earlier day.
        offers.sort_by_key(|(_, path)| path.file_name() != head.name.file_name());
        let mut best: Option<(usize, Self)> = None;
        for (id, _) in offers.into_iter().take(CANDIDATES_MAX).filter(|_| !head.samples.is_empty()) {
            progress.checkpoint()?;
            let Some(found) = shelf.find(&target.host, id, &target.opening, progress)? else { continue };
            let layer = found.chain.head()?;
            let Some(tree) = target.ledger.tree(layer.image.as_ref(), &id)? else { continue };
            let score = head.samples.iter().filter(|(leaf, hash)| tree.get(*leaf).short() == *hash).count();
            if best.as_ref().is_none_or(|(least, _)| score > *least) {
                let view = found.chain.view(0);
                best = Some((score, Self { _found: found, view, tree }));
            }
        }
        Ok(best.filter(|(score, _)| score * 8 >= head.samples.len()).map(|(_, relative)| relative))
    }

    /// Returns what it shows.
    pub(super) const fn view(&self) -> &View {
        &self.view
    }

    /// Returns the hashes of its leaves.
    pub(super) const fn tree(&self) -> &Tree {
        &self.tree
    }
}
