//! Images against a naive disk; what the log leaves; inputs that are refused.

mod bad;

use super::super::{check, create, header::HEADERS_AT, open, peek};
use super::*;
use crate::{
    base::{seed::Seeded, units::index},
    format::{Creation, Identity, NoParts, Nothing, Repair},
    io::memory::MemoryFile,
    map,
};
use proptest::prelude::*;

/// Bytes that lie below an image.
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Below for Bytes {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let from = self.0.get(index(at.bytes())..).unwrap_or_default();
        buf.fill(0);
        buf.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        let bytes = self.0.iter().skip(index(range.start.bytes())).take(index(range.bytes));
        Ok(bytes.into_iter().all(|byte| *byte == 0))
    }
}

fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut buf = vec![0; index(bytes)];
    Seeded::new(seed).fill(&mut buf);
    buf
}

fn parent() -> ParentName {
    ParentName {
        identity: Some(Identity::Guid([7; 16])),
        ..ParentName::new("../base.vhdx".into(), Some("vhdx".into()))
    }
}

/// Makes an image in memory; a child if something is to lie below it.
pub(super) fn made(options: &[(&str, &str)], size: u64, is_child: bool) -> (Arc<MemoryFile>, Arc<dyn Image>) {
    let file = Arc::new(MemoryFile::new("image"));
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let creation = Creation { size, parent: is_child.then(parent), options };
    let image = create(file.clone(), &creation, &NoParts).unwrap();
    (file, image)
}

/// Returns what a file holds, in another one: as a power cut leaves it that loses nothing.
pub(super) fn copy(file: &dyn File) -> Arc<MemoryFile> {
    let new = MemoryFile::new("copy");
    let mut buf = vec![0; 1 << 20];
    for piece in HostOffset::new(0).range(file.bytes().unwrap()).pieces(1 << 20) {
        if file.run_at(piece.start).unwrap().range.bytes >= piece.bytes
            && !file.run_at(piece.start).unwrap().is_data
        {
            continue;
        }
        file.read_at(piece.start, &mut buf[..index(piece.bytes)]).unwrap();
        new.write_at(piece.start, &buf[..index(piece.bytes)]).unwrap();
    }
    new.set_bytes(file.bytes().unwrap()).unwrap();
    Arc::new(new)
}

pub(super) fn shown(image: &dyn Image, below: &dyn Below) -> Vec<u8> {
    let mut disk = vec![9; index(image.size())];
    image.read(GuestOffset::new(0), &mut disk, below).unwrap();
    disk
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        bytes: u64,
    },
    WriteFrom {
        at: u64,
        bytes: u64,
    },
    Zero {
        at: u64,
        bytes: u64,
        kept: Kept,
    },
    Read {
        at: u64,
        bytes: u64,
    },
    Flush,
    /// Goes on with what a power cut leaves that loses nothing: the log is replayed.
    Cut,
    Release,
    Reopen,
    Resize {
        size: u64,
    },
}

/// Steps whose places are parts of 4096 of the disk.
fn step() -> impl Strategy<Value = Step> {
    let kept = prop_oneof![Just(Kept::Space), Just(Kept::Nothing)];
    prop_oneof![
        4 => (0..4096_u64, 0..600_u64).prop_map(|(at, bytes)| Step::Write { at, bytes }),
        1 => (0..4096_u64, 0..1600_u64).prop_map(|(at, bytes)| Step::WriteFrom { at, bytes }),
        4 => (0..4096_u64, 0..2600_u64, kept).prop_map(|(at, bytes, kept)| Step::Zero { at, bytes, kept }),
        2 => (0..4096_u64, 0..2000_u64).prop_map(|(at, bytes)| Step::Read { at, bytes }),
        1 => Just(Step::Flush),
        1 => Just(Step::Cut),
        1 => Just(Step::Release),
        1 => Just(Step::Reopen),
        1 => (1..6000_u64).prop_map(|size| Step::Resize { size }),
    ]
}

/// An image, the disk that it should be, and what lies below.
struct Pair {
    file: Arc<MemoryFile>,
    image: Arc<dyn Image>,
    disk: Vec<u8>,
    below: Bytes,
    writes: u64,
    sector: u64,
    /// What a part of 4096 stands for.
    grain: u64,
}

