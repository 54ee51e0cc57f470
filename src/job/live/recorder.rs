//! The dirty bitmaps of a disk in use, which go on recording.
//!
//! What stays true: a bit is set before the bytes that it speaks of are written. The stored bitmap is sound all the while
//! ([`Image::keep_bitmaps`]): it has the bits of whole regions, durably, before the first write to each. So what is killed
//! leaves it with more than has changed, never with less; [`Recorder::store`] puts the very bits there.

use crate::{
    base::{GuestOffset, GuestRange, Result},
    format::{BitmapEdit, Bits, Image},
};
use parking_lot::Mutex;
use std::sync::Arc;

/// A disk has about so many regions, at most.
const MARKS_MAX: u64 = 1024;
/// Smaller regions are not worth a wait each.
const REGION_BYTES_MIN: u64 = 16 << 20;

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

    /// Returns how much of a disk of `size` bytes is marked at once in the stored bitmap: a mark is a wait for the host, so
    /// there are a thousand of them at most.
    pub fn region_bytes(size: u64) -> u64 {
        (size / MARKS_MAX).next_power_of_two().max(REGION_BYTES_MIN)
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

    /// Makes the bitmap of the image as fine as this one: nobody changes the disk any more, and what was written is durable.
    pub fn store(&self, image: &dyn Image) -> Result<()> {
        let edit = BitmapEdit::Put { name: self.name.clone(), bits: self.bits(), is_auto: true };
        image.edit_bitmap(&edit)
    }
}
