//! The tree against the specification's vectors, and against a naive tree over plain bytes.
use super::*;
use crate::base::{ErrorKind, GuestOffset, GuestRange, clock::Stopwatch, seed::Seeded, units::index};
use proptest::prelude::*;

const LEAF: usize = index(LEAF_BYTES);

fn id(bytes: &[u8]) -> String {
    Tree::of(bytes).id().to_string()
}

/// The tree as the specification says it, with every zero leaf and node spelled out.
fn naive_id(view: &[u8]) -> ContentId {
    let size = view.len().next_multiple_of(512);
    let hash =
        |kind: &str, bytes: &[u8]| blake3::derive_key(&format!("deltachain 2026-11-20 {kind} v1"), bytes);
    let or_zero = |kind: &str, bytes: &[u8]| {
        if bytes.iter().all(|b| *b == 0) { [0; 32] } else { hash(kind, bytes) }
    };
    let padded = |piece: &[u8]| [piece, &vec![0; LEAF - piece.len()]].concat();
    let mut level: Vec<[u8; 32]> = view.chunks(LEAF).map(|piece| or_zero("leaf", &padded(piece))).collect();
    level.resize(size.div_ceil(LEAF).next_power_of_two(), [0; 32]);
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| or_zero("node", &pair.concat())).collect();
    }
    let root = level.first().copied().unwrap_or_default();
    ContentId::new(hash("view", &[&1_u32.to_le_bytes()[..], &(size as u64).to_le_bytes(), &root].concat()))
}

/// A tree of `leaves` leaves, some set to made-up hashes.
fn tree(leaves: u64, set: &[(u64, u8)]) -> Tree {
    let mut tree = Tree::new(leaves * LEAF_BYTES);
    for (at, kind) in set {
        tree.set(at % leaves, Digest::new([*kind; 32])).unwrap();
    }
    tree
}

