//! What is known of the layers of a chain, each in the light of what lies below it.

use super::Layer;
use crate::{
    base::Result,
    content::ContentId,
    store::{Child, Doubt, Known, Ledger, Lineage, Refusal, Trust, accept},
};

/// What is known of a layer with a place in a chain.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its record, and how far it can be believed over all its ancestors.
    pub known: Known,
    /// Whether it may stand on its parent; `None` for a layer without one.
    pub on_parent: Option<std::result::Result<Lineage, Box<Refusal>>>,
}

/// Returns how each layer stands, in the order of `layers`: the topmost first, the base last. Writes nothing.
pub fn lineage(ledger: &Ledger, layers: &[Layer]) -> Result<Vec<Standing>> {
    let mut standings: Vec<Standing> = Vec::with_capacity(layers.len());
    for layer in layers.iter().rev() {
        let known = ledger.look(layer.image.as_ref()).map_err(|e| e.path(&layer.path))?;
        let standing = match standings.last() {
            Some(parent) => Standing::on(layer, known, &parent.known, None),
            None => Standing { known, on_parent: None },
        };
        standings.push(standing);
    }
    standings.reverse();
    Ok(standings)
}

impl Standing {
    /// Returns how a layer, of which `known` is known, stands on its parent. `proven` is the content ID of the
    /// parent's view if it has just been computed.
    pub fn on(layer: &Layer, known: Known, parent: &Known, proven: Option<ContentId>) -> Self {
        let name = layer.image.parent();
        let child = Child {
            claim: known.layer.claim.as_ref(),
            name: name.as_ref().map(|p| p.name.as_slice()).unwrap_or_default(),
            format: name.as_ref().and_then(|p| p.format.as_deref()),
        };
        let accepted = accept(&child, parent, proven);
        let below = match &accepted {
            Ok(Lineage::Kept | Lineage::Proven) => parent.trust,
            // Without a claim, the layer would not notice that its parent changed.
            Ok(Lineage::Unknown) => Trust::Claimed.over(parent.trust),
            Err(_) => Trust::Doubted(Doubt::Below),
        };
        let trust = known.trust.over(below);
        Self { known: Known { trust, ..known }, on_parent: Some(accepted) }
    }
}

/// Returns the first refusal from the base up, as an error for a person.
pub fn check_lineage(layers: &[Layer], standings: &[Standing]) -> Result<()> {
    let pairs = layers.windows(2).zip(standings).rev();
    for (pair, standing) in pairs {
        if let ([child, parent], Some(Err(refusal))) = (pair, &standing.on_parent) {
            return Err(refusal.error(&child.path, &parent.path));
        }
    }
    Ok(())
}
