//! Writing: in place where this image alone holds the bytes, else into new clusters.
//!
//! ```text
//! claim the guest clusters          overlapping first writes wait here
//!   reserve   (state, exclusive)    host clusters taken and counted, an L2 table of our own
//!   move      (no lock)             the data; what else the first and last cluster show
//!   publish   (state, exclusive)    entries point to the new bytes; the old clusters wait for a flush
//! ```
//! A move that fails gives its clusters back: nothing pointed there yet.

use super::{
    entry::{self, Cluster, Held},
    flush::Tried,
    image::{Qcow2Image, State},
};
use crate::{
    base::{GuestOffset, GuestRange, HostOffset, HostRange, Result, units::index},
    format::{
        Below,
        part::part,
        source::{Job, Source},
    },
    io::{Kept, Moved},
    map::{self, RangeSet},
};

/// Up to here a first write is put together in memory and stored at once.
const TOGETHER_BYTES: u64 = 256 << 10;
/// Piece in which bytes are copied up.
const COPY_BYTES: u64 = 1 << 20;

/// Host clusters for a run of guest clusters.
#[derive(Debug)]
pub(super) struct Place {
    /// Whole guest clusters.
    guest: GuestRange,
    /// Where the first one goes.
    host: HostOffset,
    /// Whether the host clusters were taken for this write.
    is_new: bool,
    /// Whether they read as zeros.
    is_zero: bool,
    /// What must be copied up around the write, in order.
    fills: Vec<GuestRange>,
}

impl Place {
    /// New host clusters from `host` on that hold all of `guest` already.
    pub(super) const fn whole(guest: GuestRange, host: HostOffset) -> Self {
        Self { guest, host, is_new: true, is_zero: false, fills: Vec::new() }
    }

    fn host(&self, range: GuestRange) -> HostRange {
        self.host.plus(range.start.since(self.guest.start)).range(range.bytes)
    }
}

impl State {
    /// Returns the part of `range`, from its start, that may be written in place in one go.
    fn own_run(&self, range: GuestRange) -> Result<Option<HostRange>> {
        let shape = self.tables.shape;
        let mut run: Option<HostRange> = None;
        for piece in range.pieces(shape.unit()) {
            let cluster = self.tables.cluster(piece.start)?;
            let Some(host) = cluster.own().filter(|_| cluster.data & shape.mask(piece) != 0) else { break };
            let at = host.plus(piece.start.since(piece.start.floor(shape.cluster())));
            match &mut run {
                None => run = Some(at.range(piece.bytes)),
                Some(run) if run.end() == at => run.bytes += piece.bytes,
                Some(_) => break,
            }
        }
        Ok(run)
    }

    /// Gives `guest` an L2 table that may be written in place: a new one, or a copy of a shared one.
    pub(super) fn own_table(&mut self, guest: GuestOffset) -> Tried<()> {
        let cluster = self.tables.shape.cluster();
        let old = match self.tables.table(guest)? {
            Some((_, true)) => return Ok(()),
            Some((at, false)) => Some(at.range(cluster)),
            None => None,
        };
        let new = self.allocate_zeroed()?;
        let done = old.map_or(Ok(()), |old| {
            // A shared table was never changed here: what the file says is what it says.
            let mut bytes = vec![0; index(cluster)];
            self.tables.image.file.read_at(old.start, &mut bytes)?;
            self.tables.image.file.write_at(new.start, &bytes)
        });
        if let Err(error) = done.and_then(|()| self.tables.store_table(guest, entry::own_table(new.start))) {
            self.drop_reference(new)?;
            return Err(error.into());
        }
        self.tables.unreached.insert(new.start);
        self.dropped.extend(old);
        Ok(self.tables.load(guest)?)
    }

    /// Notes that the entries no longer refer to what `held` says, once they are durable.
    pub(super) fn drop_held(&mut self, held: Held) {
        match held {
            Held::Plain { host, .. } if !self.tables.shape.is_external => {
                self.dropped.push(host.range(self.tables.shape.cluster()));
            }
            Held::Packed(range) => self.dropped.push(range),
            Held::Plain { .. } | Held::Nowhere => {}
        }
    }

