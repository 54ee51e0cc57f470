//! Layers that are opened again, in another way, on the files that are open: the locks are not let go of in between.

use crate::{
    base::{Budget, Error, Result},
    chain::Layer,
    format::{self, Parts},
    io::{Access, File},
};
use std::sync::Arc;

/// The files of an image that is open, and its budget, for opening it again in another way.
struct Again(Vec<Arc<dyn File>>, Budget);

impl Parts for Again {
    fn open_part(&self, _name: &[u8]) -> Result<Arc<dyn File>> {
        let part = self.0.get(1).cloned();
        part.ok_or_else(|| Error::invalid("names a further file, and has none open"))
    }

    fn budget(&self) -> Budget {
        self.1.clone()
    }
}

pub(super) fn set_access(layer: &Layer, access: Access) -> Result<()> {
    layer.image.files().iter().try_for_each(|file| file.set_access(access))
}

/// Returns the layer with its image opened again on the same files.
pub(super) fn again(layer: &Layer, is_writable: bool) -> Result<Layer> {
    let files = layer.image.files();
    let file = files.first().cloned().ok_or_else(|| Error::invalid("has no file").path(&layer.path))?;
    let image = format::open(layer.format(), file, is_writable, &Again(files, layer.image.budget().clone()))?;
    Ok(Layer { image, ..layer.clone() })
}

/// Goes back to reading a layer that was written. One that cannot make durable what it knows stays as it is, and so does
/// one that cannot be opened again: nobody writes it any more, and it shows what it showed.
pub(super) fn leave_alone(layer: &mut Layer) {
    let reopened = layer.image.flush().and_then(|()| again(layer, false));
    if let Ok(reopened) = reopened {
        *layer = reopened;
        // Where that fails, nobody else can use it until the disk is closed.
        drop(set_access(layer, Access::ReadToWrite));
    }
}
