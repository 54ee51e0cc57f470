//! Malformed VHDX images through the program: each size, offset and count, what lies over something else, logs that are not
//! whole, and images that claim more than they have.

use crate::{
    bad_input::{Bad, Sound, bad, bounded},
    foreign::Scratch,
};
use deltachain::{
    base::{GuestOffset, HostOffset},
    format::{self, Creation, Format, Image, NoParts, Nothing, ParentName},
    io::{File, memory::MemoryFile},
};
use std::{fs, os::unix::fs::FileExt, sync::Arc};

/// Where things are in the images that are made here.
const MAGIC: usize = 0;
const HEADERS: [usize; 2] = [0x1_0000, 0x2_0000];
const TABLES: [usize; 2] = [0x3_0000, 0x4_0000];
const LOG: usize = 0x10_0000;
const METADATA: usize = 0x20_0000;
const BAT: usize = 0x30_0000;
const MIB: u64 = 1 << 20;

/// A disk of 8 MiB with two of its blocks, and the file that it is in.
fn made(parent: Option<&str>) -> (Arc<MemoryFile>, Arc<dyn Image>) {
    let file = Arc::new(MemoryFile::new("vm.vhdx"));
    let options = vec![("block_size".to_owned(), "1M".to_owned())];
    let parent = parent.map(|name| ParentName::new(name.into(), Some("vhdx".to_owned())));
    let creation = Creation { size: 8 << 20, parent, options };
    let image = format::create(Format::Vhdx, file.clone(), &creation, &NoParts).unwrap();
    for at in [0, 1 << 20] {
        image.write(GuestOffset::new(at), &[3; 5120], &Nothing).unwrap();
    }
    image.flush().unwrap();
    (file, image)
}

