//! Disks that go to another store while guests write, over stops and restarts.

use super::*;
use crate::{
    job::{
        Progress,
        consolidate::{aside, cut_off},
        live::LiveDisk,
        migrate::{Migration, Request as Going},
    },
    service::job::Outcome,
};

/// A scene with an empty store.
fn scene() -> Scene {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("there")).unwrap();
    scene
}

fn asked(scene: &Scene, rate: u64, removes_source: bool) -> MigrateRequest {
    let request = Going { store: scene.path("there"), removes_source, ..Going::default() };
    MigrateRequest { request, rate, ..MigrateRequest::default() }
}

fn names(scene: &Scene, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(scene.path(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// Waits until guests' writes go to both places.
fn wait_for_the_head(scene: &Scene, job: &Job) {
    let watch = Stopwatch::start();
    while !scene.has_journal() {
        assert!(watch.elapsed() < LONG && !job.is_over(), "{:?}", job.outcome());
        std::thread::sleep(GLANCE);
    }
}

/// Waits until layers are on their way, or the head is.
fn wait_for(scene: &Scene, job: &Job, is_head: bool) {
    if is_head { wait_for_the_head(scene, job) } else { wait_for_bytes(job) }
}

fn faster(service: &Service, job: &Job) {
    service.set_speed(job.number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG));
    let view = JobView::from(job);
    assert!(view.report.is_some() && view.kind == "migrate", "{view:?}");
}

#[test]
fn a_disk_goes_to_another_store_while_it_is_served() {
    let scene = scene();
    let service = scene.start();
    let job = service.migrate("vm", &asked(&scene, 16 * MIB, false)).unwrap();
    write(&service, 5 * MIB, 6);
    wait_for_the_head(&scene, &job);
    write(&service, 0, 7);
    // One thing at a time.
    let snapshot = [SnapshotOf::qcow2("vm", None)];
    assert_eq!(service.snapshot(&snapshot).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(service.consolidate("vm", &fold(0)).unwrap_err().kind(), ErrorKind::Busy);
    faster(&service, &job);
    write(&service, 6 * MIB, 8);
    let disk = service.view_disk("vm").unwrap();
    assert_eq!(
        (disk.path.0.clone(), disk.layers[1].path.0.clone()),
        (scene.path("there/top"), scene.path("there/base"))
    );
    stop(service);
    assert_eq!(names(&scene, "there"), ["base", "top"]);
    assert!(scene.path("base").exists() && scene.path("top.moved").exists() && !scene.path("top").exists());
    // The command line still names the first head.
    let service = scene.start();
    write(&service, 7 * MIB, 9);
    stop(service);
    assert!(scene.shown("there/top") == expected(&[(5 * MIB, 6), (0, 7), (6 * MIB, 8), (7 * MIB, 9)]));
}

#[test]
fn a_move_that_was_stopped_goes_on_wherever_it_was() {
    for waits_for_head in [false, true] {
        let scene = scene();
        let service = scene.start();
        let job = service.migrate("vm", &asked(&scene, 3 * MIB, true)).unwrap();
        wait_for(&scene, &job, waits_for_head);
        write(&service, 0, 7);
        service.pause(job.number).unwrap();
        service.note_told(&job).unwrap();
        stop(service);
        assert_eq!(scene.has_journal(), waits_for_head);
        let left: Vec<_> = cut_off(&scene.host, &scene.path("")).unwrap();
        assert_eq!(
            left.iter().map(|left| left.kind).collect::<Vec<_>>(),
            vec!["migrate"; usize::from(waits_for_head)]
        );
        let service = scene.start();
        let job = service.job(1).unwrap();
        assert_eq!(job.state(), JobState::Paused);
        write(&service, 6 * MIB, 8);
        service.resume(1).unwrap();
        faster(&service, &job);
        stop(service);
        assert_eq!(names(&scene, "there"), ["base", "top"]);
        assert!(
            !scene.path("base").exists() && !scene.path("top").exists() && !scene.path("top.moved").exists()
        );
        assert!(scene.shown("there/top") == expected(&[(0, 7), (6 * MIB, 8)]));
        let service = scene.start();
        assert!(service.view_jobs().is_empty());
        stop(service);
    }
}

#[test]
fn a_move_that_is_given_up_leaves_whole_layers_and_nothing_else() {
    for (waits_for_head, left) in [(false, &[] as &[&str]), (true, &["base"])] {
        let scene = scene();
        let service = scene.start();
        let job = service.migrate("vm", &asked(&scene, 3 * MIB, true)).unwrap();
        wait_for(&scene, &job, waits_for_head);
        write(&service, 0, 7);
        service.cancel(job.number).unwrap();
        assert!(job.wait(LONG));
        assert_eq!(names(&scene, "there"), left);
        write(&service, 6 * MIB, 8);
        assert_eq!(service.view_disk("vm").unwrap().path.0, scene.path("top"));
        stop(service);
        assert!(!scene.has_journal() && scene.shown("top") == expected(&[(0, 7), (6 * MIB, 8)]));
        let service = scene.start();
        assert!(service.view_jobs().is_empty());
        let job = service.migrate("vm", &asked(&scene, 0, true)).unwrap();
        faster(&service, &job);
        stop(service);
        assert!(scene.shown("there/top") == expected(&[(0, 7), (6 * MIB, 8)]));
    }
}

/// The store is away at the next start: the disk is served where it is, and the move is given up.
#[test]
fn a_store_that_is_away_keeps_no_disk_from_its_guests_before_the_record() {
    let scene = scene();
    let service = scene.start();
    let job = service.migrate("vm", &asked(&scene, 3 * MIB, false)).unwrap();
    wait_for_the_head(&scene, &job);
    write(&service, 0, 7);
    stop(service);
    std::fs::rename(scene.path("there"), scene.path("away")).unwrap();
    let service = scene.start();
    write(&service, 6 * MIB, 8);
    assert!(service.view_jobs().is_empty());
    stop(service);
    assert!(!scene.has_journal() && scene.shown("top") == expected(&[(0, 7), (6 * MIB, 8)]));
}

#[test]
fn what_cannot_be_moved_is_refused() {
    let scene = scene();
    let service =
        Service::start(Settings { state: None, ..scene.settings() }, &[scene.named("top")]).unwrap();
    assert_eq!(service.migrate("vm", &asked(&scene, 0, false)).unwrap_err().kind(), ErrorKind::Invalid);
    stop(service);
    let named = Named { is_read_only: true, ..scene.named("top") };
    let service = Service::start(scene.settings(), &[named]).unwrap();
    assert_eq!(service.migrate("vm", &asked(&scene, 0, false)).unwrap_err().kind(), ErrorKind::Policy);
    stop(service);
}

/// No name is free for the old head when the disk has gone over, and the daemon stops like that.
#[test]
fn an_old_head_that_cannot_give_way_does_so_at_the_next_start() {
    let scene = scene();
    let service = scene.start();
    let job = service.migrate("vm", &asked(&scene, 3 * MIB, false)).unwrap();
    wait_for_the_head(&scene, &job);
    let taken: Vec<_> = aside(&scene.path("top")).collect();
    for name in &taken {
        std::fs::write(name, b"").unwrap();
    }
    service.set_speed(job.number, Speed { rate: Some(0), ..Speed::default() }).unwrap();
    assert!(job.wait(LONG));
    assert!(matches!(job.outcome(), Some(Outcome::Failed(_))), "{:?}", job.outcome());
    write(&service, 6 * MIB, 8);
    stop(service);
    assert!(scene.path("top").exists() && scene.has_journal());
    for name in &taken {
        std::fs::remove_file(name).unwrap();
    }
    let service = scene.start();
    assert_eq!(service.view_disk("vm").unwrap().path.0, scene.path("there/top"));
    write(&service, 7 * MIB, 9);
    stop(service);
    assert!(!scene.path("top").exists() && scene.path("top.moved").exists() && !scene.has_journal());
    assert!(scene.shown("there/top") == expected(&[(6 * MIB, 8), (7 * MIB, 9)]));
}

/// Brings the move that a stop has left up to its record, as a program that is killed right then.
fn record(scene: &Scene) {
    let opening = scene.opening().for_live_use();
    let disk = Chain::open(&scene.host, &scene.path("top"), &opening).unwrap();
    let disk = Arc::new(LiveDisk::new(disk));
    let migration = Migration::again(&scene.host, &disk, &opening, &asked(scene, 0, false).request).unwrap();
    let below = migration.reopen(Some(&scene.path("there/base"))).unwrap();
    let mut folding = migration.fold(&below).unwrap().begin(PACE).unwrap();
    folding.copy(&Progress::default()).unwrap();
    folding.record(&Progress::default()).unwrap();
}

#[test]
fn a_start_that_only_reads_neither_forgets_a_move_nor_shows_the_old_head_after_its_record() {
    for is_recorded in [false, true] {
        let scene = scene();
        let service = scene.start();
        let job = service.migrate("vm", &asked(&scene, 3 * MIB, false)).unwrap();
        wait_for_the_head(&scene, &job);
        write(&service, 6 * MIB, 8);
        stop(service);
        if is_recorded {
            record(&scene);
        }
        let head = scene.path(if is_recorded { "there/top" } else { "top" });
        let reader = Named { is_read_only: true, ..scene.named("top") };
        let service = Service::start(scene.settings(), &[reader]).unwrap();
        assert_eq!(service.view_disk("vm").unwrap().path.0, head);
        stop(service);
        let service = scene.start();
        assert_eq!(service.refused().len(), 0, "{:?}", service.refused());
        if !is_recorded {
            faster(&service, &service.job(1).unwrap());
        }
        stop(service);
        assert!(scene.path("top.moved").exists() && !scene.path("top").exists());
        assert!(scene.shown("there/top") == expected(&[(6 * MIB, 8)]));
    }
}

/// Finding out what the store has may take hashing it: disks come and go, and jobs are told things, meanwhile.
#[test]
fn what_a_move_comes_to_is_found_out_while_others_have_the_book() {
    let scene = scene();
    std::fs::write(scene.path("there/top"), b"").unwrap();
    let service = scene.start();
    let book = service.book.lock();
    let (say, said) = std::sync::mpsc::channel();
    let (other, asked) = (Arc::clone(&service), asked(&scene, 0, false));
    let asking = std::thread::spawn(move || say.send(other.migrate("vm", &asked).map(drop)).unwrap());
    let refused = said.recv_timeout(Duration::from_secs(5));
    drop(book);
    asking.join().unwrap();
    assert_eq!(refused.unwrap().unwrap_err().kind(), ErrorKind::Exists);
    stop(service);
}
