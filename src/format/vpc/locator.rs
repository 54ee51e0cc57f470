//! What a child calls its parent: names in several notations, all of them untrusted (VHD specification 1.0, "Parent
//! Locator Entry").
//!
//! Windows notes a path relative to the child (`W2ru`), an absolute one (`W2ku`) and, in the header, a name; `MacX` is a
//! file URL. Of an absolute Windows path the last part alone says anything here: a file beside the child.
//! What is written here is `W2ru`, and `dcpf`, the parent's format where that is another one: who does not know it finds
//! no VHD there.

use super::header::NAME_UNITS;
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{SECTOR_BYTES, count, index},
    },
    format::NAME_BYTES_MAX,
    io::File,
    record,
};

const RELATIVE: [u8; 4] = *b"W2ru";
const ABSOLUTE: [u8; 4] = *b"W2ku";
const URL: [u8; 4] = *b"MacX";
const FORMAT: [u8; 4] = *b"dcpf";
/// No name that a host knows is longer.
const BYTES_MAX: u32 = 16 << 10;
const ENTRY_BYTES: usize = 24;

record! {
    /// One locator ("Parent Locator Entry").
    struct Entry: BigEndian, 24 bytes {
        /// The notation.
        0 => code: bytes 4,
        /// Room for the name: in sectors by the specification, in bytes as Windows writes it.
        4 => space: u32,
        /// Length of the name in bytes.
        8 => length: u32,
        /// Zero.
        12 => reserved: u32,
        /// Where the name is.
        16 => offset: u64,
    }
}

/// One locator of a header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Locator {
    /// The notation.
    code: [u8; 4],
    /// Where the name is.
    pub(super) place: HostRange,
}

/// What a child calls its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The names that may lead to it from the child's folder, the best one first; never empty.
    pub(super) names: Vec<Vec<u8>>,
    /// The parent's format, if it is said to be no VHD.
    pub(super) format: Option<String>,
}

/// A name that a header is to have: what goes into the header itself, and behind it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// The field `parent_name`.
    pub(super) parent_name: [u8; 512],
    /// The locators.
    pub(super) locators: [u8; 192],
    /// What they point to.
    pub(super) bytes: Vec<u8>,
}

impl Locator {
    /// Returns the locators that are used.
    pub(super) fn all(bytes: &[u8; 192]) -> Vec<Self> {
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        let entries = entries.iter().map(Entry::parse).filter(|entry| entry.code != [0; 4]);
        let place = |entry: &Entry| HostOffset::new(entry.offset).range(u64::from(entry.length));
        entries.map(|entry| Self { code: entry.code, place: place(&entry) }).collect()
    }

    /// Reads what it points to; `Corrupt` if that is too long, or not in the file.
    fn read(&self, file: &dyn File) -> Result<Vec<u8>> {
        let end = self.place.start.bytes().checked_add(self.place.bytes);
        if self.place.bytes > u64::from(BYTES_MAX)
            || end.is_none_or(|end| end > u64::MAX / 2)
            || end > Some(file.bytes()?)
        {
            let code = String::from_utf8_lossy(&self.code).escape_debug().to_string();
            let what = format!(
                "{} bytes at {:#x}: too many, or past the file's end",
                self.place.bytes, self.place.start
            );
            return Err(Error::corrupt(format!("parent locator '{code}': {what}")));
        }
        let mut bytes = vec![0; index(self.place.bytes)];
        file.read_at(self.place.start, &mut bytes)?;
        Ok(bytes)
    }
}

/// Returns what `locators` and the header's own `parent_name` call the parent.
pub(super) fn names(file: &dyn File, locators: &[Locator], parent_name: &[u8; 512]) -> Result<Names> {
    let (mut relative, mut others, mut format) = (Vec::new(), Vec::new(), None);
    for locator in locators {
        let (names, text) = match locator.code {
            RELATIVE => (&mut relative, utf16(&locator.read(file)?, u16::from_le_bytes)),
            ABSOLUTE => (&mut others, utf16(&locator.read(file)?, u16::from_le_bytes)),
            URL => (&mut others, None),
            FORMAT => {
                format = Some(String::from_utf8_lossy(&locator.read(file)?).into_owned());
                continue;
            }
            _ => continue,
        };
        names.extend(text.as_deref().and_then(windows_name));
        if locator.code == URL {
            others.extend(url_name(&locator.read(file)?));
        }
    }
    others.extend(utf16(parent_name, u16::from_be_bytes).as_deref().and_then(windows_name));
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in relative.into_iter().chain(others) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // A file beside the child may be another one of that name: where it says of itself whose it is, that is noticed.
    if format.is_some() {
        names.truncate(1);
    }
    if names.is_empty() {
        return Err(Error::corrupt("dynamic header: a differencing disk that names no parent"));
    }
    Ok(Names { names, format })
}

/// Reads UTF-16 up to its end or the first NUL; `None` if it is none, or empty.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (units, _) = bytes.as_chunks::<2>();
    let units: Vec<u16> = units.iter().copied().map(unit).take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok().filter(|text| !text.is_empty())
}

