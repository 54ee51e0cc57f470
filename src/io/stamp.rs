//! From when on a write to a file must show in the time of its last change.
//!
//! Most hosts stamp a file by a clock that stands still for a tick: a write within the tick in which a file was
//! looked at does not show. Where the host has *multigrain* time stamps (Linux 6.13 and later, on ext4, XFS,
//! btrfs and tmpfs), a file that was looked at gets a stamp of its own with its next write, tick or not (Linux,
//! `Documentation/filesystems/multigrain-ts.rst`). There nobody has to wait.

use super::{File, Witness, real};
use crate::base::clock;
use std::sync::Arc;

const SECOND_NS: i128 = 1_000_000_000;

/// Waits until every write from now on must show in the times of `files`, which have just been looked at; a tick
/// of the kernel at most. Returns the moment, by the clock that stamps them, in nanoseconds since 1970.
///
/// A moment that is not after the files' times says that nobody can tell: their times lie in the future.
pub fn settle(files: &[Arc<dyn File>], seen: &[Witness]) -> i128 {
    let last = seen.iter().map(|file| file.modified_ns).max().unwrap_or_default();
    // Where only whole seconds are kept, a stamp of its own is cut back to the same second.
    let is_cut = seen.iter().any(|file| file.modified_ns % SECOND_NS == 0);
    let now = clock::fine_ns();
    if now > last && !is_cut && files.iter().all(|file| is_multigrain(file.as_ref())) {
        return now;
    }
    clock::wait_past_ns(last)
}

fn is_multigrain(file: &dyn File) -> bool {
    file.descriptor().is_some_and(|descriptor| real::is_multigrain(&descriptor.fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::HostOffset,
        io::{Host, memory::MemoryFile, real::RealHost},
    };

    #[test]
    fn a_write_after_a_file_has_settled_shows_in_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = RealHost::new().create(&folder.path().join("file")).unwrap();
        for byte in 0..20 {
            let before = file.witness().unwrap();
            let noted_ns = settle(&[Arc::clone(&file)], &[before]);
            assert!(noted_ns > before.modified_ns);
            file.write_at(HostOffset::new(0), &[byte]).unwrap();
            assert_ne!(file.witness().unwrap(), before, "write {byte}");
        }
    }

    #[test]
    fn a_time_in_the_future_never_settles() {
        let file: Arc<dyn File> = Arc::new(MemoryFile::new("file"));
        let modified_ns = clock::fine_ns() + 3600 * SECOND_NS;
        let later = Witness { modified_ns, ..file.witness().unwrap() };
        assert!(settle(&[file], &[later]) < modified_ns);
    }
}
