//! Jobs that are given up wherever they were cut off, disks that get another name meanwhile, and files that take
//! a folded layer's name.

use super::*;
use crate::{
    base::HostOffset,
    io::{
        Entry, EntryKind, Status, Witness,
        faulty::{Crash, kill_states},
    },
    job::consolidate::ending::Ending,
    store::Removed,
};
use parking_lot::Mutex;
use std::path::PathBuf;

fn abandon(host: &SimHost, image: &str) -> Result<Abandoned> {
    let opening = Opening::reading().with_ledger(ledger(host));
    Abandonment::prepare(&arc(host), &path(image), &opening)?.run()
}

fn journal(host: &SimHost, top: &str) -> Option<Journal> {
    Journal::find(&arc(host), &path(top)).unwrap()
}

/// A machine that has done a whole job, as a trace of all states between.
fn folded(scene: Scene) -> (SimHost, Vec<u8>) {
    let (host, expected) = scene.build();
    let machine = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    scene.fold(&machine).unwrap();
    (machine, expected)
}

/// Gives up each job whose power was cut; again after cuts of that; and folds anew.
fn abandon_everywhere(scene: Scene, every: usize) {
    let (machine, expected) = folded(scene);
    let (mut given_up, mut refused, mut cuts) = (0, 0, 0);
    for (number, crash) in crash_states(&machine.trace(), 3, 1).enumerate() {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        let Some(standing) = journal(&crash.host, "top") else { continue };
        let begun = Ending::has_begun(&crash.host, &standing).unwrap();
        let outcome = abandon(&crash.host, "top");
        if begun {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{story}: {error}");
            refused += 1;
            scene.finish(&crash.host, &story);
            scene.check_end(&crash.host, &expected, &story);
            continue;
        }
        let abandoned = outcome.unwrap_or_else(|e| panic!("{story}: not given up: {e}"));
        check_given_up(&crash.host, (&abandoned, scene), &expected, &story);
        given_up += 1;
        if number.is_multiple_of(every) {
            for second in crash_states(&crash.host.trace(), 5, 1) {
                let story = format!("{story}, then after {} {:?} of giving up", second.after, second.landing);
                assert!(view(&second.host, "top").unwrap() == expected, "{story}");
                if journal(&second.host, "top").is_some() {
                    abandon(&second.host, "top").unwrap_or_else(|e| panic!("{story}: {e}"));
                }
                check_given_up(&second.host, (&abandoned, scene), &expected, &story);
                cuts += 1;
            }
        }
        scene.fold(&crash.host).unwrap_or_else(|e| panic!("{story}: not folded anew: {e}"));
        scene.check_end(&crash.host, &expected, &story);
    }
    println!("{given_up} given up, {refused} refused, {cuts} cuts of giving up");
    assert!(given_up > 50 && refused > 2 && cuts > 10, "{given_up} {refused} {cuts}");
}

fn check_given_up(host: &SimHost, (abandoned, scene): (&Abandoned, Scene), expected: &[u8], story: &str) {
    assert!(view(host, "top").unwrap() == expected, "{story}: top shows something else");
    assert!(journal(host, "top").is_none(), "{story}: the journal is left");
    let names = host.list(Path::new("/vm")).unwrap();
    let is_draft = |name: &str| name.contains("draft");
    assert!(!names.iter().any(|e| is_draft(&e.path.display().to_string())), "{story}: a draft is left");
    let chain = Chain::open(&arc(host), &path("top"), &Opening::reading().with_ledger(ledger(host))).unwrap();
    assert_eq!(chain.layers().len(), 3, "{story}");
    // No layer goes by an ID of a time that is gone.
    for (depth, layer) in chain.layers().iter().enumerate().skip(1) {
        let sealed = chain.standings()[depth].known.layer.frozen.and_then(|record| record.sealed);
        assert!(abandoned.lost.is_empty() || sealed.is_none(), "{story}: {:?} has its seal", layer.path);
    }
    assert!(scene.is_new || !abandoned.lost.is_empty() || is_untouched(host, scene), "{story}");
}

/// The base is what it was: all ones.
fn is_untouched(host: &SimHost, scene: Scene) -> bool {
    let mut shown = vec![0; usize::try_from(scene.sizes[0]).unwrap()];
    let base = Chain::open(&arc(host), &path("base"), &Opening::reading()).unwrap();
    base.read(GuestOffset::new(0), &mut shown).unwrap();
    shown.iter().all(|byte| *byte == 1)
}

