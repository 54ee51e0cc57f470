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
    space::{Held, each_entry, fixed_parts, held, misplaced, name, pages_with},
};
use crate::{
    base::{HostOffset, Result, error::InFile},
    format::{Checked, Repair},
    io::File,
};
use std::sync::Arc;

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
        return Ok(look(seen.as_ref(), &layout)?.checked);
    }
    // Only what another opening for writing would do, too.
    let mut session = Session::new(layout.header, layout.regions.clone());
    if let Some(replay) = layout.replay.take() {
        session.recover(file.as_ref(), &replay)?;
    }
    let found = look(file.as_ref(), &layout)?;
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
    let mut left = look(file.as_ref(), &Layout::read(file.as_ref())?)?.checked;
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
    fn find(&mut self, what: String) {
        self.checked.corruptions += 1;
        if self.checked.findings.len() < Checked::FINDINGS_MAX {
            self.checked.findings.push(what);
        }
    }
}

/// Looks at everything; `file` shows what the log says.
fn look(file: &dyn File, layout: &Layout) -> Result<Look> {
    let (metadata, bat) = (&layout.metadata, layout.regions.bat);
    let (geometry, has_parent) = (metadata.geometry, metadata.has_parent());
    let mut look = Look::default();
    if !layout.header.is_twin_valid {
        look.find("header: one of the two is damaged".to_owned());
    }
    if layout.regions.valid.contains(&false) {
        look.find("region table: one of the two is damaged".to_owned());
    }
    if let Some(why) = &layout.lost {
        look.find(format!("{why}: the latest changes of the tables are lost, if there were any"));
    }
    let mut space = fixed_parts(layout);
    let file_bytes = file.bytes()?;
    let mut end = HostOffset::new(0);
    let mut partial = Vec::new();
    let mut bitmaps = Vec::new();
    each_entry(file, bat, 0..geometry.entries(metadata.size, has_parent), |entry, word| {
        let is_bitmap = geometry.entry_kind(entry) == EntryKind::Bitmap;
        let shown = |why: &str| format!("{} {why}", name(geometry, bat, entry));
        let Held { range, is_partial } = match held(geometry, has_parent, (entry, word)) {
            Ok(Some(held)) => held,
            Ok(None) => return Ok(()),
            Err(why) => {
                look.find(shown(&why));
                if !is_bitmap {
                    look.wrong.push((entry, Block::Zero.encode()));
                }
                return Ok(());
            }
        };
        if let Some(why) = misplaced(range, file_bytes) {
            look.find(shown(&why));
            // Without its bitmap a chunk is missing more than a block: that is not mended.
            if !is_bitmap {
                look.wrong.push((entry, Block::Zero.encode()));
            }
            return Ok(());
        }
        if !space.take(range) {
            look.find(shown(&format!("points to 0x{:x}, which something else uses", range.start)));
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
            partial.push(geometry.bitmap_entry_of(block));
        }
        Ok(())
    })?;
    partial.dedup();
    for entry in partial.into_iter().filter(|entry| bitmaps.binary_search(entry).is_err()) {
        look.find(format!("{} is missing, and blocks need it", name(geometry, bat, entry)));
    }
    look.checked.total_units = geometry.blocks(metadata.size);
    look.checked.end = space.end();
    Ok(look)
}