fn bytes_of(file: &MemoryFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// The bytes of an image whose log is empty.
fn clean(parent: Option<&str>) -> Vec<u8> {
    let (file, image) = made(parent);
    drop(image);
    bytes_of(&file)
}

/// The bytes of one whose log is still to be put in its place.
fn dirty() -> Vec<u8> {
    let (file, image) = made(None);
    let bytes = bytes_of(&file);
    drop(image);
    assert!(bytes[LOG..].starts_with(b"loge") && bytes[HEADERS[0] + 48..][..16] != [0; 16]);
    bytes
}

fn le4(word: u32) -> [u8; 4] {
    word.to_le_bytes()
}

fn le8(word: u64) -> [u8; 8] {
    word.to_le_bytes()
}

/// The same damage in both copies of a structure.
fn both(says: &str, places: [usize; 2], at: usize, bytes: &[u8]) -> Bad {
    bad(says, &places.map(|place| (place + at, bytes)))
}

fn refuse(bytes: &[u8], damages: &[Bad]) {
    let folder = Scratch::in_memory();
    Sound { format: Format::Vhdx, name: "vm.vhdx", bytes }.each_is_refused(&folder, damages);
}

#[test]
fn bad_input_a_each_field_of_vhdx_headers_is_refused_by_name() {
    let header = |says: &str, at: usize, bytes: &[u8]| both(says, HEADERS, at, bytes);
    let not_there = "is not in whole MiB inside the file";
    let mut damages = vec![
        bad("the signature at 0x0 is missing", &[(MAGIC, b"vhdxfilf")]),
        header("the header at 0x10000 has the checksum", 100, &[1]).unsummed(),
        header("the header at 0x10000 has no signature, the one at 0x20000 has no", 0, b"xead"),
        header("has VHDX version 0: only 1", 66, &[0, 0]),
        header("has VHDX version 65535", 66, &[0xff, 0xff]),
        header("has a log of version 1: only 0", 64, &[1]),
        header("header: a log of 0x1 bytes", 68, &le4(1)),
        header("header: a log of 0xffffffff bytes", 68, &le4(u32::MAX)),
        header("header: a log of 0xfff00000 bytes", 68, &le4(0xfff0_0000)),
        header("the log at 0x200000 overlaps", 72, &le8(2 * MIB)),
    ];
    for at in [0, 4096, MIB + 512, 1 << 40, 0xffff_ffff_fff0_0000, u64::MAX] {
        damages.push(header(not_there, 72, &le8(at)));
    }
    let log_of_nothing = HEADERS.map(|at| [(at + 48, &[7; 16][..]), (at + 68, &[0; 4])]);
    damages.push(bad("header: a log of 0x0 bytes", &log_of_nothing.concat()));
    let one_number = [(HEADERS[0] + 8, &le8(9)[..]), (HEADERS[1] + 8, &le8(9)), (HEADERS[1] + 16, &[5])];
    damages.push(bad("both headers have the sequence number 9", &one_number));
    refuse(&clean(None), &damages);
}

#[test]
fn bad_input_a_each_field_of_vhdx_region_tables_is_refused_by_name() {
    let sound = clean(None);
    let table = |says: &str, at: usize, bytes: &[u8]| both(says, TABLES, at, bytes);
    let (bat, outside) = ("region table: block allocation table", "is not in whole MiB behind the header");
    let mut damages = vec![
        table("the region table at 0x30000 has the checksum", 100, &[1]).unsummed(),
        table("the region table at 0x30000 has no signature", 0, b"regx"),
        table("4294967295 entries: at most 2047", 8, &le4(u32::MAX)),
        table("2048 entries: at most 2047", 8, &le4(2048)),
        table("region table: has no block allocation table", 8, &le4(0)),
        table("region table: has no metadata region", 8, &le4(1)),
        table("region table: has no metadata region", 48, &[5; 16]),
        table("the log at 0x100000 overlaps", 32, &le8(MIB)),
        table("overlaps", 32, &le8(2 * MIB)),
        table(bat, 32, &le8(1 << 50)),
        table(bat, 32, &le8(0xffff_ffff_fff0_0000)),
        table(bat, 40, &le4(0xfff0_0000)),
        table("region table: metadata region", 72, &le4(0xfff0_0000)),
    ];
    for at in [0, 4096, 3 * MIB + 4096, u64::MAX] {
        damages.push(table(outside, 32, &le8(at)));
    }
    for bytes in [0, 1, u32::MAX] {
        damages.push(table(outside, 40, &le4(bytes)));
    }
    let first = &sound[TABLES[0] + 16..TABLES[0] + 32];
    damages.push(table("has more than one block allocation table", 48, first));
    // A third region, over a block, that a reader would have to know.
    let third = [[5; 16].as_slice(), &le8(5 * MIB), &le4(1 << 20), &le4(1)].concat();
    let third = TABLES.map(|at| [(at + 8, le4(3).to_vec()), (at + 80, third.clone())]).concat();
    let third: Vec<(usize, &[u8])> = third.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
    damages.push(bad("needs a region that is not known here: 05050505", &third));
    refuse(&sound, &damages);
}

#[test]
fn bad_input_a_each_field_of_vhdx_metadata_is_refused_by_name() {
    let sound = clean(None);
    let entry = |nth: usize| METADATA + 32 * (nth + 1);
    let item = |nth: usize| {
        let at = sound[entry(nth) + 16..entry(nth) + 20].try_into().unwrap();
        METADATA + usize::try_from(u32::from_le_bytes(at)).unwrap()
    };
    let [parameters, size, _, logical, physical] = [0, 1, 2, 3, 4].map(item);
    let at = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(at, bytes)]);
    let mut damages = vec![
        at("metadata: no signature at 0x200000", METADATA, b"x"),
        at("metadata: 65535 items: at most 2047", METADATA + 10, &[0xff, 0xff]),
        at("metadata: has no file parameters", METADATA + 10, &[0, 0]),
        at("is there more than once", entry(1), &sound[entry(0)..entry(0) + 16]),
        at("needs a metadata item that is not known here: 03030303", entry(1), &[3; 16]),
        at("share bytes (at 0x10000)", entry(1) + 16, &le4(0x1_0000)),
        at("metadata: virtual disk size of 3 bytes", entry(1) + 20, &le4(3)),
        at("metadata: virtual disk size of 9 bytes", entry(1) + 20, &le4(9)),
        at("the file has a parent and no parent locator", parameters + 4, &[2]),
        at("metadata: a disk of 0x8000000000000000 bytes", size, &le8(1 << 63)),
        at("metadata: a disk of 0xffffffffffffffff bytes", size, &le8(u64::MAX)),
        at("whole sectors, 64 TiB at most", size, &le8((64 << 40) + 512)),
        at("whole sectors", size, &[1]),
        at("has room for 131072 entries", size, &le8(64 << 40)),
    ];
    for (place, bytes) in [(0, 8), (0xffff, 8), (u32::MAX, 8), (0x1_0000, u32::MAX), (0x1_0000, 0x10_0001)] {
        let new = [le4(place), le4(bytes)].concat();
        damages.push(at("is not in the region", entry(0) + 16, &new));
    }
    for bytes in [0, 1, 0x8_0000, 0x30_0000, 512 << 20, u32::MAX] {
        damages.push(at(&format!("metadata: a block size of 0x{bytes:x}"), parameters, &le4(bytes)));
    }
    for (name, place) in [("logical", logical), ("physical", physical)] {
        for bytes in [0, 513, u32::MAX] {
            damages.push(at(&format!("metadata: a {name} sector size of {bytes}"), place, &le4(bytes)));
        }
    }
    refuse(&sound, &damages);
}

