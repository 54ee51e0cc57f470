//! Another size for an image.

use super::snapshot::refuse_children;
use crate::{
    base::{Error, Result, units::SECTOR_BYTES},
    chain::{Chain, Opening},
    io::{Access, Host},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a resize is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The image.
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
        refuse_children(host.as_ref(), head)?;
        let from = head.size();
        let to = size(from).and_then(|bytes| bytes.checked_next_multiple_of(SECTOR_BYTES));
        let to = to.ok_or_else(|| Error::invalid("no disk can have that size").path(&head.path))?;
        let plan = Plan { image: head.path.clone(), from, to, lost_bytes: from.saturating_sub(to) };
        Ok(Self { chain, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. What is added reads as zeros.
    pub fn run(self) -> Result<Plan> {
        if self.plan.from != self.plan.to {
            self.chain.head()?.image.resize(self.plan.to, &self.chain.below())?;
        }
        Ok(self.plan)
    }
}
