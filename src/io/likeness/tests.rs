//! Permissions of files on this machine.

use super::*;
use crate::io::{Host, memory::MemoryFile, real::RealHost};
use std::{fs, os::unix::fs::PermissionsExt};

#[test]
fn a_file_that_takes_anothers_place_is_as_private_as_that_was() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::new();
    let [model, file] = ["model", "file"].map(|name| host.create(&folder.path().join(name)).unwrap());
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    for wanted in [0o600, 0o640, 0o444] {
        fs::set_permissions(folder.path().join("model"), fs::Permissions::from_mode(wanted)).unwrap();
        let likeness = Likeness::of(&*model).unwrap();
        likeness.at_work().give(&*file);
        assert_eq!(mode("file"), wanted | 0o600);
        likeness.give(&*file);
        assert_eq!(mode("file"), wanted);
    }
    assert_eq!(Likeness::of(&MemoryFile::new("m")), None);
}
