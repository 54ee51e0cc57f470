//! Sector bitmaps: which sectors of a block this image holds. What is not held comes from the parent, or is zero.
//!
//! The most significant bit of the first byte is the block's first sector (VHD specification 1.0, "Block Allocation Table
//! and Data Blocks"). A changed bitmap stays in memory until the file has it.

use crate::base::{
    HostOffset,
    units::{count, index},
};
use std::collections::HashMap;

/// The bits of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    /// Every sector is held.
    All,
    /// As the bytes say.
    Some(Box<[u8]>),
}

impl Bits {
    /// Takes in the bytes of a bitmap for so many sectors.
    pub(super) fn new(bytes: Vec<u8>, sectors: u64) -> Self {
        let bits = Self::Some(bytes.into_boxed_slice());
        if bits.run(0, sectors) == (true, sectors) { Self::All } else { bits }
    }

    /// Returns the bitmap's bytes.
    pub(super) fn to_bytes(&self, length: u64) -> Vec<u8> {
        match self {
            Self::All => vec![0xff; index(length)],
            Self::Some(bytes) => bytes.to_vec(),
        }
    }

    fn get(&self, sector: u64) -> bool {
        match self {
            Self::All => true,
            Self::Some(bytes) => {
                bytes.get(index(sector / 8)).is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
            }
        }
    }

    /// Returns whether sector `from` is held, and up to which sector, at most `to`, that is so.
    pub(super) fn run(&self, from: u64, to: u64) -> (bool, u64) {
        let Self::Some(bytes) = self else { return (true, to) };
        let is_held = self.get(from);
        let alike = if is_held { 0xff } else { 0 };
        let mut at = from;
        while at < to {
            if at.is_multiple_of(8) && bytes.get(index(at / 8)) == Some(&alike) {
                at += 8;
            } else if self.get(at) == is_held {
                at += 1;
            } else {
                break;
            }
        }
        (is_held, at.min(to))
    }

    /// Returns whether all sectors from `from` to `to` are held.
    pub(super) fn has(&self, from: u64, to: u64) -> bool {
        from == to || self.run(from, to) == (true, to)
    }

    /// Says that the sectors from `from` to `to` are held, of `sectors` in all; whether that changed anything.
    fn set(&mut self, from: u64, to: u64, sectors: u64) -> bool {
        if self.has(from, to) {
            return false;
        }
        if let Self::Some(bytes) = self {
            for sector in from..to {
                let mask = 0x80 >> (sector % 8);
                bytes.get_mut(index(sector / 8)).into_iter().for_each(|byte| *byte |= mask);
            }
        }
        if self.has(0, sectors) {
            *self = Self::All;
        }
        true
    }

    fn memory(&self) -> u64 {
        // What a map of them takes besides, about.
        64 + match self {
            Self::All => 0,
            Self::Some(bytes) => count(bytes.len()),
        }
    }
}

/// Whether the file has what is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Clean,
    Changed,
    /// It is being written.
    Leaving,
}

/// One block's bitmap in memory.
#[derive(Debug)]
struct Mark {
    /// Where the block is.
    host: HostOffset,
    bits: Bits,
    stage: Stage,
}

/// Bitmaps in memory, by block.
#[derive(Debug, Default)]
pub(super) struct Marks {
    held: HashMap<u64, Mark>,
    memory: u64,
    changed: u64,
}

impl Marks {
    /// Returns a block's bits, if they are in memory.
    pub(super) fn get(&self, block: u64) -> Option<&Bits> {
        self.held.get(&block).map(|mark| &mark.bits)
    }

    /// Keeps a block's bits as the file has them; others that it has go when `room` bytes do not suffice.
    pub(super) fn put(&mut self, (block, host): (u64, HostOffset), bits: Bits, room: u64) {
        if self.memory > room {
            self.held.retain(|_, mark| mark.stage != Stage::Clean);
            self.memory = self.held.values().map(|mark| mark.bits.memory()).sum();
        }
        self.forget(block);
        self.memory += bits.memory();
        self.held.insert(block, Mark { host, bits, stage: Stage::Clean });
    }

    /// Says that sectors of a block whose bits are in memory are held.
    pub(super) fn set(&mut self, block: u64, (from, to): (u64, u64), sectors: u64) {
        let Some(mark) = self.held.get_mut(&block) else { return };
        if mark.bits.set(from, to, sectors) && mark.stage != Stage::Changed {
            mark.stage = Stage::Changed;
            self.changed += 1;
        }
    }

    /// Forgets a block that is nowhere any more.
    pub(super) fn forget(&mut self, block: u64) {
        if let Some(mark) = self.held.remove(&block) {
            self.memory = self.memory.saturating_sub(mark.bits.memory());
            self.changed -= u64::from(mark.stage == Stage::Changed);
        }
    }

    /// Returns how many bitmaps the file does not have yet.
    pub(super) const fn changed(&self) -> u64 {
        self.changed
    }

    /// Takes what the file lacks: where each block is, and its bits.
    pub(super) fn take(&mut self) -> Vec<(HostOffset, Bits)> {
        if self.changed == 0 {
            return Vec::new();
        }
        self.changed = 0;
        let changed = self.held.values_mut().filter(|mark| mark.stage == Stage::Changed);
        let leave = |mark: &mut Mark| {
            mark.stage = Stage::Leaving;
            (mark.host, mark.bits.clone())
        };
        let mut taken: Vec<_> = changed.map(leave).collect();
        taken.sort_unstable_by_key(|(host, _)| *host);
        taken
    }

    /// What was taken has arrived.
    pub(super) fn left(&mut self) {
        let leaving = self.held.values_mut().filter(|mark| mark.stage == Stage::Leaving);
        leaving.for_each(|mark| mark.stage = Stage::Clean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_is_the_most_significant_bit() {
        let bits = Bits::new(vec![0x80, 0xff, 0x01], 24);
        let mut runs = Vec::new();
        let mut at = 0;
        while at < 24 {
            let (is_held, end) = bits.run(at, 24);
            runs.push((is_held, end));
            at = end;
        }
        assert_eq!(runs, [(true, 1), (false, 8), (true, 16), (false, 23), (true, 24)]);
    }

    #[test]
    fn a_bitmap_that_is_full_takes_no_memory_and_comes_back_as_bytes() {
        let mut bits = Bits::new(vec![0xff, 0xfe], 16);
        assert!(bits.set(15, 16, 16) && !bits.set(0, 16, 16));
        assert_eq!((&bits, bits.to_bytes(2)), (&Bits::All, vec![0xff; 2]));
    }

    #[test]
    fn what_changes_while_it_is_written_is_written_again() {
        let (mut marks, host) = (Marks::default(), HostOffset::new(512));
        marks.put((3, host), Bits::new(vec![0; 2], 16), 1 << 20);
        marks.set(3, (0, 1), 16);
        assert_eq!(marks.take(), [(host, Bits::new(vec![0x80, 0], 16))]);
        marks.set(3, (1, 2), 16);
        marks.left();
        // What waits to be written stays, however little room there is.
        marks.put((4, host), Bits::All, 0);
        assert_eq!(marks.take(), [(host, Bits::new(vec![0xc0, 0], 16))]);
        marks.left();
        assert_eq!((marks.take(), marks.changed()), (vec![], 0));
    }
}
