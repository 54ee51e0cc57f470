//! The merging of runs against a naive model: one run a byte.
use super::*;
use crate::base::HostOffset;
use proptest::prelude::*;

const SIZE: u64 = 128;

fn range(start: u64, bytes: u64) -> GuestRange {
    GuestOffset::new(start).range(bytes)
}

/// The runs of a layer from a list of (what it says, bytes); nothing is said at 0.
fn runs(layer: usize, cuts: &[(u8, u64)]) -> Vec<Run> {
    let (mut list, mut at) = (Vec::new(), 0);
    for (kind, bytes) in cuts {
        let state = match kind {
            0 => State::Absent,
            1 => State::Zero { host: None },
            2 => State::Packed,
            _ => State::Data { host: HostOffset::new(1000 * u64::from(*kind) + at) },
        };
        push(&mut list, Run { range: range(at, *bytes), state, layer: Some(layer) });
        at += bytes;
    }
    list.retain(|run| run.state.is_present());
    list
}

fn byte(list: &[Run], at: u64) -> Option<Run> {
    let found = list.iter().find(|run| run.range.contains(GuestOffset::new(at)));
    found.map(|run| run.clip(range(at, 1)))
}

fn is_in_order(list: &[Run]) -> bool {
    list.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start)
        && list.iter().all(|run| !run.range.is_empty())
}

proptest! {
    #[test]
    fn a_layer_over_another_shows_the_other_where_it_is_silent(
        top in prop::collection::vec((0u8..5, 1u64..9), 0..12),
        below in prop::collection::vec((0u8..5, 1u64..9), 0..12),
    ) {
        let (top, below) = (runs(0, &top), runs(1, &below));
        let seen = over(top.clone(), below.clone());
        for at in 0..SIZE {
            prop_assert_eq!(byte(&seen, at), byte(&top, at).or_else(|| byte(&below, at)), "byte {}", at);
        }
        prop_assert!(is_in_order(&seen));
    }

    #[test]
    fn what_is_still_open_holds_every_byte_that_nobody_spoke_of_and_ends_at_such(
        cuts in prop::collection::vec((0u8..3, 1u64..9), 0..12), bytes in 1..SIZE,
    ) {
        let mut seen: Vec<Run> = runs(0, &cuts).iter().map(|run| run.clip(range(0, bytes))).collect();
        seen.retain(|run| !run.range.is_empty());
        let open: Vec<u64> = (0..bytes).filter(|at| byte(&seen, *at).is_none()).collect();
        let expected = open.first().zip(open.last()).map(|(first, last)| range(*first, last + 1 - first));
        prop_assert_eq!(still_open(&seen, range(0, bytes)), expected);
    }
}

proptest! {
    #[test]
    fn layers_painted_from_the_top_down_show_what_layers_laid_over_each_other_do(
        layers in prop::collection::vec(prop::collection::vec((0u8..5, 1u64..9), 0..12), 1..6),
    ) {
        let lists: Vec<Vec<Run>> = (0..).zip(&layers).map(|(layer, cuts)| runs(layer, cuts)).collect();
        let mut canvas = Canvas::new(range(0, SIZE), 1);
        lists.iter().flatten().for_each(|run| canvas.paint(*run));
        let (painted, laid) = (canvas.take(), flatten(lists));
        for at in 0..SIZE {
            prop_assert_eq!(byte(&painted, at), byte(&laid, at), "byte {}", at);
        }
        prop_assert!(is_in_order(&painted) && canvas.take().is_empty());
    }
}
