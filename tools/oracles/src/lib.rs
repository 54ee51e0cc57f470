//! Independent readers: other projects' code that reads what we write. For tests only.
//!
//! Each is asked only where it is right. imago 0.2.6 knows neither zstd nor subclusters (and says so).
//! qcow2-rs 0.1.6 is right for images that stand alone, with clusters of
//! 4 KiB and more and without internal snapshots; it also mutes the `log` crate for the whole process.
//! vhdx 0.1.0 is right for images without a parent whose log is empty, up to 4 GiB; it panics where it refuses.

use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, file::File, qcow2::Qcow2};
use qcow2_rs::{dev::Qcow2DevParams, helpers::Qcow2IoBuf, utils::qcow2_setup_dev_sync};
use std::{io::Read, path::Path};
use vmdk::VmdkChainReader;

/// How much is read in one go.
const PIECE_BYTES: usize = 64 << 10;
/// The same, of disks of gigabytes.
const VHDX_PIECE_BYTES: usize = 1 << 20;

/// Returns the whole view of a qcow2 image, parents included, as imago reads it.
pub fn imago(image: &Path) -> Result<Vec<u8>, String> {
    let gate = PermissiveImplicitOpenGate::default();
    let opened = Qcow2::<File>::builder_path(image).open(gate).map_err(|e| format!("imago: {e}"))?;
    let disk = FormatAccess::new(opened);
    let size = usize::try_from(disk.size()).map_err(|e| format!("imago: {e}"))?;
    let mut bytes = vec![0; size];
    for (n, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
        disk.read(piece, (n * PIECE_BYTES) as u64).map_err(|e| format!("imago: {e}"))?;
    }
    Ok(bytes)
}

/// Returns the whole view of a VMDK, parents included, as vmdk-core reads it.
pub fn vmdk_core(image: &Path) -> Result<Vec<u8>, String> {
    let mut disk = VmdkChainReader::open(image).map_err(|e| format!("vmdk-core: {e}"))?;
    let mut bytes =
        vec![0; usize::try_from(disk.virtual_disk_size()).map_err(|e| format!("vmdk-core: {e}"))?];
    disk.read_exact(&mut bytes).map_err(|e| format!("vmdk-core: {e}"))?;
    Ok(bytes)
}

/// Returns the whole view of a qcow2 image that stands alone, as qcow2-rs reads it.
pub fn qcow2_rs(image: &Path) -> Result<Vec<u8>, String> {
    let params = Qcow2DevParams::new(9, None, None, true, false);
    let disk = qcow2_setup_dev_sync(image, &params).map_err(|e| format!("qcow2-rs: {e}"))?;
    futures::executor::block_on(disk.qcow2_prep_io()).map_err(|e| format!("qcow2-rs: {e}"))?;
    let size = usize::try_from(disk.info.virtual_size()).map_err(|e| format!("qcow2-rs: {e}"))?;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let mut piece = Qcow2IoBuf::<u8>::new(PIECE_BYTES.min(size - bytes.len()));
        let at = bytes.len() as u64;
        futures::executor::block_on(disk.read_at(&mut piece, at)).map_err(|e| format!("qcow2-rs: {e}"))?;
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Shows the first `size` bytes of what a VHDX image has that stands alone to `each`, piece by piece with where it is, as the
/// crate vhdx reads it.
pub fn vhdx(image: &Path, size: u64, each: &mut dyn FnMut(u64, &[u8])) -> Result<(), String> {
    let mut disk = ::vhdx::Vhdx::load(image);
    let mut reader = disk.reader();
    let mut bytes = vec![0; VHDX_PIECE_BYTES];
    for at in (0..size).step_by(VHDX_PIECE_BYTES) {
        let piece = usize::try_from(size - at).unwrap_or(usize::MAX).min(VHDX_PIECE_BYTES);
        let piece = bytes.get_mut(..piece).unwrap_or_default();
        reader.read_exact(piece).map_err(|e| format!("vhdx: {e}"))?;
        each(at, piece);
    }
    Ok(())
}
