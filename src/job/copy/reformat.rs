//! Layers in another format: each becomes an image of its own that lies on its parent's as the old one does.
//!
//! What a layer holds, data and zeros, is brought to the new image at the same place; what it is silent about stays
//! silent, but for the rest of the new image's units, which comes from below. Before the new layer gets its name
//! its content ID is computed and held against the old one's: each over that of the layer below, so that every
//! layer is read once on either side. So it is again with one that an earlier run has made, unless this boot vouches for it
//! and for its source.

use super::{Below, Copy, Placed, Report, file, places::Names, stand};
use crate::{
    base::{
        Error, ErrorKind, GuestOffset, GuestRange, Result,
        units::{SECTOR_BYTES, index},
    },
    chain::{Chain, Layer, View, header_name},
    content::{ContentId, Tree},
    disk::Disk,
    format::{self, BitmapEdit, Creation, Format, Image, NoParts, ParentName},
    io::{Host, Kept, Moved, Witness},
    job::{
        Progress,
        convert::refuse_unpacked,
        create::{SECTORS, options_on},
        seal,
    },
    map::{Extent, State},
    store::{Draft, Transfer, Trust},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Guest bytes whose map is looked at in one go.
const STRIDE_BYTES: u64 = 256 << 20;

/// What is put together in memory in one go.
const PIECE_BYTES: u64 = 1 << 20;

/// What the layers are turned into.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The format of the new layers.
    pub format: Format,
    /// The format's own options.
    pub options: Vec<(String, String)>,
    /// Whether clusters are compressed.
    pub is_packed: bool,
    /// What new layers are called, by the places of the old ones. One that is not in it keeps its name, but for a suffix that
    /// tells the old format.
    pub names: BTreeMap<PathBuf, PathBuf>,
}

/// A layer whose view is the same in the new format.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Proved {
    /// The new image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// What the old and the new one show.
    pub id: ContentId,
}

impl Conversion {
    /// Returns it in words: layers that were made in another way are not gone on with.
    pub(super) fn form(&self) -> String {
        let Self { format, options, is_packed, names: _ } = self;
        format!("{} {options:?} {is_packed}", format.name())
    }

    /// Says where the layers go; `Unsupported`, with the layer, where the format has no way to name a parent, `Invalid` where
    /// it has no way to say the layer's size: nothing is rounded.
    pub(super) fn placed(
        &self,
        host: &dyn Host,
        chain: &Chain,
        folder: &Path,
        transfer: &Transfer,
    ) -> Result<Vec<Placed>> {
        if let (Format::Raw, [.., child, _]) = (self.format, chain.layers()) {
            let what = "lies on another image, and a raw one cannot: only a whole disk can become raw";
            return Err(Error::unsupported(what).path(&child.path));
        }
        let mut out = Vec::new();
        let places = self.places(chain.layers(), folder);
        for (nth, (layer, to)) in chain.layers().iter().zip(&places).enumerate() {
            Draft::check_name(to)?;
            self.check(chain.layers().get(nth..).unwrap_or_default(), places.get(nth + 1), folder)?;
            let files = layer.image.files();
            let is_done = file::is_done(host, &file::witnesses(&files)?, to, transfer)?;
            if !is_done && host.is_taken(to)? {
                return Err(Error::new(ErrorKind::Exists, "is there already").path(to));
            }
            let bytes = files.iter().map(|f| f.allocated_bytes()).sum::<Result<u64>>()?;
            let to = to.clone();
            out.push(Placed::Convert { from: layer.path.clone(), to, format: self.format, bytes, is_done });
        }
        Ok(out)
    }

    /// Refuses what the new format cannot say of the topmost of `layers`, whose parent goes to `below`.
    fn check(&self, layers: &[Layer], below: Option<&PathBuf>, folder: &Path) -> Result<()> {
        let Some(layer) = layers.first() else { return Ok(()) };
        let own = || Some(self.format.name().to_owned());
        let parent = below.map(|below| ParentName::new(header_name(folder, below), own()));
        let options = self.options_on(layers);
        let size = layer.size().next_multiple_of(SECTOR_BYTES);
        let check = || {
            let new = format::measure(self.format, &Creation { size, parent, options })?;
            if !new.can_be_layer {
                let what = "with these options it would have further files, or be written only once: a layer is one file here";
                return Err(Error::invalid(what));
            }
            refuse_unpacked(self.is_packed && !new.packs, self.format)
        };
        check().map_err(|e| e.path(&layer.path))
    }

