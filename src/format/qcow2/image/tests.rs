//! Images against a naive disk, through every shape that the format has; and what crashes leave.

mod crash;

use super::super::{audit::audit, create, open};
use super::*;
use crate::{
    base::{seed::Seeded, units::index},
    format::{Creation, NoParts, Nothing},
    io::memory::MemoryFile,
    map::State as Shown,
};
use proptest::prelude::*;

/// Bytes that lie below an image.
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Below for Bytes {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let from = self.0.get(index(at.bytes())..).unwrap_or_default();
        buf.fill(0);
        buf.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        let bytes = self.0.iter().skip(index(range.start.bytes())).take(index(range.bytes));
        Ok(bytes.into_iter().all(|byte| *byte == 0))
    }
}

/// The one further file that an image has.
struct DataFile(Arc<MemoryFile>);

impl Parts for DataFile {
    fn open_part(&self, _name: &[u8]) -> Result<Arc<dyn File>> {
        Ok(self.0.clone())
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut buf = vec![0; index(bytes)];
    Seeded::new(seed).fill(&mut buf);
    buf
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        bytes: u64,
    },
    WriteFrom {
        at: u64,
        bytes: u64,
    },
    /// Whole clusters, of which one is left out, and after half of which space is given back or all is flushed.
    Adopt {
        at: u64,
        bytes: u64,
        is_released: bool,
    },
    Zero {
        at: u64,
        bytes: u64,
        kept: Kept,
    },
    Pack {
        at: u64,
    },
    Read {
        at: u64,
        bytes: u64,
    },
    Flush,
    Release,
    Reopen,
    Resize {
        size: u64,
    },
}

/// Steps whose places are parts of 4096 of the disk.
fn step() -> impl Strategy<Value = Step> {
    let kept = prop_oneof![Just(Kept::Space), Just(Kept::Nothing)];
    prop_oneof![
        4 => (0..4096_u64, 0..600_u64).prop_map(|(at, bytes)| Step::Write { at, bytes }),
        1 => (0..4096_u64, 0..1200_u64).prop_map(|(at, bytes)| Step::WriteFrom { at, bytes }),
        2 => (0..4096_u64, 0..2000_u64, any::<bool>())
            .prop_map(|(at, bytes, is_released)| Step::Adopt { at, bytes, is_released }),
        3 => (0..4096_u64, 0..1200_u64, kept).prop_map(|(at, bytes, kept)| Step::Zero { at, bytes, kept }),
        2 => (0..4096_u64).prop_map(|at| Step::Pack { at }),
        2 => (0..4096_u64, 0..2000_u64).prop_map(|(at, bytes)| Step::Read { at, bytes }),
        1 => Just(Step::Flush),
        1 => Just(Step::Release),
        1 => Just(Step::Reopen),
        1 => (1..6000_u64).prop_map(|size| Step::Resize { size }),
    ]
}

/// An image, the disk that it should be, and what lies below.
struct Pair {
    file: Arc<MemoryFile>,
    data: Arc<MemoryFile>,
    image: Arc<dyn Image>,
    disk: Vec<u8>,
    below: Bytes,
    writes: u64,
    /// What a part of 4096 stands for.
    grain: u64,
}

impl Pair {
    fn new(options: &[(&str, &str)], size: u64, below: Vec<u8>) -> Self {
        let (file, data) = (Arc::new(MemoryFile::new("image")), Arc::new(MemoryFile::new("data")));
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let creation = Creation { size, parent: None, options };
        let image = create(file.clone(), &creation, &DataFile(data.clone())).unwrap();
        let mut disk = below.clone();
        disk.resize(index(size), 0);
        Self { file, data, image, disk, below: Bytes(below), writes: 0, grain: size / 4096 }
    }

    fn range(&self, at: u64, bytes: u64) -> GuestRange {
        let size = self.disk.len() as u64;
        let start = (at * self.grain).min(size);
        GuestOffset::new(start).range((bytes * self.grain).min(size - start))
    }

    fn in_disk(&mut self, range: GuestRange) -> &mut [u8] {
        &mut self.disk[index(range.start.bytes())..index(range.end().bytes())]
    }

