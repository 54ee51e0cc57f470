//! Another parent for an image, with the same view.
//!
//! What the image shows does not change at any moment: first everything that only the old parent holds is
//! written into the image (which changes nothing, it was read there before), that is made durable, and only
//! then does the header name the new parent, in one step.

use super::{Progress, diff::first_difference, own};
use crate::{
    base::{Error, ErrorKind, GuestOffset, GuestRange, Result, units::index},
    chain::{
        Both, Chain, Family, Layer, Opening, Pair, Run, View, check_lineage, freeze, is_plain, join, lineage,
        open_layer, refuse_cut_off, refuse_leased,
    },
    disk::Disk,
    format::{Below, Format, ParentName},
    io::{Access, EntryKind, File, Host, Kept},
    map::State,
    store::Ledger,
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much of the map is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// How much is compared, and copied if it differs, in one go.
const COMPARED_BYTES: u64 = 64 << 10;

/// How much is read back in one go.
const PROVED_BYTES: u64 = 1 << 20;

/// What a rebase is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The image that gets another parent.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Its parent now.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub from: Option<PathBuf>,
    /// Its parent then.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub to: Option<PathBuf>,
    /// The name that its header will hold.
    pub name: Option<String>,
    /// Whether the new parent is one of the layers below the image now.
    pub is_ancestor: bool,
    /// Bytes that are copied into the image.
    pub copy_bytes: u64,
    /// Bytes that are compared under both parents, and copied where they differ.
    pub compare_bytes: u64,
    /// Bytes that are marked as zero.
    pub zero_bytes: u64,
}

/// A rebase that is planned: both chains are open, nothing is written yet.
#[derive(Debug)]
pub struct Rebase {
    chain: Chain,
    old: View,
    new: Option<Chain>,
    link: Option<ParentName>,
    work: Vec<Step>,
    plan: Plan,
    ledger: Option<Ledger>,
    proves: bool,
    /// Whether the image has a record that is in doubt, and that nobody needs.
    is_void: bool,
}

/// What has to be done so that a run reads the same without the old parent.
#[derive(Clone, Copy, Debug)]
struct Step {
    run: Run,
    is_compared: bool,
}

/// The parent that an image is to get.
#[derive(Clone, Debug)]
pub struct NewParent {
    /// Where it is.
    pub path: PathBuf,
    /// Its format, stated.
    pub format: Format,
}

