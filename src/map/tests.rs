//! The algebra against a naive model: one state a byte.
use super::*;
use proptest::prelude::*;

const SIZE: u64 = 64;

fn range(start: u64, bytes: u64) -> GuestRange {
    GuestOffset::new(start).range(bytes)
}

fn state(kind: u8, at: u64) -> State {
    match kind {
        0 => State::Absent,
        1 => State::Zero { host: None },
        2 => State::Packed,
        _ => State::Data { host: HostOffset::new(1000 * u64::from(kind) + at) },
    }
}

/// A layer's map from a list of (kind, bytes).
fn layer(cuts: &[(u8, u64)]) -> Vec<Extent> {
    let (mut list, mut at) = (Vec::new(), 0);
    for (kind, bytes) in cuts {
        push(&mut list, Extent::new(range(at, *bytes), state(*kind, at)));
        at += bytes;
    }
    list
}

fn byte(list: &[Extent], at: u64) -> State {
    let found = list.iter().find(|e| e.range.contains(GuestOffset::new(at)));
    found.map_or(State::Absent, |e| e.state.after(at - e.range.start.bytes()))
}

proptest! {
    #[test]
    fn a_layer_over_another_shows_the_other_where_it_is_silent(
        top in prop::collection::vec((0u8..5, 1u64..9), 0..12),
        below in prop::collection::vec((0u8..5, 1u64..9), 0..12),
    ) {
        let (top, below) = (layer(&top), layer(&below));
        let seen = over(&top, &below);
        for at in 0..SIZE * 2 {
            let expected = match byte(&top, at) { State::Absent => byte(&below, at), own => own };
            prop_assert_eq!(byte(&seen, at), expected, "byte {}", at);
        }
        for pair in seen.windows(2) {
            prop_assert!(pair[0].range.end() <= pair[1].range.start && !pair[0].joins(&pair[1]));
        }
    }

    #[test]
    fn a_set_of_ranges_is_a_set_of_bytes(
        steps in prop::collection::vec((any::<bool>(), 0..SIZE, 0u64..12), 0..24),
        asked in (0..SIZE, 0u64..12),
    ) {
        let (mut set, mut model) = (RangeSet::new(), vec![false; 80]);
        for (add, start, bytes) in steps {
            if add { set.insert(range(start, bytes)) } else { set.remove(range(start, bytes)) }
            (start..start + bytes).for_each(|at| model[crate::base::units::index(at)] = add);
        }
        let held: Vec<u64> = set.iter().flat_map(|r| r.start.bytes()..r.end().bytes()).collect();
        let expected: Vec<u64> = (0..80).filter(|at| model[crate::base::units::index(*at)]).collect();
        prop_assert_eq!(&held, &expected);
        prop_assert_eq!(set.bytes(), held.len() as u64);
        let asked = range(asked.0, asked.1);
        let inside = expected.iter().filter(|at| asked.contains(GuestOffset::new(**at))).count() as u64;
        prop_assert_eq!(set.touches(asked), inside > 0);
        prop_assert_eq!(set.covers(asked), inside == asked.bytes);
        let gaps: u64 = set.gaps(asked).iter().map(|r| r.bytes).sum();
        prop_assert_eq!(gaps, asked.bytes - inside);
    }
}
