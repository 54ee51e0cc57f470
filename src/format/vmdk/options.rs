//! The options of `-o` for new disks: qemu's names, and how large they will be.

use super::{
    create::{PER_TABLE, Plan, link},
    layout::{COWD_BYTES, COWD_PER_TABLE, ENTRIES_MAX, GRAIN_BYTES_MAX},
};
use crate::{
    base::{Error, Result, units::SECTOR_BYTES},
    format::{Creation, Measure},
};

/// What `-o help` lists: name, and what it does.
pub const OPTIONS: &[(&str, &str)] = &[
    ("adapter_type", "the controller that the guest is told of: ide (default), lsilogic, buslogic"),
    (
        "cluster_size",
        "bytes in a grain: 512 to 8192K, a power of two (default 64K, which every program reads)",
    ),
    ("hwversion", "VMware's virtual hardware version (default 4)"),
    (
        "subformat",
        "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat; streamOptimized: \
         compressed, only written by `convert`; vmfsSparse: a delta of ESX; one with a parent is sparse",
    ),
    (
        "zeroed_grain",
        "off (default); on: grains can be marked as zeros (version 2; not every program reads it)",
    ),
];

/// 62 TiB: the largest disk that VMware makes.
const DISK_BYTES_MAX: u64 = 62 << 40;

/// Into which files a new disk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subformat {
    MonolithicSparse,
    MonolithicFlat,
    TwoGbMaxExtentSparse,
    TwoGbMaxExtentFlat,
    StreamOptimized,
    VmfsSparse,
}

impl Subformat {
    const ALL: [Self; 6] = [
        Self::MonolithicSparse,
        Self::MonolithicFlat,
        Self::TwoGbMaxExtentSparse,
        Self::TwoGbMaxExtentFlat,
        Self::StreamOptimized,
        Self::VmfsSparse,
    ];

    /// Returns the word for it (`createType`).
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
            Self::VmfsSparse => "vmfsSparse",
        }
    }

    /// Returns whether extents hold every byte of the disk.
    pub(super) const fn is_flat(self) -> bool {
        matches!(self, Self::MonolithicFlat | Self::TwoGbMaxExtentFlat)
    }

    /// Returns whether there may be many extents.
    pub(super) const fn is_in_pieces(self) -> bool {
        matches!(self, Self::TwoGbMaxExtentSparse | Self::TwoGbMaxExtentFlat)
    }
}

/// The options of a new disk, checked against each other.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) subformat: Subformat,
    /// Bytes in a grain.
    pub(super) grain: u64,
    pub(super) marks_zeros: bool,
    pub(super) adapter: &'static str,
    pub(super) hardware: u32,
}

impl Options {
    /// Reads what the caller wrote; `Invalid` for unknown names, values, and for what excludes each other.
    pub(super) fn parse(creation: &Creation) -> Result<Self> {
        let mut options = Self {
            subformat: Subformat::MonolithicSparse,
            grain: 64 << 10,
            marks_zeros: false,
            adapter: "ide",
            hardware: 4,
        };
        for (name, value) in &creation.options {
            options.set(name, value)?;
        }
        let is_esx = options.subformat == Subformat::VmfsSparse;
        if is_esx && !creation.options.iter().any(|(name, _)| name == "cluster_size") {
            // As ESX makes them.
            options.grain = SECTOR_BYTES;
        }
        if is_esx && (options.marks_zeros || creation.size > u64::from(u32::MAX) * SECTOR_BYTES) {
            return Err(Error::invalid("subformat=vmfsSparse: at most 2 TiB, and no zeroed_grain"));
        }
        let is_whole = options.subformat.is_flat() || options.subformat == Subformat::StreamOptimized;
        if creation.parent.is_some() && is_whole {
            let kind = options.subformat.name();
            return Err(Error::invalid(format!("subformat={kind}: such a disk cannot have a parent")));
        }
        if creation.size > DISK_BYTES_MAX || !creation.size.is_multiple_of(SECTOR_BYTES) || creation.size == 0
        {
            let what = format!(
                "a disk of {} bytes: VMDK has whole sectors, one at least and 62 TiB at most",
                creation.size
            );
            return Err(Error::invalid(what));
        }
        options.check_entries(creation.size)?;
        Ok(options)
    }

    /// Refuses a disk whose directories would be longer than is read.
    fn check_entries(&self, size: u64) -> Result<()> {
        let directories = match self.subformat {
            Subformat::MonolithicSparse | Subformat::TwoGbMaxExtentSparse => 2,
            Subformat::StreamOptimized => 1,
            _ => return Ok(()),
        };
        if size.div_ceil(self.grain * u64::from(PER_TABLE)) * directories <= ENTRIES_MAX {
            return Ok(());
        }
        let what = format!("a disk of {size} bytes is too large for a cluster_size of {}", self.grain);
        Err(Error::invalid(what))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || Error::invalid(format!("option {name}={value}: not a value for it"));
        match name {
            "subformat" => {
                let found = Subformat::ALL.into_iter().find(|known| known.name() == value);
                self.subformat = found.ok_or_else(wrong)?;
            }
            "cluster_size" => {
                let (digits, unit) = match value.strip_suffix(['k', 'K']) {
                    Some(digits) => (digits, 1024),
                    None => (value, 1),
                };
                let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
                let fits =
                    |bytes: &u64| bytes.is_power_of_two() && (SECTOR_BYTES..=GRAIN_BYTES_MAX).contains(bytes);
                self.grain = bytes.filter(fits).ok_or_else(wrong)?;
            }
            "zeroed_grain" => {
                self.marks_zeros = match value {
                    "on" | "yes" | "true" => true,
                    "off" | "no" | "false" => false,
                    _ => return Err(wrong()),
                }
            }
            "adapter_type" => {
                let known = ["ide", "lsilogic", "buslogic"];
                self.adapter = known.into_iter().find(|known| *known == value).ok_or_else(wrong)?;
            }
            "hwversion" => self.hardware = value.parse().map_err(|_| wrong())?,
            _ => return Err(Error::invalid(format!("unknown option '{name}' for vmdk"))),
        }
        Ok(())
    }

    /// Returns the heads of the geometry that the guest is told: as qemu, and VMware for that adapter.
    pub(super) fn heads(&self) -> u64 {
        if self.adapter == "ide" { 16 } else { 255 }
    }
}

/// Sums up what a disk made with these options needs; `Invalid` for options that do not fit.
pub(super) fn measure(creation: &Creation) -> Result<Measure> {
    let options = Options::parse(creation)?;
    link(creation.parent.as_ref(), 0)?;
    if options.subformat.is_flat() {
        return Ok(Measure {
            unit: SECTOR_BYTES,
            fixed_bytes: SECTOR_BYTES,
            disk_bytes: creation.size,
            is_whole: true,
            ..Measure::default()
        });
    }
    let measure = Measure {
        unit: options.grain,
        disk_bytes: creation.size.next_multiple_of(options.grain),
        packs: options.subformat == Subformat::StreamOptimized,
        can_be_layer: options.subformat == Subformat::MonolithicSparse,
        ..Measure::default()
    };
    let fixed_bytes = if options.subformat == Subformat::VmfsSparse {
        let tables = creation.size.div_ceil(options.grain * COWD_PER_TABLE);
        COWD_BYTES + SECTOR_BYTES + tables * (4 + COWD_PER_TABLE * 4)
    } else {
        Plan::new(creation.size, options.grain, 21).overhead * SECTOR_BYTES
    };
    Ok(Measure { fixed_bytes, ..measure })
}
