//! The parent locator (MS-VHDX 2.6.2.6): pairs of key and value that say where a parent is and how to know it.
//!
//! Paths have Windows' form in the file, and that of this system outside: `.\base.vhdx` is `base.vhdx`, `..\a\b` is
//! `../a/b`, and an absolute one loses its drive or volume. A parent of another format stands in a locator of our own
//! type, which other programs refuse: none takes a disk's bytes for a VHDX file that lies in it.

use crate::{
    base::{
        Error, Result,
        units::{count, index},
    },
    format::{Format, Identity, NAME_BYTES_MAX, ParentName},
    record,
};
use uuid::Uuid;

/// A parent in this format.
const VHDX: Uuid = Uuid::from_u128(0xb04aefb7_d19e_4a81_b789_25b8e9445913);
/// A parent in another format, which [`FORMAT`] names.
const OTHER: Uuid = Uuid::from_u128(0x5f0a2d5c_8e1b_4c57_9d43_64636e310002);

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE: &str = "relative_path";
const VOLUME: &str = "volume_path";
const ABSOLUTE: &str = "absolute_win32_path";
const FORMAT: &str = "deltachain_format";

record! {
    /// What the item begins with.
    struct LocatorHeader: LittleEndian, 20 bytes {
        /// What kind of parent.
        0 => kind: bytes 16,
        /// 0.
        16 => reserved: u16,
        /// Pairs that follow.
        18 => pairs: u16,
    }
}

record! {
    /// Where a pair is in the item; both are UTF-16.
    struct PairEntry: LittleEndian, 12 bytes {
        /// Where the key is.
        0 => key_at: u32,
        /// Where the value is.
        4 => value_at: u32,
        /// Length of the key in bytes.
        8 => key_bytes: u16,
        /// Length of the value in bytes.
        10 => value_bytes: u16,
    }
}

/// A parent locator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    kind: Uuid,
    pairs: Vec<(String, String)>,
}

fn text(item: &[u8], at: u32, bytes: u16, nth: usize) -> Result<String> {
    let from = index(at.into());
    let part = item.get(from..from + usize::from(bytes)).filter(|part| part.len().is_multiple_of(2));
    let wrong = |why: &str| Error::corrupt(format!("parent locator: pair {nth} {why}"));
    let units = part.ok_or_else(|| wrong("does not lie in the item"))?.chunks_exact(2);
    let units = units.map(|unit| unit.first_chunk().map_or(0, |unit| u16::from_le_bytes(*unit)));
    let text: String = char::decode_utf16(units)
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| wrong("is no UTF-16"))?;
    Ok(text.trim_end_matches('\0').to_owned())
}

