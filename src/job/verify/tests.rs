//! Chains of raw bases and qcow2 children in memory: what is named when bytes change or cannot be read.

use super::*;
use crate::{
    base::{HostOffset, HostRange},
    chain::Opening,
    disk::Disk,
    format::{self, Format, NoParts},
    io::{self, Access, Descriptor, File, Host, Kept, Witness, faulty::SimHost, memory::MemoryFile},
    job::{seal, snapshot::snapshot},
};
use std::{io::ErrorKind as OsKind, path::Path, sync::Arc};

const LEAF: usize = 65536;
const SIZE: usize = 8 * LEAF;

struct Bench {
    host: Arc<dyn Host>,
    ledger: Ledger,
}

impl Bench {
    /// A raw base of eight leaves, full of ones.
    fn new() -> Self {
        let host: Arc<dyn Host> = Arc::new(SimHost::new());
        let base = host.create(Path::new("/base")).unwrap();
        base.write_at(HostOffset::new(0), &vec![1; SIZE]).unwrap();
        base.flush().unwrap();
        let ledger = Ledger::new(Arc::clone(&host), None);
        Self { host, ledger }
    }

    fn child(&self, parent: &str, child: &str, writes: &[(usize, usize)]) {
        let opening = Opening::reading().with_ledger(self.ledger.clone());
        snapshot(&self.host, Path::new(parent), Path::new(child), &[], &opening).unwrap();
        let chain = Chain::open(&self.host, Path::new(child), &opening.with_access(Access::Write)).unwrap();
        for (at, bytes) in writes {
            chain.write(GuestOffset::new(*at as u64), &vec![2; *bytes]).unwrap();
        }
        chain.flush().unwrap();
    }

    fn seal(&self, image: &str) {
        let layers = seal::open_layers(&self.host, Path::new(image), &Opening::reading()).unwrap();
        seal::seal(&self.ledger, &layers, &Progress::default()).unwrap();
    }

    /// Writes behind everybody's back.
    fn harm(&self, at: usize) {
        let base = self.host.open(Path::new("/base"), Access::Write).unwrap();
        base.write_at(HostOffset::new(at as u64), &[9; 100]).unwrap();
    }

    fn chain(&self, image: &str) -> Chain {
        Chain::open(&self.host, Path::new(image), &Opening::reading()).unwrap()
    }

    fn verify(&self, image: &str) -> Verified {
        verify(&self.ledger, &self.chain(image), &Progress::default()).unwrap()
    }
}

fn leaves(of: &[usize]) -> Vec<GuestRange> {
    of.iter().map(|leaf| GuestOffset::new((leaf * LEAF) as u64).range(LEAF as u64)).collect()
}

#[test]
fn a_leaf_that_was_changed_behind_our_back_is_named() {
    let bench = Bench::new();
    assert_eq!(bench.verify("/base").verdict, Verdict::Open);
    bench.seal("/base");
    let sound = bench.verify("/base");
    assert_eq!((sound.verdict, sound.read_bytes), (Verdict::Kept, SIZE as u64));
    bench.harm(3 * LEAF + 5);
    let broken = bench.verify("/base");
    assert_eq!(broken.verdict, Verdict::Broken { leaves: leaves(&[3]), size: SIZE as u64 });
    assert_ne!(broken.shown, sound.shown);
}

#[test]
fn a_head_without_an_id_is_held_against_what_lies_below_where_it_is_silent() {
    let bench = Bench::new();
    bench.seal("/base");
    bench.child("/base", "/head", &[(2 * LEAF, 10), (5 * LEAF, LEAF)]);
    let sound = bench.verify("/head");
    assert_eq!(sound.verdict, Verdict::Kept);
    assert!(!sound.promise.unwrap().is_own);
    // One leaf that the head hides, one that it holds a part of, one that is seen.
    bench.harm(5 * LEAF);
    assert_eq!(bench.verify("/head").verdict, Verdict::Kept);
    bench.harm(3 * LEAF - 200);
    bench.harm(7 * LEAF);
    let Verdict::Broken { leaves: found, .. } = bench.verify("/head").verdict else { panic!("kept") };
    assert_eq!(found, leaves(&[7]));
}

