//! The OVF descriptor (DSP0243 2.1.1, sections 7.1 and 9.1): which files a package has, and which disks are in them.
//!
//! The text is a stranger's. A document type is refused, so that there is no entity but XML's own five; depth, attributes and
//! entries are bounded. Of an attribute's prefix only that is asked that it is the element's own, `ovf`, or none.

use crate::base::{Error, Result};
use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};
use std::collections::BTreeMap;

/// Elements within each other.
const DEPTH_MAX: usize = 64;
/// Attributes of an element that is looked at.
const ATTRIBUTES_MAX: usize = 64;
/// Files.
const FILES_MAX: usize = 1024;
/// Disks: each is opened when they are listed. Virtual machines.
const DISKS_MAX: usize = 256;
/// Bytes in a value, as one that is a name.
const VALUE_BYTES_MAX: usize = 1024;

/// What the descriptor says of a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// The files, by what disks call them.
    pub(super) files: BTreeMap<String, FileEntry>,
    /// The disks, in their order.
    pub(super) disks: Vec<DiskEntry>,
    /// What the virtual machines are called.
    pub(super) systems: Vec<String>,
}

/// A file of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileEntry {
    /// Its name, or an address.
    pub(super) href: String,
    /// How many bytes it has, as far as that is said.
    pub(super) bytes: Option<u64>,
    /// How the whole of it is compressed.
    pub(super) compression: Option<String>,
    /// How many bytes each of its pieces has, if it lies in several.
    pub(super) chunk: Option<String>,
}

/// A disk of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskEntry {
    pub(super) id: String,
    /// The file that has its bytes; none of a disk that is empty at first.
    pub(super) file: Option<String>,
    /// Its size, as it is written.
    pub(super) capacity: Option<String>,
    /// Its size in bytes, where that is a number in known units.
    pub(super) size: Option<u64>,
    /// What the format is, by a URI.
    pub(super) format: Option<String>,
    /// The disk that it is a delta on.
    pub(super) parent: Option<String>,
}