impl Locator {
    /// Reads the item.
    pub(super) fn parse(item: &[u8]) -> Result<Self> {
        let short = || Error::corrupt(format!("parent locator: has {} bytes, too few", item.len()));
        let header = LocatorHeader::parse_start(item).ok_or_else(short)?;
        let kind = Uuid::from_bytes_le(header.kind);
        if kind != VHDX && kind != OTHER {
            return Err(Error::unsupported(format!("parent locator: a parent of unknown kind ({kind})")));
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        let entries = item.get(LocatorHeader::SIZE..).unwrap_or_default().chunks_exact(PairEntry::SIZE);
        if entries.len() < usize::from(header.pairs) {
            return Err(short());
        }
        // What a few bytes say many times over would take memory without bound.
        let mut left = item.len();
        for (nth, entry) in entries.take(header.pairs.into()).filter_map(PairEntry::parse_start).enumerate() {
            let bytes = usize::from(entry.key_bytes) + usize::from(entry.value_bytes);
            left = left.checked_sub(bytes).ok_or_else(|| {
                Error::corrupt(format!(
                    "parent locator: pair {nth} lies over others: all have more bytes than it"
                ))
            })?;
            let key = text(item, entry.key_at, entry.key_bytes, nth)?;
            let value = text(item, entry.value_at, entry.value_bytes, nth)?;
            pairs.push((key, value));
        }
        let mut keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        if let Some([key, _]) = keys.array_windows::<2>().find(|[one, next]| one == next) {
            return Err(Error::corrupt(format!("parent locator: has {key} more than once")));
        }
        Ok(Self { kind, pairs })
    }

    /// Returns the item's bytes.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let too_long = || Error::invalid("a parent's name is too long for a VHDX image");
        let pairs = u16::try_from(self.pairs.len()).map_err(|_| too_long())?;
        let mut item =
            LocatorHeader { kind: self.kind.to_bytes_le(), reserved: 0, pairs }.to_bytes().to_vec();
        let mut texts = Vec::new();
        let start = item.len() + self.pairs.len() * PairEntry::SIZE;
        let mut add = |text: &str| -> Result<(u32, u16)> {
            let at = u32::try_from(start + texts.len()).map_err(|_| too_long())?;
            let before = texts.len();
            texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            Ok((at, u16::try_from(texts.len() - before).map_err(|_| too_long())?))
        };
        for (key, value) in &self.pairs {
            let ((key_at, key_bytes), (value_at, value_bytes)) = (add(key)?, add(value)?);
            item.extend(PairEntry { key_at, value_at, key_bytes, value_bytes }.to_bytes());
        }
        item.extend(texts);
        Ok(item)
    }

    /// Makes the locator that names `parent`.
    pub(super) fn of(parent: &ParentName) -> Result<Self> {
        let name = std::str::from_utf8(&parent.name).ok();
        let is_fit =
            |name: &&str| !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(['\\', '\0']);
        let name = name.filter(is_fit).ok_or_else(|| {
            let shown = String::from_utf8_lossy(&parent.name);
            Error::invalid(format!(
                "a VHDX image cannot name '{shown}' as its parent: no backslash, no NUL, UTF-8, {NAME_BYTES_MAX} bytes"
            ))
        })?;
        let linkage = match parent.identity {
            Some(Identity::Guid(guid)) => Uuid::from_bytes_le(guid),
            _ => Uuid::nil(),
        };
        let mut pairs = vec![(LINKAGE.to_owned(), linkage.braced().to_string())];
        let windows = name.replace('/', "\\");
        pairs.push(if name.starts_with('/') {
            (ABSOLUTE.to_owned(), windows)
        } else if name.starts_with("../") {
            (RELATIVE.to_owned(), windows)
        } else {
            (RELATIVE.to_owned(), format!(".\\{windows}"))
        });
        let own = Format::Vhdx.name();
        let other = parent.format.as_ref().filter(|format| *format != own);
        if let Some(format) = other {
            pairs.push((FORMAT.to_owned(), format.clone()));
        }
        Ok(Self { kind: if other.is_some() { OTHER } else { VHDX }, pairs })
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Returns the parent that is named.
    pub(super) fn parent(&self) -> Result<ParentName> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let paths = [RELATIVE, VOLUME, ABSOLUTE].into_iter().filter_map(|key| self.value(key));
        for path in paths.map(plain_path).filter(|path| !path.is_empty()) {
            if !names.contains(&path) {
                names.push(path);
            }
        }
        let mut names = names.into_iter();
        let missing = || Error::corrupt("parent locator: names no path");
        let name = names.next().ok_or_else(missing)?;
        let own = (self.kind == VHDX).then(|| Format::Vhdx.name().to_owned());
        let format = own.or_else(|| self.value(FORMAT).map(str::to_owned));
        let linkage =
            |key| self.value(key).and_then(|text| Uuid::try_parse(text).ok()).filter(|id| !id.is_nil());
        let identity = linkage(LINKAGE).or_else(|| linkage(LINKAGE2));
        Ok(ParentName {
            others: names.collect(),
            identity: identity.map(|id| Identity::Guid(id.to_bytes_le())),
            ..ParentName::new(name, format)
        })
    }

    /// Returns the pairs, for people.
    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
}

