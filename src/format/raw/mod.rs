//! raw: the disk's bytes as they are, in a file or a block device.

use super::{Creation, Image};
use crate::{
    base::{Error, Result},
    io::File,
};
use std::sync::Arc;

#[expect(clippy::needless_pass_by_value, reason = "a stub keeps nothing")]
/// Opens a raw image.
pub fn open(file: Arc<dyn File>, _is_writable: bool) -> Result<Arc<dyn Image>> {
    Err(Error::unsupported("not built yet").path(file.path()))
}

#[expect(clippy::needless_pass_by_value, reason = "a stub keeps nothing")]
/// Makes a raw image.
pub fn create(file: Arc<dyn File>, _creation: &Creation) -> Result<Arc<dyn Image>> {
    Err(Error::unsupported("not built yet").path(file.path()))
}
