//! Reading: which bytes this layer holds, and the bytes themselves.
//!
//! A host offset is used only under the state's shared side, under which it was looked up. What lies below is read after.

use super::image::{SparseImage, State};
use crate::{
    base::{GuestRange, Result, units::SECTOR_BYTES},
    format::{Below, part::part},
    map::{self, Extent, State as Held},
};

impl SparseImage {
    /// Appends what this layer says about `range`, which may pass the disk's end inside the last block.
    pub(super) fn map_unchecked(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        let state = self.state.read();
        for piece in range.pieces(self.shape.block()) {
            self.map_piece(&state, piece, out)?;
        }
        Ok(())
    }

    /// The same of a range inside one block.
    pub(super) fn map_piece(&self, state: &State, piece: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        let block = self.block(piece.start);
        let Some(host) = state.bat.get(&*self.file, block)? else {
            map::push(out, Extent::new(piece, Held::Absent));
            return Ok(());
        };
        let (mut at, end) = self.sectors(piece);
        let first = piece.start.floor(SECTOR_BYTES);
        let base = at;
        self.with_bits(state, (block, host), |bits| {
            while at < end {
                let (is_held, to) = bits.run(at, end);
                let run = first.plus((at - base) * SECTOR_BYTES).range((to - at) * SECTOR_BYTES).clip(piece);
                let held =
                    if is_held { Held::Data { host: self.place(host, run).start } } else { Held::Absent };
                map::push(out, Extent::new(run, held));
                at = to;
            }
        })
    }

    /// Fills `buf` with what is read at `range`, which may pass the disk's end inside the last block.
    pub(super) fn read_unchecked(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let mut extents = Vec::new();
        for piece in range.pieces(self.shape.block()) {
            extents.clear();
            let state = self.state.read();
            self.map_piece(&state, piece, &mut extents)?;
            for extent in &extents {
                if let Held::Data { host } = extent.state {
                    self.file.read_at(host, part(buf, range, extent.range)?)?;
                }
            }
            drop(state);
            for extent in extents.iter().filter(|extent| extent.state == Held::Absent) {
                below.read(extent.range.start, part(buf, range, extent.range)?)?;
            }
        }
        Ok(())
    }
}
