//! Compressed grains: zlib streams of one grain each, in streams with a marker in front (Virtual Disk Format 5.0,
//! "Stream-Optimized Compressed Sparse Extents"). Pure but for reading one from its file.

use super::layout::{Coding, Layout};
use crate::{
    base::{
        Error, GuestOffset, GuestRange, HostOffset, Result,
        units::{SECTOR_BYTES, index},
    },
    io::File,
};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

/// Bytes of a grain's marker: the grain's first sector, and how many bytes follow.
pub(super) const MARKER_BYTES: u64 = 12;

/// A compressed grain in memory.
pub(super) struct Packed {
    /// Where the grain starts on the disk.
    pub(super) start: GuestOffset,
    /// Bytes in a grain.
    pub(super) grain: u64,
    /// The zlib stream; other bytes may follow.
    pub(super) bytes: Vec<u8>,
}

impl Packed {
    /// Fills `buf` with the part `range` of the grain.
    pub(super) fn unpack(&self, range: GuestRange, buf: &mut [u8]) -> Result<()> {
        let broken = |why: &str| {
            Error::corrupt(format!("the compressed grain for guest byte 0x{:x} {why}", self.start))
        };
        if range.start == self.start && range.bytes == self.grain {
            return unpack(&self.bytes, buf).map_err(broken);
        }
        let mut whole = vec![0; index(self.grain)];
        unpack(&self.bytes, &mut whole).map_err(broken)?;
        let from = index(range.start.since(self.start));
        let part =
            whole.get(from..from + buf.len()).ok_or_else(|| broken("is shorter than what is asked"))?;
        buf.copy_from_slice(part);
        Ok(())
    }
}

/// The most bytes that a grain is believed to take: deflate adds a few to what it cannot compress.
const fn packed_max(grain: u64) -> u64 {
    grain + grain / 8 + 1024
}

/// Reads the compressed grain at `at` of the file; its first byte is byte `local` of the extent.
pub(super) fn read(file: &dyn File, at: HostOffset, (layout, local): (&Layout, u64)) -> Result<Vec<u8>> {
    let (from, bytes) = match length(file, at, (layout, local))? {
        Some(bytes) => (MARKER_BYTES, bytes - MARKER_BYTES),
        None => (0, packed_max(layout.grain)),
    };
    let mut packed = vec![0; index(bytes)];
    file.read_at(at.plus(from), &mut packed)?;
    Ok(packed)
}

/// Returns how many bytes the compressed grain at `at` has with its marker; `None` if it has none.
pub(super) fn length(
    file: &dyn File,
    at: HostOffset,
    (layout, local): (&Layout, u64),
) -> Result<Option<u64>> {
    if !matches!(layout.coding, Coding::Packed { has_markers: true, .. }) {
        return Ok(None);
    }
    let mut marker = [0; index(MARKER_BYTES)];
    file.read_at(at, &mut marker)?;
    let sector = marker.first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word));
    let length = marker.last_chunk::<4>().map_or(0, |word| u64::from(u32::from_le_bytes(*word)));
    let wrong = |what: String| Error::corrupt(format!("the grain marker at 0x{at:x} {what}"));
    if sector != local / SECTOR_BYTES {
        return Err(wrong(format!("is of sector {sector}, and the table says {}", local / SECTOR_BYTES)));
    }
    if length == 0 || length > packed_max(layout.grain) {
        return Err(wrong(format!("has {length} bytes for a grain of {}", layout.grain)));
    }
    Ok(Some(MARKER_BYTES + length))
}

/// Returns `bytes`, of a grain, as a zlib stream of `grain` bytes: always, since a stream holds nothing else. Fewer bytes
/// stand for the disk's end.
pub(super) fn pack(bytes: &[u8], grain: u64) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    let bytes = if bytes.len() < index(grain) {
        whole.extend_from_slice(bytes);
        whole.resize(index(grain), 0);
        &whole
    } else {
        bytes
    };
    let mut packed = vec![0; index(packed_max(grain))];
    let mut stream = Compress::new(flate2::Compression::default(), true);
    match stream.compress(bytes, &mut packed, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => {
            packed.truncate(index(stream.total_out()));
            Some(packed)
        }
        _ => None,
    }
}

/// Fills `out`, a grain, from a zlib stream; what a shorter one leaves is zeros (the disk's end). A phrase that says what
/// is wrong if it is none, or holds more.
fn unpack(packed: &[u8], out: &mut [u8]) -> std::result::Result<(), &'static str> {
    let mut stream = Decompress::new(true);
    let why = |_| "is not deflate";
    let status = stream.decompress(packed, out, FlushDecompress::Finish).map_err(why)?;
    let length = index(stream.total_out());
    if status != Status::StreamEnd {
        let rest = packed.get(index(stream.total_in())..).unwrap_or_default();
        let status = stream.decompress(rest, &mut [0], FlushDecompress::Finish).map_err(why)?;
        if stream.total_out() > out.len() as u64 {
            return Err("unpacks to more than a grain");
        }
        if status != Status::StreamEnd {
            return Err("is cut off");
        }
    }
    out.get_mut(length..).unwrap_or_default().fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::seed::Seeded;

    #[test]
    fn a_grain_survives_packing_and_a_bomb_does_not_unpack() {
        let mut bytes = vec![7; 65536];
        Seeded::new(1).fill(&mut bytes[..20000]);
        let packed = pack(&bytes, 65536).unwrap();
        let mut out = vec![1; 65536];
        unpack(&packed, &mut out).unwrap();
        assert_eq!(out, bytes);
        assert!(unpack(&packed, &mut vec![0; 65535]).unwrap_err().contains("more"));
        assert!(unpack(&packed[..9000], &mut out).unwrap_err().contains("cut off"));
        assert!(unpack(&[1; 100], &mut out).is_err());
        let mut longer = vec![1; 65537];
        unpack(&packed, &mut longer).unwrap();
        assert_eq!(longer[65536], 0);
        let mut noise = vec![0; 65536];
        Seeded::new(2).fill(&mut noise);
        unpack(&pack(&noise, 65536).unwrap(), &mut out).unwrap();
        assert_eq!(out, noise);
    }
}
