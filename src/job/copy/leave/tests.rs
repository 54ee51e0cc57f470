//! Moves on a simulated machine: the power goes at every point, each I/O fails once. Every point in time is whole at the
//! source or at the target at every moment, a source that is there is readable, and the move ends when it is asked for
//! again.

use super::*;
use crate::{
    base::{GuestOffset, HostOffset},
    format::{self, Creation, NoParts},
    io::faulty::{Failure, Fault, SimHost, crash_states},
    job::copy::{
        Copy, Request,
        tests::{NAMES, PLAIN, Scene, Views, again, arc, is_there, opening, view},
    },
};

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

fn moved(host: &SimHost) -> Result<()> {
    let paths = (Path::new("/vm/top"), Path::new("/store"));
    let (ledger, opening, progress) = (ledger(host), opening(host), Progress::default());
    if let Some(rest) = Removal::find(&arc(host), &ledger, paths, &opening)? {
        return rest.run(&progress).map(drop);
    }
    let request = Request { removes_source: true, ..Request::default() };
    Copy::prepare(&arc(host), &ledger, paths, &opening, request)?.run(&progress).map(drop)
}

fn check_moment(host: &SimHost, views: &Views, story: &str) {
    for (name, expected) in NAMES.iter().zip(views) {
        let places = ["/vm", "/store"].map(|folder| Path::new(folder).join(name));
        let there: Vec<_> = places.iter().filter(|place| host.kind(place).unwrap().is_some()).collect();
        assert!(!there.is_empty(), "{story}: {name} is lost");
        for place in there {
            let shown = view(host, place).unwrap_or_else(|e| panic!("{story}: {}: {e}", place.display()));
            assert!(shown == *expected, "{story}: {} shows something else", place.display());
        }
    }
}

fn finish(host: &SimHost, views: &Views, story: &str) {
    match moved(host) {
        Ok(()) => {}
        // All is done: there is no source any more.
        Err(e) if e.kind() == ErrorKind::NotFound && !is_there(host, "/vm/top") => {}
        Err(e) => panic!("{story}: the resume failed: {e}"),
    }
    check_moment(host, views, story);
    let left: Vec<_> = host.list(Path::new("/vm")).unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(left, [Path::new("/vm/.dchain")], "{story}");
    let notes = host.list(Path::new("/vm/.dchain/notes")).unwrap();
    assert!(notes.is_empty(), "{story}: {notes:?}");
}

#[test]
fn power_cuts_of_a_move() {
    let mut points = 0;
    for scene in [PLAIN, Scene { base: Format::Qcow2, ..PLAIN }] {
        let (host, views) = scene.build();
        moved(&host).unwrap();
        finish(&host, &views, "without a crash");
        for (number, crash) in crash_states(&host.trace(), 7, 1).enumerate() {
            let story = format!("power cut after {} {:?}", crash.after, crash.landing);
            check_moment(&crash.host, &views, &story);
            if number.is_multiple_of(3) {
                finish(&crash.host, &views, &story);
            }
            points += 1;
        }
    }
    println!("{points} power cuts");
    assert!(points > 500);
}

#[test]
fn each_failing_io_of_a_move_is_reported_and_the_next_life_ends_it() {
    let (host, views) = PLAIN.build();
    let whole = again(&host);
    let before = whole.ios();
    moved(&whole).unwrap();
    let mut failed = 0;
    for at in (before..whole.ios()).step_by(3) {
        let machine = again(&host);
        machine.fail(Some(Fault { at, is_lasting: at % 2 == 0, failure: Failure::Io }));
        let story = format!("I/O {at} of {}", whole.ios());
        let outcome = moved(&machine);
        machine.fail(None);
        failed += usize::from(outcome.is_err());
        check_moment(&machine, &views, &story);
        finish(&machine, &views, &story);
    }
    assert!(failed > 15, "{failed}");
}

/// Machines on which a move failed at an I/O near its end, by the number of that: only there is the copy whole.
fn cut_off_near_the_end(host: &SimHost) -> impl Iterator<Item = (u64, SimHost)> {
    let whole = again(host);
    moved(&whole).unwrap();
    (0..whole.ios()).rev().step_by(3).take(22).filter_map(move |at| {
        let machine = again(host);
        machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        let outcome = moved(&machine);
        machine.fail(None);
        // Turns are given back last of all, and taken by the next if that fails.
        outcome.is_err().then_some((at, machine))
    })
}

