//! Which layers of a chain are one disk's own: in its folder, writable, with no child but the layer above.
//!
//! Children elsewhere are seen only where it is noted that there are some; whoever asks says where it was looked.

use crate::{
    base::{Error, Guard, Result},
    chain::{Family, Layer},
    io::{Witness, is_marked_read_only},
    store::{Ledger, Trust},
};
use std::path::Path;

/// Returns why layer `at` of a chain, whose headers are in `files`, is not its top's own, if so. `family` holds the
/// images of the layers' folders.
pub(super) fn why_not(family: &Family, (layers, files): (&[Layer], &[Witness]), at: usize) -> Option<Error> {
    let (layer, top) = (layers.get(at)?, layers.first()?);
    if let Some(other) = other_child(family, files, at) {
        return Some(Error::busy(format!("{} lies on it, too", other.display())).subject(other));
    }
    if layer.path.parent() != top.path.parent() {
        return Some(Error::policy("is in another folder"));
    }
    let files = layer.image.files();
    files.iter().any(|f| is_marked_read_only(f.as_ref())).then(|| Error::policy("is read-only"))
}

/// Returns whether the record of a layer is in doubt and nothing in `family` lies on it: then nobody needs the record, and
/// what speaks against it is no reason to leave the layer as it is.
///
/// `Policy` if something lies on it: a new record would wipe out what speaks against the old one.
pub(super) fn is_void(ledger: &Ledger, family: &Family, layer: &Layer) -> Result<bool> {
    let image = layer.image.as_ref();
    let Trust::Doubted(doubt) = ledger.look(image)?.trust else { return Ok(false) };
    let header = image.files().first().map(|file| file.witness()).transpose()?;
    match header.and_then(|header| family.children_of(&header).next()) {
        None => Ok(true),
        Some(child) => {
            let what = format!("its record is in doubt: {doubt}; {} lies on it", child.path.display());
            Err(Error::policy(what).subject(&child.path).path(&layer.path))
        }
    }
}

/// Returns why a further file of the image at `own` is not that image's alone, if so.
pub(super) fn why_shared(family: &Family, data: &Witness, own: &Path) -> Option<Error> {
    let child = family.children_of(data).next().map(|child| ("lies on its data", child));
    let (what, other) =
        child.or_else(|| Some(("keeps its bytes there, too", family.users_of(data, own).next()?)))?;
    Some(Error::busy(format!("{} {what}", other.path.display())).subject(&other.path))
}

/// Returns a child of layer `at` which is not the layer above it.
pub(super) fn other_child<'f>(family: &'f Family, files: &[Witness], at: usize) -> Option<&'f Path> {
    let (file, above) = (files.get(at)?, at.checked_sub(1).and_then(|above| files.get(above)));
    let mut children = family.children_of(file);
    let other = children.find(|child| !above.is_some_and(|own| own.same_file(&child.witness)));
    other.filter(|_| Guard::Siblings.trips(true)).map(|child| child.path.as_path())
}
