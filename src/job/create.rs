//! New images, empty or on a parent.

use super::rebase::NewParent;
use crate::{
    base::{Budget, Error, ErrorKind, Result, units::SECTOR_BYTES},
    chain::{Chain, Layer, Opening, freeze, is_plain, join},
    disk::Disk,
    format::{self, Creation, Format, Image, ParentName, Parts},
    io::{Access, EntryKind, File, Host},
    store::{Draft, Publish},
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Its format.
    pub format: Format,
    /// Size of its disk in bytes; `None`: the parent's.
    pub size: Option<u64>,
    /// Its parent.
    pub parent: Option<NewParent>,
    /// The format's own options.
    pub options: Vec<(String, String)>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Created {
    /// The image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of its disk in bytes.
    pub size: u64,
    /// The parent's name in its header.
    pub parent: Option<String>,
}

/// Makes an image at `path`; nothing is there before it is whole and durable.
///
/// `Exists` if the name is taken by anything but a block device; the parent is opened as `opening` says.
pub fn create(host: &Arc<dyn Host>, path: &Path, new: &NewImage, opening: &Opening) -> Result<Created> {
    let target = Target::new(host, path)?;
    let chain = new.parent.as_ref().map(|parent| {
        let how = Opening { access: Access::Read, parent_format: None, ..opening.clone() };
        Chain::open(host, &parent.path, &how.with_format(Some(parent.format)))
    });
    let chain = chain.transpose()?;
    let parent = chain.as_ref().map(|chain| target.link(host.as_ref(), chain.head()?)).transpose()?;
    let size =
        new.size.or(chain.as_ref().map(Disk::size)).and_then(|b| b.checked_next_multiple_of(SECTOR_BYTES));
    let size = size.ok_or_else(|| Error::invalid("a new image without a parent needs a size").path(path))?;
    let shown = parent.as_ref().map(|p| String::from_utf8_lossy(&p.name).into_owned());
    let creation = Creation { size, parent, options: new.options.clone() };
    let image = target.create(host, (new.format, &creation), &opening.budget)?;
    if let Some(ledger) = &opening.ledger {
        ledger.know(image.as_ref())?;
    }
    // The parent is frozen first, durably; the child is seen by nobody before it is whole.
    if let (Some(ledger), Some(chain)) = (&opening.ledger, &chain)
        && let Some(known) = freeze(ledger, chain.layers())?
    {
        join(ledger, image.as_ref(), (chain.head()?.image.as_ref(), &known))?;
    }
    target.publish(image)?;
    Ok(Created { image: path.to_path_buf(), format: new.format, size, parent: shown })
}

/// Returns the options that make an image like this one: its clusters, and of its format's own facts those called `kept`.
pub(super) fn options_like(image: &dyn Image, kept: &[&str]) -> Result<Vec<(String, String)>> {
    let details = image.details()?;
    let cluster = details.cluster_bytes.map(|bytes| ("cluster_size".to_owned(), bytes.to_string()));
    let specific = details.specific.into_iter().filter(|(key, _)| kept.contains(&key.as_str()));
    let specific = specific.filter_map(|(key, value)| {
        let value = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Bool(is_on) => if is_on { "on" } else { "off" }.to_owned(),
            serde_json::Value::Number(number) => number.to_string(),
            _ => return None,
        };
        Some((key.replace('-', "_"), value))
    });
    Ok(cluster.into_iter().chain(specific).collect())
}

/// Where a new image goes: a draft that gets its name at the end, or a block device.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    place: Place,
    parts: MadeParts,
}

#[derive(Debug)]
enum Place {
    Draft(Draft),
    Device(Arc<dyn File>),
}

impl Target {
    /// Takes the name; `Exists` if a file has it.
    pub(super) fn new(host: &Arc<dyn Host>, path: &Path) -> Result<Self> {
        let place = match host.kind(path)? {
            None => {
                // What is left of an earlier run only takes space: it is in nobody's way if it cannot be removed.
                let _ = Draft::sweep(host.as_ref(), path);
                Place::Draft(Draft::new(host, path)?)
            }
            Some(EntryKind::Device) => Place::Device(host.open(path, Access::Write)?),
            Some(_) => return Err(Error::new(ErrorKind::Exists, "is there already").path(path)),
        };
        let parts = MadeParts { host: Arc::clone(host), paths: Mutex::default() };
        Ok(Self { path: path.to_path_buf(), place, parts })
    }

