//! Whose a file is, and who may do what with it: for a file that takes another one's place.

use super::File;
use rustix::fs::{Gid, Mode, Uid};

/// Owner, group and permissions of a file (`stat(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Likeness {
    owner: u32,
    group: u32,
    mode: u32,
}

/// Read and write by the owner.
const OWN_WORK: u32 = 0o600;

/// All that the group may do.
const GROUP: u32 = 0o070;

impl Likeness {
    /// Looks at a file of this machine; `None` for a device, whose permissions say nothing about a file's, and for
    /// anything else.
    pub fn of(file: &dyn File) -> Option<Self> {
        let descriptor = file.descriptor().filter(|_| !file.is_device())?;
        let stat = rustix::fs::fstat(&descriptor.fd).ok()?;
        Some(Self { owner: stat.st_uid, group: stat.st_gid, mode: stat.st_mode & 0o777 })
    }

    /// Returns whether the file belongs to the user that this process acts as.
    pub fn is_own(self) -> bool {
        Uid::from_raw(self.owner) == rustix::process::geteuid()
    }

    /// Returns whether others than the owner may write it.
    pub const fn is_written_by_others(self) -> bool {
        self.mode & 0o022 != 0
    }

    /// The same, and the owner may read and write: what a file that is being worked on needs.
    #[must_use]
    pub const fn at_work(self) -> Self {
        Self { mode: self.mode | OWN_WORK, ..self }
    }

    /// Makes `file` so, as far as this process may: an owner that only root can give stays, and a group that could not
    /// be given gets no permissions.
    pub fn give(self, file: &dyn File) {
        let Some(now) = Self::of(file).filter(|now| *now != self) else { return };
        let Some(descriptor) = file.descriptor() else { return };
        let (owner, group) = (Uid::from_raw(self.owner), Gid::from_raw(self.group));
        let has_group =
            now.group == self.group || rustix::fs::fchown(&descriptor.fd, None, Some(group)).is_ok();
        let mode = Mode::from_raw_mode(if has_group { self.mode } else { self.mode & !GROUP });
        // The new owner's permissions never meet the old mode. A file system without permissions refuses both.
        if rustix::fs::fchmod(&descriptor.fd, mode).is_ok() && now.owner != self.owner {
            rustix::fs::fchown(&descriptor.fd, Some(owner), None).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests;
