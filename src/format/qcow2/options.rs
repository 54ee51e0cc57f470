//! The options of `-o` for new images: qemu's names, values and defaults.

use super::header::{Compression, Geometry};
use crate::{
    base::{Error, Result},
    format::Creation,
};

/// What `-o help` lists: name, and what it does.
pub const OPTIONS: &[(&str, &str)] = &[
    ("cluster_size", "bytes in a cluster: 512 to 2M, a power of two (default 64K)"),
    ("compat", "0.10 or v2: readable by old programs; 1.1 or v3 (default): all features"),
    ("compression_type", "how compressed clusters are packed: zlib (default), zstd"),
    ("data_file", "keep the guest's data in this other file"),
    ("data_file_raw", "on: the data file is a valid raw image at any time (default off)"),
    ("extended_l2", "on: clusters of 32 subclusters that are allocated one by one (default off)"),
    ("lazy_refcounts", "on: refcounts may be written late, and are repaired after a crash (default off)"),
    ("preallocation", "what is allocated at once: off (default), metadata, falloc, full"),
    ("refcount_bits", "bits in a refcount: 1, 2, 4, 8, 16 (default), 32, 64"),
];

/// What a new image allocates at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The mapping of every cluster; the clusters are holes.
    Metadata,
    /// That, and space for every cluster.
    Space,
    /// That, and zeros written to all of it.
    Full,
}

/// The options of a new image, checked against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) geometry: Geometry,
    pub(super) compression: Compression,
    pub(super) is_lazy: bool,
    pub(super) preallocation: Preallocation,
    pub(super) data_file: Option<Vec<u8>>,
    pub(super) is_data_file_raw: bool,
}

impl Options {
    /// Reads what the caller wrote; `Invalid` for unknown names, values, and for what excludes each other.
    pub(super) fn parse(creation: &Creation) -> Result<Self> {
        let geometry = Geometry { version: 3, cluster_bits: 16, refcount_order: 4, is_extended: false };
        let mut options = Self {
            geometry,
            compression: Compression::Zlib,
            is_lazy: false,
            preallocation: Preallocation::Off,
            data_file: None,
            is_data_file_raw: false,
        };
        for (name, value) in &creation.options {
            options.set(name, value)?;
        }
        options.check(creation)?;
        if options.is_data_file_raw {
            // A raw reader sees every guest cluster, so every one is mapped.
            options.preallocation = options.preallocation.max(Preallocation::Metadata);
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || Error::invalid(format!("option {name}={value}: not a value for it"));
        match name {
            "compat" => {
                self.geometry.version = match value {
                    "0.10" | "v2" => 2,
                    "1.1" | "v3" => 3,
                    _ => return Err(wrong()),
                }
            }
            "cluster_size" => {
                let bytes = size(value).filter(|b| b.is_power_of_two() && (512..=2 << 20).contains(b));
                self.geometry.cluster_bits = bytes.ok_or_else(wrong)?.trailing_zeros();
            }
            "refcount_bits" => {
                let bits = value.parse::<u64>().ok().filter(|b| b.is_power_of_two() && *b <= 64);
                self.geometry.refcount_order = bits.ok_or_else(wrong)?.trailing_zeros();
            }
            "extended_l2" => self.geometry.is_extended = switch(value).ok_or_else(wrong)?,
            "lazy_refcounts" => self.is_lazy = switch(value).ok_or_else(wrong)?,
            "data_file_raw" => self.is_data_file_raw = switch(value).ok_or_else(wrong)?,
            "compression_type" => {
                let known = [Compression::Zlib, Compression::Zstd].into_iter().find(|c| c.name() == value);
                self.compression = known.ok_or_else(wrong)?;
            }
            "preallocation" => {
                self.preallocation = match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Space,
                    "full" => Preallocation::Full,
                    _ => return Err(wrong()),
                }
            }
            "data_file" if !value.is_empty() => self.data_file = Some(value.into()),
            "data_file" => return Err(wrong()),
            _ => return Err(Error::invalid(format!("unknown option '{name}' for qcow2"))),
        }
        Ok(())
    }

    fn check(&self, creation: &Creation) -> Result<()> {
        let needs_3 = [
            (self.geometry.refcount_order != 4, "refcount_bits other than 16"),
            (self.geometry.is_extended, "extended_l2"),
            (self.is_lazy, "lazy_refcounts"),
            (self.compression != Compression::Zlib, "compression_type=zstd"),
            (self.data_file.is_some(), "data_file"),
        ];
        if self.geometry.version == 2
            && let Some((_, what)) = needs_3.iter().find(|(is_wanted, _)| *is_wanted)
        {
            return Err(Error::invalid(format!("{what} needs compat=1.1")));
        }
        let has_parent = creation.parent.is_some();
        let clashes = [
            (
                self.geometry.is_extended && self.geometry.cluster_bits < 14,
                "extended_l2 needs a cluster_size of 16K or more",
            ),
            (self.is_data_file_raw && self.data_file.is_none(), "data_file_raw needs data_file"),
            (self.is_data_file_raw && has_parent, "data_file_raw and a parent exclude each other"),
            (
                has_parent && self.preallocation > Preallocation::Off && !self.geometry.is_extended,
                "preallocation would hide the parent (only with extended_l2 it does not)",
            ),
        ];
        match clashes.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, why)) => Err(Error::invalid(*why)),
            None => Ok(()),
        }
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "yes" | "true" => Some(true),
        "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// Reads a size in bytes with an optional K or M.
fn size(value: &str) -> Option<u64> {
    let (digits, shift) = match value.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 10),
        None => value.strip_suffix(['m', 'M']).map_or((value, 0), |digits| (digits, 20)),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
