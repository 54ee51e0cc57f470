//! What a child stores; what the log leaves; inputs that are refused.

mod bad;

use super::super::{check, create, header::HEADERS_AT, open};
use super::*;
use crate::{
    base::units::index,
    format::{
        Creation, NoParts, Nothing, Repair,
        conformance::{Bytes, copied, named, noise},
    },
    io::memory::MemoryFile,
};

fn parent() -> ParentName {
    named(Format::Vhdx, "../base.vhdx", Format::Vhdx)
}

/// Makes an image in memory; a child if something is to lie below it.
pub(super) fn made(options: &[(&str, &str)], size: u64, is_child: bool) -> (Arc<MemoryFile>, Arc<dyn Image>) {
    let file = Arc::new(MemoryFile::new("image"));
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let creation = Creation { size, parent: is_child.then(parent), options };
    let image = create(file.clone(), &creation, &NoParts).unwrap();
    (file, image)
}

pub(super) fn shown(image: &dyn Image, below: &dyn Below) -> Vec<u8> {
    let mut disk = vec![9; index(image.size())];
    image.read(GuestOffset::new(0), &mut disk, below).unwrap();
    disk
}

#[test]
fn a_child_stores_the_sectors_that_were_written_and_no_others() {
    let below = Bytes(noise(1, 4 << 20));
    let (_, image) = made(&[("block_size", "1M")], 4 << 20, true);
    image.write(GuestOffset::new(700), &[1; 100], &below).unwrap();
    image.write(GuestOffset::new(1 << 20), &[2; 1024], &below).unwrap();
    let mut extents = Vec::new();
    image.map(GuestOffset::new(0).range(4 << 20), &mut extents).unwrap();
    let held: Vec<_> = extents.iter().filter(|e| e.state.is_data()).map(|e| e.range).collect();
    assert_eq!(held, [GuestOffset::new(512).range(512), GuestOffset::new(1 << 20).range(1024)]);
    let mut expected = below.0.clone();
    expected[700..800].fill(1);
    expected[1 << 20..(1 << 20) + 1024].fill(2);
    assert!(shown(image.as_ref(), &below) == expected);
    assert_eq!(image.unit(), 512);
    image.set_parent(None).unwrap();
    assert_eq!(image.unit(), 64 << 10);
}

#[test]
fn a_log_that_was_not_replayed_is_read_and_left_alone_by_a_reader() {
    let (file, image) = made(&[("block_size", "1M")], 8 << 20, false);
    image.write(GuestOffset::new(3 << 20), &[5; 4096], &Nothing).unwrap();
    image.flush().unwrap();
    let left = copied(&file);
    drop(image);
    // The table's page is lost, which the log still has.
    let bat_at = HostOffset::new(3 << 20);
    left.write_at(bat_at, &[0; 4096]).unwrap();
    let before = copied(&left);
    let read = open(left.clone(), false, &NoParts).unwrap();
    assert!(read.details().unwrap().is_dirty);
    let disk = shown(read.as_ref(), &Nothing);
    assert!(disk[3 << 20..(3 << 20) + 4096].iter().all(|byte| *byte == 5));
    drop(read);
    let mut bytes = [vec![0; 5 << 20], vec![0; 5 << 20]];
    left.read_at(HostOffset::new(0), &mut bytes[0]).unwrap();
    before.read_at(HostOffset::new(0), &mut bytes[1]).unwrap();
    assert!(bytes[0] == bytes[1], "a reader wrote");
    let written = open(left.clone(), true, &NoParts).unwrap();
    assert!(!written.details().unwrap().is_dirty);
    drop(written);
    let mut page = [0; 4096];
    left.read_at(bat_at, &mut page).unwrap();
    assert!(page.iter().any(|byte| *byte != 0), "the log is in its place");
}

#[test]
fn a_full_log_begins_anew_and_nothing_of_it_is_taken_for_new() {
    let (file, image) = made(&[("block_size", "1M")], 600 << 20, false);
    for nth in 0..300 {
        image.write(GuestOffset::new(nth << 21), &[7; 512], &Nothing).unwrap();
        image.flush().unwrap();
        if nth % 100 == 99 {
            let read = open(copied(&file), false, &NoParts).unwrap();
            let mut last = [0; 512];
            read.read(GuestOffset::new(nth << 21), &mut last, &Nothing).unwrap();
            assert_eq!(last, [7; 512]);
        }
    }
}

