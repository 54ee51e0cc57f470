//! Layer 5: layers in order. A chain resolves parents under a stated policy, merges the layers' maps into one,
//! copies on write into its head, and is a [`Disk`].
//!
//! What stays true: every layer but the head is open for reading only and does not change while the chain is
//! open, so a merged map of the layers below the head never goes stale. A read resolves that map once and goes
//! straight to the file that has the bytes: depth costs nothing.
//!
//! ```text
//!   head (may be written)   ── Image::read/write, copy-up from ──┐
//!   layer 1 .. n            ── View: one merged map, paged ──────┘
//! ```

mod family;
mod lease;
mod lineage;
mod link;
mod open;
mod ova;
mod pair;
mod policy;
mod view;

pub use family::{DataFile, Family, Link, Member, member};
pub use lease::{lease, refuse_leased};
pub use lineage::{Standing, check_lineage, freeze, join, lineage, refuse_cut_off};
pub use link::{header_name, is_plain, relative_name};
pub use open::{FORMAT_UNSTATED, Opening, check_layer, open_layer};
pub use ova::Package;
pub use pair::{Both, Pair};
pub use policy::{COLON, Policy, UNSTATED};
pub use view::{Run, View};

use crate::{
    base::{Error, Guard, GuestOffset, GuestRange, Result, units::index},
    disk::{Disk, STATUS_MAX, Status},
    format::{Below, Format, Image, ParentName},
    io::{Host, Kept, Likeness},
    store::Ledger,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Bytes that are read at once to have them in the host's cache.
const CACHE_BYTES: u64 = 1 << 20;

/// An image with a place in a chain.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where the image is, without links or `..`.
    pub path: PathBuf,
    /// Whether a person or a child stated the format (false: it was recognised by its header).
    pub is_stated: bool,
    /// The open image.
    pub image: Arc<dyn Image>,
}

impl Layer {
    /// Returns the layer's format.
    pub fn format(&self) -> Format {
        self.image.format()
    }

    /// Returns the size of the layer's view in bytes.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Returns whose the layer is and who may use it, if it lies in files of this machine.
    pub fn likeness(&self) -> Option<Likeness> {
        Likeness::of(self.image.files().first()?.as_ref())
    }

    /// Returns how the header of a child in `folder` (absolute, without links) names this layer as its parent.
    pub fn name_in(&self, folder: &Path) -> ParentName {
        ParentName::of(self.image.as_ref(), header_name(folder, &self.path))
    }
}

/// Layers in order, the head first, the base last.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    standings: Vec<Standing>,
    is_writable: bool,
    /// Whether a job writes a layer below the head, where layers above hide it.
    is_moving: bool,
    /// All layers where the chain is only read; else those below the head.
    merged: View,
}

/// What lies below the head while a job writes there: never known to be zero, since a write that goes to both places
/// may come to light where the head says nothing.
///
/// What the map said before a read may be untrue after it: a guest has zeroed the place since, and the job's target has
/// put other bytes where they were. The head has had them first then, so that it tells.
struct Moving<'a> {
    view: &'a View,
    head: &'a dyn Image,
    /// Whether the head has something by now where it was silent before.
    is_overtaken: AtomicBool,
}

impl<'a> Moving<'a> {
    const fn new(view: &'a View, head: &'a dyn Image) -> Self {
        Self { view, head, is_overtaken: AtomicBool::new(false) }
    }
}

impl Below for Moving<'_> {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.view.read(at, buf)?;
        let mut extents = Vec::new();
        self.head.map(at.range(buf.len() as u64), &mut extents)?;
        let is_told = extents.iter().any(|extent| extent.state.is_present());
        if Guard::MovingLook.trips(is_told) {
            self.is_overtaken.store(true, Relaxed);
        }
        Ok(())
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        Ok(!Guard::ZeroNotAbsent.trips(true) && self.view.is_zero(range)?)
    }
}

