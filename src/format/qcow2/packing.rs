//! Packing and unpacking one cluster's bytes (`qcow2.rst`, "Additional fields", `compression_type`). Pure.

use super::header::Compression;
use crate::base::units::{SECTOR_BYTES, index};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, Operation};

/// qemu unpacks deflate with a window of 4 KiB: what it is to read must not look further back.
const WINDOW_BITS: u8 = 12;

/// Returns `bytes` (a whole cluster) packed; `None` unless that saves a sector.
pub(super) fn pack(how: Compression, bytes: &[u8]) -> Option<Vec<u8>> {
    let room = bytes.len().checked_sub(index(SECTOR_BYTES)).filter(|room| *room > 0)?;
    let mut packed = vec![0; room];
    let length = match how {
        Compression::Zlib => deflate(bytes, &mut packed),
        Compression::Zstd => zstd::bulk::compress_to_buffer(bytes, &mut packed, 0).ok(),
    }?;
    packed.truncate(length);
    Some(packed)
}

fn deflate(bytes: &[u8], packed: &mut [u8]) -> Option<usize> {
    let mut stream = Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
    match stream.compress(bytes, packed, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => Some(index(stream.total_out())),
        _ => None,
    }
}

/// Fills `out`, a cluster, from `packed`, whose last sector may hold other bytes at its end; a phrase that
/// says what is wrong if it holds more or less than a cluster.
pub(super) fn unpack(how: Compression, packed: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let length = match how {
        Compression::Zlib => inflate(packed, out)?,
        Compression::Zstd => unpack_zstd(packed, out)?,
    };
    if length < out.len() { Err("unpacks to less than a cluster") } else { Ok(()) }
}

const TOO_LONG: &str = "unpacks to more than a cluster";

fn inflate(packed: &[u8], out: &mut [u8]) -> Result<usize, &'static str> {
    let mut stream = Decompress::new(false);
    let why = |_| "is not deflate";
    let status = stream.decompress(packed, out, FlushDecompress::Finish).map_err(why)?;
    let length = index(stream.total_out());
    if status != Status::StreamEnd && length == out.len() {
        let rest = packed.get(index(stream.total_in())..).unwrap_or_default();
        let _ = stream.decompress(rest, &mut [0], FlushDecompress::Finish).map_err(why)?;
    }
    if stream.total_out() > out.len() as u64 { Err(TOO_LONG) } else { Ok(length) }
}

fn unpack_zstd(packed: &[u8], out: &mut [u8]) -> Result<usize, &'static str> {
    let mut stream = Decoder::new().map_err(|_| "cannot be unpacked: no memory")?;
    let (mut read, mut written) = (0, 0);
    loop {
        let mut beyond = [0];
        let rest = packed.get(read..).unwrap_or_default();
        let is_full = written == out.len();
        let to = if is_full { &mut beyond } else { out.get_mut(written..).unwrap_or_default() };
        let step = stream.run_on_buffers(rest, to).map_err(|_| "is not zstd")?;
        if is_full && step.bytes_written > 0 {
            return Err(TOO_LONG);
        }
        let is_stuck = step.bytes_read == 0 && step.bytes_written == 0;
        (read, written) = (read + step.bytes_read, written + step.bytes_written);
        // A frame that ends with the cluster is the last one: other bytes may follow in its sector.
        if is_stuck || is_full || (written == out.len() && step.remaining == 0) {
            return Ok(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::seed::Seeded;

    #[test]
    fn a_cluster_survives_packing() {
        let mut bytes = vec![7; 65536];
        Seeded::new(1).fill(&mut bytes[..20000]);
        for how in [Compression::Zlib, Compression::Zstd] {
            let mut packed = pack(how, &bytes).unwrap();
            assert!(packed.len() < 24000, "{}", packed.len());
            packed.resize(packed.len().next_multiple_of(512), 0xff);
            let mut out = vec![0; 65536];
            unpack(how, &packed, &mut out).unwrap();
            assert_eq!(out, bytes);
            assert!(unpack(how, &packed, &mut vec![0; 65535]).unwrap_err().contains("more"));
            assert!(unpack(how, &packed, &mut vec![0; 32768]).unwrap_err().contains("more"));
            assert!(unpack(how, &packed, &mut vec![0; 65537]).is_err());
            assert!(unpack(how, &packed[..9000], &mut out).is_err());
        }
    }

    #[test]
    fn noise_is_not_packed() {
        let mut bytes = vec![0; 4096];
        Seeded::new(2).fill(&mut bytes);
        assert!(pack(Compression::Zlib, &bytes).is_none() && pack(Compression::Zstd, &bytes).is_none());
        assert!(pack(Compression::Zlib, &[0; 512]).is_none());
    }
}
