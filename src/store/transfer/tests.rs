//! Whose note is believed.

use super::*;
use crate::{base::name::FileName, io::real::RealHost};
use std::{fs, os::unix::fs::chown};

/// A folder with a source and its copy, and a note that says so.
struct Story {
    folder: tempfile::TempDir,
    host: Arc<dyn Host>,
    left: Left,
    part: Part,
}

impl Story {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let source = folder.path().join("disk");
        fs::write(&source, "disk").unwrap();
        fs::create_dir(folder.path().join("there")).unwrap();
        fs::copy(&source, folder.path().join("there/disk")).unwrap();
        let witness = host.witness(&source).unwrap();
        let whole = Some(host.witness(&folder.path().join("there/disk")).unwrap());
        let temporary = FileName(".disk.dchain-draft-0".into());
        let further = Vec::new();
        let part = Part { source: witness, further, temporary, done_bytes: 0, whole, form: String::new() };
        Self {
            folder,
            host,
            left: Left { format: "raw".into(), files: vec![(FileName(source), witness)] },
            part,
        }
    }

    fn open(&self) -> Result<Transfer> {
        Transfer::open(&self.host, &self.folder.path().join("there"), &self.folder.path().join("disk"))
    }

    /// What the next run hears of this note.
    fn told(&self, name: &str, part: Part, left: Left) -> Result<Vec<Left>> {
        let mut note = self.open().unwrap();
        note.content.parts = BTreeMap::from([(FileName(name.into()), part)]);
        note.leave(vec![left]).unwrap();
        let told = self.open().map(|note| note.left().to_vec());
        note.close().unwrap();
        told
    }
}

#[test]
fn a_note_that_somebody_else_wrote_is_not_believed() {
    let story = Story::new();
    let mut note = story.open().unwrap();
    note.note(Path::new("disk"), story.part.clone()).unwrap();
    note.leave(vec![story.left.clone()]).unwrap();
    assert_eq!(story.open().unwrap().left(), std::slice::from_ref(&story.left));
    let note = fs::read_dir(story.folder.path().join("there").join(FOLDER)).unwrap().next().unwrap().unwrap();
    assert!(Transfer::is_name(&note.path()));
    if let Err(why) = chown(note.path(), Some(12345), None) {
        println!("skipped: only root gives files away: {why}");
        return;
    }
    assert!(story.open().unwrap().left().is_empty());
}

#[test]
fn a_source_without_a_copy_in_the_note_stays() {
    let (story, another) = (Story::new(), Story::new());
    story.open().unwrap().leave(vec![story.left.clone()]).unwrap();
    assert!(story.open().unwrap().left().is_empty(), "no parts at all");
    let (mine, copy) = (|| story.left.clone(), || story.part.clone());
    assert_eq!(story.told("disk", copy(), mine()).unwrap(), [mine()]);
    fs::copy(story.folder.path().join("disk"), story.folder.path().join("there/other")).unwrap();
    let whole = Some(story.host.witness(&story.folder.path().join("there/other")).unwrap());
    assert!(story.told("other", Part { whole, ..copy() }, mine()).unwrap().is_empty(), "another name");
    let source = another.part.source;
    assert!(story.told("disk", Part { source, ..copy() }, mine()).unwrap().is_empty(), "another source");
}

#[test]
fn a_note_with_names_that_lead_elsewhere_is_refused_by_field() {
    let story = Story::new();
    let (left, part) = (|| story.left.clone(), || story.part.clone());
    let elsewhere =
        |source: &str| Left { files: vec![(FileName(source.into()), story.part.source)], ..left() };
    let temporary = |name: &str| Part { temporary: FileName(name.into()), ..part() };
    let beside = story.folder.path().join("sub/../disk").display().to_string();
    for (field, told) in [
        ("parts: '../disk'", story.told("../disk", part(), left())),
        ("parts: '/disk'", story.told("/disk", part(), left())),
        ("parts: '..'", story.told("..", part(), left())),
        ("temporary: '../.x.dchain-draft-0'", story.told("disk", temporary("../.x.dchain-draft-0"), left())),
        ("temporary: 'precious'", story.told("disk", temporary("precious"), left())),
        ("left: '/etc/passwd'", story.told("disk", part(), elsewhere("/etc/passwd"))),
        ("left: '", story.told("disk", part(), elsewhere(&beside))),
    ] {
        let error = told.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(field) && Transfer::is_name(error.file().unwrap()), "{error}");
    }
}
