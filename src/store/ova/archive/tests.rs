//! Archives as tar programs write them, and as somebody who means harm does.

use super::*;
use crate::{base::ErrorKind, io::memory::MemoryFile};

/// One header, and what follows it.
fn entry(kind: EntryType, name: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header.set_entry_type(kind);
    header.set_size(count(bytes.len()));
    header.set_mode(0o644);
    header.set_cksum();
    let mut all = [header.as_bytes().as_slice(), bytes].concat();
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn plain(name: &str, bytes: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name.as_bytes(), bytes)
}

fn file_of(parts: &[Vec<u8>]) -> MemoryFile {
    let file = MemoryFile::new("vm.ova");
    file.write_at(HostOffset::new(0), &parts.concat()).unwrap();
    file
}

fn found(parts: &[Vec<u8>]) -> Result<Vec<(String, u64, u64)>> {
    let members = members(&file_of(parts))?;
    Ok(members.into_iter().map(|m| (m.name, m.range.start.bytes(), m.range.bytes)).collect())
}

fn refused(parts: &[Vec<u8>]) -> (ErrorKind, String) {
    let error = found(parts).unwrap_err();
    (error.kind(), error.to_string())
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap()
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

#[test]
fn files_are_found_where_they_lie() {
    let parts = [plain("vm.ovf", b"<x/>"), plain("./a/disk.vmdk", &[7; 700]), plain("empty", b""), end()];
    let all = [("vm.ovf".into(), 512, 4), ("a/disk.vmdk".into(), 1536, 700), ("empty".into(), 3072, 0)];
    assert_eq!(found(&parts).unwrap(), all);
    // Many a writer leaves out what marks the end, or fills a record up.
    assert_eq!(found(&parts[..3]).unwrap(), all);
    let filled = [parts.concat(), vec![0; 9000]];
    assert_eq!(found(&filled).unwrap(), all);
    assert_eq!(found(&[]).unwrap(), []);
}

#[test]
fn folders_are_passed_over() {
    let folders = [entry(EntryType::Directory, b"./", b""), entry(EntryType::Directory, b"vm/", b"")];
    let parts = [folders.concat(), plain("vm/vm.ovf", b"x"), end()];
    assert_eq!(found(&parts).unwrap(), [("vm/vm.ovf".into(), 1536, 1)]);
}

#[test]
fn long_names_and_sizes_are_read_as_gnu_and_posix_write_them() {
    let long = format!("{}.vmdk", "x".repeat(200));
    let gnu = entry(EntryType::GNULongName, b"././@LongLink", format!("{long}\0").as_bytes());
    let parts = [gnu, plain("xxx", b"12"), plain("vm.ovf", b"3"), end()];
    assert_eq!(found(&parts).unwrap(), [(long.clone(), 1536, 2), ("vm.ovf".into(), 2560, 1)]);
    // The size of the next file stands here, as it does where it has more digits than a header.
    let records = format!("215 path={long}\n9 size=2\n");
    let mut lying = Header::new_ustar();
    lying.set_path("short").unwrap();
    lying.set_size(0);
    lying.set_cksum();
    let pax = [entry(EntryType::XHeader, b"PaxHeaders/0", records.as_bytes()), lying.as_bytes().to_vec()];
    let parts = [pax.concat(), vec![5; 512], plain("vm.ovf", b"3"), end()];
    assert_eq!(found(&parts).unwrap(), [(long, 1536, 2), ("vm.ovf".into(), 2560, 1)]);
    let comment = entry(EntryType::XGlobalHeader, b"pax_global_header", b"16 comment=1234\n");
    assert_eq!(found(&[comment, plain("vm.ovf", b"")]).unwrap().len(), 1);
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "/etc/passwd", "a/../../x", "..", "./../x", ".//etc/passwd"] {
        let (kind, what) = refused(&[plain("vm.ovf", b""), plain(name, b"")]);
        assert_eq!(kind, ErrorKind::Policy, "{what}");
        assert!(
            what.starts_with("tar header at 0x200: name: '") && what.ends_with("leads out of the folder"),
            "{what}"
        );
    }
    for name in [
        &b"a//b"[..],
        b"a/./b",
        b"a\nb",
        b"a\x1b[2J",
        b"",
        b"dir/",
        b"\xff.vmdk",
        b"1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17",
    ] {
        let (kind, what) = refused(&[entry(EntryType::Regular, name, b"")]);
        assert_eq!(kind, ErrorKind::Corrupt, "{what}");
        assert!(what.starts_with("tar header at 0x0: name: '"), "{what}");
    }
    let long = entry(EntryType::GNULongName, b"l", &[b'x'; 1025]);
    assert!(refused(&[long, plain("x", b"")]).1.contains("name: 1025 bytes"));
}

