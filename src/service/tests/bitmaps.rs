//! Dirty bitmaps of a disk in use: what records goes on recording, and is right whatever happens to the service.

use super::*;
use std::path::Path;

use crate::{
    export::{Exports, Stretch},
    format::BitmapEdit,
    job::bitmap,
};

/// A disk whose head has the bitmap `daily`.
fn scene() -> Scene {
    let scene = Scene::new();
    let add = BitmapEdit::Add { name: "daily".to_owned(), granularity_bytes: Some(MIB) };
    bitmap::change(&scene.host, &scene.path("top"), &scene.opening(), |image| image.edit_bitmap(&add))
        .unwrap();
    scene
}

/// What the stored bitmap says: which MiB are dirty; `None`: it is in use.
fn stored(scene: &Scene) -> Option<u8> {
    let opening = scene.opening().with_access(Access::Read);
    let layer = crate::chain::open_layer(&scene.host, &scene.path("top"), &opening).unwrap();
    layer.image.bitmap("daily").ok().map(|bits| bits.bytes()[0])
}

#[test]
fn a_bitmap_goes_on_recording_and_is_sound_after_a_stop() {
    let scene = scene();
    let service = scene.start();
    write(&service, 3 * MIB, 7);
    let export = service.open("vm").unwrap();
    let mut said = Vec::new();
    assert_eq!(export.contexts[0].name(), "qemu:dirty-bitmap:daily");
    export.contexts[0].describe(GuestOffset::new(2 * MIB).range(3 * MIB), &mut said).unwrap();
    assert_eq!(said, [(MIB, 0), (MIB, 1), (MIB, 0)].map(|(bytes, flags)| Stretch { bytes, flags }));
    drop(export);
    stop(service);
    assert_eq!(stored(&scene), Some(0b1000));
    // It adds to what was there; a disk that is only looked at says nothing new.
    let service = scene.start();
    service.held("vm").unwrap().disk.zero(GuestOffset::new(5 * MIB).range(MIB), Kept::Nothing).unwrap();
    service.detach("vm", false).unwrap();
    assert_eq!(stored(&scene), Some(0b10_1000));
    drop(service);
    stop(scene.start());
    assert_eq!(stored(&scene), Some(0b10_1000));
}

#[test]
fn a_bitmap_survives_a_kill_and_names_no_less() {
    let scene = scene();
    let service = scene.start();
    write(&service, 3 * MIB, 7);
    // Killed: nobody stops it. The whole region counts, which is larger than this disk.
    drop(service);
    assert_eq!(stored(&scene), Some(0xff));
    let service = scene.start();
    write(&service, 5 * MIB, 7);
    stop(service);
    assert_eq!(stored(&scene), Some(0xff));
}

#[test]
fn a_bitmap_of_a_layer_that_froze_under_its_guest_stands_there() {
    let scene = scene();
    let service = scene.start();
    write(&service, 3 * MIB, 7);
    service.snapshot(&[SnapshotOf::qcow2("vm", Some("monday".into()))]).unwrap();
    write(&service, 4 * MIB, 7);
    stop(service);
    assert_eq!(stored(&scene), Some(0xff));
    // Nothing was written to that layer since.
    assert_eq!(scene.start().refused().len(), 0);
}

#[test]
fn a_disk_that_went_back_is_dirty_all_over() {
    let scene = scene();
    let service = scene.start();
    service.revert("vm", Path::new("base"), false).unwrap();
    let held = service.held("vm").unwrap();
    assert_eq!(held.disk.recorders()[0].bits().bytes(), [0xff]);
}
