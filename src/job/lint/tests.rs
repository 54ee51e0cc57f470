//! Folders with one of each fault, and the work of looking at many images.

use super::{Request as Asked, *};
use crate::{
    base::{GuestOffset, HostOffset},
    chain::Chain,
    disk::Disk,
    format::{self, Creation, Format, NoParts, ParentName},
    io::faulty::{Failure, Fault, SimHost},
    job::{
        Progress,
        consolidate::{Consolidation, Pace, Request},
        seal,
        snapshot::snapshot,
    },
};

const FOLDER_PATH: &str = "/vm";

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER_PATH).join(name)
}

fn folder() -> (SimHost, Arc<dyn Host>, Ledger) {
    let sim = SimHost::new();
    sim.make_folder(Path::new(FOLDER_PATH)).unwrap();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let ledger = Ledger::new(Arc::clone(&host), None);
    (sim, host, ledger)
}

fn small() -> Vec<(String, String)> {
    vec![("cluster_size".to_owned(), "512".to_owned())]
}

fn make(host: &Arc<dyn Host>, name: &str, parent: Option<&str>) {
    let parent = parent.map(|name| ParentName::new(name.as_bytes().to_vec(), Some("qcow2".to_owned())));
    let creation = Creation { size: 32 << 10, parent, options: small() };
    format::create(Format::Qcow2, host.create(&path(name)).unwrap(), &creation, &NoParts).unwrap();
}

fn put(host: &Arc<dyn Host>, name: &str, at: u64, bytes: usize) {
    let chain = Chain::open(host, &path(name), &Opening::writing()).unwrap();
    chain.write(GuestOffset::new(at), &vec![7; bytes]).unwrap();
    chain.flush().unwrap();
}

fn look(host: &Arc<dyn Host>, ledger: &Ledger) -> Report {
    let request = Asked { folders: vec![FOLDER_PATH.into()], depth_max: 3, rate: Some(1000) };
    lint(host, ledger, &request).unwrap()
}

fn found(report: &Report) -> Vec<(Kind, &str)> {
    let name =
        |finding: &Finding| (finding.kind, finding.image.strip_prefix(FOLDER_PATH).unwrap().to_owned());
    let all: Vec<(Kind, PathBuf)> = report.findings.iter().map(name).collect();
    all.into_iter().map(|(kind, path)| (kind, &*path.display().to_string().leak())).collect()
}

#[test]
fn links_that_lead_nowhere_in_a_ring_or_too_deep_are_found() {
    let (_, host, ledger) = folder();
    make(&host, "one", Some("two"));
    make(&host, "two", Some("three"));
    make(&host, "three", Some("two"));
    make(&host, "lost", Some("gone"));
    make(&host, "far", Some("json:{}"));
    for (name, parent) in [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("c"))] {
        make(&host, name, parent);
    }
    let report = look(&host, &ledger);
    let expected = [
        (Kind::MissingParent, "lost"),
        (Kind::Cycle, "three"),
        (Kind::ForeignReference, "far"),
        (Kind::LongChain, "d"),
    ];
    let all = found(&report);
    for wanted in expected {
        assert!(all.contains(&wanted), "{wanted:?} is not among {all:?}");
    }
    let graded = all.iter().filter(|(kind, _)| kind.grade() > Grade::Note && *kind != Kind::SiblingsAtRisk);
    assert_eq!(graded.count(), expected.len(), "{all:?}");
    let ring = report.findings.iter().find(|finding| finding.kind == Kind::Cycle).unwrap();
    assert_eq!(ring.about, [path("two"), path("three")]);
    assert!(report.has_errors());
}

#[test]
fn a_parent_written_under_its_children_is_an_error_and_a_healthy_chain_is_not() {
    let (_, host, ledger) = folder();
    make(&host, "base", None);
    put(&host, "base", 0, 4096);
    let opening = Opening::reading().with_ledger(ledger.clone());
    snapshot(&host, &path("base"), &path("child"), &small(), &opening).unwrap();
    put(&host, "child", 512, 1024);
    let healthy = look(&host, &ledger);
    assert_eq!(found(&healthy), [(Kind::Unsealed, "base")]);
    assert!(!healthy.has_errors());
    let [chain] = healthy.foldable.as_slice() else { panic!("{:?}", healthy.foldable) };
    assert_eq!((&chain.top, &chain.into), (&path("child"), &path("base")));
    // At 1000 bytes a second; the clusters are the base's already.
    assert_eq!((chain.copy_bytes, chain.need_bytes, chain.milliseconds), (1024, 0, 1024));
    assert!(chain.gives_back_bytes > 1024 && healthy.gives_back_bytes == chain.gives_back_bytes);
    put(&host, "base", 0, 512);
    let changed = look(&host, &ledger);
    assert!(changed.has_errors());
    let all = found(&changed);
    assert!(
        all.contains(&(Kind::ChangedParent, "child")) && all.contains(&(Kind::ChangedParent, "base")),
        "{all:?}"
    );
}

