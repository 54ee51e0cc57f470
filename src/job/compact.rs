//! Space back to the host: zeros that an image stores become entries that say so and hold nothing, and what is
//! free then goes.
//!
//! What the image shows does not change at any moment: only ranges that were read as zeros are made zero. So a
//! compaction that is stopped, or cut off, has done a part of its work and harmed nothing.

use super::{Progress, snapshot::refuse_children};
use crate::{
    base::{GuestOffset, GuestRange, Result, units::index},
    chain::{Chain, Layer, Opening, View},
    format::Below,
    io::{Access, Host, Kept},
    map::{Extent, State},
    store::Ledger,
};
use rayon::prelude::*;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// How much of the map is looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;
/// How much is read in one go.
const PIECE_BYTES: u64 = 1 << 20;
/// The unit of zeros where a format has none of its own: what a file system allocates.
const BLOCK_BYTES: u64 = 4096;

/// What a compaction is going to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Space that it takes on the host now, in bytes.
    pub allocated_bytes: u64,
    /// Bytes that are read to find zeros among them.
    pub read_bytes: u64,
    /// Persistent bitmaps that will be marked as in use, because nothing here keeps them up.
    pub bitmaps_stale: Vec<String>,
}

/// What a compaction did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Compacted {
    /// The image.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub image: PathBuf,
    /// Bytes of the disk that were stored as zeros, and are only said to be zero now.
    pub zeroed_bytes: u64,
    /// Space that went back to the host, in bytes.
    pub released_bytes: u64,
    /// Space that the image takes on the host now, in bytes.
    pub allocated_bytes: u64,
}

/// A compaction that is planned: nothing is written yet.
#[derive(Debug)]
pub struct Compaction {
    chain: Chain,
    plan: Plan,
    ledger: Option<Ledger>,
}

/// How zeros in an image are made to take no space.
struct Zeroing<'a> {
    head: &'a Layer,
    below: View,
    /// What can be zero at once, for plain and for packed data.
    units: (u64, u64),
    marks_zeros: bool,
    progress: &'a Progress,
    zeroed_bytes: AtomicU64,
}

impl Compaction {
    /// Opens the image for writing and finds out how much has to be read.
    ///
    /// `Busy` if it is in use, or if another image of its folder lies on it.
    pub fn prepare(host: &Arc<dyn Host>, image: &Path, opening: &Opening) -> Result<Self> {
        let chain = Chain::open(host, image, &Opening { access: Access::Write, ..opening.clone() })?;
        let head = chain.head()?;
        refuse_children(host, head)?;
        let mut read_bytes = 0;
        for stride in GuestOffset::new(0).range(head.size()).pieces(STRIDE_BYTES) {
            let data = stored(head, stride)?.into_iter().filter(|e| e.state.is_data());
            read_bytes += data.map(|e| e.range.bytes).sum::<u64>();
        }
        let bitmaps = head.image.details()?.bitmaps.into_iter();
        let plan = Plan {
            image: head.path.clone(),
            allocated_bytes: allocated_bytes(head)?,
            read_bytes,
            bitmaps_stale: bitmaps.filter(|b| b.is_auto && !b.is_in_use).map(|b| b.name).collect(),
        };
        Ok(Self { chain, plan, ledger: opening.ledger.clone() })
    }

    /// Returns what is going to be done.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it.
    pub fn run(self, progress: &Progress) -> Result<Compacted> {
        progress.begin("compact", self.plan.read_bytes);
        let image = self.chain.head()?.image.as_ref();
        match &self.ledger {
            // The view stays as it is, so a record of it stays true.
            Some(ledger) => ledger.tend(image, || self.compact(progress)),
            None => self.compact(progress),
        }
    }

    fn compact(&self, progress: &Progress) -> Result<Compacted> {
        let head = self.chain.head()?;
        let details = head.image.details()?;
        let zeroing = Zeroing {
            head,
            below: self.chain.below(),
            units: details.cluster_bytes.map_or((BLOCK_BYTES, BLOCK_BYTES), |c| (head.image.unit(), c)),
            marks_zeros: details.marks_zeros,
            progress,
            zeroed_bytes: AtomicU64::new(0),
        };
        for stride in GuestOffset::new(0).range(head.size()).pieces(STRIDE_BYTES) {
            zeroing.stride(stride)?;
        }
        head.image.flush()?;
        head.image.release()?;
        let allocated_bytes = allocated_bytes(head)?;
        Ok(Compacted {
            image: head.path.clone(),
            zeroed_bytes: zeroing.zeroed_bytes.into_inner(),
            released_bytes: self.plan.allocated_bytes.saturating_sub(allocated_bytes),
            allocated_bytes,
        })
    }
}

impl Zeroing<'_> {
    fn stride(&self, stride: GuestRange) -> Result<()> {
        let (data, held): (Vec<_>, Vec<_>) =
            stored(self.head, stride)?.into_iter().partition(|e| e.state.is_data());
        for extent in held {
            self.progress.checkpoint()?;
            self.head.image.zero(extent.range, Kept::Nothing, &self.below)?;
        }
        let pieces: Vec<(GuestRange, u64)> = data.iter().flat_map(|extent| self.pieces(extent)).collect();
        pieces.par_iter().try_for_each(|(piece, unit)| self.piece(*piece, *unit))?;
        let tried = pieces.iter().map(|(piece, _)| piece.bytes).sum();
        self.progress.passed(data.iter().map(|e| e.range.bytes).sum::<u64>().saturating_sub(tried));
        Ok(())
    }

    /// Returns the whole units of an extent, in pieces to be read at once; the disk's last unit may be shorter.
    fn pieces(&self, extent: &Extent) -> Vec<(GuestRange, u64)> {
        let unit = if extent.state == State::Packed { self.units.1 } else { self.units.0 };
        let end = extent.range.end();
        let end = if end.bytes() == self.head.size() { end } else { end.floor(unit) };
        let whole = GuestRange::between(extent.range.start.ceil(unit), end);
        whole.pieces(PIECE_BYTES.max(unit)).map(|piece| (piece, unit)).collect()
    }

    fn piece(&self, piece: GuestRange, unit: u64) -> Result<()> {
        self.progress.checkpoint()?;
        let mut bytes = vec![0; index(piece.bytes)];
        self.head.image.read(piece.start, &mut bytes, &self.below)?;
        let mut zeros: Vec<GuestRange> = Vec::new();
        for (range, bytes) in piece.pieces(unit).zip(bytes.chunks(index(unit))) {
            match zeros.last_mut() {
                _ if bytes.iter().fold(0, |all, byte| all | byte) != 0 => {}
                Some(last) if last.end() == range.start => last.bytes += range.bytes,
                _ => zeros.push(range),
            }
        }
        for range in zeros {
            // Where no entry can say zero, the bytes would only be written once more.
            if self.marks_zeros || self.below.is_zero(range)? {
                self.head.image.zero(range, Kept::Nothing, &self.below)?;
                self.zeroed_bytes.fetch_add(range.bytes, Relaxed);
            }
        }
        self.progress.moved(piece.bytes);
        Ok(())
    }
}

/// Returns for what of `stride` the layer itself takes space: data, and zeros with a place.
fn stored(head: &Layer, stride: GuestRange) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    head.image.map(stride, &mut extents)?;
    extents.retain(|extent| extent.state.is_data() || matches!(extent.state, State::Zero { host: Some(_) }));
    Ok(extents)
}

fn allocated_bytes(head: &Layer) -> Result<u64> {
    head.image.files().iter().map(|file| file.allocated_bytes()).sum()
}
