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

/// What a guest has cut into small pieces is told in part: the rest can be asked for.
#[test]
fn what_is_known_of_a_disk_is_told_of_so_much_at_once() {
    use crate::{
        chain::{Chain, Layer},
        format::{Creation, Format, NoParts, ParentName, Parts, create, open},
        io::{Access, File, Host, faulty::SimHost},
    };
    /// With it, pages of the map are small.
    struct Small;
    impl Parts for Small {
        fn open_part(&self, _name: &[u8]) -> Result<Arc<dyn File>> {
            Err(Error::invalid("none"))
        }

        fn budget(&self) -> Budget {
            Budget::new(Budget::BYTES_MIN).unwrap()
        }
    }
    const CLUSTERS: u64 = 8192;
    let host = SimHost::new();
    let options = vec![("cluster_size".into(), "512".into())];
    let creation = Creation { size: CLUSTERS * 512, parent: None, options };
    let file = host.create("/disk".as_ref()).unwrap();
    let image = create(Format::Qcow2, file, &creation, &NoParts).unwrap();
    for nth in 0..CLUSTERS / 2 {
        image.write(GuestOffset::new(nth * 1024), &[1; 512], &View::new(&[])).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    let options = vec![("cluster_size".into(), "512".into())];
    let parent = Some(ParentName::new(b"disk".to_vec(), Some("qcow2".to_owned())));
    let creation = Creation { size: CLUSTERS * 512, parent, options };
    let head = create(Format::Qcow2, host.create("/head".as_ref()).unwrap(), &creation, &NoParts).unwrap();
    let head = Layer { path: "/head".into(), is_stated: true, image: head };
    for is_writable in [true, false] {
        let file = host.open("/disk".as_ref(), Access::Read).unwrap();
        let image = open(Format::Qcow2, file, false, &Small).unwrap();
        let base = Layer { path: "/disk".into(), is_stated: true, image };
        let chain = Chain::of(
            [head.clone()].into_iter().filter(|_| is_writable).chain([base]).collect(),
            is_writable,
        );
        let whole = range(0, CLUSTERS * 512);
        let (mut all, mut told) = (Vec::new(), Vec::new());
        chain.first_runs(whole, 100, &mut told).unwrap();
        chain.runs(whole, &mut all).unwrap();
        assert_eq!(all.len() as u64, CLUSTERS);
        assert!((100..all.len() / 2).contains(&told.len()), "{} {is_writable}", told.len());
        assert_eq!(told[..], all[..told.len()]);
    }
}
