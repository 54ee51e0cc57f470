//! What stands beside the disks of a virtual machine that `VMware` made: its configuration (`.vmx`) and the list of its
//! snapshots (`.vmsd`), which name disks.
//!
//! Both are lines of `key = "value"`; in a value `|22` stands for the byte 0x22. They are a stranger's text: what they name
//! is looked for under the caller's policy.

use crate::{
    base::{Error, HostOffset, Result, error::InFile, name, units::index},
    io::{Access, File, Host},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Nobody writes longer ones.
const BYTES_MAX: u64 = 4 << 20;

/// What a disk's key begins with.
const BUSES: [&str; 4] = ["scsi", "sata", "ide", "nvme"];

/// The value of a name that stands for no file.
const NO_FILE: &str = "auto detect";

/// Returns whether a file is one of these, by its name.
pub fn is_one(path: &Path) -> bool {
    let suffix = path.extension().unwrap_or_default();
    ["vmx", "vmsd"].iter().any(|known| suffix.eq_ignore_ascii_case(known))
}

/// Returns the names of the disks in such a file, each once, in its order: as they stand there, so that they may be relative
/// to its folder, and lead anywhere.
///
/// `Corrupt`, with the byte, for what is no such text; `Unsupported` for one that says that it is not UTF-8, and is not.
pub fn disks(host: &dyn Host, path: &Path) -> Result<Vec<PathBuf>> {
    let file = host.open(path, Access::ReadShared)?;
    read(file.as_ref()).and_then(|bytes| parse(&bytes)).in_file(path)
}

fn read(file: &dyn File) -> Result<Vec<u8>> {
    let length = file.bytes()?;
    if length > BYTES_MAX {
        return Err(Error::corrupt(format!("has {length} bytes: nobody writes more than {BYTES_MAX} there")));
    }
    let mut bytes = vec![0; index(length)];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<PathBuf>> {
    let text = match str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) if is_windows_1252(bytes) => Cow::Owned(name::from_windows_1252(bytes)),
        Err(e) => {
            let what = format!("byte {}: is not UTF-8: save it as that first", e.valid_up_to());
            return Err(Error::unsupported(what));
        }
    };
    let is_decoded = matches!(text, Cow::Owned(_));
    let text = text.trim_start_matches('\u{feff}');
    let mut entries = Vec::new();
    for (nth, line) in text.lines().enumerate() {
        entries.extend(entry(line).map_err(|e| e.doing(format!("line {}", nth + 1)))?);
    }
    let by_key: BTreeMap<&str, &str> =
        entries.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let value = |key: &str| by_key.get(key).copied();
    let is_foreign = |name: &&str| !name.eq_ignore_ascii_case("utf-8") && !text.is_ascii() && !is_decoded;
    let encoding = value(".encoding").filter(is_foreign);
    if let Some(name) = encoding {
        let what = format!(".encoding: is '{}', and UTF-8 alone is read", name.escape_debug());
        return Err(Error::unsupported(what));
    }
    let mut named = BTreeSet::new();
    let mut is_new_disk = |(key, name): &&(String, String)| {
        let device = key.strip_suffix(".filename");
        device.is_some_and(|device| is_disk(device, &value))
            && !name.is_empty()
            && name != NO_FILE
            && named.insert(name.clone())
    };
    Ok(entries.iter().filter(|entry| is_new_disk(entry)).map(|(_, name)| PathBuf::from(name)).collect())
}

/// Returns whether a text says that it is in windows-1252.
fn is_windows_1252(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let mut entries = text.lines().filter_map(|line| entry(line).ok()?);
    entries.any(|(key, value)| key == ".encoding" && value.eq_ignore_ascii_case("windows-1252"))
}

/// Returns a line's key, in small letters as keys are compared, and its value; `None` if it has none.
fn entry(line: &str) -> Result<Option<(String, String)>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (key, value) = line.split_once('=').ok_or_else(|| Error::corrupt("is no `key = \"value\"`"))?;
    let value = value.trim();
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    Ok(Some((key.trim().to_ascii_lowercase(), unescaped(bare)?)))
}

fn unescaped(value: &str) -> Result<String> {
    let mut parts = value.split('|');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let code = code
            .filter(|code| *code != 0)
            .ok_or_else(|| Error::corrupt("a value with '|', behind which no two digits of a byte follow"))?;
        bytes.push(code);
        bytes.extend(part.as_bytes().iter().skip(2));
    }
    String::from_utf8(bytes).map_err(|_| Error::corrupt("a value that is not UTF-8"))
}

