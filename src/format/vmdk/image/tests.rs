//! Disks in pieces; identities and links; what is refused.

use super::super::{create, open, peek};
use super::*;
use crate::{
    base::{ErrorKind, units::index},
    format::{
        self, Checked, Creation, NoParts, Nothing, Parts, Repair,
        conformance::{Beside, named, noise, told},
    },
    io::{
        Access, Host,
        faulty::{SimHost, crash_states},
        memory::MemoryFile,
    },
    map::State as Shown,
};
use std::path::Path;

fn sized(size: u64, options: &[(&str, &str)]) -> Creation {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Creation { size, parent: None, options }
}

fn check(file: &Arc<MemoryFile>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    let file: Arc<dyn File> = file.clone();
    super::super::check(&file, repair, parts)
}

#[test]
fn a_disk_in_pieces_is_one_disk() {
    let parts = Beside::default();
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let cut = 2047 << 20;
    let creation = sized(cut + (1 << 20), &[("subformat", "twoGbMaxExtentSparse")]);
    let image = create(file.clone(), &creation, &parts).unwrap();
    let bytes = noise(1, 300_000);
    image.write(GuestOffset::new(cut - 150_000), &bytes, &Nothing).unwrap();
    image.flush().unwrap();
    let names: Vec<_> = parts.0.lock().keys().cloned().collect();
    assert_eq!(names, [b"disk-s001.vmdk".to_vec(), b"disk-s002.vmdk".to_vec()]);
    let again = open(file.clone(), false, &parts).unwrap();
    let mut found = vec![0; bytes.len()];
    again.read(GuestOffset::new(cut - 150_000), &mut found, &Nothing).unwrap();
    assert!(found == bytes && again.size() == creation.size);
    let mut extents = Vec::new();
    again.map(GuestOffset::new(0).range(creation.size), &mut extents).unwrap();
    // Runs in different files never join.
    let hosts = extents.iter().filter(|extent| matches!(extent.state, Shown::Data { .. }));
    assert_eq!(hosts.count(), 2);
    assert_eq!(check(&file, Repair::Nothing, &parts).unwrap().leaks, 0);
    // A piece that is too short, and one that is not there.
    parts.0.lock().remove(b"disk-s002.vmdk".as_slice());
    let error = open(file, false, &parts).unwrap_err();
    assert!(error.to_string().contains("disk-s002.vmdk: is named as a sparse extent"), "{error}");
}

#[test]
fn an_identity_changes_once_and_a_record_counts_until_a_stranger_comes() {
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(1 << 20, &[]), &NoParts).unwrap();
    let first = image.identity().unwrap();
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    // Nobody has seen it: it stays.
    assert_eq!(image.identity(), Some(first));
    assert!(image.set_record(Some(&noise(3, 400))).unwrap());
    image.flush().unwrap();
    let image = open(file.clone(), true, &NoParts).unwrap();
    let record = |image: &Arc<dyn Image>| image.record().unwrap().unwrap();
    assert_eq!((record(&image).bytes, record(&image).is_untouched), (noise(3, 400), true));
    image.write(GuestOffset::new(512), &[2; 512], &Nothing).unwrap();
    let second = image.identity().unwrap();
    image.write(GuestOffset::new(1024), &[2; 512], &Nothing).unwrap();
    assert!(second != first && image.identity() == Some(second) && record(&image).is_untouched);
    image.flush().unwrap();
    // As qemu writes one: without leading zeros.
    let mut text = vec![0; 512];
    file.read_at(HostOffset::new(512), &mut text).unwrap();
    let at = text.windows(5).position(|part| part == b"\nCID=").unwrap() + 5;
    let stranger = [&text[..at], b"1234567\n", &text[at + 9..], b"\n"].concat();
    let shorter: Vec<u8> = stranger.into_iter().take(512).collect();
    file.write_at(HostOffset::new(512), &shorter).unwrap();
    let image = open(file.clone(), true, &NoParts).unwrap();
    assert_eq!(image.identity(), Some(Identity::Cid(0x0123_4567)));
    assert!(!record(&image).is_untouched);
    image.zero(GuestOffset::new(0).range(512), Kept::Space, &Nothing).unwrap();
    assert_ne!(image.identity(), Some(Identity::Cid(0x0123_4567)));
    assert!(!record(&image).is_untouched);
    assert!(image.set_record(None).unwrap() && image.record().unwrap().is_none());
    // What is not written says what it said.
    let image = open(file, false, &NoParts).unwrap();
    assert!(!image.set_record(Some(b"x")).unwrap());
}