#[test]
fn bad_input_a_entries_of_a_vhdx_table_that_lead_astray_are_refused_by_guest_byte() {
    let sound = clean(None);
    let entry = |says: &str, nth: usize, word: u64| bad(says, &[(BAT + nth * 8, &le8(word))]);
    let second = u64::from_le_bytes(sound[BAT + 8..BAT + 16].try_into().unwrap());
    refuse(
        &sound,
        &[
            entry("for guest byte 0x0 has the unknown state 4", 0, 4),
            entry("for guest byte 0x200000 is partly present", 2, 5 << 20 | 7),
            entry("for guest byte 0x0 points into the header (0x0)", 0, 6),
            entry("points to 0x100000, which something else uses", 0, MIB | 6),
            entry("points to 0x200000, which something else uses", 0, (2 * MIB) | 6),
            entry("points to 0x300000, which something else uses", 0, (3 * MIB) | 6),
            entry("points past the file's end (0x10000000000 of", 0, 1 << 40 | 6),
            entry("points past the file's end (0xfffffffffff00000 of", 0, u64::MAX - 1),
            entry("for guest byte 0x100000 points to", 0, second),
        ],
    );
}

#[test]
fn bad_input_e_vhdx_children_without_bitmaps_or_with_a_locator_that_is_none_are_refused() {
    let sound = clean(Some("base.vhdx"));
    assert_eq!(sound[BAT] & 7, 7, "partly present");
    // One entry of a bitmap follows those of 4096 blocks; the locator is the sixth item.
    let bitmap = BAT + 4096 * 8;
    let entry = METADATA + 32 * 6;
    let word =
        |at: usize| usize::try_from(u32::from_le_bytes(sound[at..at + 4].try_into().unwrap())).unwrap();
    let locator = METADATA + word(entry + 16);
    let pair = |nth: usize| locator + 20 + nth * 12;
    let at = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(at, bytes)]);
    let relative: Vec<u8> = "relative_path".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let name = sound.windows(relative.len()).position(|window| window == relative).unwrap();
    let key =
        |nth: usize, from: usize, length: usize| sound[pair(nth) + from..pair(nth) + from + length].to_vec();
    let twice = [(pair(1), key(0, 0, 4)), (pair(1) + 8, key(0, 8, 2))];
    let twice: Vec<(usize, &[u8])> = twice.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
    let folder = Scratch::in_memory();
    fs::write(folder.file("base.vhdx"), clean(None)).unwrap();
    Sound { format: Format::Vhdx, name: "vm.vhdx", bytes: &sound }.each_is_refused(
        &folder,
        &[
            at("for a sector bitmap is missing", bitmap, &le8(0)),
            at("for a sector bitmap has the unknown state 4", bitmap, &[4]),
            at("for a sector bitmap points into the header", bitmap, &le8(6)),
            at("for a sector bitmap points past the file's end", bitmap, &le8(1 << 40 | 6)),
            at("for a sector bitmap points to 0x300000, which something", bitmap, &le8((3 * MIB) | 6)),
            at("parent locator: a parent of unknown kind", locator, &[9; 16]),
            at("parent locator: has", locator + 18, &[0xff, 0xff]),
            at("parent locator: pair 0 does not lie in the item", pair(0), &le4(u32::MAX)),
            at("parent locator: pair 1 does not lie in the item", pair(1) + 4, &le4(1 << 20)),
            at("parent locator: pair 0 does not lie in the item", pair(0) + 8, &[3]),
            at("parent locator: pair 1 lies over others", pair(1) + 10, &[0xfe, 0xff]),
            at("is no UTF-16", name, &[0, 0xd8]),
            bad("more than once", &twice),
            at("parent locator: names no path", name, b"x"),
            at("parent locator: has 0 bytes", entry + 20, &le4(0)),
        ],
    );
}

