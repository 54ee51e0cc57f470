//! Reading: which bytes this layer holds, and the bytes themselves.
//!
//! A host offset is used only under the guard it was looked up with. What lies below, and the unpacking of compressed
//! grains, needs no host offset and happens after the guard is gone.

use super::{
    image::{State, VmdkImage},
    packing::{self, Packed},
    tables::{Body, Grain},
};
use crate::{
    base::{Error, GuestOffset, GuestRange, HostOffset, Result, units::count},
    format::{Below, part::part},
    io::File,
    map::{self, Extent},
};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

/// What the disk has at a place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    /// Zeros, in no file.
    Zero(GuestRange),
    /// Bytes in a file as they are.
    Flat(GuestRange, HostOffset),
    /// Grains whose entries are in one page.
    Grains(GuestRange),
}

impl State {
    /// Returns the first piece of `range`, which is not empty, that is of one kind.
    pub(super) fn piece(&self, range: GuestRange) -> Result<Piece> {
        let extent = self.tables.extent(range.start)?;
        let part = range.clip(extent.guest);
        Ok(match &extent.body {
            Body::Zero => Piece::Zero(part),
            Body::Flat(at) => Piece::Flat(part, at.plus(part.start.since(extent.guest.start))),
            Body::Grains(_) => Piece::Grains(self.tables.page_part(part)?),
        })
    }
}

impl VmdkImage {
    /// Has `each` look at the pieces of `range`, in order.
    pub(super) fn each_piece(
        &self,
        range: GuestRange,
        mut each: impl FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let piece = self.state.read().piece(GuestRange::between(at, range.end()))?;
            let (Piece::Zero(part) | Piece::Flat(part, _) | Piece::Grains(part)) = piece;
            each(piece)?;
            at = part.end();
        }
        Ok(())
    }

    /// Takes the shared side with the page loaded that has the entry for `guest`, of a sparse extent.
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

    /// Appends what this layer says about `range`.
    pub(super) fn map_range(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.each_piece(range, |piece| {
            match piece {
                Piece::Zero(part) => map::push(out, Extent::new(part, map::State::Zero { host: None })),
                Piece::Flat(part, host) => self.map_flat(part, host, out)?,
                Piece::Grains(part) => self.view(part.start)?.tables.extents(part, out)?,
            }
            Ok(())
        })
    }

    /// Appends which of `part`, at `host`, are holes and which are stored.
    fn map_flat(&self, part: GuestRange, host: HostOffset, out: &mut Vec<Extent>) -> Result<()> {
        let mut at = part.start;
        while at < part.end() {
            let here = host.plus(at.since(part.start));
            let run = self.space.run_at(here)?;
            let left = part.end().since(at);
            let bytes = if run.range.is_empty() { left } else { run.range.bytes.min(left) };
            let state =
                if run.is_data { map::State::Data { host: here } } else { map::State::Zero { host: None } };
            map::push(out, Extent::new(at.range(bytes), state));
            at = at.plus(bytes);
        }
        Ok(())
    }

    /// Fills `buf` with what is read at `range`.
    pub(super) fn read_range(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        self.each_piece(range, |piece| match piece {
            Piece::Zero(own) => {
                part(buf, range, own)?.fill(0);
                Ok(())
            }
            Piece::Flat(own, host) => self.space.read_at(host, part(buf, range, own)?),
            Piece::Grains(own) => self.read_grains(own, part(buf, range, own)?, below),
        })
    }

    /// Reads `range`, whose entries are in one page.
    fn read_grains(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let (mut packed, mut others) = (Vec::new(), Vec::new());
        let state = self.view(range.start)?;
        let mut extents = Vec::new();
        state.tables.extents(range, &mut extents)?;
        for extent in extents {
            match extent.state {
                map::State::Data { host } => {
                    self.space.read_at(host, part(buf, range, extent.range)?)?;
                }
                map::State::Packed => packed.push(extent.range),
                map::State::Zero { .. } | map::State::Absent => others.push(extent),
            }
        }
        drop(state);
        for extent in others {
            let part = part(buf, range, extent.range)?;
            match extent.state {
                map::State::Absent => below.read(extent.range.start, part)?,
                _ => part.fill(0),
            }
        }
        packed.into_iter().try_for_each(|run| self.read_packed(run, part(buf, range, run)?))
    }

    /// Reads compressed grains, one after the other. (What is compressed never moves: no guard is needed.)
    fn read_packed(&self, run: GuestRange, buf: &mut [u8]) -> Result<()> {
        let pieces = self.state.read().tables.pieces(run)?;
        for piece in pieces {
            let state = self.view(piece.start)?;
            let Grain::Packed(host) = state.tables.grain(piece.start)? else {
                return Err(Error::invalid(format!("guest byte 0x{:x} is not compressed", piece.start)));
            };
            let (grains, local) = state.tables.grains(piece.start)?;
            let (layout, inside) = (grains.layout, local % grains.layout.grain);
            drop(state);
            let (target, at) = self.space.part(host)?;
            let bytes = packing::read(target.file.as_ref(), at, (&layout, local - inside))?;
            let start = GuestOffset::new(piece.start.bytes() - inside);
            let packed = Packed { start, grain: layout.grain, bytes };
            packed.unpack(piece, part(buf, run, piece)?)?;
        }
        Ok(())
    }
}

/// Returns the range that `buf` stands for at `at`.
pub(super) const fn range_of(at: GuestOffset, buf: &[u8]) -> GuestRange {
    at.range(count(buf.len()))
}
