//! Dirty bitmaps across folds, and across power cuts of folds: what the result's say is never less than what
//! has changed, and without a cut not more.

use super::{abandon::half_given_up, live::LIVE_PACE, *};
use crate::{
    format::{Bitmap, BitmapEdit, Bits},
    job::{consolidate::LiveConsolidation, live::LiveDisk},
};

const GRANULE: u64 = 512;

/// Gives an image a bitmap in which the granules at `dirty` are set.
fn add(host: &SimHost, image: &str, name: &str, is_auto: bool, dirty: &[u64]) {
    let layer = open_layer(&arc(host), &path(image), &Opening::writing()).unwrap();
    let mut bits = Bits::new(layer.size(), GRANULE);
    for at in dirty {
        bits.mark(GuestOffset::new(*at).range(1));
    }
    let name = || name.to_owned();
    let edits = [
        BitmapEdit::Add { name: name(), granularity_bytes: Some(GRANULE) },
        BitmapEdit::Union { name: name(), bits },
        BitmapEdit::Record { name: name(), is_auto },
    ];
    let change = || edits.iter().try_for_each(|edit| layer.image.edit_bitmap(edit));
    ledger(host).tend(layer.image.as_ref(), change).unwrap();
}

/// The bitmaps of an image, with where each is dirty; `None` if it missed writes.
fn bitmaps(host: &SimHost, image: &str) -> Vec<(Bitmap, Option<Vec<u64>>)> {
    let layer = open_layer(&arc(host), &path(image), &Opening::reading()).unwrap();
    let dirty = |bits: Bits| {
        let is_set = |at: &u64| bits.bytes()[(at / 8) as usize] >> (at % 8) & 1 == 1;
        (0..bits.bytes().len() as u64 * 8).filter(is_set).map(|at| at * GRANULE).collect()
    };
    let list = layer.image.details().unwrap().bitmaps;
    list.into_iter().map(|b| (b.clone(), layer.image.bitmap(&b.name).ok().map(dirty))).collect()
}

fn dirty(host: &SimHost, image: &str, name: &str) -> Option<Vec<u64>> {
    bitmaps(host, image).into_iter().find(|(bitmap, _)| bitmap.name == name).and_then(|(_, dirty)| dirty)
}

fn granules(ranges: &[(u64, u64)]) -> Vec<u64> {
    let inside = |at: &u64| ranges.iter().any(|(start, end)| at + GRANULE > *start && at < end);
    (0..64).map(|n| n * GRANULE).filter(inside).collect()
}

/// What the two layers of the run hold, in their clusters of 1024 and 512 bytes, and what TOP alone holds.
const RUN: &[(u64, u64)] =
    &[(1024, 4096), (5 << 10, 6 << 10), (8 << 10, 10 << 10), (11 << 10, 12288), (18 << 10, 20 << 10)];
const TOP: &[(u64, u64)] = &[(2048, 2560), (11 << 10, 11964), (11776, 12288), (18 << 10, 20 << 10)];

/// The plain disk: one bitmap goes through all layers, one each is the base's, the middle's and the top's own.
fn recorded(scene: Scene) -> (SimHost, Vec<u8>) {
    let (host, expected) = scene.build();
    for (image, dirty) in [("base", 20 << 10), ("middle", 9000), ("top", 2048)] {
        if image != "base" || scene.base == Format::Qcow2 {
            add(&host, image, "all", true, &[dirty]);
            add(&host, image, &format!("of {image}"), true, &[dirty + 1024]);
            add(&host, image, &format!("past of {image}"), false, &[dirty + 2048]);
        }
    }
    host.sync_folder(Path::new("/vm")).unwrap();
    drop(host.create(Path::new("/waits as well")).unwrap());
    (crash_states(&host.trace(), 0, 0).last().unwrap().host, expected)
}

/// What the result's bitmaps are to say, by name: where they are dirty, and whether they record.
fn wanted(scene: Scene) -> Vec<(&'static str, Vec<u64>, bool)> {
    let with = |ranges: &[(u64, u64)], at: u64| [ranges, &[(at, at + 1)]].concat();
    let own = |at: u64| granules(&[(at, at + 1)]);
    let mut list = vec![
        ("of middle", granules(&with(TOP, 10024)), true),
        ("past of middle", own(11048), false),
        ("of top", own(3072), true),
        ("past of top", own(4096), false),
    ];
    let three = [(20 << 10, (20 << 10) + 1), (9000, 9001), (2048, 2049)];
    if scene.base == Format::Qcow2 {
        list.push(("all", granules(&[RUN, &three[..]].concat()), true));
        list.push(("of base", granules(&with(RUN, 21504)), true));
        list.push(("past of base", own(22528), false));
    } else {
        list.push(("all", granules(&[TOP, &three[1..]].concat()), true));
    }
    list
}

