//! The data of qcow2 images, back and forth with qemu: what it writes we read, what we write it finds clean
//! and equal, over every shape that both know.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{Budget, GuestOffset, GuestRange, Result, seed::Seeded, units::index},
    format::{self, Below, Format, Image, Parts},
    io::{Access, File, Host, Kept, real::RealHost},
};
use std::{path::PathBuf, sync::Arc};

/// Opens data files in one folder.
struct Folder(PathBuf, Access);

impl Parts for Folder {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        RealHost::new().open(&self.0.join(std::str::from_utf8(name).unwrap()), self.1)
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

/// What lies below an image.
struct Bytes(Vec<u8>);

impl Below for Bytes {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let from = self.0.get(index(at.bytes())..).unwrap_or_default();
        buf.fill(0);
        buf.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        let mut bytes = self.0.iter().skip(index(range.start.bytes())).take(index(range.bytes));
        Ok(bytes.all(|byte| *byte == 0))
    }
}

/// One image under test, and what it lies over.
struct Cell {
    folder: Scratch,
    below: Bytes,
    size: u64,
    what: String,
}

impl Cell {
    /// An image that qemu made, over a raw parent of `parent` bytes if that is not 0.
    fn new(options: &str, size: u64, parent: u64) -> Self {
        let folder = Scratch::in_memory();
        let mut below = vec![0; index(parent)];
        Seeded::new(7).fill(&mut below);
        std::fs::write(folder.file("parent"), &below).unwrap();
        let over = if parent == 0 { "" } else { "-b parent -F raw" };
        let options = if options.is_empty() { String::new() } else { format!("-o {options}") };
        folder.qemu_img(&format!("create -q -f qcow2 {over} {options} image {size}"));
        let what = format!("{options} of {size} over {parent}");
        Self { folder, below: Bytes(below), size, what }
    }

    fn open(&self, access: Access) -> Arc<dyn Image> {
        let file = RealHost::new().open(&self.folder.file("image"), access).unwrap();
        let parts = Folder(self.folder.path(), access);
        format::open(Format::Qcow2, file, access.writes(), &parts).unwrap()
    }

    /// Our view of the whole disk.
    fn ours(&self) -> Vec<u8> {
        let mut disk = vec![9; index(self.size)];
        self.open(Access::Read).read(GuestOffset::new(0), &mut disk, &self.below).unwrap();
        disk
    }