#[test]
fn a_job_that_was_cut_off_is_found_and_its_layers_are_not_weighed() {
    let (sim, host, ledger) = folder();
    make(&host, "base", None);
    let opening = Opening::reading().with_ledger(ledger.clone());
    snapshot(&host, &path("base"), &path("top"), &small(), &opening).unwrap();
    put(&host, "top", 512, 1024);
    host.create(&path(".x.dchain-draft-0123456789abcdef")).unwrap();
    for more in 0..500 {
        let at = sim.ios() + more;
        sim.fail(Some(Fault { at, is_lasting: true, failure: Failure::Io }));
        let job = Consolidation::prepare(&host, &path("top"), &opening, &Request::default());
        job.and_then(|job| job.run(Pace::USUAL, &Progress::default())).unwrap_err();
        sim.fail(None);
        if Journal::find(&host, &path("top")).unwrap().is_some() {
            break;
        }
    }
    let report = look(&host, &ledger);
    let all = found(&report);
    assert!(all.contains(&(Kind::InterruptedJob, "top")), "{all:?}");
    assert!(all.contains(&(Kind::LeftOver, ".x.dchain-draft-0123456789abcdef")), "{all:?}");
    assert!(all.iter().all(|(kind, _)| *kind != Kind::ChangedParent), "{all:?}");
    assert_eq!(report.foldable, []);
}

#[test]
fn a_layer_that_arrives_is_told_and_its_draft_is_no_leftover() {
    let (_, host, ledger) = folder();
    make(&host, "base", None);
    let id = crate::content::ContentId::new([7; 32]);
    let arrival = Arrival::begin(&host, id, &path("in"), String::new()).unwrap();
    host.create(&path(arrival.temporary.0.to_str().unwrap())).unwrap();
    let report = look(&host, &ledger);
    let all = found(&report);
    assert!(all.contains(&(Kind::InterruptedJob, "in")), "{all:?}");
    assert!(all.iter().all(|(kind, _)| *kind != Kind::LeftOver), "{all:?}");
}

/// Twice as many images are twice the work, also where all lie on one.
#[test]
fn the_work_grows_with_the_number_of_images() {
    let work = |images: usize| {
        let (sim, host, ledger) = folder();
        make(&host, "base", None);
        for number in 0..images {
            make(&host, &format!("child{number}"), Some("base"));
        }
        let before = sim.ios();
        let report = look(&host, &ledger);
        assert_eq!(report.images, images + 1);
        sim.ios() - before
    };
    let (some, more) = (work(40), work(80));
    assert!(more < some * 2 + some / 4, "{some}, then {more}");
}

/// Each of a thousand copies would name all others.
#[test]
fn of_many_that_show_the_same_each_names_the_first() {
    let (_, host, ledger) = folder();
    make(&host, "golden", None);
    put(&host, "golden", 0, 512);
    let opening = Opening::reading();
    let layers = seal::open_layers(&host, &path("golden"), &opening).unwrap();
    seal::seal(&ledger, &layers, &Progress::default()).unwrap();
    drop(layers);
    let golden = host.open(&path("golden"), Access::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(golden.bytes().unwrap()).unwrap()];
    golden.read_at(HostOffset::new(0), &mut bytes).unwrap();
    for number in 0..30 {
        host.create(&path(&format!("copy{number}"))).unwrap().write_at(HostOffset::new(0), &bytes).unwrap();
    }
    let findings = look(&host, &ledger).findings;
    let alike: Vec<_> = findings.iter().filter(|finding| finding.kind == Kind::Duplicate).collect();
    assert_eq!(alike.len(), 31);
    let named: Vec<usize> =
        alike.iter().map(|finding| finding.about.len()).filter(|named| *named != 1).collect();
    assert_eq!(named, [30]);
}

#[test]
fn a_layer_that_did_not_arrive_whole_is_a_job_that_was_cut_off() {
    let (sim, host, ledger) = folder();
    let id = crate::content::Tree::new(512).id();
    let arrival = Arrival::begin(&host, id, &path("base"), "qcow2".to_owned()).unwrap();
    let draft = path(arrival.temporary.to_str().unwrap());
    drop(host.create(&draft).unwrap());
    assert_eq!(found(&look(&host, &ledger)), [(Kind::InterruptedJob, "base")]);
    // It has got its name, and the note goes with the next layer.
    sim.rename(&draft, &path("base")).unwrap();
    assert!(!look(&host, &ledger).has_errors());
}

/// Each I/O fails once: that of the folder's own names alone ends the look.
#[test]
fn what_cannot_be_read_is_a_finding() {
    let (sim, host, ledger) = folder();
    make(&host, "base", None);
    let opening = Opening::reading().with_ledger(ledger.clone());
    snapshot(&host, &path("base"), &path("top"), &small(), &opening).unwrap();
    put(&host, "top", 512, 1024);
    let request = Asked { folders: vec![FOLDER_PATH.into()], depth_max: 3, rate: None };
    let start = sim.ios();
    assert_eq!(lint(&host, &ledger, &request).unwrap().foldable.len(), 1);
    let count = sim.ios() - start;
    let mut ended = Vec::new();
    for nth in 0..count {
        sim.fail(Some(Fault { at: sim.ios() + nth, is_lasting: false, failure: Failure::Io }));
        ended.extend(lint(&host, &ledger, &request).err());
        sim.fail(None);
    }
    assert!(count > 10 && ended.is_empty(), "{ended:?}");
}
