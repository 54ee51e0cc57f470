//! How a command ends: exit codes, and errors as a person reads them.

use crate::output::printable;
use deltachain::{
    base::{Error, ErrorKind},
    chain::{COLON, FORMAT_UNSTATED, UNSTATED},
    format::Format,
    io::{Access, Host, THIS_PROCESS, real::RealHost},
    store::{Arrival, Journal, NO_PLACE, Transfer, vmware},
};
use std::{fmt, io, os::unix::ffi::OsStrExt, path::Path, process::ExitCode};

/// What a command's exit code says. `check` and `compare` have qemu-img's codes of their own (1, 2, 3, 63).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed; `compare`: the images differ; `check`: could not check.
    Failed = 1,
    /// `check`: the image is corrupt; `compare`: could not compare.
    Corruptions = 2,
    /// `check`: space is marked as used that is not.
    Leaks = 3,
    /// `check`: this format has nothing to check.
    Unsupported = 63,
    /// The arguments make no sense.
    Usage = 64,
    /// The image is corrupt.
    BadInput = 65,
    /// Locked, leased, or others depend on it.
    InUse = 69,
    /// A fault of this program.
    Bug = 70,
    /// No space left.
    NoSpace = 73,
    /// Interrupted at a clean point; the same command goes on.
    Resumable = 75,
    /// Refused by policy: a foreign reference, a wrong parent.
    Refused = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What is wrong, with the file's name.
    pub what: String,
    /// The command or option that helps.
    pub hint: Option<String>,
}

impl Failure {
    /// Reports arguments that make no sense.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, what: what.into(), hint: None }
    }

    /// Reports that a person who was asked said no.
    pub fn declined() -> Self {
        Self { exit: Exit::Failed, what: "not done".to_owned(), hint: None }
    }

    /// Reports an error of a command that looks for something inside a file: what helps with files that are missing or
    /// in the way would not help there.
    pub fn inside(error: &Error) -> Self {
        let failure = Self::from_error(error);
        match error.kind() {
            ErrorKind::Exists | ErrorKind::NotFound => Self { hint: None, ..failure },
            _ => failure,
        }
    }

    /// Reports an error of a command that puts images into `folder`.
    pub fn into_folder(error: &Error, folder: &Path) -> Self {
        let failure = Self::from_error(error);
        match error.kind() {
            ErrorKind::NotFound if error.file() == Some(folder) => {
                failure.hint(format!("make the folder first: mkdir {}", quoted(folder)))
            }
            ErrorKind::NotFound if error.file().is_some_and(vmware::is_one) => {
                failure.hint("put the disk where it is said to be, or beside that file")
            }
            // What is there may be the only copy of another disk.
            ErrorKind::Exists => failure.hint("choose another folder"),
            _ => failure,
        }
    }

    /// Reports an error.
    pub fn from_error(error: &Error) -> Self {
        let what = printable(&error.to_string()).into_owned();
        Self { exit: exit_for(error.kind()), what, hint: hint_for(error) }
    }

    /// Of a command that keeps nothing to go on from.
    #[must_use]
    pub fn begins_again(self) -> Self {
        match self.exit {
            Exit::Resumable => self.exit(Exit::Failed).hint("the same command begins again from the start"),
            _ => self,
        }
    }

    /// Adds what helps.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Gives the failure the exit code that this command promises.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dchain: {}", self.what)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(&error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let exit = if error.kind() == io::ErrorKind::StorageFull { Exit::NoSpace } else { Exit::Failed };
        Self { exit, what: format!("standard output: {error}"), hint: None }
    }
}

/// Returns how a command ends that fails in that way.
pub const fn exit_for(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Invalid => Exit::Usage,
        ErrorKind::Corrupt => Exit::BadInput,
        ErrorKind::Busy => Exit::InUse,
        ErrorKind::NoSpace => Exit::NoSpace,
        ErrorKind::Interrupted => Exit::Resumable,
        ErrorKind::Policy => Exit::Refused,
        _ => Exit::Failed,
    }
}

