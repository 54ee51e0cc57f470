//! Power cuts at every point of a repair: what was readable stays, and a second repair ends clean.

use super::*;
use crate::{
    base::{GuestOffset, HostOffset, Result, units::index},
    format::{self, Creation, Format, NoParts, Nothing},
    io::{
        Access, Host,
        faulty::{SimHost, crash_states},
        memory::MemoryFile,
    },
    store::{Draft, Publish},
};
use std::{path::Path, sync::Arc};

const DISK: u64 = 40 * 4096;
const PIECE: u64 = 4096;
const NAME: &str = "/image";

fn creation(options: &[(&str, &str)]) -> Creation {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Creation { size: DISK, parent: None, options }
}

/// The bytes of a clean image with plain, compressed, zero and absent clusters.
fn sound(options: &[(&str, &str)]) -> Vec<u8> {
    let file = Arc::new(MemoryFile::new(NAME));
    let image = format::create(Format::Qcow2, file.clone(), &creation(options), &NoParts).unwrap();
    for n in (0..DISK / PIECE).filter(|n| n % 3 != 0) {
        let byte = n.to_le_bytes()[0] + 1;
        image.write(GuestOffset::new(n * PIECE), &[byte; 4096], &Nothing).unwrap();
    }
    let unit = image.details().unwrap().cluster_bytes.unwrap();
    let packed = image.pack(&vec![0x77; index(unit)]);
    if let Some(packed) = packed {
        image.write_packed(GuestOffset::new(DISK / 2).floor(unit), &packed).unwrap();
    }
    image.zero(GuestOffset::new(unit).range(unit), crate::io::Kept::Space, &Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    let mut bytes = vec![0; index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

fn word(image: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(image[index(at)..][..8].try_into().unwrap())
}

fn put(image: &mut [u8], at: u64, word: u64) {
    image[index(at)..][..8].copy_from_slice(&word.to_be_bytes());
}

/// Places in a sound image: the refcount table, the first refcount block, the first L2 table, and its
/// entries with a place of their own.
struct Places {
    table: u64,
    block: u64,
    l1: u64,
    owned: Vec<u64>,
}

impl Places {
    fn find(image: &[u8]) -> Self {
        let (unit, table, l1) = (1 << image[23], word(image, 48), word(image, 40));
        let l2 = word(image, l1) & 0x00ff_ffff_ffff_fe00;
        let width = if word(image, 72) & feature::EXTENDED_L2 != 0 && image[7] == 3 { 16 } else { 8 };
        let entries = (0..unit / width).map(|n| l2 + n * width);
        let owned = entries.filter(|at| word(image, *at) >> 62 == 2).collect();
        Self { table, block: word(image, table), l1, owned }
    }
}

type Damage = fn(&mut [u8], &Places);

/// What is damaged, from what a crash of another program leaves to what only malice does.
const DAMAGES: [(&str, Damage); 9] = [
    ("refcounts that were never written", |image, at| image[index(at.block)..][..64].fill(0)),
    ("leaks behind everything", |image, at| image[index(at.block) + 16..][..200].fill(0x11)),
    ("a dirty image", |image, at| {
        if image[7] == 3 {
            image[79] |= 1;
        }
        image[index(at.block) + 4..][..24].fill(0);
    }),
    ("no flag of a sole owner", |image, at| {
        for entry in &at.owned {
            put(image, *entry, word(image, *entry) & !(1 << 63));
        }
        put(image, at.l1, word(image, at.l1) & !(1 << 63));
    }),
    ("two entries for one cluster, both flagged as its sole owner", |image, at| {
        put(image, at.owned[1], word(image, at.owned[0]));
    }),
    ("a shared cluster whose refcount is too low, and refcounts that are gone", |image, at| {
        put(image, at.owned[2], word(image, at.owned[0]));
        image[index(at.block)..][..32].fill(0);
    }),
    ("no refcount block", |image, at| put(image, at.table, 0)),
    ("a refcount block within a cluster", |image, at| put(image, at.table, at.block + 512)),
    ("a refcount block that is guest data, too", |image, at| {
        put(image, at.table, word(image, at.owned[0]) & 0x00ff_ffff_ffff_fe00);
    }),
];

/// What a reader gets, piece by piece; `None` where it is refused.
fn readable(file: Arc<dyn File>) -> Result<Vec<Option<Vec<u8>>>> {
    let image = format::open(Format::Qcow2, file, false, &NoParts)?;
    let read = |n: u64| {
        let mut bytes = vec![0; index(PIECE)];
        image.read(GuestOffset::new(n * PIECE), &mut bytes, &Nothing).ok().map(|()| bytes)
    };
    Ok((0..DISK / PIECE).map(read).collect())
}

fn repair(host: &SimHost) -> Checked {
    let file = host.open(Path::new(NAME), Access::Write).unwrap();
    format::check(Format::Qcow2, file, Repair::All, &NoParts).unwrap()
}

fn assert_clean(left: &Checked, what: &str) {
    assert_eq!((left.corruptions, left.leaks, left.errors), (0, 0, 0), "{what}: {:?}", left.findings);
}

/// Compares what is readable with what was; returns nothing, fails with `what`.
fn assert_kept(host: &SimHost, before: &[Option<Vec<u8>>], what: &str) {
    let after = readable(host.open(Path::new(NAME), Access::ReadShared).unwrap());
    let after = after.unwrap_or_else(|e| panic!("{what}: it does not open any more: {e}"));
    for (n, (was, is)) in before.iter().zip(&after).enumerate() {
        assert!(was.is_none() || was == is, "{what}: piece {n} was readable and is not, or otherwise");
    }
}

/// Repairs, and cuts the power behind every event; `depth` times over. Returns the cuts.
fn cuts(host: &SimHost, before: &[Option<Vec<u8>>], depth: u32, what: &str) -> usize {
    let start = host.events();
    assert_clean(&repair(host), what);
    assert_kept(host, before, what);
    let mut seen = 0;
    if depth == 0 {
        return seen;
    }
    for crash in crash_states(&host.trace(), 7, 6).filter(|crash| crash.after >= start) {
        let what = format!("{what}, cut after event {} ({:?})", crash.after, crash.landing);
        assert_kept(&crash.host, before, &what);
        seen += 1;
        seen += cuts(&crash.host, before, depth - 1, &what);
    }
    seen
}

const OPTIONS: [&[(&str, &str)]; 6] = [
    &[("cluster_size", "4096")],
    &[("cluster_size", "512"), ("refcount_bits", "64")],
    &[("cluster_size", "4096"), ("refcount_bits", "8")],
    &[("cluster_size", "4096"), ("compat", "v2")],
    &[("cluster_size", "16K"), ("extended_l2", "on")],
    &[("cluster_size", "64K")],
];

#[test]
fn a_cut_while_an_image_is_repaired_loses_nothing_and_a_second_repair_ends_clean() {
    let mut seen = 0;
    for options in OPTIONS {
        let sound = sound(options);
        let places = Places::find(&sound);
        for (n, (damage, how)) in DAMAGES.iter().enumerate() {
            let what = format!("{options:?}, {damage}");
            if places.owned.len() < 3 {
                continue;
            }
            let mut bytes = sound.clone();
            how(&mut bytes, &places);
            let host = SimHost::new();
            let file = host.create(Path::new(NAME)).unwrap();
            file.write_at(HostOffset::new(0), &bytes).unwrap();
            file.flush().unwrap();
            drop(file);
            host.sync_folder(Path::new("/")).unwrap();
            let before = readable(host.open(Path::new(NAME), Access::ReadShared).unwrap());
            let before = before.unwrap_or_else(|e| panic!("{what}: {e}"));
            // A crash of the repair after a crash of the repair, for some.
            let depth = if n % 3 == 2 && options.len() == 1 { 2 } else { 1 };
            seen += cuts(&host, &before, depth, &what);
        }
    }
    assert!(seen > 1000, "{seen} cuts");
}

#[test]
fn a_cut_while_an_image_is_created_leaves_none_of_it_or_all() {
    let mut seen = 0;
    for options in OPTIONS {
        let real = SimHost::new();
        let host: Arc<dyn Host> = Arc::new(real.clone());
        let draft = Draft::new(&host, Path::new(NAME)).unwrap();
        drop(format::create(Format::Qcow2, draft.file(), &creation(options), &NoParts).unwrap());
        draft.publish(Path::new(NAME), Publish::New).unwrap();
        for crash in crash_states(&real.trace(), 3, 6) {
            if crash.host.kind(Path::new(NAME)).unwrap().is_none() {
                continue;
            }
            let what = format!("{options:?}, cut after event {} ({:?})", crash.after, crash.landing);
            let file = crash.host.open(Path::new(NAME), Access::Read).unwrap();
            let checked = format::check(Format::Qcow2, file, Repair::Nothing, &NoParts);
            assert_clean(&checked.unwrap_or_else(|e| panic!("{what}: {e}")), &what);
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} cuts with the file there");
}

/// An entry that shared its cluster with another was left as its sole owner without the flag when the other one
/// was written: a corruption, as check saw it, that nobody had caused by then.
#[test]
fn what_is_written_after_a_repair_leaves_no_contradiction() {
    for options in [&[("cluster_size", "4096")][..], &[("cluster_size", "16K"), ("extended_l2", "on")]] {
        let mut bytes = sound(options);
        let at = Places::find(&bytes);
        let first = word(&bytes, at.owned[0]);
        put(&mut bytes, at.owned[1], first);
        let file = Arc::new(MemoryFile::new(NAME));
        file.write_at(HostOffset::new(0), &bytes).unwrap();
        let before = readable(file.clone()).unwrap();
        let mended = format::check(Format::Qcow2, file.clone(), Repair::All, &NoParts).unwrap();
        assert!(mended.corruptions == 0 && mended.corruptions_fixed > 0, "{:?}", mended.findings);
        assert_eq!(readable(file.clone()).unwrap(), before);
        let image = format::open(Format::Qcow2, file.clone(), true, &NoParts).unwrap();
        for n in (0..DISK / PIECE).step_by(2) {
            image.write(GuestOffset::new(n * PIECE), &[0x5a; 4096], &Nothing).unwrap();
        }
        image.flush().unwrap();
        drop(image);
        let found = format::check(Format::Qcow2, file.clone(), Repair::Nothing, &NoParts).unwrap();
        assert_eq!((found.corruptions, found.errors), (0, 0), "{:?}", found.findings);
        for (n, (was, is)) in before.into_iter().zip(readable(file).unwrap()).enumerate() {
            assert_eq!(is, if n % 2 == 0 { Some(vec![0x5a; 4096]) } else { was }, "{n}");
        }
    }
}