#[test]
fn con_10_a_job_is_given_up_wherever_it_was_cut_off_until_its_record() {
    abandon_everywhere(PLAIN, 40);
}

#[test]
fn con_10_a_job_over_a_raw_base_is_given_up() {
    abandon_everywhere(Scene { base: Format::Raw, ..PLAIN }, 60);
}

#[test]
fn con_10_a_job_that_makes_a_new_image_is_given_up_and_nothing_is_lost() {
    abandon_everywhere(Scene { is_new: true, ..PLAIN }, 40);
}

#[test]
fn con_10_a_job_whose_target_keeps_its_name_is_given_up() {
    abandon_everywhere(Scene { keeps_target_name: true, sizes: [20 << 10, 24 << 10, 24 << 10], ..PLAIN }, 60);
}

/// What the killed job had not made durable is so before the run relies on it.
#[test]
fn con_10_a_killed_job_is_given_up_and_the_disk_opens_after_a_power_cut() {
    let (machine, expected) = folded(PLAIN);
    let mut cuts = 0;
    for kill in kill_states(&machine.trace()).take(60) {
        let left = kill.host.events();
        let is_landed = |journal: Journal| Ending::has_begun(&kill.host, &journal).unwrap();
        if journal(&kill.host, "top").is_none_or(is_landed) {
            continue;
        }
        abandon(&kill.host, "top").unwrap();
        for cut in crash_states(&kill.host.trace(), 5, 0).filter(|cut| cut.after >= left).step_by(3) {
            let story =
                format!("killed after {}, power cut after {} {:?}", kill.after, cut.after, cut.landing);
            let shown = view(&cut.host, "top").unwrap_or_else(|error| panic!("{story}: {error}"));
            assert!(shown == expected, "{story}");
            cuts += 1;
        }
    }
    assert!(cuts > 100, "{cuts}");
}

/// A machine whose power failed right before the record of the job that `folded` has done.
fn right_before_the_record(folded: &SimHost) -> SimHost {
    let is_ready = |crash: &Crash| {
        let standing = journal(&crash.host, "top").filter(|journal| journal.position().is_ready);
        standing.is_some_and(|journal| !Ending::has_begun(&crash.host, &journal).unwrap())
    };
    crash_states(&folded.trace(), 5, 0).find(is_ready).unwrap().host
}

/// What power cuts leave of giving up a job right before its record, if its journal stands; `folded` has done one.
pub(super) fn half_given_up(folded: &SimHost) -> Vec<Crash> {
    let ready = right_before_the_record(folded);
    abandon(&ready, "top").unwrap();
    let cuts: Vec<_> = crash_states(&ready.trace(), 7, 1).collect();
    let standing: Vec<_> = cuts.into_iter().filter(|cut| journal(&cut.host, "top").is_some()).collect();
    assert!(standing.len() > 3, "{}", standing.len());
    standing
}

/// Whoever gives a job up right before its record, and is cut off, gives it up again or goes on with it.
#[test]
fn con_10_a_job_that_was_half_given_up_is_given_up_or_goes_on() {
    for scene in [
        PLAIN,
        Scene { base: Format::Raw, ..PLAIN },
        Scene { is_new: true, ..PLAIN },
        Scene { keeps_target_name: true, ..PLAIN },
    ] {
        let (machine, expected) = folded(scene);
        for (number, cut) in half_given_up(&machine).into_iter().enumerate() {
            let story = format!("{scene:?}: power cut after {} {:?} of giving up", cut.after, cut.landing);
            if number.is_multiple_of(2) {
                let given_up = abandon(&cut.host, "top").unwrap_or_else(|e| panic!("{story}: {e}"));
                check_given_up(&cut.host, (&given_up, scene), &expected, &story);
            }
            scene.fold(&cut.host).unwrap_or_else(|e| panic!("{story}: {e}"));
            scene.check_end(&cut.host, &expected, &story);
        }
    }
}

