//! What a move spoils is noticed: in what it moves, beside it, and later.

use super::*;
use crate::{
    base::ErrorKind,
    chain::{Layer, View},
    format::{self, Creation, Format, Image, NoParts},
    io::memory::MemoryFile,
};

const DISK_BYTES: u64 = 4 * LEAF_BYTES;

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
        let mut carrier = Carrier::new(Some(Proof::default()), GuestOffset::new(0), 16 << 20);
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
        let mut carrier = Carrier::new(Some(Proof::default()), GuestOffset::new(0), 16 << 20);
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
    Carrier::new(None, GuestOffset::new(0), 16 << 20).carry(&sides, disk(), &Progress::default()).unwrap();
    check().unwrap();
}
