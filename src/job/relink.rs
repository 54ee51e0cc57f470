//! Lost parents found again, and the links mended.
//!
//! A link is mended only where it is proven: by the epoch that the child claims, by the content ID that it claims
//! (hashed now unless a witness vouches for it), or, where the child claims nothing, by the caller's word. Families
//! are mended from the base up, so that a parent is itself whole before a child is put on it. A parent in doubt whose
//! bytes still prove the content ID in its own record is believed again before another one is looked for.

use super::{
    Progress,
    seal::{self, full_tree},
    verify,
};
use crate::{
    base::{Error, ErrorKind, GuestRange, Result},
    chain::{Chain, Family, Layer, Member, Opening, freeze, join, open_layer},
    format::ParentName,
    io::{Access, Host},
    store::{Claim, Ledger, Trust},
};
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Folders whose images are looked at.
    pub folders: Vec<PathBuf>,
    /// The caller's word where a child claims nothing: the parent that a header calls by the first name (or whose
    /// last part is that) is the second.
    pub map: Vec<(PathBuf, PathBuf)>,
}

/// Why a file is taken for the lost parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It carries the epoch that the child was made on.
    Epoch,
    /// It shows what the child was made on.
    Content,
    /// The caller says so, and the child says nothing against it.
    Word,
}

/// A link that is mended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mended {
    /// The child.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub child: PathBuf,
    /// The parent's name in its header before.
    pub was: String,
    /// The parent.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub parent: PathBuf,
    /// Its name in the header then.
    pub name: String,
    /// Why it is the one.
    pub why: Why,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Parents that were in doubt, and show what their records say: they are believed again (or would be).
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub proved: Vec<PathBuf>,
    /// Links that were wrong and are right now (or would be, if nothing was to be written).
    pub mended: Vec<Mended>,
    /// Children whose parent was not found, with the reason.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub lost: Vec<(PathBuf, String)>,
}

/// Mends the links of the images in `request.folders`; writes nothing if `is_dry`.
///
/// A dry run cannot put a child on a parent that is itself still to be mended: it says less than the real one
/// will do.
pub fn relink(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    request: &Request,
    (opening, is_dry): (&Opening, bool),
    progress: &Progress,
) -> Result<Report> {
    let opening = opening.clone().with_ledger(ledger.clone());
    let mut report = Report::default();
    loop {
        progress.checkpoint()?;
        let family = Family::scan(host.as_ref(), &request.folders)?;
        let search = Search { host, ledger, family: &family, request, opening: &opening, progress };
        let (mut found, mut lost, before) = (Vec::new(), Vec::new(), report.proved.len());
        for child in family.members.iter().filter(|m| m.link.is_some()) {
            if let Some(parent) = search.proved_parent(child, (&report.proved, is_dry))? {
                report.proved.extend((!report.proved.contains(&parent)).then_some(parent));
                continue;
            }
            let is_mended = report.mended.iter().any(|mended| mended.child == child.path);
            match search.parent_of(child, is_mended) {
                Ok(Some(parent)) => found.push((child, parent)),
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
                Err(e) => lost.push((child.path.clone(), e.to_string())),
            }
        }
        report.lost = lost;
        let is_last = is_dry || (found.is_empty() && report.proved.len() == before);
        for (child, (parent, why)) in found {
            report.mended.push(search.mend(child, &parent, why, is_dry)?);
        }
        if is_last {
            return Ok(report);
        }
    }
}

/// A look around in a family.
struct Search<'a> {
    host: &'a Arc<dyn Host>,
    ledger: &'a Ledger,
    family: &'a Family,
    request: &'a Request,
    opening: &'a Opening,
    progress: &'a Progress,
}

