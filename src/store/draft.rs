//! A file in the making: nothing is seen under its name before it is whole.

use super::FOLDER;
use crate::{
    base::{Error, ErrorKind, Result, seed},
    io::{Access, EntryKind, File, Host},
};
use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What tells a draft's name from others.
const MARK: &str = ".dchain-draft-";

/// Digits of the sum that stands for the rest of a long name.
const SUM_DIGITS: usize = 16;

/// The most that a name has on Linux's file systems.
const NAME_BYTES_MAX: usize = 255;

/// How much of its target's name a draft's has: a dot, the mark, a
/// letter, a random number, and for a long one the sum come to it.
const OWN_BYTES_MAX: usize = NAME_BYTES_MAX - 1 - MARK.len() - 1 - 16 - 1 - SUM_DIGITS;

/// A new file under a temporary name in its own folder, removed again unless it is published or was noted.
#[derive(Debug)]
pub struct Draft {
    host: Arc<dyn Host>,
    temporary: PathBuf,
    file: Arc<dyn File>,
    /// Whether nothing is left to be removed.
    is_over: bool,
}

/// Whether a file that has the name already is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// `Exists` if the name is taken.
    New,
    /// What had the name is gone, in one step.
    Replace,
}

impl Draft {
    /// Refuses as `Invalid` what can be no file's name to last: that of our own folder, or of a file in the making, and what
    /// is too long for one.
    pub fn check_name(target: &Path) -> Result<()> {
        let what = match target.file_name() {
            None => "names no file",
            Some(name) if name == FOLDER => {
                "is what the folder is called in which notes on the images are kept"
            }
            Some(name) if name.len() > NAME_BYTES_MAX => "is too long a name: 255 bytes at most",
            Some(_) if Self::is_left_over(target) => {
                "is called like a file that an interrupted program left behind"
            }
            Some(_) => return Ok(()),
        };
        Err(Error::invalid(what).path(target))
    }

    /// Creates the temporary file, open for writing, in the folder of `target`. Fails as [`Draft::check_name`].
    pub fn new(host: &Arc<dyn Host>, target: &Path) -> Result<Self> {
        Self::check_name(target)?;
        let mut name = Self::start_of_passing(target);
        name.push(random());
        let temporary = target.with_file_name(name);
        let file = host.create(&temporary)?;
        Ok(Self { host: Arc::clone(host), temporary, file, is_over: false })
    }

    /// Creates the temporary file under a name that was noted before: it stays until it is published.
    pub fn noted(host: &Arc<dyn Host>, temporary: &Path) -> Result<Self> {
        let file = host.create(temporary)?;
        Ok(Self { host: Arc::clone(host), temporary: temporary.to_path_buf(), file, is_over: true })
    }

    /// Opens a noted temporary file of an earlier run, to go on with it; `Busy` while another run does, `NotFound` if its name is
    /// a link now: whoever may write the folder could lead us to any file of this user's.
    pub fn resume(host: &Arc<dyn Host>, temporary: &Path) -> Result<Self> {
        let file = host.open(temporary, Access::Write)?;
        let folder =
            temporary.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let place = host.canonical(folder)?.join(temporary.file_name().unwrap_or_default());
        if host.opened_as(file.as_ref())? != place {
            return Err(Error::new(ErrorKind::NotFound, "is a link to another file").path(temporary));
        }
        Ok(Self { host: Arc::clone(host), temporary: temporary.to_path_buf(), file, is_over: true })
    }

    /// Returns whether `name` is one that only an interrupted program leaves behind.
    pub fn is_left_over(name: &Path) -> bool {
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with('.') && name.contains(MARK)
    }

    /// Names `target` in an error that is about its draft: a person knows no drafts.
    pub fn name_target(error: Error, target: &Path) -> Error {
        match error.file().filter(|file| Self::is_left_over(file)).map(Path::to_path_buf) {
            Some(draft) => error.renamed(&draft, target),
            None => error,
        }
    }

    /// Removes the files of [`Draft::new`] for `target` that an interrupted program left behind: nobody has them open.
    /// What was noted stays: a job may go on with it.
    pub fn sweep(host: &dyn Host, target: &Path) -> Result<()> {
        let start = Self::start_of_passing(target);
        let folder =
            target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for entry in host.list(folder)? {
            let name = entry.path.file_name().unwrap_or_default();
            if entry.kind != EntryKind::File || !name.as_bytes().starts_with(start.as_bytes()) {
                continue;
            }
            match host.open(&entry.path, Access::Write) {
                Ok(file) => drop(file),
                Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => continue,
                Err(error) => return Err(error),
            }
            host.remove(&entry.path)?;
        }
        Ok(())
    }