impl Rebase {
    /// Opens the image for writing, and both parents, and finds out what has to be copied.
    ///
    /// `parent: None` makes the image stand alone. Fails as [`Chain::open`]; `Invalid` where the new parent lies
    /// on the image itself; `Unsupported` for an image with internal snapshots.
    pub fn prepare(
        host: &Arc<dyn Host>,
        image: &Path,
        opening: &Opening,
        parent: Option<&NewParent>,
    ) -> Result<Self> {
        let chain = match (Chain::open(host, image, opening), parent) {
            (Err(e), Some(parent)) if e.kind() == ErrorKind::Policy => {
                respelled(host, image, opening, parent)?.ok_or(e)?
            }
            (opened, _) => opened?,
        };
        let head = chain.head()?.clone();
        if let Some(ledger) = &opening.ledger {
            refuse_cut_off(ledger, &head.path)?;
        }
        refuse_leased(host.as_ref(), std::slice::from_ref(&head))?;
        let folder = head.path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let is_void = match &opening.ledger {
            Some(ledger) => own::is_void(ledger, &Family::scan(host.as_ref(), &[folder])?, &head)?,
            None => false,
        };
        let new = parent.map(|p| open_new(host, &head, opening, p)).transpose()?;
        let link = new.as_ref().map(|chain| link(&head, chain)).transpose()?;
        let old = chain.below();
        let plan = Plan {
            image: head.path.clone(),
            from: chain.layers().get(1).map(|l| l.path.clone()),
            to: new.as_ref().and_then(|c| c.layers().first()).map(|l| l.path.clone()),
            name: link.as_ref().map(|l| String::from_utf8_lossy(&l.name).into_owned()),
            is_ancestor: false,
            copy_bytes: 0,
            compare_bytes: 0,
            zero_bytes: 0,
        };
        let mut rebase = Self {
            chain,
            old,
            new,
            link,
            work: Vec::new(),
            plan,
            ledger: opening.ledger.clone(),
            proves: false,
            is_void,
        };
        rebase.refuse_snapshots()?;
        rebase.find_work()?;
        Ok(rebase)
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Has what the image will show compared with what it showed, byte by byte, before it leaves its old parent.
    #[must_use]
    pub fn proving(self) -> Self {
        Self { proves: true, ..self }
    }

    /// An internal snapshot reads what it lacks from the parent as well, and nobody writes that into it.
    fn refuse_snapshots(&self) -> Result<()> {
        let head = self.chain.head()?;
        match head.image.details()?.snapshots.first().filter(|_| self.plan.from != self.plan.to) {
            None => Ok(()),
            Some(snapshot) => {
                let what = format!(
                    "has the internal snapshot '{}', which would show something else without its parent",
                    snapshot.name.escape_debug()
                );
                Err(Error::unsupported(what).path(&head.path))
            }
        }
    }

    fn find_work(&mut self) -> Result<()> {
        let head = self.chain.head()?.clone();
        let (old, new) =
            (self.chain.below(), self.new.as_ref().map_or_else(|| View::new(&[]), |c| c.view(0)));
        let pair = Pair::new(&old, &new)?;
        self.plan.is_ancestor = pair.right_is_inside_left();
        for stride in GuestOffset::new(0).range(head.size()).pieces(STRIDE_BYTES) {
            let (mut extents, mut runs) = (Vec::new(), Vec::new());
            head.image.map(stride, &mut extents)?;
            for gap in extents.iter().filter(|e| e.state == State::Absent) {
                runs.clear();
                pair.runs(gap.range, &mut runs)?;
                runs.iter().filter(|both| !both.is_same).for_each(|both| self.add(both));
            }
        }
        Ok(())
    }

    fn add(&mut self, both: &Both) {
        // A new parent from the same chain lacks just what the layers above it hold; any other may well show
        // the same bytes from another place. Packed bytes have no place to compare.
        let run = both.left;
        let is_packed = run.state == State::Packed && both.right.state == State::Packed;
        let is_compared = is_packed || (!self.plan.is_ancestor && !run.is_zero());
        let bytes = match (is_compared, run.is_zero()) {
            (true, _) => &mut self.plan.compare_bytes,
            (false, true) => &mut self.plan.zero_bytes,
            (false, false) => &mut self.plan.copy_bytes,
        };
        *bytes += run.range.bytes;
        self.work.push(Step { run, is_compared });
    }

    /// Does it. Stopped or cut off at any moment, the image shows what it showed, on its old parent.
    pub fn run(self, progress: &Progress) -> Result<Plan> {
        let image = &self.chain.head()?.image;
        if let Some(ledger) = self.ledger.as_ref().filter(|_| self.is_void) {
            ledger.release(image.as_ref())?;
        }
        let known = match (&self.ledger, &self.new) {
            (Some(ledger), Some(new)) => freeze(ledger, new.layers())?,
            _ => None,
        };
        let below = self.new.as_ref().map(|chain| chain.head().map(|head| &head.image)).transpose()?;
        if let (Some(ledger), Some(below)) = (&self.ledger, below) {
            ledger.note_child(below.as_ref(), image.as_ref())?;
        }
        match &self.ledger {
            Some(ledger) => ledger.tend(image.as_ref(), || self.reshape(progress))?,
            None => self.reshape(progress)?,
        }
        // Between the two steps the old claim names another parent than the header: it says nothing.
        match (&self.ledger, known.zip(below)) {
            (Some(ledger), Some((known, below))) => {
                drop(join(ledger, image.as_ref(), (below.as_ref(), &known))?);
            }
            (Some(ledger), None) => drop(ledger.claim(image.as_ref(), None)?),
            _ => {}
        }
        Ok(self.plan)
    }

    fn reshape(&self, progress: &Progress) -> Result<()> {
        let (plan, image) = (&self.plan, &self.chain.head()?.image);
        progress.begin("rebase", plan.copy_bytes + plan.compare_bytes + plan.zero_bytes);
        for step in &self.work {
            self.perform(step, progress)?;
        }
        image.flush()?;
        if self.proves {
            self.prove(progress)?;
        }
        image.set_parent(self.link.as_ref())
    }

    fn prove(&self, progress: &Progress) -> Result<()> {
        let head = self.chain.head()?;
        let mut layers = vec![head.clone()];
        layers.extend(self.new.iter().flat_map(|chain| chain.layers().iter().cloned()));
        let then = View::new(&layers);
        // What it holds by now is held against what it was copied from; the rest against what lies below on either side.
        let mut at = first_difference(&self.chain.view(0), &then, progress)?;
        progress.begin("prove", self.work.iter().map(|step| step.run.range.bytes).sum());
        for range in self.work.iter().flat_map(|step| step.run.range.pieces(PROVED_BYTES)) {
            progress.checkpoint()?;
            let (mut was, mut is) = (vec![0; index(range.bytes)], vec![0; index(range.bytes)]);
            self.old.read(range.start, &mut was)?;
            then.read(range.start, &mut is)?;
            if was != is {
                at = at.or(Some(range.start));
            }
            progress.moved(range.bytes);
        }
        at.map_or(Ok(()), |at| {
            let what = format!("would show something else at guest byte {at:#x}: it stays on its parent");
            Err(Error::corrupt(what).path(&head.path))
        })
    }

    fn perform(&self, step: &Step, progress: &Progress) -> Result<()> {
        let image = &self.chain.head()?.image;
        let unit = if step.is_compared { COMPARED_BYTES } else { 16 << 20 };
        for range in step.run.range.pieces(unit) {
            progress.checkpoint()?;
            let run = step.run.clip(range);
            match (step.is_compared, run.state) {
                (true, _) => self.copy_if_different(range)?,
                (false, State::Zero { .. } | State::Absent) => {
                    image.zero(range, Kept::Nothing, &Leaving(&self.old))?;
                }
                (false, State::Data { host }) => {
                    let source = run.layer.and_then(|l| self.old.images().get(l));
                    let source = source.ok_or_else(|| Error::invalid("a run of data without a layer"))?;
                    image.write_from(range, source.data_file().as_ref(), host, &self.old)?;
                }
                (false, State::Packed) => self.copy_packed(run)?,
            }
            progress.moved(range.bytes);
        }
        Ok(())
    }

    fn copy_packed(&self, run: Run) -> Result<()> {
        for range in run.range.pieces(1 << 20) {
            let mut bytes = vec![0; index(range.bytes)];
            self.old.read(range.start, &mut bytes)?;
            self.chain.head()?.image.write(range.start, &bytes, &self.old)?;
        }
        Ok(())
    }

    fn copy_if_different(&self, range: GuestRange) -> Result<()> {
        let (mut was, mut is) = (vec![0; index(range.bytes)], vec![0; index(range.bytes)]);
        self.old.read(range.start, &mut was)?;
        if let Some(new) = &self.new {
            let there = range.clip(GuestOffset::new(0).range(new.size()));
            if let Some(part) = is.get_mut(..index(there.bytes)).filter(|part| !part.is_empty()) {
                new.read(range.start, part)?;
            }
        }
        if was == is { Ok(()) } else { self.chain.head()?.image.write(range.start, &was, &self.old) }
    }
}

/// The old parent, about to be left: that it shows zeros does not spare the image from saying so itself.
struct Leaving<'a>(&'a View);

