//! Malformed VHDs through the program: each field of footers, header, locators and table, and disks that claim more than
//! they have.

use crate::{
    bad_input::{Bad, Sound, bad, bounded},
    foreign::Scratch,
};
use deltachain::{
    base::{GuestOffset, HostOffset},
    format::{self, Creation, Format, NoParts, Nothing, ParentName},
    io::{File, memory::MemoryFile},
};
use std::{fs, os::unix::fs::FileExt, sync::Arc};

/// Where the header and, in a disk without a parent, the table are.
const HEADER: usize = 512;
const BAT: usize = 1536;
const FOOTER_BYTES: usize = 512;

/// A disk of 1 MiB in blocks of 64 KiB, two of which it has.
fn made(parent: Option<&str>, kind: (&str, &str)) -> Vec<u8> {
    let file = Arc::new(MemoryFile::new("vm.vhd"));
    let parent = parent.map(|name| ParentName::new(name.into(), Some("vpc".to_owned())));
    let creation = Creation { size: 1 << 20, parent, options: vec![(kind.0.to_owned(), kind.1.to_owned())] };
    let image = format::create(Format::Vpc, file.clone(), &creation, &NoParts).unwrap();
    for at in [0, 70_000] {
        image.write(GuestOffset::new(at), &[3; 1000], &Nothing).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    let mut bytes = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

fn be4(word: u32) -> [u8; 4] {
    word.to_be_bytes()
}

fn be8(word: u64) -> [u8; 8] {
    word.to_be_bytes()
}

fn refuse(folder: &Scratch, bytes: &[u8], damages: &[Bad]) {
    Sound { format: Format::Vpc, name: "vm.vhd", bytes }.each_is_refused(folder, damages);
}

#[test]
fn bad_input_a_each_field_of_vhd_footers_is_refused_by_name() {
    let dynamic = made(None, ("block_size", "64k"));
    let end = dynamic.len() - FOOTER_BYTES;
    let both = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(at, bytes), (end + at, bytes)]);
    let mut damages = vec![
        both("checksum is", 0x28, &[9]).unsummed(),
        both("have no 'conectix'", 0, b"x"),
        both("footer: file format version 0x0", 12, &be4(0)),
        both("footer: file format version 0x20000", 12, &be4(0x2_0000)),
        both("footer: file format version 0xffffffff", 12, &be4(u32::MAX)),
        both("current size 1048577 is not a multiple of 512", 48, &be8((1 << 20) + 1)),
        both("current size 18446744073709551615 is not", 48, &be8(u64::MAX)),
        both("more than 8388608", 48, &be8(u64::MAX - 511)),
        both("max table entries 16: the disk has 17 blocks", 48, &be8((1 << 20) + 512)),
        both("footer: data offset 0xffffffffffffffff", 16, &be8(u64::MAX)),
        both("footer: data offset 0x10000000000", 16, &be8(1 << 40)),
        both("footer: data offset 0x", 16, &be8(end as u64 + 1)),
        both("dynamic header at 0x0: has no 'cxsparse'", 16, &be8(0)),
        both("dynamic header at 0x201: has no 'cxsparse'", 16, &be8(513)),
    ];
    for kind in [0, 1, 5, u32::MAX] {
        damages.push(both(&format!("footer: disk type {kind}"), 60, &be4(kind)));
    }
    let folder = Scratch::in_memory();
    refuse(&folder, &dynamic, &damages);
    let fixed = made(None, ("subformat", "fixed"));
    let end = fixed.len() - FOOTER_BYTES;
    let last = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(end + at, bytes)]);
    let damages = [
        last("checksum is", 0x28, &[9]).unsummed(),
        last("have no 'conectix'", 0, b"x"),
        last("the file has 1048576 bytes before it", 48, &be8((1 << 20) + 512)),
        last("the file has 1048576 bytes before it", 48, &be8(u64::MAX - 511)),
        last("dynamic header at 0x0: has no 'cxsparse'", 16, &[&be8(0)[..], &[0; 36], &be4(3)].concat()),
    ];
    refuse(&folder, &fixed, &damages);
}

#[test]
fn bad_input_a_each_field_of_a_vhd_header_and_each_entry_is_refused_by_name() {
    let sound = made(None, ("block_size", "64k"));
    let header = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(HEADER + at, bytes)]);
    let entry = |says: &str, nth: usize, word: u32| bad(says, &[(BAT + nth * 4, &be4(word))]);
    let second = u32::from_be_bytes(sound[BAT + 4..BAT + 8].try_into().unwrap());
    let length = sound.len() as u64;
    let mut damages = vec![
        header("dynamic header at 0x200: has no 'cxsparse'", 3, b"x"),
        header("dynamic header at 0x200: checksum is", 64, b"x").unsummed(),
        header("dynamic header: version 0x0", 24, &be4(0)),
        header("dynamic header: version 0x20000", 24, &be4(0x2_0000)),
        header("max table entries 0: the disk has 16 blocks", 28, &be4(0)),
        header("max table entries 15: the disk has 16 blocks", 28, &be4(15)),
        header("table offset 0x601: not a multiple of 512", 16, &be8(0x601)),
        header("table offset 0xffffffffffffffff: not a multiple", 16, &be8(u64::MAX)),
        header("pass the file's end", 16, &be8(u64::MAX - 511)),
        header("pass the file's end", 16, &be8(length.next_multiple_of(512))),
        header("table offset 0x0: BAT, header and footer overlap", 16, &be8(0)),
        header("table offset 0x200: BAT, header and footer overlap", 16, &be8(512)),
        header("table offset 0x400: BAT, header and footer overlap", 16, &be8(1024)),
        entry("BAT entry 0: the block at 0x0 overlaps", 0, 0),
        entry("BAT entry 0: the block at 0x200 overlaps", 0, 1),
        entry("BAT entry 0: the block at 0x600 overlaps the header or what belongs", 0, 3),
        entry("BAT entry 0: the block at 0x1fffffffc00 passes the file's end", 0, u32::MAX - 1),
        entry("BAT entry 15: the block at 0x20000000 passes the file's end", 15, 0x10_0000),
        entry("overlaps that of entry", 0, second),
        entry("overlaps that of entry", 0, second - 1),
    ];
    for bytes in [0, 1, 512, 65_280, 512 << 20, u32::MAX] {
        damages.push(header(&format!("dynamic header: block size {bytes}"), 32, &be4(bytes)));
    }
    refuse(&Scratch::in_memory(), &sound, &damages);
}

