//! Images that other products made, where they are at hand: `DCHAIN_REAL_IMAGES` names a folder with `INDEX.tsv` and the
//! images, unpacked or in `images.tar.zst`. Each shows the bytes that the index says, parents included, and stays as it is.

use super::{dchain::done, foreign::Scratch};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Summing up a larger view takes longer than a test may.
const VIEW_BYTES_MAX: u64 = 2 << 30;

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

fn sum(scratch: &Scratch, file: &Path) -> String {
    let said = scratch.run("sha256sum", file.to_str().unwrap());
    said.split_whitespace().next().unwrap().to_owned()
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
