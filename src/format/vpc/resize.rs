//! Another size, in steps that a cut leaves readable at any point.
//!
//! Growth: a BAT with room for it is durable before the header's one sector points to it; what the new part shows is
//! durable (zeros, where a longer parent holds something) before the footer says that it is there. Shrinking: the footer
//! first, then what is past it is dropped; a later growth zeroes what it uncovers.

use super::{bat, footer, header::Header, image::SparseImage, options};
use crate::{
    base::{Guard, GuestOffset, GuestRange, HostOffset, Result, units::SECTOR_BYTES},
    format::Below,
    io::{File, Kept},
};

/// Writes both copies of a footer, the one at the end first: it is the one that counts.
pub(super) fn write_footers(file: &dyn File, end_at: HostOffset, footer: &footer::Footer) -> Result<()> {
    for at in [end_at, HostOffset::new(0)] {
        file.write_at(at, &footer.signed())?;
        file.flush()?;
    }
    Ok(())
}

impl SparseImage {
    /// Changes the disk's size.
    pub(super) fn resize_to(&self, size: u64, below: &dyn Below) -> Result<()> {
        let _alone = self.resizing.lock();
        let entries = self.entries_for(size)?;
        let old = self.state.read().size;
        let block_end = |size: u64| GuestOffset::new(size).ceil(self.shape.block());
        if size > old {
            self.set_entries(entries)?;
            let new = GuestRange::between(GuestOffset::new(old), GuestOffset::new(size));
            // A shrinking may have left something in the last block.
            let kept = GuestRange::between(new.start, new.end().min(block_end(old)));
            self.zero_stale(kept)?;
            if Guard::UncoveredParent.trips(!below.is_zero(new)?) {
                self.zero_unchecked(new, Kept::Nothing, below)?;
            }
            self.flush_all()?;
            return self.set_size(size);
        }
        self.set_size(size)?;
        for piece in GuestRange::between(block_end(size), block_end(old)).pieces(self.shape.block()) {
            self.drop_block(piece)?;
        }
        self.zero_stale(GuestRange::between(GuestOffset::new(size), block_end(size)))?;
        self.flush_all()?;
        self.set_entries(entries)
    }

    /// Returns how many blocks a disk of that size has here; `Invalid` for a size that no VHD has.
    pub(super) fn entries_for(&self, size: u64) -> Result<u32> {
        options::check_size(size)?;
        self.shape.check_entries(size)
    }

    /// Makes what this layer holds of `range` read as zeros; where it is silent it stays silent.
    fn zero_stale(&self, range: GuestRange) -> Result<()> {
        range.pieces(self.shape.block()).try_for_each(|piece| self.zero_held(piece, Kept::Nothing).map(drop))
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.change_footer(|footer| footer.set_size(size))
    }

    /// Changes both copies of the footer, durably; the disk has the size that they say.
    pub(super) fn change_footer(&self, change: impl FnOnce(&mut footer::Footer)) -> Result<()> {
        let _header = self.header.lock();
        let mut state = self.state.write();
        state.check_sound()?;
        let mut footer = state.footer;
        change(&mut footer);
        let size = footer.disk_bytes()?;
        let done = write_footers(&*self.file, state.end_at, &footer);
        done.inspect_err(|error| state.poison = Some(error.to_string()))?;
        (state.footer, state.size) = (footer, size);
        Ok(())
    }

    /// Gives the BAT another number of entries, at its place if it has room there, else in a new one.
    fn set_entries(&self, entries: u32) -> Result<()> {
        let mut header = self.header.lock();
        // What the old table says is in the file, and stays so while the state is held.
        let mut state = self.settled()?;
        let (wanted, held) = (u64::from(entries), state.bat.entries);
        if header.fields.max_table_entries == entries && held == wanted {
            return Ok(());
        }
        let moves = bat::table_bytes(wanted) > bat::table_bytes(held);
        let mut fields = header.fields;
        fields.max_table_entries = entries;
        let mut to = state.bat.at;
        if moves {
            // Where the footer is, which goes behind it first.
            to = state.end_at;
            let end_at = to.plus(bat::table_bytes(wanted)).ceil(SECTOR_BYTES);
            self.file.write_at(end_at, &state.footer.signed())?;
            state.end_at = end_at;
            fields.table_offset = to.bytes();
        }
        state.bat.resize(wanted);
        // In the old place, what is new is unused: there were no blocks.
        let done = self.file.write_at(to, &state.bat.to_bytes()).and_then(|()| {
            if moves {
                self.file.flush()?;
            }
            // Both fields and the checksum are in its first sector. Durable before a footer relies on it.
            self.file.write_at(header.at, &fields.signed())
        });
        done.inspect_err(|error| state.poison = Some(error.to_string()))?;
        state.bat.at = to;
        *header = Header { fields, ..header.clone() };
        Ok(())
    }
}
