//! Which images of a folder show a content ID.
//!
//! In a folder of few images each is asked. Where there are many, the folder's [`Index`] says which to ask; it is believed
//! when it says "none" only while nothing can have got an ID since, as far as it can tell. What follows from an offer is
//! decided from the image's own record, and its witness or its bytes, as if there were no index.

use crate::{
    base::{Error, Result},
    chain::{Chain, Family, Opening, member, open_layer},
    content::{ContentId, IdPrefix},
    format::Format,
    io::{Access, Host},
    store::{Index, Ledger, Trust},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Folders of so many names and more have an index.
const MANY: usize = 256;

/// An image that says which content it shows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Found {
    /// Where it is.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub path: PathBuf,
    /// What it says that it shows.
    pub id: ContentId,
    /// How far that can be believed without reading it.
    #[serde(flatten)]
    pub trust: Trust,
}

/// Returns the images of a folder whose content ID starts with `prefix`, sorted by name; nothing is hashed or locked.
///
/// `NotFound` if there is none, `Invalid` if they have several IDs.
pub fn find(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    folder: &Path,
    prefix: &IdPrefix,
    opening: &Opening,
) -> Result<Vec<Found>> {
    let folder = host.canonical(folder)?;
    let mut found = Vec::new();
    for (id, path) in Offers::of(host, ledger, &folder, opening)?.all(prefix)? {
        let Ok(offer) = Offer::at(host, &path) else { continue };
        let how = Opening { access: Access::ReadShared, ..opening.clone() }.with_ledger(ledger.clone());
        let Ok(chain) = Chain::open(host, &offer.path, &how.with_format(Some(offer.format))) else {
            continue;
        };
        let known = chain.standings().first().map(|standing| &standing.known);
        if let Some(known) = known.filter(|known| known.sealed() == Some(id)) {
            found.push(Found { path: offer.path, id, trust: known.trust });
        }
    }
    let id = prefix.resolve(found.iter().map(|found| found.id)).map_err(|e| e.path(&folder))?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.retain(|found| found.id == id);
    Ok(found)
}

/// An image that is to be asked.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) path: PathBuf,
    pub(super) format: Format,
}

impl Offer {
    /// Looks at the image that an index names.
    fn at(host: &Arc<dyn Host>, path: &Path) -> Result<Self> {
        let member = member(host.as_ref(), path)?;
        Ok(Self { path: member.path, format: member.format })
    }
}

/// The images of a folder that say which content they show. Nothing is believed yet.
#[derive(Debug)]
pub(super) struct Offers {
    host: Arc<dyn Host>,
    ledger: Ledger,
    opening: Opening,
    folder: PathBuf,
    from: From,
}

/// Where offers come from.
#[derive(Debug)]
enum From {
    /// Whoever wants one asks the index, which may lack the newest.
    Index(Index),
    /// All of the folder were looked at: sorted by ID, then by path, so that a choice among several is the same each time.
    All(Vec<(ContentId, PathBuf)>),
}

impl Offers {
    /// Looks at the images in `folder`, a whole path without links, if they are few.
    pub(super) fn of(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        folder: &Path,
        opening: &Opening,
    ) -> Result<Self> {
        let index = ledger.index(folder);
        let is_large = index.is_there() || host.list(folder)?.len() >= MANY;
        let (host, ledger, opening) = (Arc::clone(host), ledger.clone(), opening.clone());
        let mut offers =
            Self { host, ledger, opening, folder: folder.to_path_buf(), from: From::Index(index) };
        if !is_large {
            offers.from = From::All(sorted(offers.each()?));
        }
        Ok(offers)
    }

    /// Returns whether there are none.
    pub(super) fn is_empty(&mut self) -> Result<bool> {
        let any = |index: &Index| index.offers(&ContentId::new([0; 32]), &|_| true, 1);
        match &self.from {
            From::Index(index) if any(index).is_some_and(|any| !any.is_empty()) => Ok(false),
            _ => Ok(self.complete()?.is_empty()),
        }
    }

    /// Returns what `wanted` makes of the first image that says `id` and of which it makes something.
    pub(super) fn first<T>(
        &mut self,
        id: ContentId,
        wanted: &dyn Fn(&Offer) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let known = match &self.from {
            From::Index(index) => index.offers(&id, &|other| *other == id, usize::MAX).unwrap_or_default(),
            From::All(_) => Vec::new(),
        };
        if let Some(first) = self.first_of(&known, id, wanted)? {
            return Ok(Some(first));
        }
        if matches!(&self.from, From::Index(index) if index.is_fresh()) {
            return Ok(None);
        }
        let all = self.complete()?.to_vec();
        self.first_of(&all, id, wanted)
    }

    fn first_of<T>(
        &self,
        offers: &[(ContentId, PathBuf)],
        id: ContentId,
        wanted: &dyn Fn(&Offer) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        for (_, path) in offers.iter().filter(|(other, _)| *other == id) {
            let Ok(offer) = Offer::at(&self.host, path) else { continue };
            if let Some(first) = wanted(&offer)? {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }

    /// Returns all images whose IDs start so.
    fn all(&mut self, prefix: &IdPrefix) -> Result<Vec<(ContentId, PathBuf)>> {
        if let From::Index(index) = &self.from
            && index.is_fresh()
            && let Some(known) = index.offers(&prefix.first(), &|id| prefix.matches(id), usize::MAX)
        {
            return Ok(known);
        }
        Ok(self.complete()?.iter().filter(|(id, _)| prefix.matches(id)).cloned().collect())
    }

    /// Returns all that there are, after a look at each image that was changed since the last.
    pub(super) fn complete(&mut self) -> Result<&[(ContentId, PathBuf)]> {
        if let From::Index(index) = &self.from {
            let id = |path: &Path| self.id(path);
            self.from = From::All(sorted(index.refresh(&id)?));
        }
        match &self.from {
            From::All(all) => Ok(all),
            From::Index(_) => Err(Error::invalid("the images of a folder were not looked at")),
        }
    }

    /// Asks each image.
    fn each(&self) -> Result<Vec<(ContentId, PathBuf)>> {
        let family = Family::scan(self.host.as_ref(), std::slice::from_ref(&self.folder))?;
        let mut offers = Vec::new();
        for member in family.members {
            if let Some(id) = self.id_of(&member.path, member.format)? {
                offers.push((id, member.path));
            }
        }
        Ok(offers)
    }

    /// Returns what the image at `path` says that it shows.
    fn id(&self, path: &Path) -> Result<Option<ContentId>> {
        let member = member(self.host.as_ref(), path)?;
        self.id_of(&member.path, member.format)
    }

    fn id_of(&self, path: &Path, format: Format) -> Result<Option<ContentId>> {
        let how = Opening { access: Access::ReadShared, ..self.opening.clone() }.with_format(Some(format));
        // What cannot be opened offers nothing.
        let Ok(layer) = open_layer(&self.host, path, &how) else { return Ok(None) };
        Ok(self.ledger.look(layer.image.as_ref())?.sealed())
    }
}

fn sorted(mut offers: Vec<(ContentId, PathBuf)>) -> Vec<(ContentId, PathBuf)> {
    offers.sort();
    offers
}

#[cfg(test)]
mod tests;
