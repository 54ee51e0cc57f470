//! A service on real files: what a guest wrote is there, whatever becomes of jobs and of the service itself.

mod backup;
mod bitmaps;
mod hooks;
mod layers;
mod leases;
mod migrate;
mod names;

use super::{job::Told, *};
use crate::{
    base::GuestOffset,
    chain::Chain,
    format::Format,
    io::{Access, Kept, real::RealHost},
    job::{
        consolidate::{LiveConsolidation, NewImage, Patience, Request},
        create::{self, create},
        snapshot::snapshot,
    },
    store::{Journal, Ledger},
};

const MIB: u64 = 1 << 20;
const PACE: LivePace = LivePace {
    block_bytes: 64 << 10,
    mark_bytes: 128 << 10,
    mark_pause: std::time::Duration::ZERO,
    share: 1.0,
    patience: Patience::Endless,
};
/// Longer than any of this takes.
const LONG: Duration = Duration::from_mins(1);

struct Scene {
    folder: tempfile::TempDir,
    host: Arc<dyn Host>,
}

impl Scene {
    /// `top` on `base` in a folder: each byte of the disk's first 4 MiB is in both.
    fn new() -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap(), host: Arc::new(RealHost::new()) };
        let new =
            create::NewImage { format: Format::Qcow2, size: Some(8 * MIB), parent: None, options: vec![] };
        create(&scene.host, &scene.path("base"), &new, &scene.opening()).unwrap();
        scene.fill("base", 1);
        snapshot(&scene.host, &scene.path("base"), &scene.path("top"), &[], &scene.opening()).unwrap();
        scene.fill("top", 2);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn opening(&self) -> Opening {
        Opening::writing().with_ledger(Ledger::new(Arc::clone(&self.host), None))
    }

    fn fill(&self, name: &str, byte: u8) {
        let chain = Chain::open(&self.host, &self.path(name), &self.opening()).unwrap();
        chain.write(GuestOffset::new(0), &vec![byte; 4 << 20]).unwrap();
        chain.flush().unwrap();
    }

    fn settings(&self) -> Settings {
        Settings {
            host: Arc::clone(&self.host),
            opening: self.opening(),
            state: Some(self.path("state")),
            resumes: true,
            pace: PACE,
            quiesce: Arc::new(AskNobody),
        }
    }

    fn named(&self, path: &str) -> Named {
        Named {
            name: "vm".to_owned(),
            path: self.path(path),
            format: None,
            is_read_only: false,
            hooks: Hooks::default(),
        }
    }

    fn start(&self) -> Arc<Service> {
        Service::start(self.settings(), &[self.named("top")]).unwrap()
    }

    /// What the disk shows to who opens it without the service.
    fn shown(&self, name: &str) -> Vec<u8> {
        let opening = self.opening().with_access(Access::Read);
        let chain = Chain::open(&self.host, &self.path(name), &opening).unwrap();
        let mut bytes = vec![0; 8 << 20];
        chain.read(GuestOffset::new(0), &mut bytes).unwrap();
        bytes
    }

    fn has_journal(&self) -> bool {
        Journal::find(&self.host, &self.path("top")).unwrap().is_some()
    }
}

/// The disk as `top` shows it, with a megabyte of `byte` at `at`.
fn expected(writes: &[(u64, u8)]) -> Vec<u8> {
    let mut bytes = [vec![2; 4 << 20], vec![0; 4 << 20]].concat();
    for (at, byte) in writes {
        let at = usize::try_from(*at).unwrap();
        bytes[at..at + (1 << 20)].fill(*byte);
    }
    bytes
}

fn write(service: &Service, at: u64, byte: u8) {
    let held = service.held("vm").unwrap();
    held.disk.write(GuestOffset::new(at), &vec![byte; 1 << 20]).unwrap();
}

fn fold(rate: u64) -> FoldRequest {
    FoldRequest { rate, ..FoldRequest::default() }
}

/// Ends a service, as when its program ends.
#[expect(clippy::needless_pass_by_value, reason = "it is gone afterwards")]
fn stop(service: Arc<Service>) {
    service.stop(LONG).unwrap();
}

