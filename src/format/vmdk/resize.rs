//! Growing a disk that lies on nothing and is one extent, in an order that a cut may end anywhere.
//!
//! | | sparse: written | flat: written | what a cut leaves of it |
//! |---|---|---|---|
//! | 1 | behind everything new tables, as holes, and directories that lead to all; *durable* | the file's length; *durable* | room that nothing leads to |
//! | 2 | the header: size and directories, in one sector; *durable* | | the new size; the descriptor's line says less |
//! | 3 | the descriptor's line, in one sector; *durable* | the same | |
//! | 4 | holes where the directories were | | |
//!
//! Of a sparse disk the header's size counts (here, and for qemu): a line that says less is mended by `check`, or by the next
//! growth. VMware opens no child of another size than its parent's, so that only what has no parent grows.

use super::{
    descriptor::SIZE_MAX,
    desk::Desk,
    image::{State, VmdkImage},
    layout::{AT_END, Coding, ENTRIES_MAX, Hosted, Layout},
    tables::{Body, Extent, Grain, Grains},
};
use crate::{
    base::{
        Error, ErrorKind, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        units::{SECTOR_BYTES, index},
    },
    format::Image,
    io::{File, Kept},
};
use std::sync::Arc;

/// Directories for a larger disk, behind everything.
struct Plan {
    layout: Layout,
    tables: Vec<u32>,
    twins: Vec<u32>,
    /// Where the last of the new tables ends.
    end: u64,
}

impl VmdkImage {
    /// Refuses a size that the disk cannot get.
    pub(super) fn refuse_size(&self, bytes: u64) -> Result<()> {
        let (desk, state) = (self.desk.lock(), self.state.read());
        self.refuse_growth(bytes, desk.as_ref(), &state)
    }

    fn refuse_growth(&self, bytes: u64, desk: Option<&Desk>, state: &State) -> Result<()> {
        let refuse = |what: &str| Err(Error::unsupported(what.to_owned()));
        if bytes < self.size() {
            return refuse(
                "a VMDK of that size would have to shrink, and it only grows: convert it into a format that shrinks",
            );
        }
        if bytes > SIZE_MAX || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::invalid(format!(
                "a disk of {bytes} bytes: too large for a VMDK, or no whole sectors"
            )));
        }
        let Some(desk) = desk else { return refuse("has no descriptor that says its size") };
        if desk.has_parent() {
            return refuse(
                "lies on a parent, and VMware opens no child of another size than its parent's: fold it first",
            );
        }
        let [extent] = state.tables.extents.as_slice() else {
            return refuse(
                "is in several pieces, whose number and sizes stay: convert it into one file first",
            );
        };
        if desk.descriptor.value("createType").is_some_and(|kind| kind.starts_with(b"twoGb")) {
            return refuse("is made of pieces of 2 GB, whose number stays: convert it into one file first");
        }
        match &extent.body {
            Body::Flat(at) if !state.tables.space.part(*at)?.0.file.is_device() => {}
            Body::Grains(grains) if matches!(grains.layout.coding, Coding::Hosted { .. }) => {
                Plan::new(grains, bytes)?;
            }
            _ => {
                return refuse(
                    "is of a kind of VMDK that keeps its size: convert it into monolithicSparse first",
                );
            }
        }
        desk.with_length(bytes / SECTOR_BYTES).map(drop)
    }

    /// Makes the disk larger; what is added reads as zeros.
    pub(super) fn grow(&self, bytes: u64) -> Result<()> {
        let old = self.size();
        if bytes == old {
            return Ok(());
        }
        self.refuse_size(bytes)?;
        self.begin_at(GuestOffset::new(0).range(old))?;
        let mut desk = self.desk.lock();
        let mut state = self.state.write();
        state.check_sound()?;
        self.refuse_growth(bytes, desk.as_ref(), &state)?;
        let added = GuestRange::between(GuestOffset::new(old), GuestOffset::new(bytes));
        let left = state.grow(added)?;
        self.set_size(bytes);
        if let Some(desk) = desk.as_mut() {
            desk.set_length(bytes / SECTOR_BYTES)?;
        }
        for place in left {
            // What is not punched stays taken: that is no reason to fail.
            let _ = state.tables.space.zero(place, Kept::Nothing);
        }
        Ok(())
    }
}

