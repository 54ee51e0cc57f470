//! The files in a tar archive: where each lies. Nothing is unpacked.
//!
//! The archive is a stranger's. Taken are plain files with plain names, in the shapes that tar programs write (POSIX.1-1988
//! ustar; its pax headers; GNU's long names and sizes); folders are passed over. Anything else is refused by name and
//! offset: what an OVA has no use for can only be meant for whoever unpacks it.
//!
//! What stays true: each file lies within the archive, no two have one name, and no name leads out of a folder.

use crate::{
    base::{Error, HostOffset, HostRange, Result, units::index},
    io::File,
};
use std::collections::BTreeSet;
use tar::{EntryType, Header, PaxExtensions};

/// Bytes in a header; files start at a multiple of it.
pub(super) const BLOCK_BYTES: u64 = 512;
/// Headers in an archive, those of folders and of long names included.
const HEADERS_MAX: usize = 4096;
/// Bytes in a name.
const NAME_BYTES_MAX: usize = 1024;
/// Folders in a name, and the file.
const NAME_PARTS_MAX: usize = 16;
/// Bytes of a header that only says more of the one that follows.
const AHEAD_BYTES_MAX: u64 = 64 << 10;
/// Where a header's checksum stands, which counts as spaces in itself.
const SUM: std::ops::Range<usize> = 148..156;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: plain parts with `/` between them.
    pub name: String,
    /// Where its bytes are in the archive.
    pub range: HostRange,
}

/// What was said of the next file ahead of its own header.
#[derive(Debug, Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
}

/// Returns the files, in their order.
pub(super) fn members(file: &dyn File) -> Result<Vec<Member>> {
    let end = HostOffset::new(file.bytes()?);
    let (mut found, mut names, mut ahead) = (Vec::new(), BTreeSet::new(), Ahead::default());
    let mut at = HostOffset::new(0);
    for _ in 0..HEADERS_MAX {
        let Some(header) = header_at(file, at, end)? else { return Ok(found) };
        let wrong = |e: Error| e.doing(format!("tar header at {at:#x}"));
        let kind = header.entry_type();
        let stated = if is_ahead(kind) { None } else { ahead.bytes.take() };
        let bytes = stated.map_or_else(|| bytes_of(&header), Ok).map_err(wrong)?;
        let range = at.plus(BLOCK_BYTES).range(bytes);
        if bytes > end.since(range.start) {
            let what = format!("size: {bytes} bytes, and the file ends after {}", end.since(range.start));
            return Err(wrong(Error::corrupt(what)));
        }
        match kind {
            _ if is_ahead(kind) => {
                ahead.hear(kind, &said(file, range).map_err(wrong)?).map_err(wrong)?;
            }
            EntryType::Directory if bytes == 0 => ahead = Ahead::default(),
            EntryType::Regular => {
                let name = ahead.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                let name = plain_name(&name).map_err(wrong)?;
                if !names.insert(name.clone()) {
                    return Err(wrong(Error::corrupt(format!("name: '{name}' is there already"))));
                }
                found.push(Member { name, range });
            }
            _ => return Err(wrong(refused(kind))),
        }
        at = range.end().ceil(BLOCK_BYTES);
    }
    Err(Error::corrupt(format!("has more than {HEADERS_MAX} tar headers")))
}

/// Returns the name in the file's first tar header, if it starts with one that is sound.
pub(super) fn first_name(file: &dyn File) -> Result<Option<Vec<u8>>> {
    let mut block = [0; index(BLOCK_BYTES)];
    file.read_at(HostOffset::new(0), &mut block)?;
    let header = Header::from_byte_slice(&block);
    Ok(is_sound(header).then(|| header.path_bytes().into_owned()))
}

