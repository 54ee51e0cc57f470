//! Going back to a layer under a disk in use.
//!
//! What stays true: until one rename the old head is the disk, and after it the new one, whatever a crash leaves out; guests
//! see the old disk until all their requests have ended, and the new one from then on. What they wrote in between is given
//! up, as all else that the old head holds.

use super::Revert;
use crate::{
    base::{Error, Result},
    chain::{Chain, Layer, Opening, open_layer},
    format::Format,
    io::{Access, Host},
    job::live::LiveDisk,
};
use std::sync::Arc;

impl Revert {
    /// Returns the format of the head that is made: that of the head that is given up, whose name it gets.
    pub fn format(&self) -> Format {
        self.chain.head().map_or(Format::Qcow2, Layer::format)
    }

    /// Does it with the disk in use whose chain this is, and whose layers are opened as `opening` says. What fails tells
    /// whether the name opens the new head already: then nobody may go on with the disk as it is.
    pub fn run_live(
        self,
        host: &Arc<dyn Host>,
        disk: &LiveDisk,
        opening: &Opening,
    ) -> std::result::Result<super::Plan, (Error, bool)> {
        self.replace(host, &[]).map_err(|error| (error, self.is_replaced(host.as_ref()).unwrap_or(true)))?;
        let chain = self
            .forget(host.as_ref())
            .and_then(|()| self.reopen(host, opening))
            .map_err(|error| (error, true))?;
        disk.swap(chain);
        Ok(self.plan)
    }

    /// Returns whether the name opens another file than the old head's.
    fn is_replaced(&self, host: &dyn Host) -> Result<bool> {
        let head = self.chain.head()?;
        let now = host.witness(&head.path)?;
        Ok(match head.image.files().first() {
            Some(file) => !file.witness()?.same_file(&now),
            None => true,
        })
    }

    fn reopen(&self, host: &Arc<dyn Host>, opening: &Opening) -> Result<Chain> {
        let writing = opening.clone().with_access(Access::Write).with_format(Some(self.format()));
        let head = open_layer(host, &self.chain.head()?.path, &writing)?;
        let layers: Vec<Layer> = std::iter::once(head).chain(self.lower().iter().cloned()).collect();
        Ok(Chain::of(layers, true))
    }
}