    fn options_on(&self, layers: &[Layer]) -> Vec<(String, String)> {
        options_on(layers.iter().map(|layer| layer.image.as_ref()), self.format, &self.options)
    }

    /// Returns where the new layers go.
    pub(super) fn places(&self, layers: &[Layer], folder: &Path) -> Vec<PathBuf> {
        let mut names = Names::default();
        let mut name = |layer: &Layer| match self.names.get(&layer.path) {
            Some(name) => name.clone(),
            None => names.take(self.name_of((&layer.path, layer.format())), &layer.path),
        };
        layers.iter().map(|layer| folder.join(name(layer))).collect()
    }

    /// Returns the name of the new layer: that of the old one, but for a suffix that tells the old format.
    pub(super) fn name_of(&self, (path, format): (&Path, Format)) -> PathBuf {
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        let is_it = |suffix: &&&str| name.extension().is_some_and(|own| own.eq_ignore_ascii_case(suffix));
        match (format.suffixes().iter().find(is_it), self.format.suffixes().first()) {
            (Some(_), Some(new)) => name.with_extension(new),
            _ => name,
        }
    }

    /// Returns what the new layers do not have.
    pub(super) fn losses(&self, chain: &Chain) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        let says_sectors = self.format.options().iter().any(|(name, _)| *name == SECTORS);
        let (size, options) = (chain.size().next_multiple_of(SECTOR_BYTES), self.options_on(chain.layers()));
        let holds_bitmaps =
            format::measure(self.format, &Creation { size, parent: None, options })?.has_bitmaps;
        for layer in chain.layers() {
            let details = layer.image.details()?;
            let name = layer.path.display();
            let sector =
                Some(layer.image.sector_bytes()).filter(|bytes| *bytes != SECTOR_BYTES && !says_sectors);
            lost.extend(
                sector.map(|bytes| format!("{name}: sectors of {bytes} bytes (guests see {SECTOR_BYTES})")),
            );
            lost.extend(details.snapshots.iter().map(|s| format!("{name}: snapshot {}", s.name)));
            let bitmaps = details.bitmaps.iter().filter(|bitmap| bitmap.is_in_use || !holds_bitmaps);
            lost.extend(bitmaps.map(|bitmap| format!("{name}: bitmap {}", bitmap.name)));
        }
        Ok(lost)
    }
}

