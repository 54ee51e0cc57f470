//! Lost parents found again, and the links mended.
//!
//! A link is mended only where it is proven: by the epoch that the child claims, by the content ID that it claims
//! (hashed now unless a witness vouches for it), or, where the child claims nothing, by the caller's word. Of several files
//! with the claimed epoch one may have been written since by a program that leaves no trace: the content ID decides, if the
//! child claims one. Families are mended from the base up, so that a parent is itself whole before a child is put on it; one
//! that only shows the same is taken where the right one is there and cannot become whole. A parent in doubt whose bytes
//! still prove the content ID in its own record is believed again before another one is looked for.
//!
//! Nothing is mended around a job that was cut off: its layers are half changed, and it could not go on. What goes wrong with
//! one image is told of that one, and the others are mended all the same.

use super::{
    Progress, own,
    seal::{self, full_tree},
    verify,
};
use crate::{
    base::{Error, ErrorKind, GuestRange, Result},
    chain::{Chain, Family, Member, Opening, freeze, join, open_layer, refuse_cut_off, refuse_leased},
    content::ContentId,
    format::{Format, ParentName},
    io::{Access, Host},
    store::{Claim, Epoch, Ledger, Trust},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
/// A dry run takes a parent that is itself still to be mended at its record's word; the real one puts a child on it once
/// it is whole, and proves what has to be.
pub fn relink(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    request: &Request,
    (opening, is_dry): (&Opening, bool),
    progress: &Progress,
) -> Result<Report> {
    let opening = opening.clone().with_ledger(ledger.clone());
    let mut report = Report::default();
    let (mut shown, mut planned) = (BTreeMap::new(), BTreeSet::new());
    // What opens goes on doing so, whatever else is mended.
    let mut right = BTreeSet::new();
    let mut is_last_resort = false;
    loop {
        progress.checkpoint()?;
        let family = Family::scan(host.as_ref(), &request.folders)?;
        let records = Records::of(host, ledger, &family);
        let mut search = Search {
            host,
            ledger,
            family: &family,
            records,
            request,
            opening: &opening,
            progress,
            shown,
            planned,
            is_last_resort,
            has_waited: false,
            is_dry,
        };
        let before = (report.mended.len(), report.proved.len(), right.len());
        report.lost.clear();
        let children = family.members.iter().filter(|m| m.link.is_some());
        for child in children.filter(|child| !right.contains(&child.path)).collect::<Vec<_>>() {
            match search.look_after(child, &mut report) {
                Ok(Found::Right) => drop(right.insert(child.path.clone())),
                Ok(Found::Mended) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => report.lost.push((child.path.clone(), error.to_string())),
            }
        }
        (shown, planned) = (search.shown, search.planned);
        let after = (report.mended.len(), report.proved.len(), right.len());
        let is_over = before == after && (is_last_resort || !search.has_waited);
        if is_over || (is_dry && report.lost.is_empty()) {
            return Ok(report);
        }
        is_last_resort = before == after;
    }
}

/// What became of a child for the time being.
enum Found {
    /// It opens: or, in a dry run, would.
    Right,
    /// Something was done for it: whether it opens is seen the next time.
    Mended,
}

/// What the images say of themselves, by what is looked for: read once, however many children have lost their parent.
struct Records {
    by_epoch: HashMap<Epoch, Vec<usize>>,
    by_seal: BTreeMap<String, Vec<usize>>,
    /// Those without a content ID: any of them may show anything.
    unsealed: Vec<usize>,
    /// Files that no header tells of, and nobody names: they may be raw disks.
    plain: Vec<Member>,
}

impl Records {
    fn of(host: &Arc<dyn Host>, ledger: &Ledger, family: &Family) -> Self {
        let mut records = Self {
            by_epoch: HashMap::new(),
            by_seal: BTreeMap::new(),
            unsealed: Vec::new(),
            plain: family.plain.clone(),
        };
        for (at, member) in family.members.iter().chain(&family.plain).enumerate() {
            let how = Opening::reading().with_access(Access::ReadShared).with_format(Some(member.format));
            let opened = open_layer(host, &member.path, &how);
            // What cannot be read is nobody's parent.
            let Ok(known) = opened.and_then(|layer| ledger.look(layer.image.as_ref())) else { continue };
            let record = known.layer.frozen;
            if let Some(record) = record {
                records.by_epoch.entry(record.epoch).or_default().push(at);
            }
            match record.and_then(|record| record.sealed) {
                Some(id) => records.by_seal.entry(id.hex()).or_default().push(at),
                None => records.unsealed.push(at),
            }
        }
        records
    }
}

/// A look around in a family.
struct Search<'a> {
    host: &'a Arc<dyn Host>,
    ledger: &'a Ledger,
    family: &'a Family,
    records: Records,
    request: &'a Request,
    opening: &'a Opening,
    progress: &'a Progress,
    /// What was hashed, whichever child it was for.
    shown: BTreeMap<PathBuf, ContentId>,
    /// What a dry run counts on: these will be whole.
    planned: BTreeSet<PathBuf>,
    /// Whether nothing could be mended in the round before: a parent that has not become whole is not waited for any more.
    is_last_resort: bool,
    /// Whether one was waited for.
    has_waited: bool,
    is_dry: bool,
}

