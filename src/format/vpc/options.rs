//! The options of `-o` for new images, and how large they will be.

use super::footer::{FOOTER_BYTES, Kind};
use super::geometry::Geometry;
use super::header::{HEADER_BYTES, Shape};
use super::parent::locators;
use crate::{
    base::{Error, HostOffset, Result, units::SECTOR_BYTES},
    format::{Creation, Measure},
};

/// What `-o help` lists: name, and what it does.
pub const OPTIONS: &[(&str, &str)] = &[
    (
        "block_size",
        "bytes in a block of a dynamic or differencing disk: 4K to 256M, a power of two (default 2M)",
    ),
    (
        "force_size",
        "on (default): the size is the one asked for; off: it has to be one that a geometry gives, for Virtual PC",
    ),
    ("subformat", "dynamic (default) or fixed; one with a parent is differencing"),
];

/// 2040 GiB: the largest disk that the format's users agree on.
pub(super) const DISK_BYTES_MAX: u64 = 2040 << 30;

/// The options of a new image, checked against each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) kind: Kind,
    pub(super) shape: Shape,
    /// Whether the size is the geometry's.
    pub(super) is_by_geometry: bool,
}

impl Options {
    /// Reads what the caller wrote; `Invalid` for unknown names, values, and for a disk that is too large.
    pub(super) fn parse(creation: &Creation) -> Result<Self> {
        let mut is_fixed = false;
        let mut options =
            Self { kind: Kind::Dynamic, shape: Shape { block_bytes: 2 << 20 }, is_by_geometry: false };
        for (name, value) in &creation.options {
            let wrong = || Error::invalid(format!("option {name}={value}: not a value for it"));
            match (name.as_str(), value.as_str()) {
                ("subformat", "fixed") => is_fixed = true,
                ("subformat", "dynamic") => is_fixed = false,
                ("subformat", "differencing") if creation.parent.is_some() => is_fixed = false,
                ("force_size", "on") => options.is_by_geometry = false,
                ("force_size", "off") => options.is_by_geometry = true,
                // Whoever makes an image like another one knows its unit by the second name.
                ("block_size" | "cluster_size", _) => {
                    let bytes = size(value).and_then(|bytes| u32::try_from(bytes).ok());
                    options.shape = bytes.and_then(Shape::new).ok_or_else(wrong)?;
                }
                ("subformat" | "force_size", _) => return Err(wrong()),
                _ => return Err(Error::invalid(format!("unknown option '{name}' for vpc"))),
            }
        }
        options.kind = match (is_fixed, creation.parent.is_some()) {
            (true, true) => return Err(Error::invalid("subformat=fixed: a fixed disk cannot have a parent")),
            (true, false) => Kind::Fixed,
            (false, true) => Kind::Differencing,
            (false, false) => Kind::Dynamic,
        };
        options.check(creation.size)?;
        Ok(options)
    }

    fn check(self, size: u64) -> Result<()> {
        check_size(size)?;
        if self.is_by_geometry && Geometry::exact(size).is_none() {
            let what = format!("force_size=off: no geometry gives exactly {size} bytes");
            return Err(Error::invalid(what));
        }
        if self.kind != Kind::Fixed {
            self.shape.check_entries(size)?;
        }
        Ok(())
    }
}

/// Refuses a size that no VHD has.
pub(super) fn check_size(size: u64) -> Result<()> {
    if size > DISK_BYTES_MAX || !size.is_multiple_of(SECTOR_BYTES) {
        let what = format!("a disk of {size} bytes: a VHD has at most 2040 GiB, in whole sectors of 512");
        return Err(Error::invalid(what));
    }
    Ok(())
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (text.get(..at)?, 1 << 10),
        (at, 'm' | 'M') => (text.get(..at)?, 1 << 20),
        _ => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Sums up what an image made with these options needs; `Invalid` for options that do not fit.
pub(super) fn measure(creation: &Creation) -> Result<Measure> {
    let Options { kind, shape, .. } = Options::parse(creation)?;
    creation.parent.as_ref().map(|parent| locators(parent, HostOffset::new(0))).transpose()?;
    if kind == Kind::Fixed {
        let disk_bytes = creation.size.next_multiple_of(SECTOR_BYTES);
        let fixed_bytes = FOOTER_BYTES;
        return Ok(Measure {
            unit: SECTOR_BYTES,
            fixed_bytes,
            disk_bytes,
            is_whole: true,
            can_be_layer: true,
            ..Measure::default()
        });
    }
    let entries = shape.entries(creation.size);
    let unit = u64::from(shape.block_bytes);
    let tables = (2 * FOOTER_BYTES + HEADER_BYTES + entries * 4).next_multiple_of(SECTOR_BYTES);
    let fixed_bytes = tables + entries * shape.stride();
    let (disk_bytes, is_whole) = (entries * unit, false);
    let fixed_bytes = fixed_bytes - disk_bytes;
    Ok(Measure { unit, fixed_bytes, disk_bytes, is_whole, can_be_layer: true, ..Measure::default() })
}
