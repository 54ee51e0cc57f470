//! What a consolidation is going to do, found out without writing anything.
//!
//! By default a disk folds only what is its own: layers in its folder, writable, with no other child. Never into
//! a shared or read-only golden image; that needs a person's word.

use super::{
    bitmaps,
    moving::{self, Move},
    work::Work,
};
use crate::{
    base::{Error, ErrorKind, Guard, GuestOffset, GuestRange, Result},
    chain::{Chain, Family, Layer, View},
    format::{Creation, Format, Image},
    io::{self, File, Host, Witness},
    job::own,
    map::{Extent, State},
    store::{self, Draft, FoldMode, Held, Journal},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a person asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Fold into this layer (with `new`: make the new image its child). `None`: down to the oldest layer that is
    /// the disk's own (with `new`: everything, into an image without a parent).
    pub into: Option<PathBuf>,
    /// Fold into a new image.
    pub new: Option<NewImage>,
    /// The result keeps the target's name; TOP's name goes.
    pub keeps_target_name: bool,
    /// How the result is proved.
    pub verify: Verify,
    /// Whether files beside the layers that cannot be read are taken for images that lie on none of them.
    pub ignores_unread: bool,
    /// The new image lies in another store, and TOP gives way to it.
    pub moves: Option<Move>,
}

/// A new image that a run is folded into.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Its name.
    pub path: PathBuf,
    /// Its format; `None` is TOP's.
    pub format: Option<Format>,
    /// Its format's own options.
    pub options: Vec<(String, String)>,
}

impl NewImage {
    fn creation(&self, size: u64) -> Creation {
        Creation { size, parent: None, options: self.options.clone() }
    }
}

/// How the result is proved before the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Not at all.
    Nothing,
    /// Every leaf of the content tree that the job touches is compared as it passes, or is the same blocks on the host.
    #[default]
    Tree,
    /// Every byte of the disk is hashed before and after.
    Bytes,
}

/// A point in time that cannot be restored afterwards.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Lost {
    /// The layer that showed it.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub layer: PathBuf,
    /// The internal snapshot of that layer; `None` is the layer's own view.
    pub snapshot: Option<String>,
}

/// What a consolidation is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The run's top, which names the disk.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub top: PathBuf,
    /// The layers that are folded, newest first.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub folded: Vec<PathBuf>,
    /// The layer that they are folded into; `None` for a new image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub target: Option<PathBuf>,
    /// The name that opens the result.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub result: PathBuf,
    /// How the record is made.
    pub mode: FoldMode,
    /// Size of the result's view in bytes.
    pub size: u64,
    /// Size of the target's view now, in bytes.
    pub target_size: u64,
    /// Bytes that are copied (or shared with the host's help) at most once.
    pub copy_bytes: u64,
    /// Bytes that are marked as zero.
    pub zero_bytes: u64,
    /// Space that the target may need, in its own units, in bytes.
    pub need_bytes: u64,
    /// Space that is free there, in bytes.
    pub free_bytes: u64,
    /// Files that are gone afterwards; a layer's header comes before its data file.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub removed: Vec<PathBuf>,
    /// Data files of removed layers, and layers that do not go with TOP, that stay, with the reason.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub stays: Vec<(PathBuf, String)>,
    /// What can no longer be restored, from the first byte written.
    pub lost: Vec<Lost>,
    /// Persistent bitmaps of the folded layers that the result has as well, as `FILE: NAME`: those of one name
    /// are one there.
    pub bitmaps_merged: Vec<String>,
    /// Persistent bitmaps that are lost, as `FILE: NAME`: there is no place for them, or one of that name missed
    /// writes.
    pub bitmaps_lost: Vec<String>,
    /// Folders in which other children were looked for.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub looked_in: Vec<PathBuf>,
    /// Files there that could not be read: whether they are children is not known.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub unread: Vec<PathBuf>,
    /// How the result is proved.
    pub verify: Verify,
    /// Whether this goes on with a job that was cut off.
    pub is_resumed: bool,
}

