//! Checking and repairing: directories, tables and grains of every sparse file of a disk.
//!
//! What a repair mends: redundant tables that are not what the others are, and space that nothing leads to. Two entries
//! for one place, or one that leads nowhere, stay as they are: what is right there nobody knows.

use super::{
    layout::Coding,
    open, packing,
    tables::{Body, Grain, Grains},
};
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        error::InFile,
        units::{SECTOR_BYTES, count, index},
    },
    format::{Checked, Parts, Repair},
    io::{File, Kept},
};
use std::{path::Path, sync::Arc};

/// Looks at the disk, mends what `repair` allows, and looks again.
pub(super) fn check(file: &Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    let found = look(file, Repair::Nothing, parts)?;
    if repair == Repair::Nothing || found.leaks == 0 {
        return Ok(found);
    }
    if found.corruptions != 0 {
        let what = "is not mended: what seems to be free may be what a wrong entry should lead to";
        return Err(Error::corrupt(what).path(file.path()));
    }
    look(file, repair, parts)?;
    let mut left = look(file, Repair::Nothing, parts)?;
    left.leaks_fixed = found.leaks.saturating_sub(left.leaks);
    Ok(left)
}

/// Looks at everything; mends on the way what seems to be wrong and may be.
fn look(file: &Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    let image = open::open(Arc::clone(file), false, parts)?;
    let state = image.state.read();
    let mut checked = Checked::default();
    for extent in &state.tables.extents {
        let Body::Grains(grains) = &extent.body else { continue };
        let (target, _) = state.tables.space.part(grains.base)?;
        let file = target.file.as_ref();
        let mut look =
            Look { grains, file, bytes: file.bytes()?, repair, checked: &mut checked, used: Vec::new() };
        look.sparse().in_file(file.path())?;
    }
    Ok(checked)
}

/// One sparse file under way.
struct Look<'a> {
    grains: &'a Grains,
    file: &'a dyn File,
    bytes: u64,
    repair: Repair,
    checked: &'a mut Checked,
    /// Places that something leads to: where each starts, and how long it is.
    used: Vec<(u64, u64)>,
}

