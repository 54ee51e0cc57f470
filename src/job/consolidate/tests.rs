//! Whole consolidations on a simulated machine: the power goes at every point, again during the resume; each I/O
//! fails once. At every moment TOP's name opens what it showed, under the rules of records and claims.

use super::*;
use crate::{
    base::{Budget, ErrorKind, GuestOffset, Result},
    chain::{Chain, Opening, open_layer},
    disk::Disk,
    format::{self, Creation, Format, NoParts, ParentName},
    io::{
        Access, File, Host, Kept,
        faulty::{Failure, Fault, SimHost, crash_states, kill_states},
    },
    job::{Progress, cuts, snapshot::Revert},
    store::{Claim, Journal, Ledger},
};
use std::{path::Path, sync::Arc};

mod abandon;
mod bitmaps;
mod live;
mod rules;

const PACE: Pace = Pace { move_bytes: 4096, mark_bytes: 6000, adopted_pieces: 2 };

/// A disk of three layers in `/vm`.
#[derive(Clone, Copy, Debug)]
struct Scene {
    base: Format,
    /// Sizes of base, middle and top, in bytes.
    sizes: [u64; 3],
    keeps_target_name: bool,
    is_new: bool,
}

const PLAIN: Scene =
    Scene { base: Format::Qcow2, sizes: [24 << 10; 3], keeps_target_name: false, is_new: false };

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

impl Scene {
    /// Builds the disk on a machine whose trace starts afterwards, and returns what it shows.
    fn build(self) -> (SimHost, Vec<u8>) {
        let host = SimHost::new();
        host.make_folder(Path::new("/vm")).unwrap();
        host.sync_folder(Path::new("/")).unwrap();
        make(&host, "base", self.base, self.sizes[0], None);
        put(&host, "base", &[(0, self.sizes[0], 1)], &[]);
        make(&host, "middle", Format::Qcow2, self.sizes[1], Some(("base", self.base)));
        put(&host, "middle", &[(1024, 3000, 2), (9000, 700, 3)], &[(5 << 10, 1024)]);
        make(&host, "top", Format::Qcow2, self.sizes[2], Some(("middle", Format::Qcow2)));
        put(&host, "top", &[(2048, 512, 4), (12000, 100, 5), (18 << 10, 2048, 6)], &[(11 << 10, 700)]);
        host.sync_folder(Path::new("/vm")).unwrap();
        // One change that waits: the last state of the trace is then the machine with everything on its disk.
        drop(host.create(Path::new("/waits")).unwrap());
        let host = crash_states(&host.trace(), 0, 0).last().unwrap().host;
        let view = view(&host, "top").unwrap();
        (host, view)
    }

    fn request(self) -> Request {
        let new = self.is_new.then(|| NewImage {
            path: "/vm/new".into(),
            format: None,
            options: vec![("cluster_size".into(), "1024".into())],
        });
        Request { new, keeps_target_name: self.keeps_target_name, ..Request::default() }
    }

