//! Whole copies on a simulated machine: the power goes at every point, again during the resume; each I/O fails
//! once. What has a name at the target is whole at every moment, and the copy ends when it is asked for again.

use super::*;
use crate::{
    base::GuestOffset,
    disk::Disk,
    format::{Creation, Format, NoParts},
    io::faulty::{Failure, Fault, SimHost, crash_states},
    job::{cuts, seal, snapshot::snapshot},
};

mod hierarchies;
mod races;
mod reformat;

const SIZE: u64 = 20 << 10;
pub(in crate::job) const NAMES: [&str; 3] = ["base", "middle", "top"];

/// A disk of three layers in `/vm`, to be copied to `/store`.
#[derive(Clone, Copy)]
pub(in crate::job) struct Scene {
    pub(in crate::job) base: Format,
    /// Whether the target has an image that shows what `middle` shows.
    pub(in crate::job) is_shelved: bool,
}

pub(in crate::job) const PLAIN: Scene = Scene { base: Format::Raw, is_shelved: false };

/// What the source's names show, in the order of [`NAMES`].
pub(in crate::job) type Views = [Vec<u8>; 3];

pub(in crate::job) fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

pub(in crate::job) fn opening(host: &SimHost) -> Opening {
    Opening::reading().with_ledger(Ledger::new(arc(host), None))
}

fn small() -> Vec<(String, String)> {
    vec![("cluster_size".to_owned(), "1024".to_owned())]
}

/// The machine with everything on its disk, switched on again.
pub(in crate::job) fn again(host: &SimHost) -> SimHost {
    // One change that waits: the last state of the trace has it, and all before it.
    drop(host.create(Path::new("/waits")).unwrap());
    host.remove(Path::new("/waits")).unwrap();
    crash_states(&host.trace(), 0, 0).last().unwrap().host
}

fn put(host: &SimHost, name: &str, writes: &[(u64, usize, u8)]) {
    let how = opening(host).with_access(Access::Write);
    let chain = Chain::open(&arc(host), Path::new(name), &how).unwrap();
    for (at, bytes, byte) in writes {
        chain.write(GuestOffset::new(*at), &vec![*byte; *bytes]).unwrap();
    }
    chain.flush().unwrap();
}

