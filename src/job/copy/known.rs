//! What a copy knows without moving a byte: that an earlier run has done it all, and what the layers show whose bytes
//! have just passed.

use super::{Below, Copy, Placed, Request, Share, leave, places::placed};
use crate::{
    base::{ErrorKind, Result},
    chain::{Chain, Layer},
    content::Tree,
    io::Host,
    job::{Progress, seal},
    store::{Known, Transfer},
};
use std::path::Path;

/// Returns how many layers an earlier run that came to its end has copied, if nothing was changed since, on either
/// side, and `request` would do the same.
pub(super) fn depth_there(
    host: &dyn Host,
    chain: &Chain,
    folder: &Path,
    transfer: &Transfer,
    request: &Request,
) -> Result<Option<usize>> {
    if transfer.ended_files() == 0 {
        return Ok(None);
    }
    let (layers, conversion) = (chain.layers(), request.conversion.as_ref());
    let depth = match conversion {
        Some(_) => layers.len(),
        None => leave::copied_depth(host, chain, 0, (folder, transfer))?,
    };
    let places = match placed(host, chain, depth, (folder, conversion), transfer) {
        Err(e) if e.kind() == ErrorKind::Exists => return Ok(None),
        places => places?,
    };
    let is_done = |place: &Placed| matches!(place, Placed::Copy { is_done, .. } | Placed::Convert { is_done, .. } if *is_done);
    let files = match conversion {
        Some(_) => depth,
        None => layers.iter().take(depth).map(|layer| layer.image.files().len()).sum(),
    };
    let is_alike = match request.share {
        Share::Allow => true,
        Share::Deny => depth == layers.len(),
        Share::ChildOnly => depth == 1,
    };
    let is_whole = depth > 0 && files == transfer.ended_files() && places.iter().all(is_done);
    Ok((is_whole && is_alike).then_some(depth))
}

impl Copy {
    /// Returns the tree of what a layer shows that others stand on, where that is known, or takes no more than to read
    /// again what has just passed through the host's memory.
    pub(super) fn tree(
        &self,
        (layer, depth): (&Layer, usize),
        below: Option<&Below>,
        has_passed: bool,
        progress: &Progress,
    ) -> Result<Option<Tree>> {
        if depth == 0 {
            return Ok(None);
        }
        let known = self.chain.standings().get(depth).map(|standing| &standing.known);
        if known.and_then(|known| known.layer.frozen).is_some_and(|record| record.sealed.is_some()) {
            // What is only claimed is not vouched for: it is copied with the record, and hashed when it counts.
            return match known.and_then(Known::proven) {
                Some(id) => self.ledger.tree(layer.image.as_ref(), &id),
                None => Ok(None),
            };
        }
        let under = below.map(|below| below.tree(&self.ledger)).transpose()?;
        let view = self.chain.view(depth);
        let hashed = match under {
            _ if !has_passed => return Ok(None),
            Some(None) => return Ok(None),
            Some(Some(under)) => seal::tree_over(&view, under, progress)?,
            None => seal::full_tree(&view, progress)?,
        };
        progress.begin("copy", self.plan.layers.iter().take(depth).map(Placed::copy_bytes).sum());
        Ok(Some(hashed.tree))
    }
}
