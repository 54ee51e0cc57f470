//! Backups of a service's disk: what they export, what they say has changed, and what becomes of their layers.

use super::*;
use crate::{
    export::{Exports, Stretch},
    job::{
        Progress,
        consolidate::{Folding, LiveConsolidation},
        create,
        rebase::NewParent,
    },
};

fn begin(service: &Service, since: Option<&str>) -> BackupView {
    service.begin_backup(&["vm".to_owned()], since).unwrap()
}

/// Ends a backup; returns how many jobs that took.
fn end(service: &Arc<Service>, id: &str) -> usize {
    let ended = service.end_backup(id, false).unwrap();
    assert!(ended.left.is_empty(), "{ended:?}");
    for number in &ended.jobs {
        let job = service.job(*number).unwrap();
        assert!(job.wait(LONG));
        assert!(JobView::from(job.as_ref()).report.is_some(), "{:?}", job.outcome());
    }
    ended.jobs.len()
}

/// What an export shows, and what it says has changed: offset and length in MiB.
fn look(service: &Service, view: &BackupView) -> (Vec<u8>, Vec<(u64, u64)>) {
    let export = service.open(&view.disks[0].export).unwrap();
    let whole = GuestOffset::new(0).range(export.disk.size());
    let mut bytes = vec![0; 8 << 20];
    export.disk.read(whole.start, &mut bytes).unwrap();
    let mut said: Vec<Vec<Stretch>> = Vec::new();
    for context in &export.contexts {
        said.push(Vec::new());
        context.describe(whole, said.last_mut().unwrap()).unwrap();
    }
    assert!(said[0] == said[1] && said[0].iter().map(|one| one.bytes).sum::<u64>() == 8 * MIB);
    let mut at = 0;
    let place = |one: &Stretch| {
        at += one.bytes;
        (one.flags == 1).then_some(((at - one.bytes) / MIB, one.bytes / MIB))
    };
    (bytes, said[0].iter().filter_map(place).collect())
}

fn layers(service: &Service) -> usize {
    service.view_disk("vm").unwrap().layers.len()
}

fn why(view: &BackupView) -> &str {
    view.disks[0].why_full.as_deref().unwrap_or_default()
}

#[test]
fn what_changed_is_what_the_layers_above_hold_and_the_export_stays_as_it_was() {
    let scene = Scene::new();
    let service = scene.start();
    let first = begin(&service, None);
    assert_eq!(look(&service, &first), (expected(&[]), vec![(0, 8)]));
    assert_eq!((end(&service, "b1"), layers(&service)), (0, 3));
    write(&service, 5 * MIB, 7);
    let second = begin(&service, Some("b1"));
    write(&service, 0, 9);
    assert_eq!(look(&service, &second), (expected(&[(5 * MIB, 7)]), vec![(5, 1)]));
    assert!(!second.disks[0].is_full && second.since == Some(first.id));
    // Over a restart, too.
    stop(service);
    let service = scene.start();
    let again = service.view_backups();
    assert_eq!(look(&service, &again[0]), (expected(&[(5 * MIB, 7)]), vec![(5, 1)]));
    assert_eq!((end(&service, &second.id), layers(&service)), (1, 3));
    assert!(service.view_backups().is_empty() && service.open("vm.b2").is_err());
    let third = begin(&service, Some(&second.id));
    assert_eq!(look(&service, &third), (expected(&[(0, 9), (5 * MIB, 7)]), vec![(0, 1)]));
    // The first point went into the second one.
    end(&service, &third.id);
    assert_eq!(why(&begin(&service, Some("b1"))), "no backup 'b1' of this disk is known");
}

