//! What stands around the disks of a new OVA: tar headers, the descriptor, the manifest.

use super::{DESCRIPTOR, MANIFEST, manifest::ShownDigest};
use crate::base::{Error, Result};
use quick_xml::escape::escape;
use std::path::Path;
use tar::{EntryType, Header};

/// The format of the disks: VMDK, compressed, in the order of the guest.
const FORMAT: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
/// The address of each disk on its controller: 7 is the controller's own.
const ADDRESSES: [u8; 15] = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15];
/// What else the machine has: the disks hang on the third.
const MACHINE: [&[(&str, &str)]; 3] = [
    &[
        ("AllocationUnits", "hertz * 10^6"),
        ("ElementName", "1 virtual CPU"),
        ("InstanceID", "1"),
        ("ResourceType", "3"),
        ("VirtualQuantity", "1"),
    ],
    &[
        ("AllocationUnits", "byte * 2^20"),
        ("ElementName", "1024 MB of memory"),
        ("InstanceID", "2"),
        ("ResourceType", "4"),
        ("VirtualQuantity", "1024"),
    ],
    &[
        ("Address", "0"),
        ("ElementName", "SCSI controller 0"),
        ("InstanceID", "3"),
        ("ResourceSubType", "lsilogic"),
        ("ResourceType", "6"),
    ],
];
/// Bytes in the name of a file, so that an old tar header holds it.
const NAME_BYTES_MAX: usize = 80;

/// A disk of a new OVA.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NewDisk {
    /// Its file in the archive.
    pub file: String,
    /// Bytes of that.
    pub file_bytes: u64,
    /// Size of the disk in bytes.
    pub size: u64,
    /// How much of that is not zeros, in bytes.
    pub written_bytes: u64,
}

/// The names in a new OVA, made of that of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNames(String);

impl NewNames {
    /// Returns names that any system takes, for the archive at `path`.
    pub fn of(path: &Path) -> Self {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let name: String = stem.chars().map(plain).take(NAME_BYTES_MAX).collect();
        let name = name.trim_start_matches(['.', '-']);
        Self(if name.is_empty() { "vm" } else { name }.to_owned())
    }

    /// Returns the name of the descriptor.
    pub fn descriptor(&self) -> String {
        format!("{}{DESCRIPTOR}", self.0)
    }

    /// Returns the name of the manifest.
    pub fn manifest(&self) -> String {
        format!("{}{MANIFEST}", self.0)
    }

    /// Returns the name of a disk's file, the first being 1.
    pub fn disk(&self, nth: usize) -> String {
        format!("{}-disk{nth}.vmdk", self.0)
    }

    /// Returns the descriptor's text (DSP0243 1.1.0): a machine that has the disks, and nothing else that is said of it
    /// means much.
    ///
    /// `Unsupported` for more disks than one controller has.
    pub fn describe(&self, disks: &[NewDisk]) -> Result<String> {
        if disks.len() > ADDRESSES.len() {
            let what = format!("{} disks: one OVA takes {} at most", disks.len(), ADDRESSES.len());
            return Err(Error::unsupported(what));
        }
        let (name, machine) = (escape(&self.0), MACHINE.map(item).concat());
        let each = |line: fn(usize, &NewDisk) -> String| {
            (1..).zip(disks).map(|(nth, disk)| line(nth, disk)).collect::<String>()
        };
        let (files, entries) = (each(file_line), each(disk_line));
        let items: String =
            (1..).zip(ADDRESSES).take(disks.len()).map(|(nth, address)| disk_item(nth, address)).collect();
        Ok(format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
{files}  </References>
  <DiskSection>
    <Info>The disks</Info>
{entries}  </DiskSection>
  <VirtualSystem ovf:id="{name}">
    <Info>A machine with the disks; what else it has is a guess</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="1">
      <Info>Not known</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>The least that a machine has</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
{machine}{items}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"#
        ))
    }
}

