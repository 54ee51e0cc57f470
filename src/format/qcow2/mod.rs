//! qcow2, versions 2 and 3 (QEMU `docs/interop/qcow2.rst` is the specification).

pub mod extension;
pub mod feature;
pub mod header;

mod adopt;
mod apart;
#[cfg(test)]
pub(super) mod audit;
mod bitmap;
mod change;
mod check;
mod counter;
mod create;
mod details;
mod entry;
mod flush;
mod image;
mod layout;
mod measure;
mod options;
mod packed;
mod packing;
mod pages;
mod read;
mod refcounts;
mod release;
mod resize;
mod retire;
mod snapshot;
mod tables;
mod write;
mod zero;

pub use header::Header;
pub use options::OPTIONS;
pub use retire::{is_retired, retire};

/// The first four bytes of every qcow2 file: `QFI\xfb`.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

use super::{Checked, Creation, Image, Measure, Parts, Repair};
use crate::{
    base::{Result, error::InFile},
    io::File,
};
use std::sync::Arc;

/// Opens a qcow2 image.
pub fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    Ok(Arc::new(image::Qcow2Image::open(file, is_writable, parts)?))
}

/// Makes a qcow2 image, and opens it for writing.
pub fn create(file: Arc<dyn File>, creation: &Creation, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    create::create(&*file, creation, parts)?;
    open(file, true, parts)
}

/// Sums up what a new image needs, as qemu does.
pub fn measure(creation: &Creation) -> Result<Measure> {
    measure::measure(creation)
}

/// Checks a qcow2 image, and repairs it as far as `repair` allows. A data file must be there; it holds no
/// metadata.
pub fn check(file: Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    let looked_at = Arc::clone(&file);
    let checked = check::check(&*looked_at, repair, parts)?;
    let is_mended = checked.corruptions_fixed > 0 && checked.corruptions + checked.errors == 0;
    if !is_mended {
        return Ok(checked);
    }
    let image = image::Qcow2Image::open(file, true, parts)?;
    if !image.part_clusters().in_file(looked_at.path())? {
        return Ok(checked);
    }
    drop(image);
    // The entry that a shared cluster was left to is its sole owner now, and is told so.
    let again = check::check(&*looked_at, repair, parts)?;
    let Checked { corruptions_fixed, leaks_fixed, .. } = checked;
    Ok(Checked { corruptions_fixed, leaks_fixed, ..again })
}
