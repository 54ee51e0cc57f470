//! The index alone, with IDs that a table of the test gives: on a simulated machine, and on this one where locks, owners
//! and times matter.

use super::*;
use crate::{
    base::HostOffset,
    io::{
        faulty::{SimHost, crash_states, kill_states},
        real::RealHost,
    },
};
use parking_lot::Mutex;
use std::{fs, os::unix::fs::PermissionsExt, thread};

fn id(number: u64) -> ContentId {
    let mut bytes = [0; 32];
    crate::base::seed::Seeded::new(number).fill(&mut bytes);
    ContentId::new(bytes)
}

/// A folder whose files say the ID of the number that their first eight bytes have.
struct Folder {
    host: Arc<dyn Host>,
    path: PathBuf,
    /// The names of files whose IDs were asked for.
    asked: Mutex<Vec<String>>,
}

impl Folder {
    fn simulated(sim: &SimHost) -> Self {
        sim.make_folder(Path::new("/store")).unwrap();
        Self { host: Arc::new(sim.clone()), path: "/store".into(), asked: Mutex::default() }
    }

    fn real(folder: &Path) -> Self {
        let path = folder.canonicalize().unwrap();
        Self { host: Arc::new(RealHost::new()), path, asked: Mutex::default() }
    }

    fn index(&self) -> Index {
        Index::new(&self.host, &self.path, None)
    }

    fn place(&self) -> PathBuf {
        self.index().places.remove(0)
    }

    fn put(&self, name: &str, number: u64) {
        let path = self.path.join(name);
        let file = match self.host.open(&path, Access::Write) {
            Ok(file) => file,
            Err(_) => self.host.create(&path).unwrap(),
        };
        file.write_at(HostOffset::new(0), &number.to_le_bytes()).unwrap();
        file.flush().unwrap();
    }

    fn read(&self, path: &Path) -> Result<Option<ContentId>> {
        self.asked.lock().push(path.file_name().unwrap().to_str().unwrap().to_owned());
        let mut bytes = [0; 8];
        self.host.open(path, Access::ReadShared)?.read_at(HostOffset::new(0), &mut bytes)?;
        Ok(Some(u64::from_le_bytes(bytes)).filter(|number| *number > 0).map(id))
    }

    /// Looks at everything; returns how many files were asked for their IDs.
    fn refresh(&self) -> usize {
        self.asked.lock().clear();
        self.index().refresh(&|path| self.read(path)).unwrap();
        let mut asked = self.asked.lock();
        asked.sort();
        asked.len()
    }