#[test]
fn only_plain_files_are_taken() {
    for (kind, refusal, word) in [
        (EntryType::Symlink, ErrorKind::Policy, "a link"),
        (EntryType::Link, ErrorKind::Policy, "a link"),
        (EntryType::GNULongLink, ErrorKind::Policy, "a link"),
        (EntryType::Char, ErrorKind::Policy, "a device"),
        (EntryType::Block, ErrorKind::Policy, "a device"),
        (EntryType::Fifo, ErrorKind::Policy, "a FIFO"),
        (EntryType::GNUSparse, ErrorKind::Unsupported, "a sparse file"),
        (EntryType::new(b'V'), ErrorKind::Unsupported, "type: 0x56"),
    ] {
        let (found, what) = refused(&[entry(kind, b"disk.vmdk", b"")]);
        assert_eq!(found, refusal, "{what}");
        assert!(what.starts_with("tar header at 0x0: ") && what.contains(word), "{what}");
    }
    let pax = entry(EntryType::XHeader, b"x", b"22 GNU.sparse.major=1\n");
    assert!(refused(&[pax, plain("disk", b"")]).1.contains("a sparse file"));
}

#[test]
fn two_files_of_one_name_are_refused() {
    let (kind, what) = refused(&[plain("vm.ovf", b"1"), plain("./vm.ovf", b"2")]);
    assert_eq!(
        (kind, what.as_str()),
        (ErrorKind::Corrupt, "tar header at 0x400: name: 'vm.ovf' is there already")
    );
}

#[test]
fn what_has_no_bound_is_refused() {
    let claimed = |bytes: u64| {
        let mut header = Header::new_ustar();
        header.set_path("disk").unwrap();
        header.set_size(bytes);
        header.set_cksum();
        vec![header.as_bytes().to_vec(), vec![0; 512]]
    };
    for bytes in [513, 1 << 33, u64::MAX, u64::MAX - 511] {
        let what = refused(&claimed(bytes)).1;
        assert_eq!(what, format!("tar header at 0x0: size: {bytes} bytes, and the file ends after 512"));
    }
    let folders = entry(EntryType::Directory, b"d/", b"").repeat(4097);
    assert!(refused(&[folders]).1.contains("more than 4096 tar headers"));
    let talk = entry(EntryType::XHeader, b"x", "1".repeat(65537).as_bytes());
    assert!(refused(&[talk]).1.contains("65537 bytes about the next file"));
    for pax in [&b"9 size=x\n"[..], b"nonsense\n", b"999 path=x\n"] {
        let what = refused(&[entry(EntryType::XHeader, b"x", pax), plain("x", b"")]).1;
        assert!(what.starts_with("tar header at 0x0: pax record: "), "{what}");
    }
    let all = entry(EntryType::XGlobalHeader, b"x", b"9 size=4\n");
    assert!(refused(&[all]).1.contains("one name or size for all files"));
}

#[test]
fn damage_is_told_by_where_it_is() {
    let mut damaged = [plain("vm.ovf", b"x"), plain("disk", b"y")].concat();
    damaged[1024 + 5] ^= 1;
    assert_eq!(refused(&[damaged]).1, "tar header at 0x400: its checksum is wrong");
    assert_eq!(
        refused(&[plain("vm.ovf", b""), vec![1; 100]]).1,
        "tar header at 0x200: the file ends 100 bytes into it"
    );
    let mut header = Header::new_ustar();
    header.set_path("disk").unwrap();
    header.as_old_mut().size = *b"12345678901z";
    header.set_cksum();
    assert_eq!(refused(&[header.as_bytes().to_vec()]).1, "tar header at 0x0: size: is no number");
}

#[test]
fn an_archive_is_known_by_its_first_header() {
    assert_eq!(first_name(&file_of(&[plain("vm.ovf", b"")])).unwrap().as_deref(), Some(&b"vm.ovf"[..]));
    for other in
        [vec![], vec![0; 512], vec![b'x'; 512], b"QFI\xfb".to_vec(), plain("vm.ovf", b"")[..150].to_vec()]
    {
        assert_eq!(first_name(&file_of(&[other])).unwrap(), None);
    }
}