impl Plan {
    /// Counts bitmaps of these names among the lost ones.
    pub(super) fn lose_bitmaps(&mut self, names: &[String]) {
        let is_lost = |line: &mut String| names.iter().any(|name| line.ends_with(&format!(": {name}")));
        self.bitmaps_lost.extend(self.bitmaps_merged.extract_if(.., is_lost));
    }
}

/// A plan, and the depth of the layer that the run lies on.
pub(super) struct Planned {
    pub(super) plan: Plan,
    /// How many layers the run has: the target (or what is below the new image) is the next one.
    pub(super) depth: usize,
    pub(super) work: Work,
    /// The target's bitmaps before the job.
    pub(super) held: Vec<Held>,
}

/// Refuses what [`make`] refuses of a chain whose layers are at `paths`, as things stand now: a person may have thought for
/// a while about the plan.
pub(super) fn check_again(
    host: &dyn Host,
    paths: &[PathBuf],
    run: (usize, FoldMode),
    ignores_unread: bool,
) -> Result<()> {
    let folders: Vec<PathBuf> = paths.iter().map(|path| folder_of(path).to_path_buf()).collect();
    let family = Family::scan_near(host, &folders, folders.get(..=run.0).unwrap_or(&folders))?;
    let files: Vec<Witness> = paths.iter().map(|path| host.witness(path)).collect::<Result<_>>()?;
    refuse_dependants(&family, (paths, &files), run)?;
    refuse_used(host, (paths, &files), run)?;
    if ignores_unread || run.1.makes_new() { Ok(()) } else { family.refuse_unreadable(host) }
}

/// Refuses to change or remove what another image lies on: layers that are at `paths`, and are these files.
fn refuse_dependants(
    family: &Family,
    (paths, files): (&[PathBuf], &[Witness]),
    (depth, mode): (usize, FoldMode),
) -> Result<()> {
    let first = match mode {
        FoldMode::NewImage | FoldMode::Move => return Ok(()),
        FoldMode::TargetName => 0,
        // TOP's name goes on showing what it showed: its children are right about it.
        FoldMode::TopName | FoldMode::EmptyTop => 1,
    };
    for (at, path) in paths.iter().enumerate().take(depth + 1).skip(first) {
        if let Some(other) = own::other_child(family, files, at) {
            let what = format!("{} lies on it, and would no longer show what it shows", other.display());
            return Err(Error::busy(what).subject(other).path(path));
        }
    }
    Ok(())
}

/// Refuses to change or remove what somebody has leased.
fn refuse_used(
    host: &dyn Host,
    (paths, files): (&[PathBuf], &[Witness]),
    (depth, mode): (usize, FoldMode),
) -> Result<()> {
    let touched = if mode.makes_new() { 0 } else { depth + 1 };
    let layers: Vec<_> = paths.iter().cloned().zip(files.iter().copied()).take(touched).collect();
    store::refuse_leased(host, &layers)
}

/// Returns where the layers of a chain are.
pub(super) fn paths(layers: &[Layer]) -> Vec<PathBuf> {
    layers.iter().map(|layer| layer.path.clone()).collect()
}