/// Returns a path as this system writes it: `\\?\c:\a\b` and `\\?\Volume{...}\a\b` are `/a/b`.
fn plain_path(windows: &str) -> Vec<u8> {
    let bare = windows.strip_prefix("\\\\?\\").unwrap_or(windows);
    let has_volume =
        bare.len() != windows.len() && bare.get(..7).is_some_and(|v| v.eq_ignore_ascii_case("volume{"));
    let has_drive =
        bare.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && bare.get(1..2) == Some(":");
    let path = if has_volume || has_drive {
        bare.find('\\').and_then(|at| bare.get(at..)).unwrap_or_default()
    } else {
        bare.strip_prefix(".\\").unwrap_or(bare)
    };
    path.replace('\\', "/").into_bytes()
}

const _: () = assert!(count(LocatorHeader::SIZE) == 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ParentName {
        ParentName::new(name.into(), Some("vhdx".to_owned()))
    }

    #[test]
    fn a_name_comes_back_as_it_was_given() {
        for name in ["base.vhdx", "./base.vhdx", "../a/base.vhdx", "a/b.vhdx", "/srv/vm/base.vhdx", "..a"] {
            let locator = Locator::of(&named(name)).unwrap();
            let read = Locator::parse(&locator.encode().unwrap()).unwrap();
            assert_eq!(read.parent().unwrap(), named(name), "{name}");
        }
        let raw = ParentName::new("disk".into(), Some("raw".to_owned()));
        let read = Locator::parse(&Locator::of(&raw).unwrap().encode().unwrap()).unwrap();
        assert_eq!((read.kind, read.parent().unwrap()), (OTHER, raw));
        let wrong = Locator::of(&named("a\\b")).unwrap_err().to_string();
        assert!(wrong.contains("a\\b") && wrong.contains("backslash"), "{wrong}");
    }

    #[test]
    fn other_paths_of_windows_are_further_names() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let locator = Locator {
            kind: VHDX,
            pairs: vec![
                pair(ABSOLUTE, "\\\\?\\d:\\vm\\base.vhdx"),
                pair(LINKAGE, "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}"),
                pair(RELATIVE, "..\\base.vhdx"),
                pair(VOLUME, "\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\vm\\base.vhdx"),
            ],
        };
        let parent = locator.parent().unwrap();
        assert_eq!((parent.name, parent.others), (b"../base.vhdx".to_vec(), vec![b"/vm/base.vhdx".to_vec()]));
        let guid =
            [0xc3, 0x0e, 0xed, 0x83, 0xc8, 0x24, 0xa6, 0x49, 0xa9, 0x59, 0x5e, 0x4b, 0xf1, 0x28, 0x8b, 0xfb];
        assert_eq!(parent.identity, Some(Identity::Guid(guid)));
    }

    #[test]
    fn what_lies_outside_the_item_is_refused() {
        let mut item = Locator::of(&named("base.vhdx")).unwrap().encode().unwrap();
        item[LocatorHeader::SIZE] = 0xff;
        assert!(Locator::parse(&item).unwrap_err().to_string().contains("pair 0"));
        assert!(Locator::parse(&item[..30]).is_err() && Locator::parse(&[]).is_err());
    }

    #[test]
    fn pairs_that_share_their_bytes_take_no_memory() {
        // 60,000 pairs, each with all that follows them as its value: 15 GB, if they were believed.
        let pairs = 60_000_u16;
        let mut item = LocatorHeader { kind: VHDX.to_bytes_le(), reserved: 0, pairs }.to_bytes().to_vec();
        let at = u32::try_from(item.len() + usize::from(pairs) * PairEntry::SIZE).unwrap();
        let pair = PairEntry { key_at: at, value_at: at, key_bytes: 2, value_bytes: 0xfffe };
        item.extend(pair.to_bytes().repeat(pairs.into()));
        item.resize(1 << 20, b'a');
        let said = Locator::parse(&item).unwrap_err().to_string();
        assert!(said.contains("pair 16 lies over others"), "{said}");
    }
}
