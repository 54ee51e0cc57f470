//! Disks in an OVA: each is a chain of one layer, which lies in a part of the archive and is only read.
//!
//! What stays true: a disk refers to nothing, not even to another file of its archive. So a package that a stranger made
//! reads no other file, wherever it lies.

use super::{Chain, Layer, Opening};
use crate::{
    base::{Budget, Error, Result},
    format::{self, Format, Parts},
    io::{File, Host},
    store::ova::{Ova, OvaDisk},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Words in the URIs of formats (DSP0243 leaves them to whoever specifies the format), and what they stand for.
const WORDS: [(&str, &str); 5] =
    [("vmdk", "vmdk"), ("cow", "qcow2"), ("vhdx", "vhdx"), ("vhd", "vpc"), ("raw", "raw")];

/// An OVA that is open for reading.
#[derive(Debug)]
pub struct Package {
    ova: Ova,
    /// Where the archive is, without links.
    place: PathBuf,
    budget: Budget,
}

/// Opens nothing.
struct Closed<'a>(&'a Budget);

impl Parts for Closed<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let what = format!("refers to '{}': a disk in an OVA lies in one file of it", name.escape_ascii());
        Err(Error::policy(what))
    }

    fn budget(&self) -> Budget {
        self.0.clone()
    }
}

impl Package {
    /// Opens the file at `path` if it is an OVA; one whose format is stated, or known as that of a disk, is none whatever
    /// stands in it.
    pub fn open(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Option<Self>> {
        if opening.format.is_some() {
            return Ok(None);
        }
        let file = host.open(path, opening.access)?;
        if !Ova::is_one(file.as_ref())? || opening.noted(host, file.as_ref())?.is_some() {
            return Ok(None);
        }
        let place = host.opened_as(file.as_ref())?;
        Ok(Some(Self { ova: Ova::open(file)?, place, budget: opening.budget.clone() }))
    }

    /// Returns what is in it.
    pub const fn ova(&self) -> &Ova {
        &self.ova
    }

    /// Opens a disk of it; `Unsupported` for one that is not in one file as it is.
    pub fn layer(&self, disk: &OvaDisk) -> Result<Layer> {
        let archive = self.ova.file().path();
        let (None, Some(member)) = (disk.refusal(), &disk.member) else {
            let why = disk.refusal().unwrap_or_default();
            return Err(
                Error::unsupported(format!("disk '{}' {why}, and is not read", disk.id)).path(archive)
            );
        };
        let file = self.ova.window(member);
        let path = file.path().to_path_buf();
        let (format, is_stated) =
            format_of(disk.format.as_deref(), file.as_ref()).map_err(|e| e.path(&path))?;
        let image = format::open(format, file, false, &Closed(&self.budget)).map_err(|e| e.path(&path))?;
        if let Some(parent) = image.parent() {
            let name = parent.name.escape_ascii();
            return Err(
                Error::policy(format!("names the parent '{name}': a disk in an OVA has none")).path(&path)
            );
        }
        Ok(Layer { path: self.place.join(&member.name), is_stated, image })
    }

    /// Opens the disk that is called so, or the only one, as a chain.
    pub fn chain(&self, name: Option<&str>) -> Result<Chain> {
        Ok(Chain::of(vec![self.layer(&self.ova.disk(name)?)?], false))
    }
}

/// Returns the format of a disk, and whether the package states it.
///
/// Headers are believed before the URI (programs that put qcow2 into OVAs call it VMDK there), but for a disk that is raw by
/// its URI: its guest may have written any header.
fn format_of(uri: Option<&str>, file: &dyn File) -> Result<(Format, bool)> {
    let uri = uri.map(str::to_ascii_lowercase);
    let said = WORDS.iter().find(|(word, _)| uri.as_ref().is_some_and(|uri| uri.contains(word)));
    let said = said.map(|(_, name)| *name);
    if said == Some(Format::Raw.name()) {
        return Ok((Format::Raw, true));
    }
    let shown = Format::recognise(file)?;
    match (format::foreign(file)?.filter(|_| shown == Format::Raw), said) {
        (Some(name), _) => {
            Err(Error::unsupported(format!("is a {name} image, and that format is not read here")))
        }
        (None, Some(said)) if shown == Format::Raw => {
            Err(Error::corrupt(format!("the descriptor calls it {said}, and it has no such header")))
        }
        (None, said) => Ok((shown, said == Some(shown.name()))),
    }
}

#[cfg(test)]
mod tests;
