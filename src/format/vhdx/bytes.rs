//! Reading small structures of the file, as its log leaves them.

use super::replay::Replay;
use crate::{
    base::{HostOffset, Result},
    io::File,
};

/// A file, seen through what its log still has to put there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// The file.
    pub(super) file: &'a dyn File,
    /// The log's part, if it is not in the file yet.
    pub(super) replay: Option<&'a Replay>,
}

impl<'a> Source<'a> {
    /// Looks at the file alone.
    pub(super) const fn plain(file: &'a dyn File) -> Self {
        Self { file, replay: None }
    }

    /// Returns the file's length, in bytes.
    pub(super) fn bytes(&self) -> Result<u64> {
        let bytes = self.file.bytes()?;
        Ok(self.replay.map_or(bytes, |replay| bytes.max(replay.file_bytes)))
    }

    /// Fills `buf` from `at`.
    pub(super) fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        match self.replay {
            None => self.file.read_at(at, buf),
            Some(replay) => replay.read_at(self.file, at, buf),
        }
    }
}

/// Returns the CRC-32C of a structure whose checksum, four bytes at offset 4, counts as zeros.
pub(super) fn checksum(structure: &[u8]) -> u32 {
    let (front, rest) = structure.split_at_checked(4).unwrap_or((structure, &[]));
    let sum = crc32c::crc32c_append(crc32c::crc32c(front), &[0; 4]);
    crc32c::crc32c_append(sum, rest.get(4..).unwrap_or_default())
}
