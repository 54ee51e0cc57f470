//! What commands share that read a disk out of an OVA, and how one is made.

mod contents;
mod pack;

pub use contents::Contents;
pub use pack::{pack, refuse_machine};

use crate::failure::{Failure, quoted};
use clap::Args;
use deltachain::{
    base::{Error, ErrorKind},
    chain::{Opening, Package},
    io::{EntryKind, Host},
    store::ova::OvaDisk,
};
use std::{path::Path, sync::Arc};

/// Which disk of an OVA is meant.
#[derive(Args, Debug)]
pub struct Packaged {
    /// The disk of an OVA that is meant, by its ID or its file
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
}

impl Packaged {
    /// Opens the file at `path` if it is an OVA.
    pub fn open(
        &self,
        host: &Arc<dyn Host>,
        path: &Path,
        opening: &Opening,
    ) -> Result<Option<Package>, Failure> {
        // What is no file is for whoever opens it to refuse, or to know better.
        let is_file = host.kind(path)? == Some(EntryKind::File);
        let package = if is_file { Package::open(host, path, opening) } else { Ok(None) };
        let package = package.map_err(|e| failure(&e, path))?;
        if package.is_none() && self.disk.is_some() {
            let what = format!("--disk chooses among the disks of an OVA, and {} is none", path.display());
            return Err(Failure::usage(what));
        }
        Ok(package)
    }

    /// Returns whether a disk is named.
    pub const fn is_named(&self) -> bool {
        self.disk.is_some()
    }

    /// Returns the disk that is meant.
    pub fn disk(&self, package: &Package) -> Result<OvaDisk, Failure> {
        let found = package.ova().disk(self.disk.as_deref());
        found.map_err(|e| failure(&e, package.ova().file().path()))
    }
}

/// Reports an error of a command that reads the OVA at `archive`: what helps with images does not help with what is wrong
/// inside one.
pub fn failure(error: &Error, archive: &Path) -> Failure {
    let failure = Failure::from_error(error);
    let Some(inside) = error.file().and_then(|file| file.strip_prefix(archive).ok()) else { return failure };
    let (what, ova) = (error.what(), quoted(archive));
    let hint = match error.kind() {
        ErrorKind::Invalid if what.contains("is to be said") => Some("--disk NAME says which".to_owned()),
        ErrorKind::Corrupt if what.contains("manifest promises") => Some(
            "the OVA is not what its maker wrote: fetch it again; --skip-manifest takes it as it is"
                .to_owned(),
        ),
        ErrorKind::Unsupported if what.contains("compressed as a whole") => {
            Some(format!("unpack it, and convert what comes out: tar -xOf {ova} FILE | gunzip > DISK"))
        }
        ErrorKind::Unsupported if what.contains("in pieces") => {
            Some(format!("put them together, and convert what comes out: tar -xf {ova} && cat FILE.* > DISK"))
        }
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Policy => {
            let is_image = !inside.as_os_str().is_empty();
            is_image.then(|| format!("tar -xf {ova} unpacks it, if you trust where it is from"))
        }
        _ => return failure,
    };
    Failure { hint, ..failure }
}