    fn check(&self, when: &str) {
        let check = self.folder.try_run("qemu-img", ["check", "-f", "qcow2", "image"]);
        let said =
            String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success() && said.contains("No errors"), "{} {when}: {said}", self.what);
    }

    /// What we wrote reads as `disk`, here and with qemu, which finds nothing wrong.
    fn compare(&self, disk: &[u8], when: &str) {
        self.check(when);
        let what = format!("{} {when}", self.what);
        assert_same(&self.ours(), disk, &format!("we read {what}"));
        assert_same(&self.folder.flat("qcow2", "image"), disk, &format!("qemu reads {what}"));
    }

    /// What qemu wrote, which we read as well.
    fn qemus(&self, when: &str) -> Vec<u8> {
        let disk = self.folder.flat("qcow2", "image");
        assert_same(&self.ours(), &disk, &format!("we read {} {when}", self.what));
        disk
    }

    /// Lets qemu write all over the image, two compressed clusters first (it cannot store them over others).
    fn qemu_writes(&self, seed: u64, cluster: u64, may_pack: bool) {
        let mut seed = Seeded::new(seed);
        let pack = |nth| format!("write -c -P {nth} {} {cluster}", nth * cluster);
        let mut commands = if may_pack { vec![pack(2), pack(5)] } else { vec![] };
        for nth in 0..12 {
            let start = seed.below(self.size / 512);
            let sectors = (1 + seed.below(cluster / 256)).min(self.size / 512 - start);
            let (at, bytes, pattern) = (start * 512, sectors * 512, 1 + seed.below(200));
            let whole = (at / cluster * cluster).min((self.size - cluster) / cluster * cluster);
            commands.push(match nth % 6 {
                0..=2 => format!("write -P {pattern} {at} {bytes}"),
                3 => format!("write -z {at} {bytes}"),
                4 => format!("write -z -u {whole} {cluster}"),
                _ => format!("discard {whole} {cluster}"),
            });
        }
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        self.folder.qemu_io("qcow2", "image", &commands);
    }

    /// Writes all over the image, and over `disk`, which is what it should be.
    fn we_write(&self, seed: u64, disk: &mut [u8]) {
        let image = self.open(Access::Write);
        let cluster = image.details().unwrap().cluster_bytes.unwrap();
        let mut seed = Seeded::new(seed);
        for nth in 0..24 {
            let start = seed.below(self.size / 512);
            let sectors = (1 + seed.below(cluster / 128)).min(self.size / 512 - start);
            let mut range = GuestOffset::new(start * 512).range(sectors * 512);
            let mut bytes = vec![0; index(range.bytes)];
            match nth % 6 {
                0..3 => {
                    seed.fill(&mut bytes);
                    image.write(range.start, &bytes, &self.below).unwrap();
                }
                3 => image.zero(range, Kept::Nothing, &self.below).unwrap(),
                4 => image.zero(range, Kept::Space, &self.below).unwrap(),
                _ => {
                    let at = range.start.floor(cluster);
                    range = at.range(cluster.min(self.size - at.bytes()));
                    bytes = vec![0x5a; index(range.bytes)];
                    seed.fill(&mut bytes[..index(range.bytes) / 5]);
                    match image.pack(&bytes) {
                        Some(packed) => image.write_packed(range.start, &packed).unwrap(),
                        None => image.write(range.start, &bytes, &self.below).unwrap(),
                    }
                }
            }
            disk[index(range.start.bytes())..index(range.end().bytes())].copy_from_slice(&bytes);
        }
        image.flush().unwrap();
    }
}

/// Every option that changes how data is stored, alone and with others.
const SHAPES: &[(&str, u64)] = &[
    ("", 65536),
    ("compat=0.10", 65536),
    ("compat=0.10,cluster_size=512", 512),
    ("cluster_size=512", 512),
    ("cluster_size=512,refcount_bits=64", 512),
    ("cluster_size=1k,refcount_bits=8", 1024),
    ("cluster_size=2k,compression_type=zstd", 2048),
    ("cluster_size=4k,refcount_bits=1", 4096),
    ("cluster_size=4k,refcount_bits=2", 4096),
    ("cluster_size=8k,refcount_bits=4", 8192),
    ("cluster_size=16k,extended_l2=on", 16384),
    ("cluster_size=64k,extended_l2=on,compression_type=zstd", 65536),
    ("cluster_size=128k,refcount_bits=32", 131_072),
    ("cluster_size=512k,compression_type=zstd,lazy_refcounts=on", 524_288),
    ("cluster_size=2M", 2 << 20),
    ("cluster_size=2M,extended_l2=on,refcount_bits=64", 2 << 20),
    ("lazy_refcounts=on,compression_type=zstd", 65536),
    ("preallocation=metadata", 65536),
    ("preallocation=falloc,cluster_size=4k", 4096),
    ("data_file=data", 65536),
    ("data_file=data,cluster_size=4k", 4096),
    ("data_file=data,extended_l2=on,cluster_size=32k", 32768),
    ("data_file=data,data_file_raw=on,cluster_size=4k", 4096),
];