    /// The name that opens the result, and all names that are left.
    fn end(self) -> (&'static str, &'static [&'static str]) {
        match (self.is_new, self.keeps_target_name, self.base) {
            (true, ..) => ("new", &["base", "middle", "new", "top"]),
            (_, true, _) => ("base", &["base"]),
            (_, _, Format::Raw) => ("top", &["base", "top"]),
            _ => ("top", &["top"]),
        }
    }

    fn fold(self, host: &SimHost) -> Result<Report> {
        let opening = Opening::reading().with_ledger(ledger(host));
        let job = Consolidation::prepare(&arc(host), Path::new("/vm/top"), &opening, &self.request())?;
        job.run(PACE, &Progress::default())
    }

    /// The job's names that open a disk now must show it; one of them must be there.
    fn check_view(self, host: &SimHost, expected: &[u8], story: &str) {
        check_epoch(host, story);
        let end = self.end().0;
        let is_there = |name| host.kind(&path(name)).unwrap().is_some();
        let is_retired = |name| {
            let file = host.open(&path(name), Access::ReadShared).unwrap();
            format::is_retired(file.as_ref()).unwrap()
        };
        let name = if is_there("top") && !is_retired("top") { "top" } else { end };
        let shown = view(host, name).unwrap_or_else(|e| panic!("{story}: {name} does not open: {e}"));
        assert!(shown == expected, "{story}: {name} shows something else");
    }

    /// After the job: the result, and nothing else, is there.
    fn check_end(self, host: &SimHost, expected: &[u8], story: &str) {
        let (result, left) = self.end();
        let shown = view(host, result).unwrap_or_else(|e| panic!("{story}: {result} does not open: {e}"));
        assert!(shown == expected, "{story}: the result shows something else");
        assert!(Journal::find(&arc(host), &path("top")).unwrap().is_none(), "{story}: a journal is left");
        let names: Vec<String> = host
            .list(Path::new("/vm"))
            .unwrap()
            .iter()
            .map(|entry| entry.path.file_name().unwrap().to_str().unwrap().to_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert_eq!(names, left, "{story}");
        for name in left.iter().filter(|name| **name != "base" || self.base == Format::Qcow2) {
            let file = host.open(&path(name), Access::Read).unwrap();
            let checked = format::check(Format::Qcow2, file, format::Repair::Nothing, &NoParts).unwrap();
            assert_eq!(checked.corruptions, 0, "{story}: {name}: {:?}", checked.findings);
        }
    }

    /// Goes on after a crash until the job is done. What has ended, or never begun, is started anew.
    fn finish(self, host: &SimHost, story: &str) {
        let is_over = host.kind(&path("top")).unwrap().is_none()
            || view_depth(host) == 1
            || (self.base == Format::Raw && view_depth(host) == 2);
        let stands = Journal::find(&arc(host), &path("top")).unwrap().is_some();
        let new_is_there = self.is_new && host.kind(&path("new")).unwrap().is_some();
        if stands || !(is_over || new_is_there) {
            self.fold(host).unwrap_or_else(|e| panic!("{story}: the resume failed: {e}"));
        }
    }
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new("/vm").join(name)
}

/// Makes a layer that knows its parent by the parent's epoch.
fn make(host: &SimHost, name: &str, format: Format, size: u64, parent: Option<(&str, Format)>) {
    let link = parent
        .map(|(name, format)| ParentName::new(name.as_bytes().to_vec(), Some(format.name().to_owned())));
    let cluster = if name == "top" { "512" } else { "1024" };
    let options =
        if format == Format::Qcow2 { vec![("cluster_size".into(), cluster.into())] } else { vec![] };
    let creation = Creation { size, parent: link.clone(), options };
    let image = format::create(format, host.create(&path(name)).unwrap(), &creation, &NoParts).unwrap();
    if let Some(((parent, _), link)) = parent.zip(link) {
        let opening = Opening::writing();
        let parent = open_layer(&arc(host), &path(parent), &opening).unwrap();
        let known = ledger(host).freeze(parent.image.as_ref()).unwrap();
        let claim = Claim {
            parent_epoch: known.layer.frozen.unwrap().epoch,
            parent_id: None,
            name: link.name,
            format: link.format,
        };
        ledger(host).claim(image.as_ref(), Some(claim)).unwrap();
    }
    image.flush().unwrap();
}

fn put(host: &SimHost, name: &str, writes: &[(u64, u64, u8)], zeros: &[(u64, u64)]) {
    let chain = Chain::open(&arc(host), &path(name), &Opening::writing()).unwrap();
    for (at, bytes, byte) in writes {
        let whole = usize::try_from((*bytes).min(chain.size() - at)).unwrap();
        chain.write(GuestOffset::new(*at), &vec![*byte; whole]).unwrap();
    }
    for (at, bytes) in zeros {
        chain.zero(GuestOffset::new(*at).range(*bytes), Kept::Nothing).unwrap();
    }
    chain.flush().unwrap();
}

/// What a name shows to a reader who holds children to what they claim of their parents.
fn view(host: &SimHost, name: &str) -> Result<Vec<u8>> {
    let chain = Chain::open(&arc(host), &path(name), &Opening::reading().with_ledger(ledger(host)))?;
    let mut bytes = vec![0xee; usize::try_from(chain.size()).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

fn view_depth(host: &SimHost) -> usize {
    Chain::open(&arc(host), &path("top"), &Opening::reading()).map_or(0, |chain| chain.layers().len())
}

/// No parent goes by its old epoch with other bytes.
fn check_epoch(host: &SimHost, story: &str) {
    let Ok(chain) = Chain::open(&arc(host), &path("top"), &Opening::reading()) else { return };
    if let [_, middle, base] = chain.layers() {
        let claim = ledger(host).look(middle.image.as_ref()).unwrap().layer.claim.unwrap();
        let record = ledger(host).look(base.image.as_ref()).unwrap().layer.frozen.unwrap();
        let mut below = vec![0; usize::try_from(base.size()).unwrap()];
        chain.view(2).read(GuestOffset::new(0), &mut below).unwrap();
        let is_as_claimed = below.iter().all(|byte| *byte == 1);
        assert!(is_as_claimed || record.epoch != claim.parent_epoch, "{story}: the old epoch, other bytes");
    }
}

/// Cuts the power at every point of a whole job, resumes, and at some points cuts the power of the resume, too.
fn crash_everywhere(scene: Scene, samples: u64, second_every: usize) -> usize {
    let (host, expected) = scene.build();
    let machine = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let report = scene.fold(&machine).unwrap();
    assert_eq!(report.verified, Some(Verify::Tree));
    scene.check_end(&machine, &expected, "without a crash");
    let check = |host: &SimHost, story: &str| scene.check_view(host, &expected, story);
    let end = |host: &SimHost, story: &str| {
        scene.finish(host, story);
        scene.check_end(host, &expected, story);
    };
    let cuts = cuts::everywhere(&machine, (samples, second_every), check, end);
    println!("{cuts} power cuts");
    cuts
}

/// What the middle has in one run, the guest has in two pieces: the power cuts below fall on that, too.
#[test]
fn a_run_that_the_guest_has_in_pieces_is_adopted() {
    let bytes = |host: &SimHost, name| host.open(&path(name), Access::Read).unwrap().bytes().unwrap();
    for (scene, result) in [(PLAIN, "top"), (Scene { keeps_target_name: true, ..PLAIN }, "base")] {
        let (host, expected) = scene.build();
        let before = bytes(&host, "base");
        scene.fold(&host).unwrap();
        assert!(bytes(&host, result) >= before + 3 * 1024);
        scene.check_end(&host, &expected, "adopted");
    }
}

#[test]
fn con_6_power_cuts_of_a_fold_into_a_qcow2_base() {
    assert!(crash_everywhere(PLAIN, 2, 5) > 400);
}

#[test]
fn con_6_power_cuts_of_a_fold_into_a_raw_base() {
    assert!(crash_everywhere(Scene { base: Format::Raw, ..PLAIN }, 1, 10) > 200);
}

#[test]
fn con_6_power_cuts_of_a_fold_that_keeps_the_targets_name() {
    assert!(crash_everywhere(Scene { keeps_target_name: true, ..PLAIN }, 1, 20) > 200);
}

/// TOP stays as it is and bears no sign of the job: what the draft has is compared then, not brought again.
#[test]
fn con_6_a_fold_into_a_new_image_goes_on_after_a_restart_of_the_host() {
    let scene = Scene { is_new: true, ..PLAIN };
    let (host, _) = scene.build();
    let machine = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let whole = scene.fold(&machine).unwrap().copied_bytes;
    let mut resumed = 0;
    for crash in crash_states(&machine.trace(), 3, 0) {
        let Some(journal) = Journal::find(&arc(&crash.host), &path("top")).unwrap() else { continue };
        let (position, draft) = (journal.position(), journal.place(journal.fold().draft.as_ref().unwrap()));
        drop(journal);
        // Its name may be lost with the power: then it is made again.
        if position.mark.bytes() > 0 && crash.host.kind(&draft).unwrap().is_some() {
            let copied = scene.fold(&crash.host).unwrap().copied_bytes;
            assert!(copied < whole, "{:?}: {copied} of {whole} bytes copied again", position.mark);
            resumed += 1;
        }
    }
    assert!(resumed > 20, "{resumed}");
}

#[test]
fn con_6_power_cuts_of_a_fold_into_a_new_image() {
    assert!(crash_everywhere(Scene { is_new: true, ..PLAIN }, 1, 20) > 200);
}

#[test]
fn con_6_power_cuts_where_the_target_grows_or_is_cut() {
    for sizes in [[16 << 10, 20 << 10, 24 << 10], [24 << 10, 20 << 10, 21 << 10]] {
        assert!(crash_everywhere(Scene { sizes, ..PLAIN }, 0, 30) > 100);
    }
}

#[test]
fn con_7_each_failing_io_leaves_a_disk_that_the_next_life_folds() {
    for failure in [Failure::Io, Failure::NoSpace, Failure::Short] {
        let (host, expected) = PLAIN.build();
        let again = || crash_states(&host.trace(), 0, 0).last().unwrap().host;
        let whole = again();
        PLAIN.fold(&whole).unwrap();
        let (ios, mut failed) = (whole.ios(), 0);
        for at in 0..ios {
            let machine = again();
            machine.fail(Some(Fault { at, is_lasting: false, failure }));
            let story = format!("{failure:?} at I/O {at} of {ios}");
            let outcome = PLAIN.fold(&machine);
            machine.fail(None);
            match outcome {
                Ok(_) => {}
                Err(error) => {
                    failed += 1;
                    assert_ne!(error.kind(), ErrorKind::Corrupt, "{story}: {error}");
                    PLAIN.check_view(&machine, &expected, &story);
                    PLAIN.finish(&machine, &story);
                }
            }
            PLAIN.check_end(&machine, &expected, &story);
        }
        println!("{failed} of {ios} failures stopped the job");
        assert!(failed > 20);
    }
}

/// What a program does that has forgotten a barrier: one of them a run, and each crash of it.
#[test]
fn con_6_forgotten_barriers_are_noticed() {
    let (host, expected) = PLAIN.build();
    let again = || crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let whole = again();
    whole.begin_operation(None);
    PLAIN.fold(&whole).unwrap();
    let goes_wrong = |dropped| {
        let machine = again();
        machine.begin_operation(Some(dropped));
        PLAIN.fold(&machine).unwrap();
        crash_states(&machine.trace(), 7, 1).enumerate().any(|(number, crash)| {
            let whole_life = || {
                PLAIN.check_view(&crash.host, &expected, "");
                if number.is_multiple_of(2) {
                    PLAIN.finish(&crash.host, "");
                    PLAIN.check_end(&crash.host, &expected, "");
                }
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(whole_life)).is_err()
        })
    };
    // What goes wrong here is wanted, and not worth a line each.
    std::panic::set_hook(Box::new(|_| {}));
    let noticed: Vec<u64> = (0..whole.barriers()).filter(|dropped| goes_wrong(*dropped)).collect();
    println!("{noticed:?} of {} barriers are missed", whole.barriers());
    // The journal, its name, the witness's withdrawal, the epoch, the tables, the last flush, the note that the
    // record comes next, the record, the removals. The others guard what an undone or repeated step mends.
    assert!(noticed.len() >= 6, "{noticed:?}");
}

/// A job fails, somebody writes the disk, the job goes on: what was written is in the result.
#[test]
fn con_6_a_head_written_meanwhile_is_copied_again() {
    let (host, before) = PLAIN.build();
    let again = || crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let whole = again();
    PLAIN.fold(&whole).unwrap();
    let mut written = 0;
    for at in (0..whole.ios()).step_by(3) {
        let machine = again();
        machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        let stopped = PLAIN.fold(&machine).is_err();
        machine.fail(None);
        let journal = Journal::find(&arc(&machine), &path("top")).unwrap();
        let is_old_head =
            !machine.witness(&path("top")).unwrap().same_file(&whole.witness(&path("top")).unwrap());
        if !stopped || journal.is_none() || !is_old_head {
            continue;
        }
        put(&machine, "top", &[(1024, 512, 77)], &[]);
        let mut expected = before.clone();
        expected[1024..1536].fill(77);
        let story = format!("failed at I/O {at}");
        PLAIN.finish(&machine, &story);
        PLAIN.check_end(&machine, &expected, &story);
        written += 1;
    }
    println!("{written} times");
    assert!(written > 10);
}

/// A program is killed, somebody takes the new image in the making for a leftover, the job goes on and is killed again.
#[test]
fn con_6_a_new_image_that_is_lost_in_the_making_is_made_again() {
    let scene = Scene { is_new: true, ..PLAIN };
    let (host, before) = scene.build();
    let whole = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    scene.fold(&whole).unwrap();
    let mut lost = 0;
    for killed in kill_states(&whole.trace()).step_by(3) {
        let Some(journal) = Journal::find(&arc(&killed.host), &path("top")).unwrap() else { continue };
        let draft = journal.fold().draft.as_ref().map(|draft| journal.place(draft)).unwrap();
        if journal.position().mark == GuestOffset::new(0) || killed.host.kind(&path("new")).unwrap().is_some()
        {
            continue;
        }
        drop(journal);
        killed.host.remove(&draft).unwrap();
        let resumed = killed.host.twin();
        scene.finish(&resumed, "without the image in the making");
        for again in kill_states(&resumed.trace()).step_by(7) {
            let story = format!("killed after {}, lost, killed after {}", killed.after, again.after);
            scene.finish(&again.host, &story);
            scene.check_end(&again.host, &before, &story);
            lost += 1;
        }
    }
    println!("{lost} times");
    assert!(lost > 40);
}

/// Opens the data file of an image in `/vm`.
struct DataFile<'a>(&'a SimHost);

impl format::Parts for DataFile<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        self.0.open(&path(std::str::from_utf8(name).unwrap()), Access::Write)
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

/// The same where the head keeps its bytes in a data file: a write in place leaves the file with the header as it was.
#[test]
fn con_6_a_data_file_written_meanwhile_is_copied_again() {
    let (host, _) = PLAIN.build();
    let link = ParentName::new(b"top".to_vec(), Some("qcow2".to_owned()));
    let options = vec![("data_file".to_owned(), "head.data".to_owned())];
    let creation = Creation { size: 24 << 10, parent: Some(link), options };
    drop(host.create(&path("head.data")).unwrap());
    let file = host.create(&path("head")).unwrap();
    format::create(Format::Qcow2, file, &creation, &DataFile(&host)).unwrap().flush().unwrap();
    put(&host, "head", &[(0, 24 << 10, 8)], &[]);
    host.sync_folder(Path::new("/vm")).unwrap();
    drop(host.create(Path::new("/waits as well")).unwrap());
    let again = || crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let fold = |host: &SimHost| {
        let opening = Opening::reading().with_ledger(ledger(host));
        Consolidation::prepare(&arc(host), &path("head"), &opening, &Request::default())?
            .run(PACE, &Progress::default())
    };
    let whole = again();
    let old_head = whole.witness(&path("head")).unwrap();
    fold(&whole).unwrap();
    let mut written = 0;
    for at in (0..whole.ios()).step_by(3) {
        let machine = again();
        machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        drop(fold(&machine));
        machine.fail(None);
        let journal = Journal::find(&arc(&machine), &path("head")).unwrap();
        if journal.is_none() || !machine.witness(&path("head")).unwrap().same_file(&old_head) {
            continue;
        }
        put(&machine, "head", &[(1024, 512, 77)], &[]);
        fold(&machine).unwrap_or_else(|e| panic!("failed at I/O {at}: {e}"));
        let mut expected = vec![8; 24 << 10];
        expected[1024..1536].fill(77);
        assert!(view(&machine, "head").unwrap() == expected, "failed at I/O {at}: a write is lost");
        written += 1;
    }
    println!("{written} times");
    assert!(written > 10, "{written}");
}

/// The same where every byte of the disk is hashed before and after: it is what was written that comes before.
#[test]
fn con_6_a_head_written_meanwhile_is_hashed_again() {
    let (host, mut expected) = PLAIN.build();
    let opening = Opening::reading().with_ledger(ledger(&host));
    let request = Request { verify: Verify::Bytes, ..Request::default() };
    let life = || {
        let job = Consolidation::prepare(&arc(&host), &path("top"), &opening, &request).unwrap();
        job.run(PACE, &Progress::default())
    };
    for done in 0.. {
        host.fail(Some(Fault { at: host.ios() + done, is_lasting: true, failure: Failure::Io }));
        let stopped = Consolidation::prepare(&arc(&host), &path("top"), &opening, &request)
            .and_then(|job| job.run(PACE, &Progress::default()));
        host.fail(None);
        stopped.unwrap_err();
        if Journal::find(&arc(&host), &path("top")).unwrap().is_some() {
            break;
        }
    }
    put(&host, "top", &[(1024, 512, 77)], &[]);
    expected[1024..1536].fill(77);
    assert_eq!(life().unwrap().verified, Some(Verify::Bytes));
    PLAIN.check_end(&host, &expected, "gone on");
}

/// TOP may be a layer that others lie on: its name goes on showing what it showed, and they go on trusting it.
#[test]
fn con_8_a_layer_with_children_is_folded_and_they_stay_its_children() {
    for (base, depth) in [(Format::Qcow2, 2), (Format::Raw, 3)] {
        let (host, expected) = Scene { base, ..PLAIN }.build();
        let opening = Opening::reading().with_ledger(ledger(&host));
        let job =
            Consolidation::prepare(&arc(&host), &path("middle"), &opening, &Request::default()).unwrap();
        job.run(PACE, &Progress::default()).unwrap();
        assert!(view(&host, "top").unwrap() == expected);
        assert_eq!(view_depth(&host), depth);
        assert_eq!(host.kind(&path("base")).unwrap().is_some(), base == Format::Raw);
    }
}

/// The layers below are half changed while a job stands: nothing starts from them anew.
#[test]
fn a_disk_whose_fold_was_cut_off_is_not_reverted() {
    let (host, _) = PLAIN.build();
    for done in 0.. {
        let at = host.ios() + done;
        host.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        PLAIN.fold(&host).unwrap_err();
        host.fail(None);
        if Journal::find(&arc(&host), &path("top")).unwrap().is_some() {
            break;
        }
    }
    let opening = Opening::reading().with_ledger(ledger(&host));
    let refused = Revert::prepare(&arc(&host), &path("top"), &path("base"), &opening).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    PLAIN.fold(&host).unwrap();
}

/// A stop is asked for before the first step: the disk opens, and the next life does it all.
#[test]
fn con_10_a_job_stopped_at_once_goes_on() {
    let (host, expected) = PLAIN.build();
    let stopped = Progress::default();
    stopped.cancel();
    let opening = Opening::reading().with_ledger(ledger(&host));
    let job = Consolidation::prepare(&arc(&host), &path("top"), &opening, &Request::default()).unwrap();
    assert_eq!(job.run(PACE, &stopped).unwrap_err().kind(), ErrorKind::Interrupted);
    PLAIN.check_view(&host, &expected, "stopped");
    PLAIN.fold(&host).unwrap();
    PLAIN.check_end(&host, &expected, "went on");
}