impl Look<'_> {
    fn sparse(&mut self) -> Result<()> {
        let layout = self.grains.layout;
        let per_table = layout.per_table;
        self.checked.total_units += layout.bytes.div_ceil(layout.grain);
        self.used.extend(metadata(self.grains).into_iter().map(|range| (range.start.bytes(), range.bytes)));
        let mut last = None;
        for (nth, sector) in (0..).zip(&self.grains.tables) {
            let twin = self.grains.twins.get(index(nth)).copied().filter(|twin| *twin != 0);
            let Some(table) = self.table(*sector)? else { continue };
            if let Some(twin) = twin
                && self.table(twin)?.as_ref() != Some(&table)
            {
                self.mend_twin(nth, twin, &table)?;
            }
            let left = layout.bytes.div_ceil(layout.grain) - nth * per_table;
            let entries = table.chunks_exact(index(layout.entry_bytes())).take(index(left.min(per_table)));
            for (entry, word) in (nth * per_table..).zip(entries) {
                self.entry(entry, layout.word(word).unwrap_or_default(), &mut last);
            }
        }
        self.overlaps();
        self.leaks()
    }

    /// Reads a table; `None` if there is none.
    fn table(&mut self, sector: u32) -> Result<Option<Vec<u8>>> {
        let at = u64::from(sector) * SECTOR_BYTES;
        if sector == 0 {
            return Ok(None);
        }
        let bytes = self.grains.layout.table_bytes();
        if at + bytes > self.bytes {
            self.wrong(&format!("the grain table at 0x{at:x} passes the file's end (0x{:x})", self.bytes));
            return Ok(None);
        }
        let mut table = vec![0; index(bytes)];
        self.file.read_at(HostOffset::new(at), &mut table)?;
        Ok(Some(table))
    }

    fn entry(&mut self, nth: u64, word: u64, last: &mut Option<u64>) {
        let layout = self.grains.layout;
        let guest = nth * layout.grain;
        let Some(found) = self.grains.decode(word) else {
            return self.wrong(&format!("the entry for byte 0x{guest:x} is 0x{word:x}, of no known kind"));
        };
        let (Grain::Plain(host) | Grain::Packed(host)) = found else { return };
        let (at, end) = (host.since(self.grains.base), self.bytes);
        if at >= end {
            let what = format!("points past the file's end (0x{at:x} of 0x{end:x})");
            return self.wrong(&format!("the entry for byte 0x{guest:x} {what}"));
        }
        let bytes = match packing::length(self.file, HostOffset::new(at), (&layout, guest)) {
            _ if !layout.is_packed() => layout.grain,
            Ok(Some(bytes)) => bytes,
            // Only where it starts is known.
            Ok(None) => 1,
            Err(error) => return self.wrong(error.what()),
        };
        // As many as a sound file has room for; what is more is shared.
        if count(self.used.len()) <= self.bytes / SECTOR_BYTES {
            self.used.push((at, bytes));
        }
        self.checked.allocated_units += 1;
        self.checked.compressed_units += u64::from(layout.is_packed());
        self.checked.fragmented_units += u64::from(last.is_some_and(|last| last != at));
        *last = Some(at + bytes);
    }

    /// Finds places that two things lead to.
    fn overlaps(&mut self) {
        self.used.sort_unstable();
        let used = std::mem::take(&mut self.used);
        for pair in used.windows(2) {
            if let [(at, bytes), (next, _)] = pair
                && at + bytes > *next
            {
                self.wrong(&format!("what lies at 0x{next:x} overlaps what lies at 0x{at:x}"));
            }
        }
        let end = used.last().map_or(0, |(at, bytes)| at + bytes);
        self.checked.end = self.checked.end.max(HostOffset::new(end));
        self.used = used;
    }

    /// Finds space that is taken, and that nothing leads to.
    fn leaks(&mut self) -> Result<()> {
        let layout = self.grains.layout;
        if !matches!(layout.coding, Coding::Hosted { .. }) || self.checked.corruptions != 0 {
            return Ok(());
        }
        let mut at = layout.overhead;
        let ends: Vec<(u64, u64)> = self.used.iter().map(|(at, bytes)| (*at, at + bytes)).collect();
        for (start, end) in ends.into_iter().chain([(self.bytes, self.bytes)]) {
            // What is shorter lies between tables and grains.
            if start >= at + layout.grain {
                let gap = HostOffset::new(at).range(start - at);
                let taken = taken(self.file, gap)?;
                self.checked.leaks += taken.div_ceil(layout.grain);
                if taken > 0 {
                    self.say(&format!("{taken} bytes behind 0x{at:x} are leaked: nothing leads there"));
                }
                if taken > 0 && self.repair != Repair::Nothing {
                    self.file.zero(gap, Kept::Nothing)?;
                }
            }
            at = at.max(end);
        }
        Ok(())
    }

    fn mend_twin(&mut self, nth: u64, twin: u32, table: &[u8]) -> Result<()> {
        let at = HostOffset::new(u64::from(twin) * SECTOR_BYTES);
        self.checked.leaks += 1;
        self.say(&format!("the redundant copy of grain table {nth}, at 0x{at:x}, is not the same"));
        if self.repair == Repair::Nothing || at.plus(count(table.len())).bytes() > self.bytes {
            return Ok(());
        }
        self.file.write_at(at, table)
    }

    fn wrong(&mut self, what: &str) {
        self.checked.corruptions += 1;
        self.say(what);
    }

    fn say(&mut self, what: &str) {
        if self.checked.findings.len() < Checked::FINDINGS_MAX {
            let name = self.file.path().file_name().map_or(Path::new(""), Path::new);
            self.checked.findings.push(format!("{}: {what}", name.display()));
        }
    }
}

/// Returns where header, descriptor, directories and tables are.
fn metadata(grains: &Grains) -> Vec<HostRange> {
    let layout = grains.layout;
    let directories = [Some(layout.directory), layout.twin].into_iter().flatten();
    let directories = directories.map(|at| at.range(layout.directory_bytes()));
    let tables = grains.tables.iter().chain(&grains.twins).filter(|sector| **sector != 0);
    let tables = tables.map(|at| HostOffset::new(u64::from(*at) * SECTOR_BYTES).range(layout.table_bytes()));
    let header = HostOffset::new(0).range(SECTOR_BYTES);
    [header].into_iter().chain(layout.descriptor).chain(directories).chain(tables).collect()
}

/// Returns how many bytes of a gap are not holes.
fn taken(file: &dyn File, gap: HostRange) -> Result<u64> {
    let (mut at, mut taken) = (gap.start, 0);
    while at < gap.end() {
        let run = file.run_at(at)?;
        if run.range.is_empty() {
            break;
        }
        taken += if run.is_data { run.range.clip(gap).bytes } else { 0 };
        at = run.range.end();
    }
    Ok(taken)
}

/// Refuses to write to a file whose directories and tables share bytes, or lie outside of it: a write to one would change
/// another.
pub(super) fn check_metadata(grains: &Grains, bytes: u64) -> Result<()> {
    let mut ranges = metadata(grains);
    ranges.sort_unstable_by_key(|range| range.start);
    if let Some(range) = ranges.iter().find(|range| range.end().bytes() > bytes) {
        let (at, end) = (range.start, range.end());
        return Err(Error::corrupt(format!(
            "its metadata at 0x{at:x} to 0x{end:x} passes its end (0x{bytes:x})"
        )));
    }
    match ranges.windows(2).find(|pair| matches!(pair, [one, next] if one.end() > next.start)) {
        Some([one, next]) => {
            let (at, next) = (one.start, next.start);
            Err(Error::corrupt(format!("its metadata at 0x{at:x} reaches into that at 0x{next:x}")))
        }
        _ => Ok(()),
    }
}
