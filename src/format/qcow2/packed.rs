//! Storing compressed clusters: one after another in shared host clusters, each from a sector on.

use super::{
    entry::{Cluster, Held},
    flush::Tried,
    image::{Qcow2Image, State},
    packing,
};
use crate::base::{
    Error, GuestOffset, HostOffset, HostRange, Result,
    units::{SECTOR_BYTES, count, index},
};

impl State {
    /// Takes whole sectors for `bytes` packed bytes (less than a cluster).
    fn reserve_packed(&mut self, guest: GuestOffset, bytes: u64) -> Tried<HostRange> {
        self.check_room()?;
        self.tables.load(guest)?;
        self.own_table(guest)?;
        let cluster = self.tables.shape.cluster();
        let bytes = bytes.next_multiple_of(SECTOR_BYTES);
        let open = self.refcounts.packing();
        let room = open.map_or(0, |at| at.ceil(cluster).since(at));
        let shared = match open {
            Some(at) if room >= bytes && self.add_reference(at.range(bytes))? => Some(at),
            _ => None,
        };
        let start = if let Some(at) = shared {
            at
        } else {
            let new = self.allocate(1)?.start;
            let goes_on = |at: &HostOffset| at.plus(room) == new;
            match open.filter(goes_on) {
                Some(at) if self.add_reference(at.range(1))? => at,
                _ => new,
            }
        };
        let taken = start.range(bytes);
        if taken.end().bytes() > self.tables.shape.packed_end() {
            self.drop_reference(taken)?;
            let why = format!("has no place for compressed bytes below 0x{start:x}");
            return Err(Error::unsupported(why).into());
        }
        let next = Some(taken.end()).filter(|at| at.bytes() % cluster != 0);
        self.refcounts.set_packing(next);
        Ok(taken)
    }

    /// Points the entry for `guest` to packed bytes.
    fn publish_packed(&mut self, guest: GuestOffset, at: HostRange) -> Result<()> {
        self.check_sound()?;
        self.tables.load(guest)?;
        let old = self.tables.cluster(guest)?;
        let new = Cluster { held: Held::Packed(at), data: self.tables.shape.all(), zero: 0 };
        self.tables.store(guest, new)?;
        self.drop_held(old.held);
        Ok(())
    }
}

impl Qcow2Image {
    /// Packs one cluster, or the disk's last part of one, whose rest is zeros.
    pub(super) fn pack_cluster(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let size = index(self.shape.cluster());
        if self.shape.is_external || bytes.len() > size {
            return None;
        }
        if bytes.len() == size {
            return packing::pack(self.compression, bytes);
        }
        let mut whole = bytes.to_vec();
        whole.resize(size, 0);
        packing::pack(self.compression, &whole)
    }

    /// Stores a packed cluster as the cluster at `at`.
    pub(super) fn store_packed(&self, at: GuestOffset, packed: &[u8]) -> Result<()> {
        let cluster = self.shape.cluster();
        let size = self.state.read().size;
        if at != at.floor(cluster)
            || at.bytes() >= size
            || count(packed.len()) >= cluster
            || packed.is_empty()
        {
            let what = format!("{} packed bytes at 0x{at:x} are not one cluster of the disk", packed.len());
            return Err(Error::invalid(what));
        }
        if self.shape.is_external {
            return Err(Error::unsupported("has an external data file, which holds no compressed clusters"));
        }
        let _claim = self.claims.take(at.range(cluster));
        let host = self.attempt(|state| state.reserve_packed(at, count(packed.len())))?;
        let done = self.file.write_at(host.start, packed);
        let done = done.and_then(|()| self.state.write().publish_packed(at, host));
        if done.is_err() {
            // A refcount that cannot be taken back is a leak; the caller learns why the write failed.
            drop(self.state.write().drop_reference(host));
        }
        done
    }
}
