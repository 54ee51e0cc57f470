//! What servers give their clients: the open disks.

use super::{Entry, Service};
use crate::{
    base::Result,
    disk::Disk,
    export::{Export, Exports},
    job::live::LiveDisk,
};
use std::sync::Arc;

impl Exports for Service {
    fn list(&self) -> Vec<(String, String)> {
        let disks = self.disks.lock();
        let open = disks.iter().filter_map(|(name, entry)| match entry {
            Entry::Open(held) => Some((name.clone(), describe(&held.disk))),
            Entry::Refused(..) => None,
        });
        let open: Vec<_> = open.collect();
        drop(disks);
        open.into_iter().chain(self.list_backups()).collect()
    }

    fn open(&self, name: &str) -> Result<Export> {
        // A client that names none gets the only one there is.
        let only = || {
            let disks = self.disks.lock();
            disks.first_key_value().filter(|_| disks.len() == 1).map(|(name, _)| name.clone())
        };
        let name = if name.is_empty() { only().unwrap_or_default() } else { name.to_owned() };
        if let Some(export) = self.backup_export(&name) {
            return export;
        }
        let held = self.held(&name)?;
        held.refuse_closed(&name)?;
        Ok(Export {
            description: describe(&held.disk),
            name,
            disk: Arc::clone(&held.disk) as Arc<dyn Disk>,
            is_read_only: held.is_read_only,
            // All connections share one disk.
            is_multi_conn: true,
            contexts: held.contexts.clone(),
            guests: Arc::clone(&held.guests),
        })
    }
}

fn describe(disk: &LiveDisk) -> String {
    let chain = disk.chain();
    let layers = chain.layers().len();
    let format = chain.head().map_or("", |head| head.format().name());
    format!("{format}, {layers} layer{}", if layers == 1 { "" } else { "s" })
}
