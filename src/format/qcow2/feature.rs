//! Feature bits and the names that an image gives them (`qcow2.rst`, "Feature name table").
//!
//! An image may use an incompatible feature that this build has never heard of; its own name table then
//! says, in words, why it is refused.

use crate::record;

/// Refcounts may be wrong: repair them before writing.
pub const DIRTY: u64 = 1 << 0;
/// Any structure may be wrong: never write.
pub const CORRUPT: u64 = 1 << 1;
/// Guest data is in another file.
pub const EXTERNAL_DATA: u64 = 1 << 2;
/// Compressed clusters are not deflate.
pub const COMPRESSION: u64 = 1 << 3;
/// L2 entries have 16 bytes and describe 32 subclusters.
pub const EXTENDED_L2: u64 = 1 << 4;
/// The parent is one that qemu reads wrongly and without an error (a differencing VHD, whose parent it leaves out): the
/// project's own bit, so that no other program opens the image.
pub const MISREAD_PARENT: u64 = 1 << 62;
/// The incompatible features that this build can handle.
pub const KNOWN_INCOMPATIBLE: u64 =
    DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2 | MISREAD_PARENT;

/// Refcounts may be written late, under the dirty bit (a compatible feature).
pub const LAZY_REFCOUNTS: u64 = 1 << 0;

/// The persistent bitmaps are consistent (an autoclear feature).
pub const BITMAPS: u64 = 1 << 0;
/// The external data file is a valid raw image (an autoclear feature).
pub const RAW_EXTERNAL_DATA: u64 = 1 << 1;
/// The project's record stands: no writer that does not know it has opened the image for writing since (an
/// autoclear feature).
pub const RECORD: u64 = 1 << 62;
/// The autoclear features that this build keeps true.
pub const KNOWN_AUTOCLEAR: u64 = BITMAPS | RAW_EXTERNAL_DATA | RECORD;

record! {
    /// One line of the feature name table (`qcow2.rst`, "Feature name table").
    pub struct FeatureName: BigEndian, 48 bytes {
        /// 0 incompatible, 1 compatible, 2 autoclear.
        0 => class: u8,
        /// Which bit of that bitmap.
        1 => bit: u8,
        /// The name, padded with zeros.
        2 => name: bytes 46,
    }
}

/// The table that new images carry: what qemu writes, then the project's own bits.
const NAMES: [(u8, u8, &str); 10] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (0, 62, "differencing VHD below, see deltachain"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
    (2, 62, "deltachain record"),
];

/// Returns the bytes of the feature name table that new images carry.
pub fn name_table() -> Vec<u8> {
    let line = |(class, bit, text): (u8, u8, &str)| {
        let mut name = [0; 46];
        name.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        FeatureName { class, bit, name }.to_bytes()
    };
    NAMES.into_iter().flat_map(line).collect()
}

/// Returns the names of the incompatible features in `bits`, as the image's own `table` spells them.
pub fn incompatible_names(table: &[u8], bits: u64) -> String {
    let (lines, _) = table.as_chunks::<{ FeatureName::SIZE }>();
    let named = |bit: u8| {
        let line = lines.iter().map(FeatureName::parse).find(|l| l.class == 0 && l.bit == bit)?;
        let end = line.name.iter().position(|byte| *byte == 0).unwrap_or(line.name.len());
        let name = line.name.get(..end).filter(|name| !name.is_empty())?;
        // Untrusted bytes on their way to a terminal.
        Some(String::from_utf8_lossy(name).escape_debug().to_string())
    };
    let set = (0..64_u8).filter(|bit| bits & (1 << bit) != 0);
    let words = set.map(|bit| named(bit).map_or(format!("bit {bit}"), |name| format!("{name} (bit {bit})")));
    words.collect::<Vec<_>>().join(", ")
}
