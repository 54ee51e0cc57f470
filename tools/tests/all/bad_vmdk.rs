//! Malformed VMDK disks through the program: headers of every kind of extent, descriptors, directories, tables, streams, and
//! disks that claim more than they have.

use crate::{
    bad_input::{Bad, Sound, bad, bounded, refused, repeat},
    foreign::Scratch,
};
use dchain_lab::fuzz::Subject;
use deltachain::{
    base::{GuestOffset, HostOffset},
    format::{self, Creation, Format, NoParts, Nothing},
    io::{File, memory::MemoryFile},
};
use std::{fs, fs::OpenOptions, os::unix::fs::FileExt, path::Path, sync::Arc};

/// Where the directory and its first table are in the images that are made here.
const DIRECTORY: usize = 30 << 9;
const TABLE: usize = 31 << 9;

/// A sparse disk of 64 MiB with two of its grains.
fn sparse() -> Vec<u8> {
    let file = Arc::new(MemoryFile::new("vm.vmdk"));
    let creation = Creation { size: 64 << 20, ..Creation::default() };
    let image = format::create(Format::Vmdk, file.clone(), &creation, &NoParts).unwrap();
    for at in [0, 1 << 20] {
        image.write(GuestOffset::new(at), &vec![3; 65_536], &Nothing).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    let mut bytes = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// A sound input of the fuzzer's.
fn subject(name: &str) -> Vec<u8> {
    let testdata = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata"));
    let all = Subject::all(testdata).unwrap();
    all.into_iter().find(|subject| subject.name == name).unwrap().bytes
}

fn le4(word: u32) -> [u8; 4] {
    word.to_le_bytes()
}

fn le8(word: u64) -> [u8; 8] {
    word.to_le_bytes()
}

fn at(says: &str, at: usize, bytes: &[u8]) -> Bad {
    bad(says, &[(at, bytes)])
}

fn refuse(bytes: &[u8], damages: &[Bad]) {
    Sound { format: Format::Vmdk, name: "vm.vmdk", bytes }.each_is_refused(&Scratch::in_memory(), damages);
}

#[test]
fn bad_input_a_each_field_of_a_hosted_vmdk_header_is_refused_by_name() {
    let absurd = "sectors is absurd";
    let mut damages = vec![
        at("has neither a header nor a descriptor", 0, b"x"),
        at("version (0x4) is 0", 4, &le4(0)),
        at("version (0x4) is 4", 4, &le4(4)),
        at("version (0x4) is 4294967295", 4, &le4(u32::MAX)),
        at("compressAlgorithm (0x4d) is 0, not deflate", 8, &le4(1 << 16 | 1)),
        at("capacity (0xc) is 0", 12, &le8(0)),
        at("capacity (0xc) of 18446744073709551615 sectors is absurd", 12, &le8(u64::MAX)),
        at("need a directory of 33554432 entries", 12, &le8(1 << 41)),
        at("descriptorOffset (0x1c) of 18446744073709551615 sectors is absurd", 28, &le8(u64::MAX)),
        at("at 0x8000000000 does not lie in the file", 28, &le8(1 << 30)),
        at("descriptorSize (0x24) of 18446744073709551615 sectors is absurd", 36, &le8(u64::MAX)),
        at("its descriptor of 0x8000000000 bytes", 36, &le8(1 << 30)),
        at("rgdOffset (0x30) of 18446744073709551615 sectors is absurd", 48, &le8(u64::MAX)),
        at("its grain redundant directory of 2 entries at 0x8000000000", 48, &le8(1 << 30)),
        at("its grain directory of 2 entries at 0x0", 56, &le8(0)),
        at("its grain directory of 2 entries at 0x8000000000", 56, &le8(1 << 30)),
        at("is a stream without its footer", 56, &le8(u64::MAX)),
        at(absurd, 56, &le8(u64::MAX - 1)),
        at("overHead (0x40) of 18446744073709551615 sectors is absurd", 64, &le8(u64::MAX)),
        at("line ends (0x49) were changed", 73, b"\n\n\n\n"),
        at("compressAlgorithm (0x4d) is 2, not deflate", 77, &[2, 0]),
        at("its descriptor has no line 'version='", 512, &[0]),
    ];
    for sectors in [0, 3, 24, 32_768, u64::MAX] {
        damages.push(at(&format!("grainSize (0x14) is {sectors} sectors, not"), 20, &le8(sectors)));
    }
    for entries in [0, 3, 1024, u32::MAX] {
        damages.push(at(&format!("numGTEsPerGT (0x2c) is {entries}, not"), 44, &le4(entries)));
    }
    refuse(&sparse(), &damages);
}

#[test]
fn bad_input_a_directories_and_tables_of_a_vmdk_that_lead_astray_are_refused_where_they_are_read() {
    let sound = sparse();
    assert!(sound[TABLE..TABLE + 4] != [0; 4] && sound[DIRECTORY..DIRECTORY + 4] == le4(31));
    let past = "points past the file's end";
    refuse(
        &sound,
        &[
            at("grain directory entry 0 for guest byte 0x0 points past", DIRECTORY, &le4(u32::MAX)).read(),
            at("the entry for guest byte 0x0 points past", TABLE, &le4(u32::MAX)).read(),
            at(past, TABLE + 4, &le4(1 << 20)).read(),
        ],
    );
    // What shares bytes is shown, as far as it can be, found by a check, and not written.
    let folder = Scratch::in_memory();
    let first: [u8; 4] = sound[TABLE..TABLE + 4].try_into().unwrap();
    let shares = "its metadata at";
    for Bad { says, edits, .. } in [
        at(shares, DIRECTORY, &le4(22)),
        at(shares, DIRECTORY + 4, &le4(31)),
        at(shares, 56, &le8(21)),
        at("points at metadata", TABLE, &le4(21)),
    ] {
        let mut bytes = sound.clone();
        for (at, new) in &edits {
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        fs::write(folder.file("vm.vmdk"), &bytes).unwrap();
        assert_eq!(bounded(&folder, &["check", "vm.vmdk"]).code, 2, "{says}");
        if says == shares {
            refused(&folder, &["resize", "vm.vmdk", "+1M"], "vm.vmdk", shares);
        }
    }
    let mut bytes = sound.clone();
    bytes[TABLE + 4..TABLE + 8].copy_from_slice(&first);
    fs::write(folder.file("vm.vmdk"), &bytes).unwrap();
    assert_eq!(bounded(&folder, &["check", "vm.vmdk"]).code, 2, "one grain twice");
}

#[test]
fn bad_input_a_each_field_of_extents_of_esx_is_refused_by_name() {
    let cowd = [
        at("COWD header's version (0x4) is 0", 4, &le4(0)),
        at("COWD header's version (0x4) is 2", 4, &le4(2)),
        at("numSectors (0xc) is 0", 12, &le4(0)),
        at("its grain directory of 1048576 entries", 12, &le4(u32::MAX)),
        at("grainSize (0x10) is 0 sectors", 16, &le4(0)),
        at("grainSize (0x10) is 3 sectors", 16, &le4(3)),
        at("grainSize (0x10) is 4294967295 sectors", 16, &le4(u32::MAX)),
        at("its grain directory of 1 entries at 0x0", 20, &le4(0)),
        at("its grain directory of 1 entries at 0x1fffffffe00", 20, &le4(u32::MAX)),
        at("numGDEntries (0x18) is 0, and the disk needs 1", 24, &le4(0)),
        at("grain directory entry 0 for guest byte 0x0 points past", 4 << 9, &le4(u32::MAX)).read(),
        at("the entry for guest byte 0x0 points past", 8 << 9, &le4(u32::MAX)).read(),
    ];
    refuse(&subject("vmdk cowd"), &cowd);
    let mut damages = vec![
        at("is an seSparse extent of version 0x0", 8, &le8(0)),
        at("is an seSparse extent of version 0x300000001", 8, &le8(0x3_0000_0001)),
        at("with flags 0x1", 40, &le8(1)),
        at("capacity (0x10) is 0", 16, &le8(0)),
        at("capacity (0x10) of 18446744073709551615 sectors", 16, &le8(u64::MAX)),
        at("no volatile header is at sector 0", 80, &le8(0)),
        at("volatile header (0x50) of 18446744073709551615 sectors", 80, &le8(u64::MAX)),
        at("its grain directory of", 128, &le8(0)),
        at("its grain directory of", 128, &le8(1 << 40)),
        at("grain directory (0x80) of 18446744073709551615 sectors", 128, &le8(u64::MAX)),
        at("grain directory size (0x88) is 0 sectors", 136, &le8(0)),
        at("grain tables (0x90) of 18446744073709551615 sectors", 144, &le8(u64::MAX)),
        at("grains (0xc0) of 18446744073709551615 sectors", 192, &le8(u64::MAX)),
        at("whose journal was not replayed", 512 + 24, &le8(1)),
        at("its grain directory's entry 0 is of no known kind", 8 << 9, &le8(5)),
        at("of no known kind", (64 + 64) << 9, &le8(5 << 60)).read(),
        at("points past the file's end", (64 + 64) << 9, &le8(3 << 60 | 1 << 12)).read(),
    ];
    for sectors in [0, 3, u64::MAX] {
        damages.push(at(&format!("grain size (0x18) is {sectors} sectors"), 24, &le8(sectors)));
    }
    for sectors in [0, 3, 2048] {
        damages.push(at(&format!("grain table size (0x20) is {sectors} sectors"), 32, &le8(sectors)));
    }
    damages.push(at("grain table size (0x20) of 18446744073709551615 sectors", 32, &le8(u64::MAX)));
    refuse(&subject("vmdk sesparse"), &damages);
}

#[test]
fn bad_input_a_descriptors_that_make_no_sense_are_refused_by_line() {
    let folder = Scratch::in_memory();
    fs::write(folder.file("a"), [7; 8192]).unwrap();
    let start = "# Disk DescriptorFile\n";
    let with = |extents: &str| format!("{start}version=1\nCID=1\nparentCID=ffffffff\n{extents}\n");
    let many = |line: &str, times: usize| with(&line.repeat(times));
    let cases = [
        (format!("{start}CID=1\nRW 8 ZERO\n"), "no line 'version='"),
        (format!("{start}version=0\nCID=1\nRW 8 ZERO\n"), "its descriptor's version is '0'"),
        (format!("{start}version=99999999999999999999\nCID=1\n"), "its descriptor's version is '9999"),
        (format!("{start}version=1\nRW 8 ZERO\n"), "no line 'CID='"),
        (format!("{start}version=1\nCID=100000000\nRW 8 ZERO\n"), "CID is '100000000', not 8 hex digits"),
        (format!("{start}version=1\nCID=1\nparentCID=none\nRW 8 ZERO\n"), "parentCID is 'none'"),
        (with(""), "has no extent"),
        (with("RW 0 ZERO"), "'RW 0 ZERO' has no size in sectors"),
        (with("RW -1 ZERO"), "has no size in sectors"),
        (with("RW 18446744073709551615 ZERO"), "has an absurd size"),
        (with("RW 2199023255552 ZERO\nRW 1 ZERO"), "have more than 1125899906842624 bytes"),
        (with("RW 8 FLAT"), "names no file"),
        (with("RW 8 FLAT \"\" 0"), "names no file"),
        (with("RW 8 FLAT \"a\" 18446744073709551615"), "has an absurd offset"),
        (with("RW 8 FLAT \"a\" -1"), "has an absurd offset"),
        (with("RW 8 FLAT \"a\" 9"), "has 0x2000 bytes, and its extent line says 0x2200"),
        (with("RW 17 FLAT \"a\" 0"), "has 0x2000 bytes, and its extent line says 0x2200"),
        (with("RW 8 FLAT \"a\" 0\nRW 8 FLAT \"a\" 4"), "share bytes of one file"),
        (with("RW 8 SPARSE \"a\""), "is named as a sparse extent, and has no header"),
        (with("RW 8 VMFSRDM \"a\""), "of a kind that is not read here"),
        (with("RW 1 FLAT \"vm.vmdk\" 0"), "names itself as the extent 'vm.vmdk'"),
        (many("RW 1 ZERO\n", 32_769), "more than 32768 extents"),
    ];
    for (text, says) in cases {
        fs::write(folder.file("vm.vmdk"), text).unwrap();
        let name = if says.starts_with("has 0x") || says.starts_with("is named") { "a" } else { "vm.vmdk" };
        for tool in [&["info", "vm.vmdk"][..], &["map", "vm.vmdk"], &["check", "vm.vmdk"]] {
            refused(&folder, tool, name, says);
        }
        refused(&folder, &["convert", "-q", "-O", "raw", "vm.vmdk", "never.raw"], name, says);
    }
    let long = [start.as_bytes(), &vec![b'#'; 4 << 20]].concat();
    fs::write(folder.file("vm.vmdk"), long).unwrap();
    refused(&folder, &["info", "vm.vmdk"], "vm.vmdk", "is a descriptor of 4194326 bytes, more than 4194304");
}

/// The bytes of a stream, and where the marker of its first grain is.
fn stream() -> (Vec<u8>, usize) {
    let bytes = subject("vmdk stream");
    let overhead = u64::from_le_bytes(bytes[64..72].try_into().unwrap());
    let at = usize::try_from(overhead).unwrap() << 9;
    assert!(bytes[at + 8..at + 12] != [0; 4], "a grain is there");
    (bytes, at)
}

#[test]
fn bad_input_b_streams_whose_markers_lie_or_whose_grains_unpack_to_more_are_refused() {
    let (sound, grain) = stream();
    let footer = sound.len() - 1024;
    let length = u32::from_le_bytes(sound[grain + 8..grain + 12].try_into().unwrap());
    let marker = "the grain marker at";
    refuse(
        &sound,
        &[
            at("is a stream without its footer", footer, b"x"),
            at("is a stream without its footer", footer + 56, &le8(u64::MAX)),
            at("its footer's version is 9", footer + 4, &le4(9)),
            at("gdOffset (0x38) of", footer + 56, &le8(u64::MAX - 1)),
            at("does not lie in the file", footer + 56, &le8(1 << 30)),
            at("capacity (0xc) of", footer + 12, &le8(u64::MAX)),
            at(&format!("{marker} 0x{grain:x} is of sector 9999"), grain, &le8(9999)).read(),
            at("has 0 bytes for a grain of 65536", grain + 8, &le4(0)).read(),
            at("has 4294967295 bytes for a grain of 65536", grain + 8, &le4(u32::MAX)).read(),
        ],
    );
    // What is packed is looked at by who reads it.
    let folder = Scratch::in_memory();
    let damages: [(&str, usize, &[u8]); 2] =
        [("is cut off", grain + 8, &le4(length - 8)), ("is not deflate", grain + 12, &[0xff; 8])];
    for (says, at, new) in damages {
        let mut bytes = sound.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        fs::write(folder.file("bad.vmdk"), bytes).unwrap();
        refused(&folder, &["convert", "-q", "-O", "raw", "bad.vmdk", "never.raw"], "bad.vmdk", says);
    }
    // A footer that is gone with the stream's end.
    fs::write(folder.file("cut.vmdk"), &sound[..sound.len() - 512]).unwrap();
    refused(&folder, &["info", "cut.vmdk"], "cut.vmdk", "it was cut off");
    // A grain of 64 KiB, packed, where the header says 4 KiB.
    let mut bytes = sound.clone();
    for header in [0, footer] {
        bytes[header + 12..header + 20].copy_from_slice(&le8(32));
        bytes[header + 20..header + 28].copy_from_slice(&le8(8));
    }
    // The only one: of several that are wrong, any may be met first.
    let sector_at =
        |at: usize| usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap();
    let table = sector_at(sector_at(footer + 56) * 512) * 512;
    bytes[table + 4..table + 2048].fill(0);
    fs::write(folder.file("bomb.vmdk"), bytes).unwrap();
    let convert = ["convert", "-q", "-O", "raw", "bomb.vmdk", "never.raw"];
    refused(&folder, &convert, "bomb.vmdk", "for guest byte 0x0 unpacks to more than a grain");
}

/// Changes words of 4 bytes, which VMDK has the other way round.
fn put_little(folder: &Scratch, image: &str, edits: &[(u64, u64, u64)]) {
    let file = OpenOptions::new().write(true).open(folder.file(image)).unwrap();
    for (at, width, value) in edits {
        let width = usize::try_from(*width).unwrap();
        file.write_all_at(&value.to_le_bytes()[..width], *at).unwrap();
    }
}

#[test]
fn bad_input_b_vmdks_that_claim_much_cost_little() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f vmdk sound.vmdk 64M");
    let refuse = |what: &str, edits: &[(u64, u64, u64)]| {
        fs::copy(folder.file("sound.vmdk"), folder.file("image.vmdk")).unwrap();
        put_little(&folder, "image.vmdk", edits);
        for tool in ["info", "map", "check"] {
            assert_ne!(bounded(&folder, &[tool, "image.vmdk"]).code, 0, "{tool}: {what}");
        }
    };
    refuse("8 EiB", &[(12, 8, 1 << 54)]);
    refuse("1 PiB", &[(12, 8, 1 << 41)]);
    refuse("a directory of GiBs", &[(12, 8, 1 << 40), (20, 8, 1)]);
    refuse("a descriptor of GiBs", &[(36, 8, 1 << 30)]);
    // The largest directories there may be, both; each entry leads to the one table.
    let entries = 2 << 20;
    fs::copy(folder.file("sound.vmdk"), folder.file("vast.vmdk")).unwrap();
    let file = OpenOptions::new().write(true).open(folder.file("vast.vmdk")).unwrap();
    for at in [8 << 20, 32 << 20] {
        repeat(&file, at, &22_u32.to_le_bytes(), entries);
    }
    let places = [(48, 8, (8 << 20) / 512), (56, 8, (32 << 20) / 512), (12, 8, entries * (32 << 20) / 512)];
    put_little(&folder, "vast.vmdk", &places);
    bounded(&folder, &["info", "vast.vmdk"]);
    assert_ne!(bounded(&folder, &["check", "vast.vmdk"]).code, 0);
    // Tables that lie over one another, a sector apart; the second time their grains are compressed, with markers.
    let tables = 1 << 16;
    fs::copy(folder.file("sound.vmdk"), folder.file("over.vmdk")).unwrap();
    let file = OpenOptions::new().write(true).open(folder.file("over.vmdk")).unwrap();
    let words: Vec<u8> = (0..tables).flat_map(|nth: u32| le4((16 << 11) + nth)).collect();
    file.write_all_at(&words, 8 << 20).unwrap();
    drop(words);
    repeat(&file, 16 << 20, &le4(200), 8 << 20);
    let places = [(12, 8, u64::from(tables) << 16), (48, 8, 0), (56, 8, (8 << 20) / 512)];
    for flags in [(8, 4, 1), (8, 4, 1 | 3 << 16)] {
        put_little(&folder, "over.vmdk", &[&places[..], &[flags, (77, 2, 1)]].concat());
        bounded(&folder, &["info", "over.vmdk"]);
        assert_eq!(bounded(&folder, &["check", "over.vmdk"]).code, 2);
    }
    // Extents of which each is within bounds.
    let line = |n: u32| format!("RW 274877906944 SPARSE \"e{n}.vmdk\"\n");
    let text: String = (0..4).map(line).collect();
    fs::write(folder.file("all.vmdk"), format!("# Disk DescriptorFile\nversion=1\nCID=1\n{text}")).unwrap();
    for n in 0..4 {
        fs::hard_link(folder.file("vast.vmdk"), folder.file(&format!("e{n}.vmdk"))).unwrap();
    }
    assert_ne!(bounded(&folder, &["info", "all.vmdk"]).code, 0);
}
