//! Leases of processes that live, of some that were killed, and of some that nobody understands.

use super::*;
use crate::io::{faulty::SimHost, real::RealHost};

fn sim() -> (SimHost, Arc<dyn Host>) {
    let sim = SimHost::new();
    for folder in ["/vm", "/golden"] {
        sim.make_folder(Path::new(folder)).unwrap();
    }
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    for name in ["/vm/top", "/vm/middle", "/golden/base"] {
        host.create(Path::new(name)).unwrap();
    }
    (sim, host)
}

fn layer(host: &Arc<dyn Host>, path: &str) -> (PathBuf, Witness) {
    (PathBuf::from(path), host.witness(Path::new(path)).unwrap())
}

fn refused(host: &Arc<dyn Host>, path: &str) -> Option<String> {
    let error = refuse_leased(host.as_ref(), &[layer(host, path)]).err()?;
    assert_eq!((error.kind(), error.file()), (ErrorKind::Busy, Some(Path::new(path))));
    Some(error.what().to_owned())
}

#[test]
fn a_leased_layer_is_refused_with_the_holders_name_in_every_folder() {
    let (_, host) = sim();
    let layers = [layer(&host, "/vm/middle"), layer(&host, "/golden/base")];
    let lease = Lease::take(&host, &layers, &Purpose::job("a copy to /store")).unwrap();
    assert_eq!(lease.files().count(), 2);
    for path in ["/vm/middle", "/golden/base"] {
        let what = refused(&host, path).unwrap();
        let own = format!("(pid {}): a copy to /store", std::process::id());
        assert!(what.starts_with("is in use by ") && what.ends_with(&own), "{what}");
    }
    assert_eq!(refused(&host, "/vm/top"), None);
    // Another file that takes the name is not what is in use; the file is, by whatever name.
    host.rename(Path::new("/vm/middle"), Path::new("/vm/renamed")).unwrap();
    host.create(Path::new("/vm/middle")).unwrap();
    assert_eq!(refused(&host, "/vm/middle"), None);
    assert!(refused(&host, "/vm/renamed").is_some());
    drop(lease);
    assert_eq!(refused(&host, "/golden/base"), None);
    assert_eq!(host.list(Path::new("/golden/.dchain/leases")).unwrap(), []);
}

#[test]
fn cid_5_the_lease_of_an_owner_that_was_killed_holds_nobody_up_and_is_swept() {
    let (sim, host) = sim();
    let lease = Lease::take(&host, &[layer(&host, "/golden/base")], &Purpose::job("a copy")).unwrap();
    let after: Arc<dyn Host> = Arc::new(sim.twin());
    let left = || after.list(Path::new("/golden/.dchain/leases")).unwrap().len();
    assert_eq!(left(), 1);
    // Who only looks leaves it alone.
    assert!(leases(after.as_ref(), Path::new("/golden")).unwrap().is_empty());
    assert_eq!(left(), 1);
    assert_eq!(refused(&after, "/golden/base"), None);
    assert_eq!(left(), 0);
    drop(lease);
}

#[test]
fn a_lease_that_is_held_and_not_understood_means_every_layer() {
    let (_, host) = sim();
    drop(Lease::take(&host, &[layer(&host, "/vm/top")], &Purpose::job("a copy")).unwrap());
    let newer = host.create(Path::new("/vm/.dchain/leases/newer")).unwrap();
    newer.write_at(HostOffset::new(0), br#"{"version":2}"#).unwrap();
    assert!(refused(&host, "/vm/top").unwrap().contains("/vm/.dchain/leases/newer"));
    drop(newer);
    assert_eq!(refused(&host, "/vm/top"), None);
}

#[test]
fn a_disk_of_this_process_does_not_keep_it_from_its_own_layers() {
    let (_, host) = sim();
    let lease = Lease::take(&host, &[layer(&host, "/vm/middle")], &Purpose::disk("a")).unwrap();
    assert_eq!(refused(&host, "/vm/middle"), None);
    let seen = leases(host.as_ref(), Path::new("/vm")).unwrap();
    let [used] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(used.means(&layer(&host, "/vm/middle").1) && used.to_string().ends_with(": disk 'a'"), "{used}");
    drop(lease);
}

#[test]
fn leases_are_locks_between_real_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let base = folder.path().join("base");
    drop(host.create(&base).unwrap());
    let layers = [(base.clone(), host.witness(&base).unwrap())];
    let lease = Lease::take(&host, &layers, &Purpose::job("a copy")).unwrap();
    assert!(refuse_leased(host.as_ref(), &layers).is_err());
    let own = lease.files().next().unwrap().to_path_buf();
    std::fs::copy(&own, own.with_file_name("of-one-that-was-killed")).unwrap();
    drop(lease);
    refuse_leased(host.as_ref(), &layers).unwrap();
    assert_eq!(host.list(own.parent().unwrap()).unwrap(), []);
}
