//! Images that other products made, where they are at hand: `DCHAIN_REAL_IMAGES` names a folder with `INDEX.tsv` and the
//! images, unpacked or in `images.tar.zst`. Each shows the bytes that the index says, parents included, and stays as it is.

use super::{daemon::Daemon, dchain::done, foreign::Scratch};
use deltachain::{
    chain::{Chain, Opening, View},
    disk::Disk,
    format::Format,
    io::{Host, real::RealHost},
    job::{Progress, convert::convert, seal::full_tree},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Larger views are summed up but once, by a test of their own.
const VIEW_BYTES_MAX: u64 = 2 << 30;

/// Making and summing up a larger image in each format takes longer than a test may.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// A view that the index has wrong, as libvhdi reads it: zeros in sector 186, whose bit is clear; the parent has there the
/// 12 bytes that the file system says `WPSettings.dat` has.
const BY_BITMAP: (&str, &str) =
    ("dfvfs/fat-differential.vhd", "f4b61a33ee2f7e8c19f737792a4107e46340026a9a829e4169b751901cc3ef02");

/// A row of the index.
struct Row {
    /// The file, below the folder.
    name: String,
    /// The sum of the file.
    file_sum: String,
    /// Bytes of the disk.
    size: Option<u64>,
    /// The sum of the view.
    sum: Option<String>,
}

/// Finds the images of a format, children included, or says that they are not here.
fn rows(format: &str, scratch: &Scratch) -> Option<(PathBuf, Vec<Row>)> {
    let Some(folder) = std::env::var_os("DCHAIN_REAL_IMAGES").map(PathBuf::from) else {
        println!("skipped: DCHAIN_REAL_IMAGES names no folder with images of other products");
        return None;
    };
    let index = fs::read_to_string(folder.join("INDEX.tsv")).unwrap();
    let rows = index.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    let rows = rows.filter(|row| row[2].strip_suffix("-diff").unwrap_or(row[2]) == format);
    let text =
        |row: &[&str], nth: usize| row.get(nth).filter(|field| !field.is_empty()).map(|&f| f.to_owned());
    let rows: Vec<_> = rows
        .map(|row| Row {
            name: row[0].to_owned(),
            file_sum: row[5].to_owned(),
            size: text(&row, 6).map(|size| size.parse().unwrap()),
            sum: text(&row, 7),
        })
        .collect();
    assert!(!rows.is_empty(), "the index has no {format}");
    let archive = folder.join("images.tar.zst");
    if !archive.exists() {
        return Some((folder, rows));
    }
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    scratch.run("tar", &format!("--zstd -xf {} {}", archive.display(), names.join(" ")));
    Some((scratch.path(), rows))
}

/// Prints the SHA-256 of a file. Holes are not read: gigabytes of zeros would go through the host's cache.
const SUM: &str = "
import hashlib, os, sys
file, sums, zeros = os.open(sys.argv[1], os.O_RDONLY), hashlib.sha256(), memoryview(bytes(1 << 20))
end, at = os.fstat(file).st_size, 0
while at < end:
    try:
        data = os.lseek(file, at, os.SEEK_DATA)
    except OSError:
        data = end
    while at < data:
        piece = zeros[:data - at]
        sums.update(piece)
        at += len(piece)
    hole = os.lseek(file, at, os.SEEK_HOLE) if at < end else end
    while at < hole:
        piece = os.pread(file, min(hole - at, 1 << 20), at)
        sums.update(piece)
        at += len(piece)
print(sums.hexdigest())
";

fn sum(scratch: &Scratch, file: &Path) -> String {
    let output = scratch.try_run("/usr/bin/python3", ["-c", SUM, file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Reads all images of a format by their names alone.
fn show_what_the_index_says(format: &str) {
    let scratch = Scratch::new();
    let Some((folder, rows)) = rows(format, &scratch) else { return };
    for Row { name, file_sum, size, sum: view } in rows {
        // Extents of another row's disk are no disks of their own.
        if format == "vmdk" && size.is_none() {
            continue;
        }
        let image = folder.join(&name);
        let place = image.to_str().unwrap();
        let info = done(&folder, &["info", "--output", "json", place]).json();
        assert_eq!(info["format"], format, "{name}");
        if let Some(size) = size {
            assert_eq!(info["virtual-size"], size, "{name}");
        }
        if let Some(view) = view.filter(|_| size.unwrap_or(0) <= VIEW_BYTES_MAX) {
            let flat = scratch.file("flat");
            done(&folder, &["convert", "-q", "-O", "raw", place, flat.to_str().unwrap()]);
            let view = if name == BY_BITMAP.0 { BY_BITMAP.1.to_owned() } else { view };
            assert_eq!(sum(&scratch, &flat), view, "{name}");
            fs::remove_file(flat).unwrap();
        }
        assert_eq!(sum(&scratch, &image), file_sum, "{name} was written");
    }
}

#[test]
fn raw_ones_show_what_the_index_says() {
    show_what_the_index_says("raw");
}

#[test]
fn qcow2_ones_show_what_the_index_says() {
    show_what_the_index_says("qcow2");
}

#[test]
fn vhds_show_what_the_index_says() {
    show_what_the_index_says("vpc");
}

#[test]
fn vhdx_ones_show_what_the_index_says() {
    show_what_the_index_says("vhdx");
}

#[test]
fn vmdks_show_what_the_index_says() {
    show_what_the_index_says("vmdk");
}

/// The images of a format whose views are not too large, each with the sum of its view.
fn of(format: Format, scratch: &Scratch) -> Vec<(PathBuf, String)> {
    let Some((folder, rows)) = rows(format.name(), scratch) else { return Vec::new() };
    let small = rows.into_iter().filter(|row| row.size.unwrap_or(0) <= VIEW_BYTES_MAX);
    let known = small.filter_map(|row| {
        let sum = if row.name == BY_BITMAP.0 { BY_BITMAP.1.to_owned() } else { row.sum? };
        Some((folder.join(row.name), sum))
    });
    known.collect()
}

/// Serves all images of a format, and reads them as a client.
fn show_the_same_over_nbd(format: Format) {
    let scratch = Scratch::new();
    let images = of(format, &scratch);
    if images.is_empty() {
        return;
    }
    let disks: Vec<String> =
        (0..).zip(&images).map(|(nth, (path, _))| format!("d{nth}={},read-only", path.display())).collect();
    let daemon = Daemon::start(&scratch, &disks.iter().map(String::as_str).collect::<Vec<_>>());
    for (nth, (path, known)) in images.iter().enumerate() {
        scratch.qemu_img(&format!("convert -f raw -O raw {} flat", daemon.uri(&format!("d{nth}"))));
        assert_eq!(sum(&scratch, &scratch.file("flat")), *known, "{}", path.display());
        fs::remove_file(scratch.file("flat")).unwrap();
    }
    assert!(daemon.stop().0.success());
}

#[test]
fn qcow2_and_raw_ones_show_the_same_over_nbd() {
    show_the_same_over_nbd(Format::Qcow2);
    show_the_same_over_nbd(Format::Raw);
}

#[test]
fn vhds_show_the_same_over_nbd() {
    show_the_same_over_nbd(Format::Vpc);
}

#[test]
fn vhdx_ones_show_the_same_over_nbd() {
    show_the_same_over_nbd(Format::Vhdx);
}

#[test]
fn vmdks_show_the_same_over_nbd() {
    show_the_same_over_nbd(Format::Vmdk);
}

/// Disks of many gigabytes, mostly zeros. Each is made flat, with holes, which is held against the index (or, where it has
/// no sum, qemu); the disk as it is served, and its content ID in another format, against that.
fn large_ones_show_the_same_to_everybody(format: Format, other: Format) {
    let scratch = Scratch::new();
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let Some((folder, rows)) = rows(format.name(), &scratch) else { return };
    let large: Vec<_> = rows.iter().filter(|row| row.size.unwrap_or(0) > VIEW_BYTES_MAX).collect();
    assert!(!large.is_empty(), "the index has no large {format}");
    let id = |path: &Path, format: Option<Format>| {
        let chain = Chain::open(&host, path, &Opening::reading().with_format(format)).unwrap();
        full_tree(&chain.view(0), &Progress::default()).unwrap().tree.id()
    };
    for row in large {
        let (image, flat, new) = (folder.join(&row.name), scratch.file("flat"), scratch.file("new"));
        let place = image.to_str().unwrap();
        done(&folder, &["convert", "-q", "-O", "raw", place, flat.to_str().unwrap()]);
        match &row.sum {
            Some(known) => assert_eq!(sum(&scratch, &flat), *known, "{place}"),
            None => drop(scratch.qemu_img(&format!("compare -f {format} -F raw {place} flat"))),
        }
        let daemon = Daemon::start(&scratch, &[&format!("d={place},read-only")]);
        scratch.qemu_img(&format!("compare -f raw -F raw flat {}", daemon.uri("d")));
        assert!(daemon.stop().0.success());
        done(&folder, &["convert", "-q", "-O", other.name(), place, new.to_str().unwrap()]);
        assert_eq!(id(&image, None), id(&new, Some(other)), "{place}");
        for made in [flat, new] {
            fs::remove_file(made).unwrap();
        }
        assert_eq!(sum(&scratch, &image), row.file_sum, "{place} was written");
    }
}

#[test]
fn large_vhdx_ones_show_the_same_to_everybody() {
    large_ones_show_the_same_to_everybody(Format::Vhdx, Format::Qcow2);
}

#[test]
fn large_vmdks_show_the_same_to_everybody() {
    large_ones_show_the_same_to_everybody(Format::Vmdk, Format::Vhdx);
}

#[test]
fn large_vhds_show_the_same_to_everybody() {
    large_ones_show_the_same_to_everybody(Format::Vpc, Format::Vmdk);
}

#[test]
fn one_disk_has_one_content_id_in_every_format() {
    let scratch = Scratch::new();
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let id = |view: &View| full_tree(view, &Progress::default()).unwrap().tree.id();
    let mut by_sum = BTreeMap::new();
    let images: Vec<_> = Format::ALL.into_iter().flat_map(|format| of(format, &scratch)).collect();
    for (nth, (path, sum)) in images.iter().enumerate() {
        let chain = Chain::open(&host, path, &Opening::reading()).unwrap();
        let own = id(&chain.view(0));
        assert_eq!(own, *by_sum.entry(sum).or_insert(own), "{}", path.display());
        let is_small = chain.size() <= SMALL_BYTES_MAX;
        let some = if is_small { &Format::ALL[..] } else { &Format::ALL[nth % Format::ALL.len()..][..1] };
        for format in some {
            let new = scratch.file("new");
            convert(&host, &chain.view(0), &new, (*format, &[], false), &Progress::default()).unwrap();
            let other = Chain::open(&host, &new, &Opening::reading().with_format(Some(*format))).unwrap();
            assert_eq!(id(&other.view(0)), own, "{} as {format}", path.display());
            drop(other);
            fs::remove_file(new).unwrap();
        }
    }
    let mut ids: Vec<_> = by_sum.values().map(deltachain::content::ContentId::hex).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), by_sum.len());
}