#[test]
fn a_record_without_room_changes_nothing_and_an_older_one_counts_until_it_is_voided() {
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(1 << 20, &[]), &NoParts).unwrap();
    assert!(image.set_record(Some(b"record")).unwrap());
    assert!(!image.set_record(Some(&noise(5, 20_000))).unwrap(), "more than the descriptor has room for");
    image.flush().unwrap();
    let stored = |is_untouched| StoredRecord { bytes: b"record".to_vec(), is_untouched };
    let reader = open(file.clone(), false, &NoParts).unwrap();
    reader.void_record().unwrap();
    assert_eq!(reader.record().unwrap(), Some(stored(true)));
    image.void_record().unwrap();
    image.flush().unwrap();
    let image = open(file.clone(), true, &NoParts).unwrap();
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    assert_eq!(image.record().unwrap(), Some(stored(false)), "nor does it count after a change of our own");
    assert!(image.set_record(Some(b"other")).unwrap());
    image.flush().unwrap();
    let found = open(file, false, &NoParts).unwrap().record().unwrap().unwrap();
    assert_eq!((found.bytes.as_slice(), found.is_untouched), (&b"other"[..], true));
}

#[test]
fn a_cut_leaves_the_old_parent_or_the_new_one() {
    let old = named(Format::Vmdk, "base.vmdk", Format::Vmdk);
    let long = "golden/".repeat(50) + "base.vmdk";
    for new in [
        Some(named(Format::Vmdk, &long, Format::Raw)),
        Some(named(Format::Vmdk, "b.vmdk", Format::Vmdk)),
        None,
    ] {
        let host = SimHost::new();
        let file = host.create(Path::new("/disk")).unwrap();
        let creation = Creation { parent: Some(old.clone()), ..sized(1 << 20, &[]) };
        let image = create(file, &creation, &NoParts).unwrap();
        assert!(image.set_record(Some(&noise(4, 300))).unwrap());
        image.flush().unwrap();
        host.sync_folder(Path::new("/")).unwrap();
        let before = host.events();
        image.set_parent(new.as_ref()).unwrap();
        let (mut olds, mut news) = (0, 0);
        for state in crash_states(&host.trace(), 1, 4).filter(|state| state.after >= before) {
            let file = state.host.open(Path::new("/disk"), Access::Read).unwrap();
            let found = told(peek(file.as_ref()).unwrap().parent);
            olds += u32::from(found == Some(old.clone()));
            news += u32::from(found == new);
            assert!(found == Some(old.clone()) || found == new, "{found:?}");
            assert_eq!(open(file, false, &NoParts).unwrap().record().unwrap().unwrap().bytes, noise(4, 300));
        }
        assert!(olds > 0 && news > 0, "{olds} {news}");
    }
}

#[test]
fn a_redundant_table_that_fell_behind_is_a_leak_and_is_mended() {
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(64 << 20, &[]), &NoParts).unwrap();
    image.write(GuestOffset::new(40 << 20), &[5; 512], &Nothing).unwrap();
    image.flush().unwrap();
    assert_eq!(check(&file, Repair::Nothing, &NoParts).unwrap().leaks, 0);
    // The first redundant table is right behind its directory, at sector 22.
    file.write_at(HostOffset::new(22 << 9), &[9; 4]).unwrap();
    // A grain that nothing leads to.
    let end = file.bytes().unwrap();
    file.write_at(HostOffset::new(end), &vec![1; 65536]).unwrap();
    let found = check(&file, Repair::Nothing, &NoParts).unwrap();
    assert_eq!((found.corruptions, found.leaks), (0, 2), "{:?}", found.findings);
    let left = check(&file, Repair::Leaks, &NoParts).unwrap();
    assert_eq!((left.leaks, left.leaks_fixed), (0, 2), "{:?}", left.findings);
}

