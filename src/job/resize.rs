//! Another size for an image.

use super::snapshot::refuse_children;
use crate::{
    base::{Error, Result, units::SECTOR_BYTES},
    chain::{Chain, Opening},
    io::{Access, Host},
    store::Ledger,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a resize is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Its size now, in bytes.
    pub from: u64,
    /// Its size then, in bytes.
    pub to: u64,
    /// Bytes of the disk that are cut off.
    pub lost_bytes: u64,
}

/// A resize that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Resize {
    chain: Chain,
    ledger: Ledger,
    plan: Plan,
}

impl Resize {
    /// Opens the image for writing; `size` gets its size and returns the new one, which is rounded up to sectors.
    ///
    /// `Busy` if it is in use, or if another image of its folder lies on it.
    pub fn prepare(
        host: &Arc<dyn Host>,
        image: &Path,
        opening: &Opening,
        size: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<Self> {
        let chain = Chain::open(host, image, &Opening { access: Access::Write, ..opening.clone() })?;
        let head = chain.head()?;
        refuse_children(host, head)?;
        let from = head.size();
        let to = size(from).and_then(|bytes| bytes.checked_next_multiple_of(SECTOR_BYTES));
        let to = to.ok_or_else(|| Error::invalid("no disk can have that size").path(&head.path))?;
        let plan = Plan { image: head.path.clone(), from, to, lost_bytes: from.saturating_sub(to) };
        // Its record goes, whether or not the caller looks at records.
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        Ok(Self { chain, ledger, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. What is added reads as zeros.
    pub fn run(self) -> Result<Plan> {
        if self.plan.from != self.plan.to {
            let image = &self.chain.head()?.image;
            // Children elsewhere stand on what it shows now: its epoch and seal are durably gone first.
            if self.ledger.look(image.as_ref())?.layer.frozen.is_some() {
                self.ledger.release(image.as_ref())?;
            }
            image.resize(self.plan.to, &self.chain.below())?;
        }
        Ok(self.plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::open_layer,
        content::Tree,
        format::{self, Creation, Format, NoParts},
        io::faulty::SimHost,
    };

    #[test]
    fn a_sealed_layer_that_is_resized_bears_its_record_no_more() {
        let host: Arc<dyn Host> = Arc::new(SimHost::new());
        let (path, ledger) = (Path::new("/base"), Ledger::new(Arc::clone(&host), None));
        let creation = Creation { size: 1 << 20, parent: None, options: vec![] };
        let image = format::create(Format::Qcow2, host.create(path).unwrap(), &creation, &NoParts).unwrap();
        let known = ledger.freeze(image.as_ref()).unwrap();
        ledger.seal(image.as_ref(), &Tree::new(1 << 20), &known).unwrap();
        drop(image);
        let resize = Resize::prepare(&host, path, &Opening::writing(), |_| Some(2 << 20)).unwrap();
        resize.run().unwrap();
        let layer = open_layer(&host, path, &Opening::reading()).unwrap();
        assert_eq!(layer.size(), 2 << 20);
        assert_eq!(ledger.look(layer.image.as_ref()).unwrap().layer.frozen, None);
    }
}
