//! A file that tables point into, and how long it is.

use crate::{
    base::{HostOffset, Result},
    io::File,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A file whose entries point into it, and how long it is known to be.
#[derive(Debug)]
pub(super) struct Target {
    /// The file.
    pub(super) file: Arc<dyn File>,
    /// A length that the file had once; it may have grown since.
    bytes: AtomicU64,
}

impl Target {
    /// Looks at how long `file` is.
    pub(super) fn new(file: Arc<dyn File>) -> Result<Self> {
        let bytes = AtomicU64::new(file.bytes()?);
        Ok(Self { file, bytes })
    }

    /// Returns the file's length if `at` lies past it.
    #[inline]
    pub(super) fn ends_before(&self, at: HostOffset) -> Result<Option<u64>> {
        if at.bytes() < self.bytes.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let bytes = self.file.bytes()?;
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok((at.bytes() >= bytes).then_some(bytes))
    }

    /// The file was cut: it has `bytes` bytes now.
    pub(super) fn cut(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}
