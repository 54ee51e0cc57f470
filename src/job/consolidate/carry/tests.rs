//! What a move spoils is noticed: in what it moves, beside it, and later.

use super::*;
use crate::{
    base::ErrorKind,
    chain::{Layer, View},
    format::{self, Creation, Format, Image, NoParts},
    io::memory::MemoryFile,
    map::Extent,
};

const DISK_BYTES: u64 = 4 * LEAF_BYTES;
const PACE: Pace = Pace::USUAL;

fn image(name: &str, format: Format) -> Arc<dyn Image> {
    let options = vec![("cluster_size".into(), "4096".into())];
    let options = if format == Format::Qcow2 { options } else { vec![] };
    let creation = Creation { size: DISK_BYTES, parent: None, options };
    format::create(format, Arc::new(MemoryFile::new(name)), &creation, &NoParts).unwrap()
}

/// A delta with all of leaf 1 and the first half of leaf 2, on a target that is full.
fn sides() -> Sides {
    let target = image("target", Format::Qcow2);
    target.write(GuestOffset::new(0), &bytes(8, 1), &View::new(&[])).unwrap();
    sides_on(target)
}

fn sides_on(target: Arc<dyn Image>) -> Sides {
    let (delta, below) = (image("delta", Format::Qcow2), View::new(&[]));
    delta.write(GuestOffset::new(LEAF_BYTES), &bytes(3, 2), &below).unwrap();
    let run = View::new(&[Layer { path: "delta".into(), is_stated: true, image: delta }]);
    Sides { run, target, below, size: DISK_BYTES }
}

fn bytes(half_leaves: u64, byte: u8) -> Vec<u8> {
    vec![byte; index(half_leaves * LEAF_BYTES / 2)]
}

fn disk() -> GuestRange {
    GuestOffset::new(0).range(DISK_BYTES)
}

fn listed(sides: &Sides) -> RangeSet {
    decided(&sides.run, disk()).unwrap().into_iter().map(|run| run.range).collect()
}

/// Writes a byte to the target after TOP was read, or after the target was written.
fn spoiled(before: Option<u64>, after: Option<u64>) -> Result<()> {
    let sides = sides();
    let spoil = |at: Option<u64>| {
        at.map_or(Ok(()), |at| sides.target.write(GuestOffset::new(at), &[9], &sides.below))
    };
    let ranges = chunks(&listed(&sides), LEAF_BYTES, disk(), DISK_BYTES).concat();
    let chunk = read(&sides, ranges, Vec::new())?;
    spoil(before)?;
    write(&sides, &chunk, GuestOffset::new(0), &mut Carried::default())?;
    spoil(after)?;
    compare(&sides, &chunk, &mut Vec::new())
}

#[test]
fn a_move_that_spoils_what_it_moves_or_its_neighbour_is_noticed() {
    let (moved, neighbour) = (LEAF_BYTES + 5, 3 * LEAF_BYTES - 5);
    spoiled(None, None).unwrap();
    // The move itself puts this right.
    spoiled(Some(moved), None).unwrap();
    for (before, after) in [(Some(neighbour), None), (None, Some(neighbour)), (None, Some(moved))] {
        assert_eq!(spoiled(before, after).unwrap_err().kind(), ErrorKind::Corrupt, "{before:?} {after:?}");
    }
}

#[test]
fn a_move_whose_bytes_are_elsewhere_at_the_end_is_noticed() {
    for later in [None, Some(LEAF_BYTES)] {
        let sides = sides();
        let mut carrier = Carrier::new(Some(Proof::default()), GuestOffset::new(0), PACE);
        let carried = carrier.carry(&sides, disk(), &Progress::default()).unwrap();
        assert_eq!(carried.copied, 3 * LEAF_BYTES / 2);
        if let Some(at) = later {
            sides.target.zero(GuestOffset::new(at).range(4096), Kept::Nothing, &sides.below).unwrap();
        }
        let checked = carrier.proof.unwrap().check(&sides, &listed(&sides), &|_| ());
        assert_eq!(checked.map_err(|e| e.kind()), later.map_or(Ok(()), |_| Err(ErrorKind::Corrupt)));
    }
}

