//! Malformed images through the whole stack: the built program, and what opens and checks them in it. Each is refused
//! with one line that names file and field, or judged; nothing is written, and little time and memory taken.
//!
//! The damages of each format stand in tables beside this (`bad_vhdx` and others); what is done with them is here.

use crate::{dchain::command, foreign::Scratch};
use deltachain::{
    base::{Error, ErrorKind, GuestOffset},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, real::RealHost},
};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, OnceLock},
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

/// What the program says of a malformed image.
pub(crate) struct Said {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it printed on stderr.
    pub(crate) err: String,
}

fn ended(folder: &Scratch, arguments: &[&str]) -> (Said, wait4::ResourceUsage) {
    let mut child = command(&folder.path(), arguments);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let used = child.wait4().unwrap();
    (Said { code: used.status.code().expect("no signal"), err }, used.rusage)
}

/// Runs the program on a malformed image within bounds.
pub(crate) fn bounded(folder: &Scratch, arguments: &[&str]) -> Said {
    static BASE: OnceLock<u64> = OnceLock::new();
    let base = *BASE.get_or_init(|| ended(folder, &["--version"]).1.maxrss);
    let (said, used) = ended(folder, arguments);
    let cpu = used.utime + used.stime;
    assert!(cpu < CPU_MAX, "{arguments:?} took {cpu:?}: {}", said.err);
    let memory = used.maxrss.saturating_sub(base);
    assert!(memory < MEMORY_MAX, "{arguments:?} took {} KiB: {}", memory >> 10, said.err);
    said
}

/// The files of a folder, and what is in them.
fn files(folder: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            // In pieces: the program's peak of memory starts with that of the test.
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(fs::File::open(&path).unwrap()).unwrap();
            found.insert(path, hasher.finalize());
        }
    }
    found
}

/// Has the program do something to `image` that it refuses within bounds, in one line that begins with the image's name
/// and has `says`; nothing is written.
pub(crate) fn refused(folder: &Scratch, arguments: &[&str], image: &str, says: &str) -> Said {
    let before = files(&folder.path());
    let said = bounded(folder, arguments);
    let lines: Vec<&str> = said.err.lines().filter(|line| !line.starts_with("hint: ")).collect();
    let [line] = lines[..] else { panic!("{arguments:?}, {says}: {:?} says {lines:#?}", said.code) };
    assert_ne!(said.code, 0, "{arguments:?}, {says}: {line}");
    let own = [image.to_owned(), folder.file(image).display().to_string()];
    let is_named =
        own.iter().any(|name| line.strip_prefix("dchain: ").is_some_and(|l| l.starts_with(name.as_str())));
    assert!(is_named && line.contains(says) && line.len() < 500, "{arguments:?}, {says}: {line}");
    assert!(files(&folder.path()) == before, "{arguments:?}, {says}: something was written");
    said
}

/// Who meets a damage first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Whoever opens the image.
    Opening,
    /// Whoever reads there.
    Reading,
}

/// A damage of an image, and what is said of it.
pub(crate) struct Bad {
    /// What is said.
    pub(crate) says: String,
    /// Where bytes become others.
    pub(crate) edits: Vec<(usize, Vec<u8>)>,
    /// Whether sums over them are put right.
    pub(crate) is_summed: bool,
    /// Who meets it.
    pub(crate) met: Met,
}

/// A damage that is met on opening, its sums put right.
pub(crate) fn bad(says: &str, edits: &[(usize, &[u8])]) -> Bad {
    let edits = edits.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
    Bad { says: says.to_owned(), edits, is_summed: true, met: Met::Opening }
}

impl Bad {
    /// The same with the sums as they were.
    pub(crate) fn unsummed(self) -> Self {
        Self { is_summed: false, ..self }
    }

    /// The same, met by who reads.
    pub(crate) fn read(self) -> Self {
        Self { met: Met::Reading, ..self }
    }
}

/// A sound image to be damaged.
pub(crate) struct Sound<'a> {
    pub(crate) format: Format,
    /// What the image is called.
    pub(crate) name: &'a str,
    pub(crate) bytes: &'a [u8],
}