/// Somebody writes the disk between the copy and the removal: what was written is not thrown away.
#[test]
fn a_source_that_was_written_since_it_was_copied_stays() {
    let (host, _) = PLAIN.build();
    let mut stayed = 0;
    for (_, machine) in cut_off_near_the_end(&host) {
        let paths = (Path::new("/vm/top"), Path::new("/store"));
        let is_whole = Removal::find(&arc(&machine), &ledger(&machine), paths, &opening(&machine));
        if is_whole.unwrap().is_none() || !is_there(&machine, "/vm/base") {
            continue;
        }
        let base = machine.open(Path::new("/vm/base"), Access::Write).unwrap();
        base.write_at(HostOffset::new(0), &[99]).unwrap();
        drop(base);
        assert_eq!(moved(&machine).unwrap_err().kind(), ErrorKind::Busy);
        assert!(is_there(&machine, "/vm/base"));
        stayed += 1;
    }
    assert!(stayed > 0);
}

/// The copy is thrown away before the sources are: then they are all there is.
#[test]
fn sources_stay_if_the_copy_is_gone() {
    let (host, views) = PLAIN.build();
    let mut stayed = 0;
    for (at, machine) in cut_off_near_the_end(&host) {
        if !NAMES.iter().all(|name| is_there(&machine, &format!("/vm/{name}")))
            || !is_there(&machine, "/store/top")
        {
            continue;
        }
        for name in NAMES {
            machine.remove(&Path::new("/store").join(name)).unwrap();
        }
        finish(&machine, &views, &format!("I/O {at}"));
        stayed += 1;
    }
    assert!(stayed > 0);
}

/// The copy of a move that was cut off is overwritten, as `qemu-img create` does it: the file is the same one.
#[test]
fn sources_stay_if_the_copy_was_overwritten() {
    let (host, views) = PLAIN.build();
    let mut stayed = 0;
    for (at, machine) in cut_off_near_the_end(&host) {
        let all = |folder: &str| NAMES.iter().all(|name| is_there(&machine, &format!("{folder}/{name}")));
        if !all("/vm") || !all("/store") {
            continue;
        }
        machine.open(Path::new("/store/middle"), Access::Write).unwrap().set_bytes(0).unwrap();
        let refused = moved(&machine).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exists, "I/O {at}: {refused}");
        for (name, expected) in NAMES.iter().zip(&views) {
            assert!(view(&machine, &Path::new("/vm").join(name)).unwrap() == *expected, "I/O {at}: {name}");
        }
        stayed += 1;
    }
    assert!(stayed > 0);
}

#[test]
fn a_layer_that_another_image_needs_stays_and_so_do_those_below_it() {
    let (host, views) = PLAIN.build();
    crate::job::snapshot::snapshot(
        &arc(&host),
        Path::new("/vm/middle"),
        Path::new("/vm/other"),
        &[],
        &opening(&host),
    )
    .unwrap();
    moved(&host).unwrap();
    assert!(!is_there(&host, "/vm/top"));
    assert!(view(&host, Path::new("/vm/other")).unwrap() == views[1]);
    assert!(view(&host, Path::new("/store/top")).unwrap() == views[2]);
    let (host, _) = PLAIN.build();
    let creation = Creation {
        size: 1024,
        parent: Some(format::ParentName::new(b"top".to_vec(), Some("qcow2".to_owned()))),
        options: vec![],
    };
    let child = host.create(Path::new("/vm/child")).unwrap();
    drop(format::create(Format::Qcow2, child, &creation, &NoParts).unwrap());
    assert_eq!(moved(&host).unwrap_err().kind(), ErrorKind::Busy);
    assert!(!is_there(&host, "/store/base"), "nothing is copied");
}

#[test]
fn a_layer_that_holds_something_else_is_noticed_though_the_head_hides_it() {
    let (host, _) = PLAIN.build();
    let paths = (Path::new("/vm/top"), Path::new("/store"));
    let copy = Copy::prepare(&arc(&host), &ledger(&host), paths, &opening(&host), Request::default());
    copy.unwrap().run(&Progress::default()).unwrap();
    let chains =
        ["/vm/top", "/store/top"].map(|top| Chain::open(&arc(&host), Path::new(top), &opening(&host)));
    let [source, target] = chains.map(Result::unwrap);
    verify_layers(&source, &target, 3, &Progress::default()).unwrap();
    drop(target);
    // The head's own bytes lie at 8000.
    let base = host.open(Path::new("/store/base"), Access::Write).unwrap();
    base.write_at(HostOffset::new(8500), &[77]).unwrap();
    drop(base);
    let how = Opening::reading();
    let target = Chain::open(&arc(&host), Path::new("/store/top"), &how).unwrap();
    assert_eq!(
        first_difference(&source.view(0), &target.view(0), &Progress::default()).unwrap(),
        None::<GuestOffset>
    );
    let found = verify_layers(&source, &target, 3, &Progress::default()).unwrap_err();
    assert_eq!(found.kind(), ErrorKind::Corrupt, "{found}");
}