fn hint_for(error: &Error) -> Option<String> {
    let file = error.file().map_or_else(|| "IMAGE".to_owned(), quoted);
    match (error.kind(), error.about()) {
        (ErrorKind::Policy, Some(folder)) if folder.is_dir() => {
            let is_unstated = error.what().ends_with(UNSTATED);
            let state = if is_unstated { format!("-f {} ", shown_format(error)) } else { String::new() };
            Some(format!("{state}--allow-dir {} follows references into that folder", quoted(folder)))
        }
        (ErrorKind::Policy, None) if error.what().ends_with(UNSTATED) => Some(format!(
            "-f {} states it: references into allowed folders are followed then",
            shown_format(error)
        )),
        (ErrorKind::Policy, None) if error.what().contains(COLON) => Some(format!(
            "if a file of that name is meant: dchain rebase -b ./NAME -F FMT {file}, or dchain relink {file}"
        )),
        (ErrorKind::Policy, None) if error.what().ends_with(FORMAT_UNSTATED) => {
            Some(format!("dchain rebase -b PARENT -F FMT {file} states it"))
        }
        (ErrorKind::Policy, _) if error.what().contains("nothing of its own to fold") => {
            Some("--into LAYER folds into that one all the same, --new IMAGE into a new image".to_owned())
        }
        (ErrorKind::Policy, Some(unread)) if error.file() == Some(unread) => {
            Some("--ignore-unread goes on, if it does not".to_owned())
        }
        (ErrorKind::Corrupt | ErrorKind::Unsupported, _) if error.file().is_some_and(Journal::is_name) => {
            Some(format!("dchain consolidate --abandon {file} removes it"))
        }
        (_, _) if error.what().contains(NO_PLACE) => {
            Some("XDG_STATE_HOME names a folder that can be written".to_owned())
        }
        (ErrorKind::Corrupt, _) if error.file().is_some_and(Transfer::is_name) => {
            Some(format!("rm {file} forgets it, and the copy begins anew"))
        }
        (ErrorKind::Corrupt, _) if error.what().contains("which disks there are") => Some(
            "put a copy of it back; or take it away, and name each disk with its newest layer".to_owned(),
        ),
        (ErrorKind::Corrupt, _) if error.what().contains("not a qcow2 image") => {
            Some("if it is a raw image, -f raw states it (-F raw of a parent)".to_owned())
        }
        (ErrorKind::Corrupt, _) if error.what().contains("comes back to") => {
            Some("one of these names the wrong parent: dchain tree FOLDER shows who names whom".to_owned())
        }
        (ErrorKind::Corrupt, _) if error.file().is_some_and(Arrival::is_name) => {
            Some(format!("rm {file} forgets it, and the layer begins anew"))
        }
        // It came over a wire, or is a machine's: there is no image to look at.
        (ErrorKind::Corrupt, _) if error.file().is_none_or(|f| !f.exists() || vmware::is_one(f)) => None,
        (ErrorKind::Corrupt, _) => Some(format!("dchain check {file} lists what is wrong")),
        // The file is there: what is missing is something that it refers to.
        (ErrorKind::NotFound, _) if error.file().is_some_and(Path::exists) => Some(format!(
            "dchain relink {file} FOLDER finds a lost parent in the image's folder and in FOLDER by what is recorded of \
             it, or by name with --map OLD=NEW"
        )),
        // It says how it is ended.
        (ErrorKind::Busy, _) if error.what().contains("was cut off") => None,
        (ErrorKind::Busy, Some(own)) if error.file() == Some(own) => {
            Some("remove its other name, or make that a copy".to_owned())
        }
        // Mostly the error has named it, and said what it has to do with it.
        (ErrorKind::Busy, Some(child)) => {
            let is_named = error.what().contains(&child.display().to_string());
            (!is_named).then(|| format!("{} depends on it", quoted(child)))
        }
        (ErrorKind::Busy, None) if error.what().ends_with(THIS_PROCESS) => {
            Some("it is named twice, or is a layer of an image that is named as well".to_owned())
        }
        (ErrorKind::Busy, None) => Some(whom_to_stop(error).to_owned()),
        (ErrorKind::Interrupted, _) => Some("the same command again goes on from there".to_owned()),
        (ErrorKind::NoSpace, _) => Some("free some space, then run the same command again".to_owned()),
        (ErrorKind::Invalid, _) if error.what() == "is not a folder" => {
            Some("a store is a folder: images keep their names there".to_owned())
        }
        (ErrorKind::Exists, _) => Some("choose another name: that one may be needed".to_owned()),
        _ => None,
    }
}

/// Returns the format that the image which an error is about has by its header.
fn shown_format(error: &Error) -> &'static str {
    let host = RealHost::new();
    let file = error.file().and_then(|path| host.open(path, Access::ReadShared).ok());
    let shown = file.and_then(|file| Format::recognise(file.as_ref()).ok());
    shown.map_or("FMT", Format::name)
}

/// What helps where another program is in the way.
fn whom_to_stop(error: &Error) -> &'static str {
    let what = error.what();
    if what.contains("listens there") {
        "name another place, or stop who listens there"
    } else if what.contains("does not answer") {
        "once it answers again, the same command goes on; guests do meanwhile"
    } else if error.file().is_some_and(|file| file.ends_with("lock")) {
        "a state folder is one daemon's: --state names another"
    } else if what.contains("dchaind") {
        "dchain disk list tells under which name it is served: snapshot, consolidate, revert and diff take --disk NAME; \
         commands that only read take -U"
    } else {
        "stop the program that uses it; commands that only read take -U"
    }
}

/// A path as it can be pasted into a shell.
pub fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let text = path.display().to_string();
    if str::from_utf8(bytes).is_err() || printable(&text) != text {
        return format!("$'{}'", bytes.escape_ascii());
    }
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let code = |kind| Failure::from(Error::new(kind, "x")).exit as u8;
        let all = [
            (ErrorKind::Io, 1),
            (ErrorKind::NotFound, 1),
            (ErrorKind::Exists, 1),
            (ErrorKind::Unsupported, 1),
            (ErrorKind::Invalid, 64),
            (ErrorKind::Corrupt, 65),
            (ErrorKind::Busy, 69),
            (ErrorKind::NoSpace, 73),
            (ErrorKind::Interrupted, 75),
            (ErrorKind::Policy, 77),
        ];
        for (kind, exit) in all {
            assert_eq!(code(kind), exit, "{kind:?}");
        }
    }

    #[test]
    fn the_hint_is_a_command_that_can_be_pasted() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("it's here");
        std::fs::create_dir(&odd).unwrap();
        let failure = Failure::from(Error::policy("refers to 'x'").path("vm.qcow2").subject(&odd));
        let shown = failure.to_string();
        assert!(shown.starts_with("dchain: vm.qcow2: refers to 'x'\nhint: --allow-dir '"), "{shown}");
        assert!(shown.contains(r"it'\''s here' follows"), "{shown}");
        assert_eq!(quoted(Path::new("a\n\u{1b}'b")), r"$'a\n\x1b\'b'");
    }
}
