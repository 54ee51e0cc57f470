//! Folds under a disk in use, on a simulated machine: guests write between any two steps, the power goes at any
//! moment, and each I/O fails once.

use super::*;
use crate::{
    base::{Guard, GuestRange, seed::Seeded},
    io::faulty::{Crash, Trace, Waits, kill_states},
    job::{
        consolidate::{LiveConsolidation, LivePace, Patience},
        live::LiveDisk,
    },
};

pub(super) const LIVE_PACE: LivePace = LivePace {
    block_bytes: 4096,
    mark_bytes: 6000,
    mark_pause: std::time::Duration::ZERO,
    share: 1.0,
    patience: Patience::Endless,
};
const SECTOR: u64 = 512;

/// Folds of each kind.
pub(super) const SCENES: [Scene; 6] = [
    PLAIN,
    Scene { base: Format::Raw, ..PLAIN },
    Scene { keeps_target_name: true, ..PLAIN },
    Scene { is_new: true, ..PLAIN },
    Scene { sizes: [16 << 10, 20 << 10, 24 << 10], ..PLAIN },
    Scene { sizes: [24 << 10, 20 << 10, 21 << 10], ..PLAIN },
];

pub(super) fn live_opening(host: &SimHost) -> Opening {
    Opening::writing().with_ledger(ledger(host)).for_live_use()
}

pub(super) fn live_disk(host: &SimHost) -> Result<Arc<LiveDisk>> {
    Ok(Arc::new(LiveDisk::new(Chain::open(&arc(host), &path("top"), &live_opening(host))?)))
}

