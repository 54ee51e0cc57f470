//! Reading: which bytes this layer holds, and the bytes themselves.
//!
//! A host offset is used only under the guard it was looked up with. What lies below needs none, and is read after the
//! guard is gone.

use super::{image::VhdxImage, state::State};
use crate::{
    base::{GuestOffset, GuestRange, Result, units::count},
    format::{Below, part::part},
    map::{self, Extent},
};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

/// Spans that are looked at before writers get their turn.
const SPANS_AT_ONCE: usize = 4096;

impl VhdxImage {
    /// Appends what this layer says about `range`.
    pub(super) fn map_range(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.check_range(range)?;
        self.map_unchecked(range, out)
    }

    /// The same; `range` may pass the disk's end inside its last block.
    pub(super) fn map_unchecked(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let state = self.view(at)?;
            let span = state.span();
            for _ in 0..SPANS_AT_ONCE {
                if at >= range.end() || !state.is_ready(at)? {
                    break;
                }
                let end = at.floor(span).plus(span).min(range.end());
                state.extents(GuestRange::between(at, end), out)?;
                at = end;
            }
        }
        Ok(())
    }

    /// Fills `buf` from `at`.
    pub(super) fn read_range(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let range = at.range(count(buf.len()));
        self.check_range(range)?;
        let span = self.state.read().span();
        for piece in range.pieces(span) {
            self.read_piece(piece, part(buf, range, piece)?, below)?;
        }
        Ok(())
    }

    /// Takes the shared side with all loaded that says what is at `guest`.
    pub(super) fn view(&self, guest: GuestOffset) -> Result<RwLockReadGuard<'_, State>> {
        let state = self.state.read();
        if state.is_ready(guest)? {
            return Ok(state);
        }
        drop(state);
        let mut state = self.state.write();
        state.load(guest)?;
        Ok(RwLockWriteGuard::downgrade(state))
    }

    /// Reads `range`, which lies in one span.
    fn read_piece(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let mut extents = Vec::new();
        let state = self.view(range.start)?;
        state.extents(range, &mut extents)?;
        for extent in &extents {
            if let map::State::Data { host } = extent.state {
                self.file.read_at(host, part(buf, range, extent.range)?)?;
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
        Ok(())
    }
}
