use super::*;
use crate::{
    base::ErrorKind,
    format::{Creation, NoParts, qcow2::create},
    io::memory::MemoryFile,
};

fn image(options: &[(&str, &str)]) -> Vec<u8> {
    let file = MemoryFile::new("vm7.qcow2");
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let parent = ParentName::new(b"base".to_vec(), Some("raw".to_owned()));
    let creation = Creation { size: 64 << 20, parent: Some(parent), options };
    create::create(&file, &creation, &NoParts).unwrap();
    let mut bytes = vec![0; units::index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Header> {
    let file = MemoryFile::new("vm7.qcow2");
    file.write_at(HostOffset::new(0), bytes).unwrap();
    Header::read(&file)
}

/// Sets a field of `width` bytes and reads the header again.
fn damaged(start: &[u8], at: usize, width: usize, value: u64) -> Error {
    let mut bytes = start.to_vec();
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    read(&bytes).unwrap_err()
}

#[test]
fn a_sound_header_is_read_whole() {
    let header =
        read(&image(&[("cluster_size", "32K"), ("refcount_bits", "1"), ("extended_l2", "on")])).unwrap();
    assert_eq!(header.geometry.cluster_bytes(), 32 << 10);
    assert_eq!(header.geometry.refcounts_per_block(), 32 << 13);
    assert_eq!(header.geometry.subcluster_bytes(), 1 << 10);
    assert_eq!(header.disk_bytes, 64 << 20);
    let parent = ParentName::new(b"base".to_vec(), Some("raw".to_owned()));
    assert_eq!(header.parent(), Some(parent));
    assert!(!header.is_dirty() && !header.is_corrupt() && !header.has_data_file());
}

#[test]
fn each_bad_field_is_refused_by_name_and_offset() {
    let start = image(&[]);
    let end = start.len() as u64;
    let table = [
        ("cluster_bits (0x14) is 0", 20, 4, 0),
        ("cluster_bits (0x14) is 63", 20, 4, 63),
        ("cluster_bits (0x14) is 22", 20, 4, 22),
        ("refcount_order (0x60) is 7", 96, 4, 7),
        ("(l1_size, 0x24) takes 0x400000000 bytes", 36, 4, 1 << 31),
        ("l1_size (0x24) is 0, but a disk of", 36, 4, 0),
        ("(l1_table_offset, 0x28) starts at 0x30200", 40, 8, 0x30200),
        ("(refcount_table_offset, 0x30) starts at 0x10008", 48, 8, 0x10008),
        ("(l1_table_offset, 0x28) ends at", 40, 8, end),
        ("(refcount_table_offset, 0x30) ends at", 48, 8, end),
        ("(l1_table_offset, 0x28) starts at 0xffffffffffff0000, past 2^63", 40, 8, 0xffff_ffff_ffff_0000),
        ("(l1_table_offset, 0x28) at 0x0 overlaps the first cluster", 40, 8, 0),
        ("(refcount_table_offset, 0x30) at 0x0 overlaps the first cluster", 48, 8, 0),
        ("at 0x30000 overlaps the L1 table", 48, 8, 0x30000),
        ("refcount_table_clusters (0x38) is 0", 56, 4, 0),
        ("refcount table (0x38) takes", 56, 4, u64::from(u32::MAX)),
        ("snapshot table (0x3c) takes", 60, 4, u64::from(u32::MAX)),
        ("(snapshots_offset, 0x40) at 0x0 overlaps the first cluster", 60, 4, 3),
        ("size (0x18) is 0x8000000000000000, past 2^63", 24, 8, 1 << 63),
        ("l1_size (0x24) is 1, but a disk of 9223372036854775807", 24, 8, i64::MAX.cast_unsigned()),
        ("header_length (0x64) is 105", 100, 4, 105),
        ("header_length (0x64) is 96", 100, 4, 96),
        ("header_length (0x64) is 131072", 100, 4, 0x20000),
        ("header extension 0xe2792aca at 0x70 ends at", 116, 4, 0xffff_fff0),
        ("header extension 0x0 at 0x70 ends at", 112, 8, 2_424_352),
        ("compression_type (0x68) is 1", 104, 1, 1),
        ("backing_file_offset (0x8) is 0x20000", 8, 8, 0x20000),
        ("backing_file_offset (0x8) is 0x8", 8, 8, 8),
        ("backing_file_size (0x10) is 1024", 16, 4, 1024),
        ("raw external data, but there is no data file", 88, 8, 2),
        ("magic (0x0)", 0, 4, 0),
    ];
    for (says, at, width, value) in table {
        let error = damaged(&start, at, width, value);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("vm7.qcow2: ") && text.contains(says), "wanted '{says}', got '{text}'");
    }
}

#[test]
fn what_this_build_lacks_is_refused_by_name() {
    let start = image(&[]);
    let table = [
        ("version (0x4) is 1, not 2 or 3", 4, 4, 1),
        ("version (0x4) is 4, not 2 or 3", 4, 4, 4),
        ("encrypted with AES", 32, 4, 1),
        ("encrypted with LUKS", 32, 4, 2),
        ("crypt_method (0x20) is 3", 32, 4, 3),
        ("bit 5, bit 63", 72, 8, 1 << 63 | 1 << 5),
    ];
    for (says, at, width, value) in table {
        let error = damaged(&start, at, width, value);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(says), "wanted '{says}', got '{error}'");
    }
}

#[test]
fn an_unknown_feature_is_called_by_the_images_own_name_for_it() {
    let mut bytes = image(&[]);
    let line = bytes.windows(9).position(|w| w == b"dirty bit").unwrap() - 2;
    bytes[line..line + 2].copy_from_slice(&[0, 9]);
    bytes[line + 2..line + 12].copy_from_slice(b"warp\x1bdrive");
    bytes[72..80].copy_from_slice(&(1_u64 << 9).to_be_bytes());
    let text = read(&bytes).unwrap_err().to_string();
    assert!(text.contains("warp\\u{1b}drive (bit 9)"), "{text}");
}

#[test]
fn a_second_extension_of_one_kind_is_refused() {
    let mut header = read(&image(&[])).unwrap();
    header.extensions.push(header.extensions[0].clone());
    let mut bytes = image(&[]);
    header.lay(&mut bytes);
    assert!(read(&bytes).unwrap_err().to_string().contains("is there twice"));
}

#[test]
fn extended_entries_need_clusters_of_16_kib() {
    let error = damaged(&image(&[("cluster_size", "8K")]), 72, 8, feature::EXTENDED_L2);
    assert!(error.to_string().contains("cluster_bits (0x14) is 13, not 14 to 21"), "{error}");
}

#[test]
fn any_prefix_of_a_file_is_read_or_refused() {
    let whole = image(&[("cluster_size", "512")]);
    for end in 0..whole.len().min(2048) {
        let _ = read(&whole[..end]);
    }
    assert!(read(&whole[..71]).is_err());
}

#[test]
fn the_extensions_of_a_large_first_cluster_are_all_read() {
    let mut bytes = image(&[("cluster_size", "2M")]);
    let mut header = read(&bytes).unwrap();
    header.extensions.push(Extension { kind: 0x77, bytes: vec![5; 1 << 20] });
    header.extensions.push(Extension { kind: 0x78, bytes: vec![6; 3] });
    header.parent_name_at = HostOffset::new((2 << 20) - 4);
    header.lay(&mut bytes);
    let again = read(&bytes).unwrap();
    assert_eq!(again.extensions, header.extensions);
    assert_eq!(again.parent_name.as_deref(), Some(&b"base"[..]));
}