pub(super) fn shown(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(GuestOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// What a guest did to whole sectors, with the number of the machine's events before and after each.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) range: GuestRange,
    pub(super) byte: u8,
    begun: usize,
    acknowledged: usize,
}

/// A guest that remembers what it was told.
pub(super) struct Guest {
    first: Vec<u8>,
    pub(super) told: Vec<Told>,
    /// Events before a flush began, and after it returned.
    pub(super) flushes: Vec<(usize, usize)>,
    random: Seeded,
}

impl Guest {
    pub(super) fn new(first: Vec<u8>, seed: u64) -> Self {
        Self { first, told: vec![], flushes: vec![], random: Seeded::new(seed) }
    }

    /// One request, of any kind.
    pub(super) fn act(&mut self, host: &SimHost, disk: &dyn Disk) -> Result<()> {
        let sectors = disk.size() / SECTOR;
        let begun = host.events();
        if self.random.below(5) == 0 {
            disk.flush()?;
            self.flushes.push((begun, host.events()));
            return Ok(());
        }
        let start = self.random.below(sectors);
        let most = if self.random.below(3) == 0 { sectors - start } else { (sectors - start).min(3) };
        let range = GuestOffset::new(start * SECTOR).range((1 + self.random.below(most)) * SECTOR);
        let byte = match self.random.below(4) {
            0 => 0,
            _ => 100 + u8::try_from(self.told.len() % 150).unwrap(),
        };
        // What is begun may land, whatever comes of it.
        self.told.push(Told { range, byte, begun, acknowledged: usize::MAX });
        if byte == 0 {
            let kept = if self.random.below(2) == 0 { Kept::Space } else { Kept::Nothing };
            disk.zero(range, kept)?;
        } else {
            disk.write(range.start, &vec![byte; usize::try_from(range.bytes).unwrap()])?;
        }
        self.told.last_mut().unwrap().acknowledged = host.events();
        Ok(())
    }

    /// What each sector shows once everything has landed.
    pub(super) fn expected(&self) -> Vec<u8> {
        let mut view = self.first.clone();
        for told in &self.told {
            let (from, to) = (told.range.start.bytes(), told.range.end().bytes());
            view[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].fill(told.byte);
        }
        view
    }

    /// Whether `view` may be what a machine shows that was stopped after `after` events: what was flushed, or newer.
    pub(super) fn allows(&self, view: &[u8], after: usize) -> std::result::Result<(), String> {
        let flushed = self.flushes.iter().filter(|(_, end)| *end <= after).map(|(begin, _)| *begin).max();
        let is_safe = |told: &Told| flushed.is_some_and(|until| told.acknowledged <= until);
        for (sector, bytes) in view.chunks(512).enumerate() {
            let at = GuestOffset::new(sector as u64 * SECTOR);
            let mut allowed = vec![self.first[sector * 512..sector * 512 + 512].to_vec()];
            for told in self.told.iter().filter(|told| told.range.contains(at) && told.begun <= after) {
                if is_safe(told) {
                    allowed.clear();
                }
                allowed.push(vec![told.byte; 512]);
            }
            if !allowed.iter().any(|one| one == bytes) {
                let may: Vec<u8> = allowed.iter().map(|one| one[0]).collect();
                return Err(format!("sector {sector} shows {}; it may show {may:?}", bytes[0]));
            }
        }
        Ok(())
    }
}

/// A whole fold of the scene with a guest at work; returns the machine and what the guest was told.
pub(super) fn history(scene: Scene, seed: u64) -> (SimHost, Guest) {
    let (host, first) = scene.build();
    let machine = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let disk = live_disk(&machine).unwrap();
    let mut guest = Guest::new(first, seed);
    let request = scene.request();
    let job = LiveConsolidation::prepare(&arc(&machine), &disk, &live_opening(&machine), &request).unwrap();
    guest.act(&machine, disk.as_ref()).unwrap();
    let mut folding = job.begin(LIVE_PACE).unwrap();
    loop {
        for _ in 0..guest.random.below(4) {
            guest.act(&machine, disk.as_ref()).unwrap();
        }
        if guest.random.below(4) == 0 {
            folding.checkpoint().unwrap();
        } else if folding.step().unwrap().is_none() {
            break;
        }
    }
    folding.checkpoint().unwrap();
    guest.act(&machine, disk.as_ref()).unwrap();
    folding.record(&Progress::default()).unwrap();
    for _ in 0..2 {
        guest.act(&machine, disk.as_ref()).unwrap();
    }
    let report = folding.end().unwrap();
    assert_eq!(report.report.verified, Some(Verify::Tree));
    guest.act(&machine, disk.as_ref()).unwrap();
    assert!(shown(disk.as_ref()) == guest.expected(), "seed {seed}: the disk shows something else");
    disk.flush().unwrap();
    drop(disk);
    (machine, guest)
}

/// Goes on in whichever way the number says: offline, or under a disk in use.
fn resume(scene: Scene, host: &SimHost, number: usize, story: &str) {
    if number.is_multiple_of(2) || Journal::find(&arc(host), &path("top")).unwrap().is_none() {
        return scene.finish(host, story);
    }
    let opening = live_opening(host);
    let is_over = || {
        let job = Consolidation::prepare(&arc(host), &path("top"), &opening, &Request::default()).unwrap();
        job.run(PACE, &Progress::default()).unwrap_or_else(|e| panic!("{story}: the end failed: {e}"));
    };
    let top = host.kind(&path("top")).unwrap().and_then(|_| live_disk(host).ok());
    let Some(disk) = top else { return is_over() };
    if let Ok(job) = LiveConsolidation::prepare(&arc(host), &disk, &opening, &Request::default()) {
        job.run(LIVE_PACE, &Progress::default())
            .unwrap_or_else(|e| panic!("{story}: the resume failed: {e}"));
    } else {
        drop(disk);
        is_over();
    }
}

fn opens_as(scene: Scene, host: &SimHost) -> &'static str {
    if scene.is_new {
        return if host.kind(&path("new")).unwrap().is_some() { "new" } else { "top" };
    }
    let is_there = host.kind(&path("top")).unwrap().is_some();
    let is_retired = || {
        let file = host.open(&path("top"), Access::ReadShared).unwrap();
        format::is_retired(file.as_ref()).unwrap()
    };
    if is_there && !is_retired() { "top" } else { scene.end().0 }
}

fn survive(scene: Scene, guest: &Guest, crash: &Crash, number: usize) {
    let story = format!("after {} {:?}", crash.after, crash.landing);
    let host = &crash.host;
    let before = view(host, opens_as(scene, host)).unwrap_or_else(|e| panic!("{story}: does not open: {e}"));
    guest
        .allows(&before, crash.after)
        .unwrap_or_else(|e| panic!("{story}: {e} {:?} {:?}", guest.told, guest.flushes));
    resume(scene, host, number, &story);
    scene.check_end(host, &before, &story);
}

fn cut(scene: Scene, seed: u64, (samples, every): (u64, usize)) -> usize {
    let (machine, guest) = history(scene, seed);
    let trace: Trace = machine.trace();
    let mut cuts = 0;
    let stops = crash_states(&trace, seed, samples).chain(kill_states(&trace));
    for (number, crash) in stops.enumerate().filter(|(n, _)| n % every == 0) {
        survive(scene, &guest, &crash, number / every);
        cuts += 1;
    }
    println!("seed {seed}: {} events, {cuts} cuts", trace.events());
    cuts
}

