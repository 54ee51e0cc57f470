//! Reading: which bytes this layer holds, and the bytes themselves.
//!
//! A host offset is used only under the guard it was looked up with. What lies below, and the unpacking of
//! compressed clusters, needs no host offset and happens after the guard is gone.

use super::{
    entry::{Held, wrong},
    image::{Qcow2Image, State},
    packing,
};
use crate::{
    base::{
        Error, GuestOffset, GuestRange, Result,
        units::{count, index},
    },
    format::{Below, part::part},
    map::{self, Extent},
};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use std::cell::RefCell;

/// A compressed cluster as it is in the file.
struct Packed {
    range: GuestRange,
    bytes: Vec<u8>,
}

thread_local! {
    /// Where a whole L2 table is read to (2 MiB at most); kept, since the layers of a chain are asked in turn.
    static TABLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Qcow2Image {
    /// Appends what this layer says about `range`, one L2 table at a time.
    pub(super) fn map_range(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.check_range(range)?;
        self.map_unchecked(range, out)
    }

    /// Appends what this layer says about `range`, which may pass the disk's end.
    pub(super) fn map_unchecked(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        let page_span = self.state.read().tables.page_span();
        range.pieces(self.shape.table_span()).try_for_each(|piece| {
            if piece.bytes <= page_span {
                return piece.pieces(page_span).try_for_each(|p| self.view(p.start)?.tables.extents(p, out));
            }
            TABLE.with_borrow_mut(|table| {
                let size = index(self.shape.cluster());
                table.resize(size.max(table.len()), 0);
                let table = table.get_mut(..size).unwrap_or_default();
                self.state.read().tables.table_extents(piece, table, out)
            })
        })
    }

    /// Fills `buf` from `at`.
    pub(super) fn read_range(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let range = at.range(count(buf.len()));
        self.check_range(range)?;
        self.read_unchecked(range, buf, below)
    }

    /// Fills `buf` with what is read at `range`, which may pass the disk's end inside the last cluster.
    pub(super) fn read_unchecked(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let page_span = self.state.read().tables.page_span();
        for piece in range.pieces(page_span) {
            self.read_piece(piece, part(buf, range, piece)?, below)?;
        }
        Ok(())
    }

    /// Takes the shared side with the page loaded that has the entry for `guest`.
    pub(super) fn view(&self, guest: GuestOffset) -> Result<RwLockReadGuard<'_, State>> {
        let state = self.state.read();
        if state.tables.is_loaded(guest)? {
            return Ok(state);
        }
        drop(state);
        let mut state = self.state.write();
        state.tables.load(guest)?;
        Ok(RwLockWriteGuard::downgrade(state))
    }

    /// Reads `range`, which lies in the span of one page of a table.
    fn read_piece(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let (mut extents, mut packed) = (Vec::new(), Vec::new());
        let state = self.view(range.start)?;
        state.tables.extents(range, &mut extents)?;
        for extent in &extents {
            match extent.state {
                map::State::Data { host } => {
                    state.tables.data().file.read_at(host, part(buf, range, extent.range)?)?;
                }
                map::State::Packed => {
                    for piece in extent.range.pieces(self.shape.cluster()) {
                        packed.push(self.read_packed(&state, piece)?);
                    }
                }
                map::State::Zero { .. } | map::State::Absent => {}
            }
        }
        drop(state);
        for extent in &extents {
            match extent.state {
                map::State::Zero { .. } => part(buf, range, extent.range)?.fill(0),
                map::State::Absent => below.read(extent.range.start, part(buf, range, extent.range)?)?,
                map::State::Data { .. } | map::State::Packed => {}
            }
        }
        packed.iter().try_for_each(|p| self.unpack(p, part(buf, range, p.range)?))
    }

    /// Reads the sectors of the compressed cluster that `range` lies in.
    fn read_packed(&self, state: &State, range: GuestRange) -> Result<Packed> {
        let Held::Packed(host) = state.tables.cluster(range.start)?.held else {
            return Err(Error::invalid(format!("guest byte 0x{:x} is not compressed", range.start)));
        };
        // Bounded by the descriptor: at most two clusters and a sector.
        let mut bytes = vec![0; index(host.bytes)];
        self.file.read_at(host.start, &mut bytes)?;
        Ok(Packed { range, bytes })
    }

    /// Fills `buf` with the part of a compressed cluster that was asked for.
    fn unpack(&self, packed: &Packed, buf: &mut [u8]) -> Result<()> {
        let size = self.shape.cluster();
        let start = packed.range.start.floor(size);
        let broken = |why: &str| wrong(start, &format!("is compressed and {why}"));
        if packed.range.bytes == size {
            return packing::unpack(self.compression, &packed.bytes, buf).map_err(broken);
        }
        let mut whole = vec![0; index(size)];
        packing::unpack(self.compression, &packed.bytes, &mut whole).map_err(broken)?;
        buf.copy_from_slice(part(&mut whole, start.range(size), packed.range)?);
        Ok(())
    }
}