    fn reopen(&mut self) {
        self.image.flush().unwrap();
        self.image = open(self.file.clone(), true, &DataFile(self.data.clone())).unwrap();
    }

    fn take(&mut self, step: &Step) {
        self.writes += 1;
        let image = self.image.clone();
        match *step {
            Step::Write { at, bytes } => {
                let range = self.range(at, bytes);
                let bytes = noise(self.writes, range.bytes);
                image.write(range.start, &bytes, &self.below).unwrap();
                self.in_disk(range).copy_from_slice(&bytes);
            }
            Step::WriteFrom { at, bytes } => {
                let range = self.range(at, bytes);
                let bytes = noise(self.writes, range.bytes);
                let source = MemoryFile::new("source");
                source.write_at(HostOffset::new(77), &bytes).unwrap();
                let moved = image.write_from(range, &source, HostOffset::new(77), &self.below).unwrap();
                assert_eq!(moved.copied_bytes + moved.shared_bytes, range.bytes);
                self.in_disk(range).copy_from_slice(&bytes);
            }
            Step::Adopt { at, bytes, is_released } => self.adopt(self.range(at, bytes), is_released),
            Step::Zero { at, bytes, kept } => {
                let range = self.range(at, bytes);
                image.zero(range, kept, &self.below).unwrap();
                self.in_disk(range).fill(0);
            }
            Step::Pack { at } => {
                let cluster = image.details().unwrap().cluster_bytes.unwrap();
                let start = self.range(at, 0).start.floor(cluster);
                let range = start.range(cluster.min(self.disk.len() as u64 - start.bytes()));
                let mut bytes = vec![7; index(range.bytes)];
                bytes[..index(range.bytes) / 3].copy_from_slice(&noise(self.writes, range.bytes / 3));
                if let Some(packed) = image.pack(&bytes).filter(|_| !range.is_empty()) {
                    image.write_packed(range.start, &packed).unwrap();
                    self.in_disk(range).copy_from_slice(&bytes);
                }
            }
            Step::Read { at, bytes } => self.compare(self.range(at, bytes)),
            Step::Flush => image.flush().unwrap(),
            Step::Release => {
                image.release().unwrap();
            }
            Step::Reopen => self.reopen(),
            Step::Resize { size } => {
                let size = size * self.grain;
                image.resize(size, &self.below).unwrap();
                self.disk.resize(index(size), 0);
            }
        }
    }

    /// Another file has whole clusters of `range` backwards.
    fn adopt(&mut self, range: GuestRange, is_released: bool) {
        let image = self.image.clone();
        let Some(cluster) = image.details().unwrap().cluster_bytes else { return };
        let bytes = noise(self.writes, range.inner(cluster).bytes);
        let source = MemoryFile::new("source");
        source.write_at(HostOffset::new(512), &bytes).unwrap();
        let from = HostOffset::new(512).range(bytes.len() as u64);
        let Some(adopted) = image.adopt(&source, from).unwrap() else { return };
        assert!(adopted.place.bytes <= from.bytes && adopted.moved.copied_bytes == adopted.place.bytes);
        let ends: Vec<u64> = (1..=adopted.place.bytes / cluster).map(|nth| nth * cluster).collect();
        let mut is_there = true;
        for (nth, (guest, end)) in range.inner(cluster).pieces(cluster).zip(ends.iter().rev()).enumerate() {
            let place = adopted.place.start.plus(end - cluster);
            if nth == 1 {
                continue;
            }
            if nth == 3 && is_released {
                image.release().unwrap();
                is_there = false;
            } else if nth == 3 {
                image.flush().unwrap();
            }
            assert_eq!(image.point(guest, place).unwrap(), is_there);
            assert!(!image.point(guest, place).unwrap(), "one place for two");
            if is_there {
                self.in_disk(guest).copy_from_slice(&bytes[index(end - cluster)..index(*end)]);
            }
        }
    }

