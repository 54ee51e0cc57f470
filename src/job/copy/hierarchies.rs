//! Whole hierarchies in another format: every head of a folder, or of the disks that a virtual machine's files name, with all
//! that lies below, each layer once.
//!
//! A chain after the other is converted. What a later one shares with an earlier one it finds there, by the note of that
//! conversion, as it would find it after a cut. What stays true: all chains are planned before the first byte is written, and
//! no image of those hierarchies is left out in silence.

use super::{Conversion, Copy, Placed, Plan, Report, Request, Share, places::Names};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Family, Member, Opening},
    format::{self, Format},
    io::{Access, EntryKind, Host, Witness},
    job::Progress,
    store::{Ledger, vmware},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A conversion of several chains, planned: nothing is written yet.
#[derive(Debug)]
pub struct Hierarchies {
    host: Arc<dyn Host>,
    ledger: Ledger,
    /// How each chain is opened, its head's format stated where the caller did.
    openings: Vec<Opening>,
    request: Request,
    plans: Vec<Plan>,
}

impl Hierarchies {
    /// Returns whether `path` stands for hierarchies, and not for one image: a folder, or a `.vmx` or `.vmsd` file that has
    /// no image's header and is not stated to be raw. A stated format is that of the disks.
    pub fn are_meant(host: &dyn Host, path: &Path, opening: &Opening) -> Result<bool> {
        Ok(match host.kind(path)? {
            Some(EntryKind::Folder) => true,
            Some(EntryKind::File) if vmware::is_one(path) && opening.format != Some(Format::Raw) => {
                Format::recognise(host.open(path, Access::ReadShared)?.as_ref())? == Format::Raw
            }
            _ => false,
        })
    }

    /// Finds the heads in `from`, a folder or a file that names disks, and plans what becomes of each chain in `folder`.
    ///
    /// Fails as [`Copy::prepare`] for each chain; `Policy` for an image that cannot be read, which might belong to them, and
    /// for a name that leads where none may; `NotFound` where there is no image; `NoSpace` if all of it does not fit.
    pub fn prepare(
        host: &Arc<dyn Host>,
        ledger: &Ledger,
        (from, folder): (&Path, &Path),
        opening: &Opening,
        conversion: Conversion,
    ) -> Result<Self> {
        let found = Found::look(host.as_ref(), from, opening)?;
        let folder = host.canonical(folder)?;
        if found.family.folders.contains(&folder) {
            let what = "is where the images are: the new ones need a folder of their own";
            return Err(Error::invalid(what).path(&folder));
        }
        let (heads, names) = found.heads(host, opening, &conversion)?;
        let conversion = Some(Conversion { names, ..conversion });
        let request = Request { share: Share::Deny, conversion, ..Request::default() };
        let (mut plans, mut openings, mut planned) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (head, opening) in heads {
            let copy = Copy::prepare(host, ledger, (&head, &folder), &opening, request.clone())?;
            let mut plan = copy.plan().clone();
            plan.layers.retain(|placed| placed.target().is_some_and(|to| planned.insert(to.to_path_buf())));
            plan.copy_bytes = plan.layers.iter().map(Placed::copy_bytes).sum();
            let is_own =
                |(layer, _): &(PathBuf, String)| plan.layers.iter().any(|placed| placed.source() == layer);
            plan.stays = found.elsewhere.iter().filter(|told| is_own(told)).cloned().collect();
            plan.lost.retain(|what| plan.layers.iter().any(|placed| is_of(what, placed.source())));
            openings.push(opening);
            plans.push(plan);
        }
        let this = Self { host: Arc::clone(host), ledger: ledger.clone(), openings, request, plans };
        this.check_space(&folder)?;
        Ok(this)
    }

    /// Returns what becomes of each chain. Layers that it shares with an earlier one stand there.
    pub fn plans(&self) -> &[Plan] {
        &self.plans
    }

    fn check_space(&self, folder: &Path) -> Result<()> {
        let (bytes, free) =
            (self.plans.iter().map(|plan| plan.copy_bytes).sum::<u64>(), self.host.free_bytes(folder)?);
        if bytes > free && !self.plans.iter().any(|plan| plan.is_resumed) {
            let what = format!("{bytes} bytes are to be copied, {free} are free there");
            return Err(Error::new(ErrorKind::NoSpace, what).path(folder));
        }
        Ok(())
    }