#[test]
fn a_point_below_which_a_stranger_wrote_is_not_believed() {
    let scene = Scene { folder: tempfile::tempdir().unwrap(), host: Arc::new(RealHost::new()) };
    // As qemu-img makes it: no record anywhere.
    let bare = Opening::writing();
    let new =
        |parent| create::NewImage { format: Format::Qcow2, size: Some(8 * MIB), parent, options: vec![] };
    create::create(&scene.host, &scene.path("base"), &new(None), &bare).unwrap();
    let parent = NewParent { path: scene.path("base"), format: Format::Qcow2 };
    create::create(&scene.host, &scene.path("top"), &new(Some(parent)), &bare).unwrap();
    let service = scene.start();
    let id = begin(&service, None).id;
    service.end_backup(&id, true).unwrap();
    assert_eq!(why(&begin(&service, Some(&id))), "");
    end(&service, "b2");
    stop(service);
    let chain = Chain::open(&scene.host, &scene.path("base"), &bare).unwrap();
    chain.write(GuestOffset::new(MIB), &[5; 512]).unwrap();
    drop(chain);
    let service = scene.start();
    assert!(why(&begin(&service, Some("b2"))).starts_with("another program wrote"));
}

#[test]
fn a_disk_that_nobody_may_change_under_a_backup() {
    let scene = Scene::new();
    let service = scene.start();
    let view = begin(&service, None);
    let busy = [service.detach("vm", false).unwrap_err(), service.consolidate("vm", &fold(0)).unwrap_err()];
    assert!(busy.iter().all(|error| error.kind() == ErrorKind::Busy), "{busy:?}");
    let reader = service.open("vm.b1").unwrap();
    assert_eq!(service.end_backup("b1", false).unwrap_err().kind(), ErrorKind::Busy);
    assert!(reader.is_read_only && !reader.disk.is_writable());
    drop(reader);
    let named = Named { name: "vm.b1".to_owned(), ..scene.named("base") };
    assert_eq!(service.attach(&named).unwrap_err().kind(), ErrorKind::Exists);
    let both = begin(&service, Some(&view.id));
    // The other one reads the layers still.
    assert_eq!((end(&service, &both.id), end(&service, &view.id)), (0, 1));
    assert!(service.begin_backup(&["vm".to_owned(), "vm".to_owned()], None).is_err());
}

#[test]
fn a_point_in_time_of_a_person_is_not_folded() {
    let scene = Scene::new();
    let service = scene.start();
    let first = begin(&service, None);
    end(&service, &first.id);
    service.snapshot(&[SnapshotOf::qcow2("vm", Some("monday".into()))]).unwrap();
    write(&service, 6 * MIB, 3);
    let second = begin(&service, Some(&first.id));
    assert_eq!(look(&service, &second).1, [(6, 1)]);
    assert_eq!((end(&service, &second.id), layers(&service)), (0, 5));
}

/// A disk with two points below its head, of which the newer has 3 MiB, and a fold of them as `end` starts it.
fn folding(scene: &Scene) -> (Arc<Service>, Folding) {
    let service = scene.start();
    let first = begin(&service, None);
    end(&service, &first.id);
    for at in [1, 3, 6] {
        write(&service, at * MIB, 7);
    }
    let second = begin(&service, Some(&first.id));
    service.end_backup(&second.id, true).unwrap();
    write(&service, 3 * MIB, 8);
    let held = service.held("vm").unwrap();
    let request = Request { into: Some(scene.path("top")), ..Request::default() };
    let fold = LiveConsolidation::prepare_below(&scene.host, &held.disk, 1, &held.opening, &request).unwrap();
    let into = crate::base::name::FileName(scene.path("top"));
    let below =
        crate::service::book::Below { top: crate::base::name::FileName(fold.plan().top.clone()), into };
    service.book.lock().change(|written| written.with("vm", |known| known.begin_below(9, below))).unwrap();
    let folding = fold.begin(PACE).unwrap();
    (service, folding)
}

const AFTER: [(u64, u8); 3] = [(MIB, 7), (3 * MIB, 8), (6 * MIB, 7)];

fn check_served(scene: &Scene, service: &Arc<Service>) {
    for view in service.view_jobs() {
        assert!(service.job(view.id).unwrap().wait(LONG));
    }
    let held = service.held("vm").unwrap();
    let mut bytes = vec![0; 8 << 20];
    held.disk.read(GuestOffset::new(0), &mut bytes).unwrap();
    assert!(bytes == expected(&AFTER));
    drop(held);
    assert_eq!(layers(service), 3);
    write(service, 0, 4);
    let third = begin(service, Some("b2"));
    let (shown, changed) = look(service, &third);
    assert_eq!(changed, [(0, 1), (3, 1)], "{}", why(&third));
    assert!(shown == expected(&[&AFTER[..], &[(0, 4)]].concat()));
    assert!(!scene.has_journal());
}