    fn compare(&self, range: GuestRange) {
        let mut found = vec![9; index(range.bytes)];
        self.image.read(range.start, &mut found, &self.below).unwrap();
        let expected = &self.disk[index(range.start.bytes())..index(range.end().bytes())];
        let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "of {range:x?}");
    }

    /// The map says of each byte what is read there.
    fn compare_map(&self) {
        let whole = GuestOffset::new(0).range(self.disk.len() as u64);
        let mut extents = Vec::new();
        self.image.map(whole, &mut extents).unwrap();
        let mut at = whole.start;
        for extent in extents {
            assert_eq!(extent.range.start, at, "a gap in the map");
            at = extent.range.end();
            let range = index(extent.range.start.bytes())..index(at.bytes());
            let mut shown = vec![0; range.len()];
            match extent.state {
                Shown::Absent => self.below.read(extent.range.start, &mut shown).unwrap(),
                Shown::Data { host } => self.image.data_file().read_at(host, &mut shown).unwrap(),
                Shown::Zero { .. } => {}
                Shown::Packed => continue,
            }
            assert!(shown == self.disk[range], "the map is wrong in {:x?}", extent.range);
        }
        assert_eq!(at, whole.end());
    }

    fn end(mut self) {
        let whole = GuestOffset::new(0).range(self.disk.len() as u64);
        self.compare(whole);
        self.compare_map();
        self.reopen();
        self.compare(whole);
        self.compare_map();
        let found = audit(&*self.file).unwrap();
        assert_eq!((found.leaks, found.corruptions), (0, vec![]));
    }
}

/// Every shape that has code of its own, and a mix of the rest.
const SHAPES: &[(u64, &[(&str, &str)])] = &[
    (512, &[("cluster_size", "512")]),
    (512, &[("cluster_size", "512"), ("compat", "v2")]),
    (512, &[("cluster_size", "512"), ("refcount_bits", "64")]),
    (4096, &[("cluster_size", "4K"), ("refcount_bits", "1")]),
    (4096, &[("cluster_size", "4K"), ("refcount_bits", "2"), ("compression_type", "zstd")]),
    (4096, &[("cluster_size", "4K"), ("refcount_bits", "4"), ("compat", "v3")]),
    (4096, &[("cluster_size", "4K"), ("compat", "v2")]),
    (16384, &[("cluster_size", "16K"), ("extended_l2", "on"), ("refcount_bits", "8")]),
    (32768, &[("cluster_size", "32K"), ("extended_l2", "on"), ("compression_type", "zstd")]),
    (65536, &[("refcount_bits", "32")]),
    (4096, &[("cluster_size", "4K"), ("data_file", "data")]),
    (16384, &[("cluster_size", "16K"), ("data_file", "data"), ("extended_l2", "on")]),
    (4096, &[("cluster_size", "4K"), ("data_file", "data"), ("data_file_raw", "on")]),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn an_image_is_the_disk_that_was_written(
        shape in 0..SHAPES.len(),
        clusters in 8_u64..40,
        below in 0_u64..60,
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let (cluster, options) = SHAPES[shape];
        let size = clusters * cluster + if cluster > 4096 { 4096 } else { 0 };
        let size = size.next_multiple_of(4096);
        let is_raw = options.contains(&("data_file_raw", "on"));
        let below = if is_raw { vec![] } else { noise(99, below * cluster / 2) };
        let mut pair = Pair::new(options, size, below);
        for step in &steps {
            pair.take(step);
        }
        pair.end();
    }
}