impl Descriptor {
    /// Reads a descriptor's text; errors name the place.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let text = str::from_utf8(bytes).map_err(|_| Error::corrupt("is not UTF-8"))?;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        let (mut found, mut path, mut has_root) = (Self::default(), Vec::new(), false);
        loop {
            let at = reader.buffer_position();
            let wrong = |e: Error| e.doing(format!("byte {at}"));
            match reader.read_event() {
                Err(e) => return Err(wrong(Error::corrupt(format!("is no XML: {e}")))),
                Ok(Event::DocType(_)) => {
                    return Err(wrong(Error::policy("has a document type, and entities are not expanded")));
                }
                Ok(Event::Start(element)) => {
                    path.push(local_name(&element));
                    if path.len() > DEPTH_MAX {
                        let what = format!("more than {DEPTH_MAX} elements within each other");
                        return Err(wrong(Error::corrupt(what)));
                    }
                    has_root = true;
                    found.take_in(&path, &element).map_err(wrong)?;
                }
                Ok(Event::Empty(element)) => {
                    path.push(local_name(&element));
                    found.take_in(&path, &element).map_err(wrong)?;
                    path.pop();
                }
                // That it is the right one, the reader has seen to.
                Ok(Event::End(_)) => drop(path.pop()),
                Ok(Event::Eof) if path.is_empty() && has_root => return Ok(found),
                Ok(Event::Eof) if !has_root => return Err(wrong(Error::corrupt("has no Envelope"))),
                Ok(Event::Eof) => return Err(wrong(Error::corrupt("ends within an element"))),
                Ok(_) => {}
            }
        }
    }

    fn take_in(&mut self, path: &[String], element: &BytesStart<'_>) -> Result<()> {
        let (last, above) = path.split_last().ok_or_else(|| Error::corrupt("an element without a name"))?;
        let above: Vec<&str> = above.iter().map(String::as_str).collect();
        match (above.as_slice(), last.as_str()) {
            ([], "Envelope") => Ok(()),
            ([], _) => Err(Error::corrupt("is no OVF descriptor: it does not begin with an Envelope")),
            (["Envelope", "References"], "File") => self.take_in_file(&Attributes::of(element)?),
            // OVF 0.9 and oVirt call all sections so.
            (["Envelope", "DiskSection" | "Section"], "Disk") => self.take_in_disk(&Attributes::of(element)?),
            (["Envelope"] | ["Envelope", "VirtualSystemCollection"], "VirtualSystem")
                if self.systems.len() < DISKS_MAX =>
            {
                self.systems.extend(Attributes::of(element)?.get("id"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_in_file(&mut self, said: &Attributes) -> Result<()> {
        let id = said.want("id")?;
        let wrong = |what: &str| Error::corrupt(format!("File '{id}': {what}"));
        let bytes = said.get("size").map(|text| text.parse().map_err(|_| wrong("size is no number")));
        let file = FileEntry {
            href: said.want("href")?,
            bytes: bytes.transpose()?,
            // What is neither is as it is.
            compression: said.get("compression").filter(|how| !matches!(how.as_str(), "" | "identity")),
            chunk: said.get("chunkSize"),
        };
        if self.files.len() >= FILES_MAX {
            return Err(Error::corrupt(format!("more than {FILES_MAX} files")));
        }
        if self.files.contains_key(&id) {
            return Err(wrong("another one has the same id"));
        }
        self.files.insert(id, file);
        Ok(())
    }

    fn take_in_disk(&mut self, said: &Attributes) -> Result<()> {
        let id = said.want("diskId")?;
        if self.disks.len() >= DISKS_MAX {
            return Err(Error::corrupt(format!("more than {DISKS_MAX} disks")));
        }
        if self.disks.iter().any(|disk| disk.id == id) {
            return Err(Error::corrupt(format!("Disk '{id}': another one has the same diskId")));
        }
        let (number, units) = (said.get("capacity"), said.get("capacityAllocationUnits"));
        let size = number.as_ref().and_then(|number| size_of(number, units.as_deref().unwrap_or("byte")));
        let capacity =
            number.map(|number| [Some(number), units].into_iter().flatten().collect::<Vec<_>>().join(" x "));
        // oVirt calls all its disks VMDK there, and says what they are in an attribute of its own.
        let format = said.get("volume-format").or_else(|| said.get("format"));
        let (file, parent) = (said.get("fileRef"), said.get("parentRef"));
        self.disks.push(DiskEntry { id, file, capacity, size, format, parent });
        Ok(())
    }
}

fn local_name(element: &BytesStart<'_>) -> String {
    element.local_name().as_ref().to_owned()
}

/// An element's attributes that are OVF's own.
struct Attributes {
    element: String,
    values: BTreeMap<String, String>,
}

impl Attributes {
    fn of(element: &BytesStart<'_>) -> Result<Self> {
        let (name, own) = (local_name(element), element.name());
        let own = own.prefix();
        let mut values = BTreeMap::new();
        for (nth, attribute) in element.attributes().enumerate() {
            let wrong = |what: &str| Error::corrupt(format!("{name}: {what}"));
            let attribute = attribute.map_err(|e| wrong(&e.to_string()))?;
            if nth >= ATTRIBUTES_MAX {
                return Err(wrong(&format!("more than {ATTRIBUTES_MAX} attributes")));
            }
            let prefix = attribute.key.prefix();
            if prefix.is_some_and(|prefix| prefix.as_ref() != "ovf" && Some(prefix) != own) {
                continue;
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            let value = value.map_err(|e| wrong(&e.to_string()))?.into_owned();
            let key = attribute.key.local_name().as_ref().to_owned();
            if value.len() > VALUE_BYTES_MAX {
                return Err(wrong(&format!(
                    "{key}: {} bytes, at most {VALUE_BYTES_MAX} are taken",
                    value.len()
                )));
            }
            if values.insert(key.clone(), value).is_some() {
                return Err(wrong(&format!("{key} is said twice")));
            }
        }
        Ok(Self { element: name, values })
    }

    fn get(&self, key: &str) -> Option<String> {
        self.values.get(key).cloned()
    }

    fn want(&self, key: &str) -> Result<String> {
        self.get(key).ok_or_else(|| Error::corrupt(format!("{} without {key}", self.element)))
    }
}

/// Returns a size in bytes: a number, and units as DSP0004 writes them (`byte * 2^30`), or as OVF 0.9 did (`GigaBytes`).
/// `None` for what is neither, as a property that is filled in later.
fn size_of(number: &str, units: &str) -> Option<u64> {
    let number: u64 = number.trim().parse().ok()?;
    let units = units.to_ascii_lowercase();
    let mut factors = units.split('*').map(str::trim);
    let base: u64 = match factors.next()? {
        "byte" | "bytes" => 1,
        "kilobytes" => 1 << 10,
        "megabytes" => 1 << 20,
        "gigabytes" => 1 << 30,
        "terabytes" => 1 << 40,
        _ => return None,
    };
    let factor = |text: &str| match text.split_once('^') {
        Some((base, power)) => base.trim().parse::<u64>().ok()?.checked_pow(power.trim().parse().ok()?),
        None => text.parse().ok(),
    };
    factors.try_fold(number.checked_mul(base)?, |size, text| size.checked_mul(factor(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Descriptor::parse(text.as_bytes()).unwrap_err().to_string()
    }

    /// A descriptor around what is said of files and disks.
    fn around(files: &str, disks: &str) -> String {
        format!(
            "<?xml version='1.0'?><Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1' \
             xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'><References>{files}</References>\
             <DiskSection><Info>Disks</Info>{disks}</DiskSection></Envelope>"
        )
    }

    #[test]
    fn files_and_disks_are_found_whatever_the_prefix() {
        let text = around(
            "<File ovf:id='f1' ovf:href='a &amp; b.vmdk' ovf:size='77' ovf:compression='gzip' vmw:size='x'/>",
            "<Disk ovf:diskId='d1' ovf:fileRef='f1' ovf:capacity='8' ovf:capacityAllocationUnits='byte * 2^30' \
             ovf:format='http://x/vmdk.html#streamOptimized'/>",
        );
        let found = Descriptor::parse(text.as_bytes()).unwrap();
        let file = found.files.get("f1").unwrap();
        assert_eq!(
            (file.href.as_str(), file.bytes, file.compression.as_deref()),
            ("a & b.vmdk", Some(77), Some("gzip"))
        );
        let disk = &found.disks[0];
        assert_eq!((disk.id.as_str(), disk.file.as_deref(), disk.size), ("d1", Some("f1"), Some(8 << 30)));
        assert_eq!(disk.capacity.as_deref(), Some("8 x byte * 2^30"));
        let other =
            text.replace("ovf:", "ns0:").replace("<File", "<ns0:File").replace("<Disk ", "<ns0:Disk ");
        assert_eq!(Descriptor::parse(other.as_bytes()).unwrap(), found);
        let none = text.replace(" ovf:", " ");
        assert_eq!(Descriptor::parse(none.as_bytes()).unwrap(), found);
    }

    #[test]
    fn a_size_is_a_number_in_known_units() {
        for (number, units, size) in [
            ("8589934592", "byte", Some(8 << 30)),
            ("8", "byte*2^30", Some(8 << 30)),
            ("3", "byte * 10^9 * 2", Some(6_000_000_000)),
            ("20", "GigaBytes", Some(20 << 30)),
            ("${size}", "byte", None),
            ("8", "bit * 2^30", None),
            ("-8", "byte", None),
            ("8", "byte * 2^64", None),
            ("18446744073709551615", "byte * 2", None),
            ("1", "byte * 2^4294967296", None),
        ] {
            assert_eq!(size_of(number, units), size, "{number} {units}");
        }
    }

    #[test]
    fn bombs_are_refused_before_they_go_off() {
        let entities = "<!DOCTYPE lolz [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;'>]><Envelope>&b;</Envelope>";
        assert!(refused(entities).contains("has a document type"));
        let file = "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><Envelope/>";
        assert!(refused(file).contains("has a document type"));
        // Without a type there is nothing that an entity could stand for.
        assert!(refused(&around("<File ovf:id='&lol;' ovf:href='a'/>", "")).contains("File: "));
        assert!(refused(&"<Envelope>".repeat(100_000)).contains("more than 64 elements"));
        let many: Vec<_> = (0..1025).map(|n| format!("<File ovf:id='{n}' ovf:href='a'/>")).collect();
        assert!(refused(&around(&many.concat(), "")).contains("more than 1024 files"));
        let wide: Vec<_> = (0..60_000).map(|n| format!(" a{n}=''")).collect();
        let wide = wide.concat();
        assert!(refused(&around(&format!("<File{wide}/>"), "")).contains("more than 64 attributes"));
        let long = format!("<File ovf:id='{}' ovf:href='a'/>", "x".repeat(1025));
        assert!(refused(&around(&long, "")).contains("1025 bytes"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_element() {
        for (text, what) in [
            (around("<File ovf:href='a'/>", ""), "File without id"),
            (around("<File ovf:id='a'/>", ""), "File without href"),
            (around("<File ovf:id='a' ovf:href='a' ovf:size='-1'/>", ""), "File 'a': size is no number"),
            (around(&"<File ovf:id='a' ovf:href='a'/>".repeat(2), ""), "File 'a': another one"),
            (around("<File ovf:id='a' id='b' ovf:href='a'/>", ""), "File: id is said twice"),
            (around("", &"<Disk ovf:diskId='d'/>".repeat(2)), "Disk 'd': another one"),
            ("<Envelope>".to_owned(), "ends within an element"),
            ("<Envelope></Other>".to_owned(), "is no XML"),
            ("<html/>".to_owned(), "is no OVF descriptor"),
            (String::new(), "has no Envelope"),
        ] {
            assert!(refused(&text).contains(what), "{}", refused(&text));
        }
        assert_eq!(Descriptor::parse(b"\xff\xfe").unwrap_err().to_string(), "is not UTF-8");
    }
}
