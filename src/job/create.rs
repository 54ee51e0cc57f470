//! New images, empty or on a parent.

use super::rebase::NewParent;
use crate::{
    base::{Budget, Error, ErrorKind, Result, units::SECTOR_BYTES},
    chain::{Chain, Layer, Opening, freeze, join},
    disk::Disk,
    format::{self, Creation, Format, Image, ParentName, Parts},
    io::{Access, EntryKind, File, Host},
    store::{Draft, Publish},
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
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
        join(ledger, image.as_ref(), &known)?;
    }
    target.publish(image)?;
    Ok(Created { image: path.to_path_buf(), format: new.format, size, parent: shown })
}

/// Where a new image goes: a draft that gets its name at the end, or a block device.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    place: Place,
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
            None => Place::Draft(Draft::new(host, path)?),
            Some(EntryKind::Device) => Place::Device(host.open(path, Access::Write)?),
            Some(_) => return Err(Error::new(ErrorKind::Exists, "is there already").path(path)),
        };
        Ok(Self { path: path.to_path_buf(), place })
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
        let (host, budget) = (host.as_ref(), budget.clone());
        let parts = NewParts { host, folder: self.folder(host)?, budget };
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
        match self.place {
            Place::Draft(draft) => draft.publish_flushed(&self.path, Publish::New),
            Place::Device(_) => Ok(()),
        }
    }
}

/// Makes, or takes, the further files that the options of a new image name.
struct NewParts<'a> {
    host: &'a dyn Host,
    folder: PathBuf,
    budget: Budget,
}

impl Parts for NewParts<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let path = self.folder.join(Path::new(OsStr::from_bytes(name)));
        match self.host.kind(&path)? {
            None => self.host.create(&path),
            Some(_) => self.host.open(&path, Access::Write),
        }
    }

    fn budget(&self) -> Budget {
        self.budget.clone()
    }
}
