//! A disk that stands on no layer which others use as well.
//!
//! The oldest layer that is the disk's own gets what it shows from the shared ones below it, and then no parent; or the shared
//! ones are copied beside it, each under a name of its own, and it gets the topmost copy as its parent. The layers above it stay
//! what they are, and so do the shared ones. What stays true: no layer shows anything else at any
//! moment, and the link goes last, after what was copied was read back and held against the shared layers. Cut off, it
//! is begun again, and copies what is not there yet.

use super::{
    Progress,
    copy::CopyBeside,
    own,
    rebase::{self, NewParent, Rebase},
};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Family, Opening},
    io::{Access, Host, Witness},
    store::Ledger,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is going to be done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The disk's head.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub head: PathBuf,
    /// The oldest layer that is its own: it stands alone afterwards, or on copies.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub base: PathBuf,
    /// The shared layers that it leaves, the topmost first, which stay as they are.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub leaves: Vec<PathBuf>,
    /// Why the topmost of them is not the disk's own.
    pub why: Option<String>,
    /// Where copies of those go, if they are kept as layers.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub copies: Vec<PathBuf>,
    /// Bytes that are copied.
    pub copy_bytes: u64,
    /// Space that is free there, in bytes.
    pub free_bytes: u64,
}

/// A disk that is to leave shared layers; nothing is written yet.
#[derive(Debug)]
pub struct Unshare {
    plan: Plan,
    way: Way,
}

/// What becomes of the shared layers.
#[derive(Debug)]
enum Way {
    /// There are none.
    Nothing,
    /// What they show goes into the disk's oldest own layer.
    Into(Box<Rebase>),
    /// They are copied; then the oldest own layer, opened in this way, goes onto the copies.
    Onto(Box<CopyBeside>, Arc<dyn Host>, Box<Opening>),
}

impl Unshare {
    /// Opens the chain at `head` and finds out which of its layers others use: those that another image lies on, in
    /// another folder, or read-only. If it `keeps_layers`, each of them is copied.
    ///
    /// Fails as [`Chain::open`]; `Busy` where the layer that changes is in use; `NoSpace` if there is none for the copy;
    /// `Exists` where the name of a copy is taken.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{chain::{Chain, Opening}, job::{Progress, snapshot::snapshot, unshare::Unshare}};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let path = |name| folder.path().join(name);
    /// let (golden, vm, other) = (path("golden.qcow2"), path("vm.qcow2"), path("other.qcow2"));
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &golden, &new, &Opening::reading())?;
    /// for clone in [&vm, &other] {
    ///     snapshot(&host, &golden, clone, &[], &Opening::writing())?;
    /// }
    /// let plan = Unshare::prepare(&host, &vm, &Opening::reading(), false)?.run(&Progress::default())?;
    /// assert_eq!(plan.leaves, [golden]);
    /// assert_eq!(Chain::open(&host, &vm, &Opening::reading())?.layers().len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(host: &Arc<dyn Host>, head: &Path, opening: &Opening, keeps_layers: bool) -> Result<Self> {
        let chain = Chain::open(host, head, &opening.clone().with_access(Access::Read))?;
        let layers = chain.layers();
        let folder_of = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let folders: Vec<PathBuf> = layers.iter().map(|layer| folder_of(&layer.path)).collect();
        let family = Family::scan(host.as_ref(), &folders)?;
        let files: Vec<Witness> = layers.iter().map(|l| host.witness(&l.path)).collect::<Result<_>>()?;
        let shared =
            (1..layers.len()).find_map(|at| Some((at, own::why_not(&family, (layers, &files), at)?)));
        let own = shared.as_ref().map_or(layers.len(), |(at, _)| *at);
        let (base, rest) = layers.split_at(own);
        let base = base.last().ok_or_else(|| Error::invalid("a chain without layers"))?.clone();
        let plan = Plan {
            head: chain.head()?.path.clone(),
            base: base.path.clone(),
            leaves: rest.iter().map(|layer| layer.path.clone()).collect(),
            why: shared.map(|(_, why)| why.what().to_owned()),
            copies: Vec::new(),
            copy_bytes: 0,
            free_bytes: host.free_bytes(&folder_of(&base.path))?,
        };
        let way = match (plan.leaves.is_empty(), keeps_layers) {
            (true, _) => Way::Nothing,
            (false, true) => {
                let below = layers.get(own.saturating_sub(1)..).unwrap_or_default().to_vec();
                let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
                let copy = CopyBeside::prepare(host, &ledger, below, opening)?;
                let writing = opening.clone().with_access(Access::Write).with_format(Some(base.format()));
                Way::Onto(Box::new(copy), Arc::clone(host), Box::new(writing))
            }
            (false, false) => {
                let (path, format) = (base.path.clone(), base.format());
                // It is locked against writers, the one that follows among them.
                drop((base, chain));
                let writing = opening.clone().with_access(Access::Write).with_format(Some(format));
                Way::Into(Box::new(Rebase::prepare(host, &path, &writing, None)?.proving()))
            }
        };
        Self { plan, way }.with_space()
    }

    /// Says what is copied; `NoSpace` if that does not fit.
    fn with_space(mut self) -> Result<Self> {
        let plan = &mut self.plan;
        match &self.way {
            Way::Nothing => {}
            Way::Into(rebase) => {
                let rebase::Plan { copy_bytes, compare_bytes, .. } = rebase.plan();
                plan.copy_bytes = copy_bytes.saturating_add(*compare_bytes);
            }
            Way::Onto(copy, ..) => (plan.copies, plan.copy_bytes) = (copy.places(), copy.copy_bytes()),
        }
        if plan.copy_bytes > plan.free_bytes {
            let what =
                format!("{} bytes are to be copied, {} are free there", plan.copy_bytes, plan.free_bytes);
            return Err(Error::new(ErrorKind::NoSpace, what).path(&plan.base));
        }
        Ok(self)
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Stopped or cut off at any moment, the disk shows what it showed, on the shared layers.
    pub fn run(self, progress: &Progress) -> Result<Plan> {
        match self.way {
            Way::Nothing => {}
            Way::Into(rebase) => drop(rebase.run(progress)?),
            Way::Onto(copy, host, writing) => {
                let below = copy.run(progress)?;
                let top = below.chain.head()?;
                let parent = NewParent { path: top.path.clone(), format: top.format() };
                Rebase::prepare(&host, &self.plan.base, &writing, Some(&parent))?.proving().run(progress)?;
            }
        }
        Ok(self.plan)
    }
}

#[cfg(test)]
mod tests;
