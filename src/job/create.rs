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

/// The option of formats that know of the guest's sectors.
pub(super) const SECTORS: &str = "logical_sector_size";

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
    let layers = chain.iter().flat_map(Chain::layers).map(|layer| layer.image.as_ref());
    let creation = Creation { size, parent, options: options_on(layers, new.format, &new.options) };
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

/// Returns the options of a new image of a disk that `layers` show: with the sectors that its guest knows, unless the caller
/// states some or the format has no place for them.
pub(super) fn options_on<'a>(
    layers: impl IntoIterator<Item = &'a dyn Image>,
    format: Format,
    options: &[(String, String)],
) -> Vec<(String, String)> {
    let bytes = layers.into_iter().map(Image::sector_bytes).max().unwrap_or(SECTOR_BYTES);
    let can_say = format.options().iter().any(|(name, _)| *name == SECTORS);
    let is_said = options.iter().any(|(name, _)| name == SECTORS);
    let stated =
        (bytes != SECTOR_BYTES && can_say && !is_said).then(|| (SECTORS.to_owned(), bytes.to_string()));
    options.iter().cloned().chain(stated).collect()
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
    let like = cluster.into_iter().chain(specific).collect::<Vec<_>>();
    Ok(options_on([image], image.format(), &like))
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
            // A link that leads nowhere.
            None if host.is_taken(path)? => {
                return Err(Error::new(ErrorKind::Exists, "is there already").path(path));
            }
            None => {
                // What is left of an earlier run only takes space: it is in nobody's way if it cannot be removed.
                let _ = Draft::sweep(host.as_ref(), path);
                Place::Draft(Draft::new(host, path)?)
            }
            Some(EntryKind::Device) => Place::Device(host.open(path, Access::Write)?),
            Some(_) => return Err(Error::new(ErrorKind::Exists, "is there already").path(path)),
        };
        let parts = MadeParts { host: Arc::clone(host), drafts: Mutex::default(), named: Mutex::default() };
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
        let name = self.path.file_name().map(|name| name.as_bytes().to_vec());
        let (made, budget, open) = (&self.parts, budget.clone(), Mutex::default());
        let parts = NewParts { made, folder, name, budget, open };
        // The draft's own name means nothing to anybody.
        format::create(format, self.file(), creation, &parts).map_err(|e| self.named(e))
    }

    /// Returns whether this is a block device, which holds what it held before.
    pub(super) const fn is_device(&self) -> bool {
        matches!(self.place, Place::Device(_))
    }

    /// Names the image in an error by the name that it is going to have.
    pub(super) fn named(&self, error: Error) -> Error {
        self.parts.renamed(error.renamed(self.file().path(), &self.path))
    }

    /// Makes the image, with all its files, durable, closes it and gives it its name.
    pub(super) fn publish(self, image: Arc<dyn Image>) -> Result<()> {
        image.flush().map_err(|e| self.named(e))?;
        drop(image);
        // First: who finds the image finds all of it. Cut off between the two, a file is left that nobody needs.
        self.parts.publish()?;
        let file = self.file();
        let done = match self.place {
            Place::Draft(draft) => draft.publish_flushed(&self.path, Publish::New),
            Place::Device(_) => Ok(()),
        };
        // It may have its name, and not durably.
        if done.is_ok() || is_named(self.parts.host.as_ref(), &self.path, file.as_ref()).unwrap_or(true) {
            self.parts.keep();
        }
        done
    }
}

/// Returns whether a name opens that file.
fn is_named(host: &dyn Host, path: &Path, file: &dyn File) -> Result<bool> {
    match host.witness(path) {
        // A link that leads nowhere, too.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        found => Ok(found?.same_file(&file.witness()?)),
    }
}

/// The further files of a new image: drafts until the image gets its name, which go again with it unless they are kept.
#[derive(Debug)]
struct MadeParts {
    host: Arc<dyn Host>,
    /// Each with the name that it is going to have.
    drafts: Mutex<Vec<(Draft, PathBuf)>>,
    /// Those that have theirs.
    named: Mutex<Vec<PathBuf>>,
}

