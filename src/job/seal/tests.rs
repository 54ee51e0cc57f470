//! Which leaves are hashed, against a naive count; and IDs of raw disks.
use super::*;
use crate::{
    base::{HostOffset, seed::Seeded},
    format::{
        self, Creation, Format, NoParts,
        conformance::{Pair, kinds, noise},
    },
    io::{
        File, Kept,
        faulty::{Failure, Fault, SimHost, crash_states},
        memory::MemoryFile,
    },
    map::{self, State},
    store::{Draft, Publish, Trust},
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

/// What a child leaves to its parent is the parent's, and what it hides is not.
#[test]
fn one_disk_has_one_id_in_every_kind_of_image() {
    let (kept, size) = (1 << 20, (3 << 20) + 3 * 4096);
    let below = noise(9, 2 << 20);
    let mut disk = below[..index(kept)].to_vec();
    disk.resize(index(size), 0);
    let own = [(kept - 700, 100), (kept + 70_000, 300_000), (size - 5000, 5000)];
    for (seed, (at, bytes)) in (1..).zip(own) {
        disk[index(at)..index(at + bytes)].copy_from_slice(&noise(seed, bytes));
    }
    let id = Tree::of(&disk).id();
    for (name, kind) in kinds() {
        let held = if kind.is_child { below.clone() } else { Vec::new() };
        let pair = Pair::made(kind.format, &kind.creation(size), held);
        let (image, (file, parent)) = (pair.image(), raw(size / 2));
        file.write_at(HostOffset::new(0), &pair.below.0).unwrap();
        let rest = GuestRange::between(GuestOffset::new(kept), GuestOffset::new(size));
        image.zero(rest, Kept::Nothing, &pair.below).unwrap();
        let whole = [(0, if kind.is_child { 0 } else { kept })];
        for (at, bytes) in whole.into_iter().chain(own) {
            let bytes = &disk[index(at)..index(at + bytes)];
            image.write(GuestOffset::new(at), bytes, &pair.below).unwrap();
        }
        let mut layers = vec![Layer { path: PathBuf::from(name), is_stated: true, image }];
        layers.extend(kind.is_child.then_some(parent));
        let hashed = full_tree(&View::new(&layers), &Progress::default()).unwrap();
        assert_eq!(hashed.tree.id(), id, "{name}");
    }
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

/// A machine with a raw base of 200,000 counted bytes and an empty child.
fn machine() -> SimHost {
    let host = SimHost::new();
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let base = host.create(Path::new("/base")).unwrap();
    base.write_at(HostOffset::new(0), &counted()).unwrap();
    base.flush().unwrap();
    let parent = Some(format::ParentName::new(b"base".to_vec(), Some("raw".to_owned())));
    let creation = Creation { size: 300_032, parent, options: Vec::new() };
    let child = Draft::new(&shared, Path::new("/child")).unwrap();
    drop(format::create(Format::Qcow2, child.file(), &creation, &NoParts).unwrap());
    child.publish(Path::new("/child"), Publish::New).unwrap();
    crash_states(&host.trace(), 1, 0).last().unwrap().host
}

fn counted() -> Vec<u8> {
    (0..200_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Seals the machine's chain; returns the head's ID.
fn seal_on(host: &SimHost) -> Result<ContentId> {
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let layers = open_layers(&shared, Path::new("/child"), &Opening::reading())?;
    let sealed = seal(&Ledger::new(shared, None), &layers, &Progress::default())?;
    Ok(sealed[0].id)
}

/// How the machine's chain stands: nothing is refused, and what is trusted shows what its seal says.
fn check_on(host: &SimHost) -> Vec<Trust> {
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let chain = Chain::open(&shared, Path::new("/child"), &Opening::reading()).unwrap();
    let standings = lineage(&Ledger::new(shared, None), chain.layers()).unwrap();
    check_lineage(chain.layers(), &standings).unwrap();
    for (depth, standing) in standings.iter().enumerate() {
        let shown = full_tree(&chain.view(depth), &Progress::default()).unwrap().tree.id();
        let sealed = standing.known.layer.frozen.and_then(|record| record.sealed);
        assert!(sealed.is_none_or(|id| id == shown), "depth {depth}");
    }
    standings.iter().map(|standing| standing.known.trust).collect()
}

fn expected() -> ContentId {
    let mut view = counted();
    view.resize(300_032, 0);
    Tree::of(&view).id()
}

#[test]
fn a_seal_that_is_killed_anywhere_is_done_again() {
    let mut kills = 0;
    for n in 0.. {
        let host = machine();
        host.fail(Some(Fault { at: host.ios() + n, is_lasting: true, failure: Failure::Io }));
        let outcome = seal_on(&host);
        host.fail(None);
        check_on(&host);
        assert_eq!(seal_on(&host).unwrap(), expected(), "killed at {n}");
        assert_eq!(check_on(&host), [Trust::Trusted; 2], "killed at {n}");
        if outcome.is_ok() {
            break;
        }
        kills += 1;
    }
    assert!(kills > 50, "{kills}");
}

#[test]
fn a_seal_that_loses_power_anywhere_is_done_again() {
    let host = machine();
    seal_on(&host).unwrap();
    let (trace, mut cuts) = (host.trace(), 0);
    for crash in crash_states(&trace, 3, 2) {
        cuts += 1;
        // Another boot: nothing is trusted before it is hashed again.
        assert!(!check_on(&crash.host).contains(&Trust::Trusted));
        assert_eq!(seal_on(&crash.host).unwrap(), expected(), "{} {:?}", crash.after, crash.landing);
        assert_eq!(check_on(&crash.host), [Trust::Trusted; 2]);
    }
    assert!(cuts > 50, "{cuts}");
}
