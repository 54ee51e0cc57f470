//! Zeroing: by entries where whole units are asked for, by stored zeros at the edges.

use super::{
    entry::{Cluster, Held},
    flush::Tried,
    image::{Qcow2Image, State},
};
use crate::{
    base::{Guard, GuestOffset, GuestRange, HostOffset, Result},
    format::{
        Below,
        source::{Job, Source},
    },
    io::Kept,
};

/// How whole units are made to read as zeros.
#[derive(Clone, Copy, Debug)]
struct Erasure {
    kept: Kept,
    /// Whether all that lies below the range is zero: silence is enough.
    is_zero_below: bool,
}

/// What one entry becomes.
enum Change {
    To(Cluster),
    /// No entry can say it: the bytes must be written.
    Write,
}

impl State {
    /// Returns what the entry `old` becomes when the units of `touched` are to read as zeros.
    fn erased(&self, old: Cluster, touched: u32, how: Erasure) -> Change {
        let shape = self.tables.shape;
        let is_whole = touched == shape.all();
        let is_silent = old == Cluster::ABSENT && !Guard::ZeroOverParent.trips(!how.is_zero_below);
        if is_silent {
            return Change::To(old);
        }
        if !shape.has_zero_flag() {
            let may_drop = how.is_zero_below && how.kept == Kept::Nothing;
            return if may_drop { Change::To(Cluster::ABSENT) } else { Change::Write };
        }
        if !is_whole && matches!(old.held, Held::Packed(_)) {
            return Change::Write;
        }
        let new = Cluster { held: old.held, data: old.data & !touched, zero: old.zero | touched };
        let is_held = match how.kept {
            Kept::Space => new.data != 0 || old.own().is_some(),
            Kept::Nothing => new.data != 0,
        };
        Change::To(if is_held { new } else { Cluster { held: Held::Nowhere, ..new } })
    }

    /// Makes whole units of `range`, inside one page of a table, read as zeros; returns the parts whose bytes
    /// must be written instead.
    fn erase(&mut self, range: GuestRange, how: Erasure) -> Tried<Vec<GuestRange>> {
        self.check_room()?;
        self.tables.load(range.start)?;
        let (mut entries, mut left) = (Vec::new(), Vec::new());
        for piece in range.pieces(self.tables.shape.cluster()) {
            let old = self.tables.cluster(piece.start)?;
            match self.erased(old, self.tables.shape.mask(piece), how) {
                Change::Write => left.push(piece),
                Change::To(new) if new == old => {}
                Change::To(new) => entries.push((piece.start, old.held, new)),
            }
        }
        if entries.is_empty() {
            return Ok(left);
        }
        self.own_table(range.start)?;
        for (guest, held, new) in entries {
            self.tables.store(guest, new)?;
            if new.held != held {
                self.drop_held(held);
            }
        }
        Ok(left)
    }
}

impl Qcow2Image {
    /// Returns whether zeroing `range` changes entries only: whole clusters, whose entries can say it.
    pub(super) fn erases_whole(&self, range: GuestRange, kept: Kept) -> bool {
        let reached = self.to_cluster_end(range);
        let is_whole = reached.inner(self.shape.cluster()) == reached;
        let leaves_data = kept == Kept::Space && !self.is_raw;
        let is_apart_fast = self.data_file.as_ref().is_none_or(|data| leaves_data || data.zeroes_fast(kept));
        range.is_empty() || self.shape.has_zero_flag() && is_whole && is_apart_fast
    }

    /// Makes `range` read as zeros; it may pass the disk's end inside the last cluster.
    pub(super) fn zero_unchecked(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        let whole = range.inner(self.shape.unit());
        if whole.is_empty() {
            return self.zero_bytes(range, below);
        }
        self.zero_bytes(GuestRange::between(range.start, whole.start), below)?;
        let page_span = self.state.read().tables.page_span();
        for piece in whole.pieces(page_span) {
            self.zero_units(piece, kept, below)?;
        }
        self.zero_bytes(GuestRange::between(whole.end(), range.end()), below)
    }

    /// Makes part of a unit read as zeros.
    fn zero_bytes(&self, range: GuestRange, below: &dyn Below) -> Result<()> {
        for piece in range.pieces(self.shape.unit()) {
            // A raw data file may hold what a power cut kept from the entries.
            if self.is_raw || !self.shows_zeros(piece, below)? {
                self.write_job(Job { range: piece, source: Source::Zeros(Kept::Space), below })?;
            }
        }
        Ok(())
    }

    /// Makes whole units inside one page of a table read as zeros.
    fn zero_units(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()> {
        let how = Erasure { kept, is_zero_below: below.is_zero(range)? };
        let claim = self.claims.take(range.outer(self.shape.cluster()));
        if let Some(data) = &self.data_file
            && (kept == Kept::Nothing || self.is_raw)
        {
            // At the guest's own offsets, so nothing else can have taken this place meanwhile.
            let range = self.on_disk(range);
            data.zero(HostOffset::new(range.start.bytes()).range(range.bytes), kept)?;
        }
        let left = self.attempt(|state| state.erase(range, how))?;
        drop(claim);
        let zeros = |range| Job { range, source: Source::Zeros(Kept::Space), below };
        left.into_iter().try_for_each(|range| self.write_job(zeros(range)).map(drop))
    }

    /// Returns `range`, up to the end of the last cluster if it reaches the disk's end: nobody sees the rest.
    pub(super) fn to_cluster_end(&self, range: GuestRange) -> GuestRange {
        let size = GuestOffset::new(self.state.read().size);
        if range.is_empty() || range.end() != size {
            return range;
        }
        GuestRange::between(range.start, size.ceil(self.shape.cluster()))
    }
}
