//! Disks of several formats in packages, and what must not come of them.

use super::*;
use crate::{
    base::{ErrorKind, GuestOffset, HostOffset},
    disk::Disk,
    format::{Creation, NoParts, Nothing, ParentName},
    io::{faulty::SimHost, memory::MemoryFile},
};
use tar::{Builder, Header};

/// The bytes of a qcow2 image whose disk starts with `mark`.
fn qcow2(mark: &[u8], parent: Option<ParentName>) -> Vec<u8> {
    let file = Arc::new(MemoryFile::new("disk.qcow2"));
    let creation = Creation { size: 1 << 20, parent, options: Vec::new() };
    let image = format::create(Format::Qcow2, file.clone(), &creation, &NoParts).unwrap();
    image.write(GuestOffset::new(0), mark, &Nothing).unwrap();
    image.flush().unwrap();
    let mut bytes = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// A machine with an OVA of one disk.
fn host_with(uri: &str, disk: &[u8]) -> Arc<dyn Host> {
    let ovf = format!(
        "<Envelope><References><File id='f' href='disk'/></References><DiskSection>\
         <Disk diskId='d' fileRef='f' format='{uri}'/></DiskSection></Envelope>"
    );
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in [("vm.ovf", ovf.as_bytes()), ("disk", disk)] {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let host: Arc<dyn Host> = Arc::new(SimHost::new());
    let file = host.create(Path::new("/vm.ova")).unwrap();
    file.write_at(HostOffset::new(0), &builder.into_inner().unwrap()).unwrap();
    host
}

fn chain(uri: &str, disk: &[u8]) -> Result<Chain> {
    let host = host_with(uri, disk);
    let package = Package::open(&host, Path::new("/vm.ova"), &Opening::reading()).unwrap().unwrap();
    package.chain(None)
}

#[test]
fn a_disk_is_read_where_it_lies() {
    for (uri, disk, format) in [
        ("http://example/raw", [&b"hello"[..], &[0; 507]].concat(), Format::Raw),
        ("", [&b"hello"[..], &[0; 507]].concat(), Format::Raw),
        ("http://www.gnome.org/~markmc/qcow-image-format.html", qcow2(b"hello", None), Format::Qcow2),
        // oVirt calls them so.
        ("http://www.vmware.com/specifications/vmdk.html#sparse", qcow2(b"hello", None), Format::Qcow2),
    ] {
        let chain = chain(uri, &disk).unwrap();
        let mut bytes = [0; 6];
        chain.read(GuestOffset::new(0), &mut bytes).unwrap();
        assert_eq!((&bytes, chain.head().unwrap().format()), (b"hello\0", format), "{uri}");
        assert_eq!(chain.head().unwrap().path, Path::new("/vm.ova/disk"));
        assert!(!chain.is_writable());
    }
}

#[test]
fn a_raw_disk_stays_raw_whatever_its_guest_wrote() {
    let inner = qcow2(b"secret", None);
    let chain = chain("http://example/raw", &inner).unwrap();
    assert_eq!((chain.head().unwrap().format(), chain.size()), (Format::Raw, inner.len() as u64));
}

#[test]
fn a_disk_that_names_another_file_is_refused() {
    let parent = ParentName::new(b"/etc/shadow".to_vec(), Some("raw".into()));
    let error = chain("", &qcow2(b"x", Some(parent))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy);
    assert_eq!(error.to_string(), "/vm.ova/disk: names the parent '/etc/shadow': a disk in an OVA has none");
}

#[test]
fn a_disk_that_is_not_what_the_package_says_is_refused() {
    let error = chain("http://x/vmdk.html", &[7; 512]).unwrap_err();
    assert!(error.to_string().contains("calls it vmdk, and it has no such header"), "{error}");
}

#[test]
fn an_ova_is_no_disk_unless_somebody_says_so() {
    let host = host_with("", &[7; 512]);
    let path = Path::new("/vm.ova");
    let error = Chain::open(&host, path, &Opening::reading()).unwrap_err();
    assert!(error.to_string().starts_with("/vm.ova: is an OVA by its header"), "{error}");
    let stated = Opening::reading().with_format(Some(Format::Raw));
    assert!(Package::open(&host, path, &stated).unwrap().is_none());
    assert!(Chain::open(&host, path, &stated).is_ok());
}
