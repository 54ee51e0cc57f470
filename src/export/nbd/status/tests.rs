use super::*;
use crate::base::GuestOffset;
use parking_lot::Mutex;

/// Says of each MiB whether its number is a multiple of `every`; counts how often it is asked.
struct Striped {
    every: u64,
    asked: Mutex<u64>,
}

const MIB: u64 = 1 << 20;

impl Context for Striped {
    fn name(&self) -> &'static str {
        "test:striped"
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        *self.asked.lock() += 1;
        let flags =
            |at: GuestOffset| u64::from(self.every > 0 && (at.bytes() / MIB).is_multiple_of(self.every));
        if self.every == 0 {
            out.push(Stretch { bytes: range.bytes, flags: 0 });
        } else {
            out.extend(
                range.pieces(MIB).map(|piece| Stretch { bytes: piece.bytes, flags: flags(piece.start) }),
            );
        }
        Ok(())
    }
}

fn striped(every: u64) -> Striped {
    Striped { every, asked: Mutex::new(0) }
}

#[test]
fn stretches_that_say_the_same_are_one() {
    let range = GuestOffset::new(MIB / 2).range(5 * MIB);
    let found = gather(&striped(3), range, false).unwrap();
    let expected = [(MIB / 2, 1), (2 * MIB, 0), (MIB, 1), (MIB + MIB / 2, 0)];
    assert_eq!(found, expected.map(|(bytes, flags)| Stretch { bytes, flags }));
}

#[test]
fn one_stretch_is_told_whole_over_all_steps() {
    let range = GuestOffset::new(0).range(100 << 40);
    let empty = striped(0);
    assert_eq!(gather(&empty, range, true).unwrap(), [Stretch { bytes: 100 << 40, flags: 0 }]);
    assert!(*empty.asked.lock() < 110, "steps grow where nothing is");
    // What no disk of this world has is told in part, soon.
    let range = GuestOffset::new(0).range(1 << 62);
    assert!(gather(&empty, range, false).unwrap()[0].bytes > 100 << 40);
    let few = gather(&striped(5000), GuestOffset::new(MIB).range(1 << 40), true).unwrap();
    assert_eq!(few, [Stretch { bytes: 4999 * MIB, flags: 0 }]);
}

#[test]
fn many_stretches_are_told_in_part() {
    let found = gather(&striped(2), GuestOffset::new(0).range(1 << 40), false).unwrap();
    assert_eq!(found.len(), STATUS_MAX);
    assert!(found.iter().all(|stretch| stretch.bytes == MIB));
}

#[test]
fn a_context_that_says_less_than_it_was_asked_for_is_asked_for_the_rest() {
    struct Short;
    impl Context for Short {
        fn name(&self) -> &'static str {
            "test:short"
        }

        fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
            out.push(Stretch {
                bytes: range.bytes.min(3 * MIB),
                flags: (range.start.bytes() / (6 * MIB)) & 1,
            });
            Ok(())
        }
    }
    let found = gather(&Short, GuestOffset::new(0).range(13 * MIB), false).unwrap();
    let expected = [(6 * MIB, 0), (6 * MIB, 1), (MIB, 0)];
    assert_eq!(found, expected.map(|(bytes, flags)| Stretch { bytes, flags }));
}