/// Sealed layers between TOP and a changed target: their IDs must not outlive what they stood for.
#[test]
fn con_10_what_a_given_up_job_left_below_the_head_has_no_seal() {
    let (host, expected) = PLAIN.build();
    let opening = Opening::reading().with_ledger(ledger(&host));
    let layers = crate::job::seal::open_layers(&arc(&host), &path("middle"), &opening).unwrap();
    crate::job::seal::seal(&ledger(&host), &layers, &Progress::default()).unwrap();
    drop(layers);
    let seal = |host: &SimHost| {
        let chain = Chain::open(&arc(host), &path("top"), &Opening::reading()).unwrap();
        let known = ledger(host).look(chain.layers()[1].image.as_ref()).unwrap();
        known.layer.frozen.and_then(|record| record.sealed)
    };
    assert!(seal(&host).is_some());
    let again = || crash_states(&host.trace(), 0, 0).last().unwrap().host;
    drop(host.create(Path::new("/waits too")).unwrap());
    let whole = again();
    PLAIN.fold(&whole).unwrap();
    let mut unsealed = 0;
    for at in 0..whole.ios() {
        let machine = again();
        machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        drop(PLAIN.fold(&machine));
        machine.fail(None);
        let Some(abandoned) = journal(&machine, "top")
            .and_then(|_| abandon(&machine, "top").ok())
            .filter(|a| !a.lost.is_empty())
        else {
            continue;
        };
        assert!(seal(&machine).is_none(), "failed at I/O {at}: {abandoned:?}");
        assert!(view(&machine, "top").unwrap() == expected, "failed at I/O {at}");
        unsealed += 1;
    }
    println!("{unsealed} times");
    assert!(unsealed > 10);
}

/// The disk gets another name while its job stands: it opens, goes on, and can be given up under it.
#[test]
fn a_disk_that_was_renamed_while_its_job_stands_keeps_it() {
    for scene in [PLAIN, Scene { base: Format::Raw, ..PLAIN }, Scene { keeps_target_name: true, ..PLAIN }] {
        let (machine, expected) = folded(scene);
        let mut renamed = 0;
        for (number, crash) in crash_states(&machine.trace(), 3, 0).enumerate() {
            let story = format!("power cut after {} {:?}", crash.after, crash.landing);
            let host = &crash.host;
            let Some(standing) = journal(host, "top") else { continue };
            if Ending::has_begun(host, &standing).unwrap() {
                continue;
            }
            host.rename(&path("top"), &path("renamed")).unwrap();
            assert!(view(host, "renamed").unwrap() == expected, "{story}");
            // A target that is whole and to keep its name may stand for a head that has gone.
            let may_stand = scene.keeps_target_name && standing.position().is_ready;
            assert!(view(host, "base").is_err() || may_stand, "{story}: the target opens by itself");
            // Whoever comes to have the old name has nothing to do with it.
            if !standing.position().is_ready {
                make(host, "top", Format::Qcow2, 1024, None);
                assert!(journal(host, "top").is_none(), "{story}");
                assert!(view(host, "renamed").unwrap() == expected, "{story}");
            }
            if number.is_multiple_of(2) {
                let by_file = standing.path().strip_prefix("/vm").unwrap().to_str().unwrap().to_owned();
                let named = if number.is_multiple_of(4) { "renamed".to_owned() } else { by_file };
                abandon(host, &named).unwrap_or_else(|e| panic!("{story}: {e}"));
                assert!(view(host, "renamed").unwrap() == expected, "{story}");
            } else {
                let opening = Opening::reading().with_ledger(ledger(host));
                let job =
                    Consolidation::prepare(&arc(host), &path("renamed"), &opening, &scene.request()).unwrap();
                let report = job.run(PACE, &Progress::default()).unwrap();
                let result = report.plan.result.file_name().unwrap().to_str().unwrap().to_owned();
                assert_eq!(result, if scene.keeps_target_name { "base" } else { "renamed" }, "{story}");
                assert!(view(host, &result).unwrap() == expected, "{story}");
                assert!(host.kind(&path("middle")).unwrap().is_none(), "{story}");
            }
            assert!(journal(host, "renamed").is_none(), "{story}");
            renamed += 1;
        }
        println!("{renamed} times");
        assert!(renamed > 30, "{renamed}");
    }
}

/// After the record a folded layer's name is another file's: that file is not the job's to remove.
#[test]
fn a_file_that_took_a_folded_layers_name_is_left_alone() {
    let (machine, expected) = folded(PLAIN);
    let mut left = 0;
    for crash in crash_states(&machine.trace(), 3, 0) {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        let host = &crash.host;
        let Some(standing) = journal(host, "top") else { continue };
        if !Ending::has_begun(host, &standing).unwrap() {
            continue;
        }
        if host.kind(&path("middle")).unwrap().is_some() {
            host.rename(&path("middle"), &path("kept")).unwrap();
        }
        make(host, "middle", Format::Qcow2, 4096, None);
        let report = PLAIN.fold(host).unwrap_or_else(|e| panic!("{story}: {e}"));
        assert_eq!(report.left_alone, [path("middle")], "{story}");
        assert!(view(host, "middle").is_ok() && view(host, "top").unwrap() == expected, "{story}");
        assert!(journal(host, "top").is_none(), "{story}");
        left += 1;
    }
    println!("{left} times");
    assert!(left > 2, "{left}");
}