    /// Converts them. Stopped (`Interrupted`), failed or cut off at any moment, no name there stands for something that is not
    /// whole; asked for again it goes on.
    pub fn run(self, progress: &Progress) -> Result<Vec<Report>> {
        let mut reports = Vec::new();
        for (plan, opening) in self.plans.iter().zip(&self.openings) {
            let paths = (plan.head.as_path(), plan.folder.as_path());
            let copy = Copy::prepare(&self.host, &self.ledger, paths, opening, self.request.clone())?;
            reports.push(copy.run(progress)?);
        }
        Ok(reports)
    }
}

/// Returns whether a line on what is lost is about that layer.
fn is_of(lost: &str, layer: &Path) -> bool {
    lost.strip_prefix(&layer.display().to_string()).is_some_and(|rest| rest.starts_with(": "))
}

/// File system and inode.
type FileKey = (u128, u64);

const fn key(file: &Witness) -> FileKey {
    (file.file_system, file.inode)
}

/// A head, and how it is opened.
type Head = (PathBuf, Opening);

/// The images that are meant, and those of their folders.
struct Found {
    from: PathBuf,
    family: Family,
    /// The images that are meant.
    meant: Vec<Member>,
    /// Of these the ones that a machine's file names, which states that they are VMDKs.
    named: Vec<PathBuf>,
    /// Layers that images of other folders lie on, each with that as a reason for a person.
    elsewhere: Vec<(PathBuf, String)>,
}

impl Found {
    fn look(host: &dyn Host, from: &Path, opening: &Opening) -> Result<Self> {
        let from = host.canonical(from)?;
        let named = match host.kind(&from)? {
            Some(EntryKind::Folder) => None,
            _ => Some(named(host, &from, opening)?),
        };
        let folders: BTreeSet<PathBuf> = match &named {
            None => BTreeSet::from([from.clone()]),
            Some(named) => named.iter().filter_map(|place| place.parent().map(Path::to_path_buf)).collect(),
        };
        let family = Family::scan(host, &folders.into_iter().collect::<Vec<_>>())?;
        refuse_unreadable(host, &family)?;
        let meant = match &named {
            None => in_folder(&family, &from, opening)?,
            Some(named) => of_hierarchies(&family, named)?,
        };
        let mut elsewhere = Vec::new();
        for member in &meant {
            let children = family.children_elsewhere(member.witness);
            elsewhere.extend(
                children.map(|child| (member.path.clone(), format!("{} lies on it", child.path.display()))),
            );
        }
        Ok(Self { from, family, meant, named: named.unwrap_or_default(), elsewhere })
    }

    /// Returns the heads, each with how it is opened, and what the new layers are called.
    fn heads(
        &self,
        host: &Arc<dyn Host>,
        opening: &Opening,
        conversion: &Conversion,
    ) -> Result<(Vec<Head>, BTreeMap<PathBuf, PathBuf>)> {
        let (mut heads, mut seen, mut layers) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        let has_child = |member: &Member| {
            self.family
                .children_of(&member.witness)
                .any(|child| self.is_here(child) && child.path != member.path)
        };
        let (above, tops): (Vec<_>, Vec<_>) = self.meant.iter().partition(|member| has_child(member));
        // What is in no chain of a head stands on itself, in a circle: opening it says so.
        for member in tops.into_iter().chain(above) {
            if seen.contains(&key(&member.witness)) {
                continue;
            }
            let stated = opening.format.or_else(|| self.named.contains(&member.path).then_some(Format::Vmdk));
            let format = stated.filter(|stated| *stated == member.format);
            let opening = Opening { access: Access::Read, format, ..opening.clone() };
            for layer in Chain::open(host, &member.path, &opening)?.layers() {
                seen.insert(key(&host.witness(&layer.path)?));
                layers.insert(layer.path.clone(), layer.format());
            }
            heads.push((member.path.clone(), opening));
        }
        if heads.is_empty() {
            let what = "there is no image that is known as one";
            return Err(Error::new(ErrorKind::NotFound, what).path(&self.from));
        }
        let mut names = Names::default();
        let name = |(path, format): (PathBuf, Format)| {
            let new = names.take(conversion.name_of((&path, format)), &path);
            (path, new)
        };
        Ok((heads, layers.into_iter().map(name).collect()))
    }