impl Plan {
    fn new(grains: &Grains, bytes: u64) -> Result<Self> {
        let mut plan = Self {
            layout: Layout { bytes, ..grains.layout },
            tables: grains.tables.clone(),
            twins: grains.twins.clone(),
            end: grains.end.since(grains.base),
        };
        plan.layout.entries = bytes.div_ceil(plan.layout.table_span());
        if plan.layout.all_entries() > ENTRIES_MAX {
            return Err(Error::invalid("the disk would be too large for a sparse VMDK"));
        }
        if plan.is_longer_than(grains) {
            if plan.layout.twin.is_some() {
                plan.layout.twin = Some(place(&plan.layout, &mut plan.twins, &mut plan.end)?);
            }
            plan.layout.directory = place(&plan.layout, &mut plan.tables, &mut plan.end)?;
        }
        Ok(plan)
    }

    /// Whether directories need more room than they have.
    fn is_longer_than(&self, grains: &Grains) -> bool {
        self.layout.entries > grains.layout.entries
    }
}

/// Places a directory behind `end`, and behind it the tables that it lacks.
fn place(layout: &Layout, tables: &mut Vec<u32>, end: &mut u64) -> Result<HostOffset> {
    let directory = HostOffset::new(*end);
    *end += layout.directory_bytes().next_multiple_of(SECTOR_BYTES);
    let full = |_| Error::new(ErrorKind::NoSpace, "the file is full: no room for a table below 2 TiB");
    while tables.len() < index(layout.entries) {
        tables.push(u32::try_from(*end / SECTOR_BYTES).map_err(full)?);
        *end += layout.table_bytes().next_multiple_of(SECTOR_BYTES);
    }
    Ok(directory)
}

impl State {
    /// Makes the only extent longer, durably; returns what it needs no more.
    fn grow(&mut self, added: GuestRange) -> Result<Vec<HostRange>> {
        let old = GuestOffset::new(0).range(added.start.bytes());
        let space = Arc::clone(&self.tables.space);
        let missing = || Error::invalid("a disk without an extent");
        let extent = self.tables.extents.first().ok_or_else(missing)?;
        let left = match &extent.body {
            Body::Zero => return Err(missing()),
            Body::Flat(at) => {
                let (target, at) = space.part(*at)?;
                lengthen(target.file.as_ref(), at.range(old.bytes), added.bytes)?;
                Vec::new()
            }
            Body::Grains(grains) => {
                let plan = Plan::new(grains, added.end().bytes())?;
                let (base, is_longer) = (grains.base, plan.is_longer_than(grains));
                let file = Arc::clone(&space.part(base)?.0.file);
                let layout = grains.layout;
                self.refuse_entries_past(old, file.as_ref())?;
                self.clear_tail(old)?;
                write_directories(file.as_ref(), &plan, is_longer)?;
                if let Err(error) = write_header(file.as_ref(), &plan.layout) {
                    // Which of the two stands in the file is not known.
                    self.poison = Some(error.to_string());
                    return Err(error);
                }
                let extent = self.tables.extents.first_mut().ok_or_else(missing)?;
                let Body::Grains(grains) = &mut extent.body else { return Err(missing()) };
                grains.end = base.plus(plan.end.next_multiple_of(plan.layout.grain));
                (grains.layout, grains.tables, grains.twins) = (plan.layout, plan.tables, plan.twins);
                let bytes = layout.directory_bytes().next_multiple_of(SECTOR_BYTES);
                let places = [Some(layout.directory), layout.twin].into_iter().flatten();
                places.filter(|_| is_longer).map(|at| base.plus(at.bytes()).range(bytes)).collect()
            }
        };
        let extent = self.tables.extents.first_mut().ok_or_else(missing)?;
        extent.guest = GuestRange::between(GuestOffset::new(0), added.end());
        Ok(left)
    }