/// Without `is_exact`, more may be dirty.
fn check(scene: Scene, host: &SimHost, is_exact: bool, story: &str) {
    let found = bitmaps(host, scene.end().0);
    let all = wanted(scene);
    assert_eq!(found.len(), all.len(), "{story}: {found:?}");
    for (name, wanted, records) in all {
        let (bitmap, dirty) = found.iter().find(|(bitmap, _)| bitmap.name == name).unwrap();
        let dirty = dirty.as_ref().unwrap_or_else(|| panic!("{story}: '{name}' missed writes"));
        assert_eq!(bitmap.is_auto, records, "{story}: {name}");
        let is_right = if is_exact { *dirty == wanted } else { wanted.iter().all(|at| dirty.contains(at)) };
        assert!(is_right, "{story}: '{name}' is dirty at {dirty:?}, not {wanted:?}");
    }
}

/// Cuts the power at every point of the job: the old head has its bitmaps, or the result has the merged ones.
fn cut_everywhere(scene: Scene, samples: u64) {
    let (host, expected) = recorded(scene);
    let before = bitmaps(&host, "top");
    let machine = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let report = scene.fold(&machine).unwrap();
    scene.check_end(&machine, &expected, "without a cut");
    check(scene, &machine, true, "without a cut");
    // A target whose size changes has its own bitmaps spoilt.
    let is_exact = scene.sizes == PLAIN.sizes;
    // A new image gets those of the base, too, which is folded with the others.
    let merged = if scene.is_new { 9 } else { 6 };
    assert_eq!((report.plan.bitmaps_merged.len(), report.plan.bitmaps_lost.len()), (merged, 0));
    let mut cuts = 0;
    for crash in crash_states(&machine.trace(), 5, samples) {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        let journal = Journal::find(&arc(&crash.host), &path("top")).unwrap();
        let is_old = journal.is_some_and(|journal| {
            let top = crash.host.open(&path("top"), Access::ReadShared);
            top.is_ok_and(|top| {
                top.witness().unwrap().same_file(&journal.fold().head)
                    && !format::is_retired(top.as_ref()).unwrap()
            })
        });
        if is_old {
            assert_eq!(bitmaps(&crash.host, "top"), before, "{story}");
        }
        scene.finish(&crash.host, &story);
        scene.check_end(&crash.host, &expected, &story);
        check(scene, &crash.host, is_exact, &story);
        cuts += 1;
    }
    println!("{cuts} power cuts");
    assert!(cuts > 150, "{cuts}");
}

#[test]
fn bitmaps_of_folded_layers_are_merged_whenever_power_fails() {
    cut_everywhere(PLAIN, 1);
}

#[test]
fn bitmaps_outlive_a_target_that_keeps_its_name() {
    cut_everywhere(Scene { keeps_target_name: true, ..PLAIN }, 0);
}

#[test]
fn bitmaps_of_all_layers_come_along_into_a_new_image() {
    cut_everywhere(Scene { is_new: true, ..PLAIN }, 0);
}

#[test]
fn bitmaps_over_a_raw_base_move_to_the_empty_top() {
    cut_everywhere(Scene { base: Format::Raw, ..PLAIN }, 0);
}

/// Its bitmaps are spoilt by the growth: after a cut they call everything dirty, which is never less than what changed.
#[test]
fn bitmaps_of_a_target_that_grows_say_too_much_rather_than_too_little() {
    cut_everywhere(Scene { sizes: [23 << 10, 24 << 10, 24 << 10], ..PLAIN }, 0);
}

/// Giving up takes merged bitmaps back. If that is cut off and the job goes on instead, it merges them again.
#[test]
fn a_job_that_goes_on_after_it_was_half_given_up_merges_again() {
    let (host, expected) = recorded(PLAIN);
    PLAIN.fold(&host).unwrap();
    for cut in half_given_up(&host) {
        let story = format!("power cut after {} {:?} of giving up", cut.after, cut.landing);
        PLAIN.fold(&cut.host).unwrap_or_else(|e| panic!("{story}: {e}"));
        PLAIN.check_end(&cut.host, &expected, &story);
        check(PLAIN, &cut.host, false, &story);
    }
}

