//! Another size, in steps that a cut leaves readable at any point.
//!
//! Growth: the longer L1 table is durable before the header's one sector points to it; what the new part
//! shows is durable (zeros, where something longer lies below) before the size says that it is there.
//! Shrinking: the size first, then what is past it is dropped: a cut leaves clusters that nobody sees, and a
//! later growth zeroes what it uncovers.

use super::{
    bitmap, change,
    entry::Cluster,
    flush::Tried,
    header::{Header, L1_BYTES_MAX, Table},
    image::{Qcow2Image, State},
};
use crate::{
    base::{
        Error, Guard, GuestOffset, GuestRange, HostRange, Result,
        units::{count, index},
    },
    format::Below,
    io::Kept,
};
use byteorder::{BigEndian, ByteOrder};

impl State {
    /// Forgets what the entries of one L2 table say in `range`, which ends where the table does; the whole
    /// table if it starts there too.
    fn cut_table(&mut self, range: GuestRange) -> Tried<()> {
        self.check_room()?;
        let Some((at, _)) = self.tables.table(range.start)? else { return Ok(()) };
        let shape = self.tables.shape;
        let is_whole = range.bytes == shape.table_span();
        if !is_whole {
            self.own_table(range.start)?;
        }
        let mut held = Vec::new();
        for piece in range.pieces(shape.cluster()) {
            self.tables.load(piece.start)?;
            let old = self.tables.cluster(piece.start)?;
            if old != Cluster::ABSENT {
                held.push(old.held);
                if !is_whole {
                    self.tables.store(piece.start, Cluster::ABSENT)?;
                }
            }
        }
        if is_whole {
            self.tables.store_table(range.start, 0)?;
            self.tables.pages.forget(at, shape.cluster());
            self.dropped.push(at.range(shape.cluster()));
        }
        for held in held {
            self.drop_held(held);
        }
        Ok(())
    }

    /// Moves L1 to `to`, with room for `entries`; durable with the next batch, which also gives up the old table.
    /// What it says is in the file already.
    fn move_l1(&mut self, header: &mut Header, to: HostRange, entries: u64) -> Result<()> {
        let file = self.tables.image.file.clone();
        let old = self.tables.l1_at.range(count(self.tables.l1.words.len()) * 8);
        let mut l1 = self.tables.l1.words.clone();
        l1.resize(index(entries), 0);
        let mut bytes = vec![0; index(to.bytes)];
        let (front, _) = bytes.split_at_mut(l1.len() * 8);
        BigEndian::write_u64_into(&l1, front);
        file.write_at(to.start, &bytes)?;
        file.flush()?;
        let moved = change::write_fields(&*file, header, |h| h.l1 = Table { at: to.start, entries });
        moved.inspect_err(|e| self.poison = Some(e.to_string()))?;
        (self.tables.l1.words, self.tables.l1_at) = (l1, to.start);
        if !old.is_empty() {
            self.dropped.push(old);
        }
        Ok(())
    }
}

impl Qcow2Image {
    /// Changes the disk's size.
    pub(super) fn resize_to(&self, size: u64, below: &dyn Below) -> Result<()> {
        let _alone = self.resizing.lock();
        self.begin_resize()?;
        let old = self.state.read().size;
        if size > old {
            self.grow_l1(self.shape.geometry.l1_entries_for(size))?;
            let new = GuestRange::between(GuestOffset::new(old), self.cluster_end(size));
            if Guard::UncoveredParent.trips(!below.is_zero(new)?) {
                self.zero_unchecked(new, Kept::Nothing, below)?;
            } else {
                self.zero_present(new, below)?;
            }
            if let Some(data) = &self.data_file {
                // A shrinking that was cut off may have left bytes there.
                data.set_bytes(old)?;
                data.set_bytes(size)?;
            }
            self.flush_all()?;
            return self.set_size(size);
        }
        self.set_size(size)?;
        let cut = GuestRange::between(self.cluster_end(size), self.cluster_end(old));
        for piece in cut.pieces(self.shape.table_span()) {
            let _claim = self.claims.take(piece);
            let span = self.shape.table_span();
            let to_end = GuestRange::between(piece.start, piece.start.floor(span).plus(span));
            self.attempt(|state| state.cut_table(to_end))?;
        }
        self.zero_present(GuestRange::between(GuestOffset::new(size), self.cluster_end(size)), below)?;
        self.flush_all()?;
        self.data_file.as_ref().map_or(Ok(()), |data| data.set_bytes(size))
    }

    fn cluster_end(&self, size: u64) -> GuestOffset {
        GuestOffset::new(size).ceil(self.shape.cluster())
    }

    fn begin_resize(&self) -> Result<()> {
        self.begin_writing(GuestOffset::new(0).range(0))?;
        let header = self.header.lock();
        if header.geometry.version == 2 && header.snapshots.entries > 0 {
            let why = "has internal snapshots, and version 2 does not store the size that they had";
            return Err(Error::unsupported(why));
        }
        bitmap::mark_stale(&*self.file, &header, true)
    }

    /// Makes what this layer holds of `range` read as zeros; where it is silent it stays silent.
    fn zero_present(&self, range: GuestRange, below: &dyn Below) -> Result<()> {
        let mut extents = Vec::new();
        self.map_unchecked(range, &mut extents)?;
        let present = extents.into_iter().filter(|e| e.state.is_data());
        present.map(|e| e.range).try_for_each(|range| self.zero_unchecked(range, Kept::Nothing, below))
    }

    fn set_size(&self, size: u64) -> Result<()> {
        let mut header = self.header.lock();
        change::set_fields(&*self.file, &mut header, |h| h.disk_bytes = size)?;
        self.state.write().size = size;
        Ok(())
    }

    /// Gives L1 room for `entries`.
    fn grow_l1(&self, entries: u64) -> Result<()> {
        if entries * 8 > L1_BYTES_MAX {
            return Err(Error::invalid(format!(
                "needs an L1 table of {entries} entries: longer than allowed"
            )));
        }
        if entries <= count(self.state.read().tables.l1.words.len()) {
            return Ok(());
        }
        let clusters = self.shape.geometry.clusters(entries * 8);
        let to = self.attempt(|state| state.allocate_span(clusters))?;
        let mut header = self.header.lock();
        loop {
            // The new table's refcounts, and what the old one says.
            self.flush_under(&mut header)?;
            let mut state = self.state.write();
            if state.tables.l1_changed.is_empty() {
                return state.move_l1(&mut header, to, entries);
            }
        }
    }
}