/// Space that was reserved for a raw disk looks like a hole, or like data that the host has read ahead.
#[test]
fn a_host_that_tells_other_holes_of_a_raw_target_is_believed_in_its_bytes() {
    for (at, byte, is_same) in [(5 * LEAF_BYTES / 2, 0, true), (LEAF_BYTES, 9, false)] {
        let sides = sides_on(image("target", Format::Raw));
        let mut carrier = Carrier::new(Some(Proof::default()), GuestOffset::new(0), PACE);
        carrier.carry(&sides, disk(), &Progress::default()).unwrap();
        sides.target.write(GuestOffset::new(0), &bytes(1, 0), &sides.below).unwrap();
        sides.target.write(GuestOffset::new(at), &bytes(1, byte), &sides.below).unwrap();
        let checked = carrier.proof.unwrap().check(&sides, &listed(&sides), &|_| ());
        assert_eq!(checked.map_err(|e| e.kind()), is_same.then_some(()).ok_or(ErrorKind::Corrupt));
    }
}

#[test]
fn what_an_earlier_life_moved_is_compared_on_both_sides() {
    let sides = sides();
    let check = || Proof::default().check(&sides, &listed(&sides), &|_| ());
    assert_eq!(check().unwrap_err().kind(), ErrorKind::Corrupt);
    Carrier::new(None, GuestOffset::new(0), PACE).carry(&sides, disk(), &Progress::default()).unwrap();
    check().unwrap();
}

/// Where the target holds each cluster of the disk, if it does.
fn places(target: &dyn Image) -> Vec<Option<u64>> {
    let place = |guest: GuestRange| {
        let mut extents = Vec::new();
        target.map(guest, &mut extents).unwrap();
        match extents[..] {
            [Extent { state: State::Data { host }, .. }] => Some(host.bytes()),
            _ => None,
        }
    };
    disk().pieces(4096).map(place).collect()
}

/// The guest wrote the delta backwards, so that its file has in one run what the guest has in many pieces.
fn backwards() -> Sides {
    let sides = sides();
    let delta = image("delta", Format::Qcow2);
    for nth in (20..60_u8).rev() {
        delta.write(GuestOffset::new(4096 * u64::from(nth)), &[nth; 4096], &sides.below).unwrap();
    }
    let run = View::new(&[Layer { path: "delta".into(), is_stated: true, image: delta }]);
    Sides { run, ..sides }
}

#[test]
fn what_the_guest_has_in_pieces_and_the_file_in_one_run_is_adopted_in_one_run() {
    let sides = backwards();
    let before = places(sides.target.as_ref());
    let mut carrier = Carrier::new(Some(Proof::default()), GuestOffset::new(0), PACE);
    carrier.carry(&sides, disk(), &Progress::default()).unwrap();
    let after = places(sides.target.as_ref());
    let first = after[59].unwrap();
    for nth in 0..64 {
        let adopted = (20..60).contains(&nth).then(|| Some(first + 4096 * (59 - nth as u64)));
        assert_eq!(after[nth], adopted.unwrap_or(before[nth]), "cluster {nth}");
    }
    carrier.proof.unwrap().check(&sides, &listed(&sides), &|_| ()).unwrap();
    // What was there before is free for what comes.
    sides.target.flush().unwrap();
    sides.target.write(GuestOffset::new(0), &vec![9; 4096], &sides.below).unwrap();
    let length = sides.target.data_file().bytes().unwrap();
    sides.target.zero(GuestOffset::new(0).range(4096), Kept::Nothing, &sides.below).unwrap();
    sides.target.write(GuestOffset::new(0), &vec![9; 4096], &sides.below).unwrap();
    assert!(before.contains(&places(sides.target.as_ref())[0]));
    assert_eq!(sides.target.data_file().bytes().unwrap(), length);
}

#[test]
fn what_an_earlier_life_brought_and_is_doubted_is_not_adopted() {
    let sides = backwards();
    let before = places(sides.target.as_ref());
    let doubted_until = GuestOffset::new(4096 * 50);
    let mut carrier = Carrier::new(Some(Proof::default()), doubted_until, Pace { adopted_pieces: 2, ..PACE });
    carrier.carry(&sides, disk(), &Progress::default()).unwrap();
    let after = places(sides.target.as_ref());
    assert!(after[..50] == before[..50] && (50..60).all(|nth| after[nth] != before[nth]));
    carrier.proof.unwrap().check(&sides, &listed(&sides), &|_| ()).unwrap();
}