/// Whoever sweeps up leftovers takes the draft of a job right before its record: that is no record.
#[test]
fn a_draft_that_somebody_removed_is_not_taken_for_the_result() {
    for scene in [Scene { base: Format::Raw, ..PLAIN }, Scene { is_new: true, ..PLAIN }] {
        let (machine, expected) = folded(scene);
        let host = right_before_the_record(&machine);
        let standing = journal(&host, "top").unwrap();
        host.remove(&standing.place(standing.fold().draft.as_ref().unwrap())).unwrap();
        // A new image is made again; a job that changed its target can be given up, at least.
        if scene.fold(&host).is_ok() {
            scene.check_end(&host, &expected, &format!("{scene:?}"));
            continue;
        }
        let given_up = abandon(&host, "top").unwrap_or_else(|e| panic!("{scene:?}: {e}"));
        check_given_up(&host, (&given_up, scene), &expected, &format!("{scene:?}"));
        scene.fold(&host).unwrap();
        scene.check_end(&host, &expected, &format!("{scene:?}"));
    }
}

/// Looks, whenever a file is to go, whether somebody else could begin to write it.
#[derive(Debug)]
struct Watching {
    host: SimHost,
    unheld: Mutex<Vec<PathBuf>>,
}

impl Host for Watching {
    fn remove(&self, path: &Path) -> Result<()> {
        if self.host.open(path, Access::Write).is_ok() {
            self.unheld.lock().push(path.to_path_buf());
        }
        self.host.remove(path)
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>> {
        self.host.open(path, access)
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        self.host.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.host.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        self.host.rename_new(from, to)
    }

    fn make_folder(&self, path: &Path) -> Result<()> {
        self.host.make_folder(path)
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        self.host.sync_folder(folder)
    }

    fn list(&self, folder: &Path) -> Result<Vec<Entry>> {
        self.host.list(folder)
    }

    fn kind(&self, path: &Path) -> Result<Option<EntryKind>> {
        self.host.kind(path)
    }

    fn is_taken(&self, path: &Path) -> Result<bool> {
        self.host.is_taken(path)
    }

    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        self.host.canonical(path)
    }

    fn opened_as(&self, file: &dyn File) -> Result<PathBuf> {
        self.host.opened_as(file)
    }

    fn witness(&self, path: &Path) -> Result<Witness> {
        self.host.witness(path)
    }

    fn status(&self, path: &Path) -> Result<Status> {
        self.host.status(path)
    }

    fn machine(&self) -> u128 {
        self.host.machine()
    }

    fn free_bytes(&self, folder: &Path) -> Result<u64> {
        self.host.free_bytes(folder)
    }
}

/// To look for children takes its time in a large folder: nobody begins to write a folded layer meanwhile.
#[test]
fn a_folded_layer_is_held_until_it_is_gone() {
    for scene in [PLAIN, Scene { keeps_target_name: true, ..PLAIN }] {
        let (machine, expected) = scene.build();
        let watching = Arc::new(Watching { host: machine.clone(), unheld: Mutex::default() });
        let host: Arc<dyn Host> = watching.clone();
        let opening = Opening::reading().with_ledger(Ledger::new(Arc::clone(&host), None));
        let job = Consolidation::prepare(&host, &path("top"), &opening, &scene.request()).unwrap();
        job.run(PACE, &Progress::default()).unwrap();
        scene.check_end(&machine, &expected, "watched");
        let unheld = watching.unheld.lock();
        let images: Vec<_> = unheld.iter().filter(|path| path.parent() == Some(Path::new("/vm"))).collect();
        assert!(images.is_empty(), "{images:?}");
    }
}