    fn find(&self, number: u64) -> Option<Vec<String>> {
        let wanted = id(number);
        let found = self.index().offers(&wanted, &|id| *id == wanted, usize::MAX)?;
        assert!(found.iter().all(|(id, path)| *id == wanted && path.parent() == Some(&self.path)));
        Some(found.iter().map(|(_, path)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }
}

#[test]
fn cid_9_a_file_is_found_among_many() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    for number in 0..2000 {
        folder.put(&format!("image{number}"), number);
    }
    folder.put("twin", 777);
    assert_eq!(folder.find(777), None);
    assert_eq!(folder.refresh(), 2001);
    let before = sim.ios();
    assert_eq!(folder.find(777).unwrap(), ["image777", "twin"]);
    assert!(sim.ios() - before < 200, "{} reads to find one", sim.ios() - before);
    assert_eq!(folder.find(5000).unwrap(), [""; 0]);
    // What says nothing is known as well, and nothing is asked twice.
    assert_eq!(folder.refresh(), 0);
    let all = folder.index().offers(&ContentId::new([0; 32]), &|_| true, usize::MAX).unwrap();
    assert_eq!(all.len(), 2000);
    assert_eq!(folder.index().offers(&ContentId::new([0; 32]), &|_| true, 3).unwrap().len(), 3);
}

#[test]
fn cid_9_an_entry_is_stale_after_a_foreign_writer() {
    let folder = Folder::simulated(&SimHost::new());
    for number in 1..50 {
        folder.put(&format!("image{number}"), number);
    }
    folder.refresh();
    folder.put("image7", 70);
    folder.put("new", 7);
    folder.host.remove(&folder.path.join("image8")).unwrap();
    folder.host.rename(&folder.path.join("image9"), &folder.path.join("image10")).unwrap();
    assert_eq!(folder.refresh(), 3);
    assert_eq!(*folder.asked.lock(), ["image10", "image7", "new"]);
    for (number, names) in
        [(7, vec!["new"]), (70, vec!["image7"]), (8, vec![]), (9, vec!["image10"]), (10, vec![])]
    {
        assert_eq!(folder.find(number).unwrap(), names, "{number}");
    }
}

/// The record of some images is in their notes.
#[test]
fn cid_9_an_entry_is_stale_after_a_change_to_the_note_on_its_file() {
    let folder = Folder::simulated(&SimHost::new());
    folder.put("image", 1);
    folder.put("other", 2);
    folder.refresh();
    let inode = folder.host.status(&folder.path.join("image")).unwrap().inode;
    let notes = folder.path.join(".dchain/notes");
    folder.host.make_folder(&notes).unwrap();
    drop(folder.host.create(&notes.join(format!("{:032x}-{inode:x}", 1))).unwrap());
    assert_eq!(folder.refresh(), 1);
    assert_eq!(*folder.asked.lock(), ["image"]);
}

/// What was changed a moment ago may be changed again without a trace in its times.
#[test]
fn cid_9_what_has_just_changed_is_looked_at_again() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::real(temporary.path());
    folder.put("new", 1);
    folder.put("old", 2);
    let status = folder.host.status(&folder.path.join("old")).unwrap();
    let then = status.modified_ns.max(status.changed_ns);
    assert_eq!(looks([status].iter(), then + SETTLED_NS - 1), None);
    assert!(looks([status].iter(), then + SETTLED_NS).is_some());
    let later = Status { changed_ns: status.changed_ns + 1, ..status };
    assert_ne!(looks([status].iter(), then + 2 * SETTLED_NS), looks([later].iter(), then + 2 * SETTLED_NS));
    assert_eq!((folder.refresh(), folder.refresh()), (2, 2));
    assert!(!folder.index().is_fresh());
    assert_eq!(folder.find(2).unwrap(), ["old"]);
}

#[test]
fn cid_9_no_file_is_believed_only_while_nothing_came_or_was_noted() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::real(temporary.path());
    let notes = folder.path.join(".dchain/notes");
    folder.host.make_folder(&notes).unwrap();
    folder.put("image", 1);
    let settle = || thread::sleep(Duration::from_millis(2100));
    settle();
    folder.refresh();
    assert!(folder.index().is_fresh());
    // The file of the index is made anew, or changed: that is no change to the folder.
    folder.refresh();
    assert!(folder.index().is_fresh());
    fs::write(notes.join("0-1"), "").unwrap();
    assert!(!folder.index().is_fresh());
    fs::write(folder.path.join("another"), "").unwrap();
    assert!(!folder.index().is_fresh());
}

#[test]
fn cid_9_two_processes_at_once_go_on() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::real(temporary.path());
    for number in 1..20 {
        folder.put(&format!("image{number}"), number);
    }
    folder.refresh();
    let path = folder.path.clone();
    let others: Vec<_> = (0..3)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                let folder = Folder::real(&path);
                for _ in 0..10 {
                    assert_eq!(folder.refresh(), 19);
                    assert!(folder.find(5).is_none_or(|found| found == ["image5"]));
                }
            })
        })
        .collect();
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(folder.find(5).unwrap(), ["image5"]);
    // One that stays in its turn holds nobody up for long, and all is found without the index.
    let held = folder.host.open(&folder.place(), Access::Write).unwrap();
    assert_eq!(folder.find(5), None);
    let offers = folder.index().refresh(&|path| folder.read(path)).unwrap();
    assert_eq!(offers.len(), 19);
    drop(held);
    assert_eq!(folder.find(5).unwrap(), ["image5"]);
}