#[test]
fn many_writers_of_the_same_clusters_lose_nothing() {
    let options = [("cluster_size", "4K"), ("refcount_bits", "16")];
    let pair = Pair::new(&options, 1 << 20, noise(5, 700_000));
    let image = &pair.image;
    // Eight writers, each with its own sectors of every cluster.
    std::thread::scope(|scope| {
        for writer in 0..8_u64 {
            let below = &pair.below;
            scope.spawn(move || {
                for cluster in 0..256 {
                    let at = GuestOffset::new(cluster * 4096 + writer * 512);
                    image.write(at, &[u8::try_from(writer).unwrap() + 1; 512], below).unwrap();
                    let mut seen = [0; 512];
                    image.read(at, &mut seen, below).unwrap();
                    assert_eq!(u64::from(seen[9]), writer + 1);
                    if cluster % 64 == writer {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    let mut pair = pair;
    for (nth, sector) in (0..).zip(pair.disk.chunks_mut(512)) {
        sector.fill(u8::try_from(nth % 8).unwrap() + 1);
    }
    pair.end();
}

#[test]
fn a_range_past_the_end_is_refused() {
    let pair = Pair::new(&[], 1 << 20, vec![]);
    let image = &pair.image;
    let at = GuestOffset::new((1 << 20) - 512);
    assert!(image.write(at, &[1; 1024], &Nothing).is_err());
    assert!(image.read(at, &mut [1; 1024], &Nothing).is_err());
    assert!(image.zero(GuestOffset::new(u64::MAX).range(2), Kept::Space, &Nothing).is_err());
    pair.image.write(at, &[1; 512], &Nothing).unwrap();
    let reader = open(pair.file.clone(), false, &NoParts).unwrap();
    assert!(reader.write(at, &[1; 512], &Nothing).is_err());
}

#[test]
fn a_long_look_for_free_clusters_does_not_fail_the_write() {
    let file = Arc::new(MemoryFile::new("full.qcow2"));
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let options = vec![option("cluster_size", "512"), option("preallocation", "metadata")];
    let creation = Creation { size: 12 << 20, parent: None, options };
    let image = super::super::create(file.clone(), &creation, &NoParts).unwrap();
    image.resize(13 << 20, &Nothing).unwrap();
    // The L2 table is there, the cluster beside is not.
    let at = GuestOffset::new(12 << 20);
    image.flush().unwrap();
    image.write(at, &[1; 16 << 10], &Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    let image = Qcow2Image::open(file, true, &NoParts).unwrap();
    let budget = Budget::new(Budget::BYTES_MIN).unwrap();
    let others: Vec<_> = (0..4096).map(|_| budget.join()).collect();
    image.state.write().tables.pages = Pages::new(512, SECTOR_BYTES, budget.join(), WRITERS_LEAST);
    image.write(at.plus(16 << 10), &[2; 512], &Nothing).unwrap();
    drop(others);
}

/// The longer L1 table of one resize must not be cut to that of another, which looked before.
#[test]
fn two_resizes_at_once_leave_one_of_the_two_disks() {
    for round in 0..8 {
        let file = Arc::new(MemoryFile::new("growing.qcow2"));
        let options = vec![("cluster_size".to_owned(), "512".to_owned())];
        let creation = Creation { size: 1 << 16, parent: None, options };
        let image = super::super::create(file.clone(), &creation, &NoParts).unwrap();
        let sizes: [u64; 2] = [(8 + round) << 20, (80 + round) << 20];
        std::thread::scope(|scope| {
            for size in sizes {
                let image = &image;
                scope.spawn(move || image.resize(size, &Nothing).unwrap());
            }
        });
        let size = image.size();
        assert!(sizes.contains(&size), "{size}");
        image.write(GuestOffset::new(size - 512), &[7; 512], &Nothing).unwrap();
        image.flush().unwrap();
        drop(image);
        let image = open(file.clone(), true, &NoParts).unwrap();
        let mut seen = [0; 512];
        image.read(GuestOffset::new(size - 512), &mut seen, &Nothing).unwrap();
        assert_eq!(seen, [7; 512]);
    }
}

#[test]
fn a_first_write_at_the_files_end_stores_its_bytes_alone() {
    let pair = Pair::new(&[], 1 << 20, noise(7, 200 << 10));
    let held = |pair: &Pair| pair.file.allocated_bytes().unwrap();
    let (image, before) = (&pair.image, held(&pair));
    // Nothing lies below.
    image.write(GuestOffset::new(512 << 10), &[1; 4096], &pair.below).unwrap();
    assert!(held(&pair) - before < 64 << 10, "{} bytes for 4096", held(&pair) - before);
    // What lies below comes along.
    image.write(GuestOffset::new(4096), &[2; 4096], &pair.below).unwrap();
    let mut pair = pair;
    pair.disk[512 << 10..][..4096].fill(1);
    pair.disk[4096..][..4096].fill(2);
    pair.end();
}
