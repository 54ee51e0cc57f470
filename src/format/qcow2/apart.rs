//! After a repair, each entry gets a cluster of its own.
//!
//! Two entries that refer to one cluster are counted and flagged rightly by a repair, and read as before. But when
//! one of them is written later, the other is left as the sole owner without the flag that says so: a contradiction,
//! harmless, that nobody caused by then. So the cluster is copied at once. With internal snapshots sharing is what
//! ought to be, and nothing is done.

use super::{entry::Held, image::Qcow2Image};
use crate::{
    base::{GuestOffset, GuestRange, Result, units::index},
    format::{
        Nothing,
        source::{Job, Source},
    },
    io::Kept,
    map::State,
};

/// How much of the map is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

impl Qcow2Image {
    /// Gives stored clusters that something else refers to, too, a place of their own, durably; returns whether
    /// there were any.
    pub(super) fn part_clusters(&self) -> Result<bool> {
        // In an external data file each cluster has its own place by rule.
        if self.shape.is_external || self.header.lock().snapshots.entries > 0 {
            return Ok(false);
        }
        let (mut is_changed, mut extents) = (false, Vec::new());
        let size = self.state.read().size;
        for stride in GuestOffset::new(0).range(size).pieces(STRIDE_BYTES) {
            extents.clear();
            self.map_range(stride, &mut extents)?;
            for extent in &extents {
                for range in extent.range.pieces(self.shape.cluster()) {
                    is_changed |= self.part(range, extent.state)?;
                }
            }
        }
        self.flush_all()?;
        Ok(is_changed)
    }

    /// Gives a piece of a cluster a place of its own, if it shares one; zeros need none.
    fn part(&self, range: GuestRange, state: State) -> Result<bool> {
        let has_place = matches!(state, State::Data { .. } | State::Zero { host: Some(_) });
        if !has_place || !self.is_shared(range.start)? {
            return Ok(false);
        }
        if state.is_zero() {
            return self.zero_unchecked(range, Kept::Nothing, &Nothing).map(|()| true);
        }
        let mut bytes = vec![0; index(range.bytes)];
        self.read_unchecked(range, &mut bytes, &Nothing)?;
        self.write_job(Job { range, source: Source::Bytes(&bytes), below: &Nothing }).map(|_| true)
    }

    fn is_shared(&self, at: GuestOffset) -> Result<bool> {
        let cluster = self.view(at)?.tables.cluster(at)?;
        Ok(matches!(cluster.held, Held::Plain { is_own: false, .. }))
    }
}