/// One of the name in TOP missed writes: nobody knows what changed, so no other of that name may stand for it.
#[test]
fn a_bitmap_that_missed_writes_takes_those_of_its_name_along() {
    let (host, _) = recorded(PLAIN);
    put(&host, "top", &[(2048, 512, 4)], &[]);
    assert!(dirty(&host, "top", "all").is_none());
    let report = PLAIN.fold(&host).unwrap();
    assert!(dirty(&host, "top", "all").is_none());
    assert!(bitmaps(&host, "top").iter().all(|(bitmap, _)| bitmap.name != "all"));
    let lost = ["top: all", "top: of top", "middle: all", "base: all"].map(|line| format!("/vm/{line}"));
    assert_eq!(report.plan.bitmaps_lost, lost);
    assert_eq!(dirty(&host, "top", "of middle"), Some(granules(&[TOP, &[(10024, 10025)]].concat())));
}

/// Someone writes the head between two lives of the job: its bitmap missed that, and no life merges it.
#[test]
fn a_head_written_between_two_lives_loses_its_bitmap_and_no_other() {
    let (host, _) = recorded(PLAIN);
    let again = || crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let whole = again();
    PLAIN.fold(&whole).unwrap();
    let mut written = 0;
    for at in (0..whole.ios()).step_by(5) {
        let machine = again();
        machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        let stopped = PLAIN.fold(&machine).is_err();
        machine.fail(None);
        let journal = Journal::find(&arc(&machine), &path("top")).unwrap();
        let is_old =
            |journal: &Journal| machine.witness(&path("top")).unwrap().same_file(&journal.fold().head);
        if !stopped || !journal.is_some_and(|journal| is_old(&journal)) {
            continue;
        }
        put(&machine, "top", &[(6144, 512, 77)], &[]);
        PLAIN.finish(&machine, &format!("failed at I/O {at}"));
        let middle = granules(&[TOP, &[(10024, 10025), (6144, 6656)]].concat());
        assert_eq!(dirty(&machine, "top", "of middle"), Some(middle), "failed at I/O {at}");
        assert!(dirty(&machine, "top", "of top").is_none(), "failed at I/O {at}");
        assert!(dirty(&machine, "top", "past of top").is_some(), "failed at I/O {at}");
        written += 1;
    }
    println!("{written} times");
    assert!(written > 10);
}

/// Folds the plain disk while a guest writes between the steps, to places that the run holds and to others.
fn under_a_guest(scene: Scene) -> (SimHost, Vec<u8>) {
    let (host, first) = recorded(scene);
    let opening = Opening::writing().with_ledger(ledger(&host)).for_live_use();
    let chain = Chain::open(&arc(&host), &path("top"), &opening).unwrap();
    chain.head().unwrap().image.keep_bitmaps(2048).unwrap();
    let disk = Arc::new(LiveDisk::new(chain));
    let mut places = (0..).map(|n: u64| GuestOffset::new(n * 7 % 48 * 512));
    let mut write = || disk.write(places.next().unwrap(), &[200; 512]).unwrap();
    let job = LiveConsolidation::prepare(&arc(&host), &disk, &opening, &scene.request()).unwrap();
    let mut folding = job.begin(LIVE_PACE).unwrap();
    while folding.step().unwrap().is_some() {
        write();
    }
    folding.checkpoint().unwrap();
    write();
    folding.record(&Progress::default()).unwrap();
    write();
    folding.end().unwrap();
    write();
    disk.flush().unwrap();
    (host, first)
}

/// Whichever image opens after a cut, its bitmaps that record are sound and name all that the guest wrote.
#[test]
fn bitmaps_of_a_disk_in_use_name_what_its_guest_wrote_whenever_power_fails() {
    for scene in [PLAIN, Scene { base: Format::Raw, ..PLAIN }, Scene { is_new: true, ..PLAIN }] {
        let (host, first) = under_a_guest(scene);
        for crash in crash_states(&host.trace(), 5, 1).step_by(3) {
            let is_there = |name| crash.host.kind(&path(name)).unwrap().is_some();
            let head = if scene.is_new && is_there("new") { "new" } else { "top" };
            let shown = view(&crash.host, head).unwrap();
            let changed = (0..).step_by(512).zip(shown.chunks(512).zip(first.chunks(512)));
            let changed: Vec<u64> =
                changed.filter(|(_, (now, then))| now != then).map(|(at, _)| at).collect();
            let all = bitmaps(&crash.host, head);
            let records: Vec<_> = all.iter().filter(|(bitmap, _)| bitmap.is_auto).collect();
            assert!(records.len() > 1, "{all:?}");
            for (bitmap, dirty) in records {
                let story = format!("{scene:?}, {bitmap:?} of {head}, cut after {}", crash.after);
                let dirty = dirty.as_ref().unwrap_or_else(|| panic!("{story}: missed writes"));
                assert!(changed.iter().all(|at| dirty.contains(at)), "{story}: {changed:?}, {dirty:?}");
            }
        }
    }
}
