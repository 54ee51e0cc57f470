//! Names of disks and of new heads: what can be listed, and what can last.

use super::*;
use crate::service::snapshot::fresh_name;

#[test]
fn a_disk_has_a_name_that_fits_into_the_list_of_exports() {
    let scene = Scene::new();
    let service = Service::start(scene.settings(), &[]).unwrap();
    let called = |bytes| Named { name: "n".repeat(bytes), ..scene.named("top") };
    assert_eq!(service.attach(&called(1025)).unwrap_err().kind(), ErrorKind::Invalid);
    service.attach(&called(1024)).unwrap();
    stop(service);
}

#[test]
fn a_new_head_has_a_name_that_can_last() {
    let scene = Scene::new();
    let service = scene.start();
    let take = |new: &str| {
        service
            .snapshot(&[SnapshotOf::qcow2("vm", Some(new.into()))])
            .map(|taken| taken.taken[0].head.clone())
    };
    for bad in ["", "..", ".dchain", ".x.dchain-draft-1"] {
        assert_eq!(take(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
    std::fs::create_dir(scene.path("sub")).unwrap();
    assert_eq!(take("sub/../next").unwrap(), scene.path("next"));
    // Several in a second have names of their own.
    for _ in 0..3 {
        service.snapshot(&[SnapshotOf::qcow2("vm", None)]).unwrap();
    }
    assert_eq!(service.view_disk("vm").unwrap().layers.len(), 6);
    stop(service);
    let names = ["a b", "a_b"].map(|disk| fresh_name(disk, "", Format::Qcow2));
    assert_ne!(names[0], names[1]);
    assert!(fresh_name(&"\u{fc}".repeat(300), "", Format::Qcow2).as_os_str().len() < 200);
}

#[test]
fn a_name_is_free_again_once_its_disk_is_forgotten() {
    let scene = Scene::new();
    let service = Service::start(scene.settings(), &[]).unwrap();
    service.attach(&scene.named("top")).unwrap();
    service.snapshot(&[SnapshotOf::qcow2("vm", None)]).unwrap();
    service.detach("vm", false).unwrap();
    let other = Named { is_read_only: true, ..scene.named("base") };
    assert_eq!(service.attach(&other).unwrap_err().kind(), ErrorKind::Policy);
    service.detach("vm", false).unwrap();
    assert_eq!(service.detach("vm", false).unwrap_err().kind(), ErrorKind::NotFound);
    service.attach(&other).unwrap();
    stop(service);
}

#[test]
fn a_disk_that_the_book_has_elsewhere_is_not_served() {
    let scene = Scene::new();
    let service = scene.start();
    stop(service);
    let service = Service::start(scene.settings(), &[scene.named("base")]).unwrap();
    let refused = service.refused();
    assert_eq!(refused[0].1.kind(), ErrorKind::Policy);
    assert!(!service.view_disk("vm").unwrap().is_served);
    // A person may say that it is meant.
    service.detach("vm", false).unwrap();
    assert_eq!(service.attach(&scene.named("nothing")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn attached_disks_come_back_and_detached_ones_do_not() {
    let scene = Scene::new();
    let start = || Service::start(scene.settings(), &[]).unwrap();
    let service = start();
    service.attach(&scene.named("top")).unwrap();
    assert_eq!(service.attach(&scene.named("top")).unwrap_err().kind(), ErrorKind::Exists);
    let other = Service::start(scene.settings(), &[]);
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Busy);
    stop(service);
    let service = start();
    let guest = service.held("vm").unwrap().disk.clone();
    guest.zero(GuestOffset::new(0).range(MIB), Kept::Nothing).unwrap();
    assert_eq!(service.detach("vm", false).unwrap_err().kind(), ErrorKind::Busy);
    drop(guest);
    service.detach("vm", false).unwrap();
    assert!(scene.shown("top") == expected(&[(0, 0)]));
    drop(service);
    assert!(start().view_disks().is_empty());
}

#[test]
fn a_disk_whose_head_takes_the_targets_name_is_found_under_it() {
    let scene = Scene::new();
    let service = scene.start();
    let request = Request { keeps_target_name: true, ..Request::default() };
    let job = service.consolidate("vm", &FoldRequest { request, ..FoldRequest::default() }).unwrap();
    assert!(job.wait(LONG));
    write(&service, 0, 7);
    stop(service);
    assert!(!scene.path("top").exists());
    // The command line still names the first head.
    let service = scene.start();
    assert_eq!(service.view_disk("vm").unwrap().path.0, scene.path("base"));
    stop(service);
    assert!(scene.shown("base") == expected(&[(0, 7)]));
}