/// Returns the header at `at`; `None` at the archive's end.
fn header_at(file: &dyn File, at: HostOffset, end: HostOffset) -> Result<Option<Header>> {
    let left = end.since(at);
    if left == 0 {
        return Ok(None);
    }
    if left < BLOCK_BYTES {
        return Err(Error::corrupt(format!("tar header at {at:#x}: the file ends {left} bytes into it")));
    }
    let mut header = Header::new_old();
    file.read_at(at, header.as_mut_bytes())?;
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if is_sound(&header) {
        return Ok(Some(header));
    }
    Err(Error::corrupt(format!("tar header at {at:#x}: its checksum is wrong")))
}

fn is_sound(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let in_sum = bytes.get(SUM).unwrap_or_default();
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let all = sum(bytes) - sum(in_sum) + 8 * u32::from(b' ');
    // A header of zeros has no sum, and is none.
    header.cksum().is_ok_and(|said| said == all)
}

fn bytes_of(header: &Header) -> Result<u64> {
    header.entry_size().map_err(|_| Error::corrupt("size: is no number"))
}

/// Whether a header only says more of the next one.
fn is_ahead(kind: EntryType) -> bool {
    matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName)
}

/// Reads what a header says of the next one.
fn said(file: &dyn File, range: HostRange) -> Result<Vec<u8>> {
    if range.bytes > AHEAD_BYTES_MAX {
        let what =
            format!("size: {} bytes about the next file, at most {AHEAD_BYTES_MAX} are read", range.bytes);
        return Err(Error::unsupported(what));
    }
    let mut bytes = vec![0; index(range.bytes)];
    file.read_at(range.start, &mut bytes)?;
    Ok(bytes)
}

impl Ahead {
    /// Takes in what a header says of the next file, or of all that follow.
    fn hear(&mut self, kind: EntryType, said: &[u8]) -> Result<()> {
        if kind == EntryType::GNULongName {
            self.name = Some(said.split(|byte| *byte == 0).next().unwrap_or_default().to_vec());
            return Ok(());
        }
        for record in PaxExtensions::new(said) {
            let record = record.map_err(|_| Error::corrupt("pax record: is not LENGTH KEY=VALUE"))?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            if key.starts_with(b"GNU.sparse.") {
                return Err(refused(EntryType::GNUSparse));
            }
            if !matches!(key, b"path" | b"size") {
                continue;
            }
            if kind == EntryType::XGlobalHeader {
                return Err(Error::corrupt("pax record: one name or size for all files"));
            }
            if key == b"path" {
                self.name = Some(value.to_vec());
            } else {
                let bytes = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                self.bytes = Some(bytes.ok_or_else(|| Error::corrupt("pax record: size is no number"))?);
            }
        }
        Ok(())
    }
}

/// Refuses what is no plain file.
fn refused(kind: EntryType) -> Error {
    let what = match kind {
        EntryType::Link | EntryType::Symlink | EntryType::GNULongLink => "a link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a FIFO",
        EntryType::Directory => return Error::corrupt("size: a folder with bytes of its own"),
        EntryType::GNUSparse => return Error::unsupported("a sparse file: its bytes are not in a row"),
        _ => return Error::unsupported(format!("type: {:#04x} is no plain file", kind.as_byte())),
    };
    Error::policy(format!("type: {what}, and only plain files are taken"))
}

/// Returns a name that leads nowhere but to a file below, without `./` in front.
pub(super) fn plain_name(name: &[u8]) -> Result<String> {
    let shown = || name.escape_ascii().to_string().chars().take(200).collect::<String>();
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "name: {} bytes, at most {NAME_BYTES_MAX} are taken",
            name.len()
        )));
    }
    let text =
        str::from_utf8(name).map_err(|_| Error::corrupt(format!("name: '{}' is not UTF-8", shown())))?;
    let text = text.trim_start_matches("./");
    let mut parts = text.split('/');
    if text.starts_with('/') || parts.clone().any(|part| part == "..") {
        return Err(Error::policy(format!("name: '{}' leads out of the folder", shown())));
    }
    let is_plain = |part: &str| !matches!(part, "" | ".") && !part.contains(char::is_control);
    if !parts.all(is_plain) || text.split('/').count() > NAME_PARTS_MAX {
        return Err(Error::corrupt(format!("name: '{}' is no plain one", shown())));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
