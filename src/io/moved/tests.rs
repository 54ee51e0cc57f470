//! Copies between files in memory and on this machine's file system.
use super::*;
use crate::{
    base::seed::Seeded,
    io::{Host, memory::MemoryFile, real::RealHost},
};
use std::sync::Arc;

fn random(bytes: usize) -> Vec<u8> {
    let mut buf = vec![0; bytes];
    Seeded::new(1).fill(&mut buf);
    buf
}

fn read(file: &dyn File) -> Vec<u8> {
    let mut buf = vec![0; index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut buf).unwrap();
    buf
}

#[test]
fn bytes_arrive_whatever_the_kind_of_file_and_zeros_past_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let host = RealHost::new();
    let make = |name: &str| -> [Arc<dyn File>; 2] {
        [host.create(&folder.path().join(name)).unwrap(), Arc::new(MemoryFile::new(name))]
    };
    let held = random(300_000);
    for (from, n) in make("from").into_iter().zip(0..) {
        from.write_at(HostOffset::new(0), &held).unwrap();
        for to in make(&format!("to{n}")) {
            to.write_at(HostOffset::new(0), &vec![5; 450_000]).unwrap();
            let moved =
                copy(&*from, HostOffset::new(100_000), &*to, HostOffset::new(50_001), 300_000).unwrap();
            assert_eq!(moved.shared_bytes + moved.copied_bytes, 300_000);
            let mut expected = vec![5; 450_000];
            expected[50_001..250_001].copy_from_slice(&held[100_000..]);
            expected[250_001..350_001].fill(0);
            assert!(read(&*to) == expected);
        }
    }
}
