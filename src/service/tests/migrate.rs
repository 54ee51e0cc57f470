//! Disks that go to another store while guests write, over stops and restarts.

use super::*;
use crate::job::migrate::Request as Going;

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
    let snapshot = [SnapshotOf { disk: "vm".to_owned(), new: None }];
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
