//! Zeroing. Grains have a mark for zeros only in images that were made with it; elsewhere grains over nothing but zeros
//! go, what this layer holds becomes a hole where it is, and over what a parent holds zeros are written.

use super::{
    image::VmdkImage,
    read::Piece,
    tables::{Extent, Grain, Grains},
};
use crate::{
    base::{Guard, GuestRange, Result},
    format::{
        Below,
        source::{Job, Source},
    },
    io::{File, Kept},
    map::State as Held,
};

impl VmdkImage {
    /// Makes `range` read as zeros.
    pub(super) fn zero_range(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        self.check_extents(range)?;
        self.each_piece(range, |piece| match piece {
            Piece::Zero(_) => Ok(()),
            Piece::Flat(part, host) => self.space.zero(host.range(part.bytes), kept),
            Piece::Grains(part) => self.zero_page(part, kept, below),
        })
    }

    /// Makes `part`, whose entries are in one page, read as zeros.
    fn zero_page(&self, part: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        let is_zero_below = below.is_zero(part)?;
        let state = self.view(part.start)?;
        state.check_sound()?;
        let mut extents = Vec::new();
        state.tables.extents(part, &mut extents)?;
        let mut pieces = state.tables.pieces(part)?;
        drop(state);
        let shows_nothing = |state: &Held| matches!(state, Held::Absent | Held::Zero { .. });
        if is_zero_below && extents.iter().all(|extent| shows_nothing(&extent.state)) {
            return Ok(());
        }
        pieces.try_for_each(|piece| {
            let is_zero_below = is_zero_below || below.is_zero(piece)?;
            self.zero_grain(piece, kept, (below, is_zero_below))
        })
    }

    /// Makes `piece`, inside one grain, read as zeros.
    fn zero_grain(
        &self,
        piece: GuestRange,
        kept: Kept,
        (below, is_zero_below): (&dyn Below, bool),
    ) -> Result<()> {
        let state = self.view(piece.start)?;
        state.check_sound()?;
        let layout = state.tables.grains(piece.start)?.0.layout;
        let (marks, is_whole) =
            (layout.has_zeros(), piece == state.tables.extent(piece.start)?.outer(piece, layout.grain));
        let may_go = is_whole && (marks || is_zero_below) && kept == Kept::Nothing;
        match state.tables.grain(piece.start)? {
            Grain::Plain(_) if may_go => drop(state),
            Grain::Plain(host) => {
                state.check_grain(piece, host)?;
                let inside = state.tables.grains(piece.start)?.1 % layout.grain;
                // Under the shared side, as any write in place.
                return self.space.zero(host.plus(inside).range(piece.bytes), kept);
            }
            Grain::Absent if Guard::ZeroOverParent.trips(!is_zero_below) => {
                drop(state);
                if !(marks && is_whole) {
                    return self
                        .write_job(Job { range: piece, source: Source::Zeros(kept), below })
                        .map(drop);
                }
            }
            _ => return Ok(()),
        }
        self.drop_grain(piece, if is_zero_below { Grain::Absent } else { Grain::Zero })
    }

    /// Has the grain that is `piece` be nowhere: its entry says `grain`.
    fn drop_grain(&self, piece: GuestRange, grain: Grain) -> Result<()> {
        let _claim = self.claims.take(piece);
        let mut state = self.state.write();
        state.check_sound()?;
        state.tables.load(piece.start)?;
        let old = state.tables.grain(piece.start)?;
        if old == grain {
            return Ok(());
        }
        let bytes = state.tables.grains(piece.start)?.0.layout.grain;
        if let Grain::Plain(host) = old {
            state.check_grain(piece, host)?;
            state.dropped.push(host.range(bytes));
        }
        state.ensure_table(piece.start)?;
        state.tables.store(piece.start, grain)
    }

    /// Returns whether zeroing `range` is known to store no zeros.
    pub(super) fn zeroes_without_bytes(&self, range: GuestRange, kept: Kept) -> bool {
        let is_alone = self.desk.lock().as_ref().is_none_or(|desk| !desk.has_parent());
        let state = self.state.read();
        let marks = |grains: &Grains| grains.layout.has_zeros() && range == range.inner(grains.layout.grain);
        let can_mark = || state.tables.extents.iter().filter_map(Extent::grains).all(marks);
        range.is_empty() || self.space.zeroes_fast(kept) && (is_alone || can_mark())
    }
}
