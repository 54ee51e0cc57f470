//! qcow2, versions 2 and 3 (QEMU `docs/interop/qcow2.rst` is the specification).

pub mod extension;
pub mod feature;
pub mod header;

pub use header::Header;

/// The first four bytes of every qcow2 file: `QFI\xfb`.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

use super::{Checked, Creation, Image, Parts, Repair};
use crate::{
    base::{Error, Result},
    io::File,
};
use std::sync::Arc;

#[expect(clippy::needless_pass_by_value, reason = "a stub keeps nothing")]
/// Opens a qcow2 image.
pub fn open(file: Arc<dyn File>, _is_writable: bool, _parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    Err(Error::unsupported("not built yet").path(file.path()))
}

#[expect(clippy::needless_pass_by_value, reason = "a stub keeps nothing")]
/// Makes a qcow2 image.
pub fn create(file: Arc<dyn File>, _creation: &Creation, _parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    Err(Error::unsupported("not built yet").path(file.path()))
}

#[expect(clippy::needless_pass_by_value, reason = "a stub keeps nothing")]
/// Checks a qcow2 image.
pub fn check(file: Arc<dyn File>, _repair: Repair, _parts: &dyn Parts) -> Result<Checked> {
    Err(Error::unsupported("not built yet").path(file.path()))
}
