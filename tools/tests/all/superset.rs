//! JSON answers are supersets of qemu-img's: every key that it prints is in ours, with the same value.

use super::dchain::{dchain, done, qemu};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::{TempDir, tempdir};

/// A copy of the golden images, where the tools may lock and open them.
fn golden() -> (TempDir, Vec<PathBuf>) {
    let folder = tempdir().unwrap();
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut images = Vec::new();
    for format in ["raw", "qcow2"] {
        fs::create_dir(folder.path().join(format)).unwrap();
        for entry in fs::read_dir(testdata.join(format)).unwrap() {
            let name = PathBuf::from(format).join(entry.unwrap().file_name());
            fs::copy(testdata.join(&name), folder.path().join(&name)).unwrap();
            if name.extension().is_some_and(|e| e == format) {
                images.push(name);
            }
        }
    }
    images.sort();
    assert!(images.len() > 15);
    (folder, images)
}

/// Checks that all of `theirs` is in `ours`.
fn contains(ours: &Value, theirs: &Value, place: &str) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in theirs {
                let own = ours.get(key).unwrap_or_else(|| panic!("{place}: no key {key} in {ours:?}"));
                contains(own, value, &format!("{place}.{key}"));
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{place}: {ours:?} {theirs:?}");
            for (n, (own, value)) in ours.iter().zip(theirs).enumerate() {
                contains(own, value, &format!("{place}[{n}]"));
            }
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

/// The arguments for an image: qemu finds an external data file by its name from the working folder.
fn both(folder: &Path, image: &Path, command: &[&str]) -> (Value, Value) {
    let format = image.parent().unwrap().to_str().unwrap();
    let name = image.file_name().unwrap().to_str().unwrap();
    let arguments = [command, &["--output=json", "-f", format, name]].concat();
    let theirs = qemu(&folder.join(format), "qemu-img", &arguments);
    let allow = ["--allow-dir", ".."];
    let ours = done(&folder.join(format), &[&arguments[..], &allow].concat()).json();
    (ours, serde_json::from_str(&theirs).unwrap())
}

#[test]
fn info_says_all_that_qemu_img_says() {
    let (folder, images) = golden();
    for image in images {
        let (ours, theirs) = both(folder.path(), &image, &["info"]);
        contains(&ours, &theirs, &image.display().to_string());
        let (ours, theirs) = both(folder.path(), &image, &["info", "--backing-chain"]);
        contains(&ours, &theirs, &image.display().to_string());
    }
}

/// qemu-img looks for holes below some allocated clusters, and joins entries less or more for that: whether data
/// is known to be zero is left out.
fn without_holes(map: &Value) -> Value {
    let mut joined: Vec<Value> = Vec::new();
    for entry in map.as_array().unwrap() {
        let mut entry = entry.clone();
        if entry["data"] == true {
            entry["zero"] = false.into();
        }
        if entry["present"] == false {
            // Room inside a half-filled cluster: an offset where nothing is.
            entry.as_object_mut().unwrap().remove("offset");
        }
        let same = |a: &Value, b: &Value| {
            let keys = ["depth", "present", "zero", "data", "compressed"];
            let follows = match (a["offset"].as_u64(), b["offset"].as_u64()) {
                (Some(at), Some(next)) => at + a["length"].as_u64().unwrap() == next,
                (None, None) => true,
                _ => false,
            };
            follows && keys.iter().all(|key| a[key] == b[key])
        };
        match joined.last_mut() {
            Some(last) if same(last, &entry) => {
                last["length"] =
                    (last["length"].as_u64().unwrap() + entry["length"].as_u64().unwrap()).into();
            }
            _ => joined.push(entry),
        }
    }
    joined.into()
}

#[test]
fn map_says_all_that_qemu_img_says() {
    let (folder, images) = golden();
    // Where a raw file ends within a sector, qemu-img shows the rest of the sector by itself; we do not.
    for image in images.into_iter().filter(|image| !image.ends_with("odd.raw")) {
        let (ours, theirs) = both(folder.path(), &image, &["map"]);
        contains(&without_holes(&ours), &without_holes(&theirs), &image.display().to_string());
    }
}

#[test]
fn measure_says_what_qemu_img_says() {
    let (folder, images) = golden();
    let options = [
        "cluster_size=64k",
        "cluster_size=512,refcount_bits=64",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10",
    ];
    for image in &images {
        for option in options {
            let (ours, theirs) = both(folder.path(), image, &["measure", "-O", "qcow2", "-o", option]);
            contains(&ours, &theirs, &format!("{} {option}", image.display()));
        }
        let (ours, theirs) = both(folder.path(), image, &["measure", "-O", "raw"]);
        contains(&ours, &theirs, &image.display().to_string());
    }
    for size in ["0", "1", "100M", "12345678901", "1T"] {
        for option in options {
            let arguments = ["measure", "--output=json", "-O", "qcow2", "-o", option, "--size", size];
            if option.contains("512") && size.ends_with('T') {
                assert_eq!(dchain(folder.path(), &arguments).code, Some(64), "too large for such clusters");
                continue;
            }
            let theirs: Value = serde_json::from_str(&qemu(folder.path(), "qemu-img", &arguments)).unwrap();
            contains(&done(folder.path(), &arguments).json(), &theirs, &format!("{size} {option}"));
        }
    }
}

#[test]
fn check_says_all_that_qemu_img_says() {
    let (folder, images) = golden();
    for image in images.into_iter().filter(|image| image.starts_with("qcow2")) {
        let (ours, theirs) = both(folder.path(), &image, &["check"]);
        contains(&ours, &theirs, &image.display().to_string());
    }
}
