//! Inputs that are refused, each by its field.

use super::{
    super::super::{
        bytes::checksum,
        header::Header,
        log::{self, Page, Stamp},
        region::TABLES_AT,
    },
    *,
};

const METADATA_AT: u64 = 2 << 20;
const BAT_AT: u64 = 3 << 20;

/// A clean image with two blocks.
fn sound() -> Arc<MemoryFile> {
    let (file, image) = made(&[("block_size", "1M")], 8 << 20, false);
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    image.write(GuestOffset::new(1 << 20), &[2; 512], &Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    file
}

fn refusal(file: &Arc<MemoryFile>) -> String {
    let said = open(file.clone(), false, &NoParts).unwrap_err().to_string();
    assert_eq!(open(file.clone(), true, &NoParts).unwrap_err().to_string(), said, "for a writer, too");
    assert!(said.starts_with("image: "), "{said}");
    said
}

/// Changes bytes of a sound image, and returns the refusal.
fn with(at: u64, bytes: &[u8]) -> String {
    let file = sound();
    file.write_at(HostOffset::new(at), bytes).unwrap();
    refusal(&file)
}

/// Puts the checksum right of a structure of `length` bytes.
fn sum(file: &MemoryFile, at: u64, length: usize) {
    let mut bytes = vec![0; length];
    file.read_at(HostOffset::new(at), &mut bytes).unwrap();
    file.write_at(HostOffset::new(at + 4), &checksum(&bytes).to_le_bytes()).unwrap();
}

#[track_caller]
fn assert_says(said: &str, words: &[&str]) {
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

/// Changes bytes of both headers, or of both region tables, with their sums.
fn with_both(places: [HostOffset; 2], length: usize, at: u64, bytes: [&[u8]; 2]) -> String {
    let file = sound();
    for (place, bytes) in places.into_iter().zip(bytes) {
        file.write_at(place.plus(at), bytes).unwrap();
        sum(&file, place.bytes(), length);
    }
    refusal(&file)
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let both = |at: u64, bytes: &[u8]| with_both(HEADERS_AT, 4096, at, [bytes; 2]);
    assert_says(&with(0, b"vhdxfilf"), &["signature", "0x0"]);
    let file = sound();
    for at in HEADERS_AT {
        file.write_at(at.plus(100), &[1]).unwrap();
    }
    assert_says(&refusal(&file), &["0x10000", "0x20000", "checksum"]);
    assert_says(&both(72, &(1_u64 << 40).to_le_bytes()), &["header", "log", "0x10000000000"]);
    assert_says(&both(66, &[2]), &["version 2"]);
    assert_says(&both(64, &[1]), &["log of version 1"]);
    let numbers = [[9, 0, 0, 0, 0, 0, 0, 0, 1], [9, 0, 0, 0, 0, 0, 0, 0, 2]];
    let said = with_both(HEADERS_AT, 4096, 8, [&numbers[0], &numbers[1]]);
    assert_says(&said, &["sequence number 9"]);
}

#[test]
fn region_tables_that_contradict_themselves_are_refused() {
    let both = |at: u64, bytes: &[u8]| with_both(TABLES_AT, 64 << 10, at, [bytes; 2]);
    // The first entry is the block allocation table's, the second the metadata's.
    let mut entry = [0; 16];
    sound().read_at(TABLES_AT[0].plus(16), &mut entry).unwrap();
    assert_says(&both(48, &entry), &["region table", "more than one"]);
    assert_says(&both(32, &(1_u64 << 50).to_le_bytes()), &["region table", "0x4000000000000", "end"]);
    assert_says(&both(32, &METADATA_AT.to_le_bytes()), &["0x200000", "overlaps"]);
    assert_says(&both(32, &(1_u64 << 20).to_le_bytes()), &["the log", "overlaps"]);
    assert_says(&both(40, &[1, 0, 0, 0]), &["whole MiB"]);
    assert_says(&both(8, &[0xff, 0xff, 0, 0]), &["65535 entries"]);
    assert_says(&both(48, &[5; 16]), &["metadata region"]);
    let file = sound();
    for at in TABLES_AT {
        file.write_at(at.plus(100), &[1]).unwrap();
    }
    assert_says(&refusal(&file), &["0x30000", "0x40000", "checksum"]);
    // One of them is enough.
    let file = sound();
    file.write_at(TABLES_AT[0].plus(100), &[1]).unwrap();
    drop(open(file.clone(), false, &NoParts).unwrap());
    assert_eq!(check(file.clone(), Repair::All).unwrap().corruptions_fixed, 1);
    assert_eq!(check(file, Repair::Nothing).unwrap().corruptions, 0);
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    let file = sound();
    let mut table = vec![0; 32 * 6];
    file.read_at(HostOffset::new(METADATA_AT), &mut table).unwrap();
    let item = |nth: usize| {
        let at: [u8; 4] = table[32 * nth + 16..32 * nth + 20].try_into().unwrap();
        METADATA_AT + u64::from(u32::from_le_bytes(at))
    };
    let (parameters, size, sector) = (item(1), item(2), item(4));
    assert_says(&with(METADATA_AT, b"x"), &["metadata", "signature", "0x200000"]);
    assert_says(&with(METADATA_AT + 10, &[0xff, 0xff]), &["65535 items"]);
    assert_says(&with(METADATA_AT + 48, &[0xff; 4]), &["metadata", "not in the region"]);
    assert_says(&with(METADATA_AT + 64, &table[32..48]), &["more than once"]);
    assert_says(&with(METADATA_AT + 64, &[3; 16]), &["not known here"]);
    assert_says(&with(parameters, &[1, 0, 0, 0]), &["block size", "0x1:"]);
    assert_says(&with(parameters, &(512_u32 << 20).to_le_bytes()), &["block size"]);
    assert_says(&with(parameters + 4, &[2]), &["no parent locator"]);
    assert_says(&with(sector, &[7]), &["logical sector size"]);
    assert_says(&with(size, &(65_u64 << 40).to_le_bytes()), &["64 TiB"]);
    assert_says(&with(size, &[1]), &["whole sectors"]);
    // A table of 1 MiB does not describe this.
    assert_says(&with(size, &(60_u64 << 40).to_le_bytes()), &["block allocation table", "room for 131072"]);
}

#[test]
fn entries_that_lead_nowhere_or_to_one_place_are_refused_and_mended() {
    let with_entry = |word: u64| with(BAT_AT, &word.to_le_bytes());
    let past = with_entry(1 << 40 | 6);
    assert_says(&past, &["block allocation table", "0x300000", "guest byte 0x0", "past the file's end"]);
    assert_says(&with_entry(6), &["into the header"]);
    assert_says(&with_entry(METADATA_AT | 6), &["0x200000", "something else uses"]);
    assert_says(&with_entry(4), &["state 4"]);
    assert_says(&with_entry(4 << 20 | 7), &["partly present"]);
    let mut second = [0; 8];
    sound().read_at(HostOffset::new(BAT_AT + 8), &mut second).unwrap();
    assert_says(&with(BAT_AT, &second), &["guest byte 0x100000", "something else uses"]);
    let file = sound();
    file.write_at(HostOffset::new(BAT_AT), &(1_u64 << 40 | 6).to_le_bytes()).unwrap();
    assert_eq!(check(file.clone(), Repair::Nothing).unwrap().corruptions, 1);
    let mended = check(file.clone(), Repair::All).unwrap();
    assert_eq!((mended.corruptions, mended.corruptions_fixed), (0, 1));
    let disk = shown(open(file, false, &NoParts).unwrap().as_ref(), &Nothing);
    assert!(disk[..1 << 20].iter().all(|byte| *byte == 0) && disk[1 << 20] == 2);
}

const GUID: uuid::Uuid = uuid::Uuid::from_u128(0x1234);

/// A sound image whose header names the log, with entries at places of it.
fn logged(entries: &[(u64, Vec<u8>)]) -> Arc<MemoryFile> {
    let file = sound();
    let mut header = Header::read(file.as_ref()).unwrap();
    header.update(file.as_ref(), |h| h.log_guid = GUID).unwrap();
    file.zero(header.log, Kept::Space).unwrap();
    for (at, bytes) in entries {
        file.write_at(header.log.start.plus(*at), bytes).unwrap();
    }
    file
}

fn stamp(sequence: u64) -> Stamp {
    Stamp { log_guid: GUID, sequence, tail: 0, flushed_bytes: 4 << 20, file_bytes: 4 << 20 }
}

/// An entry that makes a page zeros.
fn entry(at: u64, stamp: Stamp) -> Vec<u8> {
    log::encode(&[Page { at: HostOffset::new(at), bytes: vec![0; 4096] }], stamp)
}

#[test]
fn logs_that_contradict_themselves_are_refused() {
    let good = entry(BAT_AT, stamp(1));
    assert_says(&refusal(&logged(&[])), &["log at 0x100000", "no whole sequence"]);
    let mut torn = good.clone();
    torn[5000] ^= 1;
    assert_says(&refusal(&logged(&[(0, torn)])), &["no whole sequence"]);
    let other = Stamp { log_guid: uuid::Uuid::from_u128(5), ..stamp(1) };
    assert_says(&refusal(&logged(&[(0, entry(BAT_AT, other))])), &["no whole sequence"]);
    let loops = Stamp { tail: 4096, ..stamp(1) };
    assert_says(&refusal(&logged(&[(0, entry(BAT_AT, loops))])), &["no whole sequence"]);
    assert_says(&refusal(&logged(&[(0, entry(1 << 40, stamp(1)))])), &["log entry 1", "outside the file"]);
    assert_says(&refusal(&logged(&[(0, entry(64 << 10, stamp(1)))])), &["descriptor 0", "header or the log"]);
    assert_says(&refusal(&logged(&[(0, entry(1 << 20, stamp(1)))])), &["header or the log (0x100000)"]);
    let cut = Stamp { flushed_bytes: 1 << 30, ..stamp(1) };
    assert_says(&refusal(&logged(&[(0, entry(BAT_AT, cut))])), &["0x40000000", "was cut"]);
}

#[test]
fn a_log_whose_entries_are_lost_is_given_up_by_a_repair_and_by_nothing_else() {
    // What follows a torn entry bears the number that comes after the repair's own first one.
    let mut torn = entry(BAT_AT, stamp(1));
    torn[5000] ^= 1;
    let file = logged(&[(0, torn), (8192, entry(BAT_AT, Stamp { tail: 4096, ..stamp(2) }))]);
    file.write_at(HostOffset::new(BAT_AT + 16), &(1_u64 << 40 | 6).to_le_bytes()).unwrap();
    for repair in [Repair::Nothing, Repair::Leaks] {
        let found = check(file.clone(), repair).unwrap();
        assert_eq!(found.corruptions, 2, "{:?}", found.findings);
        assert_says(&found.findings[0], &["log at 0x100000", "changes of the tables are lost"]);
    }
    assert_says(&refusal(&file), &["no whole sequence"]);
    let mended = check(file.clone(), Repair::All).unwrap();
    assert_eq!((mended.corruptions, mended.corruptions_fixed), (0, 2));
    let disk = shown(open(file, true, &NoParts).unwrap().as_ref(), &Nothing);
    assert_eq!((disk[0], disk[1 << 20], disk[2 << 20]), (1, 2, 0));
}

#[test]
fn the_newest_whole_sequence_of_a_log_counts() {
    let disk = |entries: &[(u64, Vec<u8>)]| {
        let image = open(logged(entries), false, &NoParts).unwrap();
        let disk = shown(image.as_ref(), &Nothing);
        (disk[0], disk[1 << 20])
    };
    let (good, elsewhere) = (entry(BAT_AT, stamp(1)), 64 << 12);
    assert_eq!(disk(&[(0, good.clone())]), (0, 0));
    // An entry whose number does not follow, and which stands alone: what came before it does not count.
    let alone = |sequence| entry(BAT_AT + 4096, Stamp { tail: 64 << 12, ..stamp(sequence) });
    assert_eq!(disk(&[(0, good.clone()), (elsewhere, alone(3))]), (1, 2));
    // One that goes back to the first, which it does not follow, is not whole.
    assert_eq!(disk(&[(0, good.clone()), (8192, entry(BAT_AT + 4096, stamp(3)))]), (0, 0));
    assert_eq!(disk(&[(0, good), (8192, entry(BAT_AT + 4096, stamp(2)))]), (0, 0));
    // The ring's end is in the middle of an entry.
    let mut round = entry(BAT_AT, Stamp { tail: (1 << 20) - 4096, ..stamp(1) });
    let rest = round.split_off(4096);
    assert_eq!(disk(&[((1 << 20) - 4096, round), (0, rest)]), (0, 0));
}
