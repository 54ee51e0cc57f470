//! The geometry that a footer states (VHD specification 1.0, appendix "CHS Calculation").

use crate::base::units::SECTOR_BYTES;

/// Cylinders, heads, and sectors in a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Cylinders.
    pub(super) cylinders: u16,
    /// Heads.
    pub(super) heads: u8,
    /// Sectors in a track.
    pub(super) sectors: u8,
}

impl Geometry {
    /// The largest one. Readers that go by geometries take it to say nothing, since no larger disk has one of its own
    /// (qemu, `vpc_open`).
    pub(super) const NONE: Self = Self { cylinders: 65535, heads: 16, sectors: 255 };

    /// Returns the size of such a disk in bytes.
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR_BYTES
    }

    /// Returns the specification's geometry for a disk, if it gives exactly its size.
    pub(super) fn exact(disk_bytes: u64) -> Option<Self> {
        let total = (disk_bytes / SECTOR_BYTES).min(Self::NONE.bytes() / SECTOR_BYTES);
        let (mut heads, mut sectors);
        let mut tracks;
        if total >= 65535 * 16 * 63 {
            (heads, sectors) = (16, 255);
            tracks = total / sectors;
        } else {
            sectors = 17;
            tracks = total / sectors;
            heads = tracks.div_ceil(1024).max(4);
            if tracks >= heads * 1024 || heads > 16 {
                (heads, sectors) = (16, 31);
                tracks = total / sectors;
            }
            if tracks >= heads * 1024 {
                (heads, sectors) = (16, 63);
                tracks = total / sectors;
            }
        }
        let found = Self {
            cylinders: u16::try_from(tracks / heads).ok()?,
            heads: u8::try_from(heads).ok()?,
            sectors: u8::try_from(sectors).ok()?,
        };
        Some(found).filter(|found| found.bytes() == disk_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_geometry_is_stated_only_where_it_is_the_size() {
        // What qemu 1.x made of 4 MiB, and what Windows makes of it, which has 16 KiB less.
        assert_eq!(Geometry::exact(4_212_736), Some(Geometry { cylinders: 121, heads: 4, sectors: 17 }));
        assert_eq!(Geometry::exact(4 << 20), None);
        assert_eq!(Geometry::exact(136_899_993_600), Some(Geometry::NONE));
        assert_eq!(Geometry::exact(2040 << 30), None);
        assert_eq!(Geometry::exact(512), None);
    }
}
