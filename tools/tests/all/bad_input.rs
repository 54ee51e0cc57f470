//! Malformed images through the whole stack: opening a chain, `check`, and the built program. Each is refused
//! with one line that names file and field, or judged; nothing is written, and little time and memory taken.

use crate::{dchain::command, foreign::Scratch};
use deltachain::{
    base::{Error, ErrorKind, GuestOffset},
    chain::{Chain, Opening, check_layer},
    disk::Disk,
    format::{Checked, Format, Repair},
    io::{Host, real::RealHost},
};
use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use wait4::Wait4;

/// The most processor time that a refusal takes (unoptimised: three times as much).
const CPU_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });
/// The most memory that a refusal takes beyond what the program takes to say its version.
const MEMORY_MAX: u64 = 64 << 20;

fn host() -> Arc<dyn Host> {
    Arc::new(RealHost::new())
}

fn open(path: &Path, opening: Opening) -> Result<Chain, Error> {
    Chain::open(&host(), path, &opening.with_format(Some(Format::Qcow2)))
}

fn check(path: &Path) -> Result<Checked, Error> {
    let opening = Opening::reading().with_format(Some(Format::Qcow2));
    check_layer(&host(), path, &opening, Repair::Nothing).map(|(_, checked)| checked)
}

/// A field of the header: what is said of it, where it is, how wide, and what it becomes.
type Field = (&'static str, usize, usize, u64);

/// Group a of what is refused; the image has its L1 table at 0x30000 and ends at 0x40000 or later.
const FIELDS: [Field; 28] = [
    ("cluster_bits (0x14) is 0", 20, 4, 0),
    ("cluster_bits (0x14) is 63", 20, 4, 63),
    ("refcount_order (0x60) is 7", 96, 4, 7),
    ("l1_size, 0x24", 36, 4, 1 << 31),
    ("l1_size (0x24) is 0", 36, 4, 0),
    ("l1_table_offset, 0x28) starts at 0x30200", 40, 8, 0x30200),
    ("refcount_table_offset, 0x30) starts at 0x10008", 48, 8, 0x10008),
    ("l1_table_offset, 0x28) ends at", 40, 8, 0x7fff_0000),
    ("refcount_table_offset, 0x30) ends at", 48, 8, 0x7fff_0000),
    ("l1_table_offset, 0x28) at 0x0 overlaps the first cluster", 40, 8, 0),
    ("refcount_table_offset, 0x30) at 0x0 overlaps the first cluster", 48, 8, 0),
    ("at 0x30000 overlaps the L1 table", 48, 8, 0x30000),
    ("refcount_table_clusters (0x38) is 0", 56, 4, 0),
    ("refcount table (0x38) takes", 56, 4, 0xffff_ffff),
    ("snapshot table (0x3c) takes", 60, 4, 0xffff_ffff),
    ("snapshots_offset, 0x40) at 0x0 overlaps", 60, 4, 1),
    ("size (0x18) is 0x8000000000000000, past 2^63", 24, 8, 1 << 63),
    ("but a disk of 9223372036854775807 bytes needs", 24, 8, u64::MAX >> 1),
    ("header_length (0x64) is 105", 100, 4, 105),
    ("header_length (0x64) is 131072", 100, 4, 0x20000),
    ("header extension", 112 + 4, 4, 0x00ff_ffff),
    ("bit 63", 72, 8, 1 << 63),
    ("version (0x4) is 1", 4, 4, 1),
    ("version (0x4) is 4", 4, 4, 4),
    ("encrypted with AES (crypt_method, 0x20)", 32, 4, 1),
    ("encrypted with LUKS (crypt_method, 0x20)", 32, 4, 2),
    ("backing_file_offset (0x8) is 0x20000", 8, 8, 0x20000),
    ("compression_type (0x68) is 7", 104, 1, 7),
];

#[test]
fn bad_input_a_each_header_field_is_refused_by_name_and_nothing_is_written() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 vm 64M");
    folder.qemu_io("qcow2", "vm", &["write -q -P 1 0 200k"]);
    let path = folder.file("vm");
    let sound = fs::read(&path).unwrap();
    assert_eq!(sound[40..48], 0x30000_u64.to_be_bytes());
    for (says, at, width, value) in FIELDS {
        let mut bytes = sound.clone();
        bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        fs::write(&path, &bytes).unwrap();
        for opening in [Opening::reading(), Opening::writing()] {
            let error = open(&path, opening).map(drop).unwrap_err();
            let said = error.to_string();
            assert!(said.starts_with(path.to_str().unwrap()) && said.contains(says), "{says}: {said}");
            assert!(!said.contains('\n') && said.len() < 300, "one clear line: {said}");
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        }
        // Where tables are is for `check` to find out; the rest it refuses in the same words.
        match check(&path) {
            Ok(checked) => assert!(checked.corruptions + checked.errors > 0, "{says}: {checked:?}"),
            Err(error) => assert!(error.to_string().contains(says), "{says}: {error}"),
        }
        assert!(fs::read(&path).unwrap() == bytes, "{says}: the file was written");
    }
}