/// A fold that moves its first block at once, and is told to go faster, to wait or to end long before it is over.
fn slow() -> FoldRequest {
    fold(64 << 10)
}

/// Waits until a job has moved something.
fn wait_for_bytes(job: &Job) {
    let watch = Stopwatch::start();
    while job.progress.state().moved_bytes == 0 {
        assert!(watch.elapsed() < LONG && !job.is_over(), "{:?}", job.outcome());
        std::thread::sleep(GLANCE);
    }
}

#[test]
fn con_1_a_disk_is_folded_while_it_is_served() {
    let scene = Scene::new();
    let service = scene.start();
    let job = service.consolidate("vm", &slow()).unwrap();
    wait_for_bytes(&job);
    write(&service, 0, 7);
    write(&service, 6 * MIB, 8);
    assert_eq!(service.consolidate("vm", &fold(0)).unwrap_err().kind(), ErrorKind::Busy);
    service.set_speed(job.number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG));
    let view = JobView::from(job.as_ref());
    assert!(view.report.is_some(), "{view:?}");
    // Its last figures stay.
    let Moving { transferred, size, elapsed, .. } = view.progress;
    assert!(size > 0 && transferred >= size, "{transferred} of {size}");
    std::thread::sleep(GLANCE);
    assert!(JobView::from(job.as_ref()).progress.elapsed.to_bits() == elapsed.to_bits());
    let disk = service.view_disk("vm").unwrap();
    assert_eq!((disk.layers.len(), disk.path.0.clone(), disk.job), (1, scene.path("top"), None));
    stop(service);
    assert!(scene.shown("top") == expected(&[(0, 7), (6 * MIB, 8)]));
    assert!(!scene.path("base").exists() && !scene.has_journal());
}

/// What guests feel is told; a goal that nobody can reach leaves the copier its share, so that the fold ends.
#[test]
fn con_2_guests_are_listened_to_and_the_job_ends() {
    let scene = Scene::new();
    let service = scene.start();
    let goal = Duration::from_nanos(1);
    let asked = FoldRequest { share: Some(0.2), latency_target: Some(goal), ..fold(MIB / 4) };
    let job = service.consolidate("vm", &asked).unwrap();
    let view = || JobView::from(job.as_ref()).progress;
    let watch = Stopwatch::start();
    while view().guest_p99.is_none_or(|p99| p99 == 0.0) {
        write(&service, 6 * MIB, 8);
        assert!(watch.elapsed() < LONG && !job.is_over(), "{:?}", job.outcome());
    }
    assert!(view().guest_p50.is_some_and(|p50| p50 > 0.0) && view().rate_now.is_some());
    assert!(view().share == Some(0.2) && view().latency_target.is_some_and(|ms| ms < 0.001));
    let speed = Speed { rate: Some(0), share: Some(0.5), latency_target: None };
    service.set_speed(job.number, speed).unwrap();
    assert!(view().share == Some(0.5) && view().latency_target.is_some_and(|ms| ms < 0.001));
    assert!(service.set_speed(job.number, Speed { share: Some(0.0), ..speed }).is_err());
    while !job.is_over() {
        write(&service, 5 * MIB, 8);
        assert!(watch.elapsed() < LONG, "{:?}", job.state());
    }
    assert!(JobView::from(job.as_ref()).report.is_some());
    stop(service);
}

