//! The text that describes a disk: identities, extents, the "disk database" (Virtual Disk Format 5.0, "The Layout of
//! a Virtual Disk"). Pure: where it stands and how it is changed is `desk.rs`.
//!
//! Bytes from a file that may be hostile: names stay bytes, numbers are bounded, and nothing is taken for UTF-8.

use super::space::FILES_MAX;
use crate::base::{Error, Result, name, units::SECTOR_BYTES};
use std::ops::Range;

/// How a descriptor that is a file of its own begins.
pub(super) const SIGNATURE: &[u8] = b"# Disk Descriptor";

/// What stands for "no parent" in `parentCID`.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// The largest disk that is believed: far above the 62 TiB that VMware makes.
pub(super) const SIZE_MAX: u64 = 1 << 50;

/// How the guest may use an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Read and write.
    ReadWrite,
    /// Read only.
    Read,
    /// Not at all.
    Nothing,
}

/// What kind of bytes an extent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The disk's bytes as they are, from a sector on.
    Flat {
        /// Where they begin, in sectors.
        at: u64,
    },
    /// A sparse file with its own header, which says which kind.
    Sparse,
    /// Zeros, in no file.
    Zero,
}

/// One line of the extent description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// How it may be used.
    pub(super) access: Use,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// What it holds.
    pub(super) kind: Kind,
    /// The word that the line has for that.
    pub(super) word: String,
    /// The file's name; empty for zeros.
    pub(super) name: Vec<u8>,
}

/// A descriptor's text, up to its first NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    text: Vec<u8>,
}

impl Descriptor {
    /// Takes the text at the start of `bytes`; `Corrupt` if it is none, `Unsupported` for a later version.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let descriptor = Self { text };
        let Some(version) = descriptor.value("version") else {
            return Err(Error::corrupt("its descriptor has no line 'version='"));
        };
        match number(version) {
            Some(1..=3) => Ok(descriptor),
            _ => Err(Error::unsupported(format!(
                "its descriptor's version is '{}', not 1 to 3",
                shown(version)
            ))),
        }
    }

    /// Wraps a text that was made here.
    pub(super) const fn of(text: Vec<u8>) -> Self {
        Self { text }
    }

    /// Returns the text.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns where the value of `key` stands in the text, without its quotes.
    pub(super) fn place(&self, key: &str) -> Option<Range<usize>> {
        lines(&self.text).find_map(|line| {
            let (name, value) = split(self.text.get(line.clone())?)?;
            name.eq_ignore_ascii_case(key.as_bytes())
                .then(|| line.start + value.start..line.start + value.end)
        })
    }

    /// Returns the value of `key`, without its quotes.
    pub(super) fn value(&self, key: &str) -> Option<&[u8]> {
        self.text.get(self.place(key)?)
    }

    /// Returns the value of `key`, as text that can be shown.
    pub(super) fn shown(&self, key: &str) -> Option<String> {
        self.value(key).map(shown)
    }

    /// Returns a name that stands in the text as this system writes it, if that is another one: on Windows the text may be in
    /// windows-1252, and says so.
    pub(super) fn in_utf8(&self, name: &[u8]) -> Option<Vec<u8>> {
        let is_said =
            || self.value("encoding").is_some_and(|said| said.eq_ignore_ascii_case(b"windows-1252"));
        (str::from_utf8(name).is_err() && is_said()).then(|| name::from_windows_1252(name).into_bytes())
    }

    /// Returns what the disk says of its bytes: changes with the first write after an open.
    pub(super) fn cid(&self) -> Result<u32> {
        self.hex("CID")
    }

    /// Returns what the disk says of its parent's bytes; [`NO_PARENT`] without one.
    pub(super) fn parent_cid(&self) -> Result<u32> {
        if self.place("parentCID").is_none() { Ok(NO_PARENT) } else { self.hex("parentCID") }
    }

    fn hex(&self, key: &str) -> Result<u32> {
        let value =
            self.value(key).ok_or_else(|| Error::corrupt(format!("its descriptor has no line '{key}='")))?;
        let parsed = std::str::from_utf8(value).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok());
        parsed.ok_or_else(|| {
            Error::corrupt(format!("its descriptor's {key} is '{}', not 8 hex digits", shown(value)))
        })
    }

    /// Returns the extents in the disk's order.
    pub(super) fn extents(&self) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut total = 0_u64;
        for line in lines(&self.text) {
            let line = self.text.get(line).unwrap_or_default();
            let Some(extent) = extent(line)? else { continue };
            total = total.checked_add(extent.bytes).filter(|total| *total <= SIZE_MAX).ok_or_else(|| {
                Error::corrupt(format!(
                    "its descriptor's extents have more than {SIZE_MAX} bytes (at '{}')",
                    shown(line)
                ))
            })?;
            extents.push(extent);
            if extents.len() > FILES_MAX {
                return Err(Error::corrupt(format!("its descriptor has more than {FILES_MAX} extents")));
            }
        }
        if extents.is_empty() {
            return Err(Error::corrupt("its descriptor has no extent"));
        }
        Ok(extents)
    }
}

/// Returns where the lines of a text are, without their ends.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = at..at + length;
        at = line.end + 1;
        Some(line)
    })
}

/// Splits `key = "value"`: the key, and where the value is in the line.
pub(super) fn split(line: &[u8]) -> Option<(&[u8], Range<usize>)> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let name = line.get(..equals)?.trim_ascii();
    if name.is_empty() || name.starts_with(b"#") || name.contains(&b' ') {
        return None;
    }
    let after = line.get(equals + 1..)?;
    let start = equals + 1 + (after.len() - after.trim_ascii_start().len());
    let value = after.trim_ascii();
    let quoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    Some(match quoted {
        Some(inner) => (name, start + 1..start + 1 + inner.len()),
        None => (name, start..start + value.len()),
    })
}

