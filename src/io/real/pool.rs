//! A bound on open descriptors: files that are only read are closed when others need the room, and opened
//! again when they are used.
//!
//! Chains of a thousand layers work under the usual limit of 1,024 open files a process. The price: a file
//! that is closed for a while has no lock then. What stays true: before a reopened file is read, its locks
//! are taken again (`Busy` if a writer holds it) and it is the same inode with the same length and time of
//! change as at first (else `Corrupt`, naming the file). So no bytes of a changed file are returned as the
//! old ones; a writer just is not refused while the file rests.

use super::{open_checked, witness};
use crate::{
    base::{Error, Result},
    io::{Access, Witness},
};
use parking_lot::Mutex;
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Lock order: `places`, then one place's `open`.
#[derive(Debug)]
pub(super) struct Pool {
    limit: usize,
    /// Counts uses: the order in which files rest.
    uses: AtomicU64,
    /// Held while a file is opened, so that the bound holds among threads.
    places: Mutex<Vec<Weak<Place>>>,
}

/// Where a file's descriptor is, if it has one now.
#[derive(Debug, Default)]
struct Place {
    open: Mutex<Option<Arc<OwnedFd>>>,
    used: AtomicU64,
}

/// A file that is read through a descriptor that may come and go.
#[derive(Debug)]
pub(super) struct Pooled {
    pool: Arc<Pool>,
    place: Arc<Place>,
    path: PathBuf,
    access: Access,
    seen: Witness,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), uses: AtomicU64::new(0), places: Mutex::new(Vec::new()) }
    }

    /// Takes in a file that was just opened.
    pub(super) fn admit(self: &Arc<Self>, fd: OwnedFd, path: &Path, access: Access) -> Result<Pooled> {
        let seen = witness::of(&fd).map_err(|e| Error::io("look at its state", e.into()).path(path))?;
        let place = Arc::new(Place {
            open: Mutex::new(Some(Arc::new(fd))),
            used: AtomicU64::new(self.uses.fetch_add(1, Relaxed)),
        });
        let mut places = self.places.lock();
        Self::make_room(self.limit, &mut places);
        places.push(Arc::downgrade(&place));
        Ok(Pooled { pool: Arc::clone(self), place, path: path.to_path_buf(), access, seen })
    }

    /// Closes what was used longest ago until one more file fits.
    fn make_room(limit: usize, places: &mut Vec<Weak<Place>>) {
        places.retain(|place| place.strong_count() > 0);
        let mut open: Vec<_> = places.iter().filter_map(Weak::upgrade).collect();
        open.retain(|place| place.open.lock().is_some());
        // Others read meanwhile: each moment is looked at once, or there would be no order to sort by.
        open.sort_by_cached_key(|place| place.used.load(Relaxed));
        let excess = (open.len() + 1).saturating_sub(limit);
        open.iter().take(excess).for_each(|place| *place.open.lock() = None);
    }
}

impl Pooled {
    /// Returns the descriptor, opening the file again if it rests.
    pub(super) fn descriptor(&self) -> Result<Arc<OwnedFd>> {
        self.place.used.store(self.pool.uses.fetch_add(1, Relaxed), Relaxed);
        if let Some(fd) = &*self.place.open.lock() {
            return Ok(Arc::clone(fd));
        }
        let mut places = self.pool.places.lock();
        if let Some(fd) = &*self.place.open.lock() {
            return Ok(Arc::clone(fd));
        }
        Pool::make_room(self.pool.limit, &mut places);
        let fd = Arc::new(self.reopen().map_err(|e| e.path(&self.path))?);
        *self.place.open.lock() = Some(Arc::clone(&fd));
        Ok(fd)
    }

    fn reopen(&self) -> Result<OwnedFd> {
        let fd = open_checked(&self.path, self.access)?.fd;
        let now = witness::of(&fd).map_err(|e| Error::io("look at its state", e.into()))?;
        if !now.same_file(&self.seen) {
            return Err(Error::corrupt("another file has taken this name since it was opened"));
        }
        if self.access != Access::ReadShared && now != self.seen {
            return Err(Error::corrupt("was changed by somebody else since it was opened"));
        }
        Ok(fd)
    }
}
