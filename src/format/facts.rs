//! What an image tells of itself beyond its bytes, what of that can be changed, and what a new one needs.

use super::Bits;
use crate::base::HostOffset;

/// An internal snapshot: a point in time kept inside the image.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// The ID, unique in the image.
    pub id: String,
    /// The name that a person gave.
    pub name: String,
    /// When it was taken, in nanoseconds since 1970.
    pub taken_ns: u64,
    /// How long the guest had run, in nanoseconds.
    pub guest_ns: u64,
    /// How many instructions the guest had run, where they were counted.
    pub guest_instructions: Option<u64>,
    /// Size of the saved machine state in bytes.
    pub machine_bytes: u64,
    /// Size of the disk then, in bytes.
    pub size: u64,
}

/// A persistent dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Bitmap {
    /// The name, unique in the image.
    pub name: String,
    /// Guest bytes that one bit stands for.
    pub granularity_bytes: u64,
    /// Whether some program had it open when it last wrote: its bits are not to be trusted.
    pub is_in_use: bool,
    /// Whether it goes on recording on every open for writing.
    pub is_auto: bool,
}

/// A change to an image's persistent bitmaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapEdit {
    /// A new one that records writes, with no bit set; `None`: the granularity that qemu would choose.
    Add {
        /// Its name.
        name: String,
        /// Guest bytes that one bit stands for.
        granularity_bytes: Option<u64>,
    },
    /// It goes; the only change to one that is in use.
    Remove {
        /// Its name.
        name: String,
    },
    /// No bit is set any more.
    Clear {
        /// Its name.
        name: String,
    },
    /// It records writes from here on, or does not.
    Record {
        /// Its name.
        name: String,
        /// Whether it records.
        is_auto: bool,
    },
    /// What is set in `bits` is set in it, too.
    Union {
        /// Its name.
        name: String,
        /// What is added.
        bits: Bits,
    },
    /// It has these bits and no others, whether it is new, was sound or was in use.
    Put {
        /// Its name.
        name: String,
        /// What is dirty.
        bits: Bits,
        /// Whether it records.
        is_auto: bool,
    },
}

impl BitmapEdit {
    /// Returns the name of the bitmap.
    pub fn name(&self) -> &str {
        match self {
            Self::Add { name, .. }
            | Self::Remove { name }
            | Self::Clear { name }
            | Self::Record { name, .. }
            | Self::Union { name, .. }
            | Self::Put { name, .. } => name,
        }
    }
}

/// What `info` shows of an image beyond its geometry.
#[expect(clippy::struct_excessive_bools, reason = "facts that have nothing to do with each other")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Bytes in the image's allocation unit as the format names it (cluster), if it has one.
    pub cluster_bytes: Option<u64>,
    /// Whether a unit can be marked as zero over a parent that holds something else there.
    pub marks_zeros: bool,
    /// Whether it is made in one go: whole units, compressed, in the disk's order, each once.
    pub is_stream: bool,
    /// Whether it stores compressed units.
    pub packs: bool,
    /// Whether it can hold persistent bitmaps.
    pub holds_bitmaps: bool,
    /// Whether the image was not closed cleanly.
    pub is_dirty: bool,
    /// Whether the image is marked as corrupt.
    pub is_corrupt: bool,
    /// Whether the bytes are encrypted.
    pub is_encrypted: bool,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Persistent dirty bitmaps.
    pub bitmaps: Vec<Bitmap>,
    /// The format's own facts, with the keys that `qemu-img info --output=json` uses under
    /// `format-specific.data`, in its order.
    pub specific: Vec<(String, serde_json::Value)>,
}

/// What `check` may mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: look only.
    Nothing,
    /// Space that is marked as used and is not.
    Leaks,
    /// Everything that can be mended without losing guest data that is still readable.
    All,
}

/// What `check` found; after a repair, what is left, and what was mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Places where the image contradicts itself in a way that can lose data.
    pub corruptions: u64,
    /// Units that are marked as used and are not.
    pub leaks: u64,
    /// Places that could not be checked (read errors).
    pub errors: u64,
    /// Corruptions mended.
    pub corruptions_fixed: u64,
    /// Leaks mended.
    pub leaks_fixed: u64,
    /// Units that the disk has in all.
    pub total_units: u64,
    /// Units that hold data.
    pub allocated_units: u64,
    /// Allocated units that do not follow the one before them in the file.
    pub fragmented_units: u64,
    /// Units stored compressed.
    pub compressed_units: u64,
    /// Where the used part of the file ends.
    pub end: HostOffset,
    /// One line for each finding, at most [`Checked::FINDINGS_MAX`]: field and offset.
    pub findings: Vec<String>,
}

impl Checked {
    /// How many findings are kept in words; the counts go on.
    pub const FINDINGS_MAX: usize = 1000;
}

/// What a new image is made of, in bytes.
#[expect(clippy::struct_excessive_bools, reason = "facts that have nothing to do with each other")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// What it allocates at once.
    pub unit: u64,
    /// Everything but the guest's data, with the whole disk allocated.
    pub fixed_bytes: u64,
    /// The disk, in whole units.
    pub disk_bytes: u64,
    /// Whether the whole disk takes space from the start.
    pub is_whole: bool,
    /// Whether it can hold bitmaps.
    pub has_bitmaps: bool,
    /// Whether it stores compressed units.
    pub packs: bool,
    /// Whether it is one file, and written in any order: what a layer is that a job makes.
    pub can_be_layer: bool,
}