/// Works out what is to be done with an open chain; `journal` is that of the job that this goes on with.
pub(super) fn make(
    host: &Arc<dyn Host>,
    chain: &Chain,
    request: &Request,
    journal: Option<&Journal>,
) -> Result<Planned> {
    let layers = chain.layers();
    let folders = folders(layers);
    // What is another disk's, or in another folder, is not touched unless it is named.
    let reach = match &request.into {
        Some(into) => host.canonical(into).map_or(folders.len(), |into| {
            layers.iter().position(|layer| layer.path == into).map_or(folders.len(), |at| at + 1)
        }),
        None => folders.iter().take_while(|folder| Some(*folder) == folders.first()).count(),
    };
    let family = Family::scan_near(host.as_ref(), &folders, folders.get(..reach).unwrap_or_default())?;
    let files: Vec<Witness> = layers.iter().map(|l| host.witness(&l.path)).collect::<Result<_>>()?;
    let scene = Scene { host, layers, family: &family, files: &files };
    let depth = scene.depth(request)?;
    let top = chain.head()?;
    let target = layers.get(depth).filter(|_| request.new.is_none());
    if let (Some(new), Some(parent)) = (&request.new, layers.get(depth))
        && new.format.unwrap_or_else(|| top.format()) == Format::Raw
    {
        let what = format!("a raw image has no parent, and cannot stand on {}", parent.path.display());
        return Err(Error::invalid(what).path(&new.path));
    }
    let mode = mode(top, target, request);
    if journal.is_none() && !mode.makes_new() {
        scene.refuse_second_names(depth)?;
    }
    refuse_dependants(&family, (&paths(layers), &files), (depth, mode))?;
    refuse_used(host.as_ref(), (&paths(layers), &files), (depth, mode))?;
    if !mode.makes_new() && !request.ignores_unread {
        family.refuse_unreadable(host.as_ref())?;
    }
    let work = Work::find(&View::new(layers.get(..depth).unwrap_or_default()), top.size())?;
    let mut plan = Plan {
        top: top.path.clone(),
        folded: layers.iter().take(depth).map(|l| l.path.clone()).collect(),
        target: target.map(|t| t.path.clone()),
        result: result(top, target, mode, request),
        mode,
        size: top.size(),
        target_size: target.map_or(0, Layer::size),
        copy_bytes: work.copy_bytes,
        zero_bytes: work.zero_bytes,
        need_bytes: 0,
        free_bytes: 0,
        removed: Vec::new(),
        stays: Vec::new(),
        lost: Vec::new(),
        bitmaps_merged: Vec::new(),
        bitmaps_lost: Vec::new(),
        looked_in: family.folders.clone(),
        unread: family.unreadable.iter().map(|(path, _)| path.clone()).collect(),
        verify: request.verify,
        is_resumed: journal.is_some(),
    };
    match (journal.filter(|_| mode == FoldMode::Move), &request.moves) {
        (Some(journal), _) => {
            plan.removed = journal.fold().removed.iter().map(|gone| journal.place(&gone.name)).collect();
        }
        (None, Some(moves)) => moving::add_leaving(&scene, moves, &mut plan)?,
        (None, None) => scene.add_losses(depth, &mut plan)?,
    }
    scene.check_place(target, &mut plan, &work)?;
    let held = match (journal, target) {
        (Some(journal), _) => journal.fold().bitmaps.clone(),
        (None, Some(target)) => bitmaps::held(target.image.as_ref())?,
        (None, None) => Vec::new(),
    };
    let place = bitmap_place((top, target), mode, request.new.as_ref())?;
    bitmaps::foresee(layers.get(..depth).unwrap_or_default(), &held, place, &mut plan)?;
    Ok(Planned { plan, depth, work, held })
}

fn bitmap_place(
    (top, target): (&Layer, Option<&Layer>),
    mode: FoldMode,
    new: Option<&NewImage>,
) -> Result<bitmaps::Place> {
    if let Some(new) = new {
        return bitmaps::Place::in_new(new.format.unwrap_or_else(|| top.format()), &new.creation(top.size()));
    }
    bitmaps::Place::like(target.filter(|_| mode != FoldMode::EmptyTop).unwrap_or(top).image.as_ref())
}

