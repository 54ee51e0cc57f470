use super::*;
use crate::io::{Witness, real::RealHost};

fn fold() -> Fold {
    Fold {
        job: 7,
        mode: FoldMode::TopName,
        old_epoch: Some(Epoch::new(11)),
        new_epoch: Epoch::new(12),
        head: Witness { file_system: 1, inode: 2, bytes: 3, modified_ns: -4, boot: 5 },
        head_epoch: None,
        list_digest: [6; 32],
        list_bytes: 4096,
        view_id: None,
        size: 1 << 20,
        layers: ["top", "middle", "base"].map(PathBuf::from).to_vec(),
        result: "top".into(),
        format: "qcow2".into(),
        draft: None,
        removed: vec![Removed {
            name: "middle".into(),
            file: Witness { file_system: 6, inode: 7, bytes: 8, modified_ns: -9, boot: 0 },
        }],
        options: vec![
            ("cluster_size".to_owned(), "4096".to_owned()),
            ("preallocation".to_owned(), "a=b".to_owned()),
        ],
        bitmaps: vec![Held {
            name: "changes".to_owned(),
            granularity_bytes: 1 << 31,
            state: HeldState::Records,
        }],
    }
}

struct Folder {
    host: Arc<dyn Host>,
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["top", "middle", "base"] {
            std::fs::write(dir.path().join(name), b"image").unwrap();
        }
        Self { host: Arc::new(RealHost::new()), dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a journal, lets go of it, and changes one byte of it.
    fn broken(&self, at: usize) -> Error {
        let path = Journal::create(&self.host, &self.at("top"), fold()).unwrap().path().to_path_buf();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        Journal::find(&self.host, &self.at("top")).unwrap_err()
    }
}

#[test]
fn a_journal_tells_what_was_noted_last() {
    let folder = Folder::new();
    let top = folder.at("top");
    assert!(Journal::find(&folder.host, &top).unwrap().is_none());
    let mut journal = Journal::create(&folder.host, &top, fold()).unwrap();
    for mark in [512, 1024, 4096] {
        journal.note(Position { mark: GuestOffset::new(mark), is_ready: false }).unwrap();
    }
    drop(journal);
    let mut again = Journal::resume(&folder.host, &top).unwrap().unwrap();
    assert_eq!(again.fold(), &fold());
    assert_eq!(again.position().mark, GuestOffset::new(4096));
    again.note(Position { mark: GuestOffset::new(4096), is_ready: true }).unwrap();
    drop(again);
    let found = Journal::find(&folder.host, &top).unwrap().unwrap();
    assert!(found.position().is_ready);
    found.close().unwrap();
    assert!(Journal::find(&folder.host, &top).unwrap().is_none());
}

#[test]
fn a_journal_tells_which_regions_are_in_doubt() {
    let folder = Folder::new();
    let top = folder.at("top");
    let mut journal = Journal::create(&folder.host, &top, fold()).unwrap();
    let position = Position { mark: GuestOffset::new(512), is_ready: false };
    let last = Intent::REGIONS_MAX - 1;
    let intent = Intent { region_bytes: 1 << 20, regions: vec![0, 9, 4000, last] };
    journal.note_with(position, intent.clone()).unwrap();
    assert_eq!(Journal::find(&folder.host, &top).unwrap().unwrap().intent(), &intent);
    // What cannot be said is not said in part.
    let beyond = Intent { regions: vec![last + 1], ..intent.clone() };
    assert_eq!(journal.note_with(position, beyond).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(Journal::find(&folder.host, &top).unwrap().unwrap().intent(), &intent);
    journal.note_with(position, Intent::default()).unwrap();
    assert_eq!(Journal::find(&folder.host, &top).unwrap().unwrap().intent(), &Intent::default());
}

#[test]
fn a_torn_note_leaves_the_one_before() {
    let folder = Folder::new();
    let top = folder.at("top");
    let mut journal = Journal::create(&folder.host, &top, fold()).unwrap();
    for mark in [512, 1024] {
        journal.note(Position { mark: GuestOffset::new(mark), is_ready: false }).unwrap();
    }
    let path = journal.path().to_path_buf();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..Slot::SIZE {
        let mut torn = whole.clone();
        torn[at] ^= 1;
        std::fs::write(&path, torn).unwrap();
        let mark = Journal::find(&folder.host, &top).unwrap().unwrap().position().mark;
        assert_eq!(mark, GuestOffset::new(512), "byte {at}");
    }
}

#[test]
fn a_journal_is_held_by_one_job() {
    let folder = Folder::new();
    let top = folder.at("top");
    let held = Journal::create(&folder.host, &top, fold()).unwrap();
    assert_eq!(Journal::resume(&folder.host, &top).unwrap_err().kind(), ErrorKind::Busy);
    assert!(Journal::find(&folder.host, &top).unwrap().is_some());
    drop(held);
    assert!(Journal::resume(&folder.host, &top).unwrap().is_some());
}

#[test]
fn a_broken_journal_is_refused_by_field() {
    let folder = Folder::new();
    let error = folder.broken(0);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(".journal: neither slot of the done-mark holds together"), "{error}");
    for (at, field) in [(8192, "magic"), (8192 + 9, "version"), (8192 + 40, "checksum"), (8192 + 228, "end")]
    {
        let error = Folder::new().broken(at).to_string();
        assert!(error.contains(field) || error.contains("checksum"), "{at}: {error}");
    }
}

#[test]
fn a_journal_with_names_that_no_job_has_is_refused_by_field() {
    let gone = |name: &str| vec![Removed { name: name.into(), ..fold().removed[0].clone() }];
    let draft = |name: &str| Fold { mode: FoldMode::EmptyTop, draft: Some(name.into()), ..fold() };
    let layers = |names: [&str; 2]| names.map(PathBuf::from).to_vec();
    let all = [
        ("layer 0 'sub/top'", Fold { layers: layers(["sub/top", "base"]), ..fold() }),
        ("result '../victim'", Fold { result: "../victim".into(), ..fold() }),
        ("result 'top'", Fold { mode: FoldMode::TargetName, ..fold() }),
        ("draft ''", Fold { mode: FoldMode::EmptyTop, ..fold() }),
        ("draft 'victim'", draft("victim")),
        ("draft '../.top.dchain-draft-0'", draft("../.top.dchain-draft-0")),
        ("draft '.top.dchain-draft-0'", Fold { mode: FoldMode::TopName, ..draft(".top.dchain-draft-0") }),
        ("removed 'top'", Fold { removed: gone("top"), ..fold() }),
        ("removed 'base'", Fold { removed: gone("base"), ..fold() }),
    ];
    for (field, fold) in all {
        let folder = Folder::new();
        drop(Journal::create(&folder.host, &folder.at("top"), fold).unwrap());
        let error = Journal::all(&folder.host, folder.dir.path()).unwrap().remove(0).1.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
    for sound in [fold(), draft(".top.dchain-draft-0")] {
        let folder = Folder::new();
        drop(Journal::create(&folder.host, &folder.at("top"), sound.clone()).unwrap());
        assert_eq!(Journal::find(&folder.host, &folder.at("top")).unwrap().unwrap().fold(), &sound);
    }
}

#[test]
fn a_journal_cut_anywhere_is_refused() {
    let folder = Folder::new();
    let top = folder.at("top");
    let path = Journal::create(&folder.host, &top, fold()).unwrap().path().to_path_buf();
    let whole = std::fs::read(&path).unwrap();
    let plan = whole.len() - 300;
    for end in (0..plan).step_by(997).chain((plan..whole.len()).step_by(7)) {
        std::fs::write(&path, &whole[..end]).unwrap();
        let error = Journal::find(&folder.host, &top).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {end}: {error}");
    }
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(Journal::find(&folder.host, &top).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_journal_binds_its_own_child_and_epochs_only() {
    let folder = Folder::new();
    let (middle, base) = (folder.at("middle"), folder.at("base"));
    let journal = Journal::create(&folder.host, &folder.at("top"), fold()).unwrap();
    let binds = |child: &Path, parent: &Path, was: Option<u128>, is| {
        journal.binds(child, parent, was.map(Epoch::new), Epoch::new(is)).unwrap()
    };
    for claimed in [Some(11), None] {
        assert!(binds(&middle, &base, claimed, 12));
        assert!(!binds(&middle, &base, claimed, 13), "another new epoch");
        assert!(!binds(&folder.at("top"), &base, claimed, 12), "another child");
        assert!(!binds(&middle, &folder.at("top"), claimed, 12), "another parent");
    }
    assert!(!binds(&middle, &base, Some(10), 12), "another old epoch");
}