#[test]
fn guests_go_on_while_older_points_are_folded_below_them() {
    let scene = Scene::new();
    let (service, mut folding) = folding(&scene);
    assert!(folding.step().unwrap().is_some());
    let held = service.held("vm").unwrap();
    let mut bytes = vec![0; 8 << 20];
    held.disk.read(GuestOffset::new(0), &mut bytes).unwrap();
    assert!(bytes == expected(&AFTER));
    drop(held);
    let progress = Progress::default();
    let copied = folding.copy(&progress);
    folding.finish(copied, &progress).unwrap();
    service.book.lock().change(|written| written.with("vm", |known| known.below = None)).unwrap();
    check_served(&scene, &service);
}

/// It knows the layers above it as they were: a head that came meanwhile would go with its end.
#[test]
fn nothing_begins_on_a_disk_whose_last_job_could_not_be_ended() {
    let scene = Scene::new();
    let (service, mut folding) = folding(&scene);
    assert!(folding.step().unwrap().is_some());
    let held = service.held("vm").unwrap();
    *held.stuck.lock() = Some(Box::new(folding));
    // As if it had got stuck a moment after whoever asks has looked.
    let of = [SnapshotOf::qcow2("vm", None)];
    let said = service.snapshot_by(&mut service.book.lock(), &of).map(drop);
    assert_eq!(said.unwrap_err().kind(), ErrorKind::Busy);
    held.settle().unwrap();
    service.snapshot_by(&mut service.book.lock(), &of).unwrap();
    write(&service, 0, 4);
    let mut bytes = vec![0; 8 << 20];
    held.disk.read(GuestOffset::new(0), &mut bytes).unwrap();
    assert!(bytes == expected(&[&AFTER[..], &[(0, 4)]].concat()));
}

#[test]
fn a_fold_of_points_that_was_cut_off_is_begun_again_by_the_next_start() {
    let scene = Scene::new();
    let (service, mut folding) = folding(&scene);
    assert!(folding.step().unwrap().is_some());
    folding.checkpoint().unwrap();
    drop(folding);
    let head = service.view_disk("vm").unwrap().path.0;
    stop(service);
    // The layers stand on each other meanwhile, and show what they showed.
    let name = head.file_name().unwrap().to_str().unwrap();
    assert!(scene.shown(name) == expected(&AFTER));
    check_served(&scene, &scene.start());
}

#[test]
fn a_fold_of_points_whose_record_has_landed_is_ended_by_the_next_start() {
    let scene = Scene::new();
    let (service, mut folding) = folding(&scene);
    folding.copy(&Progress::default()).unwrap();
    folding.record(&Progress::default()).unwrap();
    drop(folding);
    let head = service.view_disk("vm").unwrap().path.0;
    stop(service);
    // The head claims the epoch that the result has not got yet.
    assert!(scene.shown(head.file_name().unwrap().to_str().unwrap()) == expected(&AFTER));
    check_served(&scene, &scene.start());
}

#[test]
fn a_fold_of_points_that_was_given_up_comes_first_the_next_time() {
    let scene = Scene::new();
    let (service, mut folding) = folding(&scene);
    assert!(folding.step().unwrap().is_some());
    folding.retreat().unwrap();
    drop(folding);
    assert_eq!(service.consolidate("vm", &fold(0)).unwrap_err().kind(), ErrorKind::Busy);
    let third = begin(&service, Some("b2"));
    assert_eq!(look(&service, &third).1, [(3, 1)]);
    // One job for the older fold, another for the newer.
    assert_eq!((end(&service, &third.id), layers(&service)), (1, 4));
    let fourth = begin(&service, Some(&third.id));
    assert_eq!(look(&service, &fourth), (expected(&AFTER), vec![]));
    assert_eq!((end(&service, &fourth.id), layers(&service)), (1, 3));
    stop(service);
    assert_eq!(scene.start().refused().len(), 0);
}
