//! Damaged images: the verdict of our check is qemu's, and what a repair leaves is clean to qemu.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{HostOffset, seed::Seeded},
    chain::{Opening, check_layer},
    format::{self, Checked, Format, NoParts, Repair},
    io::{Access, File, Host, real::RealHost},
};
use std::{fs, path::Path, sync::Arc};

/// Exit codes of `qemu-img check`.
const CLEAN: i32 = 0;
const ERROR: i32 = 1;
const CORRUPT: i32 = 2;
const LEAKS: i32 = 3;

/// A file for checks alone: no lock, so that qemu may look at the same time.
fn open(path: &Path, access: Access) -> Arc<dyn File> {
    RealHost::new().open(path, access).unwrap()
}

fn verdict(checked: &Result<Checked, deltachain::base::Error>) -> i32 {
    match checked {
        Err(_) => ERROR,
        Ok(c) if c.errors > 0 => ERROR,
        Ok(c) if c.corruptions > 0 => CORRUPT,
        Ok(c) if c.leaks > 0 => LEAKS,
        Ok(_) => CLEAN,
    }
}

fn ours(path: &Path, repair: Repair) -> Result<Checked, deltachain::base::Error> {
    let access = if repair == Repair::Nothing { Access::ReadShared } else { Access::Write };
    let opening = Opening::reading().with_access(access).with_format(Some(Format::Qcow2));
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    check_layer(&host, path, &opening, repair).map(|(_, checked)| checked)
}

