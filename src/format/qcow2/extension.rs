//! Header extensions: a list of (type, bytes) between the header and the end of the first cluster
//! (`qcow2.rst`, "Header extensions").
//!
//! The list is kept whole and in order, known or not, so that rewriting a header loses nothing.

use crate::{
    base::{Error, Result, units},
    record,
};

/// Ends the list.
pub const END: u32 = 0;
/// The backing file's format.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names of feature bits.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Where the bitmap directory is.
pub const BITMAPS: u32 = 0x2385_2875;
/// The external data file's name.
pub const DATA_FILE: u32 = 0x4441_5441;
/// Where the full disk encryption header is.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// The project's own record ("dcn1").
pub const RECORD: u32 = 0x6463_6e31;

record! {
    /// What stands before each extension's bytes (`qcow2.rst`, "Header extensions").
    pub struct ExtensionHead: BigEndian, 8 bytes {
        /// Which extension.
        0 => kind: u32,
        /// Length of its bytes, without the padding to a multiple of 8.
        4 => bytes: u32,
    }
}

record! {
    /// The bitmaps extension (`qcow2.rst`, "Bitmaps extension").
    pub struct BitmapsExtension: BigEndian, 24 bytes {
        /// Bitmaps in the directory, at least 1.
        0 => bitmaps: u32,
        /// Reserved.
        4 => reserved: u32,
        /// Length of the directory.
        8 => directory_bytes: u64,
        /// Where the directory is.
        16 => directory_at: u64,
    }
}

/// One header extension as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which extension.
    pub kind: u32,
    /// Its bytes, without padding.
    pub bytes: Vec<u8>,
}

impl Extension {
    /// Returns the length in the list: head, bytes, padding.
    fn stored_bytes(&self) -> usize {
        ExtensionHead::SIZE + self.bytes.len().next_multiple_of(8)
    }
}

/// Returns the length of the list in the header, with its END mark.
pub fn list_bytes(list: &[Extension]) -> u64 {
    units::count(list.iter().map(Extension::stored_bytes).sum::<usize>() + ExtensionHead::SIZE)
}

/// Returns the list as it is stored, with its END mark.
pub fn write_list(list: &[Extension]) -> Vec<u8> {
    let mut out = Vec::new();
    for extension in list {
        // A list that fits a cluster (2 MiB) has no extension of 4 GiB.
        let bytes = u32::try_from(extension.bytes.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&ExtensionHead { kind: extension.kind, bytes }.to_bytes());
        out.extend_from_slice(&extension.bytes);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out.extend_from_slice(&ExtensionHead { kind: END, bytes: 0 }.to_bytes());
    out
}

/// Reads the list that starts at `from` in the first cluster and ends before `area`'s end.
pub fn read_list(area: &[u8], from: usize) -> Result<Vec<Extension>> {
    let mut list: Vec<Extension> = Vec::new();
    let mut at = from;
    while let Some(head) = area.get(at..).and_then(ExtensionHead::parse_start) {
        let start = at + ExtensionHead::SIZE;
        let end = start + units::index(u64::from(head.bytes));
        let Some(bytes) = area.get(start..end) else {
            return Err(Error::corrupt(format!(
                "header extension {:#x} at {at:#x} ends at {end:#x}, past its area's end ({:#x})",
                head.kind,
                area.len()
            )));
        };
        // QEMU looks at the mark's length as well, though it has no bytes.
        if head.kind == END {
            break;
        }
        list.push(Extension { kind: head.kind, bytes: bytes.to_vec() });
        at = end.next_multiple_of(8);
    }
    Ok(list)
}
