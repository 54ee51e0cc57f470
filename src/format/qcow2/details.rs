//! What `info` shows of a qcow2 image, with qemu's keys.

use super::{bitmap, feature, header::Header, snapshot};
use crate::{base::Result, format::Details, io::File};
use serde_json::{Value, json};

/// Reads the image's details: geometry, features, snapshots and bitmaps.
pub(super) fn read(file: &dyn File, header: &Header) -> Result<Details> {
    let bitmaps = bitmap::read(file, header)?;
    let mut specific = Vec::new();
    let mut say = |key: &str, value: Value| specific.push((key.to_owned(), value));
    if header.geometry.version == 2 {
        say("compat", "0.10".into());
        say("compression-type", header.compression.name().into());
        say("refcount-bits", header.geometry.refcount_bits().into());
    } else {
        say("compat", "1.1".into());
        say("compression-type", header.compression.name().into());
        say("lazy-refcounts", header.is_lazy().into());
        if !bitmaps.is_empty() {
            say("bitmaps", bitmaps.iter().map(bitmap_value).collect());
        }
        say("refcount-bits", header.geometry.refcount_bits().into());
        say("corrupt", header.is_corrupt().into());
        if let Some(name) = header.data_file_name().filter(|_| header.has(feature::EXTERNAL_DATA)) {
            say("data-file", String::from_utf8_lossy(name).into());
            say("data-file-raw", header.is_data_file_raw().into());
        }
        say("extended-l2", header.geometry.is_extended.into());
    }
    Ok(Details {
        cluster_bytes: Some(header.geometry.cluster_bytes()),
        marks_zeros: header.geometry.version > 2,
        is_stream: false,
        packs: !header.has(feature::EXTERNAL_DATA),
        holds_bitmaps: header.geometry.version > 2,
        is_dirty: header.is_dirty(),
        is_corrupt: header.is_corrupt(),
        is_encrypted: false,
        snapshots: snapshot::read(file, header)?.list.into_iter().map(|s| s.snapshot).collect(),
        bitmaps: bitmaps.into_iter().map(|s| s.bitmap).collect(),
        specific,
    })
}

fn bitmap_value(stored: &bitmap::Stored) -> Value {
    let flags = [(stored.bitmap.is_in_use, "in-use"), (stored.bitmap.is_auto, "auto")];
    let flags: Vec<&str> = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    json!({ "flags": flags, "name": stored.bitmap.name, "granularity": stored.bitmap.granularity_bytes })
}
