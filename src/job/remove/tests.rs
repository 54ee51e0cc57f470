//! Removals on a simulated machine: what others need stays, and a power cut leaves whole chains.

use super::*;
use crate::{
    base::GuestOffset,
    chain::Chain,
    disk::Disk,
    format::Format,
    io::faulty::SimHost,
    job::{
        Progress,
        create::{NewImage, create},
        cuts, seal,
        snapshot::snapshot,
    },
    store::{Lease, Purpose},
};

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

fn opening(host: &SimHost) -> Opening {
    Opening::reading().with_ledger(ledger(host))
}

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

/// base <- middle <- top, and other on base.
fn machine() -> SimHost {
    let host = SimHost::new();
    host.make_folder(Path::new("/vm")).unwrap();
    let small = vec![("cluster_size".to_owned(), "512".to_owned())];
    let new = NewImage { format: Format::Qcow2, size: Some(8 << 10), parent: None, options: small.clone() };
    create(&arc(&host), &path("base"), &new, &opening(&host)).unwrap();
    for (below, above) in [("base", "middle"), ("middle", "top"), ("base", "other")] {
        snapshot(&arc(&host), &path(below), &path(above), &small, &opening(&host)).unwrap();
        let chain =
            Chain::open(&arc(&host), &path(above), &opening(&host).with_access(Access::Write)).unwrap();
        chain.write(GuestOffset::new(0), &[3; 700]).unwrap();
        chain.flush().unwrap();
    }
    for folder in ["/vm/.dchain/notes", "/vm/.dchain", "/vm", "/"] {
        host.sync_folder(Path::new(folder)).unwrap();
    }
    host.twin()
}

fn prepare(host: &SimHost, names: &[&str]) -> Result<Remove> {
    let images: Vec<PathBuf> = names.iter().map(|name| path(name)).collect();
    Remove::prepare(&arc(host), &ledger(host), &images, &opening(host), false)
}

fn why_not(host: &SimHost, names: &[&str]) -> String {
    let error = prepare(host, names).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    error.to_string()
}

#[test]
fn what_others_lie_on_stays_and_images_on_each_other_go_together() {
    let host = machine();
    assert!(why_not(&host, &["middle"]).contains("/vm/top lies on it"));
    assert!(why_not(&host, &["base", "middle", "top"]).contains("/vm/other lies on it"));
    let all = prepare(&host, &["base", "other", "top", "middle", "./top"]).unwrap();
    let order = &all.plan().images;
    let at = |name: &str| order.iter().position(|image| *image == path(name)).unwrap();
    assert_eq!(order.len(), 4);
    assert!(at("top") < at("middle") && at("middle") < at("base") && at("other") < at("base"), "{order:?}");
    all.run().unwrap();
    let left: Vec<_> = host.list(Path::new("/vm")).unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(left, [path(".dchain")]);
    assert_eq!(host.list(Path::new("/vm/.dchain/notes")).unwrap(), []);
}

#[test]
fn what_is_open_or_leased_stays() {
    let host = machine();
    let reader = Chain::open(&arc(&host), &path("other"), &opening(&host)).unwrap();
    why_not(&host, &["other"]);
    drop(reader);
    let layer = (path("other"), host.witness(&path("other")).unwrap());
    let lease = Lease::take(&arc(&host), &[layer], &Purpose::job("a copy to /store")).unwrap();
    assert!(why_not(&host, &["other"]).ends_with(": a copy to /store"));
    drop(lease);
    let remove = prepare(&host, &["other"]).unwrap();
    // One that somebody made while a person thought about the plan.
    let child = NewImage { format: Format::Qcow2, size: Some(512), parent: None, options: vec![] };
    create(&arc(&host), &path("late"), &child, &opening(&host)).unwrap();
    let late = open_layer(&arc(&host), &path("late"), &Opening::writing()).unwrap();
    let link = crate::format::ParentName::new(b"other".to_vec(), Some("qcow2".to_owned()));
    late.image.set_parent(Some(&link)).unwrap();
    drop(late);
    assert!(remove.run().unwrap_err().what().contains("/vm/late lies on it"));
}

