//! Every format as the parent of every format that can name it: written, folded both ways, copied by content ID, converted,
//! held against a model's bytes and against what qemu reads.
//!
//! A format that joins [`Format::ALL`] joins here. What a format can is found by asking it.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{ErrorKind, GuestOffset, seed::Seeded, units::index},
    chain::{Chain, Opening, check_layer},
    content::Tree,
    disk::Disk,
    format::{Format, Repair},
    io::{Access, Host, Kept, real::RealHost},
    job::{
        Progress,
        consolidate::{Consolidation, NewImage as NewTarget, Pace, Request, Verify},
        convert::convert,
        copy::{self, Conversion, Copy, Placed, Share},
        create::{NewImage, create},
        rebase::NewParent,
        seal,
    },
    store::Ledger,
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// No whole number of blocks of any format, nor of clusters.
const SIZE: u64 = (2 << 20) + 3 * 512;
const PACE: Pace = Pace { move_bytes: 256 << 10, mark_bytes: 512 << 10, adopted_pieces: 2 };

/// Options that make several blocks of so small a disk.
fn small(format: Format) -> Vec<(String, String)> {
    let option = match format {
        Format::Vhdx => Some(("block_size", "1M")),
        Format::Vpc => Some(("block_size", "512K")),
        _ => None,
    };
    option.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A chain in a folder of its own, and what its head shows.
struct World {
    folder: Scratch,
    host: Arc<dyn Host>,
    ledger: Ledger,
    seed: Seeded,
    /// The layers, the base first.
    layers: Vec<(PathBuf, Format)>,
    /// What each of them shows.
    views: Vec<Vec<u8>>,
}

impl World {
    /// Makes a base of that format, and writes to it.
    fn new(format: Format, seed: u64) -> Self {
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let ledger = Ledger::new(Arc::clone(&host), None);
        let folder = Scratch::in_memory();
        let (layers, views) = (Vec::new(), vec![vec![0; index(SIZE)]]);
        let mut world = Self { folder, host, ledger, seed: Seeded::new(seed), layers, views };
        let base = world.folder.file(&format!("base.{format}"));
        let new = NewImage { format, size: Some(SIZE), parent: None, options: small(format) };
        create(&world.host, &base, &new, &world.opening()).unwrap();
        world.layers.push((base, format));
        world.write();
        world
    }

    /// Puts a child of that format on the head, and writes to it; false if the format has no children.
    fn grow(&mut self, format: Format) -> bool {
        self.grow_to(format, SIZE)
    }

    /// The same, the child's disk having another size.
    fn grow_to(&mut self, format: Format, size: u64) -> bool {
        let (path, parent) = self.head();
        let parent = Some(NewParent { path, format: parent });
        let child = self.folder.file(&format!("child-{}.{format}", self.layers.len()));
        let new = NewImage { format, size: Some(size), parent, options: small(format) };
        match create(&self.host, &child, &new, &self.opening()) {
            Err(error) if error.kind() == ErrorKind::Unsupported => return false,
            made => drop(made.unwrap_or_else(|e| panic!("{format} on {}: {e}", self.head().1))),
        }
        self.layers.push((child, format));
        let mut shown = self.shown().to_vec();
        shown.resize(index(size), 0);
        self.views.push(shown);
        self.write();
        true
    }

    fn head(&self) -> (PathBuf, Format) {
        self.layers.last().unwrap().clone()
    }

    fn shown(&self) -> &[u8] {
        self.views.last().unwrap()
    }

    fn opening(&self) -> Opening {
        Opening::reading().with_ledger(self.ledger.clone())
    }

    fn chain(&self, access: Access) -> Chain {
        let (head, format) = self.head();
        let how = self.opening().with_access(access).with_format(Some(format));
        Chain::open(&self.host, &head, &how).unwrap_or_else(|e| panic!("{:?}: {e}", self.layers))
    }

    /// Data and zeros, in whole sectors and parts of them, here and there and across units.
    fn write(&mut self) {
        let chain = self.chain(Access::Write);
        let disk = self.views.last_mut().unwrap();
        let size = disk.len() as u64;
        for nth in 0..9 {
            let at = self.seed.below(size);
            let most = [700, 9000, 80_000, 600_000][index(self.seed.below(4))];
            let bytes = (1 + self.seed.below(most)).min(size - at);
            let part = &mut disk[index(at)..index(at + bytes)];
            if nth % 3 == 2 {
                part.fill(0);
                let kept = if nth == 2 { Kept::Space } else { Kept::Nothing };
                chain.zero(GuestOffset::new(at).range(bytes), kept).unwrap();
            } else {
                self.seed.fill(part);
                chain.write(GuestOffset::new(at), part).unwrap();
            }
        }
        chain.flush().unwrap();
    }

    /// The image at `path` shows what the head shows, is sound, and qemu, where it reads it at all, reads the same.
    fn check(&self, path: &Path, format: Format, what: &str) {
        let what = format!("{what}: {:?}", self.layers);
        let how = self.opening().with_format(Some(format));
        let chain = Chain::open(&self.host, path, &how).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut seen = vec![9; index(chain.size())];
        chain.read(GuestOffset::new(0), &mut seen).unwrap();
        assert_same(&seen, self.shown(), &what);
        let depth = chain.layers().len();
        drop(chain);
        if format != Format::Raw {
            let writing = self.opening().with_access(Access::Write).with_format(Some(format));
            let (_, checked) = check_layer(&self.host, path, &writing, Repair::Nothing).unwrap();
            assert_eq!(
                (checked.corruptions, checked.leaks, checked.errors),
                (0, 0, 0),
                "{what}: {checked:?}"
            );
        }
        if depth == 1 {
            assert_same(&self.folder.flat(format.name(), path.to_str().unwrap()), self.shown(), &what);
        }
    }

    fn seal(&self) {
        let layers = seal::open_layers(&self.host, &self.head().0, &self.opening()).unwrap();
        let sealed = seal::seal(&self.ledger, &layers, &Progress::default()).unwrap();
        for (sealed, view) in sealed.iter().rev().zip(&self.views) {
            assert_eq!(sealed.id, Tree::of(view).id(), "{:?}", self.layers);
        }
    }

    fn fold(&self, request: &Request) -> PathBuf {
        let what = format!("{:?}, {request:?}", self.layers);
        let (head, format) = self.head();
        let how = self.opening().with_format(Some(format));
        let job = Consolidation::prepare(&self.host, &head, &how, request)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        job.run(PACE, &Progress::default()).unwrap_or_else(|e| panic!("{what}: {e}")).plan.result
    }
}

/// Calls `test` for a chain of two of every pair of formats that can be one; returns how many there are.
fn each_pair(test: impl Fn(World)) -> usize {
    let mut pairs = 0;
    for (nth, parent) in (100..).step_by(100).zip(Format::ALL) {
        for (seed, child) in (nth..).zip(Format::ALL) {
            let mut world = World::new(parent, seed);
            if world.grow(child) {
                test(world);
                pairs += 1;
            } else {
                assert_eq!(child, Format::Raw, "{child} on {parent}");
            }
        }
    }
    assert_eq!(pairs, Format::ALL.len() * (Format::ALL.len() - 1));
    pairs
}

#[test]
fn what_is_written_to_a_child_is_read_and_sealed_in_every_pair() {
    each_pair(|world| {
        let (head, format) = world.head();
        world.check(&head, format, "written");
        world.seal();
        world.check(&head, format, "sealed");
    });
}

fn fold_down(keeps_target_name: bool) {
    each_pair(|mut world| {
        let result = world.fold(&Request { keeps_target_name, verify: Verify::Bytes, ..Request::default() });
        let (base, base_format) = world.layers[0].clone();
        assert_eq!(result, if keeps_target_name { base.clone() } else { world.head().0 });
        let chain = Chain::open(&world.host, &result, &world.opening()).unwrap();
        let [.., last] = chain.layers() else { panic!("no layers") };
        let format = chain.layers()[0].format();
        assert_eq!(last.format(), base_format);
        drop(chain);
        world.check(&result, format, "folded");
        // Somebody goes on with it.
        let shown = world.shown().to_vec();
        (world.layers, world.views) = (vec![(result, format)], vec![shown]);
        world.write();
        world.check(&world.head().0, format, "written after the fold");
    });
}

#[test]
fn a_child_is_folded_into_its_parent_in_every_pair() {
    fold_down(false);
}

#[test]
fn a_child_is_folded_into_its_parent_whose_name_stays_in_every_pair() {
    fold_down(true);
}

/// A size that the base cannot have is refused before anything is written.
/// Hyper-V, VMware and qemu know a parent by what its format says of it.
#[test]
fn a_fold_below_another_programs_child_leaves_it_its_parent_in_every_pair() {
    each_pair(|world| {
        let ((base, below), (top, format)) = (world.layers[0].clone(), world.head());
        let child = world.folder.file("stranger");
        let parent = Some(NewParent { path: top, format });
        let new = NewImage { format, size: Some(SIZE), parent, options: small(format) };
        create(&world.host, &child, &new, &Opening::reading()).unwrap();
        world.fold(&Request { into: Some(base), ..Request::default() });
        let how = world.opening().with_format(Some(format));
        let chain =
            Chain::open(&world.host, &child, &how).unwrap_or_else(|e| panic!("{format} on {below}: {e}"));
        let mut seen = vec![9; index(SIZE)];
        chain.read(GuestOffset::new(0), &mut seen).unwrap();
        assert_same(&seen, world.shown(), &format!("{format} on {below}"));
        if (below, format) == (Format::Vmdk, Format::Vmdk) {
            assert_same(&world.folder.flat("vmdk", child.to_str().unwrap()), &seen, "by qemu");
        }
    });
}

#[test]
fn a_child_of_another_size_is_folded_or_refused_at_once_in_every_pair() {
    for size in [SIZE + 700 * 512, SIZE - 900 * 512] {
        let (mut folded, mut refused) = (0, 0);
        for (nth, base) in (5000..).step_by(100).zip(Format::ALL) {
            for (seed, child) in (nth..).zip(Format::ALL).filter(|(_, child)| *child != Format::Raw) {
                let mut world = World::new(base, seed);
                assert!(world.grow_to(child, size));
                let (head, format) = world.head();
                world.check(&head, format, "another size");
                let how = world.opening().with_format(Some(format));
                let job = match Consolidation::prepare(&world.host, &head, &how, &Request::default()) {
                    Err(error) if [ErrorKind::Unsupported, ErrorKind::Invalid].contains(&error.kind()) => {
                        assert!(error.to_string().contains("size"), "{error}");
                        world.check(&head, format, "refused");
                        refused += 1;
                        continue;
                    }
                    job => job.unwrap_or_else(|e| panic!("{child} on {base}: {e}")),
                };
                let done = job.run(PACE, &Progress::default());
                let result = done.unwrap_or_else(|e| panic!("{child} on {base}: {e}")).plan.result;
                let chain = Chain::open(&world.host, &result, &world.opening()).unwrap();
                let format = chain.layers()[0].format();
                drop(chain);
                world.check(&result, format, "folded");
                folded += 1;
            }
        }
        println!("{folded} folded, {refused} refused");
        assert!(folded > refused, "{folded} {refused}");
    }
}

#[test]
fn a_chain_is_folded_into_a_new_image_in_every_pair() {
    each_pair(|world| {
        let pair = [world.layers[0].1, world.layers[1].1];
        let other = Format::ALL.into_iter().find(|format| !pair.contains(format)).unwrap();
        for format in [pair[0], other] {
            let path = world.folder.file(&format!("new.{format}"));
            let new = Some(NewTarget { path: path.clone(), format: Some(format), options: Vec::new() });
            let result = world.fold(&Request { new, ..Request::default() });
            assert_eq!(result, path);
            world.check(&path, format, "a new image");
            let (head, format) = world.head();
            world.check(&head, format, "the old chain");
        }
    });
}

#[test]
fn a_child_finds_its_parent_by_content_id_whatever_its_format() {
    each_pair(|world| {
        world.seal();
        let (head, format) = world.head();
        let (base, base_format) = &world.layers[0];
        let store = world.folder.file("store");
        fs::create_dir(&store).unwrap();
        // Of another format, where there is one, and under another name.
        let other = Format::ALL.into_iter().find(|other| other != base_format).unwrap();
        let golden = store.join("golden");
        let how = world.opening().with_format(Some(*base_format));
        let source = Chain::open(&world.host, base, &how).unwrap();
        convert(&world.host, &source.view(0), &golden, (other, &[], false), &Progress::default()).unwrap();
        drop(source);
        let layers =
            seal::open_layers(&world.host, &golden, &world.opening().with_format(Some(other))).unwrap();
        seal::seal(&world.ledger, &layers, &Progress::default()).unwrap();
        drop(layers);
        let request = copy::Request { verify: true, ..copy::Request::default() };
        let how = world.opening().with_format(Some(format));
        let copy = Copy::prepare(&world.host, &world.ledger, (&head, &store), &how, request).unwrap();
        let linked = copy
            .plan()
            .layers
            .iter()
            .any(|placed| matches!(placed, Placed::Link { to, .. } if *to == golden));
        assert!(linked, "{:?}", copy.plan());
        let there = copy.run(&Progress::default()).unwrap().head;
        world.check(&there, format, "copied");
        // The layers as they are.
        let apart = world.folder.file("apart");
        fs::create_dir(&apart).unwrap();
        let request = copy::Request { verify: true, share: Share::Deny, ..copy::Request::default() };
        let copy = Copy::prepare(&world.host, &world.ledger, (&head, &apart), &how, request).unwrap();
        world.check(&copy.run(&Progress::default()).unwrap().head, format, "copied apart");
    });
}

#[test]
fn a_chain_becomes_one_of_any_format_layer_by_layer() {
    each_pair(|world| {
        let other = |format: &Format| *format != Format::Raw && *format != world.layers[1].1;
        for format in Format::ALL.into_iter().filter(other).take(2) {
            let store = world.folder.file(&format!("to-{format}"));
            fs::create_dir(&store).unwrap();
            let conversion =
                Conversion { format, options: Vec::new(), is_packed: false, names: BTreeMap::new() };
            let request = copy::Request {
                share: Share::Deny,
                conversion: Some(conversion),
                ..copy::Request::default()
            };
            let (head, own) = world.head();
            let how = world.opening().with_format(Some(own));
            let copy = Copy::prepare(&world.host, &world.ledger, (&head, &store), &how, request).unwrap();
            let report = copy.run(&Progress::default()).unwrap();
            let ids: Vec<_> = world.views.iter().map(|view| Tree::of(view).id()).collect();
            assert_eq!(report.proved.iter().map(|proved| proved.id).collect::<Vec<_>>(), ids);
            world.check(&report.head, format, "in another format");
        }
    });
}

/// Of a VHD's child qemu leaves the parent out, whatever that is, and always has; a header has no place for a word against it.
#[test]
fn qemu_reads_what_lies_on_children_right_or_refuses_it() {
    let (mut right, mut refused) = (0, 0);
    for (nth, base) in (2000..).step_by(100).zip(Format::ALL) {
        for (seed, middle) in (nth..).step_by(10).zip(Format::ALL) {
            for (seed, top) in (seed..).zip(Format::ALL).filter(|(_, top)| *top != Format::Vpc) {
                let mut world = World::new(base, seed);
                if !(world.grow(middle) && world.grow(top)) {
                    continue;
                }
                let (head, format) = world.head();
                world.check(&head, format, "three layers");
                let out = world.folder.file("by-qemu");
                let arguments = [
                    Path::new("convert"),
                    Path::new("-f"),
                    Path::new(format.name()),
                    Path::new("-O"),
                    Path::new("raw"),
                    &head,
                    &out,
                ];
                if world.folder.try_run("qemu-img", arguments).status.success() {
                    assert_same(
                        &fs::read(&out).unwrap(),
                        world.shown(),
                        &format!("qemu, {base} {middle} {top}"),
                    );
                    right += 1;
                } else {
                    assert!((base, middle, top) != (Format::Raw, Format::Qcow2, Format::Qcow2));
                    refused += 1;
                }
            }
        }
    }
    println!("{right} right, {refused} refused");
    assert!(right >= 4 && refused >= 10, "{right} {refused}");
}
