//! Differences between disks, against a byte-by-byte look at what qemu reads.

use crate::foreign::Scratch;
use deltachain::{
    base::{GuestOffset, GuestRange},
    chain::{Chain, Opening},
    format::Format,
    io::{Host, real::RealHost},
    job::{
        Progress,
        diff::{Difference, Kind, differences, first_difference},
    },
};
use std::sync::Arc;

fn open(folder: &Scratch, image: &str, format: Format) -> Chain {
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    Chain::open(&host, &folder.file(image), &Opening::reading().with_format(Some(format))).unwrap()
}

fn all(a: &Chain, b: &Chain) -> Vec<Difference> {
    let mut out = Vec::new();
    differences(&a.view(0), &b.view(0), 4096, &Progress::default(), &mut |d| {
        out.push(d);
        true
    })
    .unwrap();
    out
}

fn family() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 3M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 2M"]);
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base left");
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base right 4M");
    folder.qemu_io("qcow2", "left", &["write -q -P 2 100k 3k", "write -q -P 5 2500k 10k"]);
    let right =
        ["write -q -P 2 100k 3k", "write -q -z 1M 128k", "write -q -P 9 3500k 1k", "write -q -P 1 64k 4k"];
    folder.qemu_io("qcow2", "right", &right);
    folder
}

#[test]
fn differences_are_those_that_a_look_at_every_byte_finds() {
    let folder = family();
    let (left, right) = (open(&folder, "left", Format::Qcow2), open(&folder, "right", Format::Qcow2));
    let (mut a, b) = (folder.flat("qcow2", "left"), folder.flat("qcow2", "right"));
    a.resize(b.len(), 0);
    let expected: Vec<u64> = (0..b.len() / 4096)
        .filter(|n| a[n * 4096..][..4096] != b[n * 4096..][..4096])
        .map(|n| n as u64)
        .collect();
    let found = all(&left, &right);
    let granules: Vec<u64> = found
        .iter()
        .flat_map(|d| d.range.start.bytes() / 4096..d.range.end().bytes().div_ceil(4096))
        .collect();
    assert_eq!(granules, expected);
    let zeroed = GuestRange { start: GuestOffset::new(1 << 20), bytes: 128 << 10 };
    assert!(found.contains(&Difference { range: zeroed, kind: Kind::Zero }), "{found:?}");
    let first = first_difference(&left.view(0), &right.view(0), &Progress::default()).unwrap();
    assert_eq!(first, Some(GuestOffset::new(1 << 20)));
}

#[test]
fn equal_disks_in_two_formats_have_no_differences() {
    let folder = family();
    folder.qemu_img("convert -f qcow2 -O raw left flat");
    let (left, flat) = (open(&folder, "left", Format::Qcow2), open(&folder, "flat", Format::Raw));
    assert_eq!(all(&left, &flat), []);
    assert_eq!(first_difference(&left.view(0), &flat.view(0), &Progress::default()).unwrap(), None);
}
