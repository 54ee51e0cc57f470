//! The data that rows work on, made on first use by seeded recipes and kept.
//!
//! A file has its name only once it is whole, so what is there can be used. All images stand in one folder
//! and name their parents without one.
//!
//! | files | what |
//! |---|---|
//! | base.raw, base.qcow2 | 4 GiB disk: 30 % random, 35 % words (zstd -3: 3x), 35 % holes, extents of 1 to 64 clusters |
//! | c.1 ... c.64 | deltas on it, each 64 MiB of writes, 80 % 64K and 20 % 4K, at multiples of 4K |
//! | d.1 | one delta on it, 1 GiB of 64K writes (910 MiB once overlaps are counted) |
//! | e.1 | one delta on it, 910 MiB in one run |
//! | h.1 ... h.300 | deltas on it, 16 clusters each |
//! | t.base.qcow2, t.1 ... t.8 | empty 1 TiB disk and deltas, 4,096 scattered clusters each: every L2 table exists |
//! | z.qcow2 | empty 64 TiB disk |

use deltachain::base::seed::Seeded;
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const CLUSTER: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Parses `1` or `1/N`.
pub(crate) fn parse_scale(text: &str) -> Result<u64, String> {
    let divisor = if text == "1" { "1" } else { text.strip_prefix("1/").unwrap_or_default() };
    match divisor.parse() {
        Ok(n) if (1..=256).contains(&n) => Ok(n),
        _ => Err("a scale is 1 or 1/N, N up to 256".to_owned()),
    }
}

/// A set of files that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Piece {
    /// `base.raw` and `base.qcow2`.
    Base,
    /// `c.1` to `c.64`.
    Deltas,
    /// `d.1`.
    Scattered,
    /// `e.1`.
    Contiguous,
    /// `h.1` to `h.300`.
    Deep,
    /// `t.base.qcow2` and `t.1` to `t.8`.
    Wide,
    /// `z.qcow2`.
    Empty,
}

/// How the writes of a delta lie.
#[derive(Clone, Copy)]
enum Writes {
    /// This many bytes, 80 % of the writes 64K, the others 4K, at any multiple of 4K.
    Mixed(u64),
    /// This many bytes in whole clusters anywhere.
    Clusters(u64),
    /// One run of so many bytes.
    Run(u64),
}

/// A chain to be made.
struct Deltas {
    prefix: &'static str,
    depth: u64,
    base: &'static str,
    size: u64,
    writes: Writes,
}

/// The folder with the data.
pub(crate) struct Data {
    pub(crate) folder: PathBuf,
    scale: u64,
    made: BTreeSet<Piece>,
}

impl Data {
    /// Uses or makes the folder.
    pub(crate) fn new(folder: &Path, scale: u64) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let folder = folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?;
        let data = Self { folder, scale, made: BTreeSet::new() };
        match fs::metadata(data.path("base.raw")) {
            Ok(found) if found.len() != data.size() => {
                Err(format!("{} holds data of another scale", data.folder.display()))
            }
            _ => Ok(data),
        }
    }

    /// Returns the size of the base disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        4 * GIB / self.scale
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes what is missing of `pieces`.
    pub(crate) fn make(&mut self, pieces: &[Piece]) -> Result<(), String> {
        for piece in pieces {
            if self.made.insert(*piece) {
                eprintln!("data: {piece:?}");
                self.make_piece(*piece)?;
            }
        }
        Ok(())
    }

    fn make_piece(&mut self, piece: Piece) -> Result<(), String> {
        if !matches!(piece, Piece::Base | Piece::Wide | Piece::Empty) {
            self.make(&[Piece::Base])?;
        }
        match piece {
            Piece::Base => self.make_base(),
            Piece::Deltas => self.make_chain(&self.deltas("c", 64, Writes::Mixed(64 * MIB / self.scale))),
            Piece::Scattered => self.make_chain(&self.deltas("d", 1, Writes::Clusters(GIB / self.scale))),
            Piece::Contiguous => self.make_chain(&self.deltas("e", 1, Writes::Run(910 * MIB / self.scale))),
            Piece::Deep => self.make_chain(&self.deltas("h", 300, Writes::Clusters(16 * CLUSTER))),
            Piece::Wide => {
                self.make_empty("t.base.qcow2", 1 << 40)?;
                let writes = Writes::Clusters(4096 * CLUSTER / self.scale);
                self.make_chain(&Deltas {
                    prefix: "t",
                    depth: 8,
                    base: "t.base.qcow2",
                    size: 1 << 40,
                    writes,
                })
            }
            Piece::Empty => self.make_empty("z.qcow2", 64 << 40),
        }
    }

    fn make_empty(&self, name: &str, size: u64) -> Result<(), String> {
        self.make_file(name, |part| {
            tool("qemu-img", &["create", "-q", "-f", "qcow2", part, &size.to_string()])
        })
    }

    fn make_base(&self) -> Result<(), String> {
        self.make_file("base.raw", |part| {
            write_disk(Path::new(part), self.size()).map_err(|e| e.to_string())
        })?;
        let raw = self.path("base.raw").display().to_string();
        self.make_file("base.qcow2", |part| {
            tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, part])
        })
    }

    fn deltas(&self, prefix: &'static str, depth: u64, writes: Writes) -> Deltas {
        Deltas { prefix, depth, base: "base.qcow2", size: self.size(), writes }
    }

    fn make_chain(&self, deltas: &Deltas) -> Result<(), String> {
        let Deltas { prefix, depth, base, size, writes } = *deltas;
        let mut parent = base.to_owned();
        for n in 1..=depth {
            let name = format!("{prefix}.{n}");
            let letter = prefix.bytes().next().unwrap_or_default();
            let seed = Seeded::new(u64::from(letter) << 32 | n);
            self.make_file(&name, |part| make_delta(part, &parent, size, &script(seed, size, writes)))?;
            parent = name;
        }
        Ok(())
    }

    /// Lets `make` write a file, which gets its name when it is whole.
    fn make_file(&self, name: &str, make: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
        let (path, part) = (self.path(name), self.path(&format!("{name}.part")));
        if path.exists() {
            return Ok(());
        }
        let failed = |e: std::io::Error| format!("{}: {e}", part.display());
        if part.exists() {
            fs::remove_file(&part).map_err(failed)?;
        }
        make(&part.display().to_string())?;
        File::open(&part).and_then(|f| f.sync_all()).map_err(failed)?;
        fs::rename(&part, &path).map_err(failed)
    }
}