fn folders(layers: &[Layer]) -> Vec<PathBuf> {
    layers.iter().map(|l| folder_of(&l.path).to_path_buf()).collect()
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn mode(top: &Layer, target: Option<&Layer>, request: &Request) -> FoldMode {
    match target {
        None if request.moves.is_some() => FoldMode::Move,
        None => FoldMode::NewImage,
        Some(_) if request.keeps_target_name => FoldMode::TargetName,
        Some(target) if target.format() == top.format() => FoldMode::TopName,
        Some(_) => FoldMode::EmptyTop,
    }
}

fn result(top: &Layer, target: Option<&Layer>, mode: FoldMode, request: &Request) -> PathBuf {
    match (mode, target, &request.new) {
        (FoldMode::TargetName, Some(target), _) => target.path.clone(),
        (FoldMode::NewImage | FoldMode::Move, _, Some(new)) => new.path.clone(),
        _ => top.path.clone(),
    }
}

/// The chain and who else lies on its layers.
pub(super) struct Scene<'a> {
    host: &'a Arc<dyn Host>,
    pub(super) layers: &'a [Layer],
    pub(super) family: &'a Family,
    pub(super) files: &'a [Witness],
}

impl Scene<'_> {
    /// Returns how many layers the run has.
    fn depth(&self, request: &Request) -> Result<usize> {
        let top = self.layers.first().ok_or_else(|| Error::invalid("a chain without layers"))?;
        let whole = self.layers.len();
        let Some(into) = &request.into else {
            return if request.new.is_some() { Ok(whole) } else { self.own_depth(top) };
        };
        let wanted = self.host.canonical(into)?;
        let found = self.layers.iter().skip(1).position(|l| l.path == wanted);
        found.map(|at| at + 1).ok_or_else(|| {
            Error::invalid(format!("{} is not one of the layers below it", wanted.display())).path(&top.path)
        })
    }

    /// Returns the depth of the oldest layer that is this disk's own, all above it being its own as well.
    fn own_depth(&self, top: &Layer) -> Result<usize> {
        let mut depth = 0;
        let mut foreign = Error::invalid("has no parent: nothing to fold");
        for (at, layer) in self.layers.iter().enumerate().skip(1) {
            match own::why_not(self.family, (self.layers, self.files), at) {
                None => depth = at,
                Some(why) => {
                    foreign = why.doing(format!("nothing of its own to fold: {}", layer.path.display()));
                    break;
                }
            }
        }
        if depth == 0 { Err(foreign.path(&top.path)) } else { Ok(depth) }
    }

    /// Refuses to change, to remove or to rename over a file that has another name: what that opens would no longer be
    /// what it was. One of a job that was begun is met when it is its turn.
    fn refuse_second_names(&self, depth: usize) -> Result<()> {
        for layer in self.layers.iter().take(depth + 1) {
            for file in layer.image.files() {
                let names = io::names(file.as_ref());
                if names > 1 {
                    return Err(self.second_name(
                        &self.host.opened_as(file.as_ref())?,
                        file.as_ref(),
                        names,
                    )?);
                }
            }
        }
        Ok(())
    }

    /// Tells which other name the file at `path` has, if an image of the family is called so.
    fn second_name(&self, path: &Path, file: &dyn File, names: u32) -> Result<Error> {
        let witness = file.witness()?;
        let mut members = self.family.members.iter();
        let other = members.find(|m| m.witness.same_file(&witness) && m.path != path).map(|m| &m.path);
        let shown = other.map_or_else(|| "another name".to_owned(), |other| other.display().to_string());
        let what = format!("has {names} names (hard links): {shown} would no longer show what it shows");
        Ok(Error::busy(what).subject(other.map_or(path, PathBuf::as_path)).path(path))
    }

    fn add_losses(&self, depth: usize, plan: &mut Plan) -> Result<()> {
        if plan.mode == FoldMode::NewImage {
            return Ok(());
        }
        let first_removed = usize::from(plan.mode != FoldMode::TargetName);
        for (at, layer) in self.layers.iter().enumerate().take(depth + 1) {
            if at > 0 {
                plan.lost.push(Lost { layer: layer.path.clone(), snapshot: None });
            }
            if at == depth {
                break;
            }
            if at >= first_removed {
                plan.removed.push(layer.path.clone());
            }
            self.add_data(layer, plan)?;
            let details = layer.image.details()?;
            let gone =
                |s: crate::format::Snapshot| Lost { layer: layer.path.clone(), snapshot: Some(s.name) };
            plan.lost.extend(details.snapshots.into_iter().map(gone));
        }
        Ok(())
    }

    /// The further files of a folded layer go with it, unless they are not its own.
    pub(super) fn add_data(&self, layer: &Layer, plan: &mut Plan) -> Result<()> {
        for file in layer.image.files().iter().skip(1).filter(|file| !file.is_device()) {
            let path = self.host.canonical(file.path())?;
            match own::why_shared(self.family, &file.witness()?, &layer.path) {
                Some(why) => plan.stays.push((path, why.to_string())),
                None => plan.removed.push(path),
            }
        }
        Ok(())
    }

    /// Proves that the result can stand where it is to stand, and fits there.
    fn check_place(&self, target: Option<&Layer>, plan: &mut Plan, work: &Work) -> Result<()> {
        let Some(target) = target else {
            Draft::check_name(&plan.result)?;
            if self.host.is_taken(&plan.result)? {
                return Err(Error::new(ErrorKind::Exists, "is there already").path(&plan.result));
            }
            plan.need_bytes = plan.copy_bytes;
            plan.free_bytes = self.host.free_bytes(folder_of(&plan.result))?;
            return Ok(());
        };
        let (files, data) = (target.image.files(), target.image.data_file());
        if data.is_device() && data.bytes()? < plan.size {
            let what = format!("the device has {} bytes; the disk has {}", data.bytes()?, plan.size);
            return Err(Error::invalid(what).path(&target.path));
        }
        // It grows at the start, and is cut at the end: too late to find out.
        if !data.is_device() && target.size() != plan.size {
            target.image.check_size(plan.size)?;
        }
        let top = self.files.first().zip(files.first());
        if let (FoldMode::TopName, Some((top, file))) = (plan.mode, top)
            && top.file_system != file.witness()?.file_system
        {
            let what = "lies on another file system than the disk's name: it cannot be renamed over it";
            return Err(Error::invalid(what).path(&target.path));
        }
        let moves = plan.mode == FoldMode::TopName && folder_of(&target.path) != folder_of(&plan.top);
        if moves && files.len() > 1 {
            let what = "names a data file that its new place would not lead to: let the target keep its name";
            return Err(Error::invalid(what).path(&target.path));
        }
        plan.need_bytes = needed_bytes(target.image.as_ref(), work)?;
        plan.free_bytes =
            if data.is_device() { u64::MAX } else { self.host.free_bytes(folder_of(data.path()))? };
        Ok(())
    }
}

