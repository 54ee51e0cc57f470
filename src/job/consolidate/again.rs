//! Layers that are opened again, in another way, on the files that are open: the locks are not let go of in between.

use crate::{
    base::{Budget, Error, Result},
    chain::Layer,
    format::{self, Parts},
    io::{Access, File},
};
use parking_lot::Mutex;
use std::{sync::Arc, vec::IntoIter};

/// The further files of an image that is open, and its budget, for opening it again in another way.
struct Again {
    /// In the order in which the image names them.
    files: Mutex<IntoIter<Arc<dyn File>>>,
    budget: Budget,
}

impl Parts for Again {
    fn open_part(&self, _name: &[u8]) -> Result<Arc<dyn File>> {
        let part = self.files.lock().next();
        part.ok_or_else(|| Error::invalid("names a further file, and has none open"))
    }

    fn budget(&self) -> Budget {
        self.budget.clone()
    }
}

pub(super) fn set_access(layer: &Layer, access: Access) -> Result<()> {
    layer.image.files().iter().try_for_each(|file| file.set_access(access))
}

/// Returns the layer with its image opened again on the same files.
pub(super) fn again(layer: &Layer, is_writable: bool) -> Result<Layer> {
    let mut files = layer.image.files().into_iter();
    let file = files.next().ok_or_else(|| Error::invalid("has no file").path(&layer.path))?;
    let parts = Again { files: Mutex::new(files), budget: layer.image.budget().clone() };
    let image = format::open(layer.format(), file, is_writable, &parts)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::GuestOffset,
        chain::{Opening, open_layer},
        format::{Format, Nothing},
        io::{Host, real::RealHost},
        job::create::{NewImage, create},
    };

    #[test]
    fn a_disk_in_several_files_is_opened_again_on_each_of_them() {
        let (folder, host) = (tempfile::tempdir().unwrap(), Arc::new(RealHost::new()) as Arc<dyn Host>);
        let (path, cut) = (folder.path().join("disk.vmdk"), 2047 << 20);
        let options = vec![("subformat".to_owned(), "twoGbMaxExtentSparse".to_owned())];
        let new = NewImage { format: Format::Vmdk, size: Some(cut + (1 << 20)), parent: None, options };
        create(&host, &path, &new, &Opening::reading()).unwrap();
        let layer = open_layer(&host, &path, &Opening::writing()).unwrap();
        let written = again(&layer, true).unwrap();
        written.image.write(GuestOffset::new(cut - 512), &[7; 1024], &Nothing).unwrap();
        written.image.flush().unwrap();
        let mut found = [0; 1024];
        again(&layer, false).unwrap().image.read(GuestOffset::new(cut - 512), &mut found, &Nothing).unwrap();
        assert_eq!((found, written.image.files().len()), ([7; 1024], 3));
    }
}