impl Sound<'_> {
    /// Damages it in each of those ways, in `folder`: the program refuses to show it, to read it, to check it and to
    /// change it.
    pub(crate) fn each_is_refused(&self, folder: &Scratch, damages: &[Bad]) {
        let (image, format) = (self.name, self.format.name());
        let run = |tool: &[&'static str]| [tool, &["-f", format, image]].concat();
        let _ = fs::remove_file(folder.file(image));
        fs::write(folder.file(image), self.bytes).unwrap();
        assert_eq!(bounded(folder, &run(&["info"])).code, 0, "{image} is sound");
        for Bad { says, edits, is_summed, met } in damages {
            let mut bytes = self.bytes.to_vec();
            for (at, new) in edits {
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
            if *is_summed {
                dchain_lab::fuzz::put_sums_right(self.format, &mut bytes);
            }
            fs::write(folder.file(image), &bytes).unwrap();
            drop(bytes);
            if *met == Met::Opening {
                for tool in [&["info"], &["map"]] {
                    refused(folder, &run(tool), image, says);
                }
            }
            refused(
                folder,
                &[&run(&["convert", "-q", "-O", "raw"])[..], &["never.raw"]].concat(),
                image,
                says,
            );
            self.is_judged(folder, says);
            let before = files(&folder.path());
            let said = bounded(folder, &[&run(&["resize", "-q"])[..], &["+1M"]].concat());
            let is_refused = said.code != 0 && files(&folder.path()) == before;
            assert!(*met == Met::Reading || is_refused, "{says}: resized: {}", said.err);
        }
    }

    /// `check` finds something, or refuses in the same words; and writes nothing.
    fn is_judged(&self, folder: &Scratch, says: &str) {
        let before = files(&folder.path());
        let said = bounded(folder, &["check", "-f", self.format.name(), self.name]);
        // 1: there are places that could not be looked at.
        let is_judged =
            if said.err.is_empty() { matches!(said.code, 1 | 2) } else { said.err.contains(says) };
        assert!(said.code != 0 && is_judged, "{says}: check says {} {}", said.code, said.err);
        assert!(files(&folder.path()) == before, "{says}: check wrote something");
    }
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
fn bad_input_a_each_field_of_a_qcow2_header_is_refused_by_name_and_nothing_is_written() {
    let folder = Scratch::in_memory();
    folder.qemu_img("create -q -f qcow2 vm 64M");
    folder.qemu_io("qcow2", "vm", &["write -q -P 1 0 200k"]);
    let sound = fs::read(folder.file("vm")).unwrap();
    assert_eq!(sound[40..48], 0x30000_u64.to_be_bytes());
    let damages: Vec<Bad> = FIELDS
        .iter()
        .map(|(says, at, width, value)| bad(says, &[(*at, &value.to_be_bytes()[8 - width..])]))
        .collect();
    Sound { format: Format::Qcow2, name: "vm", bytes: &sound }.each_is_refused(&folder, &damages);
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
pub(crate) fn repeat(file: &fs::File, at: u64, bytes: &[u8], times: u64) {
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
            assert_ne!(bounded(&folder, &[tool, "claims"]).code, 0, "{tool}: {claim} bytes");
        }
    }
    // Every entry leads to the one L2 table; to nothing; past the file's end.
    for (n, word) in [5 << 21 | 1 << 63, 0, 40 << 21 | 1 << 63].into_iter().enumerate() {
        let name = format!("vast{n}");
        bomb(&folder, &name, word);
        bounded(&folder, &["info", &name]);
        assert_ne!(
            bounded(&folder, &["check", &name]).code,
            0,
            "{name}: what is not counted is leaked at least"
        );
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
            assert_ne!(bounded(&folder, &[tool, "image"]).code, 0, "{tool}: {what}");
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
    assert_ne!(bounded(&folder, &["check", "small"]).code, 0);
    let mut block = [0; 8];
    file.read_exact_at(&mut block, 512).unwrap();
    repeat(&file, 20 << 20, &block, (8 << 20) / 8);
    put(&folder, "small", &[(60, 4, 0), (48, 8, 20 << 20), (56, 4, (8 << 20) / 512)]);
    assert_ne!(bounded(&folder, &["check", "small"]).code, 0);
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
        assert_ne!(bounded(&folder, &["id", "small"]).code, 0);
    }
}
