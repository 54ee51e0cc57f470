//! Leases: who uses which layers of a folder, across processes and hosts.
//!
//! A lease is a small file in the folder's `.dchain/leases` that names layers, what they are used for and by whom. What
//! stays true:
//! - it has its name only while it is whole, and locked for writing by an owner that lives: whoever can lock it knows that
//!   the owner is gone, and removes it;
//! - an owner looks at the layers again once it has the lease, and who is to change or remove a layer looks for leases
//!   once it has locked the layer: of two that meet, one at least sees the other.
//!
//! None of it needs to be durable: a power cut ends every owner. In a folder that cannot be written or is full there are
//! no leases, and on a file system without locks each looks as if its owner were gone: what is left are the locks on the open layers
//! themselves, which QEMU heeds, too.

use super::{Draft, FOLDER, place};
use crate::{
    base::{Error, ErrorKind, HostOffset, Result, name::FileName, seed, units::index},
    io::{Access, EntryKind, File, Host, Process, Witness},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

const VERSION: u32 = 1;
const BYTES_MAX: u64 = 4 << 20;

/// Where leases are, in the folder of what is known of images.
const LEASES: &str = "leases";

/// How often a lease is tried to be put down: who sweeps may take a file in the making for one that was left behind.
const TRIES: usize = 10;

/// What layers are used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purpose {
    /// In words: `a copy to /store`.
    pub what: String,
    /// Whether it is a disk that its owner holds open for guests.
    is_disk: bool,
}

impl Purpose {
    /// A job, in words that can follow `is in use by dchain (pid 42): `.
    pub fn job(what: impl Into<String>) -> Self {
        Self { what: what.into(), is_disk: false }
    }

    /// A disk of that name, which this process holds open for guests. It does not keep this process itself from changing
    /// the layers: who holds disks open knows what may be done with each.
    pub fn disk(name: &str) -> Self {
        Self { what: format!("disk '{name}'"), is_disk: true }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(flatten)]
    purpose: Purpose,
    owner: Process,
    layers: Vec<Leased>,
}

/// A file of a leased layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Leased {
    /// Its name in the folder, for people.
    name: FileName,
    file_system: String,
    inode: u64,
}

/// Layers that this process uses, as long as it is held.
#[derive(Debug)]
pub struct Lease {
    host: Arc<dyn Host>,
    /// Locked as long as they are open.
    files: Vec<(PathBuf, Arc<dyn File>)>,
}

impl Lease {
    /// Takes a lease on layers, by their whole paths and what their files look like. Where a folder cannot be written, or is
    /// full, there is none: the locks on its open layers have to do.
    ///
    /// Whoever relies on the layers looks at them again afterwards.
    pub fn take(host: &Arc<dyn Host>, layers: &[(PathBuf, Witness)], purpose: &Purpose) -> Result<Self> {
        let mut lease = Self { host: Arc::clone(host), files: Vec::new() };
        for (folder, layers) in by_folder(layers) {
            let leased = |(path, file): &(&Path, &Witness)| Leased {
                name: FileName(PathBuf::from(path.file_name().unwrap_or_default())),
                file_system: format!("{:032x}", file.file_system),
                inode: file.inode,
            };
            let layers = layers.iter().map(leased).collect();
            let owner = Process::this().clone();
            let content = Content { version: VERSION, purpose: purpose.clone(), owner, layers };
            match put_down(host, folder, &content) {
                Ok(file) => lease.files.push(file),
                // A full disk is no reason not to copy from it.
                Err(error) if place::is_closed(&error) || error.kind() == ErrorKind::NoSpace => {}
                Err(error) => return Err(error.doing("take a lease")),
            }
        }
        Ok(lease)
    }

    /// Returns the leases' own files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        for (path, file) in self.files.drain(..) {
            // Whoever looks next removes what stays.
            let _ = self.host.remove(&path);
            drop(file);
        }
    }
}

fn by_folder(layers: &[(PathBuf, Witness)]) -> BTreeMap<&Path, Vec<(&Path, &Witness)>> {
    let mut folders: BTreeMap<&Path, Vec<(&Path, &Witness)>> = BTreeMap::new();
    for (path, file) in layers {
        folders.entry(path.parent().unwrap_or(Path::new("/"))).or_default().push((path, file));
    }
    folders
}

