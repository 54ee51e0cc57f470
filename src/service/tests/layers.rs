//! Disks and their layers from the outside: what is told of them, going back to one, and what lies on them.

use super::*;
use crate::{export::Exports, io::faulty::SimHost, job::snapshot::Looked};
use std::thread;

#[test]
fn nobody_comes_in_while_a_disk_goes_back() {
    let scene = Scene::new();
    let service = scene.start();
    let held = service.held("vm").unwrap();
    let come = || service.open("vm").map(drop).map_err(|error| error.kind());
    assert_eq!(service.while_alone("vm", &held, come).unwrap(), Err(ErrorKind::Busy));
    come().unwrap();
    let client = service.open("vm").unwrap();
    let busy = service.while_alone("vm", &held, || panic!("a client has it")).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    drop((client, held));
    stop(service);
}

/// A client that comes as soon as it can, writes, and goes.
#[test]
fn what_a_client_wrote_is_there_as_long_as_it_has_the_disk_however_often_that_goes_back() {
    let scene = Scene::new();
    let service = scene.start();
    service.snapshot(&[SnapshotOf::qcow2("vm", None)]).unwrap();
    let (is_over, visits) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                let Ok(export) = service.open("vm") else { continue };
                let at = GuestOffset::new(0);
                let mut bytes = [0; 512];
                export.disk.write(at, &[7; 512]).unwrap();
                thread::yield_now();
                export.disk.read(at, &mut bytes).unwrap();
                assert_eq!(bytes, [7; 512]);
                visits.fetch_add(1, SeqCst);
            }
        });
        for _ in 0..10 {
            // The client has to let go, and cannot come back before it has gone back.
            while let Err(error) = service.revert("vm", "top".as_ref(), false) {
                // Where it is held up itself.
                assert_eq!(error.kind(), ErrorKind::Busy);
            }
            let before = visits.load(SeqCst);
            while visits.load(SeqCst) == before {
                thread::sleep(GLANCE);
            }
        }
        is_over.store(true, SeqCst);
    });
    stop(service);
}

#[test]
fn what_cannot_be_told_of_a_disk_hides_no_other_and_nothing_else_of_it() {
    let sim = SimHost::new();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let opening = Opening::writing().with_ledger(Ledger::new(Arc::clone(&host), None));
    let new = create::NewImage { format: Format::Qcow2, size: Some(MIB), parent: None, options: vec![] };
    let named = ["/a", "/b"].map(|path| {
        create(&host, path.as_ref(), &new, &opening).unwrap();
        let (name, path) = (path.trim_start_matches('/').to_owned(), path.into());
        Named { name, path, format: None, is_read_only: false, hooks: Hooks::default() }
    });
    let (quiesce, state) = (Arc::new(AskNobody), None);
    let settings = Settings { host, opening, state, resumes: true, pace: PACE, quiesce };
    let service = Service::start(settings, &named).unwrap();
    sim.break_file("/a".as_ref(), true).unwrap();
    let views = service.view_disks();
    sim.break_file("/a".as_ref(), false).unwrap();
    let told: Vec<_> =
        views.iter().map(|v| (v.is_served, v.error.is_some(), v.layers[0].allocated.is_some())).collect();
    assert_eq!(told, [(true, true, false), (true, false, true)]);
    assert_eq!((views[0].path.0.as_path(), views[0].size), ("/a".as_ref(), MIB));
    stop(service);
}

#[test]
fn a_folder_is_looked_at_once_and_again_before_a_disk_is_refused() {
    let scene = Scene::new();
    let opening = scene.opening().with_access(Access::Read);
    let chain = Chain::open(&scene.host, &scene.path("base"), &opening).unwrap();
    let layer = chain.head().unwrap();
    let mut looked = Looked::default();
    let mut is_refused = || looked.refuse_dependants(&scene.host, layer).is_err();
    assert!(is_refused());
    std::fs::rename(scene.path("top"), scene.path("state")).unwrap();
    assert!(is_refused());
    std::fs::create_dir(scene.path("away")).unwrap();
    std::fs::rename(scene.path("state"), scene.path("away/top")).unwrap();
    assert!(!is_refused());
    std::fs::rename(scene.path("away/top"), scene.path("top")).unwrap();
    assert!(!is_refused());
    looked.forget();
    assert!(looked.refuse_dependants(&scene.host, layer).is_err());
}