    /// Refuses tables that say something of bytes past the disk's end: they would come to light.
    fn refuse_entries_past(&self, disk: GuestRange, file: &dyn File) -> Result<()> {
        let (grains, _) = self.tables.grains(GuestOffset::new(0))?;
        let layout = &grains.layout;
        let nth = disk.bytes.div_ceil(layout.grain);
        let table = grains.tables.get(index(nth / layout.per_table)).copied().unwrap_or_default();
        if nth.is_multiple_of(layout.per_table) || table == 0 {
            return Ok(());
        }
        let from = nth % layout.per_table * layout.entry_bytes();
        let mut rest = vec![0; index(layout.table_bytes() - from)];
        file.read_at(HostOffset::new(u64::from(table) * SECTOR_BYTES + from), &mut rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(Error::corrupt("its tables say where bytes are that lie past the disk's end"));
        }
        Ok(())
    }

    /// Makes zeros of what the last grain holds past the disk's end.
    fn clear_tail(&mut self, disk: GuestRange) -> Result<()> {
        let last = GuestOffset::new(disk.bytes.saturating_sub(1));
        self.tables.load(last)?;
        let grain = self.tables.grains(last)?.0.layout.grain;
        let used = disk.bytes % grain;
        match self.tables.grain(last)? {
            Grain::Plain(host) if used > 0 => {
                self.tables.space.zero(host.plus(used).range(grain - used), Kept::Nothing)
            }
            _ => Ok(()),
        }
    }
}

/// Makes a file of a flat disk longer, durably; what it had behind the disk are zeros then.
fn lengthen(file: &dyn File, disk: HostRange, added: u64) -> Result<()> {
    let (held, end) = (file.bytes()?, disk.end().plus(added));
    let stale = HostRange::between(disk.end(), HostOffset::new(held.clamp(disk.end().bytes(), end.bytes())));
    if !stale.is_empty() {
        file.zero(stale, Kept::Nothing)?;
    }
    if held < end.bytes() {
        file.set_bytes(end.bytes())?;
    }
    file.flush()
}

fn write_directories(file: &dyn File, plan: &Plan, is_longer: bool) -> Result<()> {
    if is_longer {
        file.set_bytes(plan.end.max(file.bytes()?))?;
        let twin = plan.layout.twin.map(|at| (at, &plan.twins));
        for (at, tables) in [Some((plan.layout.directory, &plan.tables)), twin].into_iter().flatten() {
            let bytes: Vec<u8> = tables.iter().flat_map(|sector| sector.to_le_bytes()).collect();
            file.write_at(at, &bytes)?;
        }
    }
    file.flush()
}

fn write_header(file: &dyn File, layout: &Layout) -> Result<()> {
    let mut bytes = [0; 512];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    let mut header = Hosted::parse(&bytes);
    if header.directory == AT_END {
        return Err(Error::unsupported("has its directory's place in a footer: convert it first"));
    }
    header.capacity = layout.bytes / SECTOR_BYTES;
    header.directory = layout.directory.bytes() / SECTOR_BYTES;
    if let Some(twin) = layout.twin {
        header.twin = twin.bytes() / SECTOR_BYTES;
    }
    file.write_at(HostOffset::new(0), &header.to_bytes())?;
    file.flush()
}

/// Returns which sizes the descriptor's line and the header of a sparse disk in one file say, in bytes.
pub(super) fn said_sizes(desk: Option<&Desk>, extents: &[Extent]) -> Option<(u64, u64)> {
    let ([Extent { body: Body::Grains(grains), .. }], Some(desk)) = (extents, desk) else { return None };
    let said = desk.descriptor.extents().ok()?;
    let ([line], Coding::Hosted { .. }) = (said.as_slice(), grains.layout.coding) else { return None };
    Some((line.bytes, grains.layout.bytes))
}

#[cfg(test)]
mod tests;
