//! Names of files as text: a host's names are bytes, JSON is not.
//!
//! What stays true: a name has one text, and the text gives back the name. A name that is UTF-8 is its own text. Any
//! other, and one that starts with `file:`, is `file:` and its bytes, all but letters, digits and `/._-~` as `%XX`: for an
//! absolute path the URI of RFC 8089, appendix B.

use serde::{Deserialize, Serialize, Serializer};
use std::{
    borrow::Cow,
    ffi::OsString,
    ops::Deref,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

const SCHEME: &str = "file:";

/// Returns the text of a name.
///
/// ```
/// use deltachain::base::name;
/// use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};
///
/// assert_eq!(name::text(Path::new("/vm/a b")), "/vm/a b");
/// let odd = Path::new(OsStr::from_bytes(b"/vm/a b\xff"));
/// assert_eq!(name::text(odd), "file:/vm/a%20b%FF");
/// assert_eq!(name::path("file:/vm/a%20b%FF"), odd);
/// ```
pub fn text(path: &Path) -> Cow<'_, str> {
    if let Some(text) = path.to_str().filter(|text| !text.starts_with(SCHEME)) {
        return Cow::Borrowed(text);
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(byte);
    let shown = path.as_os_str().as_bytes().iter().map(|byte| match byte {
        byte if is_plain(byte) => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    Cow::Owned(std::iter::once(SCHEME.to_owned()).chain(shown).collect())
}

/// Returns the name that a text stands for; whatever is no `%XX` stands for itself.
pub fn path(text: &str) -> PathBuf {
    let Some(mut rest) = text.strip_prefix(SCHEME).map(str::as_bytes) else { return PathBuf::from(text) };
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        let (byte, used) = match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => (byte, 2),
            None => (*first, 0),
        };
        bytes.push(byte);
        rest = after.get(used..).unwrap_or_default();
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// A name that is stored as its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct FileName(pub PathBuf);

impl Deref for FileName {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        text(&name.0).into_owned()
    }
}

impl From<String> for FileName {
    fn from(text: String) -> Self {
        Self(path(&text))
    }
}

/// What has names of files in it.
pub trait Named {
    /// Serializes it with each name as its text.
    fn serialize_named<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;
}

/// Serializes names as their texts, for `#[serde(serialize_with = "...")]`.
pub fn serialize<T: Named, S: Serializer>(names: &T, to: S) -> Result<S::Ok, S::Error> {
    names.serialize_named(to)
}

struct Shown<'a, T>(&'a T);

impl<T: Named> Serialize for Shown<'_, T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_named(to)
    }
}

impl Named for PathBuf {
    fn serialize_named<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text(self))
    }
}

impl<T: Named> Named for Option<T> {
    fn serialize_named<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(Shown).serialize(to)
    }
}

impl<T: Named> Named for Vec<T> {
    fn serialize_named<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Shown))
    }
}

impl<T: Named, U: Serialize> Named for (T, U) {
    fn serialize_named<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (Shown(&self.0), &self.1).serialize(to)
    }
}

/// What 0x80 to 0x9f stand for in windows-1252; the other bytes stand for the characters of their numbers.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Reads a text in windows-1252, in which `VMware` writes what it writes on Windows in western Europe.
pub fn from_windows_1252(bytes: &[u8]) -> String {
    let high = |byte: u8| WINDOWS_1252.get(usize::from(byte).wrapping_sub(0x80)).copied();
    bytes.iter().map(|byte| high(*byte).unwrap_or(char::from(*byte))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_gives_back_its_name(bytes in prop::collection::vec(any::<u8>(), 0..40), is_odd in any::<bool>()) {
            let start = if is_odd { SCHEME.as_bytes() } else { b"" };
            let name = PathBuf::from(OsString::from_vec([start, &bytes].concat()));
            prop_assert_eq!(path(&text(&name)), name);
        }
    }
}