#[test]
fn cid_9_a_corrupt_index_is_done_without_and_made_anew() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    for number in 1..40 {
        folder.put(&format!("image{number}"), number);
    }
    folder.refresh();
    let file = folder.host.open(&folder.place(), Access::Write).unwrap();
    let mut sound = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut sound).unwrap();
    drop(file);
    let damaged = |damage: &dyn Fn(&dyn File), what: &str| {
        let file = folder.host.open(&folder.place(), Access::Write).unwrap();
        damage(file.as_ref());
        drop(file);
        assert!(folder.find(17).is_none_or(|found| found == ["image17"]), "{what}");
        folder.refresh();
        assert_eq!(folder.find(17).unwrap(), ["image17"], "{what}");
        let file = folder.host.open(&folder.place(), Access::Write).unwrap();
        file.set_bytes(0).unwrap();
        file.write_at(HostOffset::new(0), &sound).unwrap();
    };
    let mut seed = crate::base::seed::Seeded::new(1);
    for round in 0..60 {
        // Most of the file is empty: each other bit is in what is used of it.
        let at = seed.below(if round % 2 == 0 { 60_000 } else { u64::try_from(sound.len()).unwrap() });
        let byte = sound[usize::try_from(at).unwrap()] ^ (1 << seed.below(8));
        damaged(&|file| file.write_at(HostOffset::new(at), &[byte]).unwrap(), &format!("a bit at {at}"));
    }
    for _ in 0..20 {
        let bytes = seed.below(u64::try_from(sound.len()).unwrap());
        damaged(&|file| file.set_bytes(bytes).unwrap(), &format!("{bytes} bytes of it"));
    }
    damaged(&|file| file.write_at(HostOffset::new(0), &[0; 4096]).unwrap(), "another version");
    damaged(&|file| file.set_bytes(4096).unwrap(), "a head alone");
    let longer = u64::try_from(sound.len()).unwrap() + blocks::STRIDE_BYTES;
    damaged(&|file| file.set_bytes(longer).unwrap(), "longer than it was");
}

/// Killed in a turn, it is as it was or is made anew; after a power cut it is another boot's.
#[test]
fn cid_9_an_index_that_was_cut_off_is_whole_or_nothing() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    for number in 1..30 {
        folder.put(&format!("image{number}"), number);
    }
    folder.refresh();
    let start = sim.twin();
    let folder = Folder::simulated(&start);
    folder.put("image3", 300);
    folder.refresh();
    assert!(start.events() > 5);
    for crash in kill_states(&start.trace()) {
        let after = Folder::simulated(&crash.host);
        let found = after.find(7);
        assert!(found.is_none_or(|found| found == ["image7"]));
        after.refresh();
        assert_eq!(after.find(7).unwrap(), ["image7"]);
    }
    let last = crash_states(&start.trace(), 0, 0).last().unwrap();
    let after = Folder::simulated(&last.host);
    assert_eq!(after.find(7), None);
    after.refresh();
    assert_eq!(after.find(7).unwrap(), ["image7"]);
}