impl Search<'_> {
    fn reading(&self, member: &Member) -> Opening {
        let how = Opening { access: Access::Read, parent_format: None, ..self.opening.clone() };
        how.with_format(Some(member.format))
    }

    /// Proves the parent that `child` has, if it is in doubt and was made with a content ID; returns it if that is, or in a
    /// dry run would be, what lets the child stand on it. What is among `proved` is not looked at again.
    fn proved_parent(&self, child: &Member, (proved, is_dry): (&[PathBuf], bool)) -> Result<Option<PathBuf>> {
        let place = child.link.as_ref().and_then(|link| link.witness);
        let Some(parent) = place.and_then(|place| self.family.member(&place)) else { return Ok(None) };
        if proved.contains(&parent.path) {
            return Ok(is_dry.then(|| parent.path.clone()));
        }
        let refused = Chain::open(self.host, &child.path, &self.reading(child)).map(drop).err();
        if refused.is_none_or(|error| error.kind() != ErrorKind::Policy) {
            return Ok(None);
        }
        let opening = Opening { ledger: None, ..self.reading(parent) };
        let Ok(chain) = Chain::open(self.host, &parent.path, &opening) else { return Ok(None) };
        let known = self.ledger.look(chain.head()?.image.as_ref())?;
        let epoch = known.layer.frozen.map(|record| record.epoch);
        let Some(sealed) = known.layer.frozen.and_then(|record| record.sealed) else { return Ok(None) };
        let layer = open_layer(self.host, &child.path, &self.reading(child))?;
        let claim = self.ledger.look(layer.image.as_ref())?.layer.claim;
        let is_claimed = claim.is_some_and(|claim| Some(claim.parent_epoch) == epoch);
        if !is_claimed || !matches!(known.trust, Trust::Doubted(_)) {
            return Ok(None);
        }
        if is_dry {
            let is_same = full_tree(&chain.view(0), self.progress)?.tree.id() == sealed;
            return Ok(is_same.then(|| parent.path.clone()));
        }
        drop((layer, chain));
        let layers = seal::open_layers(self.host, &parent.path, &opening)?;
        match seal::prove(self.ledger, &layers, self.progress) {
            Ok(_) => Ok(Some(parent.path.clone())),
            Err(e) if e.kind() == ErrorKind::Interrupted => Err(e),
            // It shows something else, or cannot be read as a whole.
            Err(_) => Ok(None),
        }
    }

    /// Returns the parent that `child` should have, `None` if it has it; an error says why it was not found, or why a
    /// child that is mended still does not open: nothing would be new if it were mended again.
    fn parent_of(&self, child: &Member, is_mended: bool) -> Result<Option<(Chain, Why)>> {
        let Some(link) = &child.link else { return Ok(None) };
        let Err(refused) = Chain::open(self.host, &child.path, &self.reading(child)) else { return Ok(None) };
        if is_mended || !matches!(refused.kind(), ErrorKind::NotFound | ErrorKind::Policy) {
            return Err(refused);
        }
        let layer = open_layer(self.host, &child.path, &self.reading(child))?;
        let known = self.ledger.look(layer.image.as_ref())?;
        let holds = |claim: &&Claim| claim.name == link.name.name && claim.format == link.name.format;
        match known.layer.claim.as_ref().filter(holds) {
            Some(claim) => self.by_claim(child, claim)?.map(Some).ok_or(refused),
            None => self.by_word(&link.name)?.map(|chain| Some((chain, Why::Word))).ok_or(refused),
        }
    }

    /// Looks for an image that carries the claimed epoch or is proven to show the claimed content.
    fn by_claim(&self, child: &Member, claim: &Claim) -> Result<Option<(Chain, Why)>> {
        let others = || self.family.members.iter().filter(|m| !m.witness.same_file(&child.witness));
        for candidate in others() {
            let Ok(chain) = Chain::open(self.host, &candidate.path, &self.reading(candidate)) else {
                continue;
            };
            let Some(known) = chain.standings().first().map(|s| &s.known) else { continue };
            let record = known.layer.frozen;
            let is_epoch = record.is_some_and(|r| r.epoch == claim.parent_epoch);
            if is_epoch && !matches!(known.trust, Trust::Doubted(_)) {
                return Ok(Some((chain, Why::Epoch)));
            }
        }
        let Some(wanted) = claim.parent_id else { return Ok(None) };
        for candidate in others() {
            let Ok(chain) = Chain::open(self.host, &candidate.path, &self.reading(candidate)) else {
                continue;
            };
            let known = chain.standings().first().map(|s| &s.known);
            let sealed = known.and_then(|k| k.layer.frozen).and_then(|record| record.sealed);
            let proven = known.and_then(crate::store::Known::proven);
            let shows = match (proven, sealed) {
                (Some(id), _) => id == wanted,
                (None, Some(other)) if other != wanted => false,
                _ => full_tree(&chain.view(0), self.progress)?.tree.id() == wanted,
            };
            if shows {
                return Ok(Some((chain, Why::Content)));
            }
        }
        Ok(None)
    }

    /// Looks up what the caller said of that name.
    fn by_word(&self, name: &ParentName) -> Result<Option<Chain>> {
        let called = Path::new(std::ffi::OsStr::from_bytes(&name.name));
        let bare = |name: &'_ Path| name.strip_prefix(".").unwrap_or(name).to_path_buf();
        let is_meant =
            |old: &Path| bare(old) == bare(called) || Some(bare(old).as_os_str()) == called.file_name();
        let Some((_, new)) = self.request.map.iter().find(|(old, _)| is_meant(old)) else { return Ok(None) };
        let file = self.host.witness(new)?;
        let outside = || Error::invalid("is not among the images looked at").path(new);
        let member = self.family.member(&file).ok_or_else(outside)?;
        Chain::open(self.host, &member.path, &self.reading(member)).map(Some)
    }

    /// Puts `child` on `parent`.
    fn mend(&self, child: &Member, parent: &Chain, why: Why, is_dry: bool) -> Result<Mended> {
        let target = parent.head()?;
        let folder = child.path.parent().unwrap_or(Path::new("/"));
        let link = target.name_in(folder);
        let was = child.link.as_ref().map(|l| String::from_utf8_lossy(&l.name.name).into_owned());
        let mended = Mended {
            child: child.path.clone(),
            was: was.unwrap_or_default(),
            parent: target.path.clone(),
            name: String::from_utf8_lossy(&link.name).into_owned(),
            why,
        };
        if !is_dry {
            let writing = self.reading(child).with_access(Access::Write);
            let layer = open_layer(self.host, &child.path, &writing)?;
            // The view stays what it is: a frozen child is as trusted afterwards as it was.
            self.ledger.tend(layer.image.as_ref(), || layer.image.set_parent(Some(&link)))?;
            self.join(&layer, parent)?;
        }
        Ok(mended)
    }

    fn join(&self, child: &Layer, parent: &Chain) -> Result<()> {
        if let Some(known) = freeze(self.ledger, parent.layers())? {
            join(self.ledger, child.image.as_ref(), (parent.head()?.image.as_ref(), &known))?;
        }
        Ok(())
    }
}