    /// Returns a fresh temporary name for `target`.
    pub fn temporary_name(target: &Path) -> PathBuf {
        let mut name = Self::start_of_name(target);
        name.push(random());
        target.with_file_name(name)
    }

    /// Returns the same for `target` each time that it is made of `source`: what a kill has left is found again.
    pub fn name_from(target: &Path, source: &Path) -> PathBuf {
        let hash = blake3::hash(source.as_os_str().as_bytes()).to_hex();
        let mut name = Self::start_of_name(target);
        name.push(hash.get(..16).unwrap_or_default());
        target.with_file_name(name)
    }

    /// How the names of those start that nobody goes on with.
    fn start_of_passing(target: &Path) -> OsString {
        let mut name = Self::start_of_name(target);
        name.push("t");
        name
    }

    /// How the names of all drafts for `target` start: with its own, or what there is room for and a sum of it.
    fn start_of_name(target: &Path) -> OsString {
        let own = target.file_name().unwrap_or_default().as_bytes();
        let mut name = b".".to_vec();
        match own.get(..OWN_BYTES_MAX) {
            Some(start) if own.len() > OWN_BYTES_MAX => {
                name.extend_from_slice(start);
                name.push(b'~');
                name.extend_from_slice(
                    blake3::hash(own).to_hex().get(..SUM_DIGITS).unwrap_or_default().as_bytes(),
                );
            }
            _ => name.extend_from_slice(own),
        }
        name.extend_from_slice(MARK.as_bytes());
        OsString::from_vec(name)
    }

    /// Returns the file.
    pub fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    /// Returns the name that it has now.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the file its name in place of what has it, in one step, whenever the host writes that out: a power
    /// cut may leave what was there before, or the name with only a part of the bytes.
    pub fn publish_sometime(mut self, target: &Path) -> Result<()> {
        self.host.rename(&self.temporary, target)?;
        self.is_over = true;
        Ok(())
    }

    /// Makes the file durable and gives it its name, durably.
    pub fn publish(self, target: &Path, how: Publish) -> Result<()> {
        self.file.flush()?;
        self.publish_flushed(target, how)
    }

    /// Gives the file, which is durable already, its name, durably.
    pub fn publish_flushed(mut self, target: &Path, how: Publish) -> Result<()> {
        match how {
            Publish::New => self.host.rename_new(&self.temporary, target)?,
            Publish::Replace => self.host.rename(&self.temporary, target)?,
        }
        self.is_over = true;
        self.host.sync_folder(target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }
}

fn random() -> String {
    format!("{:016x}", seed::fresh() >> 64)
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_over {
            // The failure that led here is what the caller hears of; a leftover carries its own mark.
            let _ = self.host.remove(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::real::RealHost;

    #[test]
    fn a_link_in_a_drafts_place_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let (precious, draft) = (folder.path().join("precious"), folder.path().join(".disk.dchain-draft-1"));
        std::fs::write(&precious, "bytes").unwrap();
        drop(Draft::noted(&host, &draft).unwrap());
        assert_eq!(Draft::resume(&host, &draft).unwrap().path(), draft);
        std::fs::remove_file(&draft).unwrap();
        std::os::unix::fs::symlink(&precious, &draft).unwrap();
        assert_eq!(Draft::resume(&host, &draft).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_long_name_has_drafts_that_are_told_apart_and_swept() {
        let folder = tempfile::tempdir().unwrap();
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let long = |end: &str| folder.path().join(format!("{}{end}", "x".repeat(255 - end.len())));
        let [one, other] = [long(".one"), long(".other")];
        for target in [&one, &other] {
            let draft = Draft::new(&host, target).unwrap();
            std::fs::copy(draft.path(), draft.path().with_extension("dchain-draft-tleft")).unwrap();
            draft.publish(target, Publish::New).unwrap();
        }
        let left =
            || host.list(folder.path()).unwrap().into_iter().filter(|e| Draft::is_left_over(&e.path)).count();
        assert_eq!(left(), 2);
        Draft::sweep(host.as_ref(), &one).unwrap();
        assert_eq!(left(), 1);
        Draft::sweep(host.as_ref(), &other).unwrap();
        assert_eq!(left(), 0);
    }
}
