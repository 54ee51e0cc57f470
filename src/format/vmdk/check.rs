//! Checking and repairing: directories, tables and grains of every sparse file of a disk.
//!
//! What a repair mends: redundant tables that are not what the others are, and space that nothing leads to. Two entries
//! for one place, or one that leads nowhere, stay as they are: what is right there nobody knows.

use super::{
    layout::{Coding, Layout},
    mark::marks,
    open, packing,
    resize::said_sizes,
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
use std::{collections::BTreeSet, fmt, path::Path, sync::Arc};

/// Looks at the disk, mends what `repair` allows, and looks again.
pub(super) fn check(file: &Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    let (found, is_behind) = look(file, Repair::Nothing, parts)?;
    if repair == Repair::Nothing || (found.leaks == 0 && !is_behind) {
        return Ok(found);
    }
    if found.corruptions != 0 {
        let what = "is not mended: what seems to be free may be what a wrong entry should lead to";
        return Err(Error::corrupt(what).path(file.path()));
    }
    look(file, repair, parts)?;
    let (mut left, _) = look(file, Repair::Nothing, parts)?;
    left.leaks_fixed = found.leaks.saturating_sub(left.leaks);
    Ok(left)
}

/// Looks at everything; mends on the way what seems to be wrong and may be. Returns also whether something is behind that leads
/// no reader astray.
fn look(file: &Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<(Checked, bool)> {
    let image = open::open(Arc::clone(file), false, parts)?;
    let state = image.state.read();
    let mut checked = Checked::default();
    for extent in &state.tables.extents {
        let Body::Grains(grains) = &extent.body else { continue };
        let (target, _) = state.tables.space.part(grains.base)?;
        let file = target.file.as_ref();
        let (bytes, used) = (file.bytes()?, Vec::new());
        let room = bytes.div_ceil(SECTOR_BYTES);
        let mut look = Look { grains, file, bytes, repair, checked: &mut checked, used, room };
        look.sparse().in_file(file.path())?;
    }
    let mut desk = image.desk.lock();
    let said = said_sizes(desk.as_ref(), &state.tables.extents);
    let is_behind = said.is_some_and(|(line, header)| line < header);
    if let (Some((line, header)), Some(desk)) = (said.filter(|(line, header)| line != header), desk.as_mut())
    {
        let sizes = format!("its descriptor's line gives {line} bytes, its header {header}");
        match repair {
            _ if !is_behind => {
                checked.corruptions += 1;
                checked.findings.push(sizes);
            }
            Repair::Nothing => checked.findings.push(format!("{sizes}: it grew, and that was cut off")),
            _ => desk.set_length(header / SECTOR_BYTES)?,
        }
    }
    let mut is_unclean = false;
    for (at, _) in marks(&state.tables.extents).filter(|(_, is_set)| *is_set) {
        is_unclean = true;
        match repair {
            Repair::Nothing => {
                let name = state.tables.space.part(at)?.0.file.path().display().to_string();
                checked.findings.push(format!("{name}: was not closed by who wrote it last"));
            }
            _ => state.tables.space.write_at(at, &[0])?,
        }
    }
    Ok((checked, is_behind || is_unclean))
}

/// How much of what nothing leads to is looked at in one go.
const PIECE_BYTES: u64 = 64 << 10;

/// One sparse file under way.
struct Look<'a> {
    grains: &'a Grains,
    file: &'a dyn File,
    bytes: u64,
    repair: Repair,
    checked: &'a mut Checked,
    /// Places that something leads to: where each starts, and how long it is.
    used: Vec<(u64, u64)>,
    /// How many more entries can lead somewhere: each starts at a sector of its own.
    room: u64,
}

impl Look<'_> {
    fn sparse(&mut self) -> Result<()> {
        let layout = self.grains.layout;
        let per_table = layout.per_table;
        self.checked.total_units += layout.bytes.div_ceil(layout.grain);
        self.used.extend(fixed_parts(&layout).map(|range| (range.start.bytes(), range.bytes)));
        let (mut last, mut seen) = (None, BTreeSet::new());
        'tables: for (nth, sector) in (0..).zip(&self.grains.tables) {
            let twin = self.grains.twins.get(index(nth)).copied().unwrap_or_default();
            let table = self.table(nth, *sector, &mut seen)?;
            let twin_table = self.table(nth, twin, &mut seen)?;
            let Some(table) = table else { continue };
            if twin_table.is_some_and(|twin_table| twin_table != table) {
                self.mend_twin(nth, twin, &table)?;
            }
            if table.iter().all(|byte| *byte == 0) {
                continue;
            }
            let left = layout.bytes.div_ceil(layout.grain) - nth * per_table;
            let entries = table.chunks_exact(index(layout.entry_bytes())).take(index(left.min(per_table)));
            for (entry, word) in (nth * per_table..).zip(entries) {
                let word = layout.word(word).unwrap_or_default();
                if self.room == 0 && word != 0 {
                    let what = "is one of more than the file has room for: some are shared, and those behind it not looked at";
                    self.wrong(format_args!("the entry for byte 0x{:x} {what}", entry * layout.grain));
                    break 'tables;
                }
                self.entry(entry, word, &mut last);
            }
        }
        self.overlaps();
        self.leaks()
    }

    /// Reads a table, each but once; `None` if there is none.
    fn table(&mut self, nth: u64, sector: u32, seen: &mut BTreeSet<u32>) -> Result<Option<Vec<u8>>> {
        let (at, bytes) = (u64::from(sector) * SECTOR_BYTES, self.grains.layout.table_bytes());
        if sector == 0 {
            return Ok(None);
        }
        if at + bytes > self.bytes {
            let end = self.bytes;
            self.wrong(format_args!(
                "grain directory entry {nth} points past the file's end (0x{at:x} of 0x{end:x})"
            ));
            return Ok(None);
        }
        // What tables that share bytes say would be read many times over.
        let sectors = u32::try_from(bytes / SECTOR_BYTES).unwrap_or(u32::MAX).max(1);
        let near = sector.saturating_sub(sectors - 1)..=sector.saturating_add(sectors - 1);
        if let Some(other) = seen.range(near).next() {
            let other = u64::from(*other) * SECTOR_BYTES;
            let what = "which shares bytes with that of another one";
            self.wrong(format_args!("grain directory entry {nth} points to 0x{at:x}, {what} (0x{other:x})"));
            return Ok(None);
        }
        seen.insert(sector);
        self.used.push((at, bytes));
        let mut table = vec![0; index(bytes)];
        self.file.read_at(HostOffset::new(at), &mut table)?;
        Ok(Some(table))
    }

    fn entry(&mut self, nth: u64, word: u64, last: &mut Option<u64>) {
        let layout = self.grains.layout;
        let guest = nth * layout.grain;
        let Some(found) = self.grains.decode(word) else {
            return self
                .wrong(format_args!("the entry for byte 0x{guest:x} is 0x{word:x}, of no known kind"));
        };
        let (Grain::Plain(host) | Grain::Packed(host)) = found else { return };
        let (at, end) = (host.since(self.grains.base), self.bytes);
        if at >= end {
            let what = "points past the file's end";
            return self.wrong(format_args!("the entry for byte 0x{guest:x} {what} (0x{at:x} of 0x{end:x})"));
        }
        self.room = self.room.saturating_sub(1);
        let bytes = match packing::length(self.file, HostOffset::new(at), (&layout, guest)) {
            _ if !layout.is_packed() => layout.grain,
            Ok(Some(bytes)) => bytes,
            // Only where it starts is known.
            Ok(None) => 1,
            Err(error) => return self.wrong(format_args!("{}", error.what())),
        };
        let is_odd = !at.abs_diff(layout.overhead).is_multiple_of(layout.grain);
        if !layout.is_packed() && is_odd && at + bytes > end {
            let (what, last) = ("passes the file's end", at + bytes);
            return self
                .wrong(format_args!("the grain for byte 0x{guest:x} {what} (0x{last:x} of 0x{end:x})"));
        }
        self.used.push((at, bytes));
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
                self.wrong(format_args!("what lies at 0x{next:x} overlaps what lies at 0x{at:x}"));
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
                    self.say(format_args!("{taken} bytes behind 0x{at:x} are leaked: nothing leads there"));
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
        self.say(format_args!("the redundant copy of grain table {nth}, at 0x{at:x}, is not the same"));
        if self.repair == Repair::Nothing || at.plus(count(table.len())).bytes() > self.bytes {
            return Ok(());
        }
        self.file.write_at(at, table)
    }

    fn wrong(&mut self, what: fmt::Arguments<'_>) {
        self.checked.corruptions += 1;
        self.say(what);
    }

    /// Notes a finding; it is put into words only where there is room for them.
    fn say(&mut self, what: fmt::Arguments<'_>) {
        if self.checked.findings.len() < Checked::FINDINGS_MAX {
            let name = self.file.path().file_name().map_or(Path::new(""), Path::new);
            self.checked.findings.push(format!("{}: {what}", name.display()));
        }
    }
}

