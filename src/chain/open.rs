//! Opening: from a path to the layers below it.

use super::{Layer, Policy, policy::Referrer};
use crate::{
    base::{Budget, Error, ErrorKind, Guard, Result},
    format::{self, Checked, Format, Repair},
    io::{Access, File, Host, Witness},
    store::{self, Epoch, Journal, Ledger, ova::Ova},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Ends the refusal of a parent whose format its child does not state.
pub const FORMAT_UNSTATED: &str = "without stating its format";

/// How a chain is to be opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The head's format; `None`: by its record or its header.
    pub format: Option<Format>,
    /// The format of a first parent whose child states none; deeper ones must be stated.
    pub parent_format: Option<Format>,
    /// How the head is opened; the layers below are only read.
    pub access: Access,
    /// Which references are followed.
    pub policy: Policy,
    /// What is known of the layers: with it, a layer whose parent is not what it was made on is refused.
    pub ledger: Option<Ledger>,
    /// Where formats are noted; `None`: beside the images.
    pub notes: Option<Ledger>,
    /// Whether layers below the head may be written later, while the chain is open ([`Access::ReadToWrite`]).
    pub is_live: bool,
    /// What the memory for maps is taken from, that of all chains that are opened by this together.
    pub budget: Budget,
}

impl Opening {
    /// Opens for reading, recognising the format, following what stays in the image's folder.
    pub fn reading() -> Self {
        Self {
            format: None,
            parent_format: None,
            access: Access::Read,
            policy: Policy::default(),
            ledger: None,
            notes: None,
            is_live: false,
            budget: Budget::default(),
        }
    }

    /// The same, for writing the head.
    pub fn writing() -> Self {
        Self { access: Access::Write, ..Self::reading() }
    }

    /// States the head's format.
    #[must_use]
    pub fn with_format(mut self, format: Option<Format>) -> Self {
        self.format = format;
        self
    }

    /// Sets how the head is opened.
    #[must_use]
    pub const fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets which references are followed.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Opens a disk that is to be reshaped while it is in use: a fold of it that was cut off is gone on with, or given
    /// up, before it is written.
    #[must_use]
    pub const fn for_live_use(mut self) -> Self {
        self.is_live = true;
        self
    }

    /// Sets what the memory for maps is taken from.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Has each layer's parent looked at, and refused if it is not what the layer was made on.
    #[must_use]
    pub fn with_ledger(mut self, ledger: Ledger) -> Self {
        self.notes = Some(ledger.clone());
        self.ledger = Some(ledger);
        self
    }

    /// Returns the format that is noted of an image.
    pub(super) fn noted(&self, host: &Arc<dyn Host>, file: &dyn File) -> Result<Option<Format>> {
        let notes = self.notes.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
        notes.format_of(file)?.map(|name| Format::parse(&name)).transpose().map_err(|e| e.path(file.path()))
    }

    /// How the layers below the head are opened.
    fn parent_access(&self) -> Access {
        match self.access {
            Access::ReadShared => Access::ReadShared,
            _ if self.is_live => Access::ReadToWrite,
            _ => Access::Read,
        }
    }
}

/// Opens one image without what lies below it (its own further files are opened under the policy).
pub fn open_layer(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Layer> {
    let opened = Opened::by_name(host, path, opening)?;
    opened.into_layer(host.as_ref(), opening, opening.access)
}

/// Looks at the metadata of one image, and mends what `repair` allows; returns its format, too.
///
/// What lies below it is not opened. Where nothing is mended but leaks, the layer shows what it showed: those who lie on
/// it believe it as before. `Unsupported` for formats that have nothing to check.
pub fn check_layer(
    host: &Arc<dyn Host>,
    path: &Path,
    opening: &Opening,
    repair: Repair,
) -> Result<(Format, Checked)> {
    let opened = Opened::by_name(host, path, opening)?;
    if repair == Repair::All {
        let used = [(opened.place.clone(), opened.file.witness()?)];
        store::refuse_leased(host.as_ref(), &used)?;
    }
    let parts = opened.referrer(host.as_ref(), opening, opening.access);
    let check = |repair| format::check(opened.format, Arc::clone(&opened.file), repair, &parts);
    let keeps_view = match repair {
        Repair::Nothing => false,
        Repair::Leaks => true,
        Repair::All => check(Repair::Nothing)?.corruptions == 0,
    };
    let ledger = opening.ledger.as_ref().filter(|_| keeps_view);
    // Only to know whose record it is: nothing is written through it. What cannot be opened has none.
    let beside = opened.referrer(host.as_ref(), opening, Access::ReadShared);
    let image =
        ledger.and_then(|_| format::open(opened.format, Arc::clone(&opened.file), false, &beside).ok());
    let checked = match (ledger, image) {
        (Some(ledger), Some(image)) => ledger.tend(image.as_ref(), || check(repair))?,
        _ => check(repair)?,
    };
    Ok((opened.format, checked))
}

/// A file on its way to be a layer.
struct Opened {
    place: PathBuf,
    file: Arc<dyn File>,
    format: Format,
    is_stated: bool,
}

impl Opened {
    /// Opens the file that a person named; without a stated format its note tells, and without one its header.
    fn by_name(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Self> {
        let file = host.open(path, opening.access)?;
        let place = host.opened_as(file.as_ref())?;
        let format = match opening.format {
            Some(format) => format,
            None => known(opening.noted(host, file.as_ref())?, file.as_ref())?,
        };
        Ok(Self { place, file, format, is_stated: opening.format.is_some() })
    }

    fn referrer<'a>(&'a self, host: &'a dyn Host, opening: &'a Opening, access: Access) -> Referrer<'a> {
        let Opening { policy, budget, .. } = opening;
        Referrer { host, image: &self.place, is_stated: self.is_stated, policy, access, budget }
    }

    fn into_layer(self, host: &dyn Host, opening: &Opening, access: Access) -> Result<Layer> {
        let parts = self.referrer(host, opening, access);
        let image = format::open(self.format, Arc::clone(&self.file), access.writes(), &parts)?;
        Ok(Layer { path: self.place, is_stated: self.is_stated, image })
    }
}

