//! Checking and repairing: a log that is not empty, headers and region tables of which one copy is damaged, entries that
//! cannot be true.
//!
//! Of a log in which nothing counts, although the header names it, a repair keeps nothing: either the power went before its
//! first entry was whole, and then nothing of what it says had been put in its place (qemu names a log before it writes
//! there), or it was damaged, and what it said is lost. What the tables say without it has to be sound, or is mended.
//!
//! What a repair says of a block whose entry leads nowhere is that it is zeros: a parent's bytes there are older than
//! what is lost. Two entries for one place are left to a person: which of them is right, nothing tells.

use super::{
    entry::Block,
    geometry::EntryKind,
    layout::Layout,
    replayed::Replayed,
    session::Session,
    space::{Fault, Held, cut, each_entry, fixed_parts, held, misplaced, name, pages_with},
};
use crate::{
    base::{HostOffset, Result, error::InFile},
    format::{Checked, Repair},
    io::File,
};
use std::{fmt, sync::Arc};

/// Looks at the image, mends what `repair` allows, and looks again.
pub(super) fn check(file: Arc<dyn File>, repair: Repair) -> Result<Checked> {
    let path = file.path().to_path_buf();
    check_file(file, repair).in_file(&path)
}

fn check_file(file: Arc<dyn File>, repair: Repair) -> Result<Checked> {
    let mut layout = Layout::read_as_is(file.as_ref())?;
    if repair == Repair::Nothing {
        let seen: Arc<dyn File> = match layout.replay.take() {
            Some(replay) => Arc::new(Replayed { file, replay }),
            None => file,
        };
        return Ok(look(seen.as_ref(), &layout, repair)?.checked);
    }
    // Only what another opening for writing would do, too.
    let mut session = Session::new(layout.header, layout.regions.clone());
    if let Some(replay) = layout.replay.take() {
        session.recover(file.as_ref(), &replay)?;
    }
    let found = look(file.as_ref(), &layout, repair)?;
    if repair == Repair::Leaks || found.checked.corruptions == 0 {
        return Ok(found.checked);
    }
    if layout.lost.is_some() {
        // Before entries are written: none of the old ones may be taken for one that follows.
        session.empty_log(file.as_ref())?;
    }
    session.mend_twins(file.as_ref())?;
    let pages = pages_with(file.as_ref(), layout.regions.bat, &found.wrong)?;
    session.commit(file.as_ref(), &pages)?;
    session.empty_log(file.as_ref())?;
    let mut left = look(file.as_ref(), &Layout::read(file.as_ref())?, Repair::Nothing)?.checked;
    left.corruptions_fixed = found.checked.corruptions.saturating_sub(left.corruptions);
    Ok(left)
}

/// What was found, and what can be mended.
#[derive(Debug, Default)]
struct Look {
    checked: Checked,
    /// Entries that lead nowhere, with what they are to say.
    wrong: Vec<(u64, u64)>,
}

impl Look {
    /// Notes what is wrong; it is put into words only where there is room for them.
    fn find(&mut self, what: fmt::Arguments<'_>) {
        self.checked.corruptions += 1;
        if self.checked.findings.len() < Checked::FINDINGS_MAX {
            self.checked.findings.push(what.to_string());
        }
    }
}

/// Looks at everything; `file` shows what the log says. What can be mended is noted only if it is going to be.
fn look(file: &dyn File, layout: &Layout, repair: Repair) -> Result<Look> {
    let (metadata, bat) = (&layout.metadata, layout.regions.bat);
    let (geometry, has_parent) = (metadata.geometry, metadata.has_parent());
    let mut look = Look::default();
    if !layout.header.is_twin_valid {
        look.find(format_args!("header: one of the two is damaged"));
    }
    if layout.regions.valid.contains(&false) {
        look.find(format_args!("region table: one of the two is damaged"));
    }
    if let Some(why) = &layout.lost {
        look.find(format_args!("{why}: the latest changes of the tables are lost, if there were any"));
    }
    let mut space = fixed_parts(layout);
    let file_bytes = file.bytes()?;
    let mut end = HostOffset::new(0);
    let mut partial = Vec::new();
    let mut bitmaps = Vec::new();
    each_entry(file, bat, 0..geometry.entries(metadata.size, has_parent), |entry, word| {
        let is_bitmap = geometry.entry_kind(entry) == EntryKind::Bitmap;
        let found = match held(geometry, has_parent, (entry, word)) {
            Ok(None) => return Ok(()),
            Ok(Some(held)) => misplaced(held.range, file_bytes).map_or(Ok(held), Err),
            Err(fault) => Err(fault),
        };
        let Held { range, is_partial } = match found {
            Ok(held) => held,
            Err(fault) => {
                look.find(format_args!("{} {fault}", name(geometry, bat, entry)));
                // Without its bitmap a chunk is missing more than a block: that is not mended.
                if !is_bitmap && repair == Repair::All {
                    look.wrong.push((entry, Block::Zero.encode()));
                }
                return Ok(());
            }
        };
        if let Some(fault) = cut(metadata, (entry, range), file_bytes) {
            // What is left of a block is not given up for what is gone of it.
            look.find(format_args!("{} {fault}", name(geometry, bat, entry)));
        }
        if !space.take(range) {
            look.find(format_args!("{} {}", name(geometry, bat, entry), Fault::Shared(range.start)));
            return Ok(());
        }
        if is_bitmap {
            bitmaps.push(entry);
        } else {
            look.checked.allocated_units += 1;
            look.checked.fragmented_units +=
                u64::from(look.checked.allocated_units > 1 && range.start != end);
            end = range.end();
        }
        if let (true, EntryKind::Payload(block)) = (is_partial, geometry.entry_kind(entry)) {
            let bitmap = geometry.bitmap_entry_of(block);
            if partial.last() != Some(&bitmap) {
                partial.push(bitmap);
            }
        }
        Ok(())
    })?;
    for entry in partial.into_iter().filter(|entry| bitmaps.binary_search(entry).is_err()) {
        look.find(format_args!("{} is missing, and blocks need it", name(geometry, bat, entry)));
    }
    look.checked.total_units = geometry.blocks(metadata.size);
    look.checked.end = space.end();
    Ok(look)
}