#[test]
fn con_1_a_fold_under_a_writing_guest_shows_what_it_wrote() {
    for seed in 0..6 {
        let (machine, guest) = history(PLAIN, seed);
        PLAIN.check_end(&machine, &guest.expected(), &format!("seed {seed}"));
    }
}

#[test]
fn con_6_power_cuts_and_kills_under_a_guest() {
    let cuts: usize = SCENES.into_iter().zip(0..).map(|(scene, seed)| cut(scene, seed, (2, 1))).sum();
    println!("{cuts} cuts");
    assert!(cuts > 2000);
}

#[test]
fn con_6_each_forgotten_flush_or_note_is_noticed() {
    for guard in [Guard::MirrorIntent, Guard::MirrorTargetFlush, Guard::MirrorCurrentFlush] {
        let is_missed =
            |seed| guard.without(|| std::panic::catch_unwind(|| cut(PLAIN, seed, (2, 1)))).is_err();
        assert!((0..12).any(is_missed), "nothing noticed that {guard:?} is off");
    }
}

/// A fold of the plain scene in which all is copied; the guest has been at work.
fn copied(host: &SimHost, disk: &Arc<LiveDisk>, guest: &mut Guest) -> crate::job::consolidate::Folding {
    let request = PLAIN.request();
    let job = LiveConsolidation::prepare(&arc(host), disk, &live_opening(host), &request).unwrap();
    let mut folding = job.begin(LIVE_PACE).unwrap();
    while folding.step().unwrap().is_some() {
        guest.act(host, disk.as_ref()).unwrap();
    }
    folding.checkpoint().unwrap();
    folding
}

fn scene(seed: u64) -> (SimHost, Arc<LiveDisk>, Guest) {
    let (host, first) = PLAIN.build();
    let disk = live_disk(&host).unwrap();
    (host, disk, Guest::new(first, seed))
}

fn journal_path(host: &SimHost) -> std::path::PathBuf {
    Journal::find(&arc(host), &path("top")).unwrap().unwrap().path().to_path_buf()
}

#[test]
fn con_7_a_target_and_a_journal_that_fail_together_do_not_reach_the_guest() {
    for seed in 0..2 {
        let (host, disk, mut guest) = scene(seed);
        let mut folding = copied(&host, &disk, &mut guest);
        for broken in [path("base"), journal_path(&host)] {
            host.break_file(&broken, true).unwrap();
        }
        for _ in 0..12 {
            guest.act(&host, disk.as_ref()).unwrap();
        }
        folding.retreat().unwrap();
        guest.act(&host, disk.as_ref()).unwrap();
        assert!(shown(disk.as_ref()) == guest.expected(), "seed {seed}");
        drop((disk, folding));
        let trace = host.trace();
        let stops = crash_states(&trace, seed, 2).chain(kill_states(&trace));
        for (number, crash) in stops.enumerate().step_by(5) {
            survive(PLAIN, &guest, &crash, number);
        }
    }
}

#[test]
fn a_fold_that_cannot_be_taken_back_is_taken_back_later() {
    let (host, disk, mut guest) = scene(7);
    let mut folding = copied(&host, &disk, &mut guest);
    let broken = [path("base"), journal_path(&host), path("top")];
    let set = |is_broken| broken.iter().try_for_each(|file| host.break_file(file, is_broken)).unwrap();
    set(true);
    assert!(folding.retreat().is_err() && !folding.is_over() && disk.is_folding());
    set(false);
    guest.act(&host, disk.as_ref()).unwrap();
    folding.conclude().unwrap();
    assert!(folding.is_over() && !disk.is_folding());
    guest.act(&host, disk.as_ref()).unwrap();
    let again =
        LiveConsolidation::prepare(&arc(&host), &disk, &live_opening(&host), &PLAIN.request()).unwrap();
    again.run(LIVE_PACE, &Progress::default()).unwrap();
    assert!(shown(disk.as_ref()) == guest.expected());
    drop((disk, folding));
    PLAIN.check_end(&host, &guest.expected(), "taken back and done again");
}

