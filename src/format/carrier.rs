//! Every image carries a record of what it is and lies on, inside or beside itself.

use super::{Format, Image};
use crate::{
    base::Result,
    io::File,
    store::{Carrier, Identity, StoredRecord},
};
use std::sync::Arc;

impl<I: Image + ?Sized> Carrier for I {
    fn files(&self) -> Vec<Arc<dyn File>> {
        Image::files(self)
    }

    fn stored(&self) -> Result<Option<StoredRecord>> {
        self.record()
    }

    fn store(&self, record: Option<&[u8]>) -> Result<bool> {
        self.set_record(record)
    }

    fn void(&self) -> Result<()> {
        self.void_record()
    }

    fn flush_with_time(&self) -> Result<()> {
        Image::flush_with_time(self)
    }

    fn identity(&self) -> Option<Identity> {
        Image::identity(self)
    }

    fn set_identity(&self, identity: Identity) -> Result<()> {
        Image::set_identity(self, identity)
    }

    fn keep_identity(&self, keeps: bool) {
        Image::keep_identity(self, keeps);
    }

    fn awaits_recovery(&self) -> bool {
        Image::awaits_recovery(self)
    }

    fn format_name(&self) -> &'static str {
        self.format().name()
    }

    fn tells_format(&self) -> bool {
        self.format() != Format::Raw
    }
}