impl Pair {
    fn new(options: &[(&str, &str)], size: u64, below: Vec<u8>) -> Self {
        let (file, image) = made(options, size, !below.is_empty());
        let mut disk = below.clone();
        disk.resize(index(size), 0);
        let sector = if options.contains(&("logical_sector_size", "4096")) { 4096 } else { 512 };
        Self { file, image, disk, below: Bytes(below), writes: 0, sector, grain: size / 4096 }
    }

    fn range(&self, at: u64, bytes: u64) -> GuestRange {
        let size = self.disk.len() as u64;
        let start = (at * self.grain).min(size);
        GuestOffset::new(start).range((bytes * self.grain).min(size - start))
    }

    fn in_disk(&mut self, range: GuestRange) -> &mut [u8] {
        &mut self.disk[index(range.start.bytes())..index(range.end().bytes())]
    }

    fn reopen(&mut self) {
        self.image = open(self.file.clone(), true, &NoParts).unwrap();
    }

    fn noise(&mut self, bytes: u64) -> Vec<u8> {
        self.writes += 1;
        noise(self.writes, bytes)
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write { at, bytes } => {
                let range = self.range(at, bytes);
                let bytes = self.noise(range.bytes);
                self.image.write(range.start, &bytes, &self.below).unwrap();
                self.in_disk(range).copy_from_slice(&bytes);
            }
            Step::WriteFrom { at, bytes } => {
                let range = self.range(at, bytes);
                let bytes = self.noise(range.bytes);
                let source = MemoryFile::new("source");
                source.write_at(HostOffset::new(700), &bytes).unwrap();
                self.image.write_from(range, &source, HostOffset::new(700), &self.below).unwrap();
                self.in_disk(range).copy_from_slice(&bytes);
            }
            Step::Zero { at, bytes, kept } => {
                let range = self.range(at, bytes);
                self.image.zero(range, kept, &self.below).unwrap();
                self.in_disk(range).fill(0);
            }
            Step::Read { at, bytes } => {
                let range = self.range(at, bytes);
                let mut found = vec![9; index(range.bytes)];
                self.image.read(range.start, &mut found, &self.below).unwrap();
                assert!(found == self.in_disk(range), "read of {range:?}");
            }
            Step::Flush => self.image.flush().unwrap(),
            Step::Cut => {
                self.image.flush().unwrap();
                let left = copy(self.file.as_ref());
                let read = open(left.clone(), false, &NoParts).unwrap();
                assert!(shown(read.as_ref(), &self.below) == self.disk, "replayed in memory");
                drop(read);
                self.file = left;
                self.reopen();
            }
            Step::Release => drop(self.image.release().unwrap()),
            Step::Reopen => {
                self.image.flush().unwrap();
                self.reopen();
            }
            Step::Resize { size } => {
                let size = (size * self.grain).next_multiple_of(self.sector);
                self.image.resize(size, &self.below).unwrap();
                self.disk.resize(index(size), 0);
            }
        }
    }

    fn check(&self) {
        assert!(shown(self.image.as_ref(), &self.below) == self.disk, "the whole disk");
        let mut extents = Vec::new();
        self.image.map(GuestOffset::new(0).range(self.image.size()), &mut extents).unwrap();
        assert_eq!(extents.iter().map(|e| e.range.bytes).sum::<u64>(), self.image.size());
        for extent in extents {
            let disk = &self.disk[index(extent.range.start.bytes())..index(extent.range.end().bytes())];
            match extent.state {
                map::State::Zero { .. } => assert!(disk.iter().all(|byte| *byte == 0)),
                map::State::Data { host } => {
                    let mut held = vec![9; disk.len()];
                    self.file.read_at(host, &mut held).unwrap();
                    assert!(held == disk, "mapped {extent:?}");
                }
                map::State::Absent => {
                    let mut below = vec![9; disk.len()];
                    self.below.read(extent.range.start, &mut below).unwrap();
                    assert!(below == disk, "absent {extent:?}");
                }
                map::State::Packed => panic!("nothing is packed"),
            }
        }
        let checked = check(self.file.clone(), Repair::Nothing).unwrap();
        assert_eq!((checked.corruptions, checked.findings), (0, Vec::new()));
    }
}

