//! What a disk in use stands on is leased: other processes see who has it.

use super::*;
use crate::store::leases;

#[test]
fn cid_5_the_layers_of_a_disk_in_use_are_leased_as_long_as_it_stands_on_them() {
    let scene = Scene::new();
    let service = scene.start();
    let folder = scene.path("");
    let used = |name: &str| {
        let file = scene.host.witness(&scene.path(name)).unwrap();
        let all = leases(scene.host.as_ref(), &folder).unwrap();
        all.iter().filter(|used| used.means(&file)).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(matches!(used("base").as_slice(), [one] if one.ends_with(": disk 'vm'")), "{:?}", used("base"));
    assert_eq!(used("top"), Vec::<String>::new());
    service.snapshot(&[SnapshotOf::qcow2("vm", Some("next".into()))]).unwrap();
    assert_eq!((used("base").len(), used("top").len(), used("next").len()), (1, 1, 0));
    // What the disk itself has leased does not keep it from being folded.
    let job = service.consolidate("vm", &FoldRequest::default()).unwrap();
    assert!(job.wait(LONG));
    assert_eq!(job.state(), JobState::Concluded);
    assert_eq!(scene.host.kind(&scene.path("base")).unwrap(), None);
    assert_eq!(leases(scene.host.as_ref(), &folder).unwrap().len(), 0);
    stop(service);
    assert_eq!(scene.host.list(&folder.join(".dchain/leases")).unwrap(), []);
}
