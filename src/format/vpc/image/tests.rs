//! Links to parents; what a check mends; what is refused.

use super::super::{create, open, peek};
use super::*;
use crate::{
    base::{ErrorKind, seed::Seeded},
    format::{
        Checked, Creation, NoParts, Nothing, Repair,
        conformance::{named, told},
    },
    io::{
        Host,
        faulty::{Failure, Fault, SimHost},
        memory::MemoryFile,
    },
    map::State as Shown,
};
use std::path::Path;

fn check(file: &Arc<MemoryFile>, repair: Repair) -> Result<Checked> {
    let file: Arc<dyn File> = file.clone();
    super::super::check(&file, repair)
}

fn make(size: u64, parent: Option<ParentName>) -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new("image"));
    let options = vec![("block_size".to_owned(), "64k".to_owned())];
    let image = create(file.clone(), &Creation { size, parent, options }, &NoParts).unwrap();
    image.write(GuestOffset::new(70_000), &[5; 1000], &Nothing).unwrap();
    image.flush().unwrap();
    file
}

fn bytes_of(file: &MemoryFile) -> Vec<u8> {
    let mut bytes = vec![0; index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// Where bytes become others.
type Edits<'a> = &'a [(usize, &'a [u8])];

/// A file with those bytes, `edits` made in it, and the sums of footers and header right if `is_signed`.
fn edited(bytes: &[u8], edits: Edits<'_>, is_signed: bool) -> Arc<MemoryFile> {
    let mut bytes = bytes.to_vec();
    for (at, new) in edits {
        bytes[*at..*at + new.len()].copy_from_slice(new);
    }
    let length = bytes.len();
    for (start, field, end) in [(0, 64, 512), (512, 36, 1536), (length - 512, 64, length)] {
        if is_signed {
            bytes[start + field..start + field + 4].fill(0);
            let sum = super::super::footer::checksum(&bytes[start..end]);
            bytes[start + field..start + field + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let file = MemoryFile::new("image");
    file.write_at(HostOffset::new(0), &bytes).unwrap();
    Arc::new(file)
}

#[test]
fn each_wrong_field_is_refused_by_name() {
    let bytes = bytes_of(&make(1 << 20, None));
    let end = bytes.len() - 512;
    let cases: &[(Edits<'_>, bool, &str)] = &[
        (&[(0x28, &[9]), (end + 0x28, &[9])], false, "footer at 0x"),
        (&[(0, b"xonectix"), (end, b"xonectix")], false, "have no 'conectix'"),
        (&[(515, b"x")], false, "dynamic header at 0x200: has no 'cxsparse'"),
        (&[(512 + 64, b"x")], false, "dynamic header at 0x200: checksum is"),
        (&[(end + 15, &[9]), (end + 13, &[2])], true, "file format version"),
        (&[(end + 63, &[5])], true, "disk type 5"),
        (&[(end + 55, &[1])], true, "current size"),
        (&[(end + 16, &[0x7f])], true, "data offset"),
        (&[(512 + 24, &[0, 2])], true, "version"),
        (&[(512 + 32, &[0, 0, 0xff, 0])], true, "block size 65280"),
        (&[(512 + 32, &[0, 0, 0, 0])], true, "block size 0"),
        (&[(512 + 28, &[0, 0, 0, 3])], true, "max table entries 3"),
        (&[(512 + 16, &[0x7f])], true, "table offset"),
        (&[(512 + 23, &[1])], true, "not a multiple of 512"),
        (&[(512 + 22, &[2, 0])], true, "overlap"),
        (&[(1536, &[0, 0, 0, 1])], true, "BAT entry 0: the block at 0x200 overlaps"),
        (&[(1536, &[0, 0x10, 0, 0])], true, "BAT entry 0: the block at 0x20000000 passes the file's end"),
        (&[(1540, &[0, 0, 0, 0])], true, "BAT entry 1: the block at 0x0 overlaps the header"),
    ];
    for (edits, is_signed, says) in cases {
        let file = edited(&bytes, edits, *is_signed);
        let error = open(file.clone(), false, &NoParts).map(drop).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        assert!(open(file, true, &NoParts).is_err());
    }
    // Two entries for one block.
    let entry: [u8; 4] = bytes[1540..1544].try_into().unwrap();
    let file = edited(&bytes, &[(1544, &entry)], true);
    assert!(open(file.clone(), false, &NoParts).unwrap_err().to_string().contains("overlaps that of entry"));
    assert_eq!(check(&file, Repair::All).unwrap().corruptions, 1);
}

#[test]
fn one_damaged_footer_is_mended_from_the_other() {
    let bytes = bytes_of(&make(1 << 20, None));
    let end = bytes.len() - 512;
    for at in [0, end] {
        for edit in [&[0xee_u8; 512][..], b"conectix\x01"] {
            let file = edited(&bytes, &[(at, edit)], false);
            let image = open(file.clone(), false, &NoParts).unwrap();
            let mut read = [0; 1000];
            image.read(GuestOffset::new(70_000), &mut read, &Nothing).unwrap();
            assert_eq!((image.size(), read), (1 << 20, [5; 1000]));
            let mut found = check(&file, Repair::Nothing).unwrap();
            assert_eq!(found.corruptions, 1, "{found:?}");
            found = check(&file, Repair::All).unwrap();
            assert_eq!((found.corruptions, found.corruptions_fixed), (0, 1), "{found:?}");
        }
    }
    // Whoever writes needs no repair for it.
    let file = edited(&bytes[..end], &[], false);
    open(file.clone(), true, &NoParts).unwrap();
    assert!(check(&file, Repair::Nothing).unwrap().findings.is_empty());
    assert_eq!(bytes_of(&file), bytes);
}

/// A host may make the new length durable before the new footer.
#[test]
fn a_fixed_disk_whose_growth_was_cut_off_is_what_it_was() {
    let file = Arc::new(MemoryFile::new("image"));
    let options = vec![("subformat".to_owned(), "fixed".to_owned())];
    let image = create(file.clone(), &Creation { size: 1 << 20, parent: None, options }, &NoParts).unwrap();
    image.write(GuestOffset::new(70_000), &[5; 1000], &Nothing).unwrap();
    drop(image);
    let whole = bytes_of(&file);
    file.set_bytes(3 << 20).unwrap();
    let found = check(&file, Repair::Nothing).unwrap();
    assert_eq!((found.corruptions, file.bytes().unwrap()), (1, 3 << 20), "{:?}", found.findings);
    let mut read = [0; 1000];
    let image = open(file.clone(), false, &NoParts).unwrap();
    image.read(GuestOffset::new(70_000), &mut read, &Nothing).unwrap();
    assert_eq!((image.size(), read), (1 << 20, [5; 1000]));
    drop(open(file.clone(), true, &NoParts).unwrap());
    assert!(bytes_of(&file) == whole);
    // What stands there is no footer of a disk that ends before it.
    file.zero(HostOffset::new(0).range(1 << 20), Kept::Nothing).unwrap();
    file.set_bytes(512).unwrap();
    file.write_at(HostOffset::new(0), &whole[1 << 20..]).unwrap();
    file.set_bytes(3 << 20).unwrap();
    assert!(open(file, false, &NoParts).is_err());
}

/// Windows leaves the parent's time out, too: it changes with every copy of the file, the ID does not.
#[test]
fn a_parent_is_known_by_its_id_and_not_by_its_time() {
    let file = make(1 << 20, Some(named(Format::Vpc, "base.vhd", Format::Vpc)));
    let bytes = bytes_of(&file);
    let time = 512 + 56;
    assert_eq!(bytes[time..time + 4], [0; 4]);
    let dated = edited(&bytes, &[(time, &[1, 2, 3, 4])], true);
    let parent = |file: &MemoryFile| peek(file).unwrap().parent;
    assert_eq!(parent(&dated), parent(&file));
    assert_eq!(told(parent(&dated)), Some(named(Format::Vpc, "base.vhd", Format::Vpc)));
}

#[test]
fn checksums_that_leave_the_identity_out_are_good_for_reading_until_they_are_mended() {
    let made = bytes_of(&make(1 << 20, None));
    let end = made.len() - 512;
    let strip = edited(&made, &[(68, &[0; 16]), (end + 68, &[0; 16])], true);
    let mut by_hand = bytes_of(&strip);
    by_hand[512 + 64..512 + 66].copy_from_slice(&[0, b'p']);
    for at in [0, end] {
        by_hand[at + 68..at + 84].copy_from_slice(&[7; 16]);
        by_hand[at + 63] = 4;
    }
    let file = edited(&by_hand, &[], false);
    assert_eq!(open(file.clone(), false, &NoParts).unwrap().parent().unwrap().name, b"p");
    assert!(open(file.clone(), true, &NoParts).unwrap_err().to_string().contains("check --repair all"));
    let mended = check(&file, Repair::All).unwrap();
    assert_eq!((mended.corruptions, mended.corruptions_fixed), (0, 2), "{mended:?}");
    assert_eq!(open(file, true, &NoParts).unwrap().identity(), Some(Identity::Guid([7; 16])));
    // Anything else that differs is damage.
    let damaged = edited(&by_hand, &[(30, b"x"), (end + 30, b"x")], false);
    assert!(open(damaged, false, &NoParts).is_err());
}

#[test]
fn a_child_says_whose_it_is_and_a_disk_that_is_no_child_any_more_hides_nothing() {
    let file = make(1 << 20, Some(named(Format::Vpc, "../golden/base.vhd", Format::Vpc)));
    let parent = peek(&*file).unwrap().parent;
    assert_eq!(parent.clone().unwrap().others, [b"base.vhd"]);
    assert_eq!(told(parent), Some(named(Format::Vpc, "../golden/base.vhd", Format::Vpc)));
    let image = open(file.clone(), true, &NoParts).unwrap();
    // Sectors that a cut left behind without their bits.
    let mut extents = Vec::new();
    image.map(GuestOffset::new(69_632).range(512), &mut extents).unwrap();
    let Shown::Data { host } = extents[0].state else { panic!("{extents:?}") };
    file.write_at(host.plus(4096), &[9; 512]).unwrap();
    image.set_parent(None).unwrap();
    let mut read = [1; 512];
    file.read_at(host.plus(4096), &mut read).unwrap();
    assert_eq!((image.parent(), read), (None, [0; 512]));
    image.read(GuestOffset::new(69_632 + 4096), &mut read, &Nothing).unwrap();
    assert_eq!(read, [0; 512]);
    assert!(check(&file, Repair::Nothing).unwrap().findings.is_empty());
}

#[test]
fn a_disk_has_the_size_that_was_asked_for_or_is_not_made() {
    let made = |size: u64, options: &[(&str, &str)]| {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let file = Arc::new(MemoryFile::new("image"));
        create(file, &Creation { size, parent: None, options }, &NoParts).map(|image| image.size())
    };
    for options in [&[("subformat", "fixed")][..], &[], &[("block_size", "512k"), ("force_size", "on")]] {
        for size in [0, 512, 4 << 20, (4 << 20) + 512, 4_212_736, 2040 << 30] {
            assert_eq!(made(size, options).unwrap(), size, "{options:?}");
        }
        assert_eq!(made((2040 << 30) + 512, options).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(made(4_212_736, &[("force_size", "off")]).unwrap(), 4_212_736);
    for wrong in [("force_size", "off"), ("block_size", "3000"), ("subformat", "thick"), ("compat", "1.1")] {
        assert_eq!(made(4 << 20, &[wrong]).unwrap_err().kind(), ErrorKind::Invalid, "{wrong:?}");
    }
}

#[test]
fn a_file_ends_behind_the_last_block_that_is_used_once_leaks_are_mended() {
    let file = make(1 << 20, None);
    let image = open(file.clone(), true, &NoParts).unwrap();
    image.zero(GuestOffset::new(1 << 16).range(1 << 16), Kept::Nothing, &Nothing).unwrap();
    image.flush().unwrap();
    let checked = check(&file, Repair::Leaks).unwrap();
    assert_eq!((checked.leaks, checked.leaks_fixed), (0, 1));
    // Footer, header, a sector of the BAT, footer.
    assert_eq!(file.bytes().unwrap(), 512 + 1024 + 512 + 512);
}

#[test]
fn damaged_images_with_sums_put_right_are_read_or_refused() {
    let made = [make(1 << 20, None), make(1 << 20, Some(named(Format::Vpc, "a/b.vhd", Format::Raw)))];
    let mut random = Seeded::new(11);
    let (mut opened, mut written) = (0, 0);
    for round in 0..3000 {
        let bytes = bytes_of(&made[round % 2]);
        let end = bytes.len() - 512;
        let mut edits = Vec::new();
        for _ in 0..=random.below(3) {
            // Footers, header, locators and BAT: whole words, and what matters in them.
            let at = match random.below(4) {
                0 => 4 * random.below(22),
                1 => 512 + 4 * random.below(36),
                2 => 512 + 576 + 4 * random.below(12),
                _ => [1536, 8192][round % 2] + 4 * random.below(18),
            };
            let word =
                [0, 1, 7, 512, 2048, 0xffff, u32::MAX, 1 << 31, u32::try_from(random.below(200)).unwrap()];
            edits.push((index(at), word[index(random.below(9))].to_be_bytes()));
        }
        let both = edits.iter().flat_map(|(at, word)| {
            let copy = (*at < 512).then_some((end + at, word.as_slice()));
            [Some((*at, word.as_slice())), copy].into_iter().flatten()
        });
        let both: Vec<(usize, &[u8])> = both.collect();
        let file = edited(&bytes, &both, true);
        let checked = check(&file, Repair::Nothing);
        if let Ok(image) = open(file.clone(), false, &NoParts) {
            opened += 1;
            let part = GuestOffset::new(0).range(image.size().min(1 << 20));
            image.map(part, &mut Vec::new()).unwrap();
            image.read(part.start, &mut vec![0; index(part.bytes)], &Nothing).unwrap();
        }
        let Ok(image) = open(file.clone(), true, &NoParts) else { continue };
        let part = GuestOffset::new(image.size() / 2 / 512 * 512).range(image.size().min(512));
        let bytes = vec![3; index(part.bytes)];
        let did = image.write(part.start, &bytes, &Nothing).and_then(|()| image.flush());
        if did.is_ok() {
            written += 1;
            let mut found = vec![0; bytes.len()];
            image.read(part.start, &mut found, &Nothing).unwrap();
            assert_eq!(found, bytes, "{edits:x?}");
            if checked.is_ok_and(|checked| checked.corruptions == 0) {
                let after = check(&file, Repair::Nothing).unwrap();
                assert_eq!(after.findings, Vec::<String>::new(), "{edits:x?}");
            }
        }
    }
    assert!(opened > 300 && written > 300, "{opened} opened, {written} written");
}

/// The new end of a shrinking disk has the footer where bytes of the disk were.
#[test]
fn a_fixed_disk_whose_resize_fails_shows_no_footer() {
    const OLD: u64 = 8192;
    for (size, at) in [4096, 12288].into_iter().flat_map(|size| (0..20).map(move |at| (size, at))) {
        let host = SimHost::new();
        let creation =
            Creation { size: OLD, parent: None, options: vec![("subformat".to_owned(), "fixed".to_owned())] };
        let image = create(host.create(Path::new("/disk")).unwrap(), &creation, &NoParts).unwrap();
        image.write(GuestOffset::new(0), &[7; index(OLD)], &Nothing).unwrap();
        image.flush().unwrap();
        host.fail(Some(Fault { at: host.ios() + at, is_lasting: false, failure: Failure::Io }));
        let done = image.resize(size, &Nothing);
        host.fail(None);
        let mut shown = vec![1; index(image.size())];
        image.read(GuestOffset::new(0), &mut shown, &Nothing).unwrap();
        let old = index(OLD.min(image.size()));
        assert!(image.size() == size || done.is_err(), "{size}, I/O {at}");
        assert!(shown[..old].iter().all(|byte| *byte == 7), "{size}, I/O {at}");
        assert!(shown[old..].iter().all(|byte| *byte == 0), "{size}, I/O {at}");
    }
}
