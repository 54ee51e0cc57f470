//! A disk leaves layers that others use, on a simulated machine whose power goes at every point.

use super::*;
use crate::{
    base::GuestOffset,
    disk::Disk,
    format::Format,
    io::faulty::{Failure, Fault, SimHost, crash_states},
    job::{
        create::{NewImage, create},
        cuts,
        snapshot::snapshot,
    },
    store::Ledger,
};

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn opening(host: &SimHost) -> Opening {
    Opening::reading().with_ledger(Ledger::new(arc(host), None))
}

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

const SIZE: usize = 16 << 10;

fn view(host: &SimHost, name: &str) -> Vec<u8> {
    let chain = Chain::open(&arc(host), &path(name), &opening(host)).unwrap();
    let mut bytes = vec![0xee; SIZE];
    chain.read(GuestOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// base <- golden <- own <- top, and other on golden; each holds data and zeros of its own.
fn machine() -> SimHost {
    let host = SimHost::new();
    host.make_folder(Path::new("/vm")).unwrap();
    let small = vec![("cluster_size".to_owned(), "512".to_owned())];
    let new =
        NewImage { format: Format::Qcow2, size: Some(SIZE as u64), parent: None, options: small.clone() };
    create(&arc(&host), &path("base"), &new, &opening(&host)).unwrap();
    let put = |name: &str, at: u64, byte: u8| {
        let chain =
            Chain::open(&arc(&host), &path(name), &opening(&host).with_access(Access::Write)).unwrap();
        chain.write(GuestOffset::new(at), &vec![byte; 3000]).unwrap();
        chain.zero(GuestOffset::new(at + 3500).range(700), crate::io::Kept::Nothing).unwrap();
        chain.flush().unwrap();
    };
    put("base", 0, 1);
    put("base", 8000, 1);
    for (below, above, at) in
        [("base", "golden", 1000), ("golden", "own", 4000), ("own", "top", 9000), ("golden", "other", 7000)]
    {
        snapshot(&arc(&host), &path(below), &path(above), &small, &opening(&host)).unwrap();
        put(above, at, 2);
    }
    for folder in ["/vm/.dchain/notes", "/vm/.dchain", "/vm", "/"] {
        host.sync_folder(Path::new(folder)).unwrap();
    }
    host.twin()
}

fn unshare(host: &SimHost, name: &str) -> Result<Plan> {
    Unshare::prepare(&arc(host), &path(name), &opening(host), false)?.run(&Progress::default())
}

const NAMES: [&str; 5] = ["base", "golden", "own", "top", "other"];

#[test]
fn cid_11_a_disk_leaves_what_it_shares_and_every_layer_shows_what_it_showed() {
    let host = machine();
    let before = NAMES.map(|name| view(&host, name));
    let plan = unshare(&host, "top").unwrap();
    assert_eq!((plan.base, plan.leaves), (path("own"), vec![path("golden"), path("base")]));
    assert!(plan.why.unwrap().contains("/vm/other lies on it, too"));
    assert!(NAMES.map(|name| view(&host, name)) == before);
    let layers = |name| Chain::open(&arc(&host), &path(name), &opening(&host)).unwrap().layers().len();
    assert_eq!((layers("top"), layers("own"), layers("other")), (2, 1, 3));
    // Nothing is left to do, and the others have `golden` for themselves.
    assert_eq!(unshare(&host, "top").unwrap().leaves, Vec::<PathBuf>::new());
    assert_eq!(unshare(&host, "other").unwrap().leaves, Vec::<PathBuf>::new());
}

#[test]
fn cid_11_power_cuts_and_failures_leave_the_disk_as_it_was_or_as_it_shall_be() {
    let start = machine();
    let before = NAMES.map(|name| view(&start, name));
    let check = |host: &SimHost, story: &str| {
        for (name, shown) in NAMES.iter().zip(&before) {
            assert!(view(host, name) == *shown, "{story}: {name} shows something else");
        }
    };
    let end = |host: &SimHost, story: &str| {
        unshare(host, "top").unwrap_or_else(|error| panic!("{story}: {error}"));
        check(host, story);
        let chain = Chain::open(&arc(host), &path("top"), &opening(host)).unwrap();
        assert_eq!(chain.layers().len(), 2, "{story}");
    };
    let host = start.twin();
    unshare(&host, "top").unwrap();
    assert!(cuts::everywhere(&host, (1, 9), check, end) > 30);
    let (whole, mut failed) = (start.twin(), 0);
    let first = whole.ios();
    unshare(&whole, "top").unwrap();
    for at in first..whole.ios() {
        let machine = start.twin();
        machine.fail(Some(Fault { at, is_lasting: false, failure: Failure::Io }));
        failed += usize::from(unshare(&machine, "top").is_err());
        machine.fail(None);
        let story = format!("EIO at I/O {at} of {}", whole.ios());
        check(&machine, &story);
        end(&machine, &story);
    }
    assert!(failed > 20);
}

fn keep_layers(host: &SimHost, name: &str) -> Result<Plan> {
    Unshare::prepare(&arc(host), &path(name), &opening(host), true)?.run(&Progress::default())
}

/// Copies of `golden` and `base` stand in for them; whatever a cut leaves, every disk shows what it showed.
#[test]
fn cid_11_a_disk_gets_copies_of_what_it_shares_whatever_happens_on_the_way() {
    let start = machine();
    let before = NAMES.map(|name| view(&start, name));
    let check = |host: &SimHost, story: &str| {
        for (name, shown) in NAMES.iter().zip(&before) {
            assert!(view(host, name) == *shown, "{story}: {name} shows something else");
        }
    };
    let end = |host: &SimHost, story: &str| {
        keep_layers(host, "top").unwrap_or_else(|error| panic!("{story}: {error}"));
        check(host, story);
        let chain = Chain::open(&arc(host), &path("top"), &opening(host)).unwrap();
        let layers: Vec<_> = chain.layers().iter().map(|layer| layer.path.clone()).collect();
        assert_eq!(layers, ["top", "own", "golden-of-own", "base-of-own"].map(path), "{story}");
        drop(chain);
        let names = host.list(Path::new("/vm")).unwrap().len();
        assert_eq!(names, NAMES.len() + 2 + 1, "{story}: more is left than the copies");
    };
    let host = start.twin();
    let plan = keep_layers(&host, "top").unwrap();
    assert_eq!((plan.base, plan.leaves), (path("own"), ["golden", "base"].map(path).to_vec()));
    assert_eq!(plan.copies, ["golden-of-own", "base-of-own"].map(path));
    check(&host, "whole");
    assert_eq!(unshare(&host, "other").unwrap().leaves, Vec::<PathBuf>::new(), "nobody shares them now");
    let host = start.twin();
    keep_layers(&host, "top").unwrap();
    let mut points = 0;
    for crash in crash_states(&host.trace(), 7, 0).step_by(29) {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        check(&crash.host, &story);
        end(&crash.host, &story);
        points += 1;
    }
    assert!(points > 5, "{points}");
}
