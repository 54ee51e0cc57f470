//! What is asked of guests around a snapshot, and of whom.

use super::*;
use crate::job::create;

/// Notes what it is asked; a freeze fails whose program is `fail`.
#[derive(Debug, Default)]
struct Asker {
    asked: Mutex<Vec<String>>,
    /// Who is asked to freeze waits for this to become true.
    may_go_on: Option<AtomicBool>,
}

impl Quiesce for Asker {
    fn ask(&self, disk: &str, hooks: &Hooks, phase: Phase) -> Result<()> {
        self.asked.lock().push(format!("{phase} {disk}"));
        while phase == Phase::Freeze && self.may_go_on.as_ref().is_some_and(|go_on| !go_on.load(SeqCst)) {
            std::thread::sleep(GLANCE);
        }
        let fails = phase == Phase::Freeze && hooks.freeze == ["fail"];
        if fails { Err(Error::busy("the guest is busy")) } else { Ok(()) }
    }
}

fn hooks(freeze: &str) -> Hooks {
    Hooks { freeze: vec![freeze.to_owned()], thaw: vec!["thaw".to_owned()], timeout: None }
}

/// A service with the disk `vm`, and `other` on a disk of its own, whose guests are asked by `asker`.
fn start(scene: &Scene, asker: &Arc<Asker>, freeze: [&str; 2]) -> Arc<Service> {
    let settings = Settings { quiesce: Arc::clone(asker) as Arc<_>, ..scene.settings() };
    if !scene.path("alone").exists() {
        let new = create::NewImage { format: Format::Qcow2, size: Some(MIB), parent: None, options: vec![] };
        create::create(&scene.host, &scene.path("alone"), &new, &scene.opening()).unwrap();
    }
    let vm = Named { hooks: hooks(freeze[0]), ..scene.named("top") };
    let other = Named { name: "other".to_owned(), hooks: hooks(freeze[1]), ..scene.named("alone") };
    Service::start(settings, &[vm, other]).unwrap()
}

fn take(service: &Service) -> Result<crate::job::snapshot::LiveTaken> {
    let of = |disk: &str| SnapshotOf::qcow2(disk, None);
    service.snapshot(&[of("vm"), of("other")])
}

#[test]
fn guests_hold_still_while_a_snapshot_is_taken_and_go_on_whatever_becomes_of_it() {
    let (scene, asker) = (Scene::new(), Arc::new(Asker::default()));
    let service = start(&scene, &asker, ["quiet", "quiet"]);
    take(&service).unwrap();
    assert_eq!(
        std::mem::take(&mut *asker.asked.lock()),
        ["freeze vm", "freeze other", "thaw other", "thaw vm"]
    );
    assert_eq!(service.view_disk("vm").unwrap().layers.len(), 3);
    stop(service);
    let service = start(&scene, &asker, ["fail", "quiet"]);
    assert_eq!(take(&service).unwrap_err().kind(), ErrorKind::Busy);
    // The one that failed may hold still all the same; the other was not asked.
    assert_eq!(std::mem::take(&mut *asker.asked.lock()), ["freeze vm", "thaw vm"]);
    assert_eq!(service.view_disk("vm").unwrap().layers.len(), 3);
    stop(service);
    // The snapshot itself fails.
    let service = start(&scene, &asker, ["quiet", "quiet"]);
    let there = SnapshotOf::qcow2("vm", Some("base".into()));
    assert_eq!(service.snapshot(&[there]).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::mem::take(&mut *asker.asked.lock()), ["freeze vm", "thaw vm"]);
    stop(service);
}

#[test]
fn whom_a_kill_left_frozen_the_next_start_has_go_on() {
    let (scene, asker) = (Scene::new(), Arc::new(Asker::default()));
    let service = start(&scene, &asker, ["quiet", "quiet"]);
    service.book.lock().change(|written| written.frozen.insert("vm".to_owned())).unwrap();
    stop(service);
    assert!(asker.asked.lock().is_empty());
    stop(start(&scene, &asker, ["quiet", "quiet"]));
    assert_eq!(*asker.asked.lock(), ["thaw vm"]);
    stop(start(&scene, &asker, ["quiet", "quiet"]));
    assert_eq!(asker.asked.lock().len(), 1);
}

#[test]
fn a_stop_waits_until_the_guests_go_on() {
    let scene = Scene::new();
    let asker = Arc::new(Asker { may_go_on: Some(AtomicBool::new(false)), ..Asker::default() });
    let service = start(&scene, &asker, ["quiet", "quiet"]);
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(&service));
        while asker.asked.lock().is_empty() {
            std::thread::sleep(GLANCE);
        }
        let stopping = scope.spawn(|| service.stop(LONG));
        while !service.is_stopping.load(SeqCst) {
            std::thread::sleep(GLANCE);
        }
        asker.may_go_on.as_ref().unwrap().store(true, SeqCst);
        taking.join().unwrap().unwrap();
        stopping.join().unwrap().unwrap();
    });
    assert_eq!(asker.asked.lock().last().unwrap(), "thaw vm");
}

#[test]
fn a_job_is_told_to_wait_while_the_guest_of_another_disk_takes_long_to_hold_still() {
    let may_go_on = Some(AtomicBool::new(false));
    let (scene, asker) = (Scene::new(), Arc::new(Asker { may_go_on, ..Asker::default() }));
    let service = start(&scene, &asker, ["quiet", "quiet"]);
    let job = service.consolidate("vm", &slow()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| service.snapshot(&[SnapshotOf::qcow2("other", None)]).unwrap());
        while asker.asked.lock().is_empty() {
            std::thread::sleep(GLANCE);
        }
        let (tell, told) = std::sync::mpsc::channel();
        let (teller, number) = (Arc::clone(&service), job.number);
        scope.spawn(move || tell.send(teller.pause(number).unwrap().state()).unwrap());
        let state = told.recv_timeout(LONG);
        asker.may_go_on.as_ref().unwrap().store(true, SeqCst);
        assert_eq!(state, Ok(JobState::Paused));
    });
    service.note_told(&job).unwrap();
    stop(service);
}