impl Copy {
    /// Makes one layer anew, on what it lies on at the target, and gives it its name once it is proved.
    ///
    /// `tree` is that of the layer below, and then that of this one.
    pub(super) fn convert_layer(
        &mut self,
        (depth, to): (usize, &Path),
        new: &Conversion,
        (below, tree): (Option<&Below>, &mut Option<Tree>),
        (report, progress): (&mut Report, &Progress),
    ) -> Result<Chain> {
        let layer = self.chain.layers().get(depth).ok_or_else(|| Error::invalid("no such layer"))?.clone();
        let (source, files) = (self.chain.view(depth), layer.image.files());
        let (under, seen) = (tree.take(), file::witnesses(&files)?);
        let open = || Chain::open(&self.host, to, &self.opening.clone().with_format(Some(new.format)));
        let (chain, shown) = if file::is_done(self.host.as_ref(), &seen, to, &self.transfer)? {
            let chain = open()?;
            if let Some(kept) = self.kept((&chain, to), &seen)? {
                (chain, kept)
            } else {
                let shown = hashed(&source, under.clone(), progress)?;
                prove((&chain.view(0), to), (under, &shown), progress)?;
                (chain, shown)
            }
        } else {
            let shown = hashed(&source, under.clone(), progress)?;
            progress.begin("copy", source.size());
            let mut draft = file::Copied::begin_anew(&self.host, &files, to, &mut self.transfer)?;
            let parent = match below {
                Some(below) => Some(below.chain.head()?.name_in(to.parent().unwrap_or(Path::new("/")))),
                None => None,
            };
            let size = layer.size().next_multiple_of(SECTOR_BYTES);
            let images = source.images().iter().map(AsRef::as_ref);
            let options = options_on(images, new.format, &new.options);
            let creation = Creation { size, parent, options };
            let image = format::create(new.format, draft.file(), &creation, &NoParts)?;
            let lower = below.map_or_else(|| View::new(&[]), |below| below.chain.view(0));
            let filling = Filling { source: &source, target: image.as_ref(), lower: &lower, progress };
            draft.wrote(filling.fill(new.is_packed, below.is_some())?);
            draft.refuse_changed(&layer.path, &file::witnesses(&files)?)?;
            bring_bitmaps(layer.image.as_ref(), image.as_ref())?;
            image.flush()?;
            prove((&standing(&image, to, below), to), (under, &shown), progress)?;
            stand(&self.ledger, (&image, to), below, depth > 0)?;
            self.seal(&image, depth, &shown)?;
            if let Some(below) = below {
                below.look_again(&self.ledger)?;
            }
            drop(image);
            draft.finish(to, &mut self.transfer, report)?;
            (open()?, shown)
        };
        report.proved.push(Proved { image: to.to_path_buf(), id: shown.id() });
        *tree = Some(shown);
        Ok(chain)
    }

    /// Returns the tree of what a layer shows that was made before, where this boot vouches for it and for its sources.
    fn kept(&self, (made, to): (&Chain, &Path), sources: &[Witness]) -> Result<Option<Tree>> {
        let name = Path::new(to.file_name().unwrap_or_default());
        let is_vouched = self.transfer.part(name, sources).is_some_and(|part| part.sources() == sources);
        match made.standings().first().and_then(|standing| standing.known.proven()).filter(|_| is_vouched) {
            Some(id) => self.ledger.tree(made.head()?.image.as_ref(), &id),
            None => Ok(None),
        }
    }

    /// A layer that something lies on keeps the ID that was just computed.
    pub(super) fn seal(&self, image: &Arc<dyn Image>, depth: usize, shown: &Tree) -> Result<()> {
        let known = self.ledger.look(image.as_ref())?;
        if depth == 0 || !matches!(known.trust, Trust::Trusted | Trust::Claimed) {
            return Ok(());
        }
        self.ledger.seal(image.as_ref(), shown, &known).map(drop)
    }
}

/// Returns what an image shows that lies on what is below.
fn standing(image: &Arc<dyn Image>, to: &Path, below: Option<&Below>) -> View {
    let mut layers = vec![Layer { path: to.to_path_buf(), is_stated: true, image: Arc::clone(image) }];
    layers.extend(below.iter().flat_map(|below| below.chain.layers().iter().cloned()));
    View::new(&layers)
}

/// Fails with `Corrupt` if the new layer does not show what the old one shows.
fn prove(
    (new, to): (&View, &Path),
    (under, shown): (Option<Tree>, &Tree),
    progress: &Progress,
) -> Result<()> {
    let found = hashed(new, under, progress)?.id();
    if found == shown.id() {
        return Ok(());
    }
    let what = format!("shows {} in the new format, not {}", found.short(), shown.id().short());
    Err(Error::corrupt(what).path(to))
}

fn hashed(view: &View, below: Option<Tree>, progress: &Progress) -> Result<Tree> {
    let hashed = match below {
        None => seal::full_tree(view, progress)?,
        Some(below) => seal::tree_over(view, below, progress)?,
    };
    Ok(hashed.tree)
}

/// Carries the bitmaps that can be trusted to an image of the same size.
fn bring_bitmaps(from: &dyn Image, to: &dyn Image) -> Result<()> {
    if !to.details()?.holds_bitmaps {
        return Ok(());
    }
    for bitmap in from.details()?.bitmaps.into_iter().filter(|bitmap| !bitmap.is_in_use) {
        let bits = from.bitmap(&bitmap.name)?;
        to.edit_bitmap(&BitmapEdit::Put { name: bitmap.name, bits, is_auto: bitmap.is_auto })?;
    }
    Ok(())
}

