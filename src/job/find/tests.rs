//! Images with records of their own, found in a folder of many names.

use super::*;
use crate::{
    base::{ErrorKind, GuestOffset},
    disk::Disk,
    io::faulty::SimHost,
    job::{
        Progress,
        copy::{Copy, Placed, Request, Share},
        create::{NewImage, create},
        seal,
        snapshot::snapshot,
    },
};

/// A simulated machine with images in `/vm` and `/store`.
struct Scene {
    sim: SimHost,
    host: Arc<dyn Host>,
    ledger: Ledger,
}

impl Scene {
    fn new() -> Self {
        let sim = SimHost::new();
        for folder in ["/vm", "/store"] {
            sim.make_folder(Path::new(folder)).unwrap();
        }
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        Self { sim, ledger: Ledger::new(Arc::clone(&host), None), host }
    }

    /// Has `/store` hold so many names that it has an index.
    fn crowded() -> Self {
        let scene = Self::new();
        (0..MANY)
            .for_each(|number| drop(scene.sim.create(Path::new(&format!("/store/{number}.txt"))).unwrap()));
        scene
    }

    fn opening(&self) -> Opening {
        Opening::reading().with_ledger(self.ledger.clone())
    }

    /// Makes a sealed image that holds `byte`; returns what it shows.
    fn make(&self, path: &str, format: Format, byte: u8) -> ContentId {
        let path = Path::new(path);
        let options = Vec::new();
        create(
            &self.host,
            path,
            &NewImage { format, size: Some(64 << 10), parent: None, options },
            &self.opening(),
        )
        .unwrap();
        self.write(path, byte);
        let layers = seal::open_layers(&self.host, path, &self.opening()).unwrap();
        seal::seal(&self.ledger, &layers, &Progress::default()).unwrap()[0].id
    }

    fn write(&self, path: &Path, byte: u8) {
        // Another program: it asks no ledger.
        let chain = Chain::open(&self.host, path, &Opening::writing()).unwrap();
        chain.write(GuestOffset::new(512), &[byte; 512]).unwrap();
        chain.flush().unwrap();
    }

    fn find(&self, id: &str) -> Result<Vec<(PathBuf, Trust)>> {
        let found =
            find(&self.host, &self.ledger, Path::new("/store"), &id.parse().unwrap(), &self.opening())?;
        Ok(found.into_iter().map(|found| (found.path, found.trust)).collect())
    }

    fn has_index(&self) -> bool {
        self.ledger.index(Path::new("/store")).is_there()
    }

    /// Copies a head on `base` into the store; returns what was linked.
    fn copy(&self, base: &str) -> Option<PathBuf> {
        let head = PathBuf::from(format!("{base}.head"));
        snapshot(&self.host, Path::new(base), &head, &[], &self.opening().with_access(Access::Write))
            .unwrap();
        let request = Request { share: Share::Allow, ..Request::default() };
        let copy =
            Copy::prepare(&self.host, &self.ledger, (&head, Path::new("/store")), &self.opening(), request)
                .unwrap();
        let linked = copy.plan().layers.iter().find_map(|placed| match placed {
            Placed::Link { to, .. } => Some(to.clone()),
            _ => None,
        });
        copy.run(&Progress::default()).unwrap();
        linked
    }
}

#[test]
fn cid_9_an_image_is_found_among_many_by_its_id_or_how_that_starts() {
    for (scene, has_index) in [(Scene::new(), false), (Scene::crowded(), true)] {
        let id = scene.make("/store/one.qcow2", Format::Qcow2, 1);
        let other = scene.make("/store/other.raw", Format::Raw, 2);
        scene.make("/store/twin.raw", Format::Raw, 1);
        let places = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| (Path::new("/store").join(name), Trust::Trusted)).collect()
        };
        assert_eq!(scene.find(&id.to_string()).unwrap(), places(&["one.qcow2", "twin.raw"]));
        assert_eq!(scene.find(&other.short()).unwrap(), places(&["other.raw"]));
        assert_eq!(scene.find("c1:0123456789").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(scene.has_index(), has_index);
    }
}

#[test]
fn cid_9_the_index_of_a_store_finds_what_a_copy_links_to() {
    let scene = Scene::crowded();
    scene.make("/store/golden.qcow2", Format::Qcow2, 1);
    scene.make("/vm/base", Format::Qcow2, 1);
    assert_eq!(scene.copy("/vm/base"), Some("/store/golden.qcow2".into()));
    assert!(scene.has_index());
    // What came since, by whatever program, is found as well.
    scene.make("/store/later.raw", Format::Raw, 2);
    scene.make("/vm/second", Format::Raw, 2);
    assert_eq!(scene.copy("/vm/second"), Some("/store/later.raw".into()));
    scene.make("/vm/third", Format::Raw, 3);
    assert_eq!(scene.copy("/vm/third"), None);
}

#[test]
fn cid_9_what_a_foreign_writer_changed_is_found_and_not_linked() {
    let scene = Scene::crowded();
    let id = scene.make("/store/golden.qcow2", Format::Qcow2, 1);
    assert_eq!(scene.find(&id.to_string()).unwrap().len(), 1);
    scene.write(Path::new("/store/golden.qcow2"), 9);
    let found = scene.find(&id.to_string()).unwrap();
    assert!(matches!(found.as_slice(), [(_, Trust::Doubted(_))]), "{found:?}");
    scene.make("/vm/base", Format::Qcow2, 1);
    assert_eq!(scene.copy("/vm/base"), None);
}

/// Somebody who could write the index could say anything there.
#[test]
fn cid_9_an_index_that_lies_is_not_believed() {
    let scene = Scene::crowded();
    let id = scene.make("/store/golden.qcow2", Format::Qcow2, 1);
    scene.make("/store/other.qcow2", Format::Qcow2, 2);
    let lie = |path: &Path| Ok(path.ends_with("other.qcow2").then_some(id));
    scene.ledger.index(Path::new("/store")).refresh(&lie).unwrap();
    let index = scene.ledger.index(Path::new("/store"));
    let said = index.offers(&id, &|other| *other == id, usize::MAX).unwrap();
    assert_eq!(said, [(id, PathBuf::from("/store/other.qcow2"))]);
    assert_eq!(scene.find(&id.to_string()).unwrap_err().kind(), ErrorKind::NotFound);
    scene.make("/vm/base", Format::Qcow2, 1);
    assert_eq!(scene.copy("/vm/base"), None);
}