/// What accepting a parent as it is means.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Accepted {
    /// The child.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub child: PathBuf,
    /// Its parent, taken as it is.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub parent: PathBuf,
    /// What reads differently below the child now (start and length in bytes); `None` where nothing is known of
    /// what was there.
    pub changed: Option<Vec<(u64, u64)>>,
}

/// Takes the parent of the image at `child` as it is now; writes nothing if `is_dry`.
pub fn accept(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    child: &Path,
    (opening, is_dry): (&Opening, bool),
    progress: &Progress,
) -> Result<Accepted> {
    // Without the ledger: what it would refuse is what is to be accepted.
    let how = Opening { access: Access::Write, ledger: None, ..opening.clone() };
    let chain = Chain::open(host, child, &how)?;
    let head = chain.head()?;
    let Some(parent) = chain.layers().get(1) else {
        return Err(Error::invalid("has no parent to accept").path(&head.path));
    };
    let claim = ledger.look(head.image.as_ref())?.layer.claim;
    let changed = match claim.and_then(|claim| claim.parent_id) {
        Some(id) => verify::changed(ledger, head.image.as_ref(), &id, &chain.view(1), progress)?,
        None => None,
    };
    let changed = changed.as_deref().map(ranges);
    if !is_dry && let Some(known) = freeze(ledger, chain.layers().get(1..).unwrap_or_default())? {
        join(ledger, head.image.as_ref(), (parent.image.as_ref(), &known))?;
    }
    Ok(Accepted { child: head.path.clone(), parent: parent.path.clone(), changed })
}

fn ranges(of: &[GuestRange]) -> Vec<(u64, u64)> {
    of.iter().map(|range| (range.start.bytes(), range.bytes)).collect()
}