impl Below for Leaving<'_> {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.0.read(at, buf)
    }

    fn is_zero(&self, _range: GuestRange) -> Result<bool> {
        Ok(false)
    }
}

/// Returns the image on `parent` if its header means just that one, by a name that is read as a protocol, such as `a:b`,
/// or without stating its format: nothing but the spelling is to change.
fn respelled(
    host: &Arc<dyn Host>,
    image: &Path,
    opening: &Opening,
    parent: &NewParent,
) -> Result<Option<Chain>> {
    let head = open_layer(host, image, opening)?;
    let is_unclear = |parent: &ParentName| !is_plain(&parent.name) || parent.format.is_none();
    let Some(name) = head.image.parent().filter(is_unclear).map(|parent| parent.name) else {
        return Ok(None);
    };
    let place = head.path.with_file_name("").join(OsStr::from_bytes(&name));
    if host.kind(&place)? != Some(EntryKind::File)
        || !host.witness(&place)?.same_file(&host.witness(&parent.path)?)
    {
        return Ok(None);
    }
    let below = open_new(host, &head, opening, parent)?;
    let layers: Vec<Layer> = std::iter::once(&head).chain(below.layers()).cloned().collect();
    if let Some(ledger) = &opening.ledger {
        check_lineage(&layers, &lineage(ledger, &layers)?)?;
    }
    Ok(Some(Chain::of(layers, true)))
}

fn open_new(host: &Arc<dyn Host>, head: &Layer, opening: &Opening, parent: &NewParent) -> Result<Chain> {
    let own = head.image.files();
    if let Some(file) = own.first()
        && host.witness(&parent.path)?.same_file(&file.witness()?)
    {
        return Err(Error::invalid("cannot be its own parent").path(&head.path));
    }
    let how = Opening { parent_format: None, ..opening.clone() }.with_format(Some(parent.format));
    let lies_on = |own: &dyn File| {
        let shared = Opening { access: Access::ReadShared, ledger: None, ..how.clone() };
        let chain = Chain::open(host, &parent.path, &shared).ok()?;
        let mut files = chain.layers().iter().filter_map(|layer| layer.image.files().into_iter().next());
        let own = own.witness().ok()?;
        files.any(|file| file.witness().is_ok_and(|file| file.same_file(&own))).then_some(())
    };
    match Chain::open(host, &parent.path, &how.clone().with_access(Access::Read)) {
        // It is this image that is locked: by this job.
        Err(e)
            if e.kind() == ErrorKind::Busy
                && own.first().is_some_and(|own| lies_on(own.as_ref()).is_some()) =>
        {
            let what = format!("{} lies on it, and cannot be its parent", parent.path.display());
            Err(Error::invalid(what).path(&head.path))
        }
        opened => opened,
    }
}

fn link(head: &Layer, parent: &Chain) -> Result<ParentName> {
    Ok(parent.head()?.name_in(head.path.parent().unwrap_or(Path::new("/"))))
}