    fn is_here(&self, member: &Member) -> bool {
        self.family.folders.iter().any(|folder| member.path.parent() == Some(folder))
    }
}

/// Returns the places of the disks that a machine's file names, without links.
fn named(host: &dyn Host, from: &Path, opening: &Opening) -> Result<Vec<PathBuf>> {
    let folder = from.parent().unwrap_or(Path::new("/"));
    let mut places = Vec::new();
    for name in vmware::disks(host, from)? {
        let place = find_beside(host, folder, &name).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let what = format!(
                    "names the disk '{}', which is not there",
                    name.display().to_string().escape_debug()
                );
                Error::new(ErrorKind::NotFound, what).path(from)
            }
            _ => e,
        })?;
        if !opening.policy.allows(folder, &place) {
            let what =
                format!("names the disk '{}', outside its folder and the allowed ones", place.display());
            return Err(Error::policy(what).subject(place.parent().unwrap_or(&place)).path(from));
        }
        places.push(place);
    }
    if places.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "names no disk").path(from));
    }
    Ok(places)
}

/// Returns where a disk is, without links: where it is said to be, or under its name beside the file that says so, which came
/// here from another system with it.
fn find_beside(host: &dyn Host, folder: &Path, name: &Path) -> Result<PathBuf> {
    let found = host.canonical(&folder.join(name));
    let is_missing = found.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound);
    let last = name.as_os_str().as_bytes().rsplit(|byte| b"/\\".contains(byte)).next().unwrap_or_default();
    if !is_missing || last.is_empty() || last.len() == name.as_os_str().len() {
        return found;
    }
    host.canonical(&folder.join(OsStr::from_bytes(last))).or(found)
}

/// Refuses files that have an image's header and cannot be read, but for those that a fold has retired.
fn refuse_unreadable(host: &dyn Host, family: &Family) -> Result<()> {
    let is_retired = |path: &Path| {
        let file = host.open(path, Access::ReadShared);
        file.is_ok_and(|file| format::is_retired(file.as_ref()).unwrap_or(false))
    };
    match family.unreadable.iter().find(|(path, _)| !is_retired(path)) {
        Some((path, why)) => {
            let what = format!("might belong to them, and cannot be read: {}", why.what());
            Err(Error::policy(what).subject(path).path(path))
        }
        None => Ok(()),
    }
}

/// Returns whether another image keeps its bytes in that file.
fn is_part(family: &Family, member: &Member) -> bool {
    family.users_of(&member.witness, &member.path).next().is_some()
}

/// Returns the image that all layers below a member lie on, as far as it is in the family's folders.
fn root<'f>(family: &'f Family, member: &'f Member) -> &'f Member {
    let mut at = member;
    // As many steps as there are members: in a circle there is no end.
    for _ in 0..family.members.len() {
        let parent = at.link.as_ref().and_then(|link| link.witness).and_then(|file| family.member(&file));
        match parent {
            Some(parent) => at = parent,
            None => break,
        }
    }
    at
}

/// Returns the images of a folder; `Policy` for a link that leads out of it to where none may.
fn in_folder(family: &Family, folder: &Path, opening: &Opening) -> Result<Vec<Member>> {
    let members = family.members.iter().filter(|member| !is_part(family, member));
    match members.clone().find(|member| !opening.policy.allows(folder, &member.path)) {
        None => Ok(members.cloned().collect()),
        Some(member) => {
            let what = format!("has a link to {}, outside it and the allowed folders", member.path.display());
            let place = member.path.parent().unwrap_or(&member.path);
            Err(Error::policy(what).subject(place).path(folder))
        }
    }
}

/// Returns the images of the hierarchies that those at `places` belong to; `NotFound` where one of them is no image.
fn of_hierarchies(family: &Family, places: &[PathBuf]) -> Result<Vec<Member>> {
    let mut roots = BTreeSet::new();
    for place in places {
        let member = family.members.iter().find(|member| member.path == *place);
        let what = "is not known as an image";
        let member = member.ok_or_else(|| Error::new(ErrorKind::NotFound, what).path(place))?;
        roots.insert(key(&root(family, member).witness));
    }
    let is_meant =
        |member: &&Member| roots.contains(&key(&root(family, member).witness)) && !is_part(family, member);
    Ok(family.members.iter().filter(is_meant).cloned().collect())
}
