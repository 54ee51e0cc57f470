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
            .snapshot(&[SnapshotOf { disk: "vm".to_owned(), new: Some(new.into()) }])
            .map(|taken| taken.taken[0].head.clone())
    };
    for bad in ["", "..", ".dchain", ".x.dchain-draft-1"] {
        assert_eq!(take(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
    std::fs::create_dir(scene.path("sub")).unwrap();
    assert_eq!(take("sub/../next").unwrap(), scene.path("next"));
    // Several in a second have names of their own.
    for _ in 0..3 {
        service.snapshot(&[SnapshotOf { disk: "vm".to_owned(), new: None }]).unwrap();
    }
    assert_eq!(service.view_disk("vm").unwrap().layers.len(), 6);
    stop(service);
    let names = ["a b", "a_b"].map(|disk| fresh_name(disk, ""));
    assert_ne!(names[0], names[1]);
    assert!(fresh_name(&"\u{fc}".repeat(300), "").as_os_str().len() < 200);
}
