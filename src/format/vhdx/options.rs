//! The options of `-o` for new images: qemu's names, values and defaults, and the sizes of sectors.

use super::geometry::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Geometry, MIB, SIZE_MAX};
use crate::{
    base::{Error, Result},
    format::Creation,
};

/// What `-o help` lists: name, and what it does.
pub const OPTIONS: &[(&str, &str)] = &[
    (
        "block_size",
        "bytes in a block: 1M to 256M, a power of two (default: by the disk's size; 2M with a parent)",
    ),
    (
        "block_state_zero",
        "on (default): blocks of a new dynamic image are said to be zeros; off: nothing is said",
    ),
    ("log_size", "bytes of the log: whole MiB (default 1M)"),
    ("logical_sector_size", "bytes in a sector of the guest: 512 (default), 4096"),
    ("physical_sector_size", "bytes in a sector of the device, as the guest is told: 512, 4096 (default)"),
    ("subformat", "dynamic (default): blocks take space when written; fixed: all have their place at once"),
];

/// The longest log: its length is a field of 32 bits.
const LOG_BYTES_MAX: u64 = u32::MAX as u64 + 1 - MIB;

/// The options of a new image, checked against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) geometry: Geometry,
    pub(super) log_bytes: u64,
    pub(super) says_zero: bool,
}

impl Options {
    /// Reads what the caller wrote; `Invalid` for unknown names, values, and for what excludes each other.
    pub(super) fn parse(creation: &Creation) -> Result<Self> {
        let has_parent = creation.parent.is_some();
        let block_bytes = default_block(creation.size, has_parent);
        let geometry = Geometry { block_bytes, sector_bytes: 512, physical_bytes: 4096, is_fixed: false };
        let mut options = Self { geometry, log_bytes: MIB, says_zero: true };
        for (name, value) in &creation.options {
            options.set(name, value)?;
        }
        let Geometry { sector_bytes, is_fixed, .. } = options.geometry;
        if has_parent && is_fixed {
            return Err(Error::invalid("subformat=fixed and a parent exclude each other"));
        }
        if creation.size > SIZE_MAX || !creation.size.is_multiple_of(sector_bytes) {
            let what = format!("a disk of {} bytes: VHDX has whole sectors of {sector_bytes}", creation.size);
            return Err(Error::invalid(format!("{what}, 64 TiB at most")));
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || Error::invalid(format!("option {name}={value}: not a value for it"));
        let sector =
            || value.parse::<u64>().ok().filter(|bytes| [512, 4096].contains(bytes)).ok_or_else(wrong);
        match name {
            "block_size" => {
                // qemu takes 0 for its default.
                let bytes = size(value).ok_or_else(wrong)?;
                let fits = bytes.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&bytes);
                if bytes != 0 && !fits {
                    return Err(wrong());
                }
                self.geometry.block_bytes = if bytes == 0 { self.geometry.block_bytes } else { bytes };
            }
            "log_size" => {
                let fits = |bytes: &u64| bytes.is_multiple_of(MIB) && (MIB..=LOG_BYTES_MAX).contains(bytes);
                self.log_bytes = size(value).filter(fits).ok_or_else(wrong)?;
            }
            "block_state_zero" => {
                self.says_zero = match value {
                    "on" | "yes" | "true" => true,
                    "off" | "no" | "false" => false,
                    _ => return Err(wrong()),
                }
            }
            "logical_sector_size" => self.geometry.sector_bytes = sector()?,
            "physical_sector_size" => self.geometry.physical_bytes = sector()?,
            "subformat" => {
                self.geometry.is_fixed = match value {
                    "dynamic" => false,
                    "fixed" => true,
                    _ => return Err(wrong()),
                }
            }
            _ => return Err(Error::invalid(format!("unknown option '{name}' for vhdx"))),
        }
        Ok(())
    }
}

/// Returns the bytes of a block unless the caller says otherwise: as qemu for a disk alone, as Hyper-V for a child.
const fn default_block(size: u64, has_parent: bool) -> u64 {
    match size {
        _ if has_parent => 2 * MIB,
        _ if size > 32 << 40 => 64 * MIB,
        _ if size > 100 << 30 => 32 * MIB,
        _ if size > 1 << 30 => 16 * MIB,
        _ => 8 * MIB,
    }
}

/// Reads a size in bytes with an optional K, M or G.
fn size(value: &str) -> Option<u64> {
    let units = [('k', 10), ('m', 20), ('g', 30)];
    let last = value.chars().last().map(|last| last.to_ascii_lowercase());
    let unit = units.into_iter().find(|(letter, _)| Some(*letter) == last);
    let (digits, shift) =
        unit.map_or((value, 0), |(_, shift)| (value.get(..value.len() - 1).unwrap_or(""), shift));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