/// Writes a lease under a name that nobody looks at, locked from its first moment, and then gives it its own.
fn put_down(host: &Arc<dyn Host>, folder: &Path, content: &Content) -> Result<(PathBuf, Arc<dyn File>)> {
    let bytes = serde_json::to_vec(content).map_err(|e| Error::invalid(format!("a lease: {e}")))?;
    let own = folder.join(FOLDER);
    place::make_durable_folder(host.as_ref(), &own)?;
    host.make_folder(&own.join(LEASES))?;
    let mut refused = None;
    for _ in 0..TRIES {
        let path = own.join(LEASES).join(format!("{:032x}", seed::fresh()));
        let written = Draft::new(host, &path).and_then(|draft| {
            let file = draft.file();
            file.write_at(HostOffset::new(0), &bytes)?;
            draft.publish_sometime(&path)?;
            Ok(file)
        });
        match written {
            Ok(file) => return Ok((path, file)),
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => {
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::invalid("a lease without a try")))
}

/// Somebody's use of layers in one folder.
#[derive(Debug)]
pub struct Used {
    /// The lease's own file.
    path: PathBuf,
    /// `None` if it is held and cannot be understood: then any layer may be meant.
    content: Option<Content>,
}

impl Used {
    /// Returns whether the file is one of a layer that is used.
    pub fn means(&self, file: &Witness) -> bool {
        let Some(content) = &self.content else { return true };
        let system = format!("{:032x}", file.file_system);
        // Hosts that share a folder call its file system by different names.
        let is_same = |leased: &&Leased| leased.file_system == system || !content.owner.is_here();
        content.layers.iter().filter(is_same).any(|leased| leased.inode == file.inode)
    }

    /// Returns whether it is a disk which this process itself holds open.
    fn is_own_disk(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.purpose.is_disk && content.owner.is_this())
    }
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Some(content) => {
                let said = format!("{}: {}", content.owner, content.purpose.what);
                // Whoever may write the folder may have put anything there.
                f.write_str(&said.replace(char::is_control, "?"))
            }
            None => write!(f, "a program whose lease is not understood, {}", self.path.display()),
        }
    }
}

/// Returns the leases in `folder` whose owners live. Writes nothing.
pub fn leases(host: &dyn Host, folder: &Path) -> Result<Vec<Used>> {
    look(host, folder, false)
}

/// Fails with `Busy`, naming the layer and who uses it, if one of `layers` (by its whole path) is leased; takes away what
/// owners that are gone have left. For whoever has locked the layers, and is to change or remove them.
pub fn refuse_leased(host: &dyn Host, layers: &[(PathBuf, Witness)]) -> Result<()> {
    for (folder, layers) in by_folder(layers) {
        for used in look(host, folder, true)?.iter().filter(|used| !used.is_own_disk()) {
            if let Some((path, _)) = layers.iter().find(|(_, file)| used.means(file)) {
                return Err(Error::busy(format!("is in use by {used}")).path(path));
            }
        }
    }
    Ok(())
}

fn look(host: &dyn Host, folder: &Path, sweeps: bool) -> Result<Vec<Used>> {
    let entries = match host.list(&folder.join(FOLDER).join(LEASES)) {
        Err(error) if place::is_closed(&error) || error.kind() == ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::File) {
        // Several may look at once: they all lock it for reading, which its owner does not let them.
        let is_left = match host.open(&entry.path, Access::Read) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.kind() == ErrorKind::Busy || place::is_closed(&error) => false,
            Err(error) => return Err(error),
        };
        if is_left && sweeps {
            // Who may not remove it passes it over all the same.
            let _ = host.remove(&entry.path);
        }
        if is_left || Draft::is_left_over(&entry.path) {
            continue;
        }
        match host.open(&entry.path, Access::ReadShared) {
            // Its owner was done with it meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            file => {
                let content = file.ok().and_then(|file| read(file.as_ref()));
                found.push(Used { content, path: entry.path });
            }
        }
    }
    Ok(found)
}

fn read(file: &dyn File) -> Option<Content> {
    let mut bytes = vec![0; index(file.bytes().ok()?.min(BYTES_MAX))];
    file.read_at(HostOffset::new(0), &mut bytes).ok()?;
    let content: Option<Content> = serde_json::from_slice(&bytes).ok();
    content.filter(|content| content.version == VERSION)
}

#[cfg(test)]
mod tests;
