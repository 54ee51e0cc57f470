//! Positions and lengths, one type per coordinate system.
//!
//! A guest offset and a host offset are both `u64` on the wire; mixing them corrupts disks.

use std::fmt;

/// Bytes in a sector, the smallest unit that a disk is addressed by.
pub const SECTOR_BYTES: u64 = 512;

const _: () = assert!(usize::BITS == 64, "offsets are used as lengths in memory");

/// Returns a length or an index in memory for a 64-bit count (this program needs a 64-bit machine).
#[inline]
pub const fn index(count: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
    {
        count as usize
    }
}

/// Returns a length in memory as a 64-bit count.
#[inline]
pub const fn count(length: usize) -> u64 {
    length as u64
}

macro_rules! coordinate {
    ($(#[$meta:meta])* $offset:ident, $(#[$rmeta:meta])* $range:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $offset(u64);

        impl $offset {
            /// Wraps a byte position.
            #[inline]
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Returns the byte position.
            #[inline]
            pub const fn bytes(self) -> u64 {
                self.0
            }

            /// Returns the position `bytes` further on (saturating: no disk ends at 2^64).
            #[inline]
            #[must_use]
            pub const fn plus(self, bytes: u64) -> Self {
                Self(self.0.saturating_add(bytes))
            }

            /// Returns the distance from `earlier` in bytes, 0 if `earlier` is later.
            #[inline]
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }

            /// Returns the position rounded down to a multiple of `unit` (not 0).
            #[inline]
            #[must_use]
            pub const fn floor(self, unit: u64) -> Self {
                Self(self.0 - self.0 % unit)
            }

            /// Returns the position rounded up to a multiple of `unit` (not 0).
            #[inline]
            #[must_use]
            pub const fn ceil(self, unit: u64) -> Self {
                Self(self.0.div_ceil(unit).saturating_mul(unit))
            }

            /// Returns the range of `bytes` bytes that starts here.
            #[inline]
            pub const fn range(self, bytes: u64) -> $range {
                $range { start: self, bytes }
            }
        }

        impl fmt::LowerHex for $offset {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        $(#[$rmeta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $range {
            /// The first byte.
            pub start: $offset,
            /// The length in bytes.
            pub bytes: u64,
        }

        impl $range {
            /// Returns the range from `start` up to, not including, `end`; empty if `end` is earlier.
            #[inline]
            pub const fn between(start: $offset, end: $offset) -> Self {
                Self { start, bytes: end.since(start) }
            }

            /// Returns the first position after the range.
            #[inline]
            pub const fn end(self) -> $offset {
                self.start.plus(self.bytes)
            }

            /// Returns whether the range holds no byte.
            #[inline]
            pub const fn is_empty(self) -> bool {
                self.bytes == 0
            }

            /// Returns whether `at` lies in the range.
            #[inline]
            pub const fn contains(self, at: $offset) -> bool {
                at.0 >= self.start.0 && at.0 - self.start.0 < self.bytes
            }

            /// Returns the part that both ranges have; empty, at an unspecified place, if there is none.
            #[inline]
            #[must_use]
            pub fn clip(self, to: Self) -> Self {
                Self::between(self.start.max(to.start), self.end().min(to.end()))
            }

            /// Returns whether the ranges share a byte.
            #[inline]
            pub fn overlaps(self, other: Self) -> bool {
                !self.clip(other).is_empty()
            }

            /// Returns the largest range inside this one whose ends are multiples of `unit`.
            #[inline]
            #[must_use]
            pub const fn inner(self, unit: u64) -> Self {
                Self::between(self.start.ceil(unit), self.end().floor(unit))
            }

            /// Returns the smallest range around this one whose ends are multiples of `unit`.
            #[inline]
            #[must_use]
            pub const fn outer(self, unit: u64) -> Self {
                Self::between(self.start.floor(unit), self.end().ceil(unit))
            }

            /// Cuts the range where it crosses a multiple of `unit`.
            pub fn pieces(self, unit: u64) -> impl Iterator<Item = Self> {
                let mut at = self.start;
                std::iter::from_fn(move || {
                    let end = at.floor(unit).plus(unit).min(self.end());
                    let piece = Self::between(at, end);
                    at = end;
                    (!piece.is_empty()).then_some(piece)
                })
            }
        }
    };
}

coordinate! {
    /// A byte position on the disk the guest sees.
    GuestOffset,
    /// A run of bytes on the disk the guest sees.
    GuestRange
}

coordinate! {
    /// A byte position inside one host file.
    HostOffset,
    /// A run of bytes inside one host file.
    HostRange
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> GuestRange {
        GuestRange::between(GuestOffset::new(start), GuestOffset::new(end))
    }

    #[test]
    fn ranges_clip_and_round() {
        assert_eq!(range(3, 9).clip(range(5, 20)), range(5, 9));
        assert!(range(3, 5).clip(range(5, 9)).is_empty());
        assert_eq!(range(3, 9).outer(4), range(0, 12));
        assert_eq!(range(3, 9).inner(4), range(4, 8));
        assert!(range(5, 7).inner(4).is_empty());
    }

    #[test]
    fn pieces_cover_a_range_once() {
        let cut: Vec<_> = range(3, 17).pieces(8).collect();
        assert_eq!(cut, [range(3, 8), range(8, 16), range(16, 17)]);
        assert_eq!(range(4, 4).pieces(8).count(), 0);
    }
}
