//! A disk that stands on no layer which others use as well.
//!
//! The oldest layer that is the disk's own gets what it shows from the shared ones below it, and then no parent: the
//! layers above it stay what they are, and so do the shared ones. What stays true: no layer shows anything else at any
//! moment, and the link goes last, after what was copied was read back and held against the shared layers. Cut off, it
//! is begun again, and copies what is not there yet.

use super::{
    Progress, own,
    rebase::{self, Rebase},
};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Family, Opening},
    io::{Access, Host, Witness},
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
    /// The oldest layer that is its own: it stands alone afterwards.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub base: PathBuf,
    /// The shared layers that it leaves, the topmost first, which stay as they are.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub leaves: Vec<PathBuf>,
    /// Why the topmost of them is not the disk's own.
    pub why: Option<String>,
    /// Bytes that are copied.
    pub copy_bytes: u64,
    /// Space that is free there, in bytes.
    pub free_bytes: u64,
}

/// A disk that is to leave shared layers; nothing is written yet.
#[derive(Debug)]
pub struct Unshare {
    plan: Plan,
    rebase: Option<Rebase>,
}

impl Unshare {
    /// Opens the chain at `head` and finds out which of its layers others use: those that another image lies on, in
    /// another folder, or read-only.
    ///
    /// Fails as [`Chain::open`]; `Busy` where the layer that changes is in use; `NoSpace` if there is none for the copy.
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
    /// let plan = Unshare::prepare(&host, &vm, &Opening::reading())?.run(&Progress::default())?;
    /// assert_eq!(plan.leaves, [golden]);
    /// assert_eq!(Chain::open(&host, &vm, &Opening::reading())?.layers().len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(host: &Arc<dyn Host>, head: &Path, opening: &Opening) -> Result<Self> {
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
        let mut plan = Plan {
            head: chain.head()?.path.clone(),
            base: base.path.clone(),
            leaves: rest.iter().map(|layer| layer.path.clone()).collect(),
            why: shared.map(|(_, why)| why.what().to_owned()),
            copy_bytes: 0,
            free_bytes: host.free_bytes(&folder_of(&base.path))?,
        };
        if plan.leaves.is_empty() {
            return Ok(Self { plan, rebase: None });
        }
        let (path, format) = (base.path.clone(), base.format());
        // It is locked against writers, the one that follows among them.
        drop((base, chain));
        let writing = opening.clone().with_access(Access::Write).with_format(Some(format));
        let rebase = Rebase::prepare(host, &path, &writing, None)?.proving();
        let rebase::Plan { copy_bytes, compare_bytes, .. } = rebase.plan();
        plan.copy_bytes = copy_bytes.saturating_add(*compare_bytes);
        if plan.copy_bytes > plan.free_bytes {
            let what =
                format!("{} bytes are to be copied, {} are free there", plan.copy_bytes, plan.free_bytes);
            return Err(Error::new(ErrorKind::NoSpace, what).path(&plan.base));
        }
        Ok(Self { plan, rebase: Some(rebase) })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Stopped or cut off at any moment, the disk shows what it showed, on the shared layers.
    pub fn run(self, progress: &Progress) -> Result<Plan> {
        if let Some(rebase) = self.rebase {
            rebase.run(progress)?;
        }
        Ok(self.plan)
    }
}

#[cfg(test)]
mod tests;
