//! Whole packages: what is found in them, and what is not.

use super::*;
use crate::io::memory::MemoryFile;
use tar::{Builder, Header};

const FORMAT: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

fn descriptor(files: &str, disks: &str) -> String {
    format!(
        "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'><References>{files}</References>\
         <DiskSection>{disks}</DiskSection><VirtualSystem ovf:id='vm'/></Envelope>"
    )
}

fn archive(name: &str, files: &[(&str, &[u8])]) -> Arc<dyn File> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    let file = MemoryFile::new(name);
    file.write_at(HostOffset::new(0), &builder.into_inner().unwrap()).unwrap();
    Arc::new(file)
}

fn open(files: &[(&str, &[u8])]) -> Result<Ova> {
    Ova::open(archive("vm.ova", files))
}

fn with(files: &str, disks: &str, members: &[(&str, &[u8])]) -> Ova {
    let text = descriptor(files, disks);
    let all = [&[("vm.ovf", text.as_bytes())], members].concat();
    open(&all).unwrap()
}

#[test]
fn a_disk_is_found_by_its_id_and_by_its_file() {
    let ova = with(
        "<File ovf:id='f1' ovf:href='a%20b.vmdk' ovf:size='3'/><File ovf:id='f2' ovf:href='two.vmdk'/>",
        &format!(
            "<Disk ovf:diskId='d1' ovf:fileRef='f1' ovf:capacity='1' ovf:capacityAllocationUnits='byte * 2^20' \
             ovf:format='{FORMAT}'/><Disk ovf:diskId='d2' ovf:fileRef='f2'/><Disk ovf:diskId='d3' ovf:capacity='5'/>"
        ),
        &[("a b.vmdk", b"one"), ("two.vmdk", b"2")],
    );
    assert_eq!(ova.systems(), ["vm"]);
    for name in ["d1", "a b.vmdk", "a%20b.vmdk"] {
        let disk = ova.disk(Some(name)).unwrap();
        assert_eq!((disk.id.as_str(), disk.size, disk.refusal()), ("d1", Some(1 << 20), None));
        let mut bytes = [0; 4];
        ova.window(disk.member.as_ref().unwrap()).read_at(HostOffset::new(0), &mut bytes).unwrap();
        assert_eq!(&bytes, b"one\0");
    }
    let several = ova.disk(None).unwrap_err();
    let list = "d1 (a%20b.vmdk), d2 (two.vmdk), d3 (without a file)";
    assert_eq!(
        several.to_string(),
        format!("vm.ova: has 3 disks, and which one is meant is to be said: {list}")
    );
    assert!(ova.disk(Some("d9")).unwrap_err().to_string().ends_with(list));
    assert_eq!(ova.disk(Some("d3")).unwrap().refusal().unwrap(), "has no file: it is empty at first");
}

#[test]
fn the_only_disk_with_a_file_needs_no_name() {
    let files = "<File ovf:id='f1' ovf:href='one'/>";
    let ova =
        with(files, "<Disk ovf:diskId='empty'/><Disk ovf:diskId='d1' ovf:fileRef='f1'/>", &[("one", b"1")]);
    assert_eq!(ova.disk(None).unwrap().id, "d1");
    let none = with(files, "", &[]);
    assert_eq!(none.disk(None).unwrap_err().to_string(), "vm.ova: has no disk");
    // A name that is one disk's ID and another one's file is nobody's.
    let both = "<Disk ovf:diskId='one'/><Disk ovf:diskId='d1' ovf:fileRef='f1'/>";
    assert!(with(files, both, &[]).disk(Some("one")).unwrap_err().to_string().contains("more than one disk"));
}

