//! Images of every shape that the format has, whatever is done to them; and what crashes leave.

mod crash;

use super::super::{create, open};
use super::*;
use crate::{
    format::{
        Creation, NoParts, Nothing,
        conformance::{Pair, noise, step},
    },
    io::memory::MemoryFile,
};
use proptest::prelude::*;

fn made(options: &[(&str, &str)], size: u64, below: Vec<u8>) -> Pair {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Pair::made(Format::Qcow2, &Creation { size, parent: None, options }, below)
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
        made(options, size, below).live(steps);
    }
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
    let mut pair = made(&[], 1 << 20, noise(7, 200 << 10));
    let held = |pair: &Pair| pair.file.allocated_bytes().unwrap();
    let before = held(&pair);
    // Nothing lies below.
    pair.write(GuestOffset::new(512 << 10).range(4096));
    assert!(held(&pair) - before < 64 << 10, "{} bytes for 4096", held(&pair) - before);
    // What lies below comes along.
    pair.write(GuestOffset::new(4096).range(4096));
    pair.end();
}