/// Returns the space that bringing `work` to `target` may take, counted in the target's units.
fn needed_bytes(target: &dyn Image, work: &Work) -> Result<u64> {
    let unit = target.unit();
    // Units that an internal snapshot shares are copied when they are written.
    let is_shared = !target.details()?.snapshots.is_empty();
    let disk = GuestOffset::new(0).range(target.size());
    let (mut bytes, mut counted) = (0_u64, GuestOffset::new(0));
    let mut extents = Vec::new();
    for range in work.copied.iter() {
        let outer = range.outer(unit);
        let part = GuestRange::between(outer.start.max(counted), outer.end());
        counted = counted.max(outer.end());
        let held = part.clip(disk);
        extents.clear();
        if !held.is_empty() && !is_shared {
            target.map(held, &mut extents)?;
        }
        let is_there = |e: &&Extent| matches!(e.state, State::Data { .. } | State::Zero { host: Some(_) });
        let there: u64 = extents.iter().filter(is_there).map(|e| e.range.bytes).sum();
        bytes = bytes.saturating_add(part.bytes.saturating_sub(there));
    }
    // Tables: an eighth of a percent is more than any format takes, a few units to start with.
    Ok(if bytes == 0 { 0 } else { bytes.saturating_add(bytes / 512).saturating_add(4 * unit) })
}

