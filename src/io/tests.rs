//! Every kind of file against a plain vector of bytes.
use super::{faulty::SimHost, memory::MemoryFile, real::RealHost, *};
use crate::base::{HostOffset, units::index};
use proptest::prelude::*;
use std::sync::Arc;

const SPACE: u64 = 200_000;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, Kept),
    Allocate(u64, u64),
    SetBytes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..SPACE;
    let bytes = 0..SPACE / 2;
    prop_oneof![
        4 => (at.clone(), bytes.clone(), 1u8..).prop_map(|(at, n, fill)| Step::Write(at, n, fill)),
        2 => (at.clone(), bytes.clone(), prop_oneof![Just(Kept::Space), Just(Kept::Nothing)])
            .prop_map(|(at, n, kept)| Step::Zero(at, n, kept)),
        1 => (at.clone(), bytes).prop_map(|(at, n)| Step::Allocate(at, n)),
        1 => at.prop_map(Step::SetBytes),
    ]
}

/// What the step leaves of a plain vector.
fn model(bytes: &mut Vec<u8>, step: &Step) {
    let mut grow = |end: u64| bytes.resize(bytes.len().max(index(end)), 0);
    match *step {
        Step::Write(at, n, fill) if n > 0 => {
            grow(at + n);
            bytes[index(at)..index(at + n)].fill(fill);
        }
        Step::Zero(at, n, kept) if n > 0 => {
            if kept == Kept::Space {
                grow(at + n);
            }
            let end = bytes.len().min(index(at + n));
            bytes[index(at).min(end)..end].fill(0);
        }
        Step::Allocate(at, n) if n > 0 => grow(at + n),
        Step::SetBytes(n) => bytes.resize(index(n), 0),
        _ => {}
    }
}

fn perform(file: &dyn File, step: &Step) {
    let at = |at| HostOffset::new(at);
    match *step {
        Step::Write(start, n, fill) => file.write_at(at(start), &vec![fill; index(n)]),
        Step::Zero(start, n, kept) => file.zero(at(start).range(n), kept),
        Step::Allocate(start, n) => file.allocate(at(start).range(n)),
        Step::SetBytes(n) => file.set_bytes(n),
    }
    .unwrap();
}

/// Compares contents and holes.
fn compare(file: &dyn File, expected: &[u8]) {
    assert_eq!(file.bytes().unwrap(), expected.len() as u64);
    let mut read = vec![9; expected.len() + 100];
    file.read_at(HostOffset::new(0), &mut read).unwrap();
    assert!(read[..expected.len()] == *expected && read[expected.len()..].iter().all(|b| *b == 0));
    let mut at = HostOffset::new(0);
    while at.bytes() < expected.len() as u64 {
        let run = file.run_at(at).unwrap();
        assert!(run.range.start == at && !run.range.is_empty(), "{run:?}");
        let part = &expected[index(at.bytes())..index(run.range.end().bytes())];
        assert!(run.is_data || part.iter().all(|b| *b == 0), "data in a hole: {run:?}");
        at = run.range.end();
    }
    assert!(file.run_at(at).unwrap().range.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_file_behaves_like_a_vector_of_bytes(steps in prop::collection::vec(step(), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let real = RealHost::new().create(&folder.path().join("file")).unwrap();
        let simulated = SimHost::new().create("/file".as_ref()).unwrap();
        let files: [Arc<dyn File>; 3] = [Arc::new(MemoryFile::new("memory")), real, simulated];
        let mut expected = Vec::new();
        for step in steps {
            model(&mut expected, &step);
            for file in &files {
                perform(&**file, &step);
                compare(&**file, &expected);
            }
        }
    }
}
