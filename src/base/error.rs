//! The one error type of the library.
//!
//! An error is for the person who must act: it names the file, what was being done, what is wrong and
//! where. What a program can act on is its [`ErrorKind`]; hints and exit codes are the tools' affair.

use std::{fmt, io, path::Path, path::PathBuf};

/// What a caller can act on. Small and stable; details live in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused an operation.
    Io,
    /// No space left for what was to be written.
    NoSpace,
    /// A file or folder is not there.
    NotFound,
    /// A file is there already.
    Exists,
    /// The image breaks its format's rules.
    Corrupt,
    /// The image is valid but uses a feature that this build lacks.
    Unsupported,
    /// The request does not fit the disk, or an argument makes no sense.
    Invalid,
    /// Another process holds the image, or others depend on it.
    Busy,
    /// A rule refuses: a foreign reference, a wrong parent.
    Policy,
    /// Work stopped at a clean checkpoint and can be resumed.
    Interrupted,
}

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the place it happened.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    what: String,
    path: Option<PathBuf>,
    subject: Option<PathBuf>,
    source: Option<io::Error>,
}

impl Error {
    /// Reports `what` is wrong, as a phrase that can follow `FILE: `.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, what: what.into(), path: None, subject: None, source: None }))
    }

    /// Reports an image that breaks its format's rules.
    #[must_use]
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, what)
    }

    /// Reports a feature that this build lacks.
    #[must_use]
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what)
    }

    /// Reports a request that does not fit, or an argument that makes no sense.
    #[must_use]
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what)
    }

    /// Reports a refusal by rule.
    #[must_use]
    pub fn policy(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Policy, what)
    }

    /// Reports something that is in use.
    #[must_use]
    pub fn busy(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, what)
    }

    /// Reports what the operating system answered while `doing` (`"read 512 bytes at 0x200"`).
    #[must_use]
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            _ => ErrorKind::Io,
        };
        Self(Box::new(Inner { kind, what: doing.into(), path: None, subject: None, source: Some(source) }))
    }

    /// Names the file that the error is about, unless an inner call has named one already.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the file by the name that the caller knows, if the error is about `from`.
    #[must_use]
    pub fn renamed(mut self, from: &Path, to: &Path) -> Self {
        if self.0.path.as_deref() == Some(from) {
            self.0.path = Some(to.to_path_buf());
        }
        self.path(to)
    }

    /// Puts `doing` before the message: what was under way when this went wrong.
    #[must_use]
    pub fn doing(mut self, doing: impl fmt::Display) -> Self {
        self.0.what = format!("{doing}: {}", self.0.what);
        self
    }

    /// Names what else the error is about: the folder to allow, the image that depends on this one.
    #[must_use]
    pub fn subject(mut self, path: impl AsRef<Path>) -> Self {
        self.0.subject = Some(path.as_ref().to_path_buf());
        self
    }

    /// Gives the error another class.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Returns the class that a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns what is wrong, as a phrase that can follow the file's name.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// Returns the file that the error is about.
    pub fn file(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Returns what else the error is about (see [`Error::subject`]).
    pub fn about(&self) -> Option<&Path> {
        self.0.subject.as_deref()
    }

    /// Returns what the operating system said, if it said something.
    pub fn os(&self) -> Option<&io::Error> {
        self.0.source.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.0.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(&self.0.what)?;
        match &self.0.source {
            Some(source) => {
                // The number says nothing to a person; the words stay.
                let said = source.to_string();
                write!(f, ": {}", said.split(" (os error ").next().unwrap_or_default())
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

/// Names the file in an error on its way up.
pub trait InFile {
    /// Names the file that an error is about, unless an inner call has named one already.
    #[must_use]
    fn in_file(self, path: &Path) -> Self;
}

impl<T> InFile for Result<T> {
    fn in_file(self, path: &Path) -> Self {
        self.map_err(|e| e.path(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_file_is_named() {
        let error = Error::corrupt("L1 table starts at 0x3, not a multiple of 0x10000").path("a").path("b");
        assert_eq!(error.to_string(), "a: L1 table starts at 0x3, not a multiple of 0x10000");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn the_system_s_words_are_shown_without_its_number() {
        let error = Error::io("open", io::Error::from_raw_os_error(2)).path("a");
        assert_eq!(error.to_string(), "a: open: No such file or directory");
    }

    #[test]
    fn a_full_disk_is_its_own_kind() {
        let error = Error::io("write 512 bytes at 0x0", io::Error::from_raw_os_error(28));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
}
