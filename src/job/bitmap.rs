//! Persistent dirty bitmaps of an image, and carrying them from one image to another.

use crate::{
    base::Result,
    chain::{Layer, Opening, open_layer},
    format::{BitmapEdit, Image},
    io::{Access, Host},
};
use std::{path::Path, sync::Arc};

/// Changes the bitmaps of the image at `path`: what it shows stays, so that those who lie on it believe it as before.
///
/// `Busy` if the image is in use; `Unsupported` for formats without bitmaps.
///
/// ```
/// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
/// # use std::sync::Arc;
/// use deltachain::{chain::Opening, format::BitmapEdit, job::bitmap};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
/// let base = folder.path().join("base.qcow2");
/// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
/// create(&host, &base, &new, &Opening::reading())?;
/// let add = BitmapEdit::Add { name: "daily".to_owned(), granularity_bytes: Some(65536) };
/// let layer = bitmap::change(&host, &base, &Opening::writing(), |image| image.edit_bitmap(&add))?;
/// assert_eq!(layer.image.bitmap("daily")?.granularity_bytes(), 65536);
/// # Ok(())
/// # }
/// ```
pub fn change(
    host: &Arc<dyn Host>,
    path: &Path,
    opening: &Opening,
    change: impl FnOnce(&dyn Image) -> Result<()>,
) -> Result<Layer> {
    let layer = open_layer(host, path, &opening.clone().with_access(Access::Write))?;
    let image = layer.image.as_ref();
    match &opening.ledger {
        Some(ledger) => ledger.tend(image, || change(image))?,
        None => change(image)?,
    }
    Ok(layer)
}

/// Adds to the bitmap `into` of `target` all that the bitmap `name` of `source` calls dirty; `into` is made, with
/// the source's granularity, if it is not there.
pub fn merge(source: &dyn Image, name: &str, target: &dyn Image, into: &str) -> Result<()> {
    let bits = source.bitmap(name)?;
    let is_there = target.details()?.bitmaps.iter().any(|bitmap| bitmap.name == into);
    if !is_there {
        let granularity_bytes = Some(bits.granularity_bytes());
        target.edit_bitmap(&BitmapEdit::Add { name: into.to_owned(), granularity_bytes })?;
    }
    target.edit_bitmap(&BitmapEdit::Union { name: into.to_owned(), bits })
}
