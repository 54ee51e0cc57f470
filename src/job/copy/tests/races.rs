//! Others act at each I/O of a copy: a writer of the matched parent, who heeds locks or does not, another copy.

use super::*;
use parking_lot::Mutex;
use std::thread::{self, JoinHandle};

const LINKS: Scene = Scene { is_shelved: true, ..PLAIN };

fn copy_of(host: &SimHost, top: &str) -> Result<Report> {
    let (paths, ledger) = ((Path::new(top), Path::new("/store")), Ledger::new(arc(host), None));
    Copy::prepare(&arc(host), &ledger, paths, &opening(host), Request::default())?.run(&Progress::default())
}

/// Has `stranger` act at each I/O of a copy, on a machine of its own each time; `judge` gets the copy's outcome.
fn at_each_io(
    (start, step): (&SimHost, usize),
    stranger: impl Fn(&SimHost) + Clone + Send + 'static,
    judge: impl Fn(&SimHost, Result<Report>, &str),
) {
    let whole = again(start);
    let before = whole.ios();
    copy(&whole).unwrap();
    for at in (before..whole.ios()).step_by(step) {
        let machine = again(start);
        let (act, own) = (stranger.clone(), machine.clone());
        machine.before_io(at, move || act(&own));
        let outcome = copy(&machine);
        judge(&machine, outcome, &format!("at I/O {at} of {}", whole.ios()));
    }
}

/// A disk at the target shows what it should, or is refused: it never shows something else.
fn is_right_or_refused(host: &SimHost, views: &Views, story: &str) {
    if is_there(host, "/store/top") {
        match view(host, Path::new("/store/top")) {
            Ok(shown) => assert!(shown == views[2], "{story}: shows something else"),
            Err(error) => assert_ne!(error.kind(), ErrorKind::Io, "{story}: {error}"),
        }
    }
}

#[test]
fn cid_5_a_writer_that_heeds_locks_cannot_come_between_match_and_link() {
    let (start, views) = LINKS.build();
    let tries = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&tries);
    let writer = move |host: &SimHost| {
        let how = opening(host).with_access(Access::Write);
        let opened = Chain::open(&arc(host), Path::new("/store/golden"), &how);
        let is_linked = is_there(host, "/store/top");
        let chain = match opened {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                return tries.lock().push((false, is_linked));
            }
            Ok(chain) => chain,
        };
        chain.write(GuestOffset::new(0), &[9; 700]).unwrap();
        chain.flush().unwrap();
        tries.lock().push((true, is_linked));
    };
    at_each_io((&start, 1), writer, |host, outcome, story| {
        // One that comes before the match makes it none: all is copied then.
        outcome.unwrap_or_else(|error| panic!("{story}: {error}"));
        is_right_or_refused(host, &views, story);
    });
    let count = |what| seen.lock().iter().filter(|tried| **tried == what).count();
    assert!(count((true, false)) > 3 && count((false, false)) > 20, "{:?}", seen.lock());
}

#[test]
fn cid_5_a_writer_that_heeds_no_locks_is_noticed_before_the_link_or_by_it() {
    let (start, views) = LINKS.build();
    let writer = |host: &SimHost| {
        let bytes = host.witness(Path::new("/store/golden")).unwrap().bytes;
        host.write_rudely(Path::new("/store/golden"), crate::base::HostOffset::new(bytes - 700), &[9; 600])
            .unwrap();
    };
    let failed = Mutex::new(0);
    at_each_io((&start, 1), writer, |host, outcome, story| {
        if let Err(error) = outcome {
            *failed.lock() += 1;
            assert!(matches!(error.kind(), ErrorKind::Busy | ErrorKind::Policy), "{story}: {error}");
        }
        is_right_or_refused(host, &views, story);
    });
    assert!(*failed.lock() > 10);
}

#[test]
fn cid_5_a_match_that_is_taken_away_is_noticed_before_the_link() {
    let (start, views) = LINKS.build();
    let remover = |host: &SimHost| {
        if !is_there(host, "/store/top") {
            host.rename(Path::new("/store/golden"), Path::new("/store/elsewhere")).unwrap();
        }
    };
    let failed = Mutex::new(0);
    at_each_io((&start, 1), remover, |host, outcome, story| {
        match outcome {
            Ok(_) => {}
            Err(error) => {
                *failed.lock() += 1;
                let kinds = [ErrorKind::Busy, ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "{story}: {error}");
            }
        }
        is_right_or_refused(host, &views, story);
    });
    assert!(*failed.lock() > 10);
}

#[test]
fn cid_5_a_fold_into_the_matched_parent_is_refused_with_the_copys_name() {
    let (start, views) = LINKS.build();
    // A disk at the target of which the match is the base.
    snapshot(&arc(&start), Path::new("/store/golden"), Path::new("/store/vm"), &small(), &opening(&start))
        .unwrap();
    let start = again(&start);
    let told = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&told);
    let fold = move |host: &SimHost| {
        use crate::job::consolidate::{Consolidation, Request};
        let planned =
            Consolidation::prepare(&arc(host), Path::new("/store/vm"), &opening(host), &Request::default());
        told.lock().push(planned.map(drop).map_err(|error| error.to_string()));
    };
    at_each_io((&start, 3), fold, |host, outcome, story| {
        outcome.unwrap_or_else(|error| panic!("{story}: {error}"));
        is_right_or_refused(host, &views, story);
    });
    let names = |told: &std::result::Result<(), String>| {
        told.as_ref().is_err_and(|what| what.contains("a copy of /vm/top to /store"))
    };
    assert!(all.lock().iter().filter(|told| names(told)).count() > 10, "{:?}", all.lock());
}

