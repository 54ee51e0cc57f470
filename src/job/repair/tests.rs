//! Repairs on a simulated machine: the power goes at every point, each I/O fails once. A layer that is trusted shows
//! what it promises at every moment, a child that opens reads what it was made on, and the repair ends when it is
//! asked for again.

use super::*;
use crate::{
    base::{ErrorKind, HostOffset},
    disk::Disk,
    format::{self, Creation, Format, NoParts},
    io::faulty::{Failure, Fault, SimHost, crash_states},
    job::snapshot::snapshot,
    store::Trust,
};

const LEAF: usize = 65536;
const SIZE: usize = 6 * LEAF + 1024;

/// The layer `/base` in its format, sealed under `/child`, then changed by a stranger; `/copy` is as it was.
#[derive(Clone, Copy)]
struct Scene {
    base: Format,
    /// The stranger's size for the disk, if another.
    size: Option<u64>,
    /// Whether the stranger put another file in the layer's place.
    is_replaced: bool,
}

const RAW: Scene = Scene { base: Format::Raw, size: None, is_replaced: false };
const QCOW2: Scene = Scene { base: Format::Qcow2, ..RAW };

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

fn opening(host: &SimHost) -> Opening {
    Opening::reading().with_ledger(ledger(host))
}

fn again(host: &SimHost) -> SimHost {
    drop(host.create(Path::new("/waits")).unwrap());
    host.remove(Path::new("/waits")).unwrap();
    crash_states(&host.trace(), 0, 0).last().unwrap().host
}

/// What the base is promised to show: data, zeros, and an end that is no whole leaf.
fn promised() -> Vec<u8> {
    (0..SIZE).map(|at| if at / LEAF == 4 { 0 } else { u8::try_from(at / LEAF + 1).unwrap() }).collect()
}