fn stored(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    tree.write_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_specification_s_vectors_hold() {
    let mut one = vec![0; 1 << 20];
    assert_eq!(id(&[]), "c1:c2e4b972f6a8065804f2ed60c0694efc8c539f22d0a2523bc2f3852781a2711c");
    assert_eq!(id(&one), "c1:fda59da69085d12a579fd04039e73b38ad0d4009fe1f288dfbda4a8b71eb57a7");
    one[70_000] = 1;
    assert_eq!(id(&one), "c1:be0b2a3be7a51e050245119851d90b2f910f47440c64023700d48187ef5232c1");
    let counting: Vec<u8> = (0..200_001_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    assert_eq!(id(&counting), "c1:3a8c37fb0102cf54c4af7661c0ce51f40b48ce69654fd19a47ad352d1b72b8f1");
}

#[test]
fn the_sparse_tree_is_the_naive_tree() {
    let mut seed = Seeded::new(11);
    for leaves in [1, 2, 3, 5, 8, 31, 63, 64, 65, 67, 130] {
        let mut view = vec![0; leaves * LEAF - index(seed.below(LEAF_BYTES))];
        for piece in view.chunks_mut(LEAF) {
            if seed.chance(1, 3) {
                piece[index(seed.below(100)) % piece.len()] = 7;
            }
        }
        assert_eq!(Tree::of(&view).id(), naive_id(&view), "{leaves} leaves");
    }
}

#[test]
fn sixty_four_tebibytes_of_nothing_take_no_time() {
    let watch = Stopwatch::start();
    let mut tree = Tree::new(64 << 40);
    let empty = tree.id();
    tree.set((64 << 40) / LEAF_BYTES - 1, leaf(b"the last leaf")).unwrap();
    assert_ne!(tree.id(), empty);
    // Leaf by leaf it would be hours.
    assert!(watch.elapsed().as_secs() < 20, "{:?}", watch.elapsed());
    assert!(stored(&tree).len() < 100);
}

#[test]
fn the_size_is_part_of_the_name_up_to_the_sector() {
    assert_eq!(id(&[0; 1000]), id(&[0; 1024]));
    assert_ne!(id(&[0; 1024]), id(&[0; 1025]));
    assert_eq!(Tree::of(&[1; 1000]).size(), 1024);
}

#[test]
fn a_leaf_past_the_end_is_refused() {
    let mut tree = Tree::new(LEAF_BYTES + 1);
    assert_eq!(tree.set(2, Digest::ZERO).unwrap_err().kind(), ErrorKind::Invalid);
    tree.set(1, Digest::new([1; 32])).unwrap();
    assert_eq!(tree.range(1), GuestOffset::new(LEAF_BYTES).range(512));
}

#[test]
fn a_cut_through_a_leaf_names_the_leaf_to_hash_again() {
    let view = vec![9; 3 * LEAF];
    let mut tree = Tree::of(&view);
    let cut = LEAF + 1024;
    assert_eq!(tree.resize(cut as u64), Some(1));
    tree.set(1, leaf(&view[LEAF..cut])).unwrap();
    assert_eq!(tree, Tree::of(&view[..cut]));
    assert_eq!(tree.resize(LEAF as u64), None);
    assert_eq!(tree.resize(200 * LEAF_BYTES), None);
    let mut grown = view[..LEAF].to_vec();
    grown.resize(200 * LEAF, 0);
    assert_eq!(tree, Tree::of(&grown));
}

#[test]
fn a_stored_tree_is_used_only_for_the_id_that_its_root_gives() {
    let tree = tree(200, &[(3, 1), (64, 2), (199, 3)]);
    let (bytes, id) = (stored(&tree), tree.id());
    assert_eq!(Tree::read_from(&mut bytes.as_slice(), &id).unwrap(), tree);
    let other = ContentId::new([7; 32]);
    assert_eq!(Tree::read_from(&mut bytes.as_slice(), &other).unwrap_err().kind(), ErrorKind::Corrupt);
    for at in 0..bytes.len() {
        assert!(Tree::read_from(&mut &bytes[..at], &id).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(Tree::read_from(&mut flipped.as_slice(), &id).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_stored_tree_that_claims_more_pages_than_it_has_ends_early() {
    let mut bytes = stored(&tree(64, &[(3, 1)]));
    bytes[20..28].fill(0xff);
    let error = Tree::read_from(&mut bytes.as_slice(), &ContentId::new([0; 32])).unwrap_err();
    assert_eq!(error.to_string(), "stored tree ends too early");
}

#[test]
fn an_id_is_read_as_it_is_shown() {
    let id = Tree::new(0).id();
    assert_eq!(id.to_string().parse::<ContentId>().unwrap(), id);
    assert_eq!(id.hex().to_uppercase().parse::<ContentId>().unwrap(), id);
    assert_eq!(id.short(), "c1:c2e4b972f6a8");
    assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    for wrong in
        ["", "c1:", "c1:c2e", "c2:c2e4b972f6a8", "c1:xyzw", "c2e4b972f6a8", "c1:+2e4", &"a".repeat(65)]
    {
        assert!(wrong.parse::<ContentId>().is_err(), "{wrong}");
    }
}

#[test]
fn a_prefix_stands_for_the_only_id_that_starts_so() {
    let ids = [[0x11; 32], [0x12; 32]].map(ContentId::new);
    let resolve = |text: &str| text.parse::<IdPrefix>().unwrap().resolve(ids.into_iter().chain(ids));
    assert_eq!(resolve("c1:1111").unwrap(), ids[0]);
    assert_eq!(resolve("12121").unwrap(), ids[1]);
    assert_eq!(resolve("c1:1113").unwrap_err().kind(), ErrorKind::NotFound);
    let near = [[0x11; 32], {
        let mut far = [0x11; 32];
        far[31] = 0;
        far
    }]
    .map(ContentId::new);
    let ambiguous = "1111".parse::<IdPrefix>().unwrap().resolve(near).unwrap_err();
    assert_eq!(ambiguous.kind(), ErrorKind::Invalid);
    assert!("111".parse::<IdPrefix>().is_err());
}

fn naive_diff(a: &Tree, b: &Tree) -> Vec<GuestRange> {
    let longer = if a.size() > b.size() { a } else { b };
    (0..longer.leaves()).filter(|at| a.get(*at) != b.get(*at)).map(|at| longer.range(at)).collect()
}

proptest! {
    #[test]
    fn a_tree_set_in_any_order_is_the_same(
        set in prop::collection::btree_map(0_u64..300, 0_u8..3, 0..40),
        order in any::<u64>(),
    ) {
        let forward: Vec<(u64, u8)> = set.into_iter().collect();
        let mut shuffled = forward.clone();
        let mut seed = Seeded::new(order);
        shuffled.sort_by_cached_key(|_| seed.next());
        // Leaves that held something else before end up the same, too.
        let detour: Vec<(u64, u8)> =
            forward.iter().map(|(at, _)| (*at, 9)).chain(shuffled).collect();
        let (a, b) = (tree(300, &forward), tree(300, &detour));
        prop_assert_eq!(&a, &b);
        prop_assert_eq!(a.id(), b.id());
        prop_assert_eq!(Tree::read_from(&mut stored(&a).as_slice(), &a.id()).unwrap(), a);
    }

    #[test]
    fn one_flipped_bit_changes_the_id(
        size in 1_usize..3 * LEAF, at in any::<prop::sample::Index>(), bit in 0_u8..8, fill in 0_u8..2,
    ) {
        let mut view = vec![fill; size];
        let before = Tree::of(&view);
        let at = at.index(size);
        view[at] ^= 1 << bit;
        let after = Tree::of(&view);
        prop_assert_ne!(before.id(), after.id());
        let hit = GuestOffset::new(at as u64).range(1).outer(LEAF_BYTES).clip(GuestOffset::new(0).range(after.size()));
        prop_assert_eq!(diff(&before, &after), vec![hit]);
    }

    #[test]
    fn two_trees_differ_where_their_leaves_do(
        a in prop::collection::vec((0_u64..300, 0_u8..3), 0..40),
        b in prop::collection::vec((0_u64..300, 0_u8..3), 0..40),
        sizes in (1_u64..300, 1_u64..300),
    ) {
        let (a, b) = (tree(sizes.0, &a), tree(sizes.1, &b));
        let found = diff(&a, &b);
        prop_assert!(found.windows(2).all(|pair| pair[0].end() < pair[1].start), "joined and in order");
        let leaves: Vec<GuestRange> = found.iter().flat_map(|range| range.pieces(LEAF_BYTES)).collect();
        prop_assert_eq!(leaves, naive_diff(&a, &b));
        prop_assert_eq!(found, diff(&b, &a));
    }

    #[test]
    fn cleared_leaves_are_leaves_set_to_zero(
        set in prop::collection::vec((0_u64..300, 1_u8..3), 0..60), from in 0_u64..300, to in 0_u64..300,
    ) {
        let mut cleared = tree(300, &set);
        let mut expected = cleared.clone();
        cleared.clear(from, to);
        (from..to).for_each(|at| expected.set(at, Digest::ZERO).unwrap());
        prop_assert_eq!(cleared, expected);
    }
}
