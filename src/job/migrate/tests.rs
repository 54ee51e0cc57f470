//! Disks in use that go to another store, on a simulated machine. The laboratory cuts the power at every step.

use super::*;
use crate::{
    base::GuestOffset,
    disk::Disk,
    io::faulty::SimHost,
    job::{
        consolidate::{Abandonment, LivePace, Patience},
        create::{self, create},
        rebase::NewParent,
        seal::open_layers,
    },
};

const SIZE: u64 = 64 << 10;
const PACE: LivePace = LivePace {
    block_bytes: 4096,
    mark_bytes: 6000,
    mark_pause: std::time::Duration::ZERO,
    share: 1.0,
    patience: Patience::Endless,
};

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn opening(host: &SimHost) -> Opening {
    Opening::writing().with_ledger(Ledger::new(arc(host), None)).for_live_use()
}

fn vm(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

fn there(name: &str) -> PathBuf {
    Path::new("/there").join(name)
}

fn make(host: &SimHost, name: &str, parent: Option<&str>, byte: u8) {
    let parent = parent.map(|name| NewParent { path: vm(name), format: Format::Qcow2 });
    let options = vec![("cluster_size".to_owned(), "1024".to_owned())];
    let new = create::NewImage { format: Format::Qcow2, size: Some(SIZE), parent, options };
    let how = Opening::writing().with_ledger(Ledger::new(arc(host), None));
    create(&arc(host), &vm(name), &new, &how).unwrap();
    let chain = Chain::open(&arc(host), &vm(name), &how).unwrap();
    chain.write(GuestOffset::new(u64::from(byte) * 4096), &[byte; 9000]).unwrap();
    chain.flush().unwrap();
}

/// `/vm/base` <- `/vm/mid` <- `/vm/top`, open, and the folder `/there`.
fn scene() -> (SimHost, Arc<LiveDisk>) {
    let host = SimHost::new();
    host.make_folder(Path::new("/vm")).unwrap();
    host.make_folder(Path::new("/there")).unwrap();
    make(&host, "base", None, 1);
    make(&host, "mid", Some("base"), 2);
    make(&host, "top", Some("mid"), 3);
    let chain = Chain::open(&arc(&host), &vm("top"), &opening(&host)).unwrap();
    (host, Arc::new(LiveDisk::new(chain)))
}

fn request(removes_source: bool) -> Request {
    Request { store: "/there".into(), removes_source, ..Request::default() }
}

fn shown(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(GuestOffset::new(0), &mut bytes).unwrap();
    bytes
}

fn names(host: &SimHost, folder: &str) -> Vec<String> {
    let entries = host.list(Path::new(folder)).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.iter().map(|entry| name(&entry.path)).filter(|name| !name.starts_with('.')).collect()
}

fn paths(disk: &LiveDisk) -> Vec<PathBuf> {
    disk.chain().layers().iter().map(|layer| layer.path.clone()).collect()
}

/// The whole move, with guests' writes before and after each part; returns bytes that were brought below the head.
fn go(host: &SimHost, disk: &Arc<LiveDisk>, request: &Request) {
    let migration = Migration::prepare(&arc(host), disk, &opening(host), request).unwrap();
    let below = migration.bring(&Progress::default()).unwrap();
    disk.write(GuestOffset::new(30_000), &[7; 600]).unwrap();
    let mut folding = migration.fold(&below).unwrap().begin(PACE).unwrap();
    // Part of a cluster that the head does not hold: what lies below it comes from the store's own layer.
    disk.write(GuestOffset::new(4096 + 100), &[8; 10]).unwrap();
    folding.copy(&Progress::default()).unwrap();
    disk.write(GuestOffset::new(2 * 4096 + 700), &[9; 10]).unwrap();
    folding.finish(Ok(()), &Progress::default()).unwrap();
    disk.write(GuestOffset::new(50_000), &[10; 10]).unwrap();
}

fn expected(before: &[u8]) -> Vec<u8> {
    let mut all = before.to_vec();
    for (at, bytes, byte) in [(30_000, 600, 7), (4196, 10, 8), (8892, 10, 9), (50_000, 10, 10)] {
        all[at..at + bytes].fill(byte);
    }
    all
}

#[test]
fn a_disk_goes_to_an_empty_store_and_its_old_head_is_kept_aside() {
    let (host, disk) = scene();
    let before = shown(disk.as_ref());
    go(&host, &disk, &request(false));
    assert_eq!(paths(&disk), ["top", "mid", "base"].map(there));
    assert!(shown(disk.as_ref()) == expected(&before));
    disk.flush().unwrap();
    drop(disk);
    assert_eq!(names(&host, "/vm"), ["base", "mid", "top.moved"]);
    assert_eq!(names(&host, "/there"), ["base", "mid", "top"]);
    let again = Chain::open(&arc(&host), &there("top"), &opening(&host)).unwrap();
    assert!(shown(&again) == expected(&before));
    let old = Chain::open(&arc(&host), &vm("top.moved"), &opening(&host)).unwrap();
    assert!(shown(&old)[50_000] != 10);
}

#[test]
fn what_the_store_has_is_linked_and_what_it_has_no_layer_for_stays() {
    let (host, disk) = scene();
    let before = shown(disk.as_ref());
    // A flat image that shows what `mid` shows.
    let mid = Chain::open(&arc(&host), &vm("mid"), &opening(&host).with_access(Access::Read)).unwrap();
    let new = (Format::Qcow2, [].as_slice(), false);
    crate::job::convert::convert(&arc(&host), &mid.view(0), &there("flat"), new, &Progress::default())
        .unwrap();
    drop(mid);
    let layers = open_layers(&arc(&host), &there("flat"), &Opening::reading()).unwrap();
    seal::seal(&Ledger::new(arc(&host), None), &layers, &Progress::default()).unwrap();
    drop(layers);
    go(&host, &disk, &request(true));
    assert_eq!(paths(&disk), ["top", "flat"].map(there));
    assert!(shown(disk.as_ref()) == expected(&before));
    // The base's point in time is nowhere else.
    assert_eq!(
        (names(&host, "/vm"), names(&host, "/there")),
        (vec!["base".into()], vec!["flat".into(), "top".into()])
    );
}

#[test]
fn with_remove_source_nothing_is_left_but_what_others_need() {
    for has_sibling in [false, true] {
        let (host, disk) = scene();
        if has_sibling {
            make(&host, "other", Some("base"), 5);
        }
        go(&host, &disk, &request(true));
        let left: &[&str] = if has_sibling { &["base", "other"] } else { &[] };
        assert_eq!(names(&host, "/vm"), left);
        assert_eq!(names(&host, "/there"), ["base", "mid", "top"]);
    }
}

#[test]
fn a_plan_says_what_has_to_be_hashed_and_then_what_is_linked() {
    let (host, disk) = scene();
    let plan = |host: &SimHost| {
        Migration::prepare(&arc(host), &disk, &opening(host), &request(false)).map(|m| m.plan().clone())
    };
    let first = plan(&host).unwrap();
    assert_eq!((first.unsealed, first.layers), (vec![vm("mid"), vm("base")], vec![]));
    assert_eq!((first.aside, first.removed), (Some(vm("top.moved")), vec![]));
    let migration = Migration::prepare(&arc(&host), &disk, &opening(&host), &request(false)).unwrap();
    migration.bring(&Progress::default()).unwrap();
    // Given up: what is whole stays, and is found by what it shows.
    migration.give_up().unwrap();
    assert_eq!(names(&host, "/there"), ["base", "mid"]);
    let second = plan(&host).unwrap();
    assert!(second.unsealed.is_empty() && second.copy_bytes == 0);
    let [Placed::Link { from, to, .. }] = second.layers.as_slice() else { panic!("{:?}", second.layers) };
    assert_eq!((from, to), (&vm("mid"), &there("mid")));
    host.create(&there("top")).unwrap();
    assert_eq!(plan(&host).unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn a_store_that_is_none_is_refused() {
    let (host, disk) = scene();
    for (store, kind) in
        [("/vm", ErrorKind::Invalid), ("/nowhere", ErrorKind::Invalid), ("/vm/base", ErrorKind::Invalid)]
    {
        let request = Request { store: store.into(), ..Request::default() };
        let refused = Migration::prepare(&arc(&host), &disk, &opening(&host), &request);
        assert_eq!(refused.unwrap_err().kind(), kind, "{store}");
    }
}

#[test]
fn a_move_that_is_given_up_leaves_the_disk_as_it_was() {
    let (host, disk) = scene();
    let before = shown(disk.as_ref());
    let migration = Migration::prepare(&arc(&host), &disk, &opening(&host), &request(false)).unwrap();
    let below = migration.bring(&Progress::default()).unwrap();
    let mut folding = migration.fold(&below).unwrap().begin(PACE).unwrap();
    folding.step().unwrap();
    disk.write(GuestOffset::new(30_000), &[7; 600]).unwrap();
    folding.retreat().unwrap();
    assert!(shown(disk.as_ref())[..30_000] == before[..30_000] && shown(disk.as_ref())[30_001] == 7);
    assert_eq!(
        (names(&host, "/vm"), names(&host, "/there")),
        (vec!["base".into(), "mid".into(), "top".into()], vec!["base".into(), "mid".into()])
    );
    go(&host, &disk, &request(false));
    assert_eq!(paths(&disk), ["top", "mid", "base"].map(there));
}

/// The program ends right after the record, and then the store is away: guests may have written there.
#[test]
fn a_move_that_may_be_recorded_is_not_given_up_by_the_disks_name_while_the_store_is_away() {
    let (host, disk) = scene();
    let migration = Migration::prepare(&arc(&host), &disk, &opening(&host), &request(false)).unwrap();
    let below = migration.bring(&Progress::default()).unwrap();
    let mut folding = migration.fold(&below).unwrap().begin(PACE).unwrap();
    folding.copy(&Progress::default()).unwrap();
    folding.record(&Progress::default()).unwrap();
    drop((folding, below, migration, disk));
    host.rename_new(&there("top"), Path::new("/away")).unwrap();
    let journal = Journal::find(&arc(&host), &vm("top")).unwrap().unwrap().path().to_path_buf();
    let how = Opening::reading().with_ledger(Ledger::new(arc(&host), None));
    let refused = Abandonment::prepare(&arc(&host), &vm("top"), &how).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert!(refused.what().contains(&format!("--abandon {}", journal.display())), "{refused}");
    // Whoever knows that it never comes back names the journal.
    Abandonment::prepare(&arc(&host), &journal, &how).unwrap().run().unwrap();
    assert!(Journal::find(&arc(&host), &vm("top")).unwrap().is_none());
}

#[test]
fn an_old_head_gets_the_first_free_name_however_long_its_own_is() {
    let long = "x".repeat(255);
    let names: Vec<_> = aside(&vm(&long)).collect();
    assert!(names.iter().all(|name| name.file_name().unwrap().len() <= 255), "{names:?}");
    let (host, disk) = scene();
    let plan =
        || Migration::prepare(&arc(&host), &disk, &opening(&host), &request(false)).map(|m| m.plan().clone());
    let names: Vec<_> = aside(&vm("top")).collect();
    drop(host.create(&names[0]).unwrap());
    assert_eq!(plan().unwrap().aside.as_ref(), Some(&names[1]));
    for name in &names[1..] {
        drop(host.create(name).unwrap());
    }
    assert_eq!(plan().unwrap_err().kind(), ErrorKind::Exists);
}
