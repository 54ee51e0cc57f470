//! Zeroing. The format has no mark for zeros: what this layer holds becomes a hole where it is, blocks over nothing but
//! zeros go, and over what a parent holds zeros are written.

use super::image::SparseImage;
use crate::{
    base::{Guard, GuestOffset, GuestRange, Result},
    format::{
        Below,
        source::{Job, Source},
    },
    io::Kept,
    map::State as Held,
};

impl SparseImage {
    /// Makes `range` read as zeros; it may pass the disk's end inside the last block.
    pub(super) fn zero_unchecked(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        for piece in range.pieces(self.shape.block()) {
            let is_zero_below = below.is_zero(piece)?;
            let left = if self.covers_block(piece) && kept == Kept::Nothing && is_zero_below {
                self.drop_block(piece)?;
                Vec::new()
            } else {
                self.zero_held(piece, kept)?
            };
            for silent in left {
                if Guard::ZeroOverParent.trips(!is_zero_below && !below.is_zero(silent)?) {
                    self.write_job(Job { range: silent, source: Source::Zeros(Kept::Space), below })?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether nothing of the disk is in the block of `piece` but `piece`.
    fn covers_block(&self, piece: GuestRange) -> bool {
        let whole = piece.outer(self.shape.block());
        let end = GuestOffset::new(self.state.read().size).min(whole.end());
        piece.start == whole.start && piece.end() >= end
    }

    /// Gives up the block at `piece`: what lies below reads as zeros.
    pub(super) fn drop_block(&self, piece: GuestRange) -> Result<()> {
        let _claim = self.claims.take(piece.outer(self.shape.block()));
        let block = self.block(piece.start);
        let mut state = self.state.write();
        state.check_sound()?;
        if let Some(host) = state.bat.get(&*self.file, block)? {
            state.bat.set(block, None)?;
            state.marks.lock().forget(block);
            state.dropped.push(host);
        }
        Ok(())
    }

    /// Zeroes what is held of `piece`; returns what is not.
    pub(super) fn zero_held(&self, piece: GuestRange, kept: Kept) -> Result<Vec<GuestRange>> {
        // Under the shared side, as any write in place.
        let state = self.state.read();
        state.check_sound()?;
        let (mut extents, mut silent) = (Vec::new(), Vec::new());
        self.map_piece(&state, piece, &mut extents)?;
        for extent in extents {
            match extent.state {
                Held::Data { host } => self.file.zero(host.range(extent.range.bytes), kept)?,
                _ => silent.push(extent.range),
            }
        }
        Ok(silent)
    }
}
