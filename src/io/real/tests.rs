//! Names, locks and descriptors of a real machine.
use super::*;
use crate::{
    base::{ErrorKind, HostOffset},
    io::Kept,
};

fn write(host: &RealHost, path: &Path, bytes: &[u8]) {
    host.create(path).unwrap().write_at(HostOffset::new(0), bytes).unwrap();
}

#[test]
fn only_files_and_devices_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (host, fifo, link) = (RealHost::new(), folder.path().join("fifo"), folder.path().join("link"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    for path in [&fifo, &link, folder.path(), Path::new("/dev/zero")] {
        for access in [Access::Read, Access::ReadShared, Access::Write] {
            let error = host.open(path, access).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
            assert_eq!(error.file(), Some(path));
        }
    }
    let error = host.open(&folder.path().join("none"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// What the check before opening cannot see: the name changed in between.
#[test]
fn a_fifo_that_was_opened_after_all_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
    let fd = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    assert!(check_opened(fd, &fifo, Access::Read).is_err());
}

#[test]
fn a_writer_keeps_others_out_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (host, path) = (RealHost::new(), folder.path().join("disk"));
    let writer = host.create(&path).unwrap();
    for access in [Access::Read, Access::Write] {
        let error = host.open(&path, access).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let own = format!("(pid {}), this process itself", std::process::id());
        assert!(error.to_string().ends_with(&own), "{error} names {own}");
    }
    host.open(&path, Access::ReadShared).unwrap();
    drop(writer);
    let readers = [host.open(&path, Access::Read).unwrap(), host.open(&path, Access::Read).unwrap()];
    assert_eq!(host.open(&path, Access::Write).unwrap_err().kind(), ErrorKind::Busy);
    drop(readers);
    host.open(&path, Access::Write).unwrap();
}

#[test]
fn a_reader_goes_on_to_write_and_back_without_letting_go() {
    let folder = tempfile::tempdir().unwrap();
    let (host, path) = (RealHost::new(), folder.path().join("disk"));
    write(&host, &path, &[1; 512]);
    let own = host.open(&path, Access::ReadToWrite).unwrap();
    let other = host.open(&path, Access::Read).unwrap();
    let error = own.set_access(Access::Write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    // A refusal leaves nothing locked that a reader would mind.
    drop((host.open(&path, Access::Read).unwrap(), other));
    own.set_access(Access::Write).unwrap();
    assert_eq!(host.open(&path, Access::Read).unwrap_err().kind(), ErrorKind::Busy);
    own.write_at(HostOffset::new(0), &[2; 512]).unwrap();
    own.set_access(Access::ReadToWrite).unwrap();
    let mut bytes = [0; 512];
    host.open(&path, Access::Read).unwrap().read_at(HostOffset::new(0), &mut bytes).unwrap();
    assert_eq!(bytes, [2; 512]);
    assert_eq!(host.open(&path, Access::Write).unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn readers_share_a_bounded_number_of_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::with_descriptors(3);
    let paths: Vec<PathBuf> = (0..20).map(|n| folder.path().join(n.to_string())).collect();
    paths.iter().zip(0..).for_each(|(path, n)| write(&host, path, &[n; 8]));
    let files: Vec<_> = paths.iter().map(|path| host.open(path, Access::Read).unwrap()).collect();
    for _ in 0..2 {
        for (file, n) in files.iter().zip(0..) {
            let mut read = [99; 8];
            file.read_at(HostOffset::new(0), &mut read).unwrap();
            assert_eq!(read, [n; 8]);
        }
    }
    let open =
        fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    assert_eq!(open.filter(|target| target.starts_with(folder.path())).count(), 3);
}

#[test]
fn a_file_that_changed_while_it_rested_is_not_read_as_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::with_descriptors(1);
    let [changed, replaced, shared, other] =
        ["changed", "replaced", "shared", "other"].map(|n| folder.path().join(n));
    for path in [&changed, &replaced, &shared, &other] {
        write(&host, path, &[1; 8]);
    }
    let files = [
        host.open(&changed, Access::Read).unwrap(),
        host.open(&replaced, Access::Read).unwrap(),
        host.open(&shared, Access::ReadShared).unwrap(),
    ];
    let _keeps_the_only_descriptor = host.open(&other, Access::Read).unwrap();
    for path in [&changed, &shared] {
        fs::write(path, [2; 9]).unwrap();
    }
    fs::rename(&other, &replaced).unwrap();
    let answers = files.map(|file| file.bytes());
    let said = |n: usize| answers[n].as_ref().unwrap_err().to_string();
    assert!(said(0).ends_with("changed: was changed by somebody else since it was opened"), "{}", said(0));
    assert!(
        said(1).ends_with("replaced: another file has taken this name since it was opened"),
        "{}",
        said(1)
    );
    assert_eq!(*answers[2].as_ref().unwrap(), 9);
}

#[test]
fn space_is_reserved_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = RealHost::new().create(&folder.path().join("disk")).unwrap();
    let all = HostOffset::new(0).range(1 << 20);
    file.allocate(all).unwrap();
    assert!(file.allocated_bytes().unwrap() >= 1 << 20);
    file.write_at(all.start, &vec![7; 1 << 20]).unwrap();
    file.flush().unwrap();
    file.zero(all, Kept::Space).unwrap();
    assert!(file.allocated_bytes().unwrap() >= 1 << 20);
    file.zero(HostOffset::new(1 << 16).range(2 << 20), Kept::Nothing).unwrap();
    assert!(file.allocated_bytes().unwrap() <= 1 << 17 && file.bytes().unwrap() == 1 << 20);
}

#[test]
fn a_witness_tells_a_write_from_a_rename() {
    let folder = tempfile::tempdir().unwrap();
    let (host, a, b) = (RealHost::new(), folder.path().join("a"), folder.path().join("b"));
    write(&host, &a, &[1; 8]);
    let before = host.witness(&a).unwrap();
    host.rename(&a, &b).unwrap();
    host.sync_folder(folder.path()).unwrap();
    assert_eq!(host.witness(&b).unwrap(), before);
    let file = host.open(&b, Access::Write).unwrap();
    assert_eq!(file.witness().unwrap(), before);
    std::thread::sleep(std::time::Duration::from_millis(20));
    file.write_at(HostOffset::new(0), &[2; 8]).unwrap();
    assert!(file.witness().unwrap() != before && file.witness().unwrap().same_file(&before));
}

/// How a file gets a name that is free.
type Naming = fn(&RealHost, &Path, &Path) -> Result<()>;

/// Both ways: by a rename that replaces nothing, which FAT has, and by a second name, which it lacks.
#[test]
fn a_file_gets_a_name_that_is_free_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::new();
    let at = |name: &str| folder.path().join(name);
    let ways: [Naming; 2] =
        [RealHost::rename_new, |_, from, to| link_and_remove(from, to).map_err(|e| Error::io("link", e))];
    for (number, way) in ways.into_iter().enumerate() {
        let [draft, free] = ["draft", "free"].map(|name| at(&format!("{name}{number}")));
        write(&host, &at("taken"), b"1");
        write(&host, &draft, b"2");
        assert_eq!(way(&host, &draft, &at("taken")).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(at("taken")).unwrap(), b"1");
        way(&host, &draft, &free).unwrap();
        assert_eq!((host.kind(&draft).unwrap(), std::fs::read(&free).unwrap()), (None, b"2".to_vec()));
        host.remove(&at("taken")).unwrap();
    }
}

#[test]
fn names_are_made_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::new();
    let inner = folder.path().join("x/y");
    host.make_folder(&inner).unwrap();
    let [a, b] = ["a", "b"].map(|name| inner.join(name));
    write(&host, &b, b"1");
    write(&host, &a, b"2");
    assert_eq!(host.create(&a).unwrap_err().kind(), ErrorKind::Exists);
    std::os::unix::fs::symlink("nowhere", inner.join("dangling")).unwrap();
    std::os::unix::fs::symlink("itself", inner.join("itself")).unwrap();
    std::os::unix::fs::symlink("x".repeat(300), inner.join("impossible")).unwrap();
    let listed: Vec<_> =
        host.list(&inner).unwrap().into_iter().map(|entry| (entry.path, entry.kind)).collect();
    assert_eq!(listed, [(a.clone(), EntryKind::File), (b, EntryKind::File)]);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&a, &link).unwrap();
    let file = host.open(&link, Access::Read).unwrap();
    assert_eq!(host.opened_as(&*file).unwrap(), host.canonical(&a).unwrap());
    host.remove(&a).unwrap();
    assert_eq!(host.opened_as(&*file).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(host.kind(&a).unwrap(), None);
    assert_eq!(host.list(&a).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(host.canonical(&folder.path().join("x/./y/../y")).unwrap().ends_with("x/y"));
    assert!(host.free_bytes(&inner).unwrap() > 0);
}

#[test]
fn files_rest_while_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::with_descriptors(500);
    let names: Vec<_> = (0..600).map(|n| folder.path().join(n.to_string())).collect();
    for name in &names {
        fs::write(name, [7; 512]).unwrap();
    }
    let files: Vec<_> = names.iter().map(|name| host.open(name, Access::Read).unwrap()).collect();
    std::thread::scope(|scope| {
        for step in [1, 3, 7, 11] {
            let files = &files;
            scope.spawn(move || {
                for n in 0..4000 {
                    let mut byte = [0];
                    files[n * step % 600].read_at(HostOffset::new(5), &mut byte).unwrap();
                    assert_eq!(byte, [7]);
                }
            });
        }
    });
}
