//! What a move spoils beside itself is noticed, whether the leaf was hashed before the move or beside it.

use super::*;
use crate::{
    base::{ErrorKind, units::index},
    chain::{Layer, View},
    format::{self, Creation, Format, Image, NoParts},
    io::memory::MemoryFile,
};
use std::sync::Arc;

const DISK_BYTES: u64 = 4 * LEAF_BYTES;

fn image(name: &str) -> Arc<dyn Image> {
    let options = vec![("cluster_size".into(), "4096".into())];
    let creation = Creation { size: DISK_BYTES, parent: None, options };
    format::create(Format::Qcow2, Arc::new(MemoryFile::new(name)), &creation, &NoParts).unwrap()
}

/// A delta with all of leaf 1 and the first half of leaf 2, on a target that is full.
fn sides() -> Sides {
    let (target, delta, below) = (image("target"), image("delta"), View::new(&[]));
    let bytes = |half_leaves: u64, byte| vec![byte; index(half_leaves * LEAF_BYTES / 2)];
    target.write(GuestOffset::new(0), &bytes(8, 1), &below).unwrap();
    delta.write(GuestOffset::new(LEAF_BYTES), &bytes(3, 2), &below).unwrap();
    let run = View::new(&[Layer { path: "delta".into(), is_stated: true, image: delta }]);
    Sides { run, target, below, size: DISK_BYTES }
}

/// Moves everything; writes a byte to the target at `before` when the move begins, at `after` when it is over.
fn checked_move(before: Option<u64>, after: Option<u64>) -> Result<()> {
    let (sides, mut proof) = (sides(), Proof::default());
    let disk = GuestOffset::new(0).range(DISK_BYTES);
    let spoil = |at: Option<u64>| {
        at.map_or(Ok(()), |at| sides.target.write(GuestOffset::new(at), &[9], &sides.below))
    };
    let passing = proof.begin(&sides, disk)?;
    spoil(before)?;
    let sum = passing.sum(&sides)?;
    let runs = decided(&sides.run, disk)?;
    runs.iter().try_for_each(|run| sides.carry(run).map(drop))?;
    spoil(after)?;
    proof.end(&passing, sum);
    proof.check(&sides, &runs.into_iter().map(|run| run.range).collect(), &|_| ())
}

#[test]
fn a_move_that_spoils_what_it_moves_or_its_neighbour_is_noticed() {
    let (moved, neighbour) = (LEAF_BYTES + 5, 3 * LEAF_BYTES - 5);
    checked_move(None, None).unwrap();
    // The move itself puts this right.
    checked_move(Some(moved), None).unwrap();
    for (before, after) in [(Some(neighbour), None), (None, Some(neighbour)), (None, Some(moved))] {
        assert_eq!(
            checked_move(before, after).unwrap_err().kind(),
            ErrorKind::Corrupt,
            "{before:?} {after:?}"
        );
    }
}
