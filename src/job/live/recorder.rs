//! The dirty bitmaps of a disk in use, which go on recording.
//!
//! What stays true: a bit is set before the bytes that it speaks of are written. The stored bitmap is marked as in use,
//! durably, before the first of them (`format/qcow2`), and is sound again only when [`Recorder::store`] has put all bits
//! there: what is killed before leaves it marked, never wrong.

use crate::{
    base::{GuestOffset, GuestRange, Result},
    format::{BitmapEdit, Bits, Image},
};
use parking_lot::Mutex;
use std::sync::Arc;

/// A bitmap in memory.
#[derive(Debug)]
pub struct Recorder {
    name: String,
    size: u64,
    bits: Mutex<Bits>,
}

impl Recorder {
    /// Takes on the bitmaps of an image that record and are sound.
    pub fn of(image: &dyn Image) -> Result<Vec<Arc<Self>>> {
        let bitmaps =
            image.details()?.bitmaps.into_iter().filter(|bitmap| bitmap.is_auto && !bitmap.is_in_use);
        let recorder = |name: String| {
            let bits = Mutex::new(image.bitmap(&name)?);
            Ok(Arc::new(Self { name, size: image.size(), bits }))
        };
        bitmaps.map(|bitmap| recorder(bitmap.name)).collect()
    }

    /// Returns the bitmap's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the bits as they are now.
    pub fn bits(&self) -> Bits {
        self.bits.lock().clone()
    }

    /// Goes before bytes of `range` are changed.
    pub fn mark(&self, range: GuestRange) {
        self.bits.lock().mark(range);
    }

    /// Goes before the disk shows something else altogether.
    pub fn mark_all(&self) {
        self.mark(GuestOffset::new(0).range(self.size));
    }

    /// Makes the bitmap of the image sound again: nobody changes the disk any more, and what was written is durable.
    pub fn store(&self, image: &dyn Image) -> Result<()> {
        let edit = BitmapEdit::Put { name: self.name.clone(), bits: self.bits(), is_auto: true };
        image.edit_bitmap(&edit)
    }
}