/// Returns the name that a Windows path stands for here.
fn windows_name(path: &str) -> Option<Vec<u8>> {
    let is_drive =
        path.as_bytes().get(1) == Some(&b':') && path.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_drive || path.starts_with(r"\\") {
        let name = path.rsplit(['\\', '/']).next().filter(|name| !name.is_empty())?;
        return Some(name.as_bytes().to_vec());
    }
    let name = path.strip_prefix(r".\").unwrap_or(path).replace('\\', "/");
    Some(name.into_bytes()).filter(|name| !name.is_empty())
}

/// Returns the name that a file URL stands for: `file://./NAME` is beside the child, as `XenServer` writes it.
fn url_name(url: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(url).ok()?.trim_end_matches('\0');
    let path = text.strip_prefix("file://")?;
    let path = path.strip_prefix("localhost").unwrap_or(path);
    let path = path.strip_prefix("./").unwrap_or(path);
    let name = crate::base::name::path(&format!("file:{path}")).into_os_string();
    let name = std::os::unix::ffi::OsStringExt::into_vec(name);
    Some(name).filter(|name: &Vec<u8>| !name.is_empty())
}

/// Returns how a header whose locators' bytes go to `at` names the parent `name`, of the format `format` if that is not
/// this one; `Invalid` for a name that Windows' notation cannot hold.
pub(super) fn write(name: &[u8], format: Option<&str>, at: HostOffset) -> Result<Written> {
    let shown = || String::from_utf8_lossy(name).escape_debug().to_string();
    let refuse = |why: &str| Error::invalid(format!("the parent's name '{}' {why}", shown()));
    let text = std::str::from_utf8(name).map_err(|_| refuse("is not UTF-8, so that a VHD cannot hold it"))?;
    if text.is_empty() || text.contains(['\\', '\0']) {
        return Err(refuse("is empty, or has a backslash or NUL in it, so that a VHD cannot hold it"));
    }
    let relative: Vec<u8> =
        format!(r".\{}", text.replace('/', r"\")).encode_utf16().flat_map(u16::to_le_bytes).collect();
    if name.len() > NAME_BYTES_MAX {
        return Err(refuse("is too long"));
    }
    let mut written = Written { parent_name: [0; 512], locators: [0; 192], bytes: Vec::new() };
    // What fits is there for people; what counts is the locator.
    let last = text.rsplit('/').next().unwrap_or(text);
    let units = last.encode_utf16().take(NAME_UNITS).flat_map(u16::to_be_bytes);
    written.parent_name.iter_mut().zip(units).for_each(|(to, from)| *to = from);
    written.add(RELATIVE, &relative, at, 0);
    if let Some(format) = format {
        written.add(FORMAT, format.as_bytes(), at, 1);
    }
    Ok(written)
}

impl Written {
    fn add(&mut self, code: [u8; 4], name: &[u8], at: HostOffset, nth: usize) {
        let offset = at.plus(count(self.bytes.len())).bytes();
        let length = u32::try_from(name.len()).unwrap_or(BYTES_MAX);
        let space = u32::try_from(SECTOR_BYTES).unwrap_or(512);
        let entry = Entry { code, space: length.next_multiple_of(space), length, reserved: 0, offset };
        let place = self.locators.iter_mut().skip(nth * ENTRY_BYTES);
        place.zip(entry.to_bytes()).for_each(|(to, from)| *to = from);
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(index(SECTOR_BYTES)), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryFile;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        for name in ["base.vhd", "../golden/base.vhd", "./a:b", "sub/tage – 1.vhd"] {
            let file = MemoryFile::new("child.vhd");
            let written = write(name.as_bytes(), Some("raw"), HostOffset::new(512)).unwrap();
            file.write_at(HostOffset::new(512), &written.bytes).unwrap();
            let names = names(&file, &Locator::all(&written.locators), &written.parent_name).unwrap();
            assert_eq!(names.names.first().unwrap(), name.as_bytes());
            assert_eq!(names.format.as_deref(), Some("raw"));
        }
        for name in [&b"a\\b"[..], b"a\xff", b""] {
            assert!(write(name, None, HostOffset::new(0)).is_err());
        }
    }

    #[test]
    fn paths_of_other_systems_lead_beside_the_child() {
        let windows = |path: &str| windows_name(path).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(windows(r"C:\vm\base.vhd").as_deref(), Some("base.vhd"));
        assert_eq!(windows(r"\\server\share\base.vhd").as_deref(), Some("base.vhd"));
        assert_eq!(windows(r".\base.vhd").as_deref(), Some("base.vhd"));
        assert_eq!(windows(r"..\..\golden\base.vhd").as_deref(), Some("../../golden/base.vhd"));
        assert_eq!(windows(r"C:\"), None);
        let url = |url: &str| url_name(url.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(url("file://./base%20one.vhd").as_deref(), Some("base one.vhd"));
        assert_eq!(url("file:///sr/base.vhd\0").as_deref(), Some("/sr/base.vhd"));
        assert_eq!(url("http://x/base.vhd"), None);
    }
}
