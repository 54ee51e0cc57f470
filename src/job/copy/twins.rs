//! Layers that another copy has brought into the folder, and that have no content ID there by which they would be found.
//!
//! Another copy's note tells of which file, in which state, a file there is the whole copy. What stays true: it is taken for
//! ours only while both look as they did in this boot, or are compared before anything stands on it, and while it lies on the
//! very image that ours would lie on.

use super::{
    Conversion, Match,
    file::{is_done, witnesses},
    places::places,
};
use crate::{
    base::Result,
    chain::{Layer, member},
    io::{EntryKind, Host, Witness},
    store::Transfer,
};
use std::path::{Path, PathBuf};

/// Has `transfer` tell that those of the topmost `depth` layers are done that another copy has brought, from the deepest up to
/// the first that it has not; never the head. The deepest one lies on what was `found`.
pub(super) fn adopt(
    host: &dyn Host,
    (layers, depth): (&[Layer], usize),
    found: Option<&Match>,
    (folder, conversion): (&Path, Option<&Conversion>),
    transfer: &mut Transfer,
) -> Result<()> {
    let mut below = found.map(|found| found.chain.head().map(|head| head.path.clone())).transpose()?;
    let all = made_of(layers, folder, conversion)?;
    for files in all.iter().take(depth).skip(1).rev() {
        let mut parts = Vec::new();
        for (place, sources) in files {
            if is_done(host, sources, place, transfer)? {
                continue;
            }
            if host.kind(place)? != Some(EntryKind::File) {
                return Ok(());
            }
            let name = PathBuf::from(place.file_name().unwrap_or_default());
            let Some(part) = transfer.twin(&name, sources, conversion.is_some())? else { return Ok(()) };
            parts.push((name, part));
        }
        let Some((header, _)) = files.first() else { return Ok(()) };
        let lies_on = member(host, header)?.link.map(|link| link.place);
        if lies_on != below.clone().map(Some) {
            return Ok(());
        }
        transfer.adopt(parts);
        below = Some(header.clone());
    }
    Ok(())
}

/// A file that is made, and what its sources look like.
type Made = (PathBuf, Vec<Witness>);

/// Returns the files that are made of each layer, the one with the header first.
fn made_of(layers: &[Layer], folder: &Path, conversion: Option<&Conversion>) -> Result<Vec<Vec<Made>>> {
    if let Some(new) = conversion {
        let converted = |(layer, to): (&Layer, PathBuf)| Ok(vec![(to, witnesses(&layer.image.files())?)]);
        return layers.iter().zip(new.places(layers, folder)).map(converted).collect();
    }
    let copied = |(layer, places): (&Layer, Vec<PathBuf>)| {
        let files = layer.image.files();
        files.iter().zip(places).map(|(file, place)| Ok((place, vec![file.witness()?]))).collect()
    };
    layers.iter().zip(places(layers, folder)).map(copied).collect()
}
