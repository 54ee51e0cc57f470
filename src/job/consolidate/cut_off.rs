//! Consolidations, and moves to another store, that were cut off, as a folder's journals tell of them. Nothing is written.

use super::{ending::Ending, folding::is_live};
use crate::{
    base::{ErrorKind, Result},
    io::{Access, Host},
    store::{FoldMode, Journal},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A consolidation that was cut off, or a move to another store whose head was on its way.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CutOff {
    /// Its journal.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub journal: PathBuf,
    /// What it does, as of a job: `consolidate` or `migrate`.
    pub kind: &'static str,
    /// The disk that it is on; `None` if the journal cannot be relied on.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub top: Option<PathBuf>,
    /// Guest bytes before this place are done.
    pub mark: u64,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Whether guests used the disk meanwhile.
    pub is_live: bool,
    /// Whether the disk's name opens the result by now: then it can only be ended.
    pub has_landed: bool,
    /// Why the journal cannot be relied on.
    pub error: Option<String>,
}

impl CutOff {
    fn of(host: &dyn Host, path: PathBuf, journal: Result<Journal>) -> Self {
        let nothing = Self {
            journal: path,
            kind: "consolidate",
            top: None,
            mark: 0,
            size: 0,
            is_live: false,
            has_landed: false,
            error: None,
        };
        match journal {
            Err(error) => Self { error: Some(error.to_string()), ..nothing },
            Ok(journal) => Self {
                kind: if journal.fold().mode == FoldMode::Move { "migrate" } else { nothing.kind },
                top: journal.fold().layers.first().map(|top| journal.place(top)),
                mark: journal.position().mark.bytes(),
                size: journal.fold().size,
                is_live: is_live(&journal),
                // A disk that is gone altogether tells nothing.
                has_landed: Ending::has_begun(host, &journal).unwrap_or(false),
                ..nothing
            },
        }
    }
}

/// Returns the consolidations and moves of disks in `folder` that were cut off; not those that somebody is at now.
pub fn cut_off(host: &Arc<dyn Host>, folder: &Path) -> Result<Vec<CutOff>> {
    let all = Journal::all(host, folder)?.into_iter();
    // Who is at one holds its journal.
    let is_held = |path: &Path| host.open(path, Access::Read).is_err_and(|e| e.kind() == ErrorKind::Busy);
    let left = all.filter(|(path, _)| !is_held(path));
    Ok(left.map(|(path, journal)| CutOff::of(host.as_ref(), path, journal)).collect())
}