pub(in crate::job) fn view(host: &SimHost, path: &Path) -> Result<Vec<u8>> {
    let chain = Chain::open(&arc(host), path, &opening(host))?;
    let mut bytes = vec![0xee; usize::try_from(chain.size()).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

pub(in crate::job) fn is_there(host: &SimHost, path: &str) -> bool {
    host.kind(Path::new(path)).unwrap().is_some()
}

/// Seals the source, and puts `middle`'s content into the target's folder under another name.
fn shelve(host: &SimHost, middle: &[u8]) {
    let golden = host.create(Path::new("/store/golden")).unwrap();
    let creation = Creation { size: SIZE, parent: None, options: small() };
    let image = format::create(Format::Qcow2, golden, &creation, &NoParts).unwrap();
    image.write(GuestOffset::new(0), middle, &crate::format::Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    for path in ["/vm/middle", "/store/golden"] {
        let layers = seal::open_layers(&arc(host), Path::new(path), &opening(host)).unwrap();
        seal::seal(&Ledger::new(arc(host), None), &layers, &Progress::default()).unwrap();
    }
}

fn copy(host: &SimHost) -> Result<Report> {
    let paths = (Path::new("/vm/top"), Path::new("/store"));
    let ledger = Ledger::new(arc(host), None);
    Copy::prepare(&arc(host), &ledger, paths, &opening(host), Request::default())?.run(&Progress::default())
}

/// Whatever has a name is whole, and stands on what is whole.
fn check_names(host: &SimHost, views: &Views, story: &str) {
    for (name, expected) in NAMES.iter().zip(views) {
        let place = Path::new("/store").join(name);
        if host.kind(&place).unwrap().is_some() {
            let shown = view(host, &place).unwrap_or_else(|e| panic!("{story}: {name}: {e}"));
            assert!(shown == *expected, "{story}: {name} shows something else");
        }
        let source = view(host, &Path::new("/vm").join(name)).unwrap();
        assert!(source == *expected, "{story}: the source's {name} has changed");
    }
}

impl Scene {
    pub(in crate::job) fn build(self) -> (SimHost, Views) {
        let host = SimHost::new();
        for folder in ["/vm", "/store"] {
            host.make_folder(Path::new(folder)).unwrap();
        }
        let options = if self.base == Format::Qcow2 { small() } else { vec![] };
        let creation = Creation { size: SIZE, parent: None, options };
        let base = host.create(Path::new("/vm/base")).unwrap();
        drop(format::create(self.base, base, &creation, &NoParts).unwrap());
        put(&host, "/vm/base", &[(0, 6000, 1), (10_000, 7000, 1)]);
        for (parent, child, at) in [("/vm/base", "/vm/middle", 3000), ("/vm/middle", "/vm/top", 8000)] {
            snapshot(&arc(&host), Path::new(parent), Path::new(child), &small(), &opening(&host)).unwrap();
            put(&host, child, &[(at, 2000, 2), (at + 9000, 600, 3)]);
        }
        let views = NAMES.map(|name| view(&host, &Path::new("/vm").join(name)).unwrap());
        if self.is_shelved {
            shelve(&host, &views[1]);
        }
        (again(&host), views)
    }

    /// The names that the copy makes.
    fn copied(self) -> &'static [&'static str] {
        if self.is_shelved { &NAMES[2..] } else { &NAMES }
    }

    fn check_end(self, host: &SimHost, views: &Views, story: &str) {
        check_names(host, views, story);
        let mut names: Vec<String> = host
            .list(Path::new("/store"))
            .unwrap()
            .iter()
            .map(|entry| entry.path.file_name().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name != ".dchain" && name != "golden")
            .collect();
        names.sort();
        // What cannot be read is no match: then all layers are copied.
        let is_unmatched = self.is_shelved && names == NAMES;
        assert!(names == self.copied() || is_unmatched, "{story}: {names:?}");
        let notes = host.list(Path::new("/store/.dchain")).unwrap();
        let is_note = |path: &Path| path.file_name().unwrap().to_str().unwrap().starts_with("copy-");
        assert!(!notes.iter().any(|entry| is_note(&entry.path)), "{story}: a note is left");
        for name in self.copied().iter().filter(|name| **name != "base" || self.base == Format::Qcow2) {
            let file = host.open(&Path::new("/store").join(name), Access::Read).unwrap();
            let checked = format::check(Format::Qcow2, file, format::Repair::Nothing, &NoParts).unwrap();
            assert_eq!(checked.corruptions + checked.leaks, 0, "{story}: {name}: {:?}", checked.findings);
        }
    }
}

/// Asks for the copy again. That the head is there is an answer only if nothing is left to be done.
fn finish(host: &SimHost, story: &str) {
    match copy(host) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::Exists && is_there(host, "/store/top") => {}
        Err(e) => panic!("{story}: the resume failed: {e}"),
    }
}

fn crash_everywhere(scene: Scene, samples: u64, second_every: usize) -> usize {
    let (host, views) = scene.build();
    copy(&host).unwrap();
    scene.check_end(&host, &views, "without a crash");
    let check = |host: &SimHost, story: &str| check_names(host, &views, story);
    let end = |host: &SimHost, story: &str| {
        finish(host, story);
        scene.check_end(host, &views, story);
    };
    let cuts = cuts::everywhere(&host, (samples, second_every), check, end);
    println!("{cuts} power cuts");
    cuts
}

#[test]
fn cid_7_power_cuts_of_a_copy() {
    assert!(crash_everywhere(PLAIN, 1, 13) > 300);
}

#[test]
fn cid_7_power_cuts_of_a_copy_of_a_qcow2_base() {
    assert!(crash_everywhere(Scene { base: Format::Qcow2, ..PLAIN }, 1, 17) > 200);
}

#[test]
fn cid_7_power_cuts_of_a_copy_that_links() {
    assert!(crash_everywhere(Scene { is_shelved: true, ..PLAIN }, 1, 5) > 100);
}

#[test]
fn cid_7_each_failing_io_is_reported_and_the_next_life_ends_the_copy() {
    for (scene, failure, step) in [
        (PLAIN, Failure::Io, 1),
        (PLAIN, Failure::NoSpace, 1),
        (PLAIN, Failure::Short, 3),
        (Scene { is_shelved: true, ..PLAIN }, Failure::Io, 1),
    ] {
        let (host, views) = scene.build();
        let (whole, mut failed) = (again(&host), 0);
        let before = whole.ios();
        copy(&whole).unwrap();
        for at in (before..whole.ios()).step_by(step) {
            let machine = again(&host);
            machine.fail(Some(Fault { at, is_lasting: at % 2 == 0, failure }));
            let story = format!("{failure:?} at I/O {at} of {}", whole.ios());
            let outcome = copy(&machine);
            machine.fail(None);
            if let Err(error) = outcome {
                failed += 1;
                assert_ne!(error.kind(), ErrorKind::Corrupt, "{story}: {error}");
                check_names(&machine, &views, &story);
                finish(&machine, &story);
            }
            scene.check_end(&machine, &views, &story);
        }
        println!("{failed} of {} failures stopped the copy", whole.ios() - before);
        assert!(failed > 15);
    }
}

/// What a program does that has forgotten a barrier: some power cut shows it.
#[test]
fn cid_7_a_copy_without_its_barriers_is_caught() {
    let (host, views) = PLAIN.build();
    let whole = again(&host);
    whole.begin_operation(None);
    copy(&whole).unwrap();
    let goes_wrong = |dropped| {
        let machine = again(&host);
        machine.begin_operation(Some(dropped));
        copy(&machine).unwrap();
        crash_states(&machine.trace(), 7, 0).step_by(5).any(|crash| {
            let life = || {
                check_names(&crash.host, &views, "");
                finish(&crash.host, "");
                PLAIN.check_end(&crash.host, &views, "");
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).is_err()
        })
    };
    // What goes wrong here is wanted, and not worth a line each.
    std::panic::set_hook(Box::new(|_| {}));
    let noticed: Vec<u64> = (0..whole.barriers()).filter(|dropped| goes_wrong(*dropped)).collect();
    println!("{noticed:?} of {} barriers are missed", whole.barriers());
    // At least the flush of each layer before its name.
    assert!(noticed.len() >= 3, "{noticed:?}");
}