#[test]
fn bad_input_e_locators_of_a_vhd_that_lead_nowhere_are_refused() {
    let folder = Scratch::in_memory();
    fs::write(folder.file("base.vhd"), made(None, ("block_size", "64k"))).unwrap();
    let sound = made(Some("base.vhd"), ("block_size", "64k"));
    let locator = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(HEADER + 576 + at, bytes)]);
    let table = usize::try_from(u64::from_be_bytes(sound[HEADER + 16..][..8].try_into().unwrap())).unwrap();
    let names = u64::from_be_bytes(sound[HEADER + 576 + 16..][..8].try_into().unwrap());
    let nameless = bad("names no parent", &[(HEADER + 64, &[0; 512]), (HEADER + 576, &[0; 24])]);
    let too_long = "parent locator 'W2ru':";
    refuse(
        &folder,
        &sound,
        &[
            locator(too_long, 8, &be4(u32::MAX)),
            locator(too_long, 8, &be4((16 << 10) + 1)),
            locator(too_long, 16, &be8(u64::MAX)),
            locator(too_long, 16, &be8(1 << 40)),
            locator(too_long, 16, &be8(sound.len() as u64)),
            locator(
                "parent locator 'W2ku':",
                0,
                &[b"W2ku", &be4(512)[..], &be4(1), &be4(0), &be8(1 << 63)].concat(),
            ),
            locator(
                "parent locator 'MacX':",
                0,
                &[b"MacX", &be4(512)[..], &be4(1), &be4(0), &be8(1 << 63)].concat(),
            ),
            nameless,
            bad(
                "overlaps the header or what belongs to it",
                &[(table, &be4(u32::try_from(names / 512).unwrap()))],
            ),
        ],
    );
}

/// A disk of many blocks, each entry of whose table is the same.
fn vast(folder: &Scratch, name: &str, entries: u32, word: u32) {
    let mut start = made(None, ("block_size", "64k"))[..BAT].to_vec();
    let table = u64::from(entries) * 4;
    let file = fs::File::create(folder.file(name)).unwrap();
    let piece = word.to_be_bytes().repeat(1 << 18);
    for at in (0..table).step_by(piece.len()) {
        let left = usize::try_from(table - at).unwrap().min(piece.len());
        file.write_all_at(&piece[..left], BAT as u64 + at).unwrap();
    }
    start[HEADER + 28..HEADER + 32].copy_from_slice(&be4(entries));
    start[48..56].copy_from_slice(&be8(u64::from(entries) << 16));
    // The largest geometry says nothing.
    start[56..60].copy_from_slice(&[0xff, 0xff, 16, 255]);
    // The sums are those of a file that ends with its footer.
    let mut whole = [start.as_slice(), &start[..FOOTER_BYTES]].concat();
    dchain_lab::fuzz::put_sums_right(Format::Vpc, &mut whole);
    file.write_all_at(&whole[..BAT], 0).unwrap();
    file.write_all_at(&whole[..FOOTER_BYTES], BAT as u64 + table.next_multiple_of(512)).unwrap();
}

#[test]
fn bad_input_b_vhds_that_claim_much_cost_little() {
    let folder = Scratch::in_memory();
    // All entries lead to one place; past the end; nowhere, as they may.
    for (nth, word) in [16, u32::MAX - 1, u32::MAX].into_iter().enumerate() {
        let (name, is_sound) = (format!("vast{nth}"), word == u32::MAX);
        vast(&folder, &name, 8 << 20, word);
        // A sound one is shown block by block.
        let tools: &[&str] = if is_sound { &["info", "check"] } else { &["info", "map", "check"] };
        for tool in tools {
            let said = bounded(&folder, &[tool, "-f", "vpc", &name]);
            assert_eq!(said.code == 0, is_sound, "{tool} {name}: {}", said.err);
        }
        fs::remove_file(folder.file(&name)).unwrap();
    }
    vast(&folder, "more", 1 << 10, u32::MAX);
    let file = fs::OpenOptions::new().read(true).write(true).open(folder.file("more")).unwrap();
    file.set_len(32 << 20).unwrap();
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, 0).unwrap();
    for claim in [1 << 63, 1 << 42, u64::MAX - 511] {
        footer[48..56].copy_from_slice(&be8(claim));
        let mut whole = [&footer[..], &footer].concat();
        dchain_lab::fuzz::put_sums_right(Format::Vpc, &mut whole);
        file.write_all_at(&whole[..FOOTER_BYTES], 0).unwrap();
        file.write_all_at(&whole[..FOOTER_BYTES], (32 << 20) - 512).unwrap();
        for tool in ["info", "map", "check"] {
            let said = bounded(&folder, &[tool, "more"]);
            assert!(said.code != 0 && said.err.contains("more than 8388608"), "{claim}: {}", said.err);
        }
    }
}