impl MadeParts {
    /// Makes a file; `Exists`, and nothing touched, if anything has the name.
    fn make(&self, path: PathBuf) -> Result<Arc<dyn File>> {
        if self.host.is_taken(&path)? {
            return Err(Error::new(ErrorKind::Exists, "is there already").path(&path));
        }
        // As for the image itself.
        let _ = Draft::sweep(self.host.as_ref(), &path);
        let draft = Draft::new(&self.host, &path)?;
        let file = draft.file();
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner).push((draft, path));
        Ok(file)
    }

    /// Gives the files, which are durable, their names, durably.
    fn publish(&self) -> Result<()> {
        let drafts = std::mem::take(&mut *self.drafts.lock().unwrap_or_else(PoisonError::into_inner));
        for (draft, path) in drafts {
            let file = draft.file();
            let done = draft.publish_flushed(&path, Publish::New);
            // It may have its name, and not durably.
            if done.is_ok() || is_named(self.host.as_ref(), &path, file.as_ref()).unwrap_or(false) {
                self.named.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
            }
            match done {
                // A link that leads nowhere, or what somebody made meanwhile.
                Err(error) if error.kind() == ErrorKind::Exists => {
                    return Err(Error::new(ErrorKind::Exists, "is there already").path(&path));
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn keep(&self) {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Names a file in an error by the name that it is going to have.
    fn renamed(&self, error: Error) -> Error {
        let drafts = self.drafts.lock().unwrap_or_else(PoisonError::into_inner);
        drafts.iter().fold(error, |error, (draft, path)| error.renamed(draft.file().path(), path))
    }
}

impl Drop for MadeParts {
    fn drop(&mut self) {
        for path in self.named.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // The failure that led here is what the caller hears of.
            let _ = self.host.remove(path);
        }
    }
}

/// Makes the further files that the options of a new image name.
struct NewParts<'a> {
    made: &'a MadeParts,
    folder: PathBuf,
    /// The image's own.
    name: Option<Vec<u8>>,
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

    fn image_name(&self) -> Option<Vec<u8>> {
        self.name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{
        faulty::{SimHost, kill_states},
        real::RealHost,
    };

    #[test]
    fn further_files_go_when_a_link_to_nothing_took_the_image_s_name_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let path = folder.path().join("disk.vmdk");
        let target = Target::new(&host, &path).unwrap();
        let options = vec![("subformat".to_owned(), "monolithicFlat".to_owned())];
        let creation = Creation { size: 1 << 20, parent: None, options };
        let image = target.create(&host, (Format::Vmdk, &creation), &Budget::default()).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(target.publish(image).unwrap_err().kind(), ErrorKind::Exists);
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [path]);
    }

    #[test]
    fn an_image_that_was_being_made_when_it_was_killed_can_be_made_again() {
        let sim = SimHost::new();
        let options = vec![("data_file".to_owned(), "disk.data".to_owned())];
        let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options };
        let make = |host: &Arc<dyn Host>| create(host, Path::new("/disk"), &new, &Opening::writing());
        make(&(Arc::new(sim.clone()) as _)).unwrap();
        let (mut again, mut between) = (0, 0);
        for killed in kill_states(&sim.trace()) {
            let host: Arc<dyn Host> = Arc::new(killed.host);
            let is_there = |name: &str| host.kind(Path::new(name)).unwrap().is_some();
            match (is_there("/disk"), is_there("/disk.data")) {
                (false, false) => {
                    make(&host).unwrap();
                    let left = host.list(Path::new("/")).unwrap().into_iter().map(|entry| entry.path);
                    assert_eq!(left.filter(|path| Draft::is_left_over(path)).count(), 0, "{}", killed.after);
                    again += 1;
                }
                // After the one name and its sync, before the other.
                (false, true) => between += 1,
                (true, has_all) => assert!(has_all),
            }
        }
        assert!(again > 5 && between <= 2, "{again} {between}");
    }
}
