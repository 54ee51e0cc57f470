//! Where the layers that are folded are shown: to the disk whose head is the run's top, and, where a disk in use has more
//! layers above, to that one as well.
//!
//! What stays true: layers above the run are not touched, and both disks show the same images below them, so that whoever
//! reads through them sees each move of the target as soon as it is made.

use super::{LiveConsolidation, Request, again::leave_alone};
use crate::{
    base::{Result, clock::Stopwatch},
    chain::{Chain, Layer, Opening},
    format::Image,
    io::Host,
    job::live::{LiveDisk, Swapped},
    store::{FoldMode, Ledger},
};
use std::{sync::Arc, time::Duration};

/// How long the requests that still use the old chain may take after the swap.
const PATIENCE: Duration = Duration::from_mins(1);

/// The disks that a run is shown to.
#[derive(Debug)]
pub(super) struct Shown {
    /// The one whose head is the run's top.
    pub(super) disk: Arc<LiveDisk>,
    /// The one that guests use, and its layers above the run's top; `None` where that is the head.
    pub(super) over: Option<(Arc<LiveDisk>, Vec<Layer>)>,
}

impl Shown {
    /// Returns the image at the run's top, if guests write it.
    pub(super) fn written(&self) -> Result<Option<Arc<dyn Image>>> {
        let chain = self.disk.chain();
        Ok(if self.over.is_none() { Some(Arc::clone(&chain.head()?.image)) } else { None })
    }

    /// Both go over to `chain`; returns how long guests waited.
    pub(super) fn swap(&self, chain: Chain) -> Swapped {
        let Some((disk, above)) = &self.over else { return self.disk.swap(chain) };
        let all = above.iter().chain(chain.layers()).cloned().collect();
        let swapped = disk.swap(Chain::of(all, true));
        self.disk.swap(chain);
        swapped
    }

    /// The result, where it is not a head: it is frozen as it is now, and only read from here on. So is the target that an
    /// empty result lies on.
    pub(super) fn freeze(&self, ledger: &Ledger, mode: FoldMode) -> Result<()> {
        if self.over.is_none() {
            return Ok(());
        }
        let mut layers = self.disk.chain().layers().to_vec();
        let frozen = if mode == FoldMode::EmptyTop { 2 } else { 1 };
        for layer in layers.iter().take(frozen) {
            ledger.refreeze(layer.image.as_ref(), &ledger.look(layer.image.as_ref())?)?;
        }
        layers.first_mut().into_iter().for_each(leave_alone);
        self.swap(Chain::of(layers, true));
        Ok(())
    }

    /// Returns what guests' requests hold that began before the next change.
    pub(super) fn in_use(&self) -> Option<Arc<Chain>> {
        self.over.as_ref().map(|(disk, _)| disk.chain())
    }
}

impl LiveConsolidation {
    /// As [`LiveConsolidation::prepare`], for the layers of a disk in use from the one at `depth` on, which is frozen and
    /// stays what it shows: the layers above it, and what lies on it elsewhere, stay as they are.
    ///
    /// Nobody else may change the disk's layers while this goes on.
    pub fn prepare_below(
        host: &Arc<dyn Host>,
        disk: &Arc<LiveDisk>,
        depth: usize,
        opening: &Opening,
        request: &Request,
    ) -> Result<Self> {
        let chain = disk.chain();
        let (above, layers) = chain.layers().split_at(depth.min(chain.layers().len()));
        let run = Arc::new(LiveDisk::new(Chain::of(layers.to_vec(), true)));
        let mut fold = Self::prepare(host, &run, opening, request)?;
        fold.shown.over = Some((Arc::clone(disk), above.to_vec()));
        Ok(fold)
    }
}

/// Waits for the requests that began before the swap, as long as that is worth it, and closes the chain that they used.
/// It is this thread that does: a count of none would be seen while the last request still closes the files.
pub(super) fn wait_for_the_last(chain: Arc<Chain>) {
    let watch = Stopwatch::start();
    while Arc::strong_count(&chain) > 1 && watch.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(chain);
}