/// What folding a run into a layer would cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Bytes that would be copied.
    pub copy_bytes: u64,
    /// Bytes that would be marked as zero.
    pub zero_bytes: u64,
    /// Space that the target may need, in its own units, in bytes.
    pub need_bytes: u64,
}

/// Returns what folding all `layers` but the last into that one would cost. What lies below is not asked.
pub fn estimate(layers: &[Layer]) -> Result<Cost> {
    let none = || Error::invalid("a run without layers");
    let (target, run) = layers.split_last().ok_or_else(none)?;
    let work = Work::find(&View::new(run), run.first().map_or(0, Layer::size))?;
    let need_bytes = needed_bytes(target.image.as_ref(), &work)?;
    Ok(Cost { copy_bytes: work.copy_bytes, zero_bytes: work.zero_bytes, need_bytes })
}

/// Returns what is left of a job whose record has landed.
pub(super) fn of_journal(journal: &Journal, top: &Path) -> Plan {
    let fold = journal.fold();
    let place = |name: &PathBuf| journal.place(name);
    let (target, folded) = fold.layers.split_last().map_or((None, &[][..]), |(t, run)| (Some(t), run));
    Plan {
        top: top.to_path_buf(),
        folded: folded.iter().map(place).collect(),
        target: target.filter(|_| !fold.mode.makes_new()).map(place),
        result: journal.place(&fold.result),
        mode: fold.mode,
        size: fold.size,
        target_size: fold.size,
        copy_bytes: 0,
        zero_bytes: 0,
        need_bytes: 0,
        free_bytes: 0,
        removed: fold.removed.iter().map(|gone| place(&gone.name)).collect(),
        stays: Vec::new(),
        lost: Vec::new(),
        bitmaps_merged: Vec::new(),
        bitmaps_lost: Vec::new(),
        looked_in: Vec::new(),
        unread: Vec::new(),
        verify: Verify::Nothing,
        is_resumed: true,
    }
}

/// Returns the request that a journal stands for; `Invalid` if the chain is another one by now, or if another
/// target is asked for.
pub(super) fn request_of(
    host: &dyn Host,
    journal: &Journal,
    chain: &Chain,
    request: &Request,
) -> Result<Request> {
    let fold = journal.fold();
    moving::refuse_other(journal, request)?;
    let is_new = fold.mode.makes_new();
    let depth = fold.layers.len().saturating_sub(1);
    let named = fold.layers.iter().take(depth + usize::from(!is_new));
    let mut places = Vec::new();
    for name in named {
        let place = journal.place(name);
        places.push(if host.kind(&place)?.is_some() { host.canonical(&place)? } else { place });
    }
    let layers: Vec<_> = chain.layers().iter().map(|layer| layer.path.clone()).collect();
    if Guard::JournalChain.trips(!layers.starts_with(&places)) {
        let what = "describes a job on another chain: the layers below the disk have changed since";
        return Err(Error::invalid(what).path(journal.path()));
    }
    let into = layers.get(depth).cloned();
    if let (Some(wanted), Some(into)) = (&request.into, &into)
        && host.canonical(wanted)? != *into
    {
        let what = format!("a job that folds it into {} was cut off: end that one first", into.display());
        return Err(Error::invalid(what).path(&chain.head()?.path));
    }
    let path = journal.place(&fold.result);
    let format = Some(Format::parse(&fold.format)?);
    let new = is_new.then(|| NewImage { path, format, options: fold.options.clone() });
    let keeps_target_name = fold.mode == FoldMode::TargetName;
    Ok(Request { into, new, keeps_target_name, ..request.clone() })
}
