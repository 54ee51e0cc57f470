//! Layers that another copy has brought into the folder, and that have no content ID there by which they would be found.
//!
//! Another copy's note tells of which file, in which state, a file there is the whole copy. What stays true: it is taken for
//! ours only while both look as they did in this boot, and while it lies on the very image that ours would lie on.

use super::{Match, file::is_done, places::places};
use crate::{
    base::Result,
    chain::{Layer, member},
    io::{EntryKind, Host},
    store::Transfer,
};
use std::path::{Path, PathBuf};

/// Has `transfer` tell that those of the topmost `depth` layers are done that another copy has brought, from the deepest up to
/// the first that it has not; never the head. The deepest one lies on what was `found`.
pub(super) fn adopt(
    host: &dyn Host,
    (layers, depth): (&[Layer], usize),
    found: Option<&Match>,
    (folder, transfer): (&Path, &mut Transfer),
) -> Result<()> {
    let mut below = found.map(|found| found.chain.head().map(|head| head.path.clone())).transpose()?;
    let all = places(layers, folder);
    for (layer, places) in layers.iter().zip(&all).take(depth).skip(1).rev() {
        let mut parts = Vec::new();
        for (file, place) in layer.image.files().iter().zip(places) {
            if is_done(host, file.as_ref(), place, transfer)? {
                continue;
            }
            if host.kind(place)? != Some(EntryKind::File) {
                return Ok(());
            }
            let name = PathBuf::from(place.file_name().unwrap_or_default());
            let Some(part) = transfer.twin(&name, &file.witness()?)? else { return Ok(()) };
            parts.push((name, part));
        }
        let Some(header) = places.first() else { return Ok(()) };
        let lies_on = member(host, header)?.link.map(|link| link.place);
        if lies_on != below.clone().map(Some) {
            return Ok(());
        }
        transfer.adopt(parts);
        below = Some(header.clone());
    }
    Ok(())
}
