//! Every operation on every shape: after each, `qemu-img check` is clean and `qemu-img compare` finds the bytes
//! that a model holds. A *cell* is one operation on one chain; shapes are drawn by a seed that failures print.

use crate::foreign::Scratch;
use deltachain::{
    base::{ErrorKind, GuestOffset, GuestRange, Result, seed::Seeded},
    chain::{Chain, Opening, Policy, check_layer},
    disk::Disk,
    format::{Format, Repair},
    io::{Access, Host, Kept, real::RealHost},
    job::{
        Progress,
        compact::Compaction,
        consolidate::{Consolidation, Pace, Request, Verify},
        convert::convert,
        copy::{self, Copy},
        create::{NewImage, create},
        rebase::{NewParent, Rebase},
        relink::{self, relink},
        resize::Resize,
        snapshot::{Revert, snapshot},
    },
    store::Ledger,
};
use std::{collections::HashMap, fs, path::PathBuf, sync::Arc};

/// What is done to a chain of each shape, in an order of its own; what shortens the chain comes last.
const OPERATIONS: &[Operation] = &[
    Operation { name: "write", act: World::write },
    Operation { name: "zero", act: World::zero },
    Operation { name: "discard", act: World::discard },
    Operation { name: "compressed write", act: World::pack },
    Operation { name: "grow", act: World::grow },
    Operation { name: "shrink", act: World::shrink },
    Operation { name: "snapshot", act: World::snapshot },
    Operation { name: "revert", act: World::revert },
    Operation { name: "rebase", act: World::rebase },
    Operation { name: "relink", act: World::relink },
    Operation { name: "compact", act: World::compact },
    Operation { name: "repair", act: World::repair },
    Operation { name: "copy", act: World::copy },
    Operation { name: "convert", act: World::convert },
    Operation { name: "consolidate", act: World::consolidate },
    Operation { name: "write after it", act: World::write },
    Operation { name: "compact after it", act: World::compact },
];
/// How many of them, from the end, keep their place.
const IN_PLACE: usize = 3;
const PACE: Pace = Pace { move_bytes: 256 << 10, mark_bytes: 512 << 10, adopted_pieces: 2 };

struct Operation {
    name: &'static str,
    act: fn(&mut World) -> Result<Outcome>,
}

/// What is to be looked at after an operation.
enum Outcome {
    /// The head.
    Head,
    /// Another image, in its folder, that shows the same.
    Other(PathBuf),
    /// Nothing: the operation does not exist for this shape.
    Skipped,
}

/// A chain, and what each of its layers shows.
struct World {
    folder: Scratch,
    host: Arc<dyn Host>,
    ledger: Ledger,
    seed: Seeded,
    head: PathBuf,
    /// What the head shows.
    disk: Vec<u8>,
    /// What the layers below show.
    views: HashMap<PathBuf, Vec<u8>>,
    /// Whether the base keeps its bytes in another file.
    is_external: bool,
    names: u32,
    cells: u32,
    trail: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.trail.join("\n"));
        }
    }
}