#[test]
fn a_torn_header_leaves_the_other_one() {
    let (file, image) = made(&[("block_size", "1M")], 4 << 20, false);
    image.write(GuestOffset::new(0), &[3; 512], &Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    for at in HEADERS_AT {
        let torn = copied(&file);
        torn.write_at(at.plus(512), &[0xee; 512]).unwrap();
        let image = open(torn.clone(), false, &NoParts).unwrap();
        assert_eq!(shown(image.as_ref(), &Nothing)[..512], [3; 512]);
        let found = check(torn.clone(), Repair::Nothing).unwrap();
        assert_eq!(found.corruptions, 1, "{:?}", found.findings);
        assert_eq!(check(torn.clone(), Repair::All).unwrap().corruptions_fixed, 1);
        assert_eq!(check(torn, Repair::Nothing).unwrap().corruptions, 0);
    }
}

#[test]
fn guids_change_before_what_they_stand_for() {
    let (file, image) = made(&[("block_size", "1M")], 4 << 20, true);
    let first = image.identity().unwrap();
    drop(image);
    let image = open(file.clone(), true, &NoParts).unwrap();
    assert_eq!(image.identity(), Some(first), "nothing was written");
    assert!(image.set_record(Some(b"record")).unwrap());
    assert_eq!(image.identity(), Some(first), "the guest sees what it did");
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    let second = image.identity().unwrap();
    assert_ne!(second, first);
    image.write(GuestOffset::new(0), &[2; 512], &Nothing).unwrap();
    assert_eq!(image.identity(), Some(second), "once an opening");
    image.flush().unwrap();
    assert_eq!(open(copied(&file), false, &NoParts).unwrap().identity(), Some(second));
}

#[test]
fn a_record_outlives_our_writes_and_notices_a_stranger() {
    let (file, image) = made(&[("block_size", "1M")], 4 << 20, true);
    assert!(image.set_record(Some(b"record")).unwrap());
    image.flush_with_time().unwrap();
    drop(image);
    for byte in 1..4 {
        let image = open(file.clone(), true, &NoParts).unwrap();
        image.write(GuestOffset::new(0), &[byte; 512], &Nothing).unwrap();
        image.flush().unwrap();
        let now = open(copied(&file), false, &NoParts).unwrap().record().unwrap().unwrap();
        assert_eq!(now, StoredRecord { bytes: b"record".to_vec(), is_untouched: true });
    }
    let mut header = super::super::header::Header::read(file.as_ref()).unwrap();
    header.update(file.as_ref(), |h| h.data_guid = super::super::header::fresh_guid()).unwrap();
    let image = open(file.clone(), true, &NoParts).unwrap();
    assert!(!image.record().unwrap().unwrap().is_untouched);
    assert_eq!(image.parent(), Some(parent()));
    assert!(image.set_record(None).unwrap() && image.record().unwrap().is_none());
}

#[test]
fn a_record_without_room_changes_nothing_and_an_older_one_counts_until_it_is_voided() {
    let (file, image) = made(&[("block_size", "1M")], 4 << 20, true);
    assert!(image.set_record(Some(b"record")).unwrap());
    assert!(!image.set_record(Some(&vec![7; 2 << 20])).unwrap(), "more than the region has room for");
    image.flush_with_time().unwrap();
    let stored = |is_untouched| StoredRecord { bytes: b"record".to_vec(), is_untouched };
    assert_eq!(open(copied(&file), false, &NoParts).unwrap().record().unwrap(), Some(stored(true)));
    image.void_record().unwrap();
    image.flush_with_time().unwrap();
    drop(image);
    let image = open(file.clone(), true, &NoParts).unwrap();
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    assert_eq!(image.record().unwrap(), Some(stored(false)), "nor does it count after a change of our own");
    assert!(image.set_record(Some(b"other")).unwrap());
    let found = image.record().unwrap().unwrap();
    assert_eq!((found.bytes.as_slice(), found.is_untouched), (&b"other"[..], true));
}

/// A page of the table for each 512 MiB of the disk: more of them than the log of 1 MiB has room for.
#[test]
fn a_log_that_is_too_short_for_one_step_moves_to_a_longer_place() {
    const SPAN: u64 = 512 << 20;
    let below = Bytes(vec![9; 4096]);
    let (file, image) = made(&[("block_size", "1M")], 300 * SPAN, true);
    for nth in 0..300 {
        image.write(GuestOffset::new(nth * SPAN), &[7; 512], &below).unwrap();
    }
    image.set_parent(None).unwrap();
    let cut = copied(&file);
    drop(image);
    for file in [cut, file] {
        let image = open(file.clone(), false, &NoParts).unwrap();
        let log = image.details().unwrap().specific.into_iter().find(|(key, _)| key == "log-size").unwrap();
        assert_eq!((image.parent(), log.1), (None, (2_u64 << 20).into()));
        for nth in [0, 150, 299] {
            let mut found = [1; 1024];
            image.read(GuestOffset::new(nth * SPAN), &mut found, &below).unwrap();
            assert!(found[..512] == [7; 512] && found[512..] == [0; 512]);
        }
        assert_eq!(check(file, Repair::Nothing).unwrap().findings, Vec::<String>::new());
    }
}

#[test]
fn a_table_that_has_no_room_moves() {
    let (file, image) = made(&[("block_size", "1M")], 4 << 20, false);
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    image.resize(200 << 30, &Nothing).unwrap();
    let last = GuestOffset::new((200 << 30) - 512);
    image.write(last, &[2; 512], &Nothing).unwrap();
    image.flush().unwrap();
    for file in [copied(&file), {
        drop(image);
        file
    }] {
        let image = open(file.clone(), false, &NoParts).unwrap();
        let mut found = [[0; 512], [0; 512]];
        image.read(GuestOffset::new(0), &mut found[0], &Nothing).unwrap();
        image.read(last, &mut found[1], &Nothing).unwrap();
        assert_eq!((image.size(), found), (200 << 30, [[1; 512], [2; 512]]));
        assert_eq!(check(file, Repair::Nothing).unwrap().corruptions, 0);
    }
}

#[test]
fn a_file_is_cut_behind_the_last_block_that_is_used() {
    let (file, image) = made(&[("block_size", "1M")], 64 << 20, false);
    image.write(GuestOffset::new(8 << 20), &noise(1, 8 << 20), &Nothing).unwrap();
    image.zero(GuestOffset::new(0).range(64 << 20), Kept::Nothing, &Nothing).unwrap();
    image.release().unwrap();
    assert_eq!(file.bytes().unwrap(), 4 << 20);
    drop(image);
    assert!(shown(open(file, false, &NoParts).unwrap().as_ref(), &Nothing).iter().all(|byte| *byte == 0));
}