/// Runs the program on a malformed image within bounds; returns its exit code.
fn bounded(folder: &Scratch, arguments: &[&str]) -> i32 {
    let run = |arguments: &[&str]| {
        let mut child = command(&folder.path(), arguments);
        let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.wait4().unwrap()
    };
    let (base, used) = (run(&["--version"]), run(arguments));
    let cpu = used.rusage.utime + used.rusage.stime;
    assert!(cpu < CPU_MAX, "{arguments:?} took {cpu:?}");
    let memory = used.rusage.maxrss.saturating_sub(base.rusage.maxrss);
    assert!(memory < MEMORY_MAX, "{arguments:?} took {} KiB", memory >> 10);
    used.status.code().expect("no signal")
}

fn put(folder: &Scratch, image: &str, edits: &[(u64, u64, u64)]) {
    let file = OpenOptions::new().write(true).open(folder.file(image)).unwrap();
    for (at, width, value) in edits {
        let from = usize::try_from(8 - width).unwrap();
        file.write_all_at(&value.to_be_bytes()[from..], *at).unwrap();
    }
}

/// Writes the same bytes `times` times. The program's peak of memory starts with that of the test, so this one
/// keeps little at once.
fn repeat(file: &fs::File, at: u64, bytes: &[u8], times: u64) {
    let some = bytes.repeat(1024);
    let length = bytes.len() as u64;
    for n in (0..times).step_by(1024) {
        let part = &some[..some.len().min(usize::try_from((times - n) * length).unwrap())];
        file.write_all_at(part, at + n * length).unwrap();
    }
}

/// An image of 32 MiB with clusters of 2 MiB, all behind its first five in one L1 table that the header claims
/// a disk of 2 EiB for; `word` says what stands in its entries.
fn bomb(folder: &Scratch, image: &str, word: u64) {
    const UNIT: u64 = 2 << 20;
    folder.qemu_img(&format!("create -q -f qcow2 -o cluster_size=2M {image} 1M"));
    folder.qemu_io("qcow2", image, &["write -q -P 1 0 1M"]);
    let file = OpenOptions::new().write(true).open(folder.file(image)).unwrap();
    file.set_len(16 * UNIT).unwrap();
    let entries = 10 * UNIT / 8;
    repeat(&file, 6 * UNIT, &word.to_be_bytes(), entries);
    let span = UNIT * (UNIT / 8);
    put(folder, image, &[(24, 8, entries * span), (36, 4, entries), (40, 8, 6 * UNIT)]);
}

#[test]
fn bad_input_b_a_small_file_that_claims_a_vast_disk_costs_little() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 -o cluster_size=2M claims 1M");
    fs::File::options().write(true).open(folder.file("claims")).unwrap().set_len(32 << 20).unwrap();
    for claim in [1 << 63, (1 << 63) - 512] {
        put(&folder, "claims", &[(24, 8, claim)]);
        for tool in ["info", "map", "check"] {
            assert_ne!(bounded(&folder, &[tool, "claims"]), 0, "{tool}: {claim} bytes");
        }
    }
    // Every entry leads to the one L2 table; to nothing; past the file's end.
    for (n, word) in [5 << 21 | 1 << 63, 0, 40 << 21 | 1 << 63].into_iter().enumerate() {
        let name = format!("vast{n}");
        bomb(&folder, &name, word);
        bounded(&folder, &["info", &name]);
        assert_ne!(bounded(&folder, &["check", &name]), 0, "{name}: what is not counted is leaked at least");
    }
}

#[test]
fn bad_input_b_tables_of_gigabytes_cost_little() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 sound 64M");
    let refuse = |what: &str, edits: &[(u64, u64, u64)]| {
        fs::copy(folder.file("sound"), folder.file("image")).unwrap();
        put(&folder, "image", edits);
        for tool in ["info", "map", "check"] {
            assert_ne!(bounded(&folder, &[tool, "image"]), 0, "{tool}: {what}");
        }
    };
    refuse("refcount table", &[(56, 4, 0xffff_ffff)]);
    refuse("refcount table of the greatest length", &[(56, 4, 8 << 4)]);
    refuse("L1 table", &[(36, 4, 0xffff_ffff)]);
    refuse("L1 table of the greatest length", &[(36, 4, 4 << 20)]);
    refuse("snapshots", &[(60, 4, 65_536), (64, 8, 0x30000)]);
    // A million snapshot and bitmap entries over one another, and a refcount table that is all one block.
    folder.qemu_img("create -q -f qcow2 -o cluster_size=512 small 1M");
    let file = OpenOptions::new().read(true).write(true).open(folder.file("small")).unwrap();
    file.set_len(32 << 20).unwrap();
    let entry = [0_u64, 0x40_0000 << 32, 0, 0, 0].map(u64::to_be_bytes).concat();
    repeat(&file, 16 << 20, &entry, 65_536);
    put(&folder, "small", &[(60, 4, 65_536), (64, 8, 16 << 20)]);
    assert_ne!(bounded(&folder, &["check", "small"]), 0);
    let mut block = [0; 8];
    file.read_exact_at(&mut block, 512).unwrap();
    repeat(&file, 20 << 20, &block, (8 << 20) / 8);
    put(&folder, "small", &[(60, 4, 0), (48, 8, 20 << 20), (56, 4, (8 << 20) / 512)]);
    assert_ne!(bounded(&folder, &["check", "small"]), 0);
}

