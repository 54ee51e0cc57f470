//! Which references inside an image are followed.
//!
//! Images are untrusted: a header may name any file of the host. A reference is followed when it leads to a
//! regular file in the folder of the image that names it, or below; or in a folder that the caller allows. What
//! counts is where the opened file really is, not how its name reads, so that a link cannot lead out.

use super::link::{is_plain, join};
use crate::{
    base::{Budget, Error, ErrorKind, Guard, Result},
    format::{NAME_BYTES_MAX, ParentName, Parts},
    io::{Access, EntryKind, File, Host},
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest chain that is opened unless the caller says otherwise.
const DEPTH_MAX: usize = 1024;

/// Ends the refusal of an image whose own format would have to be stated.
pub const UNSTATED: &str = "its own format was only recognised, not stated";

/// What a name is that QEMU takes for a protocol, and nobody follows here.
pub const COLON: &str = "something that is not a plain file name";

/// Which references inside images are followed.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Folders whose files any image of stated format may refer to.
    pub allowed: Vec<PathBuf>,
    /// How many layers a chain may have.
    pub depth_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allowed: Vec::new(), depth_max: DEPTH_MAX }
    }
}

impl Policy {
    /// Returns whether an image in `folder` may lead to `place`; both are paths without links.
    pub(crate) fn allows(&self, folder: &Path, place: &Path) -> bool {
        !is_special(place)
            && self.allowed.iter().map(PathBuf::as_path).chain([folder]).any(|f| place.starts_with(f))
    }
}

/// Whether no image can be there. Among the devices there is one ordinary file system.
pub(super) fn is_special(place: &Path) -> bool {
    !place.starts_with("/dev/shm") && ["/proc", "/sys", "/dev"].iter().any(|folder| place.starts_with(folder))
}

/// An image whose references are to be followed.
pub(super) struct Referrer<'a> {
    pub(super) host: &'a dyn Host,
    /// The image's own file, without links.
    pub(super) image: &'a Path,
    /// Whether somebody stated its format; what was only recognised may not lead out of its folder.
    pub(super) is_stated: bool,
    pub(super) policy: &'a Policy,
    /// How files that the image refers to are opened.
    pub(super) access: Access,
    /// What the image's tables are kept in.
    pub(super) budget: &'a Budget,
}

impl Referrer<'_> {
    fn folder(&self) -> &Path {
        self.image.parent().unwrap_or(Path::new("/"))
    }

    /// Opens what the image's header calls `name`; returns where it really is, too.
    pub(super) fn open(&self, name: &[u8]) -> Result<(PathBuf, Arc<dyn File>)> {
        let path = join(self.folder(), self.checked_name(name)?);
        let missing = |e: Error| match e.kind() {
            ErrorKind::NotFound => {
                let what = format!("refers to '{}', and nothing is at {}", shown(name), path.display());
                Error::new(ErrorKind::NotFound, what).subject(&path).path(self.image)
            }
            _ => e.doing(format!("{} refers to '{}'", self.image.display(), shown(name))),
        };
        // A refused place is not even opened: opening a device or a FIFO can have effects of its own.
        self.check_place(&self.host.canonical(&path).map_err(missing)?, name)?;
        self.check_kind(&path, name)?;
        let file = self.host.open(&path, self.access)?;
        let place = self.host.opened_as(file.as_ref())?;
        self.check_place(&place, name)?;
        Ok((place, file))
    }

    /// Opens the parent that the image's header names: by its further names where nothing is at the first. A refusal is
    /// of the first name.
    pub(super) fn open_parent(&self, parent: &ParentName) -> Result<(PathBuf, Arc<dyn File>)> {
        let is_missing = |e: &Error| e.kind() == ErrorKind::NotFound;
        let first = self.open(&parent.name);
        match first {
            Err(error) if is_missing(&error) => {
                parent.others.iter().find_map(|name| self.open(name).ok()).ok_or(error)
            }
            opened => opened,
        }
    }

    /// Returns the name as a path, unless it asks for anything but a file.
    fn checked_name<'n>(&self, name: &'n [u8]) -> Result<&'n Path> {
        if name.len() > NAME_BYTES_MAX {
            let what = format!("refers to a name of {} bytes, longer than {NAME_BYTES_MAX}", name.len());
            return Err(Error::policy(format!("{what}: '{}...'", shown(name))).path(self.image));
        }
        let wrong = if name.is_empty() {
            "an empty name"
        } else if name.contains(&0) {
            "a name with a NUL byte"
        } else if !is_plain(name) {
            COLON
        } else {
            return Ok(Path::new(OsStr::from_bytes(name)));
        };
        Err(Error::policy(format!("refers to {wrong}: '{}'", shown(name))).path(self.image))
    }

    fn check_kind(&self, path: &Path, name: &[u8]) -> Result<()> {
        match self.host.kind(path)? {
            Some(EntryKind::File) => Ok(()),
            _ => Err(Error::policy(format!("refers to '{}', which is not a regular file", shown(name)))
                .path(self.image)),
        }
    }

    fn check_place(&self, place: &Path, name: &[u8]) -> Result<()> {
        let inside = |folder: &Path| place.starts_with(folder);
        let allowed = || self.policy.allowed.iter().any(|f| inside(f));
        let is_special = is_special(place);
        let is_inside = !is_special && (inside(self.folder()) || (self.is_stated && allowed()));
        if !Guard::OutsideFolder.trips(!is_inside) {
            return Ok(());
        }
        let target = place.parent().unwrap_or(place);
        let (why, subject) = match (is_special, allowed(), self.is_stated) {
            (true, ..) => ("which is no place for images".to_owned(), None),
            (_, false, true) => ("outside its folder and the allowed ones".to_owned(), Some(target)),
            (_, false, false) => {
                (format!("outside its folder and the allowed ones, and {UNSTATED}"), Some(target))
            }
            (_, true, _) => (format!("outside its folder, and {UNSTATED}"), None),
        };
        let error = Error::policy(format!("refers to '{}' ({}), {why}", shown(name), place.display()));
        Err(subject.into_iter().fold(error, Error::subject).path(self.image))
    }
}

impl Parts for Referrer<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        Ok(self.open(name)?.1)
    }

    fn budget(&self) -> Budget {
        self.budget.clone()
    }
}

/// A name from a header, as it can be shown.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().flat_map(char::escape_debug).take(200).collect()
}
