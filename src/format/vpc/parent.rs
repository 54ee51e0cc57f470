//! Another parent, or none: a new header in free room, to which one sector leads then, the footer.

use super::{
    footer::Kind,
    header::{HEADER_BYTES, Header, unique_id},
    image::{SparseImage, State},
    locator,
    resize::write_footers,
};
use crate::{
    base::{
        GuestOffset, HostOffset, HostRange, Result,
        units::{SECTOR_BYTES, count, index},
    },
    format::{Format, ParentName},
    io::Kept,
};

/// How much of a gap is looked at for a header.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Returns the locators for a parent of that name, their bytes to be at `at`.
pub(super) fn locators(parent: &ParentName, at: HostOffset) -> Result<locator::Written> {
    let format = parent.format.as_deref().filter(|format| *format != Format::Vpc.name());
    locator::write(&parent.name, format, at)
}

impl SparseImage {
    /// Names another parent, or none.
    pub(super) fn name_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        // Nobody brings first sectors while what they lack changes its meaning.
        let _claim = self.claims.take(GuestOffset::new(0).range(u64::MAX));
        let mut header = self.header.lock();
        let mut state = self.settled()?;
        let used = state.bat.used(&*self.file, (&header, state.end_at))?;
        let mut fields = header.fields;
        (fields.parent_unique_id, fields.parent_timestamp) = ([0; 16], 0);
        (fields.parent_name, fields.locators) = ([0; 512], [0; 192]);
        let written = parent.map(|parent| locators(parent, HostOffset::new(0))).transpose()?;
        let needed = HEADER_BYTES + written.map_or(0, |written| count(written.bytes.len()));
        let at = self.room_for(&mut state, &header, (&used, needed))?;
        let mut bytes = Vec::new();
        if let Some(parent) = parent {
            let written = locators(parent, at.plus(HEADER_BYTES))?;
            (fields.parent_name, fields.locators) = (written.parent_name, written.locators);
            fields.parent_unique_id = unique_id(Some(parent));
            bytes = written.bytes;
        }
        self.file.write_at(at, &[fields.signed().as_slice(), &bytes].concat())?;
        if parent.is_none() {
            // Readers that look at no bitmaps of a disk alone (qemu) would see what a cut has left there.
            self.each_silent(&state, &used, |_, place, _| self.file.zero(place, Kept::Nothing))?;
        }
        self.file.flush()?;
        let mut footer = state.footer;
        let kind = if parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
        (footer.disk_type, footer.data_offset) = (kind.number(), at.bytes());
        let done = write_footers(&*self.file, state.end_at, &footer);
        done.inspect_err(|error| state.poison = Some(error.to_string()))?;
        // The room of the old one is found by its zeros.
        for old in own_places(&header, state.bat.entries) {
            self.file.zero(old, Kept::Space)?;
        }
        (state.footer, state.is_child) = (footer, parent.is_some());
        *header = Header::read(&*self.file, (at, state.size), kind, false)?;
        if parent.is_none() {
            let sectors = self.shape.block() / SECTOR_BYTES;
            self.each_silent(&state, &used, |block, _, run| {
                state.marks.lock().set(block, run, sectors);
                Ok(())
            })?;
        }
        drop(state);
        self.flush_under()
    }

    /// Finds room for `needed` bytes where nothing is but zeros: before the blocks, or behind all.
    fn room_for(
        &self,
        state: &mut State,
        header: &Header,
        (used, needed): (&[(HostOffset, u64)], u64),
    ) -> Result<HostOffset> {
        let needed = needed.next_multiple_of(SECTOR_BYTES);
        let mut taken = header.places(state.bat.entries.max(u64::from(header.fields.max_table_entries)));
        taken.push(HostOffset::new(0).range(SECTOR_BYTES));
        let limit = used.first().map_or(state.end_at, |(at, _)| *at).min(state.end_at);
        for from in taken.iter().map(|range| range.end().ceil(SECTOR_BYTES)) {
            let room = from.range(needed);
            let is_free = room.end() <= limit && !taken.iter().any(|other| other.overlaps(room));
            if is_free && needed <= GAP_BYTES_MAX && self.is_empty(room)? {
                return Ok(from);
            }
        }
        let (at, end_at) = (state.end_at, state.end_at.plus(needed));
        self.file.write_at(end_at, &state.footer.signed())?;
        state.end_at = end_at;
        Ok(at)
    }

    fn is_empty(&self, room: HostRange) -> Result<bool> {
        let mut bytes = vec![0; index(room.bytes)];
        self.file.read_at(room.start, &mut bytes)?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    /// Calls `each` for what the blocks that are there do not hold: block, place in the file, sectors.
    fn each_silent(
        &self,
        state: &State,
        used: &[(HostOffset, u64)],
        mut each: impl FnMut(u64, HostRange, (u64, u64)) -> Result<()>,
    ) -> Result<()> {
        let sectors = self.shape.block() / SECTOR_BYTES;
        for (host, block) in used {
            let mut silent = Vec::new();
            self.with_bits(state, (*block, *host), |bits| {
                let mut at = 0;
                while at < sectors {
                    let (is_held, end) = bits.run(at, sectors);
                    if !is_held {
                        silent.push((at, end));
                    }
                    at = end;
                }
            })?;
            for (from, to) in silent {
                let place = host.plus(self.shape.bitmap() + from * SECTOR_BYTES);
                each(*block, place.range((to - from) * SECTOR_BYTES), (from, to))?;
            }
        }
        Ok(())
    }
}

/// Returns where a header is that gave way, and the names right behind it.
fn own_places(header: &Header, entries: u64) -> Vec<HostRange> {
    let table = header.table(entries.max(u64::from(header.fields.max_table_entries)));
    let behind = header.at.plus(HEADER_BYTES).range(GAP_BYTES_MAX);
    let names = header.locators.iter().map(|locator| locator.place);
    let names = names.filter(|place| place.clip(behind) == *place && !place.overlaps(table));
    names.chain([header.at.range(HEADER_BYTES)]).collect()
}