    /// Takes host clusters for the start of `range`, as many in a row as there are; `None` if another write
    /// has brought them meanwhile.
    fn reserve(&mut self, range: GuestRange) -> Tried<Option<Place>> {
        self.check_room()?;
        self.tables.load(range.start)?;
        if self.own_run(range)?.is_some() {
            return Ok(None);
        }
        self.own_table(range.start)?;
        let cluster = self.tables.shape.cluster();
        let outer = range.outer(cluster);
        if self.tables.shape.is_external {
            let host = HostOffset::new(outer.start.bytes());
            return Ok(Some(self.place(range, outer, host, false)?));
        }
        let first = self.tables.cluster(range.start)?.own();
        let mut run = outer.start.range(cluster);
        for piece in outer.pieces(cluster).skip(1) {
            let own = self.tables.cluster(piece.start)?.own();
            if own != first.map(|host| host.plus(run.bytes)) {
                break;
            }
            run.bytes += cluster;
        }
        if let Some(host) = first {
            return Ok(Some(self.place(range, run, host, false)?));
        }
        let pristine = self.pristine();
        let taken = self.allocate(run.bytes / cluster)?;
        // A long look for free clusters may have pushed the page out.
        let loaded = self.tables.load(range.start);
        let place = loaded.and_then(|()| self.place(range, run.start.range(taken.bytes), taken.start, true));
        let looked = place.and_then(|place| {
            let is_zero = !place.fills.is_empty() && self.reads_as_zeros(taken, pristine)?;
            Ok(Place { is_zero, ..place })
        });
        match looked {
            Ok(place) => Ok(Some(place)),
            Err(error) => Err(self.drop_reference(taken).err().unwrap_or(error).into()),
        }
    }

    /// Says what must be copied up when `range` is written into the clusters at `host`.
    fn place(&self, range: GuestRange, guest: GuestRange, host: HostOffset, is_new: bool) -> Result<Place> {
        let shape = self.tables.shape;
        let written: RangeSet = [range.clip(guest)].into_iter().collect();
        let mut fills = Vec::new();
        // An external data file is as long as the disk: nothing is stored past its end.
        let end = if shape.is_external { self.size } else { u64::MAX };
        let shown = GuestRange::between(GuestOffset::new(0), GuestOffset::new(end));
        let (first, last) = (guest.start, GuestOffset::new(guest.end().bytes() - shape.cluster()));
        for start in [Some(first), Some(last).filter(|last| *last != first)].into_iter().flatten() {
            let whole = start.range(shape.cluster());
            let (held, touched) = (self.tables.cluster(start)?.data, shape.mask(range.clip(whole)));
            // In clusters that stay, what is held may be written in place meanwhile: it is left alone.
            let needed = if is_new { held | touched } else { touched & !held };
            let units = Cluster { held: Held::Nowhere, data: needed, zero: !needed };
            let mut nth = 0;
            while nth < shape.units() {
                let (_, alike) = units.run(shape, nth);
                if needed >> nth & 1 != 0 {
                    let from = start.plus(u64::from(nth) * shape.unit());
                    let shown = from.range(u64::from(alike) * shape.unit()).clip(shown);
                    fills.extend(written.gaps(shown));
                }
                nth += alike;
            }
        }
        Ok(Place { guest, host, is_new, is_zero: false, fills })
    }

    /// Points the entries of `place` to it: `range` was written there.
    pub(super) fn publish(&mut self, place: &Place, range: GuestRange) -> Result<()> {
        self.check_sound()?;
        self.tables.load(place.guest.start)?;
        let shape = self.tables.shape;
        let mut entries = Vec::new();
        for piece in place.guest.pieces(shape.cluster()) {
            let old = self.tables.cluster(piece.start)?;
            let touched = shape.mask(range.clip(piece));
            let held = Held::Plain { host: place.host(piece).start, is_own: true };
            let new = Cluster { held, data: old.data | touched, zero: old.zero & !touched };
            entries.push((piece.start, old, new));
        }
        for (guest, old, new) in entries {
            self.tables.store(guest, new)?;
            if place.is_new {
                self.drop_held(old.held);
            }
        }
        Ok(())
    }
}

impl Qcow2Image {
    /// Stores a job's bytes.
    pub(super) fn write_job(&self, job: Job<'_>) -> Result<Moved> {
        let page_span = self.state.read().tables.page_span();
        let mut moved = Moved::default();
        for piece in job.range.pieces(page_span) {
            let mut left = piece;
            while !left.is_empty() {
                let (done, how) = match self.write_in_place(left, job)? {
                    (0, _) => self.write_new(left, job)?,
                    done => done,
                };
                left = GuestRange::between(left.start.plus(done), left.end());
                moved.shared_bytes += how.shared_bytes;
                moved.copied_bytes += how.copied_bytes;
            }
        }
        Ok(moved)
    }

    /// Writes the start of `range` in place, as far as that goes; returns how many bytes.
    fn write_in_place(&self, range: GuestRange, job: Job<'_>) -> Result<(u64, Moved)> {
        let state = self.view(range.start)?;
        state.check_sound()?;
        let Some(host) = state.own_run(range)? else { return Ok((0, Moved::default())) };
        let skip = range.start.since(job.range.start);
        Ok((host.bytes, job.source.put(skip, &*state.tables.data().file, host)?))
    }

