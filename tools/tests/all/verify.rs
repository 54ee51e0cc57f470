//! `check --data`, `check --lineage` and `id verify` on images that qemu wrote behind our back.

use crate::{
    dchain::{dchain, done},
    foreign::Scratch,
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::FileExt};

fn sealed_base() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 8M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 3M", "write -q -P 2 5M 64k"]);
    done(&folder.path(), &["id", "seal", "base"]);
    folder
}

fn spans(value: &Value) -> Vec<(u64, u64)> {
    let span = |v: &Value| (v["offset"].as_u64().unwrap(), v["length"].as_u64().unwrap());
    value.as_array().unwrap().iter().map(span).collect()
}

#[test]
fn check_data_names_the_leaves_that_a_stranger_wrote() {
    let folder = sealed_base();
    let sound = done(&folder.path(), &["check", "--data", "base"]);
    assert!(sound.out.contains("it is what c1:"), "{}", sound.out);
    folder.qemu_io("qcow2", "base", &["write -q -P 9 130k 1k", "write -q -P 9 7M 512"]);
    let run = dchain(&folder.path(), &["check", "--data", "--output", "json", "base"]);
    assert_eq!(run.code, Some(2), "{}", run.err);
    let data = &run.json()["data"];
    assert_eq!(spans(&data["differing"]), [(128 << 10, 65536), (7 << 20, 65536)]);
    assert_eq!((&data["matches"], &data["unread"]), (&json!(false), &json!([])));
    let told = dchain(&folder.path(), &["check", "--data", "base"]);
    assert!(told.out.contains("differs: 65536 bytes at 0x700000"), "{}", told.out);
    let verified = dchain(&folder.path(), &["id", "verify", "base"]);
    assert_eq!(verified.code, Some(77));
    assert!(verified.out.contains("differs: 65536 bytes at 0x20000"), "{}", verified.out);
}

#[test]
fn check_data_of_an_image_without_a_record_reads_all_and_says_that_nothing_is_recorded() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 image 8M");
    folder.qemu_io("qcow2", "image", &["write -q -P 1 0 3M"]);
    let run = done(&folder.path(), &["check", "--data", "image"]);
    assert!(run.out.contains("data: 3 MiB read; no content ID is recorded"), "{}", run.out);
    folder.qemu_img("convert -f qcow2 -O raw image image.raw");
    let raw = done(&folder.path(), &["check", "--data", "-f", "raw", "image.raw"]);
    assert!(raw.out.starts_with("data: 3 MiB read"), "{}", raw.out);
}

#[test]
fn check_data_names_a_compressed_cluster_that_cannot_be_unpacked() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 image 8M");
    folder.qemu_io("qcow2", "image", &["write -q -c -P 1 1M 64k", "write -q -P 1 2M 64k"]);
    done(&folder.path(), &["id", "seal", "image"]);
    let map: Value = serde_json::from_str(&folder.qemu_img("map --output=json image")).unwrap();
    assert!(map.as_array().unwrap().iter().any(|run| run["compressed"] == json!(true)));
    let bytes = fs::read(folder.file("image")).unwrap();
    let word = |at: u64| {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let l2 = word(word(40)) & 0x00ff_ffff_ffff_fe00;
    let packed = word(l2 + 16 * 8) & 0x003f_ffff_ffff_ffff;
    let file = fs::OpenOptions::new().write(true).open(folder.file("image")).unwrap();
    file.write_all_at(&[0xff; 8], packed).unwrap();
    let run = dchain(&folder.path(), &["check", "--data", "--output", "json", "image"]);
    assert_eq!(run.code, Some(2), "{}{}", run.out, run.err);
    assert_eq!(spans(&run.json()["data"]["unread"]), [(1 << 20, 65536)]);
    assert_eq!(spans(&run.json()["data"]["differing"]), []);
}

#[test]
fn check_lineage_says_what_changed_underneath_and_what_of_it_is_hidden() {
    let folder = sealed_base();
    done(&folder.path(), &["snapshot", "base", "head"]);
    folder.qemu_io("qcow2", "head", &["write -q -P 3 1M 64k"]);
    done(&folder.path(), &["check", "--lineage", "head"]);
    folder.qemu_io("qcow2", "base", &["write -q -P 9 1M 4k", "write -q -P 9 7M 512"]);
    let run = dchain(&folder.path(), &["check", "--lineage", "--output", "json", "head"]);
    assert_eq!(run.code, Some(77), "{}", run.err);
    let refused = &run.json()["lineage"][0];
    assert_eq!(spans(&refused["changed"]), [(1 << 20, 65536), (7 << 20, 65536)]);
    assert_eq!(spans(&refused["hidden"]), [(1 << 20, 65536)]);
    assert!(run.err.contains("is not what it was"), "{}", run.err);
    let data = dchain(&folder.path(), &["check", "--data", "--output", "json", "head"]);
    assert_eq!(data.code, Some(2), "the head shows bytes that nobody promised");
    assert_eq!(spans(&data.json()["data"]["differing"]), [(7 << 20, 65536)]);
}
