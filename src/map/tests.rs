//! The algebra against a naive model: one state a byte.
use super::*;
use crate::base::GuestOffset;
use proptest::prelude::*;

const SIZE: u64 = 64;

fn range(start: u64, bytes: u64) -> GuestRange {
    GuestOffset::new(start).range(bytes)
}

proptest! {
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