fn qemus(folder: &Scratch, name: &str) -> (i32, String) {
    let output = folder.try_run("qemu-img", ["check", "-U", "-f", "qcow2", name]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

/// A small image with some of everything that its options allow.
fn make(folder: &Scratch, options: &str, has_snapshot: bool) {
    folder.qemu_img(&format!("create -q -f qcow2 -o {options} image 2M"));
    folder.qemu_io("qcow2", "image", &["write -q -P 1 0 200k", "write -q -P 2 1M 130k"]);
    if !options.contains("data_file") {
        folder.qemu_io("qcow2", "image", &["write -q -c -P 3 512k 64k"]);
    }
    folder.qemu_io("qcow2", "image", &["write -q -z 640k 64k", "write -q -z 0 16k"]);
    if has_snapshot {
        folder.qemu_img("snapshot -c s image");
        folder.qemu_io("qcow2", "image", &["write -q -P 4 64k 64k"]);
    }
    if !options.contains("0.10") {
        folder.qemu_img("bitmap --add image b");
        folder.qemu_io("qcow2", "image", &["write -q -P 5 1900k 64k"]);
    }
    assert_eq!(qemus(folder, "image").0, CLEAN);
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// Places of words that matter, by kind: L1, L2 entries in use, refcount table, refcount blocks, snapshots.
fn places(image: &[u8]) -> [Vec<usize>; 4] {
    let unit = 1_usize << image[23];
    let l1 = index(word(image, 40));
    let tables = index(word(image, 32) & 0xffff_ffff);
    let l1: Vec<usize> = (0..tables).map(|n| l1 + n * 8).collect();
    let table_of = |at: &usize| index(word(image, *at) & 0x00ff_ffff_ffff_fe00);
    let l2: Vec<usize> = l1.iter().map(table_of).filter(|at| *at != 0).collect();
    let in_use = |at: &usize| word(image, *at) != 0;
    let l2 = l2.into_iter().flat_map(|at| (0..unit / 8).map(move |n| at + n * 8)).filter(in_use).collect();
    let refcount_table: Vec<usize> = (0..2).map(|n| index(word(image, 48)) + n * 8).collect();
    let blocks = refcount_table.iter().map(|at| index(word(image, *at))).filter(|at| *at != 0);
    let blocks = blocks.flat_map(|at| (0..12).map(move |n| at + n * 8)).collect();
    [l1, l2, refcount_table, blocks]
}

/// Places of words of the snapshot table and its L1 table, and of the bitmap directory and its table.
fn side_places(image: &[u8]) -> Vec<Vec<usize>> {
    let words = |at: u64, n: usize| (0..n).map(|nth| index(at) + nth * 8).collect::<Vec<_>>();
    let snapshots = word(image, 64);
    let mut kinds = vec![words(snapshots, 5), words(word(image, index(snapshots)), 1)];
    let is_bitmaps = |at: &usize| image[*at..at + 4] == [0x23, 0x85, 0x28, 0x75];
    if let Some(at) = (104..1 << 12).step_by(8).find(is_bitmaps) {
        let directory = word(image, at + 24);
        kinds.extend([words(directory, 3), words(word(image, index(directory)), 1), words(at as u64 + 8, 3)]);
    }
    kinds
}

/// One damage: where, and the new word.
fn damage(image: &[u8], kinds: &[Vec<usize>], seeded: &mut Seeded) -> (usize, u64) {
    let kind = &kinds[index(seeded.below(kinds.len() as u64))];
    let at = kind[index(seeded.below(kind.len() as u64))];
    let other = kind[index(seeded.below(kind.len() as u64))];
    let old = word(image, at);
    let new = match seeded.below(8) {
        0 => 0,
        1 => old ^ 1 << 63,
        2 => old ^ 1 << seeded.below(64),
        3 => word(image, other),
        4 => old.wrapping_add(1 << image[23]),
        5 => old.wrapping_add(512),
        6 => {
            (image.len() as u64).next_multiple_of(1 << image[23]) + (seeded.below(3) << image[23]) + (1 << 63)
        }
        _ => old ^ 1 << seeded.below(17),
    };
    (at, new)
}

/// Damages the tables of one image in `rounds` ways; compares verdicts, then what a repair leaves.
fn same_verdicts(options: &str, has_snapshot: bool, rounds: u64) {
    let (seen, mended) = same_verdicts_at(options, has_snapshot, rounds, |image| places(image).to_vec());
    assert!(seen[2] > 0 && seen[3] > 0 && mended > 0, "of everything some: {seen:?}, mended {mended}");
}

/// Damages words at `places` only; returns how often there was each exit code, and how often all was mended.
fn same_verdicts_at(
    options: &str,
    has_snapshot: bool,
    rounds: u64,
    choose: fn(&[u8]) -> Vec<Vec<usize>>,
) -> ([u64; 4], u64) {
    let folder = Scratch::new();
    make(&folder, options, has_snapshot);
    let path = folder.file("image");
    let sound = fs::read(&path).unwrap();
    let flat = folder.flat("qcow2", "image");
    let mut seen = [0; 4];
    let mut mended = 0;
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let (at, new) = damage(&sound, &choose(&sound), &mut Seeded::new(round));
        let mut bytes = sound.clone();
        bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
        fs::write(&path, &bytes).unwrap();
        let checked = ours(&path, Repair::Nothing);
        let (theirs, said) = qemus(&folder, "image");
        let what = format!("{options}, seed {round}: {:#x} at {at:#x} becomes {new:#x}", word(&sound, at));
        if verdict(&checked) != theirs {
            let said: String = said.chars().take(600).collect();
            wrong.push(format!("{what}: {} against {theirs}\n{checked:.600?}\n{said}", verdict(&checked)));
        }
        seen[usize::try_from(theirs).unwrap()] += 1;
        if round % 4 == 0 && theirs != CLEAN {
            let left = ours(&path, Repair::All);
            let (theirs, said) = qemus(&folder, "image");
            assert_eq!(verdict(&left), theirs, "after the repair of {what}\n{left:?}\n{said}");
            let [_, _, table, blocks] = places(&sound);
            if table.contains(&at) || blocks.contains(&at) {
                assert_eq!(theirs, CLEAN, "refcounts can always be mended: {what}\n{left:?}\n{said}");
                assert_same(&folder.flat("qcow2", "image"), &flat, &what);
                mended += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    (seen, mended)
}

#[test]
fn damages_in_snapshot_tables_and_bitmaps_are_judged_as_qemu_judges_them() {
    let (seen, _) = same_verdicts_at("cluster_size=64k", true, 100, side_places);
    assert!(seen[1] > 0 && seen[2] > 0, "errors and corruptions: {seen:?}");
}

#[test]
fn damages_of_images_with_a_data_file_are_judged_as_qemu_judges_them() {
    same_verdicts("cluster_size=4k,data_file=image.data", false, 60);
}

#[test]
fn damages_are_judged_as_qemu_judges_them() {
    same_verdicts("cluster_size=64k", true, 60);
}

#[test]
fn damages_in_small_clusters_are_judged_as_qemu_judges_them() {
    same_verdicts("cluster_size=4k,refcount_bits=8", true, 60);
}

#[test]
fn damages_in_version_2_are_judged_as_qemu_judges_them() {
    same_verdicts("compat=0.10,cluster_size=8k", true, 60);
}

#[test]
fn damages_in_extended_entries_are_judged_as_qemu_judges_them() {
    same_verdicts("extended_l2=on,cluster_size=16k,refcount_bits=64", false, 60);
}

#[test]
fn damages_of_narrow_refcounts_are_judged_as_qemu_judges_them() {
    same_verdicts("cluster_size=32k,refcount_bits=1", false, 60);
}

#[test]
fn leaks_alone_are_given_back_and_nothing_else_is_touched() {
    let folder = Scratch::new();
    make(&folder, "cluster_size=64k", false);
    let path = folder.file("image");
    let file = open(&path, Access::Write);
    let end = file.bytes().unwrap().next_multiple_of(1 << 16);
    file.set_bytes(end + (3 << 16)).unwrap();
    let block = word(&fs::read(&path).unwrap(), 1 << 16);
    for n in 0..3 {
        file.write_at(HostOffset::new(block + ((end >> 16) + n) * 2), &[0, 1]).unwrap();
    }
    drop(file);
    assert_eq!(qemus(&folder, "image").0, LEAKS);
    let left = ours(&path, Repair::Leaks).unwrap();
    assert_eq!((left.leaks_fixed, left.leaks, left.corruptions), (3, 0, 0));
    assert_eq!(qemus(&folder, "image").0, CLEAN);
}

#[test]
fn the_statistics_are_qemus() {
    for cluster in ["64k", "512"] {
        let folder = Scratch::new();
        make(&folder, &format!("cluster_size={cluster}"), true);
        let theirs = folder.qemu_img("check -f qcow2 --output=json image");
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        let checked = ours(&folder.file("image"), Repair::Nothing).unwrap();
        let ours = [
            ("total-clusters", checked.total_units),
            ("allocated-clusters", checked.allocated_units),
            ("fragmented-clusters", checked.fragmented_units),
            ("compressed-clusters", checked.compressed_units),
            ("image-end-offset", checked.end.bytes()),
        ];
        for (key, value) in ours {
            assert_eq!(theirs[key].as_u64().unwrap_or(0), value, "{key}: {theirs}");
        }
    }
}

#[test]
fn a_dirty_image_is_clean_after_a_repair() {
    let folder = Scratch::new();
    make(&folder, "cluster_size=64k,lazy_refcounts=on", false);
    let path = folder.file("image");
    let file = open(&path, Access::Write);
    // The dirty bit, and refcounts that were never written.
    file.write_at(HostOffset::new(79), &[1]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let block = index(word(&bytes, 1 << 16));
    file.write_at(HostOffset::new(block as u64 + 10), &[0; 40]).unwrap();
    drop(file);
    let dirty = fs::read(&path).unwrap();
    let left = ours(&path, Repair::All).unwrap();
    assert!(left.corruptions_fixed > 0 && left.corruptions == 0, "{left:?}");
    assert_eq!(fs::read(&path).unwrap()[79], 0);
    assert_eq!(qemus(&folder, "image").0, CLEAN);
    // Opening for reading changes nothing, opening for writing repairs.
    fs::write(&path, &dirty).unwrap();
    drop(format::open(Format::Qcow2, open(&path, Access::Read), false, &NoParts).unwrap());
    assert_eq!(fs::read(&path).unwrap(), dirty);
    drop(format::open(Format::Qcow2, open(&path, Access::Write), true, &NoParts).unwrap());
    assert_eq!(fs::read(&path).unwrap()[79], 0);
    assert_eq!(qemus(&folder, "image").0, CLEAN);
}
