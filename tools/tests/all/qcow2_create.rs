//! New qcow2 images: whatever the options, qemu finds them clean and reads back what was asked for.

use crate::foreign::Scratch;
use deltachain::{
    base::{Budget, Result},
    format::{self, Creation, Format, ParentName, Parts},
    io::{Access, File, Host, real::RealHost},
};
use serde_json::Value;
use std::{path::PathBuf, sync::Arc};

/// Makes and opens data files in one folder.
struct Folder(PathBuf);

impl Parts for Folder {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let path = self.0.join(std::str::from_utf8(name).unwrap());
        if path.exists() { RealHost::new().open(&path, Access::Write) } else { RealHost::new().create(&path) }
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

/// Makes `image` and returns what qemu says of it, after it found it clean.
fn made(folder: &Scratch, creation: &Creation) -> Value {
    let path = folder.file("image");
    let file = RealHost::new().create(&path).unwrap();
    let image = format::create(Format::Qcow2, file, creation, &Folder(folder.path()));
    drop(image.unwrap_or_else(|e| panic!("{creation:?}: {e}")));
    let check = folder.try_run("qemu-img", ["check", "-f", "qcow2", "image"]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success() && said.contains("No errors"), "{creation:?}: {said}");
    let info = serde_json::from_str(&folder.qemu_img("info -f qcow2 --output=json image")).unwrap();
    std::fs::remove_file(&path).unwrap();
    info
}

fn creation(size: u64, options: &[(&str, &str)]) -> Creation {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Creation { size, parent: None, options }
}

#[test]
fn qemu_finds_every_new_image_clean_and_as_asked() {
    let folder = Scratch::new();
    let sizes = [("512", 512), ("4k", 4096), ("64K", 65536), ("2M", 2 << 20)];
    let mut cells = 0;
    for (cluster, bytes) in sizes {
        for bits in ["1", "2", "4", "8", "16", "32", "64"] {
            for preallocation in ["off", "metadata"] {
                let disk = 5_000_000_u64.next_multiple_of(512);
                let options =
                    [("cluster_size", cluster), ("refcount_bits", bits), ("preallocation", preallocation)];
                let info = made(&folder, &creation(disk, &options));
                assert_eq!(info["virtual-size"], disk);
                assert_eq!(info["cluster-size"], bytes);
                let data = &info["format-specific"]["data"];
                assert_eq!(data["refcount-bits"].to_string(), bits);
                assert_eq!(data["compat"], "1.1");
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 56);
}

#[test]
fn qemu_agrees_with_every_feature_of_a_new_image() {
    let folder = Scratch::new();
    let cases = [
        (&[("compat", "0.10")][..], "compat", Value::from("0.10")),
        (&[("compat", "v2"), ("cluster_size", "512")], "compat", Value::from("0.10")),
        (&[("extended_l2", "on"), ("cluster_size", "16K")], "extended-l2", true.into()),
        (&[("extended_l2", "on"), ("preallocation", "metadata")], "extended-l2", true.into()),
        (&[("compression_type", "zstd")], "compression-type", "zstd".into()),
        (&[("lazy_refcounts", "on")], "lazy-refcounts", true.into()),
    ];
    for (options, key, value) in cases {
        for disk in [0, 512, 1 << 20, 1 << 40] {
            let is_large = disk > 1 << 30;
            if is_large && options.iter().any(|(k, _)| *k == "preallocation" || *k == "cluster_size") {
                continue;
            }
            let info = made(&folder, &creation(disk, options));
            assert_eq!(
                (&info["format-specific"]["data"][key], &info["virtual-size"]),
                (&value, &disk.into())
            );
        }
    }
}

#[test]
fn a_data_file_is_made_with_the_image() {
    let folder = Scratch::new();
    for (raw, preallocation) in [("off", "off"), ("off", "metadata"), ("on", "off"), ("on", "full")] {
        let options = [("data_file", "data"), ("data_file_raw", raw), ("preallocation", preallocation)];
        let info = made(&folder, &creation(3 << 20, &options));
        let data = &info["format-specific"]["data"];
        assert_eq!((&data["data-file"], &data["data-file-raw"]), (&"data".into(), &(raw == "on").into()));
        assert_eq!(std::fs::metadata(folder.file("data")).unwrap().len(), 3 << 20);
    }
}

#[test]
fn preallocated_space_is_there() {
    let folder = Scratch::new();
    for (how, is_there) in [("metadata", false), ("falloc", true), ("full", true)] {
        let info = made(&folder, &creation(8 << 20, &[("preallocation", how)]));
        assert_eq!(info["actual-size"].as_u64().unwrap() >= 8 << 20, is_there, "{how}");
    }
}

#[test]
fn the_parent_is_named_in_any_cluster_size() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f raw base 1M");
    for options in [&[("cluster_size", "512")][..], &[("cluster_size", "1K")], &[], &[("compat", "v2")]] {
        let parent = ParentName::new(b"base".to_vec(), Some("raw".to_owned()));
        let info = made(&folder, &Creation { parent: Some(parent), ..creation(1 << 20, options) });
        assert_eq!(
            (&info["backing-filename"], &info["backing-filename-format"]),
            (&"base".into(), &"raw".into())
        );
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let folder = Scratch::new();
    let refused = [
        (&[("no_such", "1")][..], "unknown option 'no_such'"),
        (&[("cluster_size", "3K")], "not a value"),
        (&[("cluster_size", "4M")], "not a value"),
        (&[("refcount_bits", "128")], "not a value"),
        (&[("compat", "v2"), ("refcount_bits", "8")], "needs compat=1.1"),
        (&[("compat", "v2"), ("compression_type", "zstd")], "needs compat=1.1"),
        (&[("extended_l2", "on"), ("cluster_size", "8K")], "16K or more"),
        (&[("data_file_raw", "on")], "needs data_file"),
    ];
    for (options, says) in refused {
        let file = RealHost::new().create(&folder.file("image")).unwrap();
        let error = format::create(Format::Qcow2, file, &creation(1 << 20, options), &Folder(folder.path()))
            .unwrap_err();
        assert!(error.to_string().contains(says), "{options:?}: {error}");
        assert_eq!(std::fs::metadata(folder.file("image")).unwrap().len(), 0, "nothing was written");
        std::fs::remove_file(folder.file("image")).unwrap();
    }
}

#[test]
fn details_are_what_qemu_shows() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 image 10M");
    folder.qemu_img("snapshot -c before image");
    folder.qemu_img("resize -q image 20M");
    folder.qemu_img("snapshot -c after image");
    folder.qemu_img("bitmap --add -g 64k image kept");
    folder.qemu_img("bitmap --add --disable image off");
    let qemu: Value = serde_json::from_str(&folder.qemu_img("info -f qcow2 --output=json image")).unwrap();
    let file = RealHost::new().open(&folder.file("image"), Access::Read).unwrap();
    let details =
        format::open(Format::Qcow2, file, false, &Folder(folder.path())).unwrap().details().unwrap();
    let names: Vec<_> = details.snapshots.iter().map(|s| (s.id.as_str(), s.name.as_str(), s.size)).collect();
    assert_eq!(names, [("1", "before", 10 << 20), ("2", "after", 20 << 20)]);
    let seconds = qemu["snapshots"][0]["date-sec"].as_u64().unwrap();
    assert_eq!(details.snapshots[0].taken_ns / 1_000_000_000, seconds);
    let names: Vec<_> =
        details.bitmaps.iter().map(|b| (b.name.as_str(), b.granularity_bytes, b.is_auto)).collect();
    assert_eq!(names, [("kept", 65536, true), ("off", 65536, false)]);
    let ours: serde_json::Map<_, _> = details.specific.into_iter().collect();
    assert_eq!(Value::from(ours), qemu["format-specific"]["data"]);
}
