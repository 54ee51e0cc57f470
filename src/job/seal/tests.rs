//! Which leaves are hashed, against a naive count; and IDs of raw disks.
use super::*;
use crate::{
    base::{HostOffset, seed::Seeded},
    format::{self, Format, NoParts},
    io::{File, memory::MemoryFile},
    map::{self, State},
};
use proptest::prelude::*;
use std::path::PathBuf;

fn raw(bytes: u64) -> (Arc<MemoryFile>, Layer) {
    let file = Arc::new(MemoryFile::new("disk.raw"));
    file.set_bytes(bytes).unwrap();
    let image = format::open(Format::Raw, Arc::clone(&file) as Arc<dyn File>, true, &NoParts).unwrap();
    (file, Layer { path: PathBuf::from("disk.raw"), is_stated: true, image })
}

#[test]
fn a_raw_disk_s_holes_are_not_read() {
    let (file, layer) = raw(40 << 20);
    let mut model = vec![0; 40 << 20];
    let mut seed = Seeded::new(5);
    for _ in 0..20 {
        let at = index(seed.below(39 << 20));
        seed.fill(&mut model[at..at + 5000]);
        file.write_at(HostOffset::new(at as u64), &model[at..at + 5000]).unwrap();
    }
    let hashed = full_tree(&View::new(&[layer]), &Progress::default()).unwrap();
    assert_eq!(hashed.tree, Tree::of(&model));
    assert!(hashed.read_bytes <= 20 * 2 * LEAF_BYTES, "{}", hashed.read_bytes);
}

#[test]
fn sixty_four_tebibytes_of_hole_are_not_read() {
    let (_, layer) = raw(64 << 40);
    let hashed = full_tree(&View::new(&[layer]), &Progress::default()).unwrap();
    assert_eq!((hashed.tree.id(), hashed.read_bytes), (Tree::new(64 << 40).id(), 0));
}

#[test]
fn a_cancelled_seal_stops() {
    let (_, layer) = raw(1 << 20);
    let progress = Progress::default();
    progress.cancel();
    let stopped = full_tree(&View::new(&[layer]), &progress).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Interrupted);
}

const SECTOR: u64 = 512;

proptest! {
    #[test]
    fn every_leaf_that_a_map_speaks_of_is_hashed_or_zero(
        runs in prop::collection::vec((0_u8..3, 1_u64..400), 1..12), skip in 0_u64..3,
    ) {
        let (mut extents, mut at) = (Vec::new(), GuestOffset::new(skip * LEAF_BYTES));
        let start = at;
        for (kind, sectors) in runs {
            let state = match kind {
                0 => State::Absent,
                1 => State::Zero { host: None },
                _ => State::Packed,
            };
            map::push(&mut extents, Extent::new(at.range(sectors * SECTOR), state));
            at = at.plus(sectors * SECTOR);
        }
        let stride = GuestRange::between(start, at);
        let work = work(&extents, stride, at.bytes());
        let zero: RangeSet = work.zero.iter().map(|(from, to)| {
            GuestRange::between(GuestOffset::new(from * LEAF_BYTES), GuestOffset::new(to * LEAF_BYTES))
        }).collect();
        for leaf in GuestRange::between(GuestOffset::new(0), at).pieces(LEAF_BYTES) {
            let says = |kind: fn(&State) -> bool| extents.iter().any(|e| e.range.overlaps(leaf) && kind(&e.state));
            let is_silent = !says(|s| s.is_present());
            let is_zero = leaf.start >= start && !says(|s| !s.is_zero());
            prop_assert_eq!(work.hash.touches(leaf), !is_silent && !is_zero, "{:?}", leaf);
            prop_assert_eq!(work.hash.covers(leaf), !is_silent && !is_zero, "{:?}", leaf);
            prop_assert_eq!(zero.touches(leaf), is_zero, "{:?}", leaf);
        }
    }
}
