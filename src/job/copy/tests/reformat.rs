//! Chains in another format: the same views, layer by layer, whenever power fails.

use super::*;
use crate::{
    format::{BitmapEdit, Bits},
    job::copy::{Conversion, Report},
    store::Known,
};
use std::collections::BTreeMap;

fn conversion(cluster: &str, is_packed: bool) -> Conversion {
    let options = vec![("cluster_size".to_owned(), cluster.to_owned())];
    Conversion { format: Format::Qcow2, options, is_packed, names: BTreeMap::new() }
}

/// A raw base and its layers, with data, zeros and a bitmap.
fn build() -> (SimHost, Views) {
    let (host, _) = PLAIN.build();
    zero(&host, "/vm/top", 4096, 3000);
    let layer = crate::chain::open_layer(&arc(&host), Path::new("/vm/top"), &Opening::writing()).unwrap();
    let mut bits = Bits::new(SIZE, 1024);
    bits.mark(GuestOffset::new(5000).range(1));
    layer.image.edit_bitmap(&BitmapEdit::Put { name: "changes".to_owned(), bits, is_auto: true }).unwrap();
    drop(layer);
    let views = NAMES.map(|name| view(&host, &Path::new("/vm").join(name)).unwrap());
    (again(&host), views)
}

fn zero(host: &SimHost, name: &str, at: u64, bytes: u64) {
    let chain = Chain::open(&arc(host), Path::new(name), &opening(host).with_access(Access::Write)).unwrap();
    chain.zero(GuestOffset::new(at).range(bytes), crate::io::Kept::Nothing).unwrap();
    chain.flush().unwrap();
}

fn convert(host: &SimHost, new: &Conversion) -> Result<Report> {
    let ledger = Ledger::new(arc(host), None);
    let request = Request { share: Share::Deny, conversion: Some(new.clone()), ..Request::default() };
    let paths = (Path::new("/vm/top"), Path::new("/store"));
    Copy::prepare(&arc(host), &ledger, paths, &opening(host), request)?.run(&Progress::default())
}

/// What has a name is whole, and shows what its source shows.
fn check_names(host: &SimHost, views: &Views, story: &str) {
    for (name, expected) in NAMES.iter().zip(views) {
        let path = Path::new("/store").join(name);
        if host.kind(&path).unwrap().is_some() {
            let shown = view(host, &path).unwrap_or_else(|e| panic!("{story}: {name} does not open: {e}"));
            assert!(shown == *expected, "{story}: {name} shows something else");
        }
    }
}

fn known(host: &SimHost, name: &str) -> Known {
    let path = Path::new("/store").join(name);
    let layer = crate::chain::open_layer(&arc(host), &path, &Opening::reading()).unwrap();
    Ledger::new(arc(host), None).look(layer.image.as_ref()).unwrap()
}

fn check_end(host: &SimHost, views: &Views, story: &str) {
    check_names(host, views, story);
    let mut left: Vec<String> = host
        .list(Path::new("/store"))
        .unwrap()
        .iter()
        .map(|entry| entry.path.file_name().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != ".dchain")
        .collect();
    left.sort();
    assert_eq!(left, NAMES, "{story}");
    for name in NAMES {
        let file = host.open(&Path::new("/store").join(name), Access::Read).unwrap();
        let checked = format::check(Format::Qcow2, file, format::Repair::Nothing, &NoParts).unwrap();
        assert_eq!(checked.corruptions + checked.leaks, 0, "{story}: {name}: {:?}", checked.findings);
    }
    let chain = Chain::open(&arc(host), Path::new("/store/top"), &opening(host)).unwrap();
    assert_eq!(chain.layers().len(), 3, "{story}");
    let bitmap = chain.layers()[0].image.bitmap("changes").unwrap();
    assert_eq!(bitmap.dirty_bytes(), 1024, "{story}");
}

#[test]
fn a_chain_keeps_its_layers_and_their_ids_in_another_format() {
    for (cluster, is_packed) in
        [("512", false), ("1024", false), ("4096", false), ("65536", false), ("4096", true)]
    {
        let (host, views) = build();
        let report = convert(&host, &conversion(cluster, is_packed)).unwrap();
        check_end(&host, &views, cluster);
        let ids: Vec<_> = views.iter().map(|view| crate::content::Tree::of(view).id()).collect();
        assert_eq!(report.proved.iter().map(|proved| proved.id).collect::<Vec<_>>(), ids);
        // What something lies on is sealed; the head makes no claim about itself.
        let sealed = NAMES.map(|name| known(&host, name).layer.frozen.and_then(|record| record.sealed));
        assert_eq!(sealed, [Some(ids[0]), Some(ids[1]), None]);
        assert_eq!(known(&host, "top").layer.claim.unwrap().parent_id, Some(ids[1]));
    }
}