/// Bringing what one layer holds to another image.
struct Filling<'a> {
    /// The layer's view; its topmost layer is the one that is brought over.
    source: &'a View,
    target: &'a dyn Image,
    /// What the target lies on.
    lower: &'a View,
    progress: &'a Progress,
}

impl Filling<'_> {
    fn fill(&self, is_packed: bool, has_parent: bool) -> Result<Moved> {
        let details = self.target.details()?;
        refuse_unpacked(is_packed && !details.packs, self.target.format())?;
        let cluster = details.cluster_bytes.filter(|_| is_packed);
        let (mut moved, mut packed) = (Moved::default(), GuestOffset::new(0));
        for stride in GuestOffset::new(0).range(self.source.size()).pieces(STRIDE_BYTES) {
            let mut extents: Vec<Extent> = Vec::new();
            self.source.own_map(stride, &mut extents)?;
            for extent in extents {
                self.progress.checkpoint()?;
                match (extent.state, cluster) {
                    (State::Absent, _) => {}
                    // Without a parent, what is not there reads as zeros.
                    (State::Zero { .. }, _) if !has_parent => {}
                    (State::Zero { .. }, _) => {
                        let rest = GuestRange::between(extent.range.start.max(packed), extent.range.end());
                        if !rest.is_empty() {
                            self.target.zero(rest, Kept::Nothing, self.lower)?;
                        }
                    }
                    (State::Data { .. } | State::Packed, Some(cluster)) => {
                        packed = self.pack(extent.range, cluster, (packed, &mut moved))?;
                    }
                    (State::Data { host }, None) => self.carry(extent.range, host, &mut moved)?,
                    (State::Packed, None) => self.write(extent.range, &mut moved)?,
                }
                self.progress.moved(extent.range.bytes);
            }
        }
        Ok(moved)
    }

    fn carry(&self, range: GuestRange, from: crate::base::HostOffset, moved: &mut Moved) -> Result<()> {
        let image = self.source.images().first().ok_or_else(|| Error::invalid("a view without layers"))?;
        let file = image.data_file();
        let mut host = from;
        for piece in range.pieces(16 * PIECE_BYTES) {
            self.progress.checkpoint()?;
            let done = self.target.write_from(piece, file.as_ref(), host, self.lower)?;
            moved.copied_bytes += done.copied_bytes;
            moved.shared_bytes += done.shared_bytes;
            host = host.plus(piece.bytes);
        }
        Ok(())
    }

    fn write(&self, range: GuestRange, moved: &mut Moved) -> Result<()> {
        for piece in range.pieces(PIECE_BYTES) {
            let mut bytes = vec![0; index(piece.bytes)];
            self.source.read(piece.start, &mut bytes)?;
            self.target.write(piece.start, &bytes, self.lower)?;
            moved.copied_bytes += piece.bytes;
        }
        Ok(())
    }

    /// Stores the clusters that `range` touches compressed, those behind `done`; returns where they end.
    fn pack(
        &self,
        range: GuestRange,
        cluster: u64,
        (done, moved): (GuestOffset, &mut Moved),
    ) -> Result<GuestOffset> {
        let outer = range.outer(cluster).clip(GuestOffset::new(0).range(self.source.size()));
        let rest = GuestRange::between(outer.start.max(done), outer.end());
        for piece in rest.pieces(cluster) {
            self.progress.checkpoint()?;
            let mut bytes = vec![0; index(piece.bytes)];
            self.source.read(piece.start, &mut bytes)?;
            match self.target.pack(&bytes) {
                Some(packed) => self.target.write_packed(piece.start, &packed)?,
                None => self.target.write(piece.start, &bytes, self.lower)?,
            }
            moved.copied_bytes += piece.bytes;
        }
        Ok(rest.end().max(done))
    }
}
