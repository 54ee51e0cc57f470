//! Going on past what cannot be read: the leaves around it have no hash, all others do.
//!
//! Neighbours are joined as they are found: of an image that was cut off a long stretch is lost, and is one.

use super::hash_piece;
use crate::{
    base::{Error, ErrorKind, GuestOffset, GuestRange, Result, units::index},
    chain::View,
    content::{Digest, LEAF_BYTES, leaf},
};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// How exactly a place that cannot be read is named.
const BLOCK_BYTES: u64 = 4096;

/// A stretch of a view that cannot be read, and why.
#[derive(Debug)]
pub struct Unread {
    /// Which bytes; within one leaf unless neighbours fail as well.
    pub range: GuestRange,
    /// What reading its first bytes came to.
    pub error: Error,
}

/// What could not be read so far, by where it starts; no two of them touch.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<BTreeMap<GuestOffset, Unread>>);

impl Losses {
    /// Hashes the leaves of a piece that could not be read whole, each on its own.
    pub(super) fn hash_what_is_left(
        &self,
        view: &View,
        piece: GuestRange,
        buf: &mut [u8],
    ) -> Result<Vec<(u64, Digest)>> {
        let mut leaves = Vec::new();
        for one in piece.pieces(LEAF_BYTES) {
            match hash_piece(view, one, buf) {
                Ok(found) => leaves.extend(found),
                Err(error) if is_loss(&error) => leaves.extend(self.hash_by_blocks(view, one, buf)?),
                Err(error) => return Err(error),
            }
        }
        Ok(leaves)
    }

    /// Notes which blocks of a leaf cannot be read; returns its hash if all can by now.
    fn hash_by_blocks(
        &self,
        view: &View,
        range: GuestRange,
        buf: &mut [u8],
    ) -> Result<Option<(u64, Digest)>> {
        let buf = buf.get_mut(..index(range.bytes)).unwrap_or_default();
        let mut is_whole = true;
        for (block, bytes) in range.pieces(BLOCK_BYTES).zip(buf.chunks_mut(index(BLOCK_BYTES))) {
            match view.read(block.start, bytes) {
                Ok(()) => {}
                Err(error) if is_loss(&error) => {
                    is_whole = false;
                    self.note(Unread { range: block, error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(is_whole.then(|| (range.start.bytes() / LEAF_BYTES, leaf(buf))))
    }

    fn note(&self, mut unread: Unread) {
        let mut found = self.0.lock();
        if let Some(after) = found.remove(&unread.range.end()) {
            unread.range.bytes += after.range.bytes;
        }
        match found.range_mut(..unread.range.start).next_back() {
            Some((_, before)) if before.range.end() == unread.range.start => {
                before.range.bytes += unread.range.bytes;
            }
            _ => drop(found.insert(unread.range.start, unread)),
        }
    }

    /// Returns what could not be read, in order, neighbours joined.
    pub(super) fn joined(self) -> Vec<Unread> {
        self.0.into_inner().into_values().collect()
    }
}

/// Returns whether an error says that bytes are lost, rather than that the work must stop.
pub(super) fn is_loss(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_are_lost_side_by_side_are_one_loss_in_whatever_order_they_are_found() {
        for step in [1, 3, 7] {
            let losses = Losses::default();
            for nth in 0..100 {
                let at = nth * step % 100;
                let range = GuestOffset::new(at * BLOCK_BYTES).range(BLOCK_BYTES);
                losses.note(Unread { range, error: Error::corrupt(at.to_string()) });
            }
            losses.note(Unread { range: GuestOffset::new(1 << 30).range(1), error: Error::corrupt("apart") });
            assert_eq!(losses.0.lock().len(), 2, "kept while it goes on");
            let [whole, apart] = losses.joined().try_into().unwrap();
            assert_eq!(whole.range, GuestOffset::new(0).range(100 * BLOCK_BYTES));
            assert!(whole.error.to_string().contains('0') && apart.error.to_string().contains("apart"));
        }
    }
}