#[test]
fn power_cuts_of_a_conversion_leave_whole_layers_or_none() {
    let (host, views) = build();
    let new = conversion("4096", false);
    convert(&host, &new).unwrap();
    let (mut points, mut resumed) = (0, 0);
    for (number, crash) in crash_states(&host.trace(), 7, 0).enumerate() {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        check_names(&crash.host, &views, &story);
        match convert(&crash.host, &new) {
            Ok(report) => resumed += usize::from(report.plan.is_resumed),
            Err(e) if e.kind() == ErrorKind::Exists && is_there(&crash.host, "/store/top") => {}
            Err(e) => panic!("{story}: {e}"),
        }
        check_end(&crash.host, &views, &story);
        points += 1;
        for second in crash_states(&crash.host.trace(), 9, 0).step_by(7).filter(|_| number.is_multiple_of(41))
        {
            let story = format!("{story}, then after {}", second.after);
            check_names(&second.host, &views, &story);
            match convert(&second.host, &new) {
                Err(e) if e.kind() == ErrorKind::Exists && is_there(&second.host, "/store/top") => {}
                done => drop(done.unwrap_or_else(|e| panic!("{story}: {e}"))),
            }
            check_end(&second.host, &views, &story);
            points += 1;
        }
    }
    println!("{points} power cuts, {resumed} resumed");
    assert!(points > 80 && resumed > 30, "{points} {resumed}");
}

#[test]
fn a_failing_io_ends_a_conversion_and_the_next_life_ends_it() {
    let (host, views) = build();
    let new = conversion("1024", false);
    let whole = again(&host);
    let before = whole.ios();
    convert(&whole, &new).unwrap();
    let mut failed = 0;
    for at in (before..whole.ios()).step_by(3) {
        let machine = again(&host);
        machine.fail(Some(Fault { at, is_lasting: at % 2 == 0, failure: Failure::Io }));
        let outcome = convert(&machine, &new);
        machine.fail(None);
        let story = format!("failed at I/O {at}");
        if outcome.is_err() {
            failed += 1;
            check_names(&machine, &views, &story);
            match convert(&machine, &new) {
                Err(e) if e.kind() == ErrorKind::Exists && is_there(&machine, "/store/top") => {}
                done => drop(done.unwrap_or_else(|e| panic!("{story}: {e}"))),
            }
        }
        check_end(&machine, &views, &story);
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn only_a_whole_disk_becomes_raw() {
    let (host, _) = build();
    let new =
        Conversion { format: Format::Raw, options: Vec::new(), is_packed: false, names: BTreeMap::new() };
    let refused = convert(&host, &new).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().starts_with("/vm/middle: "), "{refused}");
}

type Way<'a> = dyn Fn(&SimHost) -> Result<Report> + 'a;

/// A conversion is cut off, and the chain copied as it is instead (or the other way round): no layer is taken for
/// one that it is not.
#[test]
fn what_was_made_in_another_way_is_not_gone_on_with() {
    let (host, views) = build();
    let new = conversion("1024", false);
    let as_it_is = |host: &SimHost| {
        let request = Request { share: Share::Deny, ..Request::default() };
        let (ledger, paths) = (Ledger::new(arc(host), None), (Path::new("/vm/top"), Path::new("/store")));
        Copy::prepare(&arc(host), &ledger, paths, &opening(host), request)?.run(&Progress::default())
    };
    let ways: [&Way<'_>; 2] = [&|host| convert(host, &new), &as_it_is];
    for (first, second) in [(ways[0], ways[1]), (ways[1], ways[0])] {
        let whole = again(&host);
        let before = whole.ios();
        first(&whole).unwrap();
        let mut refused = 0;
        for at in (before..whole.ios()).step_by(3) {
            let machine = again(&host);
            machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
            let done = first(&machine);
            machine.fail(None);
            let story = format!("failed at I/O {at}");
            if done.is_ok() {
                // All was published: what could not be done is giving a lease back.
                check_names(&machine, &views, &story);
                continue;
            }
            match second(&machine) {
                Err(e) if e.kind() == ErrorKind::Exists => refused += 1,
                done => drop(done.unwrap_or_else(|e| panic!("{story}: {e}"))),
            }
            check_names(&machine, &views, &story);
        }
        assert!(refused > 2, "{refused}");
    }
}