#[test]
fn images_go_back_and_forth_with_qemu() {
    let mut cells = 0;
    for (nth, (options, cluster)) in (0_u64..).zip(SHAPES) {
        let must_be_alone = options.contains("raw") || options.contains("preallocation");
        let parents = if must_be_alone || *cluster > 1 << 20 { &[0][..] } else { &[0, 5] };
        for parent in parents {
            let clusters = if *cluster > 1 << 20 { 6 } else { 9 };
            let size = clusters * cluster + if *cluster > 512 { cluster / 2 } else { 0 };
            let cell = Cell::new(options, size, parent * cluster + 512 * parent);
            let may_pack = !options.contains("data_file") && !options.contains("preallocation");
            cell.qemu_writes(nth, *cluster, may_pack);
            let mut disk = cell.qemus("as qemu wrote it");
            cell.we_write(nth + 100, &mut disk);
            cell.compare(&disk, "after we wrote");
            cell.qemu_writes(nth + 200, *cluster, false);
            disk = cell.qemus("after qemu wrote again");
            cell.check("after qemu wrote again");
            if options.contains("raw") {
                // qemu makes the file in whole clusters.
                let raw = std::fs::read(cell.folder.file("data")).unwrap();
                assert_same(&raw[..disk.len()], &disk, &cell.what);
                assert!(raw[disk.len()..].iter().all(|byte| *byte == 0));
            }
            cells += 1;
        }
    }
    println!("{cells} cells");
    assert_eq!(cells, 41);
}

#[test]
fn internal_snapshots_keep_what_they_saw() {
    for (nth, options) in (0_u64..).zip([
        "cluster_size=4k",
        "cluster_size=4k,compat=0.10",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=512,refcount_bits=4",
        "compression_type=zstd",
    ]) {
        let cell = Cell::new(options, 1 << 20, 300_032);
        let mut disk = cell.ours();
        cell.we_write(nth, &mut disk);
        let mut seen = Vec::new();
        for snapshot in ["one", "two"] {
            cell.folder.qemu_img(&format!("snapshot -c {snapshot} image"));
            seen.push((snapshot, disk.clone()));
            cell.we_write(nth + 10, &mut disk);
        }
        cell.compare(&disk, "after two snapshots");
        for (snapshot, disk) in seen {
            cell.folder.qemu_img(&format!("convert -f qcow2 -l {snapshot} -O raw image then"));
            assert_same(&std::fs::read(cell.folder.file("then")).unwrap(), &disk, &cell.what);
        }
        cell.folder.qemu_img("snapshot -d one image");
        cell.we_write(nth + 20, &mut disk);
        cell.compare(&disk, "after a snapshot was deleted");
    }
}

#[test]
fn bitmaps_that_miss_our_writes_say_so() {
    let cell = Cell::new("", 1 << 20, 0);
    cell.folder.qemu_img("bitmap --add image records");
    cell.folder.qemu_img("bitmap --add --disable image rests");
    let mut disk = cell.ours();
    let in_use = || -> Vec<(String, bool)> {
        let bitmaps = cell.open(Access::Read).details().unwrap().bitmaps;
        bitmaps.into_iter().map(|b| (b.name, b.is_in_use)).collect()
    };
    let is = |records, rests| vec![("records".to_owned(), records), ("rests".to_owned(), rests)];
    drop(cell.open(Access::Write));
    assert_eq!(in_use(), is(false, false));
    cell.we_write(1, &mut disk);
    assert_eq!(in_use(), is(true, false));
    cell.compare(&disk, "with bitmaps");
    cell.open(Access::Write).resize(3 << 20, &cell.below).unwrap();
    assert_eq!(in_use(), is(true, true));
    cell.check("with bitmaps, longer");
}

#[test]
fn images_change_their_size_as_qemu_sees_it() {
    for options in [
        "cluster_size=512",
        "cluster_size=4k,compat=0.10",
        "cluster_size=16k,extended_l2=on",
        "",
        "data_file=data",
    ] {
        for parent in [0, 700_000_u64.next_multiple_of(512)] {
            let mut cell = Cell::new(options, 400_384, parent);
            let mut disk = cell.ours();
            cell.we_write(3, &mut disk);
            for size in [1_000_448, 100_352, 2_000_384] {
                cell.open(Access::Write).resize(size, &cell.below).unwrap();
                cell.size = size;
                disk.resize(index(size), 0);
                cell.compare(&disk, "after a change of size");
                cell.we_write(size, &mut disk);
            }
            cell.compare(&disk, "written after changes of size");
        }
    }
}
