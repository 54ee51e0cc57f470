//! How much space a new image will take.

use crate::{
    base::{GuestOffset, GuestRange, Result},
    chain::View,
    format::{self, Bitmap, Creation, Format},
};

/// How much of the map is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// The space that a new image takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Measured {
    /// With the data that there is.
    pub required: u64,
    /// With every byte of the disk written.
    pub fully_allocated: u64,
    /// What the bitmaps of the source would add; `None` where there can be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
}

/// Measures a new image of `format` with these options that shows what `source` shows, or an empty one.
///
/// ```
/// use deltachain::{format::{Creation, Format}, job::measure::measure};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let creation = Creation { size: 1 << 30, parent: None, options: vec![] };
/// let measured = measure(Format::Qcow2, &creation, None)?;
/// assert!(measured.required < 1 << 20 && measured.fully_allocated > 1 << 30);
/// # Ok(())
/// # }
/// ```
pub fn measure(format: Format, creation: &Creation, source: Option<&View>) -> Result<Measured> {
    let sums = format::measure(format, creation)?;
    let data_bytes = match source {
        _ if sums.is_whole => sums.disk_bytes,
        Some(source) => touched_bytes(source, sums.unit)?,
        None => 0,
    };
    let bitmaps = match source.and_then(|view| view.images().first()) {
        Some(head) if sums.has_bitmaps => bitmap_bytes(&head.details()?.bitmaps, head.size(), sums.unit),
        _ => 0,
    };
    Ok(Measured {
        required: sums.fixed_bytes + data_bytes,
        fully_allocated: sums.fixed_bytes + sums.disk_bytes,
        bitmaps: sums.has_bitmaps.then_some(bitmaps),
    })
}

/// Returns the length of all units that hold data.
fn touched_bytes(source: &View, unit: u64) -> Result<u64> {
    let (mut runs, mut sum, mut counted) = (Vec::new(), 0, GuestOffset::new(0));
    for stride in GuestOffset::new(0).range(source.size()).pieces(STRIDE_BYTES) {
        runs.clear();
        source.runs(stride, &mut runs)?;
        for run in runs.iter().filter(|run| !run.is_zero()) {
            let units = run.range.outer(unit);
            sum += GuestRange::between(units.start.max(counted), units.end()).bytes;
            counted = counted.max(units.end());
        }
    }
    Ok(sum)
}

/// As qemu counts: every bit is stored, with a table for each bitmap and one directory.
pub(super) fn bitmap_bytes(bitmaps: &[Bitmap], disk_bytes: u64, cluster: u64) -> u64 {
    let sound = || bitmaps.iter().filter(|bitmap| !bitmap.is_in_use);
    let stored = sound().map(|bitmap| {
        let clusters = disk_bytes.div_ceil(bitmap.granularity_bytes.max(1)).div_ceil(8).div_ceil(cluster);
        clusters * cluster + (clusters * 8).next_multiple_of(cluster)
    });
    let directory: u64 = sound().map(|bitmap| (24 + bitmap.name.len() as u64).next_multiple_of(8)).sum();
    stored.sum::<u64>() + directory.next_multiple_of(cluster)
}
