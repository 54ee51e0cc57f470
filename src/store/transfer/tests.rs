//! Whose note is believed.

use super::*;
use crate::io::real::RealHost;
use std::{fs, os::unix::fs::chown};

#[test]
fn a_note_that_somebody_else_wrote_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let (head, source) = (folder.path().join("head"), folder.path().join("source"));
    fs::write(&source, "disk").unwrap();
    let witness = host.witness(&source).unwrap();
    let open = || Transfer::open(&host, folder.path(), &head).unwrap();
    let left = Left { format: "raw".into(), files: vec![(source, witness)] };
    open().leave(vec![left.clone()]).unwrap();
    assert_eq!(open().left(), [left]);
    let note = fs::read_dir(folder.path().join(FOLDER)).unwrap().next().unwrap().unwrap().path();
    if let Err(why) = chown(note, Some(12345), None) {
        println!("skipped: only root gives files away: {why}");
        return;
    }
    assert!(open().left().is_empty());
}
