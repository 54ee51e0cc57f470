//! Leases of layers: which files they are.

use super::Layer;
use crate::{
    base::Result,
    io::{Host, Witness},
    store::{self, Lease, Purpose},
};
use std::{path::PathBuf, sync::Arc};

/// Takes a lease on layers that are open, all their files. Whoever relies on them looks at them again afterwards.
pub fn lease(host: &Arc<dyn Host>, layers: &[Layer], purpose: &Purpose) -> Result<Lease> {
    Lease::take(host, &files(host.as_ref(), layers)?, purpose)
}

/// Fails with `Busy`, naming the layer and who uses it, if one of `layers` is leased: for whoever has locked them, and is to
/// change or remove them.
pub fn refuse_leased(host: &dyn Host, layers: &[Layer]) -> Result<()> {
    store::refuse_leased(host, &files(host, layers)?)
}

/// Returns the layers' files by their whole paths; devices have no folder of their own.
fn files(host: &dyn Host, layers: &[Layer]) -> Result<Vec<(PathBuf, Witness)>> {
    let mut files = Vec::new();
    for layer in layers {
        for (nth, file) in layer.image.files().iter().enumerate().filter(|(_, file)| !file.is_device()) {
            // One that has no name any more is nobody's to change.
            let path = if nth == 0 { Ok(layer.path.clone()) } else { host.opened_as(file.as_ref()) };
            if let Ok(path) = path {
                files.push((path, file.witness()?));
            }
        }
    }
    Ok(files)
}
