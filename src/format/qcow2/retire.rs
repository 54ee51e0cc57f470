//! Retiring an image: an incompatible bit that no program knows, with a name that tells why.
//!
//! Whoever opens the image by an old name is refused, QEMU too (`qcow2.rst`: unknown incompatible bits must
//! not be ignored), and the feature name table lets the refusal say where the disk is now.

use super::{MAGIC, change, extension, feature, header::Header};
use crate::{
    base::{HostOffset, Result},
    io::File,
};

/// The bit; bits from 5 on are not assigned.
const RETIRED: u8 = 63;

/// Marks the image as replaced, durably and in one step that every reader sees; false for version 2, which has
/// no such bits. `why` is cut to the 46 bytes that a name may have.
pub fn retire(file: &dyn File, why: &str) -> Result<bool> {
    let mut header = Header::read(file)?;
    if header.geometry.version == 2 {
        return Ok(false);
    }
    let mut name = [0; 46];
    name.iter_mut().zip(why.bytes()).for_each(|(to, from)| *to = from);
    let line = feature::FeatureName { class: 0, bit: RETIRED, name }.to_bytes();
    let table = header.extension(extension::FEATURE_NAMES).unwrap_or_default();
    let table = [table, &line].concat();
    // Without room for the name the bit has to do, as it may after a cut: no order is kept.
    change::write_extension(file, &mut header, (extension::FEATURE_NAMES, Some(&table)), 0)?;
    change::set_fields(file, &mut header, |header| header.incompatible |= 1 << RETIRED)?;
    Ok(true)
}

/// Returns whether an image has been retired; false for what is no qcow2 image.
pub fn is_retired(file: &dyn File) -> Result<bool> {
    let mut start = [0; 80];
    file.read_at(HostOffset::new(0), &mut start)?;
    let version =
        u32::from_be_bytes(start.get(4..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default());
    let incompatible = u64::from_be_bytes(start.last_chunk().copied().unwrap_or_default());
    Ok(start.starts_with(&MAGIC) && version >= 3 && incompatible >> RETIRED == 1)
}