/// Makes one delta: written without a parent where only whole clusters are, so that qemu need not open the
/// chain for each layer; linked afterwards.
fn make_delta(part: &str, parent: &str, size: u64, delta: &Delta) -> Result<(), String> {
    let link = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", parent, part];
    tool("qemu-img", &["create", "-q", "-f", "qcow2", part, &size.to_string()])?;
    if delta.has_parts_of_clusters {
        tool("qemu-img", &link)?;
    }
    write_with_qemu(part, &delta.script)?;
    if delta.has_parts_of_clusters { Ok(()) } else { tool("qemu-img", &link) }
}

/// The writes of a delta as commands of qemu-io.
struct Delta {
    script: String,
    has_parts_of_clusters: bool,
}

fn script(mut seed: Seeded, size: u64, writes: Writes) -> Delta {
    let mut delta =
        Delta { script: String::new(), has_parts_of_clusters: matches!(writes, Writes::Mixed(_)) };
    let (bytes, grain) = match writes {
        Writes::Mixed(bytes) => (bytes, 4096),
        Writes::Clusters(bytes) => (bytes, CLUSTER),
        Writes::Run(bytes) => (bytes, MIB),
    };
    let mut done = 0;
    while done < bytes {
        let length = match writes {
            Writes::Mixed(_) if seed.chance(1, 5) => 4096,
            Writes::Mixed(_) | Writes::Clusters(_) => CLUSTER,
            Writes::Run(_) => MIB,
        };
        let at = match writes {
            Writes::Run(_) => size / 4 + done,
            _ => seed.below((size - length) / grain + 1) * grain,
        };
        let byte = 1 + seed.below(255);
        // Writing to a string does not fail.
        let _ = writeln!(delta.script, "write -q -P {byte} {at} {length}");
        done += length;
    }
    delta
}

fn write_with_qemu(image: &str, script: &str) -> Result<(), String> {
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2", "-t", "writeback", image])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("qemu-io: {e}"))?;
    let mut commands = child.stdin.take().ok_or("qemu-io has no input")?;
    // It prints a prompt for each command: more than a pipe holds.
    let script = script.to_owned();
    let writer = std::thread::spawn(move || commands.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(|e| format!("qemu-io: {e}"))?;
    let is_written = writer.join().is_ok_and(|w| w.is_ok());
    if is_written && output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed") {
        return Ok(());
    }
    Err(format!("qemu-io could not write {image}"))
}

fn tool(name: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(name).args(arguments).output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Writes the base disk.
fn write_disk(path: &Path, size: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut seed = Seeded::new(1);
    let words = words(&mut seed);
    let mut cluster = vec![0; 64 << 10];
    let mut at = 0;
    while at < size {
        let end = size.min(at + (1 + seed.below(64)) * CLUSTER);
        let kind = seed.below(100);
        while at < end {
            match kind {
                0..30 => seed.fill(&mut cluster),
                30..65 => fill_with_words(&mut cluster, &words, &mut seed),
                _ => {
                    at = end;
                    continue;
                }
            }
            file.write_all_at(&cluster, at)?;
            at += CLUSTER;
        }
    }
    Ok(())
}

/// A dictionary of 4,096 words of two to nine letters.
fn words(seed: &mut Seeded) -> Vec<Vec<u8>> {
    let mut word = || {
        let mut letters = vec![0; 2];
        letters.resize(usize::try_from(2 + seed.below(8)).unwrap_or(2), 0);
        seed.fill(&mut letters);
        letters.iter().map(|l| b'a' + l % 26).collect()
    };
    (0..4096).map(|_| word()).collect()
}

fn fill_with_words(cluster: &mut [u8], words: &[Vec<u8>], seed: &mut Seeded) {
    let mut rest = &mut cluster[..];
    while !rest.is_empty() {
        let pick = seed.next();
        // Five picks of 12 bits from each number.
        for turn in 0..5 {
            let index = usize::try_from((pick >> (12 * turn)) & 0xfff).unwrap_or(0);
            for letter in words.get(index).into_iter().flatten().chain(b" ") {
                let Some((first, others)) = std::mem::take(&mut rest).split_first_mut() else { return };
                *first = *letter;
                rest = others;
            }
        }
    }
}