#[test]
fn bad_input_e_a_vhdx_log_that_is_not_whole_or_leads_astray_is_refused() {
    let sound = dirty();
    let at = |says: &str, at: usize, bytes: &[u8]| bad(says, &[(LOG + at, bytes)]);
    let lost = "log at 0x100000: no whole sequence of entries";
    let mut damages = vec![
        at(lost, 0, b"logx"),
        at(lost, 5000, b"torn").unsummed(),
        at(lost, 8, &le4(0)),
        at(lost, 8, &le4(1)),
        at(lost, 8, &le4(u32::MAX)),
        at(lost, 12, &le4(4096)),
        at(lost, 12, &le4(u32::MAX)),
        at(lost, 16, &le8(0)),
        at(lost, 24, &le4(u32::MAX)),
        at(lost, 32, &[9; 16]),
        at("log entry 1: the file had 0x8000000000000000 bytes", 48, &le8(1 << 63)),
        at("log entry 1: a file of 0xffffffffffffffff bytes", 56, &le8(u64::MAX)),
        at("log entry 1: descriptor 0 is of no known kind", 64, b"desk"),
        at("log entry 1: descriptor 0 has another sequence number", 88, &le8(2)),
        at("log entry 1: descriptor 0 has a page of another entry", 4096, b"date"),
    ];
    for place in [0, 0x1_0000, 0x2_0000, 0x10_0000, 0x1f_f000] {
        damages.push(at("descriptor 0 leads into the header or the log", 80, &le8(place)));
    }
    for place in [1, 4097, 1 << 40, u64::MAX, u64::MAX << 12] {
        damages.push(at("descriptor 0 leads outside the file", 80, &le8(place)));
    }
    let zeros = [b"zero".as_slice(), &[0; 4], &le8(u64::MAX << 12), &le8(MIB)].concat();
    damages.push(at("descriptor 0 leads outside the file", 64, &zeros));
    refuse(&sound, &damages);
}

#[test]
fn a_vhdx_log_that_is_sound_is_read_without_a_write_and_put_in_its_place_by_who_writes() {
    let folder = Scratch::in_memory();
    let sound = dirty();
    let file = folder.file("vm.vhdx");
    fs::write(&file, &sound).unwrap();
    for tool in
        [&["info", "vm.vhdx"][..], &["check", "vm.vhdx"], &["convert", "-q", "-O", "raw", "vm.vhdx", "flat"]]
    {
        let said = bounded(&folder, tool);
        assert_eq!(said.code, 0, "{tool:?}: {}", said.err);
        assert!(fs::read(&file).unwrap() == sound, "{tool:?} wrote");
    }
    let shown = fs::read(folder.file("flat")).unwrap();
    assert_eq!((shown[5119], shown[5120], shown[1 << 20]), (3, 0, 3));
    assert_eq!(bounded(&folder, &["resize", "-q", "vm.vhdx", "+1M"]).code, 0);
    let after = fs::read(&file).unwrap();
    assert!(HEADERS.iter().any(|at| after[at + 48..at + 64] == [0; 16]), "the log is empty");
    assert_eq!(folder.flat("vhdx", "vm.vhdx")[..8 << 20], shown);
}

