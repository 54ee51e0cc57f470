//! The disks that this daemon holds open.

use crate::{
    arguments::Named,
    bitmaps,
    failure::Failure,
    options::{self, References},
};
use deltachain::{
    base::{Error, ErrorKind},
    chain::Chain,
    disk::Disk,
    export::{Context, Export, Exports},
    io::Access,
};
use std::{collections::BTreeMap, sync::Arc};

/// Open disks by name.
pub struct Disks {
    open: BTreeMap<String, Held>,
}

/// A disk and how it is served.
struct Held {
    chain: Arc<Chain>,
    is_read_only: bool,
    contexts: Vec<Arc<dyn Context>>,
}

impl Disks {
    /// Opens all of them: none is served if one cannot be.
    pub fn open(named: &[Named], references: &References) -> Result<Self, Failure> {
        let host = options::host();
        let ledger = options::ledger(&host);
        let mut open = BTreeMap::new();
        for disk in named {
            let access = if disk.is_read_only { Access::Read } else { Access::Write };
            let opening = references.opening(host.as_ref(), access)?.with_format(disk.format);
            let opening = opening.with_ledger(ledger.clone());
            let chain = Arc::new(Chain::open(&host, &disk.path, &opening)?);
            // What a writer dirties is not in the bitmap until it is closed.
            let contexts = if disk.is_read_only { bitmaps::contexts(&chain)? } else { Vec::new() };
            let held = Held { chain, is_read_only: disk.is_read_only, contexts };
            if open.insert(disk.name.clone(), held).is_some() {
                return Err(Failure::usage(format!("two disks are called '{}'", disk.name)));
            }
        }
        Ok(Self { open })
    }

    /// Makes all that was written durable.
    pub fn flush(&self) -> Result<(), Error> {
        // Each is flushed, whatever becomes of the others.
        let flushed: Vec<_> = self.open.values().map(|held| held.chain.flush()).collect();
        flushed.into_iter().collect()
    }
}

impl Exports for Disks {
    fn list(&self) -> Vec<(String, String)> {
        self.open.iter().map(|(name, held)| (name.clone(), held.describe())).collect()
    }

    fn open(&self, name: &str) -> Result<Export, Error> {
        // A client that names none gets the only one there is.
        let only = || self.open.first_key_value().filter(|_| name.is_empty() && self.open.len() == 1);
        let found = self.open.get_key_value(name).or_else(only);
        let missing = || Error::new(ErrorKind::NotFound, format!("no disk is called '{name}'"));
        let (_, held) = found.ok_or_else(missing)?;
        Ok(Export {
            name: name.to_owned(),
            description: held.describe(),
            disk: Arc::clone(&held.chain) as Arc<dyn Disk>,
            is_read_only: held.is_read_only,
            // All connections share one chain.
            is_multi_conn: true,
            contexts: held.contexts.clone(),
        })
    }
}

impl Held {
    fn describe(&self) -> String {
        let layers = self.chain.layers().len();
        let format = self.chain.head().map_or("", |head| head.format().name());
        format!("{format}, {layers} layer{}", if layers == 1 { "" } else { "s" })
    }
}