#[test]
fn what_cannot_be_read_where_it_lies_says_why() {
    let disk = |file: &str, more: &str| {
        let files = format!("<File ovf:id='f' ovf:href='d.vmdk' {file}/>");
        let disks = format!("<Disk ovf:diskId='d' ovf:fileRef='f' {more}/>");
        with(&files, &disks, &[("d.vmdk", b"")]).disk(None).unwrap().refusal()
    };
    assert_eq!(disk("ovf:compression='identity'", ""), None);
    assert_eq!(disk("ovf:compression='gzip'", "").unwrap(), "is compressed as a whole (gzip)");
    assert_eq!(disk("ovf:chunkSize='7'", "").unwrap(), "lies in pieces of 7 bytes each (chunkSize)");
    assert_eq!(disk("", "ovf:parentRef='base'").unwrap(), "is a delta on 'base'");
    for (href, outside) in [("http://host/d.vmdk", true), ("gone.vmdk", false)] {
        let files = format!("<File ovf:id='f' ovf:href='{href}'/>");
        let ova = with(&files, "<Disk ovf:diskId='d' ovf:fileRef='f'/>", &[("gone.vmdk.1", b"")]);
        let why = ova.disk(None).unwrap().refusal().unwrap();
        assert_eq!(
            (why, outside),
            (format!("is in '{href}', which the archive has not"), href.contains("://"))
        );
    }
}

#[test]
fn a_reference_out_of_the_archive_is_refused() {
    for href in ["../d.vmdk", "/etc/passwd", "a/../../d.vmdk"] {
        let files = format!("<File ovf:id='f' ovf:href='{href}'/>");
        let ova = with(&files, "<Disk ovf:diskId='d' ovf:fileRef='f'/>", &[]);
        let error = ova.disks().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Policy);
        let what = format!("vm.ova/vm.ovf: Disk 'd': name: '{href}' leads out of the folder");
        assert_eq!(error.to_string(), what);
    }
    // What leads out only once it is decoded is a name that nothing has.
    let files = "<File ovf:id='f' ovf:href='%2e%2e/d.vmdk'/>";
    let ova = with(files, "<Disk ovf:diskId='d' ovf:fileRef='f'/>", &[("d.vmdk", b"")]);
    assert!(ova.disk(None).unwrap().refusal().unwrap().contains("which the archive has not"));
    let dangling = with("", "<Disk ovf:diskId='d' ovf:fileRef='f'/>", &[]);
    assert!(dangling.disks().unwrap_err().to_string().contains("fileRef: there is no File 'f'"));
}

#[test]
fn a_package_without_one_descriptor_is_refused() {
    let text = descriptor("", "");
    let ovf = text.as_bytes();
    let refused = |files: &[(&str, &[u8])]| open(files).unwrap_err().to_string();
    assert_eq!(refused(&[("disk.vmdk", b"")]), "vm.ova: has no descriptor (.ovf)");
    assert!(refused(&[("a.ovf", ovf), ("b.OVF", ovf)]).contains("has 'a.ovf' and 'b.OVF'"));
    assert!(refused(&[("a.ovf", ovf), ("a.mf", b""), ("b.mf", b"")]).contains("one .mf is the most"));
    assert_eq!(refused(&[("a.ovf", b"\xff")]), "vm.ova/a.ovf: is not UTF-8");
    assert_eq!(
        refused(&[("a.ovf", ovf), ("a.mf", b"x")]),
        "vm.ova/a.mf: line 1: is not ALGORITHM(NAME)= DIGEST"
    );
    let large = vec![b' '; (1 << 20) + 1];
    assert!(refused(&[("a.ovf", &large)]).contains("vm.ova/a.ovf: has 1048577 bytes"));
    assert!(refused(&[("a.ovf", ovf), ("a.mf", &large)]).contains("vm.ova/a.mf: has 1048577 bytes"));
}

#[test]
fn an_ova_is_known_by_its_descriptor_or_by_its_name() {
    let is_one = |name: &str, first: &str| Ova::is_one(archive(name, &[(first, b"")]).as_ref()).unwrap();
    assert!(is_one("x", "vm.ovf") && is_one("x.ova", "pax") && is_one("X.OVA", "a") && is_one("x", "VM.OVF"));
    assert!(!is_one("x.tar", "a") && !is_one("ova", "a"));
    let disk = MemoryFile::new("x.ova");
    disk.write_at(HostOffset::new(0), &[0xeb; 512]).unwrap();
    assert!(!Ova::is_one(&disk).unwrap());
}