/// Who could write it could have it say anything: it would only cost time, but nothing of a stranger's is opened at all.
#[test]
fn cid_9_an_index_of_somebody_else_is_not_opened() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::real(temporary.path());
    folder.put("image", 1);
    folder.refresh();
    assert_eq!(folder.find(1).unwrap(), ["image"]);
    let place = folder.place();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(folder.find(1), None);
    fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(folder.find(1).unwrap(), ["image"]);
    let elsewhere = folder.path.join("elsewhere");
    fs::rename(&place, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &place).unwrap();
    assert_eq!(folder.find(1), None);
    folder.refresh();
    assert_eq!(folder.find(1).unwrap(), ["image"]);
    assert!(!fs::symlink_metadata(&place).unwrap().is_symlink());
    // Only root can give it to somebody else; it stays theirs.
    if std::os::unix::fs::chown(&place, Some(4321), None).is_ok() {
        let theirs = fs::read(&place).unwrap();
        folder.put("image", 2);
        folder.refresh();
        assert_eq!((folder.find(1), folder.find(2)), (None, None));
        assert_eq!(fs::read(&place).unwrap(), theirs);
    }
}

#[test]
fn cid_9_where_the_folder_cannot_be_written_the_index_is_in_the_state_folder() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    folder.put("image", 1);
    // Nothing can be made in what is no folder.
    drop(folder.host.create(Path::new("/store/.dchain")).unwrap());
    folder.refresh();
    assert_eq!(folder.find(1), None);
    let index = Index::new(&folder.host, &folder.path, Some(Path::new("/state")));
    index.refresh(&|path| folder.read(path)).unwrap();
    let found = index.offers(&id(1), &|other| *other == id(1), usize::MAX).unwrap();
    assert_eq!(found, [(id(1), PathBuf::from("/store/image"))]);
}

#[test]
fn names_that_are_no_plain_names_lead_nowhere() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    folder.put("image", 1);
    folder.refresh();
    let found = Found {
        entries: [(b"../etc/shadow".to_vec(), Entry { looks: UNKNOWN, id: Some(id(1)) })].into(),
        changed: vec![b"../etc/shadow".to_vec()],
        whole: None,
    };
    assert!(folder.index().change(&folder.place(), &found));
    assert_eq!(folder.find(1).unwrap(), ["image"]);
}

/// A failure of the engine, whatever it is, is none of the program.
#[test]
fn a_panic_of_the_engine_ends_the_turn_alone() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    folder.put("image", 1);
    folder.refresh();
    let panics = |db: &Database| -> Tried<()> {
        let write = db.begin_write()?;
        let _table = write.open_table(FILES)?;
        panic!("as if it had found something odd")
    };
    let file = folder.host.open(&folder.place(), Access::Write).unwrap();
    assert_eq!(turn(Blocks::writing(file).unwrap().unwrap(), &panics), None);
    folder.refresh();
    assert_eq!(folder.find(1).unwrap(), ["image"]);
}

/// Checksums find what decays; whatever else there may be, it costs an answer and not the program.
#[test]
fn cid_9_damage_that_checksums_do_not_show_does_not_take_the_program_down() {
    let sim = SimHost::new();
    let folder = Folder::simulated(&sim);
    for number in 1..400 {
        folder.put(&format!("image{number}"), number);
    }
    folder.refresh();
    let file = folder.host.open(&folder.place(), Access::Write).unwrap();
    let mut sound = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut sound).unwrap();
    let mut seed = crate::base::seed::Seeded::new(99);
    let (mut answers, mut refusals) = (0, 0);
    for _ in 0..80 {
        file.write_at(HostOffset::new(0), &sound).unwrap();
        let blocks = Blocks::writing(Arc::clone(&file)).unwrap().unwrap();
        let at = seed.below(120_000);
        redb::StorageBackend::write(&blocks, at, &seed.next().to_le_bytes()).unwrap();
        let wanted = id(17);
        let search = |db: &Database| -> Tried<bool> {
            let table = db.begin_read()?.open_table(IDS)?;
            Ok(table.range(wanted.bytes().as_slice()..)?.next().transpose()?.is_some())
        };
        match turn(Blocks::reading(Arc::clone(&file)).unwrap().unwrap(), &search) {
            Some(_) => answers += 1,
            None => refusals += 1,
        }
    }
    assert!(answers > 0 && refusals > 0, "{answers} answers, {refusals} refusals");
}
