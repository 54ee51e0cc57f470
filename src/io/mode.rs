//! What a file's mode says of its owner's intent.

use super::File;

/// Returns whether nobody has the right to write the file: a golden image, even for root, who could.
///
/// False where that cannot be told.
pub fn is_marked_read_only(file: &dyn File) -> bool {
    let mode = file.descriptor().and_then(|d| rustix::fs::fstat(&*d.fd).ok()).map(|stat| stat.st_mode);
    mode.is_some_and(|mode| mode & 0o222 == 0)
}
