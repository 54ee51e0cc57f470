//! What is wrong, or at risk, in folders of images; and what folding their chains would cost and give back.
//!
//! Nothing is written or locked, so that it can look at folders whose disks are running. Every image is opened
//! once, and once more if it could be folded away: the work grows with the number of images and with their tables.

mod costs;
mod links;
#[cfg(test)]
mod tests;

pub use costs::{Foldable, Rate};

use crate::{
    base::{ErrorKind, Result},
    chain::{Family, Layer, Member, Opening, Standing, is_plain, open_layer},
    io::{Access, Host, is_marked_read_only},
    store::{Arrival, Draft, FOLDER, FoldMode, Journal, Known, Ledger, Trust},
};
use links::Links;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The folders to look at (not the folders inside them).
    pub folders: Vec<PathBuf>,
    /// How many layers a chain may have.
    pub depth_max: usize,
    /// Bytes per second that a fold is taken to copy; `None`: measured by reading for a moment.
    pub rate: Option<u64>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Worth knowing.
    Note,
    /// Something can go wrong.
    Warning,
    /// Something is wrong: a disk does not open, or not as it should.
    Error,
}

/// What is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing is where the parent should be.
    MissingParent,
    /// The parents come back to the layer itself.
    Cycle,
    /// The parent is not what the layer was made on.
    ChangedParent,
    /// The parent's format is not stated, so that the parent is not opened.
    UnstatedFormat,
    /// It has an image's header and cannot be read.
    Unreadable,
    /// A consolidation or a copy was cut off, or is under way.
    InterruptedJob,
    /// It refers to something outside the folders, or that is no file.
    ForeignReference,
    /// A layer that several images lie on, and that can be written.
    SiblingsAtRisk,
    /// The chain is longer than is wanted.
    LongChain,
    /// A bitmap missed writes (or a program that runs has it in memory).
    StaleBitmap,
    /// Another image has the same content ID.
    Duplicate,
    /// A layer that something was made on, and nothing here lies on any more.
    Orphan,
    /// A layer that others lie on and that has no content ID.
    Unsealed,
    /// A file in the making that was left behind.
    LeftOver,
}

impl Kind {
    /// Returns how much it matters.
    pub const fn grade(self) -> Grade {
        match self {
            Self::MissingParent
            | Self::Cycle
            | Self::ChangedParent
            | Self::UnstatedFormat
            | Self::Unreadable
            | Self::InterruptedJob => Grade::Error,
            Self::ForeignReference | Self::SiblingsAtRisk | Self::LongChain | Self::StaleBitmap => {
                Grade::Warning
            }
            Self::Duplicate | Self::Orphan | Self::Unsealed | Self::LeftOver => Grade::Note,
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// How much it matters.
    pub grade: Grade,
    /// The file that it is about.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Further files that have to do with it.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub about: Vec<PathBuf>,
    /// The same in words, as a phrase that can follow `FILE: `.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The folders, without links.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub looked_in: Vec<PathBuf>,
    /// How many images there are.
    pub images: usize,
    /// What was found, what matters most first.
    pub findings: Vec<Finding>,
    /// The chains that could be folded, what gives back most first.
    pub foldable: Vec<Foldable>,
    /// Space that folding all of them would give back, in bytes.
    pub gives_back_bytes: u64,
    /// What the times of folds are reckoned with; `None` where there is nothing to fold.
    pub rate: Option<Rate>,
}

impl Report {
    /// Returns whether something is wrong, and not only worth knowing or at risk.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.grade == Grade::Error)
    }
}

/// Looks at all images of some folders.
///
/// Fails if a folder cannot be read; what is wrong with an image is a finding.
pub fn lint(host: &Arc<dyn Host>, ledger: &Ledger, request: &Request) -> Result<Report> {
    let family = Family::scan(host.as_ref(), &request.folders)?;
    let links = Links::new(&family);
    let mut look = Look { host, ledger, family: &family, links, findings: Vec::new(), jobs: BTreeSet::new() };
    look.look_at_jobs();
    look.look_at_links(request.depth_max);
    look.look_at_layers();
    let (foldable, rate) = look.foldable(request.rate);
    let mut findings = look.findings;
    findings.sort_by(|a, b| (b.grade, a.kind, &a.image).cmp(&(a.grade, b.kind, &b.image)));
    Ok(Report {
        images: family.members.len(),
        gives_back_bytes: foldable.iter().map(|chain| chain.gives_back_bytes).sum(),
        looked_in: family.folders,
        findings,
        foldable,
        rate,
    })
}

/// A look under way.
struct Look<'a> {
    host: &'a Arc<dyn Host>,
    ledger: &'a Ledger,
    family: &'a Family,
    links: Links,
    findings: Vec<Finding>,
    /// The images that jobs name which were cut off.
    jobs: BTreeSet<PathBuf>,
}

