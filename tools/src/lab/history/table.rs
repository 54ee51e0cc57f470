//! The table of histories: what kinds of images there are, and what each is asked for.

use super::{Before, Deed, History};
use deltachain::format::Format;

const fn qcow2(
    name: &'static str,
    options: &'static [(&'static str, &'static str)],
    sectors: u64,
) -> History {
    let (before, deeds) = (Before::Nothing, &[]);
    History { name, format: Format::Qcow2, options, sectors, parent: 0, is_resized: false, before, deeds }
}

const fn vhdx(name: &'static str, sectors: u64) -> History {
    History { format: Format::Vhdx, ..qcow2(name, &[("block_size", "1M")], sectors) }
}

const SMALL_BLOCKS: &[(&str, &str)] = &[("block_size", "4k")];
const SMALL: &[(&str, &str)] = &[("cluster_size", "1k")];
/// Sectors in such a cluster.
pub(super) const SMALL_SECTORS: u64 = 2;

/// Every history. Sizes are small: a crash anywhere is then seen by reading the whole disk.
pub const HISTORIES: [History; 33] = [
    History { format: Format::Raw, is_resized: true, ..qcow2("raw", &[], 256) },
    // Small clusters: many tables, refcount blocks and table clusters in a small disk.
    qcow2("qcow2-512", &[("cluster_size", "512")], 600),
    qcow2("qcow2-4k-refcount64", &[("cluster_size", "4k"), ("refcount_bits", "64")], 1024),
    qcow2("qcow2-64k", &[], 2048),
    qcow2("qcow2-v2", &[("compat", "0.10"), ("cluster_size", "1k")], 700),
    History { parent: 500, ..qcow2("qcow2-parent", &[("cluster_size", "2k")], 800) },
    History {
        parent: 900,
        ..qcow2("qcow2-subclusters", &[("cluster_size", "16k"), ("extended_l2", "on")], 1024)
    },
    History { parent: 900, is_resized: true, ..qcow2("qcow2-resize", &[("cluster_size", "512")], 400) },
    History { before: Before::Snapshot, parent: 300, ..qcow2("qcow2-snapshot", SMALL, 400) },
    History { before: Before::Snapshot, is_resized: true, ..qcow2("qcow2-snapshot-resize", SMALL, 300) },
    History { before: Before::PackedSnapshot, ..qcow2("qcow2-snapshot-packed", SMALL, 400) },
    History {
        before: Before::Packed,
        deeds: &[Deed::Pack],
        parent: 200,
        ..qcow2("qcow2-packed", SMALL, 400)
    },
    History {
        is_resized: true,
        parent: 200,
        ..qcow2("qcow2-data", &[("cluster_size", "1k"), ("data_file", "data")], 400)
    },
    History {
        is_resized: true,
        ..qcow2(
            "qcow2-data-raw",
            &[("cluster_size", "1k"), ("data_file", "data"), ("data_file_raw", "on")],
            400,
        )
    },
    History {
        deeds: &[Deed::Move, Deed::Adopt],
        parent: 200,
        ..qcow2("qcow2-move", &[("cluster_size", "4k")], 700)
    },
    History { before: Before::Bitmap, deeds: &[Deed::Bitmap], ..qcow2("qcow2-bitmap", SMALL, 400) },
    // A header whose list of extensions reaches beyond its first sector, as with all usual clusters.
    History {
        before: Before::KeptBitmap,
        deeds: &[Deed::Bitmap],
        parent: 200,
        ..qcow2("qcow2-kept-bitmap-4k", &[("cluster_size", "4k")], 700)
    },
    History {
        before: Before::KeptBitmap,
        // What is packed comes to light with entries only, behind a flush of their own: none here would miss this one.
        deeds: &[Deed::Bitmap, Deed::Move, Deed::Adopt],
        ..qcow2("qcow2-kept-bitmap", SMALL, 400)
    },
    History { deeds: &[Deed::Release, Deed::Pack], parent: 300, ..qcow2("qcow2-release", SMALL, 400) },
    // The smallest blocks have 2048 sectors.
    History { deeds: &[Deed::Release], ..vhdx("vhdx", 4800) },
    History { deeds: &[Deed::Move, Deed::Release], parent: 3000, ..vhdx("vhdx-child", 4800) },
    History { is_resized: true, parent: 6000, ..vhdx("vhdx-resize", 2500) },
    // Often the first flush is that of a release: what it needs of its own shows then.
    History { deeds: &[Deed::Release], parent: 3000, ..vhdx("vhdx-release", 4800) },
    History {
        is_resized: true,
        options: &[("block_size", "1M"), ("subformat", "fixed")],
        ..vhdx("vhdx-fixed", 2500)
    },
    History {
        format: Format::Vpc,
        is_resized: true,
        deeds: &[Deed::Move],
        ..qcow2("vpc-fixed", &[("subformat", "fixed")], 256)
    },
    History {
        format: Format::Vpc,
        is_resized: true,
        deeds: &[Deed::Move, Deed::Release],
        ..qcow2("vpc-dynamic", SMALL_BLOCKS, 700)
    },
    History {
        format: Format::Vpc,
        is_resized: true,
        deeds: &[Deed::Move, Deed::Release],
        parent: 1600,
        ..qcow2("vpc-differencing", SMALL_BLOCKS, 700)
    },
    // It soon needs a third table, and with it another directory.
    History {
        format: Format::Vmdk,
        deeds: &[Deed::Move, Deed::Grow],
        ..qcow2("vmdk", &[("cluster_size", "512")], 960)
    },
    History {
        format: Format::Vmdk,
        deeds: &[Deed::Move],
        parent: 500,
        ..qcow2("vmdk-child", &[("cluster_size", "512")], 700)
    },
    History {
        format: Format::Vmdk,
        parent: 900,
        ..qcow2("vmdk-zeroed", &[("cluster_size", "4k"), ("zeroed_grain", "on")], 700)
    },
    History {
        format: Format::Vmdk,
        parent: 300,
        ..qcow2("vmdk-pieces", &[("cluster_size", "1k"), ("subformat", "twoGbMaxExtentSparse")], 500)
    },
    History {
        format: Format::Vmdk,
        parent: 300,
        deeds: &[Deed::Move],
        ..qcow2("vmdk-esx", &[("subformat", "vmfsSparse")], 500)
    },
    History {
        format: Format::Vmdk,
        deeds: &[Deed::Grow],
        ..qcow2("vmdk-flat", &[("subformat", "monolithicFlat")], 256)
    },
];