/// Makes a sparse image and has `change` spoil it.
fn spoiled(change: impl FnOnce(&MemoryFile)) -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(64 << 20, &[]), &NoParts).unwrap();
    image.write(GuestOffset::new(0), &vec![5; 65536], &Nothing).unwrap();
    image.write(GuestOffset::new(1 << 20), &vec![6; 65536], &Nothing).unwrap();
    image.flush().unwrap();
    change(&file);
    file
}

#[test]
fn headers_that_make_no_sense_are_refused_by_field() {
    let cases: [(u64, &[u8], &str); 14] = [
        (4, &4_u32.to_le_bytes(), "version (0x4) is 4"),
        (8, &(1_u32 << 16 | 1).to_le_bytes(), "compressAlgorithm (0x4d) is 0"),
        (12, &0_u64.to_le_bytes(), "capacity (0xc) is 0"),
        (12, &u64::MAX.to_le_bytes(), "capacity (0xc) of 18446744073709551615 sectors is absurd"),
        (12, &(1_u64 << 41).to_le_bytes(), "need a directory of 33554432 entries"),
        (20, &0_u64.to_le_bytes(), "grainSize (0x14) is 0 sectors"),
        (20, &24_u64.to_le_bytes(), "grainSize (0x14) is 24 sectors"),
        (
            28,
            &(1_u64 << 30).to_le_bytes(),
            "descriptor of 0x2800 bytes at 0x8000000000 does not lie in the file",
        ),
        (36, &(1_u64 << 30).to_le_bytes(), "descriptor of 0x8000000000 bytes"),
        (44, &0_u32.to_le_bytes(), "numGTEsPerGT (0x2c) is 0"),
        (
            48,
            &(1_u64 << 30).to_le_bytes(),
            "redundant directory of 2 entries at 0x8000000000 does not lie in the file",
        ),
        (
            56,
            &(1_u64 << 30).to_le_bytes(),
            "grain directory of 2 entries at 0x8000000000 does not lie in the file",
        ),
        (56, &u64::MAX.to_le_bytes(), "is a stream without its footer"),
        (73, b"\n\n\n\n", "line ends (0x49) were changed"),
    ];
    for (at, bytes, expected) in cases {
        let file = spoiled(|file| file.write_at(HostOffset::new(at), bytes).unwrap());
        let error = open(file.clone(), false, &NoParts).unwrap_err();
        assert!(error.to_string().contains(expected) && error.to_string().contains("disk.vmdk"), "{error}");
        assert!(format::peek(Format::Vmdk, file.as_ref()).is_err());
    }
}

