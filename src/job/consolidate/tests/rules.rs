//! What is required of a fold under a guest, by the requirements' names, where no other test has them.

use super::{
    live::{Guest, LIVE_PACE, SCENES, history, live_disk, live_opening, shown},
    *,
};
use crate::{
    base::clock::Stopwatch,
    job::{
        consolidate::{Folding, LiveConsolidation, LiveReport},
        live::LiveDisk,
    },
};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::Duration,
};

fn begin(host: &SimHost, disk: &Arc<LiveDisk>) -> Folding {
    let job = LiveConsolidation::prepare(&arc(host), disk, &live_opening(host), &PLAIN.request()).unwrap();
    job.begin(LIVE_PACE).unwrap()
}

fn end(folding: &mut Folding) -> Result<LiveReport> {
    let copied = folding.checkpoint();
    folding.finish(copied, &Progress::default())
}

#[test]
fn con_2_no_more_is_copied_than_was_listed_however_fast_the_guest_writes() {
    for seed in 0..6 {
        let (host, first) = PLAIN.build();
        let (disk, mut guest) = (live_disk(&host).unwrap(), Guest::new(first, seed));
        let mut folding = begin(&host, &disk);
        let listed = folding.plan().copy_bytes + folding.plan().zero_bytes;
        while folding.step().unwrap().is_some() {
            for _ in 0..40 {
                guest.act(&host, disk.as_ref()).unwrap();
            }
        }
        let LiveReport { report, mirrored_bytes, .. } = end(&mut folding).unwrap();
        let moved = report.copied_bytes + report.zeroed_bytes;
        assert!(moved <= listed, "seed {seed}: {moved} of {listed}");
        assert!(mirrored_bytes > listed && shown(disk.as_ref()) == guest.expected(), "seed {seed}");
    }
}

/// One I/O of a request fails, on whichever leg it is.
#[test]
fn con_3_what_was_acknowledged_is_there_and_what_failed_is_old_or_new() {
    let (mut refused, mut retreats) = (0, 0);
    for at in 0..40 {
        let (host, first) = PLAIN.build();
        let (disk, mut guest) = (live_disk(&host).unwrap(), Guest::new(first, at % 8));
        let mut folding = begin(&host, &disk);
        while folding.step().unwrap().is_some() {
            guest.act(&host, disk.as_ref()).unwrap();
        }
        host.fail(Some(Fault { at: host.ios() + at / 8, is_lasting: false, failure: Failure::Io }));
        let acted = guest.act(&host, disk.as_ref());
        host.fail(None);
        refused += u32::from(acted.is_err());
        let begun = host.events();
        if disk.flush().is_err() {
            continue;
        }
        guest.flushes.push((begun, host.events()));
        retreats += u32::from(end(&mut folding).is_err());
        guest.allows(&shown(disk.as_ref()), host.events()).unwrap_or_else(|wrong| panic!("{at}: {wrong}"));
    }
    assert!(refused > 2 && retreats > 2, "{refused} refused, {retreats} without the target");
}

#[test]
fn con_5_every_kind_of_target_is_reached_under_a_guest() {
    for (scene, seed) in SCENES.into_iter().zip(20..) {
        let (machine, guest) = history(scene, seed);
        scene.check_end(&machine, &guest.expected(), &format!("{scene:?}"));
    }
}

#[test]
fn con_8_a_disk_in_use_is_not_folded_into_what_another_image_lies_on() {
    let (host, _) = PLAIN.build();
    make(&host, "other", Format::Qcow2, 24 << 10, Some(("base", Format::Qcow2)));
    host.sync_folder(Path::new("/vm")).unwrap();
    let disk = live_disk(&host).unwrap();
    let request = Request { into: Some(path("base")), ..Request::default() };
    let refused = LiveConsolidation::prepare(&arc(&host), &disk, &live_opening(&host), &request).unwrap_err();
    assert!(refused.to_string().contains("/vm/other"), "{refused}");
    assert!(!disk.is_folding());
}

#[test]
fn con_9_guests_go_on_all_the_while_and_the_pause_of_the_swap_is_told() {
    let (host, _) = PLAIN.build();
    let disk = live_disk(&host).unwrap();
    let (is_over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let goes_on = || {
        let (watch, from) = (Stopwatch::start(), written.load(SeqCst));
        while written.load(SeqCst) < from + 20 && watch.elapsed() < Duration::from_mins(1) {
            std::thread::yield_now();
        }
        written.load(SeqCst) >= from + 20
    };
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                let number = written.load(SeqCst);
                disk.write(GuestOffset::new(number % 48 * 512), &[7; 512]).unwrap();
                written.store(number + 1, SeqCst);
            }
        });
        let before = goes_on();
        let mut folding = begin(&host, &disk);
        let begun = goes_on();
        let copied = folding.copy(&Progress::default());
        let all_copied = goes_on();
        let report = folding.finish(copied, &Progress::default());
        let swapped = goes_on();
        is_over.store(true, SeqCst);
        assert_eq!((before, begun, all_copied, swapped), (true, true, true, true), "the guest stands still");
        report.unwrap()
    });
    assert!(report.pause > Duration::ZERO && report.pause < Duration::from_mins(1), "{:?}", report.pause);
}

#[test]
fn con_11_a_fold_under_a_guest_gives_what_one_offline_gives() {
    for (scene, seed) in SCENES.into_iter().zip(40..) {
        let (live, guest) = history(scene, seed);
        let (offline, _) = scene.build();
        let chain = Chain::open(&arc(&offline), &path("top"), &Opening::writing()).unwrap();
        for told in &guest.told {
            let bytes = vec![told.byte; usize::try_from(told.range.bytes).unwrap()];
            chain.write(told.range.start, &bytes).unwrap();
        }
        chain.flush().unwrap();
        drop(chain);
        scene.fold(&offline).unwrap();
        let end = scene.end().0;
        assert!(view(&live, end).unwrap() == view(&offline, end).unwrap(), "{scene:?}");
        let names = |host: &SimHost| {
            host.list(Path::new("/vm")).unwrap().iter().map(|e| e.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&live), names(&offline), "{scene:?}");
    }
}