const SHAPES: [(&[(&str, &str)], u64); 5] = [
    (&[("block_size", "1M")], 0),
    (&[("block_size", "2M"), ("logical_sector_size", "4096")], 0),
    (&[("subformat", "fixed"), ("block_size", "1M")], 0),
    (&[("block_size", "1M")], 3_500_000),
    (&[("block_size", "2M"), ("logical_sector_size", "4096")], 9_000_000),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn an_image_is_the_disk_that_was_written(
        shape in 0..SHAPES.len(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let (options, below) = SHAPES[shape];
        let mut pair = Pair::new(options, 5 << 20, noise(99, below));
        for step in &steps {
            pair.take(step);
        }
        pair.check();
        pair.take(&Step::Reopen);
        pair.check();
    }
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
}

#[test]
fn a_log_that_was_not_replayed_is_read_and_left_alone_by_a_reader() {
    let (file, image) = made(&[("block_size", "1M")], 8 << 20, false);
    image.write(GuestOffset::new(3 << 20), &[5; 4096], &Nothing).unwrap();
    image.flush().unwrap();
    let left = copy(file.as_ref());
    drop(image);
    // The table's page is lost, which the log still has.
    let bat_at = HostOffset::new(3 << 20);
    left.write_at(bat_at, &[0; 4096]).unwrap();
    let before = copy(left.as_ref());
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
            let read = open(copy(file.as_ref()), false, &NoParts).unwrap();
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
        let torn = copy(file.as_ref());
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
    assert_eq!(open(copy(file.as_ref()), false, &NoParts).unwrap().identity(), Some(second));
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
        let now = open(copy(file.as_ref()), false, &NoParts).unwrap().record().unwrap().unwrap();
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
fn a_child_that_gets_no_parent_keeps_its_own_sectors() {
    let below = Bytes(noise(1, 4 << 20));
    let (file, image) = made(&[("block_size", "1M")], 4 << 20, true);
    image.write(GuestOffset::new(512), &[1; 512], &below).unwrap();
    image.zero(GuestOffset::new(1 << 20).range(1 << 20), Kept::Nothing, &below).unwrap();
    image.set_parent(None).unwrap();
    assert_eq!((image.parent(), image.unit()), (None, 64 << 10));
    let mut expected = vec![0; 4 << 20];
    expected[512..1024].fill(1);
    assert!(shown(image.as_ref(), &Nothing) == expected);
    image.write(GuestOffset::new(2 << 20), &[2; 512], &Nothing).unwrap();
    expected[2 << 20..(2 << 20) + 512].fill(2);
    image.set_parent(Some(&parent())).unwrap();
    assert_eq!(peek(file.as_ref()).unwrap().parent, Some(parent()));
    // What it never held is its parent's now.
    expected[3 << 20..].copy_from_slice(&below.0[3 << 20..]);
    assert!(shown(image.as_ref(), &below) == expected);
    drop(image);
    let image = open(file.clone(), false, &NoParts).unwrap();
    assert!(shown(image.as_ref(), &below) == expected);
    assert_eq!(check(file, Repair::Nothing).unwrap().corruptions, 0);
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
    let cut = copy(file.as_ref());
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
    for file in [copy(file.as_ref()), {
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
fn blocks_that_are_given_up_are_used_again_after_a_flush() {
    let (file, image) = made(&[("block_size", "1M")], 64 << 20, false);
    let block = |nth: u64| GuestOffset::new(nth << 20);
    (0..8).for_each(|nth| image.write(block(nth), &noise(nth, 1 << 20), &Nothing).unwrap());
    image.flush().unwrap();
    let bytes = file.bytes().unwrap();
    image.zero(block(0).range(8 << 20), Kept::Nothing, &Nothing).unwrap();
    image.flush().unwrap();
    (8..16).for_each(|nth| image.write(block(nth), &[1; 512], &Nothing).unwrap());
    image.flush().unwrap();
    assert_eq!(file.bytes().unwrap(), bytes, "the file did not grow");
    let disk = shown(image.as_ref(), &Nothing);
    assert!(disk[..8 << 20].iter().all(|byte| *byte == 0));
    assert!(disk[(8 << 20) + 512..9 << 20].iter().all(|byte| *byte == 0), "old bytes came to light");
    image.zero(block(8).range(56 << 20), Kept::Nothing, &Nothing).unwrap();
    image.release().unwrap();
    assert_eq!(file.bytes().unwrap(), 4 << 20);
    drop(image);
    assert!(shown(open(file, false, &NoParts).unwrap().as_ref(), &Nothing).iter().all(|byte| *byte == 0));
}