#[test]
fn a_fold_whose_end_fails_is_ended_later_wherever_that_was() {
    let mut failed = 0;
    for at in 0.. {
        let (host, disk, mut guest) = scene(at);
        let mut folding = copied(&host, &disk, &mut guest);
        folding.record(&Progress::default()).unwrap();
        // Not of flushes: a file that could not be flushed is lost until it is opened again.
        host.fail(Some(Fault { at: host.ios() + at, is_lasting: true, failure: Failure::NoSpace }));
        let ended = folding.end();
        host.fail(None);
        if ended.is_ok() {
            break;
        }
        failed += 1;
        guest.act(&host, disk.as_ref()).unwrap();
        folding.conclude().unwrap();
        guest.act(&host, disk.as_ref()).unwrap();
        let expected = guest.expected();
        assert!(folding.is_over() && shown(disk.as_ref()) == expected, "I/O {at}");
        disk.flush().unwrap();
        drop((disk, folding));
        PLAIN.check_end(&host, &expected, &format!("I/O {at} of the end failed"));
    }
    assert!(failed > 10, "{failed}");
}

/// The result of a fold into another format lies below an empty head: a flush of the head alone would be none of what
/// guests wrote until then.
#[test]
fn con_7_a_flush_of_the_target_that_fails_at_the_end_is_not_forgotten() {
    let scene = Scene { base: Format::Raw, ..PLAIN };
    let (mut refused, mut at) = (0, 0);
    loop {
        let (host, first) = scene.build();
        let (disk, mut guest) = (live_disk(&host).unwrap(), Guest::new(first, at));
        let job =
            LiveConsolidation::prepare(&arc(&host), &disk, &live_opening(&host), &scene.request()).unwrap();
        let mut folding = job.begin(LIVE_PACE).unwrap();
        while folding.step().unwrap().is_some() {}
        folding.checkpoint().unwrap();
        folding.record(&Progress::default()).unwrap();
        for _ in 0..4 {
            guest.act(&host, disk.as_ref()).unwrap();
        }
        host.fail(Some(Fault { at: host.ios() + at, is_lasting: false, failure: Failure::Io }));
        let before = host.ios();
        let ended = folding.end();
        host.fail(None);
        if before + at > host.ios() {
            break;
        }
        if ended.is_err() {
            drop(folding.conclude());
        }
        let begun = host.events();
        if disk.flush().is_ok() {
            guest.flushes.push((begun, host.events()));
        } else {
            refused += 1;
        }
        drop((disk, folding));
        let trace = host.trace();
        for crash in crash_states(&trace, at, 4).filter(|crash| crash.after == trace.events()) {
            let story = format!("I/O {at} of the end failed, {:?}", crash.landing);
            let shown = view(&crash.host, opens_as(scene, &crash.host))
                .unwrap_or_else(|e| panic!("{story}: does not open: {e}"));
            guest.allows(&shown, crash.after).unwrap_or_else(|e| panic!("{story}: {e}"));
        }
        at += 1;
    }
    println!("{at} I/Os, {refused} flushes refused");
    assert!(at > 10 && refused > 0, "{at} {refused}");
}

/// What was noted stands for the disk as it was left: a write that came before the second leg was on is not in it.
#[test]
fn a_guest_that_writes_before_the_fold_goes_on_has_it_start_again() {
    for (seed, is_new) in [(0, false), (1, false), (2, true), (3, true)] {
        let scene = Scene { is_new, ..PLAIN };
        let (host, mut guest) = cut_off(scene, seed);
        let disk = live_disk(&host).unwrap();
        for _ in 0..4 {
            guest.act(&host, disk.as_ref()).unwrap();
        }
        let again = LiveConsolidation::prepare(&arc(&host), &disk, &live_opening(&host), &scene.request());
        again.unwrap().run(LIVE_PACE, &Progress::default()).unwrap();
        assert!(shown(disk.as_ref()) == guest.expected(), "seed {seed}");
        drop(disk);
        scene.check_end(&host, &guest.expected(), "seed {seed}");
    }
}

/// A machine whose program was killed when all was copied, and what its guest was told.
fn cut_off(scene: Scene, seed: u64) -> (SimHost, Guest) {
    let (host, first) = scene.build();
    let (disk, mut guest) = (live_disk(&host).unwrap(), Guest::new(first, seed));
    let job = LiveConsolidation::prepare(&arc(&host), &disk, &live_opening(&host), &scene.request()).unwrap();
    let mut folding = job.begin(LIVE_PACE).unwrap();
    while folding.step().unwrap().is_some() {
        guest.act(&host, disk.as_ref()).unwrap();
    }
    folding.checkpoint().unwrap();
    disk.flush().unwrap();
    drop((folding, disk));
    (host, guest)
}