impl Chain {
    /// Opens the image at `path` and all that lies below it.
    ///
    /// Fails with `NotFound` for a missing layer, `Policy` for a reference that may not be followed or a parent
    /// that is not what the child was made on, `Corrupt` for cycles and broken headers, `Busy` where a layer is
    /// locked.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{base::GuestOffset, chain::{Chain, Opening}, disk::Disk};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let base = folder.path().join("base.qcow2");
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let disk = Chain::open(&host, &base, &Opening::writing())?;
    /// disk.write(GuestOffset::new(512), b"hello")?;
    /// disk.flush()?;
    /// assert_eq!((disk.layers().len(), disk.size()), (1, 1 << 20));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(host: &Arc<dyn Host>, path: &Path, opening: &Opening) -> Result<Self> {
        let layers = open::layers(host, path, opening)?;
        if let Some(head) = layers.first().filter(|_| opening.access.writes() && !opening.is_live) {
            open::disown(host, head)?;
        }
        let standings = match &opening.ledger {
            Some(ledger) => {
                layers.first().map_or(Ok(()), |head| lineage::refuse_half_folded(ledger, head))?;
                lineage(ledger, &layers)?
            }
            None => Vec::new(),
        };
        check_lineage(&layers, &standings)?;
        Ok(Self { standings, ..Self::of(layers, opening.access.writes()) })
    }

    /// Makes a chain of layers that are open already, the head first (never empty).
    pub fn of(layers: Vec<Layer>, is_writable: bool) -> Self {
        let merged = View::new(layers.get(usize::from(is_writable)..).unwrap_or_default());
        Self { layers, standings: Vec::new(), is_writable, is_moving: false, merged }
    }

    /// The same, each layer looked at; one whose parent is not what it was made on is refused.
    pub fn looked_at(layers: Vec<Layer>, is_writable: bool, ledger: &Ledger) -> Result<Self> {
        let standings = lineage(ledger, &layers)?;
        check_lineage(&layers, &standings)?;
        Ok(Self { standings, ..Self::of(layers, is_writable) })
    }

    /// Makes a chain that is written while a job writes one of the layers below its head, in such a way that the
    /// view stays as it is.
    pub fn of_moving(layers: Vec<Layer>) -> Self {
        Self { is_moving: true, ..Self::of(layers, true) }
    }

    /// Returns the layers, the head first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns how each layer stands on its parent, in the order of [`Chain::layers`]; empty unless the chain was
    /// opened with a ledger.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// Returns the head.
    pub fn head(&self) -> Result<&Layer> {
        self.layers.first().ok_or_else(|| Error::invalid("a chain without layers"))
    }

    /// Returns what is read at layer `depth` and below, as it is now (0 is the head: true until it is written).
    pub fn view(&self, depth: usize) -> View {
        View::new(self.layers.get(depth..).unwrap_or_default())
    }

    /// Appends the merged map of `range` (within the size), in order, covering it.
    pub fn runs(&self, range: GuestRange, out: &mut Vec<Run>) -> Result<()> {
        self.first_runs(range, usize::MAX, out)
    }

    /// The same until about `most` runs are there.
    fn first_runs(&self, range: GuestRange, most: usize, out: &mut Vec<Run>) -> Result<()> {
        if self.is_writable {
            self.merged.runs_under(self.head()?.image.as_ref(), range, most, out)
        } else {
            self.merged.first_runs(range, most, out)
        }
    }

    /// Returns what lies below the head.
    pub fn below(&self) -> View {
        self.view(1)
    }

    fn check_range(&self, range: GuestRange) -> Result<()> {
        let fits = range.start.bytes().checked_add(range.bytes).is_some_and(|end| end <= self.size());
        if fits {
            return Ok(());
        }
        let name = self.layers.first().map(|l| l.path.clone()).unwrap_or_default();
        Err(Error::invalid(format!(
            "bytes {:#x} to {:#x} do not lie in the disk of {:#x} bytes",
            range.start,
            range.end(),
            self.size()
        ))
        .path(name))
    }

    /// Reads until nothing came in between: look, read, look again.
    fn read_moving(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let head = self.head()?.image.as_ref();
        loop {
            let below = Moving::new(&self.merged, head);
            head.read(at, buf, &below)?;
            // Each time more of it is the head's, so that this ends.
            if !below.is_overtaken.into_inner() {
                return Ok(());
            }
        }
    }

    fn writable_head(&self, range: GuestRange) -> Result<&Layer> {
        self.check_range(range)?;
        let head = self.head()?;
        if self.is_writable {
            return Ok(head);
        }
        Err(Error::invalid("is open for reading only").path(&head.path))
    }
}

impl Disk for Chain {
    fn size(&self) -> u64 {
        self.layers.first().map_or(0, Layer::size)
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn sector_bytes(&self) -> u32 {
        // Guests of a disk of larger sectors go on with them over a head whose format cannot say so.
        let largest = self.layers.iter().map(|layer| layer.image.sector_bytes()).max();
        largest.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(512)
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.check_range(at.range(buf.len() as u64))?;
        if self.is_moving {
            return self.read_moving(at, buf);
        }
        if self.is_writable {
            self.head()?.image.read(at, buf, &self.merged)
        } else {
            self.merged.read(at, buf)
        }
    }

    fn write(&self, at: GuestOffset, buf: &[u8]) -> Result<()> {
        self.writable_head(at.range(buf.len() as u64))?.image.write(at, buf, &self.merged)
    }

    fn zero(&self, range: GuestRange, kept: Kept) -> Result<()> {
        let head = self.writable_head(range)?;
        if self.is_moving {
            return head.image.zero(range, kept, &Moving::new(&self.merged, head.image.as_ref()));
        }
        head.image.zero(range, kept, &self.merged)
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        self.writable_head(range).is_ok_and(|head| head.image.zeroes_fast(range, kept))
    }

    fn cache(&self, range: GuestRange) -> Result<()> {
        self.check_range(range)?;
        // Into the host's cache, whatever file of whatever layer it is in.
        let mut scratch = vec![0; index(range.bytes.min(CACHE_BYTES))];
        range.pieces(CACHE_BYTES).try_for_each(|piece| {
            self.read(piece.start, scratch.get_mut(..index(piece.bytes)).unwrap_or_default())
        })
    }

    fn flush(&self) -> Result<()> {
        if self.is_writable { self.head()?.image.flush() } else { Ok(()) }
    }

    fn status(&self, range: GuestRange, out: &mut Vec<Status>) -> Result<()> {
        self.check_range(range)?;
        let mut runs = Vec::new();
        self.first_runs(range, STATUS_MAX, &mut runs)?;
        out.extend(runs.iter().map(|run| Status {
            range: run.range,
            depth: run.layer.and_then(|l| u32::try_from(l).ok()),
            is_zero: run.is_zero(),
        }));
        Ok(())
    }
}