fn file_line(nth: usize, disk: &NewDisk) -> String {
    let NewDisk { file, file_bytes, .. } = disk;
    let file = escape(file);
    format!("    <File ovf:href=\"{file}\" ovf:id=\"file{nth}\" ovf:size=\"{file_bytes}\"/>\n")
}

fn disk_line(nth: usize, disk: &NewDisk) -> String {
    let NewDisk { size, written_bytes, .. } = disk;
    format!(
        "    <Disk ovf:capacity=\"{size}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"disk{nth}\" \
         ovf:fileRef=\"file{nth}\" ovf:format=\"{FORMAT}\" ovf:populatedSize=\"{written_bytes}\"/>\n"
    )
}

fn disk_item(nth: usize, address: u8) -> String {
    item(&[
        ("AddressOnParent", &address.to_string()),
        ("ElementName", &format!("Disk {nth}")),
        ("HostResource", &format!("ovf:/disk/disk{nth}")),
        ("InstanceID", &(3 + nth).to_string()),
        ("Parent", "3"),
        ("ResourceType", "17"),
    ])
}

/// Returns a piece of hardware; its properties are given in the order that the schema wants.
fn item(properties: &[(&str, &str)]) -> String {
    let lines = properties.iter().map(|(key, value)| format!("        <rasd:{key}>{value}</rasd:{key}>\n"));
    format!("      <Item>\n{}      </Item>\n", lines.collect::<String>())
}

/// Returns a manifest's line.
pub fn promise_line(file: &str, digest: &ShownDigest) -> String {
    format!("SHA256({file})= {digest}\n")
}

/// Returns the tar header of a plain file (POSIX.1-1988 ustar; a length past 8 GiB as GNU tar writes it).
pub fn tar_header(name: &str, bytes: u64) -> Result<[u8; 512]> {
    let mut header = Header::new_ustar();
    header.set_path(name).map_err(|e| Error::invalid(format!("'{name}' is no name in an archive: {e}")))?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{super::descriptor::Descriptor, *};

    fn disk(nth: usize) -> NewDisk {
        NewDisk { file: format!("vm-disk{nth}.vmdk"), file_bytes: 70_000, size: 1 << 30, written_bytes: 4096 }
    }

    #[test]
    fn names_are_made_of_what_every_system_takes() {
        let names = |path: &str| NewNames::of(Path::new(path)).disk(2);
        assert_eq!(names("/srv/web server (1).ova"), "web_server__1_-disk2.vmdk");
        assert_eq!(names("../.ova"), "ova-disk2.vmdk");
        assert_eq!(names("-.ova"), "vm-disk2.vmdk");
        assert!(names(&format!("{}.ova", "x".repeat(250))).len() <= 99);
    }

    #[test]
    fn a_descriptor_says_what_it_was_told() {
        let names = NewNames::of(Path::new("vm.ova"));
        let text = names.describe(&[disk(1), disk(2)]).unwrap();
        let read = Descriptor::parse(text.as_bytes()).unwrap();
        assert_eq!(read.systems, ["vm"]);
        let files: Vec<_> = read.files.values().map(|file| (file.href.as_str(), file.bytes)).collect();
        assert_eq!(files, [("vm-disk1.vmdk", Some(70_000)), ("vm-disk2.vmdk", Some(70_000))]);
        assert!(read.disks.iter().all(|disk| disk.size == Some(1 << 30)));
        assert!(text.contains("ovf:/disk/disk2"));
        let many: Vec<_> = (1..=16).map(disk).collect();
        assert!(names.describe(&many).is_err() && names.describe(&many[1..]).is_ok());
    }

    #[test]
    fn a_file_of_more_than_8_gib_has_a_header() {
        for bytes in [0, 1 << 33, 5 << 40] {
            let header = tar_header("vm-disk1.vmdk", bytes).unwrap();
            assert_eq!(Header::from_byte_slice(&header).entry_size().unwrap(), bytes);
        }
    }
}
