//! The dirty bitmaps of a disk, as clients of NBD can ask for them: of one that does not change as they are stored, of one in
//! use as they record.

use crate::{
    base::{Error, GuestRange, Result, units::index},
    chain::Chain,
    disk::STATUS_MAX,
    export::{Context, Stretch},
    format::{Bits, Image},
    io::Witness,
    job::live::{LiveDisk, Recorder},
};
use std::sync::Arc;

/// `qemu:dirty-bitmap:NAME` (`docs/interop/nbd.rst` of qemu): flag 1 where the disk is dirty.
struct Dirty {
    name: String,
    bits: Bits,
}

/// Returns the head's bitmaps, but for those that another program left open: their bits are not to be trusted.
pub(super) fn contexts(chain: &Chain) -> Result<Vec<Arc<dyn Context>>> {
    let image = &chain.head()?.image;
    let mut contexts: Vec<Arc<dyn Context>> = Vec::new();
    for bitmap in image.details()?.bitmaps.into_iter().filter(|bitmap| !bitmap.is_in_use) {
        let bits = image.bitmap(&bitmap.name)?;
        contexts.push(Arc::new(Dirty { name: format!("qemu:dirty-bitmap:{}", bitmap.name), bits }));
    }
    Ok(contexts)
}

/// The same of a disk in use.
struct Recording {
    name: String,
    recorder: Arc<Recorder>,
}

/// Returns the bitmaps that record what guests change.
pub(super) fn live_contexts(disk: &LiveDisk) -> Vec<Arc<dyn Context>> {
    let context = |recorder: &Arc<Recorder>| {
        let name = format!("qemu:dirty-bitmap:{}", recorder.name());
        Arc::new(Recording { name, recorder: Arc::clone(recorder) }) as Arc<dyn Context>
    };
    disk.recorders().iter().map(context).collect()
}

/// Makes the stored bitmaps sound that have recorded all that was written: nobody writes the disk any more, and it is
/// durable. `then` is the header's file when they were read: what bitmaps of other layers say is not known here.
pub(super) fn keep(disk: &LiveDisk, then: &Witness) -> Result<()> {
    let chain = disk.chain();
    let image = chain.head()?.image.as_ref();
    if disk.recorders().is_empty() || !disk.is_changed() || !header(image)?.same_file(then) {
        return Ok(());
    }
    disk.recorders().iter().try_for_each(|recorder| recorder.store(image))
}

/// Returns what the file with an image's header looks like.
pub(super) fn header(image: &dyn Image) -> Result<Witness> {
    let file = image.files().into_iter().next().ok_or_else(|| Error::invalid("has no file"))?;
    file.witness()
}

impl Context for Dirty {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        describe(&self.bits, range, out);
        Ok(())
    }
}

impl Context for Recording {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        describe(&self.recorder.bits(), range, out);
        Ok(())
    }
}

fn describe(bits: &Bits, range: GuestRange, out: &mut Vec<Stretch>) {
    let granule = bits.granularity_bytes();
    for piece in range.pieces(granule) {
        if out.len() > STATUS_MAX {
            break;
        }
        let nth = piece.start.bytes() / granule;
        let byte = bits.bytes().get(index(nth / 8)).copied().unwrap_or_default();
        let flags = u64::from(byte >> (nth % 8) & 1);
        Stretch { bytes: piece.bytes, flags }.append_to(out);
    }
}