/// Returns where header, descriptor and directories are.
fn fixed_parts(layout: &Layout) -> impl Iterator<Item = HostRange> + use<> {
    let bytes = layout.directory_bytes();
    let directories = [Some(layout.directory), layout.twin].into_iter().flatten();
    let header = HostOffset::new(0).range(SECTOR_BYTES);
    [header].into_iter().chain(layout.descriptor).chain(directories.map(move |at| at.range(bytes)))
}

/// Returns how much of a gap holds something. Zeros are room that was given up: of a block that is in use in part, no host
/// makes a hole.
fn taken(file: &dyn File, gap: HostRange) -> Result<u64> {
    let (mut at, mut taken, mut buf) = (gap.start, 0, Vec::new());
    while at < gap.end() {
        let run = file.run_at(at)?;
        if run.range.is_empty() {
            break;
        }
        for piece in run.range.clip(gap).pieces(PIECE_BYTES).filter(|_| run.is_data) {
            buf.resize(index(piece.bytes), 0);
            file.read_at(piece.start, &mut buf)?;
            taken += if buf.iter().any(|byte| *byte != 0) { piece.bytes } else { 0 };
        }
        at = run.range.end();
    }
    Ok(taken)
}

/// Refuses to write to a file whose directories and tables share bytes, or lie outside of it: a write to one would change
/// another.
pub(super) fn check_metadata(grains: &Grains, bytes: u64) -> Result<()> {
    let layout = grains.layout;
    let table = |sector: u32| HostOffset::new(u64::from(sector) * SECTOR_BYTES).range(layout.table_bytes());
    let mut tables: Vec<u32> =
        grains.tables.iter().chain(&grains.twins).copied().filter(|sector| *sector != 0).collect();
    tables.sort_unstable();
    let shares = |one: HostRange, next: HostRange| {
        let (at, next) = (one.start, next.start);
        Err(Error::corrupt(format!("its metadata at 0x{at:x} and at 0x{next:x} share bytes")))
    };
    if let Some([one, next]) =
        tables.array_windows::<2>().find(|[one, next]| table(*one).end() > table(*next).start)
    {
        return shares(table(*one), table(*next));
    }
    let fixed: Vec<HostRange> = fixed_parts(&layout).collect();
    let last = tables.last().map(|sector| table(*sector));
    if let Some(range) = fixed.iter().chain(&last).find(|range| range.end().bytes() > bytes) {
        let (at, end) = (range.start, range.end());
        let what = format!("its metadata at 0x{at:x} to 0x{end:x} passes its end (0x{bytes:x})");
        return Err(Error::corrupt(what));
    }
    for (nth, one) in fixed.iter().enumerate() {
        let first = tables.partition_point(|sector| table(*sector).end() <= one.start);
        let reached = tables.get(first).map(|sector| table(*sector));
        if let Some(other) = fixed.iter().skip(nth + 1).chain(&reached).find(|other| other.overlaps(*one)) {
            return shares(*one, *other);
        }
    }
    Ok(())
}