/// Bytes at places of a file that is made longer first.
fn spread(folder: &Scratch, name: &str, bytes: u64, edits: &[(u64, &[u8])]) {
    let file = fs::OpenOptions::new().write(true).open(folder.file(name)).unwrap();
    file.set_len(bytes).unwrap();
    for (at, bytes) in edits {
        file.write_all_at(bytes, *at).unwrap();
    }
}

/// Puts the sums of a file's headers and region tables right.
fn summed(folder: &Scratch, name: &str) {
    let file = fs::OpenOptions::new().read(true).write(true).open(folder.file(name)).unwrap();
    let mut start = vec![0; 1 << 20];
    file.read_exact_at(&mut start, 0).unwrap();
    dchain_lab::fuzz::put_sums_right(Format::Vhdx, &mut start);
    file.write_all_at(&start, 0).unwrap();
}

#[test]
fn bad_input_b_vhdx_images_that_claim_much_cost_little() {
    let folder = Scratch::in_memory();
    let sound = clean(None);
    let size = METADATA
        + usize::try_from(u32::from_le_bytes(sound[METADATA + 80..][..4].try_into().unwrap())).unwrap();
    let size = u64::try_from(size).unwrap();
    let begin = |name: &str| fs::write(folder.file(name), &sound).unwrap();
    // A table of 28 MiB behind the blocks, each of whose entries is wrong in one way.
    for (nth, word) in [4, 1 << 40 | 6, 4 << 20 | 6].into_iter().enumerate() {
        let name = format!("wrong{nth}");
        begin(&name);
        let table = le8(word).repeat(1 << 17);
        let mut edits: Vec<(u64, &[u8])> = (8..36).map(|mib| (mib * MIB, table.as_slice())).collect();
        let place = [le8(8 * MIB).as_slice(), &le4(28 << 20)].concat();
        edits.extend(TABLES.map(|at| (at as u64 + 32, place.as_slice())));
        let disk = le8(3 << 40);
        edits.push((size, &disk));
        spread(&folder, &name, 36 * MIB, &edits);
        drop(edits);
        summed(&folder, &name);
        for tool in ["info", "check"] {
            assert_ne!(bounded(&folder, &[tool, &name]).code, 0, "{tool} {name}");
        }
        fs::remove_file(folder.file(&name)).unwrap();
    }
    // 64 TiB in blocks of 256 MiB is what a file of 32 MiB may say: a disk of zeros.
    begin("vast");
    let (disk, block) = (le8(64 << 40), le4(256 << 20));
    let parameters =
        u64::from(u32::from_le_bytes(sound[METADATA + 48..][..4].try_into().unwrap())) + METADATA as u64;
    let bat = [le8(8 * MIB).as_slice(), &le4(4 << 20)].concat();
    let tables = TABLES.map(|at| (at as u64 + 32, bat.as_slice()));
    spread(&folder, "vast", 32 * MIB, &[&tables[..], &[(size, &disk), (parameters, &block)]].concat());
    summed(&folder, "vast");
    for tool in ["info", "check"] {
        let said = bounded(&folder, &[tool, "vast"]);
        assert_eq!(said.code, 0, "{tool}: {}", said.err);
    }
}