/// On another file system, say: the daemon's book names the head, not a record of the file system.
#[test]
fn con_5_a_disk_is_folded_into_a_new_image_while_it_is_served_over_a_restart() {
    let scene = Scene::new();
    let service = scene.start();
    std::fs::create_dir(scene.path("there")).unwrap();
    let new = NewImage { path: scene.path("there/new"), format: None, options: vec![] };
    let request = Request { new: Some(new.clone()), ..Request::default() };
    let job = service.consolidate("vm", &FoldRequest { request, ..slow() }).unwrap();
    wait_for_bytes(&job);
    write(&service, 0, 7);
    stop(service);
    let service = scene.start();
    write(&service, 6 * MIB, 8);
    let job = service.set_speed(1, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG));
    assert!(JobView::from(job.as_ref()).report.is_some_and(|report| report.mirrored_bytes > 0));
    write(&service, 5 * MIB, 9);
    let disk = service.view_disk("vm").unwrap();
    assert_eq!((disk.layers.len(), disk.path.0.clone()), (1, new.path));
    stop(service);
    assert!(scene.path("base").exists() && !scene.has_journal());
    // The command line has its first head; the book knows better.
    let service = scene.start();
    assert_eq!(service.view_disk("vm").unwrap().path.0, scene.path("there/new"));
    stop(service);
    assert!(scene.shown("there/new") == expected(&[(0, 7), (6 * MIB, 8), (5 * MIB, 9)]));
}

/// The program is killed when the new image has its name, and before the book does.
#[test]
fn con_6_a_new_image_that_has_its_name_is_the_head_that_the_next_start_opens() {
    let scene = Scene::new();
    stop(scene.start());
    let opening = scene.opening().for_live_use();
    let disk = Arc::new(LiveDisk::new(Chain::open(&scene.host, &scene.path("top"), &opening).unwrap()));
    let new = NewImage { path: scene.path("new"), format: None, options: vec![] };
    let request = Request { new: Some(new), ..Request::default() };
    let fold = LiveConsolidation::prepare(&scene.host, &disk, &opening, &request).unwrap();
    let mut folding = fold.begin(PACE).unwrap();
    let progress = crate::job::Progress::default();
    folding.copy(&progress).unwrap();
    folding.record(&progress).unwrap();
    disk.write(GuestOffset::new(0), &[7; 512]).unwrap();
    disk.flush().unwrap();
    drop((folding, disk));
    let service = scene.start();
    assert_eq!(service.view_disk("vm").unwrap().path.0, scene.path("new"));
    write(&service, MIB, 8);
    stop(service);
    let mut wanted = expected(&[(MIB, 8)]);
    wanted[..512].fill(7);
    assert!(scene.shown("new") == wanted && !scene.has_journal());
}

/// A cancelled one leaves nothing of the new image.
/// What was asked for is not forgotten where the image in the making has to be made anew.
#[test]
fn a_new_image_is_made_anew_as_it_was_asked_for() {
    let scene = Scene::new();
    let service = scene.start();
    let options = vec![("cluster_size".to_owned(), "4096".to_owned())];
    let new = NewImage { path: scene.path("new"), format: None, options };
    let request = Request { new: Some(new), ..Request::default() };
    let job = service.consolidate("vm", &FoldRequest { request, ..slow() }).unwrap();
    wait_for_bytes(&job);
    stop(service);
    let names = std::fs::read_dir(scene.folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let draft = names.filter(|path| path.to_string_lossy().contains(".new.")).collect::<Vec<_>>();
    assert_eq!(draft.len(), 1, "{draft:?}");
    std::fs::remove_file(&draft[0]).unwrap();
    let service = scene.start();
    let job = service.job(1).unwrap();
    service.set_speed(1, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG) && JobView::from(job.as_ref()).report.is_some(), "{:?}", job.outcome());
    let details = service.held("vm").unwrap().disk.chain().head().unwrap().image.details().unwrap();
    assert_eq!(details.cluster_bytes, Some(4096));
    stop(service);
}

#[test]
fn con_10_a_new_image_that_is_given_up_goes() {
    let scene = Scene::new();
    let service = scene.start();
    let new = NewImage { path: scene.path("new"), format: Some(Format::Raw), options: vec![] };
    let request = Request { new: Some(new), ..Request::default() };
    let job = service.consolidate("vm", &FoldRequest { request, ..slow() }).unwrap();
    wait_for_bytes(&job);
    write(&service, 0, 7);
    service.cancel(job.number).unwrap();
    assert!(job.wait(LONG));
    write(&service, MIB, 8);
    let names: Vec<_> =
        std::fs::read_dir(scene.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("new")), "{names:?}");
    assert!(!scene.has_journal());
    stop(service);
    assert!(scene.shown("top") == expected(&[(0, 7), (MIB, 8)]));
}