impl Search<'_> {
    fn reading(&self, member: &Member) -> Opening {
        let how = Opening { access: Access::Read, parent_format: None, ..self.opening.clone() };
        how.with_format(Some(member.format))
    }

    /// Mends the link of one child, or finds out that it is right; an error says why neither goes.
    fn look_after(&mut self, child: &Member, report: &mut Report) -> Result<Found> {
        let Err(refused) = Chain::open(self.host, &child.path, &self.reading(child)) else {
            return Ok(Found::Right);
        };
        if let Some(parent) = self.proved_parent(child, (&refused, &report.proved))? {
            report.proved.extend((!report.proved.contains(&parent)).then_some(parent));
            return Ok(if self.is_dry { Found::Right } else { Found::Mended });
        }
        let is_mended = report.mended.iter().any(|mended| mended.child == child.path);
        let (parent, why) = self.parent_of(child, (refused, is_mended))?;
        let own = child.link.as_ref().and_then(|link| link.witness);
        let is_its_own = own.is_some_and(|own| {
            parent.head().and_then(|h| self.host.witness(&h.path)).is_ok_and(|w| own.same_file(&w))
        });
        let mended = self.mend(child, &parent, why)?;
        if !self.is_dry {
            report.mended.push(mended);
            return Ok(Found::Mended);
        }
        self.planned.insert(child.path.clone());
        // One that is named already is right as soon as that one is mended.
        report.mended.extend((!is_its_own || why != Why::Epoch).then_some(mended));
        Ok(Found::Right)
    }

    /// Proves the parent that `child` has, if it is in doubt and was made with a content ID; returns it if that is, or in a
    /// dry run would be, what lets the child stand on it. What is among `proved` is not looked at again.
    fn proved_parent(
        &self,
        child: &Member,
        (refused, proved): (&Error, &[PathBuf]),
    ) -> Result<Option<PathBuf>> {
        let place = child.link.as_ref().and_then(|link| link.witness);
        let Some(parent) = place.and_then(|place| self.family.member(&place)) else { return Ok(None) };
        if proved.contains(&parent.path) {
            return Ok(self.is_dry.then(|| parent.path.clone()));
        }
        if refused.kind() != ErrorKind::Policy {
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
        if self.is_dry {
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

    /// Returns the parent that `child`, which was refused, should have; an error says why it was not found, or why a child
    /// that is mended still does not open: nothing would be new if it were mended again.
    fn parent_of(&mut self, child: &Member, (refused, is_mended): (Error, bool)) -> Result<(Chain, Why)> {
        let Some(link) = &child.link else { return Err(refused) };
        if is_mended || !matches!(refused.kind(), ErrorKind::NotFound | ErrorKind::Policy) {
            return Err(refused);
        }
        refuse_cut_off(self.ledger, &child.path)?;
        let layer = open_layer(self.host, &child.path, &self.reading(child))?;
        let known = self.ledger.look(layer.image.as_ref())?;
        let holds = |claim: &&Claim| claim.name == link.name.name && claim.format == link.name.format;
        match known.layer.claim.as_ref().filter(holds) {
            Some(claim) => self.by_claim(child, claim)?.ok_or(refused),
            None => self.by_word(&link.name)?.map(|chain| (chain, Why::Word)).ok_or(refused),
        }
    }

    /// Returns those of the images that are not the child itself: first those that it may lie on, as the policy has it, and of
    /// those the ones in its own folder.
    fn candidates(&self, child: &Member, numbers: Option<&Vec<usize>>) -> Vec<Member> {
        let member = |at: &usize| {
            let further = || self.records.plain.get(at.checked_sub(self.family.members.len())?);
            self.family.members.get(*at).or_else(further)
        };
        let found = numbers.into_iter().flatten().filter_map(member);
        let mut found: Vec<Member> =
            found.filter(|m| !m.witness.same_file(&child.witness)).cloned().collect();
        let folder = child.path.parent().unwrap_or(Path::new("/"));
        let allows = |place: &Path| self.opening.policy.allows(folder, place);
        found.sort_by_key(|other| (!allows(&other.path), other.path.parent() != Some(folder)));
        found
    }

    /// Looks for an image that carries the claimed epoch or is proven to show the claimed content.
    fn by_claim(&mut self, child: &Member, claim: &Claim) -> Result<Option<(Chain, Why)>> {
        let candidates = self.candidates(child, self.records.by_epoch.get(&claim.parent_epoch));
        if let Some(chain) = self.by_epoch(&candidates, claim)? {
            return Ok(Some((chain, Why::Epoch)));
        }
        // Its own parent may be found yet: one that shows the same is not the one that the child was made on.
        if !candidates.is_empty() && !self.is_last_resort {
            self.has_waited = true;
            return Ok(None);
        }
        let Some(wanted) = claim.parent_id else { return Ok(None) };
        let sealed = self.candidates(child, self.records.by_seal.get(&wanted.hex()));
        let unsealed = self.candidates(child, Some(&self.records.unsealed));
        for (candidate, is_sealed) in
            sealed.iter().map(|member| (member, true)).chain(unsealed.iter().map(|member| (member, false)))
        {
            // A file without a header is a raw disk only for those who say that their parent is one.
            let is_plain = self.records.plain.iter().any(|member| member.path == candidate.path);
            if is_plain && claim.format.as_deref() != Some(Format::Raw.name()) {
                continue;
            }
            if self.shown.get(&candidate.path).is_some_and(|id| *id != wanted) {
                continue;
            }
            let Ok(chain) = Chain::open(self.host, &candidate.path, &self.reading(candidate)) else {
                if is_sealed && self.planned.contains(&candidate.path) {
                    return Ok(Some((self.alone(candidate)?, Why::Content)));
                }
                continue;
            };
            if self.shows(&candidate.path, &chain)? == wanted {
                return Ok(Some((chain, Why::Content)));
            }
        }
        Ok(None)
    }

    /// Returns the one of several images that carry the claimed epoch which is proven to be the right one, or of those of which
    /// nothing more is claimed the one that is vouched for, or nearest to the child.
    fn by_epoch(&mut self, candidates: &[Member], claim: &Claim) -> Result<Option<Chain>> {
        let mut first = None;
        for candidate in candidates {
            let Ok(chain) = Chain::open(self.host, &candidate.path, &self.reading(candidate)) else {
                if self.planned.contains(&candidate.path) {
                    return self.alone(candidate).map(Some);
                }
                continue;
            };
            let trust = chain.standings().first().map_or(Trust::Unknown, |standing| standing.known.trust);
            let is_right = match (trust, claim.parent_id) {
                (Trust::Doubted(_) | Trust::Unknown, _) => continue,
                (Trust::Claimed, _) if candidates.len() == 1 => true,
                (Trust::Claimed, Some(wanted)) => self.shows(&candidate.path, &chain)? == wanted,
                (Trust::Claimed, None) => false,
                (Trust::Trusted, _) => true,
            };
            if is_right {
                return Ok(Some(chain));
            }
            first = first.or_else(|| claim.parent_id.is_none().then_some(chain));
        }
        Ok(first)
    }

    /// An image whose own parent is not there yet: enough to be named.
    fn alone(&self, member: &Member) -> Result<Chain> {
        let layer = open_layer(self.host, &member.path, &self.reading(member))?;
        Ok(Chain::of(vec![layer], false))
    }

    /// Returns what a chain shows for certain: by its witness, or by hashing it, once.
    fn shows(&mut self, path: &Path, chain: &Chain) -> Result<ContentId> {
        if let Some(id) = chain.standings().first().and_then(|standing| standing.known.proven()) {
            return Ok(id);
        }
        if let Some(id) = self.shown.get(path) {
            return Ok(*id);
        }
        let id = full_tree(&chain.view(0), self.progress)?.tree.id();
        self.shown.insert(path.to_path_buf(), id);
        Ok(id)
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
    fn mend(&self, child: &Member, parent: &Chain, why: Why) -> Result<Mended> {
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
        if !self.is_dry {
            let writing = self.reading(child).with_access(Access::Write);
            let layer = open_layer(self.host, &child.path, &writing)?;
            refuse_leased(self.host.as_ref(), std::slice::from_ref(&layer))?;
            if own::is_void(self.ledger, self.family, &layer)? {
                self.ledger.release(layer.image.as_ref())?;
            }
            // First: what cannot be a parent is not named as one.
            let known = freeze(self.ledger, parent.layers())?;
            // The view stays what it is: a frozen child is as trusted afterwards as it was.
            self.ledger.tend(layer.image.as_ref(), || layer.image.set_parent(Some(&link)))?;
            if let Some(known) = known {
                join(self.ledger, layer.image.as_ref(), (target.image.as_ref(), &known))?;
            }
        }
        Ok(mended)
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
    // First: whoever opens it for writing takes it from the job.
    refuse_cut_off(ledger, &host.canonical(child)?)?;
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

#[cfg(test)]
mod tests;
