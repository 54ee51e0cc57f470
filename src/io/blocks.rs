//! Where a file's bytes are on its device: proof that two files share blocks, without reading them.

use super::{
    File,
    real::{self, BlockExtent},
};
use crate::base::{HostOffset, HostRange};
use std::collections::HashMap;

/// Bytes of a file whose blocks are looked up together.
const WINDOW_BYTES: u64 = 64 << 20;

/// Extents that are remembered; all are forgotten when there are more: about 40 MiB.
const KEPT_EXTENTS: usize = 1 << 20;

/// Extents whose place says nothing about the bytes: not known yet, not allocated yet, compressed, encrypted,
/// not in whole blocks, in the inode, in a shared tail, not written (`FIEMAP_EXTENT_*`).
const UNCERTAIN: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800;

/// Some bytes of a file, and where they are on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    range: HostRange,
    physical: u64,
}

/// Where the bytes of one file are, as far as it has been asked (`FS_IOC_FIEMAP`,
/// Documentation/filesystems/fiemap.rst). Nobody writes the file while this is used; what was written before
/// has been flushed.
#[derive(Debug)]
pub struct Blocks<'a> {
    file: &'a dyn File,
    windows: HashMap<u64, Vec<Block>>,
    kept: usize,
}

impl<'a> Blocks<'a> {
    /// Asks nothing yet.
    pub fn new(file: &'a dyn File) -> Self {
        Self { file, windows: HashMap::new(), kept: 0 }
    }

    /// Returns whether `bytes` bytes of this file at `at` and of `other` at `other_at` are certain to be the same
    /// blocks of the same device. False is no proof of the contrary.
    pub fn are_shared(
        &mut self,
        at: HostOffset,
        other: &mut Blocks<'_>,
        other_at: HostOffset,
        bytes: u64,
    ) -> bool {
        let systems = self.file.descriptor().zip(other.file.descriptor());
        if systems.is_none_or(|(a, b)| a.file_system != b.file_system) {
            return false;
        }
        let ours = self.places(at.range(bytes));
        ours.is_some() && ours == other.places(other_at.range(bytes))
    }

    /// Returns where each byte of the range is: distance from its start, place, length; neighbours joined. `None`
    /// if that is not certain for every byte.
    fn places(&mut self, range: HostRange) -> Option<Vec<(u64, u64, u64)>> {
        let mut places: Vec<(u64, u64, u64)> = Vec::new();
        let mut at = range.start;
        while at < range.end() {
            let window = self.window(at.bytes() / WINDOW_BYTES)?;
            let first = window.partition_point(|block| block.range.end() <= at);
            let block = window.get(first).filter(|block| block.range.start <= at)?;
            let (distance, physical) = (at.since(range.start), block.physical + at.since(block.range.start));
            let bytes = block.range.end().min(range.end()).since(at);
            match places.last_mut() {
                Some(last) if last.1 + last.2 == physical => last.2 += bytes,
                _ => places.push((distance, physical, bytes)),
            }
            at = at.plus(bytes);
        }
        Some(places)
    }

    fn window(&mut self, number: u64) -> Option<&Vec<Block>> {
        if !self.windows.contains_key(&number) {
            let blocks = self.ask(HostOffset::new(number * WINDOW_BYTES).range(WINDOW_BYTES))?;
            if self.kept + blocks.len() > KEPT_EXTENTS {
                self.windows.clear();
                self.kept = 0;
            }
            self.kept += blocks.len();
            self.windows.insert(number, blocks);
        }
        self.windows.get(&number)
    }

    /// Returns the certain blocks of a window, in order, none of them outside it.
    fn ask(&self, window: HostRange) -> Option<Vec<Block>> {
        let descriptor = self.file.descriptor()?;
        let (mut extents, mut at) = (Vec::new(), window.start);
        while at < window.end() {
            let range = HostRange::between(at, window.end());
            let is_all = real::blocks(&descriptor.fd, range, &mut extents).ok()?;
            let end = if is_all { window.end() } else { extents.last().map(end_of)? };
            if end <= at {
                return None;
            }
            at = end;
        }
        let certain = extents.iter().filter(|extent| extent.flags & UNCERTAIN == 0);
        let clipped = certain.map(|extent| {
            let whole = HostRange::between(HostOffset::new(extent.logical), end_of(extent));
            let range = whole.clip(window);
            Block { range, physical: extent.physical.wrapping_add(range.start.since(whole.start)) }
        });
        Some(clipped.filter(|block| !block.range.is_empty()).collect())
    }
}

fn end_of(extent: &BlockExtent) -> HostOffset {
    HostOffset::new(extent.logical.saturating_add(extent.bytes))
}

#[cfg(test)]
mod tests;
