//! The dirty bitmaps of a disk that does not change, as clients of NBD can ask for them.

use crate::{
    base::{GuestRange, Result, units::index},
    chain::Chain,
    export::{Context, Stretch},
    format::Bits,
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

impl Context for Dirty {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self, range: GuestRange, out: &mut Vec<Stretch>) -> Result<()> {
        let granule = self.bits.granularity_bytes();
        for piece in range.pieces(granule) {
            let nth = piece.start.bytes() / granule;
            let byte = self.bits.bytes().get(index(nth / 8)).copied().unwrap_or_default();
            let flags = u64::from(byte >> (nth % 8) & 1);
            Stretch { bytes: piece.bytes, flags }.append_to(out);
        }
        Ok(())
    }
}