/// Guests write although the fold could not go on: its journal is not believed by the next start, either.
#[test]
fn a_fold_that_cannot_go_on_under_its_guests_starts_again_later() {
    let mut failed = 0;
    for is_new in [false, true] {
        let scene = Scene { is_new, ..PLAIN };
        let prepare = |host: &SimHost, disk: &Arc<LiveDisk>| {
            LiveConsolidation::prepare(&arc(host), disk, &live_opening(host), &scene.request()).unwrap()
        };
        for at in 0.. {
            let (host, mut guest) = cut_off(scene, at);
            let disk = live_disk(&host).unwrap();
            let job = prepare(&host, &disk);
            host.fail(Some(Fault { at: host.ios() + at, is_lasting: false, failure: Failure::Io }));
            let begun = job.begin(LIVE_PACE);
            host.fail(None);
            if begun.is_ok() && at > 60 {
                break;
            }
            let wrote = (0..4).try_for_each(|_| guest.act(&host, disk.as_ref())).and_then(|()| disk.flush());
            // A head that could not be flushed is written by nobody.
            if begun.is_ok() || wrote.is_err() {
                continue;
            }
            failed += 1;
            drop((begun, disk));
            let disk = live_disk(&host).unwrap();
            prepare(&host, &disk).run(LIVE_PACE, &Progress::default()).unwrap();
            assert!(shown(disk.as_ref()) == guest.expected(), "I/O {at}");
            drop(disk);
            scene.check_end(&host, &guest.expected(), &format!("I/O {at} failed"));
        }
    }
    assert!(failed > 2, "{failed}");
}

const IMPATIENT: LivePace =
    LivePace { patience: Patience::Always(std::time::Duration::from_millis(150)), ..LIVE_PACE };

fn begin_impatient(host: &SimHost, disk: &Arc<LiveDisk>) -> crate::job::consolidate::Folding {
    let job = LiveConsolidation::prepare(&arc(host), disk, &live_opening(host), &PLAIN.request()).unwrap();
    job.begin(IMPATIENT).unwrap()
}

/// The journal says that nothing is done before a write is acknowledged that the target lacks; what lands late finds
/// nobody who has begun to use the target anew.
#[test]
fn con_7_a_target_that_hangs_does_not_hang_the_guest() {
    for seed in 0..2 {
        let (host, disk, mut guest) = scene(seed);
        let mut folding = begin_impatient(&host, &disk);
        while folding.step().unwrap().is_some() {
            guest.act(&host, disk.as_ref()).unwrap();
        }
        folding.checkpoint().unwrap();
        host.hold(&path("base"), Waits::Changes).unwrap();
        for _ in 0..12 {
            guest.act(&host, disk.as_ref()).unwrap();
        }
        assert!(host.waiting() > 0 && folding.step().is_err(), "seed {seed}");
        assert!(shown(disk.as_ref()) == guest.expected(), "seed {seed}");
        // As long as it has not returned.
        assert!(folding.retreat().is_err() && !folding.is_over() && disk.is_folding());
        let trace = host.trace();
        host.release();
        folding.conclude().unwrap();
        guest.act(&host, disk.as_ref()).unwrap();
        let job =
            LiveConsolidation::prepare(&arc(&host), &disk, &live_opening(&host), &PLAIN.request()).unwrap();
        job.run(LIVE_PACE, &Progress::default()).unwrap();
        drop((disk, folding));
        PLAIN.check_end(&host, &guest.expected(), &format!("seed {seed}: folded after all"));
        let stops = crash_states(&trace, seed, 2).chain(kill_states(&trace));
        for (number, crash) in stops.enumerate().step_by(9) {
            survive(PLAIN, &guest, &crash, number);
        }
    }
}

#[test]
fn con_7_a_copier_that_hangs_lets_guests_go_on() {
    let (host, disk, mut guest) = scene(5);
    let mut folding = begin_impatient(&host, &disk);
    guest.act(&host, disk.as_ref()).unwrap();
    host.hold(&path("base"), Waits::Changes).unwrap();
    std::thread::scope(|scope| {
        let copier = scope.spawn(|| folding.copy(&Progress::default()));
        while host.waiting() == 0 {
            std::thread::yield_now();
        }
        // All of the disk: what is in the copier's hand, too.
        disk.write(GuestOffset::new(0), &vec![9; 24 << 10]).unwrap();
        assert!(copier.join().unwrap().is_err());
    });
    assert!(shown(disk.as_ref()).iter().all(|byte| *byte == 9));
    host.release();
    folding.conclude().unwrap();
    assert!(shown(disk.as_ref()).iter().all(|byte| *byte == 9) && !disk.is_folding());
}
