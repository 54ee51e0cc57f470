//! The bits of a dirty bitmap in memory.

use crate::base::{
    GuestOffset, GuestRange,
    units::{count, index},
};

/// Which parts of a disk a bitmap calls dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    granularity_bytes: u64,
    size: u64,
    /// One bit a granule, the lowest of a byte first.
    bytes: Vec<u8>,
}

impl Bits {
    /// Makes a bitmap without a set bit for a disk of `size` bytes; `granularity_bytes` is not 0.
    pub fn new(size: u64, granularity_bytes: u64) -> Self {
        let bytes = vec![0; index(size.div_ceil(granularity_bytes).div_ceil(8))];
        Self { granularity_bytes, size, bytes }
    }

    /// Returns how many bytes of the disk a bit stands for.
    pub const fn granularity_bytes(&self) -> u64 {
        self.granularity_bytes
    }

    /// Returns the bits as bytes, the lowest bit of a byte first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Sets every bit whose granule touches one that is set in `other`, whatever granularity that has.
    pub fn add(&mut self, other: &Self) {
        for (nth, byte) in (0_u64..).zip(&other.bytes).filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                let start = GuestOffset::new((nth * 8 + bit).saturating_mul(other.granularity_bytes));
                self.mark(start.range(other.granularity_bytes));
            }
        }
    }

    /// Sets every bit whose granule touches a byte of `range` on the disk.
    pub fn mark(&mut self, range: GuestRange) {
        let (start, end) = (range.start.bytes(), range.end().bytes().min(self.size));
        if start >= end {
            return;
        }
        for granule in start / self.granularity_bytes..end.div_ceil(self.granularity_bytes) {
            if let Some(byte) = self.bytes.get_mut(index(granule / 8)) {
                *byte |= 1 << (granule % 8);
            }
        }
    }

    /// Returns how many bytes of the disk are dirty, in whole granules.
    pub fn dirty_bytes(&self) -> u64 {
        let set: u64 = self.bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
        set.saturating_mul(self.granularity_bytes).min(self.size)
    }

    /// Clears what stands for nothing on the disk: bits past its end in the last byte.
    pub fn trim(&mut self) {
        let granules = self.size.div_ceil(self.granularity_bytes);
        let spare = count(self.bytes.len()) * 8 - granules;
        if let Some(last) = self.bytes.last_mut() {
            *last &= 0xff >> spare;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_union_covers_both_whatever_their_granularities() {
        let mut coarse = Bits::new(1 << 20, 1 << 17);
        coarse.bytes_mut()[0] = 0b1000_0001;
        let mut fine = Bits::new(1_000_000, 1 << 12);
        fine.bytes_mut()[4] = 1;
        fine.add(&coarse);
        // 0 to 128 KiB, its own granule behind that, and 896 KiB up to the end of the shorter disk.
        assert_eq!(fine.dirty_bytes(), (1 << 17) + 4096 + (1_000_000_u64.div_ceil(4096) - 224) * 4096);
        let mut wide = Bits::new(1 << 20, 1 << 18);
        wide.add(&fine);
        assert_eq!(wide.bytes(), [0b1001]);
    }
}