fn view(host: &SimHost, path: &str, opening: &Opening) -> Result<Vec<u8>> {
    let chain = Chain::open(&arc(host), Path::new(path), opening)?;
    let mut bytes = vec![0xee; usize::try_from(chain.size()).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

impl Scene {
    fn build(self) -> SimHost {
        let host = SimHost::new();
        let creation = Creation { size: SIZE as u64, parent: None, options: vec![] };
        let image =
            format::create(self.base, host.create(Path::new("/base")).unwrap(), &creation, &NoParts).unwrap();
        image.write(GuestOffset::new(0), &promised(), &format::Nothing).unwrap();
        image.flush().unwrap();
        drop(image);
        snapshot(&arc(&host), Path::new("/base"), Path::new("/child"), &[], &opening(&host)).unwrap();
        let layers = seal::open_layers(&arc(&host), Path::new("/child"), &opening(&host)).unwrap();
        seal::seal(&ledger(&host), &layers, &Progress::default()).unwrap();
        drop(layers);
        let copy = host.create(Path::new("/copy")).unwrap();
        copy.write_at(HostOffset::new(0), &promised()).unwrap();
        copy.flush_with_time().unwrap();
        drop(copy);
        self.harm(&host);
        if self.is_replaced {
            let bytes = view(&host, "/base", &Opening::reading().with_format(Some(Format::Raw))).unwrap();
            let file = host.create(Path::new("/new")).unwrap();
            file.write_at(HostOffset::new(0), &bytes).unwrap();
            file.flush_with_time().unwrap();
            drop(file);
            host.rename(Path::new("/new"), Path::new("/base")).unwrap();
        }
        again(&host)
    }

    fn harm(self, host: &SimHost) {
        let how = Opening::writing().with_format(Some(self.base));
        let chain = Chain::open(&arc(host), Path::new("/base"), &how).unwrap();
        for at in [LEAF / 2, 2 * LEAF + 7, 3 * LEAF, 4 * LEAF + 9, 6 * LEAF] {
            chain.write(GuestOffset::new(at as u64), &[0xbb; 300]).unwrap();
        }
        let image = &chain.head().unwrap().image;
        self.size.iter().for_each(|size| image.resize(*size, &format::Nothing).unwrap());
        chain.flush().unwrap();
        image.files().iter().for_each(|file| file.flush_with_time().unwrap());
    }
}

fn repair(host: &SimHost, copy: &str, unproven: Unproven) -> Result<Repaired> {
    let paths = (Path::new("/base"), Path::new(copy));
    let how = Opening::reading();
    let repair = Repair::prepare(&arc(host), &ledger(host), paths, (&how, &how), &Progress::default())?;
    repair.run(unproven, &Progress::default())
}

fn trust(host: &SimHost) -> Trust {
    let chain = Chain::open(&arc(host), Path::new("/base"), &Opening::reading()).unwrap();
    ledger(host).look(chain.head().unwrap().image.as_ref()).unwrap().trust
}

fn check_moment(host: &SimHost, story: &str) {
    if trust(host) == Trust::Trusted {
        let shown = view(host, "/base", &Opening::reading()).unwrap();
        assert!(shown == promised(), "{story}: trusted, and shows something else");
    }
    match view(host, "/child", &opening(host)) {
        Ok(shown) => assert!(shown == promised(), "{story}: the child reads what it was not made on"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Policy, "{story}: {error}"),
    }
}

fn finish(host: &SimHost, story: &str) {
    let done = repair(host, "/copy", Unproven::Refuse).unwrap_or_else(|e| panic!("{story}: {e}"));
    assert!(done.is_proven, "{story}");
    assert_eq!(trust(host), Trust::Trusted, "{story}");
    assert!(view(host, "/child", &opening(host)).unwrap() == promised(), "{story}");
}

fn crash_everywhere(scene: Scene, samples: u64) -> usize {
    let host = scene.build();
    assert!(matches!(trust(&host), Trust::Doubted(_) | Trust::Unknown));
    assert_eq!(view(&host, "/child", &opening(&host)).unwrap_err().kind(), ErrorKind::Policy);
    finish(&host, "without a crash");
    let mut points = 0;
    for (number, crash) in crash_states(&host.trace(), 7, samples).enumerate() {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        check_moment(&crash.host, &story);
        if number.is_multiple_of(2) {
            finish(&crash.host, &story);
        }
        points += 1;
    }
    println!("{points} power cuts");
    points
}

#[test]
fn power_cuts_of_a_repair() {
    assert!(crash_everywhere(RAW, 2) > 30);
    assert!(crash_everywhere(QCOW2, 2) > 30);
    assert!(crash_everywhere(Scene { size: Some(3 << 16), ..QCOW2 }, 1) > 20);
    assert!(crash_everywhere(Scene { size: Some(9 << 16), ..RAW }, 1) > 20);
    assert!(crash_everywhere(Scene { is_replaced: true, ..RAW }, 1) > 20);
}

#[test]
fn each_failing_io_of_a_repair_leaves_a_layer_that_the_next_one_repairs() {
    for scene in [RAW, QCOW2] {
        let host = scene.build();
        let whole = again(&host);
        let before = whole.ios();
        finish(&whole, "without a failure");
        let mut failed = 0;
        for at in before..whole.ios() {
            let machine = again(&host);
            machine.fail(Some(Fault { at, is_lasting: false, failure: Failure::Io }));
            let story = format!("I/O {at} of {}", whole.ios());
            failed += usize::from(repair(&machine, "/copy", Unproven::Refuse).is_err());
            machine.fail(None);
            check_moment(&machine, &story);
            finish(&machine, &story);
        }
        assert!(failed > 10, "{failed}");
    }
}

#[test]
fn a_copy_that_does_not_prove_all_is_refused_and_what_it_proves_is_put_back_on_request() {
    let host = QCOW2.build();
    let copy = host.open(Path::new("/copy"), Access::Write).unwrap();
    copy.write_at(HostOffset::new(2 * 65536), &[1]).unwrap();
    drop(copy);
    let before = view(&host, "/base", &Opening::reading()).unwrap();
    let refused = repair(&host, "/copy", Unproven::Refuse).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Policy);
    assert!(view(&host, "/base", &Opening::reading()).unwrap() == before, "nothing was written");
    let done = repair(&host, "/copy", Unproven::Leave).unwrap();
    assert_eq!((done.is_proven, done.restored_bytes), (false, (3 * LEAF + 1024) as u64));
    assert!(matches!(trust(&host), Trust::Doubted(_)));
    let mut expected = promised();
    expected[2 * LEAF..3 * LEAF].copy_from_slice(&before[2 * LEAF..3 * LEAF]);
    assert!(view(&host, "/base", &Opening::reading()).unwrap() == expected);
    let mend = host.open(Path::new("/copy"), Access::Write).unwrap();
    mend.write_at(HostOffset::new(2 * 65536), &[3]).unwrap();
    drop(mend);
    finish(&host, "a better copy");
}

#[test]
fn a_base_whose_tree_is_lost_is_repaired_from_a_copy_that_shows_all() {
    let host = RAW.build();
    for tree in host.list(Path::new("/.dchain/trees")).unwrap() {
        host.remove(&tree.path).unwrap();
    }
    finish(&host, "without a tree");
}

#[test]
fn a_layer_that_promises_nothing_is_not_repaired() {
    let host = RAW.build();
    let error = Repair::prepare(
        &arc(&host),
        &ledger(&host),
        (Path::new("/copy"), Path::new("/child")),
        (&Opening::reading(), &Opening::reading()),
        &Progress::default(),
    );
    assert_eq!(error.map(drop).unwrap_err().kind(), ErrorKind::Invalid);
}