#[test]
fn entries_that_lead_astray_are_errors_when_they_are_read_and_findings_of_a_check() {
    // The first table behind the second directory: sectors 21 (redundant), +1+8, then the same again.
    let table = 31 << 9;
    for (nth, word, expected) in [(0, u32::MAX, "points past the file's end"), (1, 1 << 20, "points past")] {
        let file =
            spoiled(|file| file.write_at(HostOffset::new(table + nth * 4), &word.to_le_bytes()).unwrap());
        let image = open(file.clone(), true, &NoParts).unwrap();
        let error = image.read(GuestOffset::new(nth << 16), &mut [0; 512], &Nothing).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(image.write(GuestOffset::new(nth << 16), &[0; 512], &Nothing).is_err());
        assert_eq!(check(&file, Repair::Nothing, &NoParts).unwrap().corruptions, 1);
        assert_eq!(check(&file, Repair::All, &NoParts).map_or(1, |left| left.corruptions), 1);
    }
    // One place twice, and a place on the tables.
    let file = spoiled(|file| {
        let mut first = [0; 4];
        file.read_at(HostOffset::new(table), &mut first).unwrap();
        file.write_at(HostOffset::new(table + 4), &first).unwrap();
        file.write_at(HostOffset::new(table + 8), &21_u32.to_le_bytes()).unwrap();
    });
    let found = check(&file, Repair::Nothing, &NoParts).unwrap();
    assert!(found.corruptions >= 2, "{:?}", found.findings);
    let image = open(file, true, &NoParts).unwrap();
    let error = image.write(GuestOffset::new(2 << 16), &[0; 512], &Nothing).unwrap_err();
    assert!(error.to_string().contains("points at metadata"), "{error}");
    // Tables that share bytes are not written.
    let file = spoiled(|file| file.write_at(HostOffset::new(30 << 9), &[22, 0, 0, 0]).unwrap());
    open(file.clone(), false, &NoParts).unwrap();
    assert_eq!(open(file, true, &NoParts).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn descriptors_lead_to_no_file_twice_and_not_to_themselves() {
    let lines =
        |extents: &str| format!("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n{extents}\n");
    let cases = [
        ("RW 8 FLAT \"a\" 0\nRW 8 FLAT \"a\" 4", "share bytes of one file"),
        ("RW 8 SPARSE \"a\"\nRW 8 SPARSE \"a\"", "is named as a sparse extent, and has no header"),
        ("RW 80 FLAT \"a\" 0", "a: has 0x2000 bytes, and its extent line says 0xa000"),
    ];
    for (extents, expected) in cases {
        let parts = Beside::default();
        parts.open_part(b"a").unwrap().set_bytes(8192).unwrap();
        let file = Arc::new(MemoryFile::new("disk.vmdk"));
        file.write_at(HostOffset::new(0), lines(extents).as_bytes()).unwrap();
        let error = open(file, false, &parts).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Flat extents in one file, zeros between, and one that is not to be written.
    let parts = Beside::default();
    parts.open_part(b"a").unwrap().write_at(HostOffset::new(0), &noise(5, 8192)).unwrap();
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let text = lines("RW 8 FLAT \"a\" 8\nRW 8 ZERO\nRDONLY 8 VMFS \"a\"");
    file.write_at(HostOffset::new(0), text.as_bytes()).unwrap();
    let image = open(file, true, &parts).unwrap();
    let mut found = vec![9; 12288];
    image.read(GuestOffset::new(0), &mut found, &Nothing).unwrap();
    let bytes = noise(5, 8192);
    assert!(found == [&bytes[4096..], &[0; 4096], &bytes[..4096]].concat());
    image.write(GuestOffset::new(512), &[1; 512], &Nothing).unwrap();
    for at in [4096, 8192] {
        assert_eq!(
            image.write(GuestOffset::new(at), &[1; 512], &Nothing).unwrap_err().kind(),
            ErrorKind::Policy
        );
    }
}

/// A disk whose directories lead to no tables, as some programs make them.
fn without_tables(file: &dyn File) {
    // Sectors 21 (redundant) and 30; each with two entries.
    for sector in [21, 30] {
        file.write_at(HostOffset::new(sector << 9), &[0; 8]).unwrap();
    }
}

#[test]
fn a_cut_while_tables_are_added_loses_nothing_that_was_flushed() {
    let host = SimHost::new();
    let file = host.create(Path::new("/disk")).unwrap();
    drop(create(file.clone(), &sized(64 << 20, &[]), &NoParts).unwrap());
    without_tables(file.as_ref());
    file.flush().unwrap();
    host.sync_folder(Path::new("/")).unwrap();
    let image = open(file, true, &NoParts).unwrap();
    let places = [1 << 20, 40 << 20, (40 << 20) + 4096, 63 << 20];
    let mut flushed = vec![host.events()];
    for (nth, at) in (1_u8..).zip(places) {
        image.write(GuestOffset::new(at), &[nth; 512], &Nothing).unwrap();
        image.flush().unwrap();
        flushed.push(host.events());
    }
    for state in crash_states(&host.trace(), 1, 3).filter(|state| state.after >= flushed[0]) {
        let file = state.host.open(Path::new("/disk"), Access::Read).unwrap();
        let image = open(file.clone(), false, &NoParts).unwrap();
        for (nth, at) in (1_u8..).zip(places) {
            let mut found = [0xee; 512];
            image.read(GuestOffset::new(at), &mut found, &Nothing).unwrap();
            let written = [nth; 512];
            let must = state.after >= flushed[usize::from(nth)];
            assert!(found == written || !must && found == [0; 512], "{at:x} after {}", state.after);
        }
        let checked = super::super::check(&file, Repair::Nothing, &NoParts).unwrap();
        assert_eq!(checked.corruptions, 0, "{:?} after {}", checked.findings, state.after);
    }
}

#[test]
fn a_delta_of_esx_says_where_other_programs_may_go_on() {
    let (file, parts) = (Arc::new(MemoryFile::new("vm-000001.vmdk")), Beside::default());
    let image = create(file, &sized(8 << 20, &[("subformat", "vmfsSparse")]), &parts).unwrap();
    let delta = parts.open_part(b"vm-000001-delta.vmdk").unwrap();
    let free = || {
        let mut word = [0; 4];
        delta.read_at(HostOffset::new(28), &mut word).unwrap();
        u64::from(u32::from_le_bytes(word)) * 512
    };
    assert_eq!(free(), delta.bytes().unwrap());
    for at in [0, 5 << 20] {
        image.write(GuestOffset::new(at), &[1; 1000], &Nothing).unwrap();
        let before = free();
        image.flush().unwrap();
        assert!(free() == delta.bytes().unwrap() && free() >= before + (16 << 10) + 1024);
    }
}

#[test]
fn a_descriptor_that_ends_within_a_line_takes_a_parent_and_a_record() {
    let (file, parts) = (Arc::new(MemoryFile::new("vm.vmdk")), Beside::default());
    drop(create(file.clone(), &sized(1 << 20, &[("subformat", "vmfsSparse")]), &parts).unwrap());
    // As another program may leave it: nothing behind the last value, and no room in the first sector.
    let mut text = vec![0; index(file.bytes().unwrap()) - 1];
    file.read_at(HostOffset::new(0), &mut text).unwrap();
    let first = String::from_utf8(text[..512].to_vec()).unwrap();
    let facts: Vec<String> = (0..40).map(|n| format!("ddb.fact{n:02} = \"{n}\"")).collect();
    let facts = facts.join("\n");
    let lines: Vec<&str> = first.lines().filter(|line| !line.starts_with("#  ")).collect();
    let foreign = [lines.join("\n").as_bytes(), b"\n", facts.as_bytes(), b"\n", &text[512..]].concat();
    file.set_bytes(0).unwrap();
    file.write_at(HostOffset::new(0), &foreign).unwrap();
    let image = open(file.clone(), true, &parts).unwrap();
    let long = named(Format::Vmdk, &("golden/".repeat(50) + "base.vmdk"), Format::Raw);
    image.set_parent(Some(&long)).unwrap();
    assert!(image.set_record(Some(&noise(6, 200))).unwrap());
    image.flush().unwrap();
    let again = open(file.clone(), false, &parts).unwrap();
    assert_eq!(told(again.parent()), Some(long));
    assert_eq!(again.record().unwrap().unwrap().bytes, noise(6, 200));
    let mut now = vec![0; index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut now).unwrap();
    let now = String::from_utf8(now).unwrap();
    let lost: Vec<_> = facts.lines().filter(|fact| !now.lines().any(|line| line == *fact)).collect();
    assert!(lost.is_empty() && now.contains("\nddb.adapterType = \"ide\"\n"), "{lost:?}\n{now}");
}

#[test]
fn a_last_grain_that_is_cut_off_shares_its_room_with_nobody() {
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(1 << 20, &[]), &NoParts).unwrap();
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    image.flush().unwrap();
    // As one whose grains are twice as large, of which the file has half of the only one.
    file.write_at(HostOffset::new(20), &256_u64.to_le_bytes()).unwrap();
    let image = open(file.clone(), true, &NoParts).unwrap();
    image.write(GuestOffset::new(1 << 19), &[2; 512], &Nothing).unwrap();
    image.write(GuestOffset::new(100 << 10), &[3; 512], &Nothing).unwrap();
    image.flush().unwrap();
    assert_eq!(check(&file, Repair::Nothing, &NoParts).unwrap().corruptions, 0);
}