#[test]
fn what_changed_below_a_layer_is_told_and_what_of_it_is_hidden() {
    let bench = Bench::new();
    bench.seal("/base");
    bench.child("/base", "/middle", &[(LEAF, LEAF)]);
    bench.child("/middle", "/head", &[(3 * LEAF, LEAF), (4 * LEAF, 100)]);
    let id = bench.verify("/base").shown.unwrap();
    for leaf in [1, 3, 4, 6] {
        bench.harm(leaf * LEAF + 70);
    }
    let below = |depth, of: &str| {
        changed_below(&bench.ledger, &bench.chain(of), depth, &id, &Progress::default()).unwrap().unwrap()
    };
    let by_head = below(1, "/head");
    assert_eq!(by_head.leaves, [leaves(&[1])[0], range(3, 5), leaves(&[6])[0]]);
    assert_eq!(by_head.hidden, [leaves(&[1])[0], range(3, 5)], "a cluster is as large as a leaf");
    assert_eq!(below(0, "/middle").hidden, leaves(&[1]));
}

fn range(from: usize, to: usize) -> GuestRange {
    GuestRange::between(GuestOffset::new((from * LEAF) as u64), GuestOffset::new((to * LEAF) as u64))
}

/// A disk of which a part cannot be read.
#[derive(Debug)]
struct BadPart {
    file: MemoryFile,
    bad: HostRange,
}

impl File for BadPart {
    fn path(&self) -> &Path {
        self.file.path()
    }
    fn bytes(&self) -> Result<u64> {
        self.file.bytes()
    }
    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        if at.range(buf.len() as u64).overlaps(self.bad) {
            return Err(Error::io("read", OsKind::Other.into()));
        }
        self.file.read_at(at, buf)
    }
    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        self.file.write_at(at, buf)
    }
    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        self.file.zero(range, kept)
    }
    fn zeroes_fast(&self, kept: Kept) -> bool {
        self.file.zeroes_fast(kept)
    }
    fn allocate(&self, range: HostRange) -> Result<()> {
        self.file.allocate(range)
    }
    fn set_bytes(&self, bytes: u64) -> Result<()> {
        self.file.set_bytes(bytes)
    }
    fn flush(&self) -> Result<()> {
        self.file.flush()
    }
    fn flush_with_time(&self) -> Result<()> {
        self.file.flush_with_time()
    }
    fn run_at(&self, at: HostOffset) -> Result<io::Run> {
        self.file.run_at(at)
    }
    fn witness(&self) -> Result<Witness> {
        self.file.witness()
    }
    fn allocated_bytes(&self) -> Result<u64> {
        self.file.allocated_bytes()
    }
    fn descriptor(&self) -> Option<Descriptor> {
        None
    }
    fn is_device(&self) -> bool {
        false
    }
    fn set_access(&self, _access: Access) -> Result<()> {
        Ok(())
    }
}

#[test]
fn what_cannot_be_read_is_named_and_all_else_is_hashed() {
    let file = MemoryFile::new("disk.raw");
    file.write_at(HostOffset::new(0), &vec![1; SIZE]).unwrap();
    let bad = HostRange::between(HostOffset::new(3 * 65536 - 5000), HostOffset::new(3 * 65536 + 1));
    let file: Arc<dyn File> = Arc::new(BadPart { file, bad });
    let image = format::open(Format::Raw, file, false, &NoParts).unwrap();
    let layer = Layer { path: PathBuf::from("disk.raw"), is_stated: true, image };
    let (hashed, unread) = readable_tree(&View::new(&[layer]), &Progress::default()).unwrap();
    let named: Vec<_> = unread.iter().map(|unread| unread.range).collect();
    assert_eq!(named, [GuestOffset::new(3 * 65536 - 8192).range(12288)]);
    let mut expected = Tree::of(&vec![1; SIZE]);
    expected.clear(2, 4);
    assert_eq!(hashed.tree, expected);
}
