//! Blocks of files on this machine's own file system.

use super::*;
use crate::{
    base::seed::Seeded,
    io::{Host, memory::MemoryFile, real::RealHost},
};
use std::{path::Path, sync::Arc};

const BYTES: u64 = 1 << 20;

fn random(host: &RealHost, path: &Path) -> Arc<dyn File> {
    let mut bytes = vec![0; 1 << 20];
    Seeded::new(3).fill(&mut bytes);
    let file = host.create(path).unwrap();
    file.write_at(HostOffset::new(0), &bytes).unwrap();
    file.flush().unwrap();
    file
}

fn shared(a: &dyn File, at: u64, b: &dyn File, other_at: u64, bytes: u64) -> bool {
    Blocks::new(a).are_shared(HostOffset::new(at), &mut Blocks::new(b), HostOffset::new(other_at), bytes)
}

#[test]
fn a_file_shares_its_blocks_with_itself_and_with_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::new();
    let [a, b] = ["a", "b"].map(|name| random(&host, &folder.path().join(name)));
    // A file system without FIEMAP (tmpfs) never gives a proof.
    let is_known = shared(&*a, 4096, &*a, 4096, 8192);
    assert_eq!(shared(&*a, 0, &*a, 0, BYTES), is_known);
    assert!(!shared(&*a, 0, &*a, 4096, 8192), "another place");
    assert!(!shared(&*a, 0, &*b, 0, 4096), "equal bytes in other blocks");
    assert!(!shared(&*a, BYTES, &*a, BYTES, 4096), "no blocks at all");
    let memory = MemoryFile::new("m");
    assert!(!shared(&memory, 0, &memory, 0, 4096));
}