#[test]
fn con_10_a_paused_job_moves_nothing_and_a_cancelled_one_leaves_the_disk() {
    let scene = Scene::new();
    let service = scene.start();
    let job = service.consolidate("vm", &slow()).unwrap();
    wait_for_bytes(&job);
    service.pause(job.number).unwrap();
    service.set_speed(job.number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // What it had in hand, and nothing after that.
    assert!(job.progress.state().moved_bytes <= MIB / 2);
    assert_eq!(job.state(), JobState::Paused);
    write(&service, 3 * MIB, 9);
    service.cancel(job.number).unwrap();
    assert!(job.wait(LONG));
    let view = JobView::from(job.as_ref());
    assert_eq!(view.error.unwrap().kind, ErrorKind::Interrupted);
    assert!(!matches!(&view.plan, Task::Consolidate(plan) if plan.lost.is_empty()));
    write(&service, 0, 5);
    stop(service);
    // Nothing of it is left once nobody uses the disk, so that no start goes on with it.
    assert!(!scene.has_journal());
    assert!(scene.shown("top") == expected(&[(0, 5), (3 * MIB, 9)]));
    let service = scene.start();
    assert!(service.view_jobs().is_empty() && service.refused().is_empty());
}

/// A client's last thread lets go of the disk after the client was told that it is gone.
#[test]
fn what_a_given_up_job_left_goes_also_where_somebody_lets_go_of_the_disk_a_little_late() {
    for detaches in [true, false] {
        let scene = Scene::new();
        let service = scene.start();
        let job = service.consolidate("vm", &slow()).unwrap();
        wait_for_bytes(&job);
        service.cancel(job.number).unwrap();
        assert!(job.wait(LONG) && scene.has_journal());
        let held = service.held("vm").unwrap();
        let client = Arc::clone(&held.disk);
        let late = std::thread::spawn(move || {
            std::thread::sleep(LETTING_GO / 30);
            drop(client);
            std::thread::sleep(LETTING_GO / 30);
            drop(held);
        });
        if detaches {
            service.detach("vm", false).unwrap();
            assert!(!scene.has_journal());
        }
        stop(service);
        assert!(!scene.has_journal());
        late.join().unwrap();
    }
}

/// Who asks for a disk has found it, and does not have it yet.
#[test]
fn a_disk_that_a_client_is_about_to_have_is_not_detached() {
    let scene = Scene::new();
    let service = scene.start();
    let found = service.held("vm").unwrap();
    assert_eq!(service.detach("vm", false).unwrap_err().kind(), ErrorKind::Busy);
    let client = Arc::clone(&found.disk);
    drop(found);
    client.write(GuestOffset::new(0), &[7; 512]).unwrap();
    assert_eq!(service.detach("vm", false).unwrap_err().kind(), ErrorKind::Busy);
    drop(client);
    service.detach("vm", false).unwrap();
    stop(service);
}

#[test]
fn a_job_that_begins_as_the_service_stops_is_stopped_with_it() {
    let scene = Scene::new();
    let service = scene.start();
    let book = service.book.lock();
    let stops = std::thread::spawn({
        let service = Arc::clone(&service);
        move || service.stop(LONG)
    });
    while !service.is_stopping.load(SeqCst) {
        std::thread::sleep(GLANCE);
    }
    // It was asked for before, and holds the book.
    let held = service.held("vm").unwrap();
    let request = Request::default();
    let fold = LiveConsolidation::prepare(&scene.host, &held.disk, &held.opening, &request).unwrap();
    let job =
        Job::new(1, "vm", fold.plan().clone(), super::job::Told::of(MIB, crate::job::Manners::default()));
    service.launch(&held, &job, super::fold::Stand::Planned(Box::new(fold), PACE)).unwrap();
    drop((book, held));
    stops.join().unwrap().unwrap();
    assert!(job.is_over());
}

/// A client that is told to go.
#[derive(Default)]
struct Watched(AtomicBool);

impl crate::export::Guest for Watched {
    fn peer(&self) -> String {
        String::new()
    }

    fn is_secret(&self) -> bool {
        false
    }

    fn stop(&self) {}

    fn cut(&self) {
        self.0.store(true, SeqCst);
    }
}

/// The old head has lost its name: what a client that is still there wrote to it would be acknowledged and gone.
#[test]
fn a_disk_that_went_back_and_cannot_be_opened_is_written_by_nobody() {
    use crate::{
        export::{Exports, Guest},
        io::faulty::{Failure, Fault, SimHost},
    };
    let mut refused = 0;
    for at in 0.. {
        let sim = SimHost::new();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        let opening = Opening::writing().with_ledger(Ledger::new(Arc::clone(&host), None));
        let new = create::NewImage { format: Format::Qcow2, size: Some(MIB), parent: None, options: vec![] };
        create(&host, "/base".as_ref(), &new, &opening).unwrap();
        snapshot(&host, "/base".as_ref(), "/top".as_ref(), &[], &opening).unwrap();
        let settings = Settings {
            host,
            opening,
            state: Some("/state".into()),
            resumes: true,
            pace: PACE,
            quiesce: Arc::new(AskNobody),
        };
        let (name, path) = ("vm".to_owned(), "/top".into());
        let named = Named { name, path, format: None, is_read_only: false, hooks: Hooks::default() };
        let service = Service::start(settings, &[named]).unwrap();
        let export = service.open("vm").unwrap();
        let watched = Arc::new(Watched::default());
        export.guests.enter(&(Arc::clone(&watched) as Arc<dyn Guest>));
        let last = sim.ios() + at;
        sim.fail(Some(Fault { at: last, is_lasting: false, failure: Failure::Io }));
        let reverted = service.revert("vm", "/base".as_ref(), true);
        let is_past = sim.ios() <= last;
        sim.fail(None);
        let is_refused = matches!(service.disks.lock().get("vm"), Some(Entry::Refused(..)));
        refused += usize::from(is_refused);
        let is_written = export.disk.write(GuestOffset::new(0), &[7; 512]).is_ok();
        assert_eq!((is_written, watched.0.load(SeqCst)), (!is_refused, is_refused), "I/O {at}: {reverted:?}");
        if is_past {
            break;
        }
    }
    assert!(refused > 0);
}

/// The first time it is kept that its head is another one by now; the second time it is forgotten.
#[test]
fn con_10_a_job_that_stopped_with_the_service_goes_on_from_its_mark() {
    let scene = Scene::new();
    let service = scene.start();
    let job = service.consolidate("vm", &fold(MIB)).unwrap();
    while job.progress.state().moved_bytes < MIB {
        wait_for_bytes(&job);
    }
    service.set_speed(job.number, Speed { rate: Some(4096), ..Speed::default() }).unwrap();
    service.note_told(&job).unwrap();
    write(&service, 2 * MIB, 6);
    service.stop(LONG).unwrap();
    assert!(JobView::from(job.as_ref()).is_resumable);
    let moved = job.progress.state().moved_bytes;
    drop(service);
    let again = scene.start();
    let resumed = again.job(job.number).unwrap();
    assert_eq!(resumed.progress.rate(), 4096);
    again.set_speed(job.number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(resumed.wait(LONG));
    let report = JobView::from(resumed.as_ref()).report.unwrap();
    assert!(
        report.report.plan.is_resumed && report.report.copied_bytes <= 4 * MIB - moved + MIB / 8,
        "{report:?}"
    );
    stop(again);
    assert!(scene.shown("top") == expected(&[(2 * MIB, 6)]));
}

#[test]
fn con_10_what_a_job_was_told_holds_after_a_restart() {
    let scene = Scene::new();
    let service = scene.start();
    let deadline = Some(Duration::from_hours(1));
    let asked = FoldRequest { share: Some(0.25), deadline, ..slow() };
    let number = service.consolidate("vm", &asked).unwrap().number;
    let goal = Duration::from_millis(5);
    service.set_speed(number, Speed { rate: Some(4096), latency_target: Some(goal), share: None }).unwrap();
    let job = service.pause(number).unwrap();
    service.note_told(&job).unwrap();
    stop(service);
    let service = scene.start();
    let job = service.job(number).unwrap();
    assert!(job.time_left().unwrap() <= Duration::from_hours(1) && !job.progress.is_late());
    let manners = crate::job::Manners { share: Some(0.25), latency_target: Some(goal) };
    assert_eq!((job.state(), job.progress.rate(), job.progress.manners()), (JobState::Paused, 4096, manners));
    service.set_speed(number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    service.resume(number).unwrap();
    assert!(job.wait(LONG));
    // The next one begins with nothing told.
    assert_eq!(service.book.lock().written().disks["vm"].told, Told::default());
    stop(service);
}

#[test]
fn a_job_that_is_not_to_go_on_is_given_up_before_guests_write() {
    let scene = Scene::new();
    let service = scene.start();
    let job = service.consolidate("vm", &slow()).unwrap();
    wait_for_bytes(&job);
    stop(service);
    let settings = Settings { resumes: false, ..scene.settings() };
    let service = Service::start(settings, &[scene.named("top")]).unwrap();
    assert!(service.view_jobs().is_empty() && service.refused().is_empty());
    write(&service, 0, 4);
    stop(service);
    let service = scene.start();
    let job = service.set_speed(2, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG));
    stop(service);
    assert!(scene.shown("top") == expected(&[(0, 4)]));
}

#[test]
fn a_snapshot_is_the_head_that_the_next_start_opens() {
    let scene = Scene::new();
    let service = scene.start();
    let asked = SnapshotOf::qcow2("vm", Some("monday".into()));
    service.snapshot(&[asked]).unwrap();
    write(&service, 0, 3);
    stop(service);
    assert!(scene.shown("top") == expected(&[]));
    let service = scene.start();
    assert_eq!(service.view_disk("vm").unwrap().path.0, scene.path("monday"));
    let new = SnapshotOf::qcow2("vm", None);
    let taken = service.snapshot(std::slice::from_ref(&new)).unwrap();
    assert!(taken.taken[0].head.file_name().unwrap().to_str().unwrap().starts_with("vm-20"));
    assert_eq!(service.snapshot(&[new.clone(), new]).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_disk_whose_job_cannot_go_on_is_not_served() {
    let scene = Scene::new();
    let service = scene.start();
    let job = service.consolidate("vm", &slow()).unwrap();
    wait_for_bytes(&job);
    stop(service);
    let journal = Journal::find(&scene.host, &scene.path("top")).unwrap().unwrap().path().to_path_buf();
    let bytes = std::fs::read(&journal).unwrap();
    std::fs::write(&journal, vec![0; bytes.len()]).unwrap();
    let service = scene.start();
    assert_eq!(service.refused()[0].1.kind(), ErrorKind::Corrupt);
    assert!(service.held("vm").is_err());
    drop(service);
    std::fs::write(&journal, bytes).unwrap();
    let service = scene.start();
    let job = service.set_speed(job.number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG));
    stop(service);
    assert!(scene.shown("top") == expected(&[]));
}

#[test]
fn an_image_that_another_lies_on_is_served_for_reading_only() {
    let scene = Scene::new();
    // Its state folder is lost, or the image is named in the place of its child.
    let service = Service::start(scene.settings(), &[scene.named("base")]).unwrap();
    let (name, why) = service.refused().remove(0);
    assert_eq!(
        (name.as_str(), why.kind(), why.about()),
        ("vm", ErrorKind::Busy, Some(scene.path("top").as_path()))
    );
    assert!(why.to_string().contains("top lies on it"), "{why}");
    let readable = Named { name: "readable".to_owned(), is_read_only: true, ..scene.named("base") };
    service.attach(&readable).unwrap();
    service.detach("readable", false).unwrap();
    std::fs::remove_file(scene.path("top")).unwrap();
    service.attach(&scene.named("base")).unwrap();
    stop(service);
}