/// Reads one line as an extent; `None` if it is none.
fn extent(line: &[u8]) -> Result<Option<Extent>> {
    let line = line.trim_ascii();
    let (access, rest) = word(line);
    let access = match access {
        b"RW" => Use::ReadWrite,
        b"RDONLY" => Use::Read,
        b"NOACCESS" => Use::Nothing,
        _ => return Ok(None),
    };
    let wrong = |what: &str| Error::corrupt(format!("its descriptor's extent line '{}' {what}", shown(line)));
    let (sectors, rest) = word(rest);
    let sectors =
        number(sectors).filter(|sectors| *sectors > 0).ok_or_else(|| wrong("has no size in sectors"))?;
    let bytes = sectors.checked_mul(SECTOR_BYTES).filter(|bytes| *bytes <= SIZE_MAX);
    let bytes = bytes.ok_or_else(|| wrong("has an absurd size"))?;
    let (kind_word, rest) = word(rest);
    let word = String::from_utf8_lossy(kind_word).into_owned();
    if kind_word == b"ZERO" {
        return Ok(Some(Extent { access, bytes, kind: Kind::Zero, word, name: Vec::new() }));
    }
    let quoted = rest.strip_prefix(b"\"").and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b'"')?;
        Some((rest.get(..end)?.to_vec(), rest.get(end + 1..)?.trim_ascii()))
    });
    let (name, rest) = quoted.filter(|(name, _)| !name.is_empty()).ok_or_else(|| wrong("names no file"))?;
    let kind = match kind_word {
        b"FLAT" | b"VMFS" => {
            let at = if rest.is_empty() {
                Some(0)
            } else {
                number(rest.split(|b| *b == b' ').next().unwrap_or_default())
            };
            let is_sane =
                |at: &u64| at.checked_add(sectors).is_some_and(|end| end <= SIZE_MAX / SECTOR_BYTES);
            Kind::Flat { at: at.filter(is_sane).ok_or_else(|| wrong("has an absurd offset"))? }
        }
        b"SPARSE" | b"VMFSSPARSE" | b"SESPARSE" => Kind::Sparse,
        _ => {
            let what =
                format!("its descriptor's extent line '{}' is of a kind that is not read here", shown(line));
            return Err(Error::unsupported(what));
        }
    };
    Ok(Some(Extent { access, bytes, kind, word, name }))
}

/// Returns where an extent's line has its length in sectors; `None` if it is none.
pub(super) fn length_place(line: &[u8]) -> Option<Range<usize>> {
    extent(line).ok().flatten()?;
    let is_blank = |at: &usize| line.get(*at).is_some_and(u8::is_ascii_whitespace);
    let start =
        (0..line.len()).skip_while(is_blank).skip_while(|at| !is_blank(at)).find(|at| !is_blank(at))?;
    let end = (start..line.len()).find(is_blank)?;
    Some(start..end)
}

/// Cuts the first word off.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    (word, rest.trim_ascii_start())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.trim().parse().ok()
}

/// Bytes of a descriptor, as they can be shown.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().flat_map(char::escape_debug).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"# Disk DescriptorFile\nversion=1 \nCID=0172e8a4\r\nparentCID=ffffffff\n# a=b\n\
        RW 4096 VMFS \"a b-flat.vmdk\"\nRDONLY 8 ZERO\nNOACCESS 2 FLAT \"c\" 63\nRW 1 SESPARSE \"d\"\n\
        ddb.adapterType = \"lsilogic\"\n\0RW 1 ZERO\n";

    #[test]
    fn lines_are_read_as_the_specification_prints_them() {
        let descriptor = Descriptor::parse(TEXT).unwrap();
        assert_eq!((descriptor.cid().unwrap(), descriptor.parent_cid().unwrap()), (0x0172_e8a4, NO_PARENT));
        assert_eq!(descriptor.shown("ddb.AdapterType").unwrap(), "lsilogic");
        assert_eq!(descriptor.value("a"), None);
        let extents = descriptor.extents().unwrap();
        let kinds: Vec<_> =
            extents.iter().map(|e| (e.access, e.bytes / 512, e.kind, e.name.as_slice())).collect();
        let expected: [(Use, u64, Kind, &[u8]); 4] = [
            (Use::ReadWrite, 4096, Kind::Flat { at: 0 }, b"a b-flat.vmdk"),
            (Use::Read, 8, Kind::Zero, b""),
            (Use::Nothing, 2, Kind::Flat { at: 63 }, b"c"),
            (Use::ReadWrite, 1, Kind::Sparse, b"d"),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_line() {
        for (line, why) in [
            ("RW 0 ZERO", "no size"),
            ("RW x ZERO", "no size"),
            ("RW 18446744073709551615 ZERO", "absurd size"),
            ("RW 4 FLAT", "names no file"),
            ("RW 4 FLAT \"\" 0", "names no file"),
            ("RW 4 FLAT \"a\" 18446744073709551615", "absurd offset"),
            ("RW 4 VMFSRDM \"a\"", "not read here"),
            ("", "no extent"),
        ] {
            let text = format!("version=1\nCID=1\n{line}\n");
            let error = Descriptor::parse(text.as_bytes()).unwrap().extents().unwrap_err();
            assert!(error.to_string().contains(why), "{line}: {error}");
        }
        assert!(Descriptor::parse(b"version=4\n").unwrap_err().to_string().contains("'4'"));
        assert!(Descriptor::parse(b"CID=1\n").unwrap_err().to_string().contains("version="));
        let wrong = Descriptor::parse(b"version=1\nCID=xyz\n").unwrap().cid().unwrap_err();
        assert!(wrong.to_string().contains("CID is 'xyz'"));
    }
}