/// Returns the format of an image of which `noted` is known; a raw disk stays raw whatever its guest wrote.
fn known(noted: Option<Format>, file: &dyn File) -> Result<Format> {
    let shown = Format::recognise(file)?;
    if noted.is_none() && shown == Format::Raw && Ova::is_one(file)? {
        let what = "is an OVA by its header: `dchain convert` makes an image of a disk in it (a raw disk that looks like one \
                    is to be stated as raw)";
        return Err(Error::unsupported(what).path(file.path()));
    }
    match noted {
        None => match format::foreign(file)?.filter(|_| shown == Format::Raw) {
            None => Ok(shown),
            Some(name) => {
                let what = format!(
                    "is a {name} image by its header, and that format is not read here: a raw disk that looks like one is \
                     to be stated as raw"
                );
                Err(Error::unsupported(what).path(file.path()))
            }
        },
        Some(noted) if noted == shown || noted == Format::Raw => Ok(noted),
        Some(noted) => {
            let what = format!("is known as {noted}, but has no such header: {shown} has to be stated");
            Err(Error::corrupt(what).path(file.path()))
        }
    }
}

/// Opens the head and all that lies below it.
pub(super) fn layers(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Vec<Layer>> {
    let head = open_layer(host, path, opening)?;
    let mut seen = vec![witness(&head)?];
    let mut layers = vec![head];
    while let Some(child) = layers.last() {
        let Some(parent) = open_parent(host, child, opening, layers.len() == 1)? else { break };
        let here = witness(&parent)?;
        if seen.iter().any(|w| w.same_file(&here)) {
            let what = format!("its chain of parents comes back to {}", parent.path.display());
            return Err(Error::corrupt(what).path(&child.path));
        }
        if layers.len() >= opening.policy.depth_max {
            let what = format!("has more than {} layers below and with it", opening.policy.depth_max);
            return Err(Error::policy(what).path(path));
        }
        seen.push(here);
        layers.push(parent);
    }
    Ok(layers)
}

/// Goes before the head is written by whoever does not go on with a fold of it that was cut off: what the fold's target
/// holds is not what the head shows from then on, and the next epoch tells.
pub(super) fn disown(host: &Arc<dyn Host>, head: &Layer) -> Result<()> {
    // One that cannot be read is not gone on with.
    let Ok(Some(journal)) = Journal::find(host, &head.path) else { return Ok(()) };
    let ledger = Ledger::new(Arc::clone(host), None);
    let epoch = ledger.look(head.image.as_ref())?.layer.frozen.map(|record| record.epoch);
    let is_believed = journal.intent().region_bytes > 0 && epoch == journal.fold().head_epoch;
    if epoch.is_some() && Guard::HeadTaken.trips(is_believed) {
        ledger.thaw(head.image.as_ref(), Epoch::fresh())?;
    }
    Ok(())
}

fn witness(layer: &Layer) -> Result<Witness> {
    let files = layer.image.files();
    let file = files.first().ok_or_else(|| Error::invalid("an image without a file").path(&layer.path))?;
    file.witness()
}

/// Opens the parent that a layer names; `None` if it names none.
fn open_parent(
    host: &Arc<dyn Host>,
    child: &Layer,
    opening: &Opening,
    is_first: bool,
) -> Result<Option<Layer>> {
    let Some(parent) = child.image.parent() else { return Ok(None) };
    let format = match (&parent.format, opening.parent_format) {
        (Some(stated), _) => {
            Format::parse(stated).map_err(|e| e.doing("its parent's format").path(&child.path))?
        }
        (None, Some(format)) if is_first => format,
        (None, _) => {
            let name = String::from_utf8_lossy(&parent.name).into_owned();
            let what = format!("names the parent '{name}' {FORMAT_UNSTATED}");
            return Err(Error::policy(what).path(&child.path));
        }
    };
    let access = opening.parent_access();
    let (names, policy, budget) = (host.as_ref(), &opening.policy, &opening.budget);
    let (image, is_stated) = (&child.path, child.is_stated);
    let referrer = Referrer { host: names, image, is_stated, policy, access, budget };
    let (place, file) = referrer.open_parent(&parent).map_err(|e| missing(e, child))?;
    if format != Format::Raw && opening.noted(host, file.as_ref())? == Some(Format::Raw) {
        let what = format!(
            "names its parent {0} as {format}, which is known as raw (if that is wrong, `dchain id seal -f {format} \
             {0}` makes it known as {format})",
            place.display()
        );
        return Err(Error::policy(what).path(&child.path));
    }
    // Its references are judged as its child's were: a chain is as trustworthy as what names it.
    let opened = Opened { place, file, format, is_stated: child.is_stated };
    opened.into_layer(names, opening, access).map(Some)
}

fn missing(error: Error, child: &Layer) -> Error {
    match error.kind() {
        ErrorKind::NotFound => error.doing("its parent is missing").path(&child.path),
        _ => error,
    }
}