    /// Writes the start of `range` into new clusters; returns how many bytes.
    fn write_new(&self, range: GuestRange, job: Job<'_>) -> Result<(u64, Moved)> {
        let _claim = self.claims.take(range.outer(self.shape.cluster()));
        let Some(mut place) = self.attempt(|state| state.reserve(range))? else {
            return Ok((0, Moved::default()));
        };
        let range = range.clip(place.guest);
        let moved = self
            .leave_zeros(&mut place, job.below)
            .and_then(|()| self.move_in(&place, Job { range, ..job }, range.start.since(job.range.start)));
        let done = moved.and_then(|moved| {
            self.state.write().publish(&place, range)?;
            Ok((range.bytes, moved))
        });
        if done.is_err() && place.is_new {
            // A refcount that cannot be taken back is a leak; the caller learns why the write failed.
            drop(self.state.write().drop_reference(place.host(place.guest)));
        }
        done
    }

    /// Fills nothing with zeros that reads so.
    fn leave_zeros(&self, place: &mut Place, below: &dyn Below) -> Result<()> {
        if place.is_zero {
            for fill in std::mem::take(&mut place.fills) {
                if !self.shows_zeros(fill, below)? {
                    place.fills.push(fill);
                }
            }
        }
        Ok(())
    }

    /// Stores what `place` is to hold: the job's bytes, `skip` bytes into its source, and what is around them.
    fn move_in(&self, place: &Place, job: Job<'_>, skip: u64) -> Result<Moved> {
        let file = self.data_file.as_ref().unwrap_or(&self.file);
        let start = place.fills.iter().map(|f| f.start).min().unwrap_or(job.range.start).min(job.range.start);
        let end = place.fills.iter().map(|f| f.end()).max().unwrap_or(job.range.end()).max(job.range.end());
        let span = GuestRange::between(start, end);
        let total = job.range.bytes + place.fills.iter().map(|f| f.bytes).sum::<u64>();
        if let Source::Bytes(bytes) = job.source
            && span.bytes == total
            && total <= TOGETHER_BYTES
            && !place.fills.is_empty()
        {
            let mut buf = vec![0; index(total)];
            for fill in &place.fills {
                self.read_shown(*fill, part(&mut buf, span, *fill)?, job.below)?;
            }
            let bytes = bytes.get(index(skip)..index(skip + job.range.bytes)).unwrap_or_default();
            part(&mut buf, span, job.range)?.copy_from_slice(bytes);
            file.write_at(place.host(span).start, &buf)?;
            return Ok(Moved { shared_bytes: 0, copied_bytes: job.range.bytes });
        }
        for fill in &place.fills {
            self.copy_up(*fill, place.host(*fill), job.below)?;
        }
        job.source.put(skip, &**file, place.host(job.range))
    }

    /// Stores what is shown at `range` in `host`.
    fn copy_up(&self, range: GuestRange, host: HostRange, below: &dyn Below) -> Result<()> {
        let file = self.data_file.as_ref().unwrap_or(&self.file);
        if self.shows_zeros(range, below)? {
            return file.zero(host, Kept::Space);
        }
        let mut buf = vec![0; index(range.bytes.min(COPY_BYTES))];
        for piece in range.pieces(COPY_BYTES) {
            let piece_buf = part(&mut buf, piece, piece)?;
            self.read_shown(piece, piece_buf, below)?;
            file.write_at(host.start.plus(piece.start.since(range.start)), piece_buf)?;
        }
        Ok(())
    }

    /// Fills `buf` with what is shown at `range`: zeros past the disk's end, whatever lies below.
    fn read_shown(&self, range: GuestRange, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let shown = self.on_disk(range);
        let (front, rest) = buf.split_at_mut(index(shown.bytes));
        rest.fill(0);
        self.read_unchecked(shown, front, below)
    }

    /// Returns whether all of `range` is known to show zeros.
    pub(super) fn shows_zeros(&self, range: GuestRange, below: &dyn Below) -> Result<bool> {
        let mut extents = Vec::new();
        self.map_unchecked(range, &mut extents)?;
        for extent in extents {
            let is_zero = match extent.state {
                map::State::Zero { .. } => true,
                map::State::Absent => below.is_zero(extent.range)?,
                map::State::Data { .. } | map::State::Packed => false,
            };
            if !is_zero {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Cuts off what is past the disk's end.
    pub(super) fn on_disk(&self, range: GuestRange) -> GuestRange {
        let end = GuestOffset::new(self.state.read().size);
        GuestRange::between(range.start.min(end), range.end().min(end))
    }
}
