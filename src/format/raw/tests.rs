//! Raw images in memory and on disk.
use super::*;
use crate::{
    base::ErrorKind,
    format::{NoParts, Nothing},
    io::{Host, memory::MemoryFile, real::RealHost},
};

fn memory(bytes: &[u8]) -> Arc<dyn File> {
    let file = MemoryFile::new("disk.raw");
    file.write_at(HostOffset::new(0), bytes).unwrap();
    Arc::new(file)
}

const fn at(bytes: u64) -> GuestOffset {
    GuestOffset::new(bytes)
}

#[test]
fn a_file_of_1000_bytes_shows_1024_and_grows_when_they_are_written() {
    let file = memory(&[1; 1000]);
    let image = open(Arc::clone(&file), true, &NoParts).unwrap();
    assert_eq!(image.size(), 1024);
    let mut read = [9; 1024];
    image.read(at(0), &mut read, &Nothing).unwrap();
    assert!(read[..1000] == [1; 1000] && read[1000..] == [0; 24]);
    let mut map = Vec::new();
    image.map(at(0).range(1024), &mut map).unwrap();
    assert_eq!(map, [Extent::new(at(0).range(1024), State::Data { host: HostOffset::new(0) })]);
    image.write(at(1000), &[2; 24], &Nothing).unwrap();
    assert_eq!(file.bytes().unwrap(), 1024);
    let error = image.write(at(1000), &[2; 25], &Nothing).unwrap_err();
    assert_eq!(error.to_string(), "disk.raw: 25 bytes at 0x3e8 pass the disk's end at 0x400");
}

#[test]
fn holes_are_zeros_and_come_back_with_discard() {
    let folder = tempfile::tempdir().unwrap();
    let file = RealHost::new().create(&folder.path().join("disk")).unwrap();
    let image = create(file, &Creation { size: 1 << 20, ..Creation::default() }, &NoParts).unwrap();
    image.write(at(128 << 10), &vec![1; 64 << 10], &Nothing).unwrap();
    let map = || {
        let mut map = Vec::new();
        image.map(at(64 << 10).range(512 << 10), &mut map).unwrap();
        map
    };
    let zero = State::Zero { host: None };
    let expected = [
        Extent::new(at(64 << 10).range(64 << 10), zero),
        Extent::new(at(128 << 10).range(64 << 10), State::Data { host: HostOffset::new(128 << 10) }),
        Extent::new(at(192 << 10).range(384 << 10), zero),
    ];
    assert_eq!(map(), expected);
    image.zero(at(0).range(1 << 20), Kept::Nothing, &Nothing).unwrap();
    assert_eq!(map(), [Extent::new(at(64 << 10).range(512 << 10), zero)]);
}

#[test]
fn a_disk_is_made_as_asked_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::new();
    let make = |name: &str, options: &[(&str, &str)]| {
        let file = host.create(&folder.path().join(name)).unwrap();
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        create(file, &Creation { size: 1 << 20, parent: None, options }, &NoParts)
    };
    for (how, space) in [("off", 0), ("falloc", 1 << 20), ("full", 1 << 20)] {
        let image = make(how, &[("preallocation", how)]).unwrap();
        assert_eq!(image.size(), 1 << 20);
        assert!(image.data_file().allocated_bytes().unwrap() >= space, "{how}");
    }
    for options in [("preallocation", "metadata"), ("cluster_size", "65536")] {
        assert_eq!(make(options.0, &[options]).unwrap_err().kind(), ErrorKind::Invalid);
    }
    let parent = Some(ParentName::new(b"base".to_vec(), None));
    let error = create(memory(&[]), &Creation { parent, ..Creation::default() }, &NoParts).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
