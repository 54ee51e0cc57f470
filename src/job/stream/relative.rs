//! Something in the store that is like a layer which is missing there: an older base, say. Leaves that both have are not
//! sent.

use super::{Target, terms::LayerHead};
use crate::{
    base::Result,
    chain::{View, member, open_layer},
    content::{ContentId, Tree},
    io::Access,
    job::{
        Progress,
        copy::{Match, Shelf},
    },
};
use std::path::Path;

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
        let mut scores = Vec::new();
        for (id, path) in offers.into_iter().take(CANDIDATES_MAX).filter(|_| !head.samples.is_empty()) {
            // A tree is what its ID says, whatever the layer shows by now: only one that is like it is worth being proven.
            let Some(tree) = kept_tree(target, &path, &id)? else { continue };
            let is_alike = |(leaf, hash): &&(u64, String)| {
                let own = tree.get(*leaf);
                !own.is_zero() && own.short() == *hash
            };
            let score = head.samples.iter().filter(is_alike).count();
            scores.push((score, id, tree));
        }
        scores.retain(|(score, ..)| score * 8 >= head.samples.len());
        scores.sort_by_key(|(score, ..)| std::cmp::Reverse(*score));
        for (_, id, tree) in scores {
            if let Some(found) = shelf.find(&target.host, id, &target.opening, progress)? {
                let view = found.chain.view(0);
                return Ok(Some(Self { _found: found, view, tree }));
            }
        }
        Ok(None)
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

/// Returns the tree that is kept for what the image at `path` says that it shows, if there is one.
fn kept_tree(target: &Target, path: &Path, id: &ContentId) -> Result<Option<Tree>> {
    let opening = target.opening.clone().with_access(Access::ReadShared);
    let Ok(member) = member(target.host.as_ref(), path) else { return Ok(None) };
    // What cannot be opened is like nothing.
    match open_layer(&target.host, &member.path, &opening.with_format(Some(member.format))) {
        Ok(layer) => target.ledger.tree(layer.image.as_ref(), id),
        Err(_) => Ok(None),
    }
}