#[test]
fn bad_input_b_vhdx_logs_that_claim_much_cost_little() {
    let folder = Scratch::in_memory();
    let sound = dirty();
    let begin = |name: &str| fs::write(folder.file(name), &sound).unwrap();
    let refuse = |name: &str| {
        summed(&folder, name);
        for tool in ["info", "map", "check"] {
            assert_ne!(bounded(&folder, &[tool, name]).code, 0, "{tool} {name}");
        }
    };
    let log_of = |mib: u32| [le4(mib << 20).as_slice(), &le8(16 * MIB)].concat();
    // Almost 4 GiB of nothing; then with entries that claim all of it.
    let long = log_of(4095);
    let places = HEADERS.map(|at| (at as u64 + 68, long.as_slice()));
    begin("long");
    spread(&folder, "long", 16 * MIB + (4 << 30), &places);
    refuse("long");
    let mut entry = sound[LOG..LOG + 64].to_vec();
    entry[8..12].copy_from_slice(&le4(4095 << 20));
    entry[24..28].copy_from_slice(&le4(1 << 20));
    begin("claims");
    let entries: Vec<(u64, &[u8])> = (0..64).map(|nth| (16 * MIB + nth * 4096, entry.as_slice())).collect();
    spread(&folder, "claims", 16 * MIB + (4 << 30), &[&places[..], &entries].concat());
    refuse("claims");
    // Entries over one another, each as long as what is left.
    let short = log_of(16);
    let places = HEADERS.map(|at| (at as u64 + 68, short.as_slice()));
    entry[8..12].copy_from_slice(&le4(15 << 20));
    let page = [entry.as_slice(), &[7; 4032]].concat().repeat(256);
    begin("over");
    let pages: Vec<(u64, &[u8])> = (16..32).map(|mib| (mib * MIB, page.as_slice())).collect();
    spread(&folder, "over", 32 * MIB, &[&places[..], &pages].concat());
    refuse("over");
}

/// An entry with as many pages and zeros as a log has room for: sound, and no reason to take long.
#[test]
fn bad_input_b_a_vhdx_log_of_many_descriptors_costs_little() {
    let folder = Scratch::in_memory();
    let sound = dirty();
    fs::write(folder.file("many"), &sound).unwrap();
    let (pages, zeros) = (2000_u32, 400_000_u32);
    let guid = &sound[LOG + 32..LOG + 48];
    let descriptors = pages + zeros;
    let front = (usize::try_from(descriptors).unwrap() + 2).div_ceil(128) * 4096;
    let bytes = front + usize::try_from(pages).unwrap() * 4096;
    let mut entry = vec![0; bytes];
    let head = [
        b"loge".as_slice(),
        &[0; 4],
        &le4(u32::try_from(bytes).unwrap()),
        &le4(0),
        &le8(1),
        &le4(descriptors),
    ];
    let head = [&head.concat(), [0; 4].as_slice(), guid, &le8(4 * MIB), &le8(64 * MIB)].concat();
    entry[..64].copy_from_slice(&head);
    for (nth, descriptor) in
        entry[64..front].chunks_exact_mut(32).take(usize::try_from(descriptors).unwrap()).enumerate()
    {
        let nth = u64::try_from(nth).unwrap();
        // Zeros far behind all that there is; pages in front of them.
        let new = if nth < pages.into() {
            [b"desc".as_slice(), &[0; 12], &le8((40 << 20) + nth * 4096), &le8(1)].concat()
        } else {
            [b"zero".as_slice(), &[0; 4], &le8(4096), &le8((48 << 20) + nth % 2000 * 8192), &le8(1)].concat()
        };
        descriptor.copy_from_slice(&new);
    }
    for page in entry[front..].chunks_exact_mut(4096) {
        page[..4].copy_from_slice(b"data");
        page[4092..].copy_from_slice(&le4(1));
    }
    let sum = crc32c::crc32c(&entry);
    entry[4..8].copy_from_slice(&le4(sum));
    let place = [le4(31 << 20).as_slice(), &le8(8 * MIB)].concat();
    let places = HEADERS.map(|at| (at as u64 + 68, place.as_slice()));
    spread(&folder, "many", 39 * MIB, &[&places[..], &[(8 * MIB, &entry)]].concat());
    drop(entry);
    summed(&folder, "many");
    for tool in ["info", "map", "check"] {
        let said = bounded(&folder, &[tool, "many"]);
        assert_eq!(said.code, 0, "{tool}: {}", said.err);
    }
}