#[test]
fn a_tree_goes_with_the_last_image_that_needs_it() {
    let host = machine();
    for name in ["top", "other"] {
        let layers = seal::open_layers(&arc(&host), &path(name), &opening(&host)).unwrap();
        seal::seal(&ledger(&host), &layers, &Progress::default()).unwrap();
    }
    let trees = || host.list(Path::new("/vm/.dchain/trees")).unwrap().len();
    // `middle`, `top` and `other` show the same.
    assert_eq!(trees(), 2);
    prepare(&host, &["top", "middle"]).unwrap().run().unwrap();
    assert_eq!(trees(), 2);
    prepare(&host, &["other"]).unwrap().run().unwrap();
    assert_eq!(trees(), 1);
    prepare(&host, &["base"]).unwrap().run().unwrap();
    assert_eq!(trees(), 0);
}

/// A raw disk whose guest has written the header of another format, which only its note tells from an image of that.
fn raw(host: &SimHost) {
    let foreign = host.open(&path("base"), Access::ReadShared).unwrap();
    let mut bytes = vec![0; 4096];
    foreign.read_at(crate::base::HostOffset::new(0), &mut bytes).unwrap();
    drop(foreign);
    let new = NewImage { format: Format::Raw, size: Some(8 << 10), parent: None, options: vec![] };
    create(&arc(host), &path("raw"), &new, &opening(host)).unwrap();
    let disk = Chain::open(&arc(host), &path("raw"), &opening(host).with_access(Access::Write)).unwrap();
    disk.write(GuestOffset::new(0), &bytes).unwrap();
    disk.flush().unwrap();
}

#[test]
fn what_is_noted_of_an_image_stays_as_long_as_its_file_and_no_longer() {
    let host = machine();
    raw(&host);
    host.sync_folder(Path::new("/vm")).unwrap();
    let host = host.twin();
    prepare(&host, &["raw"]).unwrap().run().unwrap();
    let format = |host: &SimHost| {
        let file = host.open(&path("raw"), Access::ReadShared).ok()?;
        ledger(host).format_of(file.as_ref()).unwrap()
    };
    let is_there = |host: &SimHost| host.kind(&path("raw")).unwrap().is_some();
    let check = |host: &SimHost, story: &str| {
        assert_eq!(format(host).as_deref(), is_there(host).then_some("raw"), "{story}");
    };
    let end = |host: &SimHost, story: &str| {
        check(host, story);
        // The next removal: of the same one, if it is there still, or of another.
        let mut next = ["raw", "other", "top"].into_iter();
        let next = next.find(|name| host.kind(&path(name)).unwrap().is_some()).unwrap();
        prepare(host, &[next]).and_then(Remove::run).unwrap_or_else(|error| panic!("{story}: {error}"));
        let files = host.list(Path::new("/vm")).unwrap();
        let seen = files.iter().filter_map(|file| host.witness(&file.path).ok());
        let named: Vec<_> = seen.map(|seen| format!("{:032x}-{:x}", seen.file_system, seen.inode)).collect();
        let notes = host.list(Path::new("/vm/.dchain/notes")).unwrap();
        let stale = notes.iter().filter(|note| !named.iter().any(|name| note.path.ends_with(name)));
        assert_eq!(stale.count(), 0, "{story}: {notes:?}");
        assert_eq!(host.list(Path::new("/vm/.dchain/going")).unwrap_or_default(), [], "{story}");
    };
    assert!(cuts::everywhere(&host, (1, 2), check, end) > 5);
}

#[test]
fn power_cuts_of_a_removal_leave_whole_chains() {
    let host = machine();
    prepare(&host, &["top", "middle"]).unwrap().run().unwrap();
    let there = |host: &SimHost, name: &str| host.kind(&path(name)).unwrap().is_some();
    let check = |host: &SimHost, story: &str| {
        for name in ["base", "middle", "top", "other"].into_iter().filter(|name| there(host, name)) {
            let opened = Chain::open(&arc(host), &path(name), &opening(host)).map(drop);
            opened.unwrap_or_else(|error| panic!("{story}: {name}: {error}"));
        }
        assert!(there(host, "base") && there(host, "other"), "{story}");
    };
    let end = |host: &SimHost, story: &str| {
        let left: Vec<&str> = ["top", "middle"].into_iter().filter(|name| there(host, name)).collect();
        if !left.is_empty() {
            prepare(host, &left).and_then(Remove::run).unwrap_or_else(|error| panic!("{story}: {error}"));
        }
        check(host, story);
        assert!(!there(host, "top") && !there(host, "middle"), "{story}");
    };
    assert!(cuts::everywhere(&host, (1, 2), check, end) > 10);
}
