//! Another size for an image.
//!
//! Its bitmaps go with it, as with QEMU: what is cut off is cut off them, what is added is not dirty. While the size changes
//! they are marked as in use, so that one which a cut leaves behind is not believed.

use super::snapshot::refuse_children;
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Opening},
    disk::Disk,
    format::{Bitmap, BitmapEdit, Image},
    io::{Access, Host},
    store::Ledger,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a resize is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Its size now, in bytes.
    pub from: u64,
    /// Its size then, in bytes.
    pub to: u64,
    /// Bytes of the disk that are cut off.
    pub lost_bytes: u64,
    /// Persistent bitmaps that get the new size and stay what they are.
    pub bitmaps_kept: Vec<String>,
    /// Persistent bitmaps that are marked as in use, because they cannot have that size.
    pub bitmaps_lost: Vec<String>,
}

/// A resize that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Resize {
    chain: Chain,
    ledger: Ledger,
    plan: Plan,
}

impl Resize {
    /// Opens the image for writing; `size` gets its size and returns the new one, which is rounded up to sectors.
    ///
    /// `Busy` if it is in use, or if another image of its folder lies on it.
    pub fn prepare(
        host: &Arc<dyn Host>,
        image: &Path,
        opening: &Opening,
        size: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<Self> {
        let chain = Chain::open(host, image, &Opening { access: Access::Write, ..opening.clone() })?;
        let head = chain.head()?;
        refuse_children(host, head)?;
        let from = head.size();
        let to = size(from).and_then(|bytes| bytes.checked_next_multiple_of(chain.sector_bytes().into()));
        let to = to.ok_or_else(|| Error::invalid("no disk can have that size").path(&head.path))?;
        if to != from {
            head.image.check_size(to)?;
        }
        let names = sound_bitmaps(head.image.as_ref())?.into_iter().map(|bitmap| bitmap.name);
        // A disk without bytes has none.
        let (bitmaps_kept, bitmaps_lost) = names.partition(|_| to > 0);
        let lost_bytes = from.saturating_sub(to);
        let plan = Plan { image: head.path.clone(), from, to, lost_bytes, bitmaps_kept, bitmaps_lost };
        // Its record goes, whether or not the caller looks at records.
        let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        Ok(Self { chain, ledger, plan })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. What is added reads as zeros. Returns the plan, with what became of the bitmaps.
    pub fn run(mut self) -> Result<Plan> {
        if self.plan.from != self.plan.to {
            let image = &self.chain.head()?.image;
            // Children elsewhere stand on what it shows now: its epoch and seal are durably gone first.
            if self.ledger.look(image.as_ref())?.layer.frozen.is_some() {
                self.ledger.release(image.as_ref())?;
            }
            let bitmap = |Bitmap { name, is_auto, .. }| {
                image.bitmap(&name).map(|bits| BitmapEdit::Put { name, bits, is_auto })
            };
            let kept: Vec<BitmapEdit> =
                sound_bitmaps(image.as_ref())?.into_iter().map(bitmap).collect::<Result<_>>()?;
            image.resize(self.plan.to, &self.chain.below())?;
            for edit in &kept {
                match image.edit_bitmap(edit) {
                    Err(e) if matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported) => {
                        self.plan.bitmaps_kept.retain(|name| name != edit.name());
                        self.plan.bitmaps_lost.retain(|name| name != edit.name());
                        self.plan.bitmaps_lost.push(edit.name().to_owned());
                    }
                    done => done?,
                }
            }
        }
        Ok(self.plan)
    }
}

fn sound_bitmaps(image: &dyn Image) -> Result<Vec<Bitmap>> {
    Ok(image.details()?.bitmaps.into_iter().filter(|bitmap| !bitmap.is_in_use).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::open_layer,
        content::Tree,
        format::{self, Creation, Format, NoParts},
        io::faulty::SimHost,
    };

    #[test]
    fn a_sealed_layer_that_is_resized_bears_its_record_no_more() {
        let host: Arc<dyn Host> = Arc::new(SimHost::new());
        let (path, ledger) = (Path::new("/base"), Ledger::new(Arc::clone(&host), None));
        let creation = Creation { size: 1 << 20, parent: None, options: vec![] };
        let image = format::create(Format::Qcow2, host.create(path).unwrap(), &creation, &NoParts).unwrap();
        let known = ledger.freeze(image.as_ref()).unwrap();
        ledger.seal(image.as_ref(), &Tree::new(1 << 20), &known).unwrap();
        drop(image);
        let resize = Resize::prepare(&host, path, &Opening::writing(), |_| Some(2 << 20)).unwrap();
        resize.run().unwrap();
        let layer = open_layer(&host, path, &Opening::reading()).unwrap();
        assert_eq!(layer.size(), 2 << 20);
        assert_eq!(ledger.look(layer.image.as_ref()).unwrap().layer.frozen, None);
    }
}
