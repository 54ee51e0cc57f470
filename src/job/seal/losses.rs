//! Going on past what cannot be read: the leaves around it have no hash, all others do.

use super::hash_piece;
use crate::{
    base::{Error, ErrorKind, GuestRange, Result, units::index},
    chain::View,
    content::{Digest, LEAF_BYTES, leaf},
};
use parking_lot::Mutex;

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

/// What could not be read so far.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<Vec<Unread>>);

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
                    self.0.lock().push(Unread { range: block, error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(is_whole.then(|| (range.start.bytes() / LEAF_BYTES, leaf(buf))))
    }

    /// Returns what could not be read, in order, neighbours joined.
    pub(super) fn joined(self) -> Vec<Unread> {
        let mut found = self.0.into_inner();
        found.sort_by_key(|unread| unread.range.start);
        let mut out: Vec<Unread> = Vec::new();
        for unread in found {
            match out.last_mut() {
                Some(last) if last.range.end() == unread.range.start => {
                    last.range.bytes += unread.range.bytes;
                }
                _ => out.push(unread),
            }
        }
        out
    }
}

/// Returns whether an error says that bytes are lost, rather than that the work must stop.
pub(super) fn is_loss(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt)
}