/// A journal that came with somebody else's folder and lists a file outside it among those that go.
#[test]
fn con_8_a_journal_that_names_files_elsewhere_is_refused_and_can_be_thrown_away() {
    let (host, _) = PLAIN.build();
    let whole = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    PLAIN.fold(&whole).unwrap();
    let killed = kill_states(&whole.trace())
        .map(|kill| kill.host)
        .find(|machine| machine.kind(&path("base")).unwrap().is_none() && journal(machine, "top").is_some());
    let machine = killed.unwrap();
    machine.make_folder(Path::new("/elsewhere")).unwrap();
    let victim = Path::new("/elsewhere/victim");
    drop(machine.create(victim).unwrap());
    let ours = Journal::resume(&arc(&machine), &path("top")).unwrap().unwrap();
    let (mut fold, position) = (ours.fold().clone(), ours.position());
    fold.removed.push(Removed { name: "../elsewhere/victim".into(), file: machine.witness(victim).unwrap() });
    let mut forged = ours.restart(fold).unwrap();
    forged.note(position).unwrap();
    let journal = forged.path().to_path_buf();
    drop(forged);
    let refused = PLAIN.fold(&machine).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Policy, "{refused}");
    assert!(refused.to_string().contains("removed '../elsewhere/victim'"), "{refused}");
    assert_eq!(refused.about(), Some(Path::new("/elsewhere")));
    let give_up = |path: &Path| Abandonment::prepare(&arc(&machine), path, &Opening::reading());
    assert_eq!(give_up(&path("top")).unwrap_err().kind(), ErrorKind::Policy);
    assert!(machine.kind(victim).unwrap().is_some());
    let gone = give_up(&journal).unwrap().run().unwrap();
    assert_eq!((gone.top, gone.removed.len()), (None, 0));
    assert!(machine.kind(&journal).unwrap().is_none() && machine.kind(victim).unwrap().is_some());
}

/// What the journal of one disk's job would say is lost: another disk in that folder is none of its business.
#[test]
fn con_8_a_garbled_journal_keeps_no_other_disk_from_being_opened() {
    let (host, _) = PLAIN.build();
    make(&host, "other", Format::Qcow2, 1024, None);
    make(&host, "child", Format::Qcow2, 1024, Some(("other", Format::Qcow2)));
    let whole = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    PLAIN.fold(&whole).unwrap();
    let bound = kill_states(&whole.trace()).map(|kill| kill.host).find(|machine| {
        journal(machine, "top").is_some_and(|journal| journal.position().mark > GuestOffset::new(0))
    });
    let machine = bound.unwrap();
    let garbled = journal(&machine, "top").unwrap().path().to_path_buf();
    machine.open(&garbled, Access::Write).unwrap().write_at(HostOffset::new(8192), &[0; 512]).unwrap();
    for name in ["other", "child"] {
        view(&machine, name).unwrap();
    }
    for name in ["top", "middle", "base"] {
        let error = view(&machine, name).unwrap_err();
        assert_eq!(
            (error.kind(), error.file()),
            (ErrorKind::Corrupt, Some(garbled.as_path())),
            "{name}: {error}"
        );
    }
    // Nobody can tell what a disk that has another name by now is called.
    machine.rename(&path("top"), &path("renamed")).unwrap();
    for name in ["other", "renamed", "base"] {
        assert_eq!(view(&machine, name).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
    }
}

/// A child that nobody may read was put on a folded layer while the job was cut off.
#[test]
fn con_8_what_cannot_be_read_keeps_folded_layers_until_a_person_says_no() {
    let (host, before) = PLAIN.build();
    let whole = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    PLAIN.fold(&whole).unwrap();
    let ended = kill_states(&whole.trace()).map(|kill| kill.host).find(|machine| {
        machine.kind(&path("base")).unwrap().is_none() && machine.kind(&path("middle")).unwrap().is_some()
    });
    let machine = ended.unwrap();
    let broken = machine.create(&path("broken")).unwrap();
    broken.write_at(HostOffset::new(0), b"QFI\xfb and no version").unwrap();
    drop(broken);
    let refused = PLAIN.fold(&machine).unwrap_err();
    assert_eq!((refused.kind(), refused.file()), (ErrorKind::Policy, Some(path("broken").as_path())));
    assert!(machine.kind(&path("middle")).unwrap().is_some());
    let request = Request { ignores_unread: true, ..PLAIN.request() };
    let job = Consolidation::prepare(&arc(&machine), &path("top"), &Opening::reading(), &request).unwrap();
    job.run(PACE, &Progress::default()).unwrap();
    machine.remove(&path("broken")).unwrap();
    PLAIN.check_end(&machine, &before, "without it");
}