fn text(options: &[(&str, String)]) -> Vec<(String, String)> {
    options.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

impl World {
    /// Makes a chain of `depth` layers, each of a shape of its own.
    fn new(seed: u64, depth: u64) -> Self {
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let folder = Scratch::in_memory();
        let mut world = Self {
            head: folder.file("layer-0"),
            folder,
            ledger: Ledger::new(Arc::clone(&host), None),
            host,
            seed: Seeded::new(seed),
            disk: Vec::new(),
            views: HashMap::new(),
            is_external: false,
            names: 0,
            cells: 0,
            trail: vec![format!("seed {seed}, {depth} layers")],
        };
        world.base(depth);
        for _ in 1..depth {
            world.snapshot().unwrap();
            if depth <= 8 || world.seed.chance(1, 4) {
                world.write().unwrap();
            }
        }
        world
    }

    fn base(&mut self, depth: u64) {
        let most = if depth > 8 { 1024 } else { 4096 };
        let size = 512 * (700 + self.seed.below(most - 700));
        let mut options = self.shape();
        let format = if depth > 1 && self.seed.chance(1, 5) { Format::Raw } else { Format::Qcow2 };
        self.is_external = format == Format::Qcow2 && self.seed.chance(1, 4);
        if format == Format::Raw {
            options.clear();
        } else if self.is_external {
            options.retain(|(key, value)| key != "compat" || value != "v2");
            options.push(("data_file".to_owned(), "base.data".to_owned()));
        }
        self.trail.push(format!("base: {format} {size} {options:?}"));
        let new = NewImage { format, size: Some(size), parent: None, options };
        create(&self.host, &self.head, &new, &self.opening()).unwrap();
        self.disk = vec![0; usize::try_from(size).unwrap()];
        if format == Format::Qcow2 {
            self.verify(Outcome::Head, "create");
        }
        self.write().unwrap();
    }

    /// Draws the options of a new image.
    fn shape(&mut self) -> Vec<(String, String)> {
        let bits = 9 + self.seed.below(13);
        let mut options = vec![("cluster_size", (1_u64 << bits).to_string())];
        if self.seed.chance(1, 4) {
            options.push(("compat", "v2".to_owned()));
        } else {
            options.push(("refcount_bits", (1 << self.seed.below(7)).to_string()));
            if bits >= 14 && self.seed.chance(1, 2) {
                options.push(("extended_l2", "on".to_owned()));
            }
            if self.seed.chance(1, 2) {
                options.push(("compression_type", "zstd".to_owned()));
            }
        }
        text(&options)
    }

    fn opening(&self) -> Opening {
        let policy = Policy { allowed: vec![self.folder.path()], ..Policy::default() };
        Opening::reading().with_policy(policy).with_ledger(self.ledger.clone())
    }

    fn stated(&self) -> Opening {
        self.opening().with_format(Some(Format::Qcow2))
    }

    fn name(&mut self) -> PathBuf {
        self.names += 1;
        self.folder.file(&format!("layer-{}", self.names))
    }

    fn chain(&self, access: Access) -> Result<Chain> {
        Chain::open(&self.host, &self.head, &self.opening().with_access(access))
    }

    fn layers(&self) -> Result<Vec<(PathBuf, Format)>> {
        Ok(self.chain(Access::Read)?.layers().iter().map(|l| (l.path.clone(), l.format())).collect())
    }

    /// Draws a range of the disk, in sectors.
    fn range(&mut self, most: u64) -> GuestRange {
        let sectors = self.disk.len() as u64 / 512;
        let start = self.seed.below(sectors);
        let count = 1 + self.seed.below(most);
        GuestOffset::new(start * 512).range(count.min(sectors - start) * 512)
    }

    fn on_disk(&mut self, range: GuestRange) -> &mut [u8] {
        let at = |offset: GuestOffset| usize::try_from(offset.bytes()).unwrap();
        &mut self.disk[at(range.start)..at(range.end())]
    }

    fn write(&mut self) -> Result<Outcome> {
        let chain = self.chain(Access::Write)?;
        for most in [3, 40, 500] {
            let range = self.range(most);
            let mut bytes = vec![0; usize::try_from(range.bytes).unwrap()];
            if !self.seed.chance(1, 4) {
                self.seed.fill(&mut bytes);
            }
            chain.write(range.start, &bytes)?;
            self.on_disk(range).copy_from_slice(&bytes);
        }
        chain.flush()?;
        Ok(Outcome::Head)
    }

    fn clear(&mut self, kept: Kept) -> Result<Outcome> {
        let chain = self.chain(Access::Write)?;
        for most in [3, 100, 1000] {
            let range = self.range(most);
            chain.zero(range, kept)?;
            self.on_disk(range).fill(0);
        }
        chain.flush()?;
        Ok(Outcome::Head)
    }

    fn zero(&mut self) -> Result<Outcome> {
        self.clear(Kept::Space)
    }

    fn discard(&mut self) -> Result<Outcome> {
        self.clear(Kept::Nothing)
    }

    fn pack(&mut self) -> Result<Outcome> {
        let chain = self.chain(Access::Write)?;
        let image = chain.head()?.image.clone();
        let cluster = image.details()?.cluster_bytes.unwrap();
        for _ in 0..4 {
            let start = self.range(1).start.floor(cluster);
            let range = start.range(cluster.min(self.disk.len() as u64 - start.bytes()));
            let mut bytes = vec![5; usize::try_from(range.bytes).unwrap()];
            let third = bytes.len() / 3;
            self.seed.fill(&mut bytes[..third]);
            if let Some(packed) = image.pack(&bytes) {
                image.write_packed(range.start, &packed)?;
                self.on_disk(range).copy_from_slice(&bytes);
            }
        }
        chain.flush()?;
        Ok(Outcome::Head)
    }

    fn resize(&mut self, bytes: u64) -> Result<Outcome> {
        Resize::prepare(&self.host, &self.head, &self.opening(), |_| Some(bytes))?.run()?;
        self.disk.resize(usize::try_from(bytes).unwrap(), 0);
        Ok(Outcome::Head)
    }

    fn grow(&mut self) -> Result<Outcome> {
        let more = 512 * (1 + self.seed.below(1500));
        self.resize(self.disk.len() as u64 + more)
    }

    fn shrink(&mut self) -> Result<Outcome> {
        let less = 512 * self.seed.below(self.disk.len() as u64 / 1024);
        self.resize(self.disk.len() as u64 - less)
    }

    fn snapshot(&mut self) -> Result<Outcome> {
        let (new, options) = (self.name(), self.shape());
        self.trail.push(format!("a new head: {options:?}"));
        snapshot(&self.host, &self.head, &new, &options, &self.opening())?;
        self.views.insert(std::mem::replace(&mut self.head, new), self.disk.clone());
        Ok(Outcome::Head)
    }

    /// Removes layers that nothing refers to any more.
    fn remove(&mut self, layers: &[(PathBuf, Format)]) {
        for (path, _) in layers {
            fs::remove_file(path).unwrap();
            self.views.remove(path);
        }
    }

    fn revert(&mut self) -> Result<Outcome> {
        let layers = self.layers()?;
        if layers.len() < 2 {
            return Ok(Outcome::Skipped);
        }
        let depth = 1 + usize::try_from(self.seed.below(2)).unwrap().min(layers.len() - 2);
        let (layer, options) = (&layers[depth].0, self.shape());
        Revert::prepare(&self.host, &self.head, layer, &self.opening())?.run(&self.host, &options)?;
        self.disk.clone_from(&self.views[layer]);
        self.remove(&layers[1..depth]);
        Ok(Outcome::Head)
    }

    fn rebase(&mut self) -> Result<Outcome> {
        let layers = self.layers()?;
        let parent = match self.seed.below(4) {
            0 if layers.len() < 9 => None,
            1 | 2 if layers.len() > 2 => Some(layers[2].clone()),
            _ => Some((self.stranger()?, Format::Qcow2)),
        };
        let new = parent.clone().map(|(path, format)| NewParent { path, format });
        let writing = self.stated().with_access(Access::Write);
        Rebase::prepare(&self.host, &self.head, &writing, new.as_ref())?.run(&Progress::default())?;
        let now = self.layers()?;
        let left: Vec<_> = layers.into_iter().filter(|layer| !now.contains(layer)).collect();
        self.remove(&left);
        self.is_external &= now.iter().any(|(path, _)| path.ends_with("layer-0"));
        Ok(Outcome::Head)
    }

    /// Makes an image that has nothing to do with the chain.
    fn stranger(&mut self) -> Result<PathBuf> {
        let (path, options) = (self.name(), self.shape());
        let size = Some(512 * (100 + self.seed.below(3000)));
        let new = NewImage { format: Format::Qcow2, size, parent: None, options };
        create(&self.host, &path, &new, &self.opening())?;
        let chain = Chain::open(&self.host, &path, &self.opening().with_access(Access::Write))?;
        let mut bytes = vec![0; 40 << 10];
        self.seed.fill(&mut bytes);
        chain.write(GuestOffset::new(self.seed.below(20) * 512), &bytes)?;
        chain.flush()?;
        self.views.insert(path.clone(), flat(&chain)?);
        Ok(path)
    }

    fn relink(&mut self) -> Result<Outcome> {
        let layers = self.layers()?;
        let Some((lost, format)) = layers.get(1) else { return Ok(Outcome::Skipped) };
        // A raw file is known by its name alone.
        let found = self.name().with_extension(format.name());
        fs::rename(lost, &found).unwrap();
        let word = vec![(PathBuf::from(lost.file_name().unwrap()), found.clone())];
        let request = relink::Request { folders: vec![self.folder.path()], map: word };
        let opening = self.stated();
        let report = relink(&self.host, &self.ledger, &request, (&opening, false), &Progress::default())?;
        assert_eq!((report.mended.len(), report.lost.len()), (1, 0), "{report:?}");
        let view = self.views.remove(lost).unwrap();
        self.views.insert(found, view);
        Ok(Outcome::Head)
    }

    fn compact(&mut self) -> Result<Outcome> {
        Compaction::prepare(&self.host, &self.head, &self.opening())?.run(&Progress::default())?;
        Ok(Outcome::Head)
    }

    /// A head that was not closed cleanly, with a leak where that is easily made.
    fn repair(&mut self) -> Result<Outcome> {
        let mut bytes = fs::read(&self.head).unwrap();
        let word = |at: usize, bytes: &[u8]| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let is_3 = bytes[7] == 3;
        bytes[79] |= u8::from(is_3);
        if !is_3 || bytes[99] == 4 {
            let cluster = 1 << bytes[23];
            let block = usize::try_from(word(usize::try_from(word(48, &bytes)).unwrap(), &bytes)).unwrap();
            let next = bytes.len().div_ceil(cluster);
            if next < cluster / 2 {
                bytes[block + 2 * next + 1] = 1;
                bytes.resize((next + 1) * cluster, 0);
            }
        }
        fs::write(&self.head, bytes).unwrap();
        let writing = self.opening().with_access(Access::Write);
        let (_, left) = check_layer(&self.host, &self.head, &writing, Repair::All)?;
        assert_eq!((left.corruptions, left.leaks, left.errors), (0, 0, 0), "{left:?}");
        Ok(Outcome::Head)
    }

    fn copy(&mut self) -> Result<Outcome> {
        let folder = self.name();
        let request = copy::Request { verify: self.seed.chance(1, 2), ..copy::Request::default() };
        let paths = (self.head.as_path(), folder.as_path());
        fs::create_dir(&folder).unwrap();
        let copy = Copy::prepare(&self.host, &self.ledger, paths, &self.stated(), request)?;
        Ok(Outcome::Other(copy.run(&Progress::default())?.head))
    }

    fn convert(&mut self) -> Result<Outcome> {
        let (path, options) = (self.name().join("flat"), self.shape());
        fs::create_dir(path.parent().unwrap()).unwrap();
        let chain = self.chain(Access::Read)?;
        let how = (Format::Qcow2, options.as_slice(), self.seed.chance(1, 2));
        convert(&self.host, &chain.view(0), &path, how, &Progress::default())?;
        Ok(Outcome::Other(path))
    }

    fn consolidate(&mut self) -> Result<Outcome> {
        let layers = self.layers()?;
        if layers.len() < 2 {
            return Ok(Outcome::Skipped);
        }
        let at = 1 + usize::try_from(self.seed.below(layers.len() as u64 - 1)).unwrap();
        let request = Request {
            into: self.seed.chance(2, 3).then(|| layers[at].0.clone()),
            verify: if self.seed.chance(1, 2) { Verify::Tree } else { Verify::Bytes },
            ..Request::default()
        };
        let job = Consolidation::prepare(&self.host, &self.head, &self.opening(), &request)?;
        self.trail.push(format!("{:?}", job.plan()));
        self.head = job.run(PACE, &Progress::default())?.plan.result;
        Ok(Outcome::Head)
    }

    /// Holds what an operation left against the model.
    fn verify(&mut self, outcome: Outcome, what: &str) {
        let (image, is_other) = match outcome {
            Outcome::Head => (self.head.clone(), false),
            Outcome::Other(image) => (image, true),
            Outcome::Skipped => return,
        };
        let model = self.folder.file("model");
        fs::write(&model, &self.disk).unwrap();
        // qemu looks for a data file in the working folder.
        let folder = image.parent().unwrap();
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new("qemu-img");
            let output = command.current_dir(folder).args(arguments).output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{what}: {arguments:?}: {}", String::from_utf8_lossy(&said));
        };
        let image = image.to_str().unwrap();
        run(&["check", "-f", "qcow2", image]);
        run(&["compare", "-f", "qcow2", "-F", "raw", image, model.to_str().unwrap()]);
        self.cells += 1;
        if is_other {
            fs::remove_dir_all(folder).unwrap();
        }
    }

    fn run(mut self) -> u32 {
        let mut order: Vec<usize> = (0..OPERATIONS.len()).collect();
        for nth in (1..OPERATIONS.len() - IN_PLACE).rev() {
            order.swap(nth, usize::try_from(self.seed.below(nth as u64 + 1)).unwrap());
        }
        for nth in order {
            let Operation { name, act } = &OPERATIONS[nth];
            self.trail.push((*name).to_owned());
            match act(&mut self) {
                Ok(outcome) => self.verify(outcome, name),
                Err(error) if error.kind() == ErrorKind::Unsupported && self.is_external => {}
                Err(error) => panic!("{name}: {error}"),
            }
            let size = self.chain(Access::Read).unwrap().size();
            assert_eq!(size, self.disk.len() as u64, "{name}: size");
        }
        self.cells
    }
}

fn flat(chain: &Chain) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(chain.size()).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

/// Runs chains of these depths; returns how many cells that were.
fn cells(first_seed: u64, depths: &[u64]) {
    let first_seed = std::env::var("DCHAIN_MATRIX_SEED").map_or(first_seed, |text| text.parse().unwrap());
    let cells: u32 = (first_seed..).zip(depths).map(|(seed, depth)| World::new(seed, *depth).run()).sum();
    println!("{cells} cells from seed {first_seed} on");
    assert!(cells >= 140, "{cells} cells");
}

#[test]
fn every_operation_on_single_images() {
    cells(1000, &[1; 12]);
}

#[test]
fn every_operation_on_an_image_with_a_parent() {
    cells(2000, &[2; 10]);
}

#[test]
fn every_operation_on_chains_of_eight() {
    cells(3000, &[8; 10]);
}

#[test]
fn every_operation_on_chains_of_sixty_four() {
    cells(4000, &[2, 64, 1, 8, 64, 2, 8, 64, 2, 8]);
}