impl Look<'_> {
    fn find(&mut self, kind: Kind, image: &Path, about: Vec<PathBuf>, what: impl Into<String>) {
        let (image, what) = (image.to_path_buf(), what.into());
        self.findings.push(Finding { kind, grade: kind.grade(), image, about, what });
    }

    fn look_at_jobs(&mut self) {
        for folder in self.family.folders.clone() {
            if let Err(error) = self.look_at_jobs_in(&folder) {
                self.find(Kind::Unreadable, &folder.join(FOLDER), Vec::new(), error.to_string());
            }
        }
    }

    fn look_at_jobs_in(&mut self, folder: &Path) -> Result<()> {
        let mut drafts = BTreeSet::new();
        for (path, journal) in Journal::all(self.host, folder)? {
            match journal {
                Ok(journal) => drafts.extend(self.look_at_journal(&journal)),
                Err(error) => self.find(Kind::InterruptedJob, &path, Vec::new(), error.what()),
            }
        }
        // One that is damaged says nothing of a draft: that is a leftover then.
        for arrival in Arrival::all(self.host.as_ref(), folder).unwrap_or_default() {
            drafts.extend(self.look_at_arrival(folder, &arrival)?);
        }
        let notes = self.names(&folder.join(FOLDER))?;
        let is_copy = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("copy-") && path.extension().is_some_and(|e| e == "json")
        };
        let copies: Vec<PathBuf> = notes.into_iter().filter(is_copy).collect();
        for note in &copies {
            let what = "a copy to this folder is under way or was cut off: `dchain copy` goes on";
            self.find(Kind::InterruptedJob, note, Vec::new(), what);
        }
        for path in self.names(folder)?.into_iter().filter(|path| Draft::is_left_over(path)) {
            if !drafts.contains(&path) && copies.is_empty() {
                let what = "was left behind by a program that was cut off";
                self.find(Kind::LeftOver, &path, Vec::new(), what);
            }
        }
        Ok(())
    }

    /// Returns the image in the making of a layer that comes from elsewhere; one that has its name already has none.
    fn look_at_arrival(&mut self, folder: &Path, arrival: &Arrival) -> Result<Option<PathBuf>> {
        let draft = folder.join(&arrival.temporary.0);
        if self.host.kind(&draft)?.is_none() {
            return Ok(None);
        }
        let what = format!(
            "arrives from elsewhere or was cut off, at guest byte {}: the same copy or stream again goes on",
            arrival.done_bytes
        );
        self.find(Kind::InterruptedJob, &folder.join(&arrival.name.0), Vec::new(), what);
        Ok(Some(draft))
    }

    fn names(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        match self.host.list(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            entries => Ok(entries?.into_iter().map(|entry| entry.path).collect()),
        }
    }

    /// Returns the image in the making that the job names.
    fn look_at_journal(&mut self, journal: &Journal) -> Option<PathBuf> {
        let fold = journal.fold();
        let layers: Vec<PathBuf> = fold.layers.iter().map(|name| journal.place(name)).collect();
        let top = journal.find_top().ok().flatten().or_else(|| layers.first().cloned()).unwrap_or_default();
        let done = journal.position().mark.bytes().min(fold.size);
        let (what, goes_on) = match fold.mode {
            FoldMode::Move => ("migrate", "the daemon that serves it".to_owned()),
            _ => ("consolidation", format!("`dchain consolidate {}`", top.display())),
        };
        let what = format!(
            "a {what} of it is under way or was cut off, at guest byte {done} of {}: {goes_on} goes on, `dchain \
             consolidate --abandon {}` gives it up",
            fold.size,
            journal.path().display()
        );
        self.jobs.extend(layers.iter().cloned().chain([top.clone()]));
        self.find(Kind::InterruptedJob, &top, layers.into_iter().skip(1).collect(), what);
        fold.draft.as_deref().map(|draft| journal.place(draft))
    }

    fn look_at_links(&mut self, depth_max: usize) {
        for (path, error) in &self.family.unreadable {
            let finding = (Kind::Unreadable, path.clone(), error.to_string());
            self.find(finding.0, &finding.1, Vec::new(), finding.2);
        }
        for (at, member) in self.family.members.iter().enumerate() {
            self.look_at_link(member);
            if let Some(ring) = self.links.ring_of(at) {
                let ring: Vec<PathBuf> = ring.into_iter().filter_map(|at| self.path(at)).collect();
                let what = "its parents come back to itself: nothing of this opens";
                self.find(Kind::Cycle, &member.path, ring, what);
            }
            let depth = self.links.depth(at);
            if depth > depth_max && self.links.children(at).is_empty() {
                let what = format!("has {depth} layers; {depth_max} are wanted at most");
                self.find(Kind::LongChain, &member.path, Vec::new(), what);
            }
        }
    }

    fn path(&self, at: usize) -> Option<PathBuf> {
        self.family.members.get(at).map(|member| member.path.clone())
    }

    fn look_at_link(&mut self, member: &Member) {
        let Some(link) = &member.link else { return };
        let name: String =
            String::from_utf8_lossy(&link.name.name).chars().flat_map(char::escape_debug).collect();
        let is_inside = |place: &PathBuf| self.family.folders.iter().any(|folder| place.starts_with(folder));
        match (&link.place, &link.witness) {
            (Some(place), Some(_)) if is_inside(place) => {}
            (Some(place), Some(_)) => {
                let what = format!("lies on '{name}', outside the folders that were looked at");
                self.find(Kind::ForeignReference, &member.path, vec![place.clone()], what);
            }
            (None, Some(_)) => {
                let what = format!("names its parent in a way that is not followed: '{name}'");
                self.find(Kind::ForeignReference, &member.path, Vec::new(), what);
            }
            (_, None) if is_plain(&link.name.name) => {
                let what =
                    format!("nothing is where its parent should be, '{name}'; `dchain relink` may find it");
                self.find(Kind::MissingParent, &member.path, Vec::new(), what);
            }
            (_, None) => {
                let what = format!("refers to '{name}', which is no plain file name");
                self.find(Kind::ForeignReference, &member.path, Vec::new(), what);
            }
        }
        if link.name.format.is_none() {
            let what = format!(
                "names the parent '{name}' without stating its format: qemu guesses, `dchain relink --map` \
                         states it"
            );
            self.find(Kind::UnstatedFormat, &member.path, Vec::new(), what);
        }
    }

    /// Opens each layer, parents before children, and looks at what it and the records say.
    fn look_at_layers(&mut self) {
        let mut known: BTreeMap<usize, Known> = BTreeMap::new();
        let mut sealed: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for at in self.links.parents_first() {
            let Some(member) = self.family.members.get(at) else { continue };
            let looked = self.open(member).and_then(|layer| {
                let stale = layer.image.details()?.bitmaps.into_iter().filter(|b| b.is_in_use);
                let stale: Vec<String> = stale.map(|bitmap| bitmap.name).collect();
                Ok((self.ledger.look(layer.image.as_ref())?, stale, layer))
            });
            let (own, stale, layer) = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    let is_foreign = error.kind() == ErrorKind::Policy;
                    let kind = if is_foreign { Kind::ForeignReference } else { Kind::Unreadable };
                    self.find(kind, &member.path, Vec::new(), error.to_string());
                    continue;
                }
            };
            for name in stale {
                let what =
                    format!("bitmap '{name}' missed writes, unless a program that runs has it in memory");
                self.find(Kind::StaleBitmap, &member.path, Vec::new(), what);
            }
            self.look_at_dependants(at, &layer, &own);
            let id = |known: &Known| known.layer.frozen.and_then(|record| record.sealed);
            let below = self.links.parent(at).and_then(|parent| id(known.get(&parent)?));
            let is_told = !matches!(own.trust, Trust::Doubted(_));
            // A child that holds nothing yet is no copy of its parent.
            if let Some(id) = id(&own).filter(|id| is_told && Some(*id) != below) {
                sealed.entry(id.to_string()).or_default().push(member.path.clone());
            }
            let parent =
                self.links.parent(at).and_then(|parent| Some((self.path(parent)?, known.get(&parent)?)));
            let standing = match &parent {
                Some((_, parent)) => Standing::on(&layer, own, parent, None),
                None => Standing { known: own, on_parent: None },
            };
            if let (Some((parent, _)), Some(refusal)) = (&parent, standing.refusal())
                && !(self.jobs.contains(parent) && self.jobs.contains(&member.path))
            {
                let what = refusal.error(&member.path, parent);
                let about = vec![parent.clone()];
                self.find(Kind::ChangedParent, &member.path, about, what.what());
            }
            known.insert(at, standing.known);
        }
        for (id, paths) in &sealed {
            self.look_at_duplicates(id, paths);
        }
    }

    /// The first of those that show the same names all others, and they name it: among very many, were each to name all,
    /// the report would be longer than the images.
    fn look_at_duplicates(&mut self, id: &str, paths: &[PathBuf]) {
        let Some((first, others)) = paths.split_first().filter(|(_, others)| !others.is_empty()) else {
            return;
        };
        let short: String = id.chars().take(15).collect();
        let what = format!("shows the same as others, {short}");
        self.find(Kind::Duplicate, first, others.to_vec(), what.clone());
        for path in others {
            self.find(Kind::Duplicate, path, vec![first.clone()], what.clone());
        }
    }

    fn open(&self, member: &Member) -> Result<Layer> {
        let opening = Opening::reading().with_access(Access::ReadShared).with_format(Some(member.format));
        open_layer(self.host, &member.path, &opening)
    }

    /// Looks at what others that lie on a layer, or do not, mean for it.
    fn look_at_dependants(&mut self, at: usize, layer: &Layer, own: &Known) {
        let mut children: Vec<PathBuf> =
            self.links.children(at).iter().filter_map(|at| self.path(*at)).collect();
        if let Some(member) = self.family.members.get(at) {
            children.extend(self.family.children_elsewhere(member.witness).map(|child| child.path.clone()));
        }
        let path = &layer.path;
        let is_free = |layer: &Layer| !layer.image.files().iter().any(|f| is_marked_read_only(f.as_ref()));
        let record = own.layer.frozen;
        if children.len() > 1 && is_free(layer) {
            let what = format!(
                "{} images lie on it, and it can be written: what changes it changes all of them (`chmod a-w` keeps \
                 it as it is)",
                children.len()
            );
            self.find(Kind::SiblingsAtRisk, path, children.clone(), what);
        }
        if let (Trust::Doubted(doubt), false) = (own.trust, children.is_empty()) {
            let what = format!("is not what the images on it were made on: {doubt}");
            self.find(Kind::ChangedParent, path, children.clone(), what);
        } else if !children.is_empty() && record.is_none_or(|record| record.sealed.is_none()) {
            let what = "others lie on it, and it has no content ID: `dchain id seal` gives it one";
            self.find(Kind::Unsealed, path, children, what);
        } else if children.is_empty()
            && record.is_some_and(|r| r.sealed.is_none())
            && !self.jobs.contains(path)
        {
            // One with a content ID may have been given it for its own sake.
            self.find(
                Kind::Orphan,
                path,
                Vec::new(),
                "was made a parent, and nothing here lies on it any more",
            );
        }
    }
}