    fn file(&self) -> Arc<dyn File> {
        match &self.place {
            Place::Draft(draft) => draft.file(),
            Place::Device(file) => Arc::clone(file),
        }
    }

    /// Returns the folder that names in the image start from, without links.
    fn folder(&self, host: &dyn Host) -> Result<PathBuf> {
        let place = host.opened_as(self.file().as_ref())?;
        Ok(place.parent().unwrap_or(Path::new("/")).to_path_buf())
    }

    /// Returns how the header names `parent`.
    fn link(&self, host: &dyn Host, parent: &Layer) -> Result<ParentName> {
        Ok(parent.name_in(&self.folder(host)?))
    }

    /// Makes the image.
    pub(super) fn create(
        &self,
        host: &Arc<dyn Host>,
        (format, creation): (Format, &Creation),
        budget: &Budget,
    ) -> Result<Arc<dyn Image>> {
        let folder = self.folder(host.as_ref())?;
        let parts = NewParts { made: &self.parts, folder, budget: budget.clone(), open: Mutex::default() };
        // The draft's own name means nothing to anybody.
        format::create(format, self.file(), creation, &parts).map_err(|e| self.named(e))
    }

    /// Returns whether this is a block device, which holds what it held before.
    pub(super) const fn is_device(&self) -> bool {
        matches!(self.place, Place::Device(_))
    }

    /// Names the image in an error by the name that it is going to have.
    pub(super) fn named(&self, error: Error) -> Error {
        error.renamed(self.file().path(), &self.path)
    }

    /// Makes the image, with all its files, durable, closes it and gives it its name.
    pub(super) fn publish(self, image: Arc<dyn Image>) -> Result<()> {
        image.flush().map_err(|e| self.named(e))?;
        drop(image);
        self.parts.sync_folders()?;
        let file = self.file();
        let done = match self.place {
            Place::Draft(draft) => draft.publish_flushed(&self.path, Publish::New),
            Place::Device(_) => Ok(()),
        };
        // It may have its name, and not durably.
        let is_named = || Ok::<_, Error>(self.parts.host.witness(&self.path)?.same_file(&file.witness()?));
        if done.is_ok() || is_named().unwrap_or(true) {
            self.parts.keep();
        }
        done
    }
}

/// The further files of a new image, which go again with it unless they are kept.
#[derive(Debug)]
struct MadeParts {
    host: Arc<dyn Host>,
    paths: Mutex<Vec<PathBuf>>,
}

impl MadeParts {
    /// Makes a file; `Exists`, and nothing touched, if anything has the name.
    fn make(&self, path: PathBuf) -> Result<Arc<dyn File>> {
        let taken = |error: Error| match error.kind() {
            ErrorKind::Exists => Error::new(ErrorKind::Exists, "is there already").path(&path),
            _ => error,
        };
        let file = self.host.create(&path).map_err(taken)?;
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        Ok(file)
    }

    fn sync_folders(&self) -> Result<()> {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.iter().filter_map(|path| path.parent()).try_for_each(|folder| self.host.sync_folder(folder))
    }

    fn keep(&self) {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for MadeParts {
    fn drop(&mut self) {
        for path in self.paths.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // The failure that led here is what the caller hears of.
            let _ = self.host.remove(path);
        }
    }
}

/// Makes the further files that the options of a new image name.
struct NewParts<'a> {
    made: &'a MadeParts,
    folder: PathBuf,
    budget: Budget,
    /// Those that were made, by name: an image asks for its own again when it is opened.
    open: Mutex<BTreeMap<Vec<u8>, Arc<dyn File>>>,
}

impl Parts for NewParts<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        // It is refused when it is read.
        if !is_plain(name) {
            let name = String::from_utf8_lossy(name);
            return Err(Error::invalid(format!(
                "'{name}' reads as a protocol, not as a file: write ./{name}"
            )));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(Arc::clone(file));
        }
        let file = self.made.make(self.folder.join(Path::new(OsStr::from_bytes(name))))?;
        open.insert(name.to_vec(), Arc::clone(&file));
        Ok(file)
    }

    fn budget(&self) -> Budget {
        self.budget.clone()
    }
}