/// What both copies made, by the layers' names.
fn made(reports: [&Report; 2]) -> Vec<String> {
    let layers = reports.into_iter().flat_map(|report| &report.plan.layers);
    let copied = layers.filter(|placed| matches!(placed, Placed::Copy { is_done: false, .. }));
    let mut names: Vec<String> =
        copied.filter_map(Placed::target).map(|to| to.display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn cid_5_two_copies_at_once_of_one_missing_parent_end_as_one() {
    let (host, views) = PLAIN.build();
    snapshot(&arc(&host), Path::new("/vm/middle"), Path::new("/vm/other"), &small(), &opening(&host))
        .unwrap();
    put(&host, "/vm/other", &[(0, 900, 7)]);
    let other = view(&host, Path::new("/vm/other")).unwrap();
    let start = again(&host);
    for (twin, names) in [("/vm/other", &["base", "middle", "other", "top"][..]), ("/vm/top", &NAMES)] {
        let running: Arc<Mutex<Option<JoinHandle<Result<Report>>>>> = Arc::default();
        let begun = Arc::clone(&running);
        let second = move |host: &SimHost| {
            let host = host.clone();
            *begun.lock() = Some(thread::spawn(move || copy_of(&host, twin)));
        };
        at_each_io((&start, 7), second, |host, outcome, story| {
            let one = outcome.unwrap_or_else(|error| panic!("{story}: the first: {error}"));
            let two = running.lock().take().unwrap().join().unwrap();
            let two = two.unwrap_or_else(|error| panic!("{story}: the second: {error}"));
            let expected: Vec<String> = names.iter().map(|name| format!("/store/{name}")).collect();
            assert_eq!(made([&one, &two]), expected, "{story}");
            check_names(host, &views, story);
            if twin == "/vm/other" {
                assert!(view(host, Path::new("/store/other")).unwrap() == other, "{story}");
            }
        });
    }
}

/// What an earlier life has brought gets no content ID; nor do blocks that the host shares.
#[test]
fn a_parent_that_another_copy_has_brought_without_an_id_is_not_in_the_way() {
    let (host, views) = PLAIN.build();
    snapshot(&arc(&host), Path::new("/vm/middle"), Path::new("/vm/other"), &small(), &opening(&host))
        .unwrap();
    put(&host, "/vm/other", &[(0, 900, 7)]);
    let other = view(&host, Path::new("/vm/other")).unwrap();
    let start = again(&host);
    let whole = again(&start);
    let before = whole.ios();
    copy(&whole).unwrap();
    let mut unsealed = 0;
    for at in (before..whole.ios()).step_by(5) {
        let machine = again(&start);
        machine.fail(Some(Fault { at, is_lasting: false, failure: Failure::Io }));
        drop(copy(&machine));
        machine.fail(None);
        copy(&machine).unwrap();
        let chain = Chain::open(&arc(&machine), Path::new("/store/base"), &opening(&machine)).unwrap();
        unsealed += usize::from(chain.standings()[0].known.sealed().is_none());
        drop(chain);
        let report = copy_of(&machine, "/vm/other").unwrap_or_else(|error| panic!("at I/O {at}: {error}"));
        assert_eq!(made([&report, &report]), ["/store/other", "/store/other"], "at I/O {at}");
        check_names(&machine, &views, "both");
        assert!(view(&machine, Path::new("/store/other")).unwrap() == other, "at I/O {at}");
    }
    assert!(unsealed > 5, "{unsealed}");
    // One that was written since is another file.
    let machine = again(&start);
    machine.fail(Some(Fault {
        at: before + (whole.ios() - before) / 3,
        is_lasting: false,
        failure: Failure::Io,
    }));
    drop(copy(&machine));
    machine.fail(None);
    copy(&machine).unwrap();
    machine.write_rudely(Path::new("/store/base"), crate::base::HostOffset::new(0), &[9; 600]).unwrap();
    assert!(matches!(copy_of(&machine, "/vm/other"), Err(error) if error.kind() != ErrorKind::Io));
}

#[test]
fn a_parent_that_lies_in_the_target_is_not_in_its_own_way() {
    let (host, _) = PLAIN.build();
    let policy = crate::chain::Policy { allowed: vec!["/".into()], ..crate::chain::Policy::default() };
    let how = opening(&host).with_policy(policy).with_format(Some(Format::Qcow2));
    let creation = Creation { size: SIZE, parent: None, options: small() };
    let golden = host.create(Path::new("/store/golden")).unwrap();
    drop(format::create(Format::Qcow2, golden, &creation, &NoParts).unwrap());
    put(&host, "/store/golden", &[(0, 3000, 5)]);
    snapshot(&arc(&host), Path::new("/store/golden"), Path::new("/vm/clone"), &small(), &how).unwrap();
    for share in [Share::Allow, Share::ChildOnly] {
        let request = Request { share, ..Request::default() };
        let (paths, ledger) = ((Path::new("/vm/clone"), Path::new("/store")), Ledger::new(arc(&host), None));
        let copy = Copy::prepare(&arc(&host), &ledger, paths, &how, request).unwrap();
        let linked = copy.plan().layers.last();
        assert!(
            matches!(linked, Some(Placed::Link { to, id: None, .. }) if to.ends_with("golden")),
            "{share:?}"
        );
        copy.run(&Progress::default()).unwrap();
        let chain = Chain::open(&arc(&host), Path::new("/store/clone"), &opening(&host)).unwrap();
        let layers: Vec<_> = chain.layers().iter().map(|layer| layer.path.display().to_string()).collect();
        assert_eq!(layers, ["/store/clone", "/store/golden"]);
        drop(chain);
        host.remove(Path::new("/store/clone")).unwrap();
    }
}