/// Returns whether `device` is a disk: one of a snapshot, or one on a bus that is there and is said to be nothing else.
fn is_disk<'a>(device: &str, value: &impl Fn(&str) -> Option<&'a str>) -> bool {
    if let Some((snapshot, disk)) = device.split_once('.') {
        let is_nth = |text: &str, what: &str| text.strip_prefix(what).is_some_and(is_number);
        return is_nth(snapshot, "snapshot") && is_nth(disk, "disk");
    }
    let place = BUSES.iter().find_map(|bus| device.strip_prefix(bus));
    let is_place = place.and_then(|p| p.split_once(':')).is_some_and(|(a, b)| is_number(a) && is_number(b));
    let is_there = value(&format!("{device}.present")).is_none_or(|said| !said.eq_ignore_ascii_case("false"));
    let kind = value(&format!("{device}.devicetype")).map(str::to_ascii_lowercase);
    is_place && is_there && kind.is_none_or(|kind| kind.contains("disk"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    fn names(text: &str) -> Vec<String> {
        parse(text.as_bytes()).unwrap().into_iter().map(|name| name.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_disks_of_a_machine_are_found_and_its_other_devices_are_not() {
        let text = "\u{feff}#!/usr/bin/vmware\r\n.encoding = \"UTF-8\"\r\n\r\nscsi0.present = \"TRUE\"\r\n\
            scsi0:0.present = \"TRUE\"\r\nscsi0:0.fileName = \"vm-000002.vmdk\"\r\nscsi0:0.deviceType = \"scsi-hardDisk\"\r\n\
            ide1:0.fileName = \"debian.iso\"\nide1:0.deviceType = \"cdrom-image\"\nSATA0:1.FileName = \"tür |22a|22.vmdk\"\n\
            scsi0:1.present = \"FALSE\"\nscsi0:1.fileName = \"gone.vmdk\"\nide0:0.fileName = \"auto detect\"\n\
            floppy0.fileName = \"floppy.img\"\nserial0.fileName = \"log\"\nnvme0:0.fileName = vm-000002.vmdk\n\
            ethernet0.fileName = \"x\"\nscsi0:x.fileName = \"x\"\nide0:1.fileName = \"\"";
        assert_eq!(names(text), ["vm-000002.vmdk", "tür \"a\".vmdk"]);
    }

    #[test]
    fn the_disks_of_snapshots_are_found_each_once() {
        let text = ".encoding = \"UTF-8\"\nsnapshot.numSnapshots = \"2\"\nsnapshot0.filename = \"vm-Snapshot1.vmsn\"\n\
            snapshot0.disk0.fileName = \"vm.vmdk\"\nsnapshot0.disk0.node = \"scsi0:0\"\nsnapshot1.disk0.fileName = \"vm-000001.vmdk\"\n\
            snapshot1.disk1.fileName = \"/vmfs/volumes/ds/data.vmdk\"\nsnapshot2.disk0.fileName = \"vm.vmdk\"";
        assert_eq!(names(text), ["vm.vmdk", "vm-000001.vmdk", "/vmfs/volumes/ds/data.vmdk"]);
    }

    #[test]
    fn what_is_no_such_text_is_refused_by_its_place() {
        let said = |bytes: &[u8]| {
            let error = parse(bytes).unwrap_err();
            (error.kind(), error.to_string())
        };
        let (kind, what) = said(b"a = \"b\"\nnonsense\n");
        assert!(kind == ErrorKind::Corrupt && what.contains("line 2"), "{what}");
        let (kind, what) = said(b"scsi0:0.fileName = \"x|2\"");
        assert!(kind == ErrorKind::Corrupt && what.contains("line 1"), "{what}");
        assert_eq!(said(b"a = \"|00\"").0, ErrorKind::Corrupt);
        let (kind, what) = said(b"a = \"\xe4\"");
        assert!(kind == ErrorKind::Unsupported && what.contains("byte 5"), "{what}");
        let (kind, what) = said(".encoding = \"windows-1252\"\na = \"ä\"".as_bytes());
        assert!(kind == ErrorKind::Unsupported && what.contains("windows-1252"), "{what}");
        let text = b".encoding = \"windows-1252\"\r\nscsi0:0.fileName = \"B\xfcro \x80.vmdk\"\r\n";
        assert_eq!(parse(text).unwrap(), [PathBuf::from("Büro €.vmdk")]);
        // Nothing in it looks different in UTF-8.
        assert_eq!(names(".encoding = \"windows-1252\"\nscsi0:0.fileName = \"a.vmdk\""), ["a.vmdk"]);
    }
}