/// Changes words of 4 bytes, which VMDK has the other way round.
fn put_little(folder: &Scratch, image: &str, edits: &[(u64, u64, u64)]) {
    let file = OpenOptions::new().write(true).open(folder.file(image)).unwrap();
    for (at, width, value) in edits {
        let width = usize::try_from(*width).unwrap();
        file.write_all_at(&value.to_le_bytes()[..width], *at).unwrap();
    }
}

#[test]
fn bad_input_b_vmdks_that_claim_much_cost_little() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f vmdk sound.vmdk 64M");
    let refuse = |what: &str, edits: &[(u64, u64, u64)]| {
        fs::copy(folder.file("sound.vmdk"), folder.file("image.vmdk")).unwrap();
        put_little(&folder, "image.vmdk", edits);
        for tool in ["info", "map", "check"] {
            assert_ne!(bounded(&folder, &[tool, "image.vmdk"]), 0, "{tool}: {what}");
        }
    };
    refuse("8 EiB", &[(12, 8, 1 << 54)]);
    refuse("1 PiB", &[(12, 8, 1 << 41)]);
    refuse("a directory of GiBs", &[(12, 8, 1 << 40), (20, 8, 1)]);
    refuse("a descriptor of GiBs", &[(36, 8, 1 << 30)]);
    // The largest directories there may be, both; each entry leads to the one table.
    let entries = 2 << 20;
    fs::copy(folder.file("sound.vmdk"), folder.file("vast.vmdk")).unwrap();
    let file = OpenOptions::new().write(true).open(folder.file("vast.vmdk")).unwrap();
    for at in [8 << 20, 32 << 20] {
        repeat(&file, at, &22_u32.to_le_bytes(), entries);
    }
    let places = [(48, 8, (8 << 20) / 512), (56, 8, (32 << 20) / 512), (12, 8, entries * (32 << 20) / 512)];
    put_little(&folder, "vast.vmdk", &places);
    bounded(&folder, &["info", "vast.vmdk"]);
    assert_ne!(bounded(&folder, &["check", "vast.vmdk"]), 0);
    // Extents of which each is within bounds.
    let line = |n: u32| format!("RW 274877906944 SPARSE \"e{n}.vmdk\"\n");
    let text: String = (0..4).map(line).collect();
    fs::write(folder.file("all.vmdk"), format!("# Disk DescriptorFile\nversion=1\nCID=1\n{text}")).unwrap();
    for n in 0..4 {
        fs::hard_link(folder.file("vast.vmdk"), folder.file(&format!("e{n}.vmdk"))).unwrap();
    }
    assert_ne!(bounded(&folder, &["info", "all.vmdk"]), 0);
}

#[test]
fn bad_input_b_a_cluster_that_unpacks_to_more_is_refused_by_its_guest_byte() {
    for compression in ["zlib", "zstd"] {
        let folder = Scratch::new();
        let make = |name: &str, unit: &str, length: &str| {
            let options = format!("cluster_size={unit},compression_type={compression}");
            folder.qemu_img(&format!("create -q -f qcow2 -o {options} {name} 4M"));
            folder.qemu_io("qcow2", name, &[&format!("write -q -c -P 7 0 {length}")]);
            let bytes = fs::read(folder.file(name)).unwrap();
            let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
            let l1 = usize::try_from(word(40)).unwrap();
            let entry = word(usize::try_from(word(l1) & 0x00ff_ffff_ffff_fe00).unwrap());
            assert!(entry >> 62 & 1 == 1, "compressed");
            let at = entry & ((1 << (62 - (u32::from(bytes[23]) - 8))) - 1);
            (bytes, usize::try_from(at).unwrap())
        };
        let (large, from) = make("large", "2M", "2M");
        let (mut small, to) = make("small", "64k", "64k");
        // 2 MiB of one byte, packed: a few hundred bytes in the place of a cluster of 64 KiB.
        small.truncate(to);
        small.extend_from_slice(&large[from..large.len().min(from + 512)]);
        small.resize(to + 65_536, 0);
        fs::write(folder.file("small"), small).unwrap();
        let chain = open(&folder.file("small"), Opening::reading()).unwrap();
        let error = chain.read(GuestOffset::new(0), &mut [0; 512]).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{said}");
        assert!(said.contains("small: ") && said.contains("guest byte 0x0"), "{said}");
        assert!(said.contains("unpacks to more than a cluster"), "{said}");
        assert_ne!(bounded(&folder, &["id", "small"]), 0);
    }
}
