//! Making a new image, each part written once.
//!
//! ```text
//! | header, region tables | log | metadata | block allocation table | blocks of a fixed disk |
//! 0                       1 MiB
//! ```
//! Nobody knows the file yet, so no order is kept; one flush ends it.

use super::{
    MAGIC,
    entry::Block,
    geometry::{ENTRY_BYTES, EntryKind, MIB},
    header::Header,
    locator::Locator,
    metadata,
    options::Options,
    region::{Regions, TABLES_AT},
};
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{count, index},
    },
    format::{Creation, Measure},
    io::{File, Kept},
};

/// Who made the file, as the file says (MS-VHDX 2.2.1).
const CREATOR: &str = concat!("deltachain ", env!("CARGO_PKG_VERSION"));

/// Where the parts are.
#[derive(Clone, Copy, Debug)]
struct Plan {
    log: HostRange,
    metadata: HostRange,
    bat: HostRange,
    entries: u64,
    /// Where the blocks of a fixed disk end; without any, where they would begin.
    end: HostOffset,
}

impl Plan {
    fn new(options: &Options, size: u64, has_parent: bool) -> Self {
        let geometry = options.geometry;
        let entries = geometry.entries(size, has_parent);
        let log = HostOffset::new(MIB).range(options.log_bytes);
        let metadata = log.end().range(MIB);
        let bat = metadata.end().range((entries * ENTRY_BYTES).next_multiple_of(MIB).max(MIB));
        let blocks = if geometry.is_fixed { geometry.blocks(size) } else { 0 };
        Self { log, metadata, bat, entries, end: bat.end().plus(blocks * geometry.block_bytes) }
    }
}

/// Makes a new image in an empty file (a device is overwritten); durable once that file is flushed.
///
/// `Invalid` for options that are unknown or exclude each other, and for a disk or a name that does not fit.
pub(super) fn create(file: &dyn File, creation: &Creation) -> Result<()> {
    let options = Options::parse(creation)?;
    let plan = Plan::new(&options, creation.size, creation.parent.is_some());
    let locator = creation.parent.as_ref().map(Locator::of).transpose()?;
    let items = metadata::encode_new(options.geometry, creation.size, locator.as_ref())?;
    if file.is_device() {
        if file.bytes()? < plan.end.bytes() {
            let what = format!("the device has {} bytes, too few for 0x{:x}", file.bytes()?, plan.end);
            return Err(Error::invalid(what));
        }
        file.zero(HostRange::between(HostOffset::new(0), plan.end), Kept::Space)?;
    } else {
        file.set_bytes(0)?;
        file.set_bytes(plan.end.bytes())?;
    }
    let mut start = MAGIC.to_vec();
    start.extend(CREATOR.encode_utf16().flat_map(u16::to_le_bytes));
    file.write_at(HostOffset::new(0), &start)?;
    let tables = Regions::new(plan.bat, plan.metadata).to_bytes();
    TABLES_AT.into_iter().try_for_each(|at| file.write_at(at, &tables))?;
    file.write_at(plan.metadata.start, &items)?;
    if locator.is_none() && (options.geometry.is_fixed || options.says_zero) {
        write_entries(file, plan, &options)?;
    }
    Header::new(plan.log).write_new(file)
}

/// Says of every block that it has its place, or that it is zeros.
fn write_entries(file: &dyn File, plan: Plan, options: &Options) -> Result<()> {
    let geometry = options.geometry;
    for piece in plan.bat.start.range(plan.entries * ENTRY_BYTES).pieces(MIB) {
        let first = piece.start.since(plan.bat.start) / ENTRY_BYTES;
        let mut bytes = Vec::with_capacity(index(piece.bytes));
        for entry in first..first + piece.bytes / ENTRY_BYTES {
            let block = match geometry.entry_kind(entry) {
                EntryKind::Bitmap => Block::Absent,
                EntryKind::Payload(nth) if geometry.is_fixed => {
                    Block::Full(plan.bat.end().plus(nth * geometry.block_bytes))
                }
                EntryKind::Payload(_) => Block::Zero,
            };
            bytes.extend(block.encode().to_le_bytes());
        }
        file.write_at(piece.start, &bytes)?;
    }
    Ok(())
}

/// Sums up what an image made with these options needs; `Invalid` for options that do not fit.
pub(super) fn measure(creation: &Creation) -> Result<Measure> {
    let options = Options::parse(creation)?;
    let geometry = options.geometry;
    creation.parent.as_ref().map(Locator::of).transpose()?;
    let has_parent = creation.parent.is_some();
    let plan = Plan::new(&options, creation.size, has_parent);
    let blocks = geometry.blocks(creation.size);
    let bitmaps = if has_parent { blocks.div_ceil(geometry.chunk_ratio()) * MIB } else { 0 };
    Ok(Measure {
        unit: geometry.block_bytes,
        fixed_bytes: plan.bat.end().bytes() + bitmaps,
        disk_bytes: blocks * geometry.block_bytes,
        is_whole: geometry.is_fixed,
        can_be_layer: true,
        ..Measure::default()
    })
}

const _: () = assert!(count(CREATOR.len()) < 256);
