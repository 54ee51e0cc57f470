//! Adopting clusters of another file: first the bytes, in runs as long as that file has them; later the entries.
//!
//! ```text
//!   adopt   (state, exclusive)   free clusters in a row are kept from being taken; the file says they are free
//!           (no lock)            the host shares the run
//!   point   (state, exclusive)   each is counted when the first entry refers to it, as with a first write
//! ```
//! A host that shares blocks asks the same for one cluster and for a thousand in a row; so what a guest wrote here and
//! there, and its file holds in one run, is shared in one go, whatever the order of the guest. What the entries referred
//! to before is given back by the next flush. The file grows by what is adopted, and gets holes: never beyond twice
//! the disk's size. What a job adopts and has not pointed to when it is cut off is free space of the image, until
//! something takes it or [`Image::release`](crate::format::Image::release) gives it back.

use super::{
    flush::{Halt, Tried},
    image::{Qcow2Image, State},
    write::Place,
};
use crate::{
    base::{ErrorKind, GuestOffset, GuestRange, HostOffset, HostRange, Result},
    format::Adopted,
    io::{self, File},
};

/// A shorter run is not worth a place of its own.
const LEAST_BYTES: u64 = 1 << 20;

impl State {
    /// Counts the clusters at `place`, which were adopted, and makes the entries changeable that are to point there.
    fn begin_pointing(&mut self, guest: GuestOffset, place: HostRange) -> Tried<bool> {
        self.check_room()?;
        self.tables.load(guest)?;
        self.own_table(guest)?;
        Ok(self.count_adopted(place)?)
    }
}

impl Qcow2Image {
    /// Takes in the start of `range` of `source`.
    pub(super) fn adopt_run(&self, source: &dyn File, range: HostRange) -> Result<Option<Adopted>> {
        self.begin_writing(GuestOffset::new(0).range(0))?;
        let cluster = self.shape.cluster();
        if self.shape.is_external || range.bytes < cluster {
            return Ok(None);
        }
        let wanted = range.bytes / cluster;
        let least = wanted.min(LEAST_BYTES.div_ceil(cluster));
        let adopt = |state: &mut State| {
            state.check_room()?;
            let end = HostOffset::new(state.size.saturating_mul(2));
            // A help that is not worth a larger refcount table, nor a failure.
            match state.adopt(wanted, least, end) {
                Err(Halt::TableFull) => Ok(None),
                Err(Halt::Failed(error)) if error.kind() == ErrorKind::NoSpace => Ok(None),
                kept => kept,
            }
        };
        let Some(place) = self.attempt(adopt)? else { return Ok(None) };
        let moved = io::share(source, range.start.range(place.bytes), &*self.file, place.start);
        if !matches!(moved, Ok(Some(_))) {
            self.state.write().disown(place);
        }
        Ok(moved?.map(|moved| Adopted { place, moved }))
    }

    /// Points the entries of `range` to the adopted clusters at `host`.
    pub(super) fn point_range(&self, range: GuestRange, host: HostOffset) -> Result<bool> {
        self.check_range(range)?;
        self.begin_writing(range)?;
        let cluster = self.shape.cluster();
        if range != range.inner(cluster) || host != host.floor(cluster) || range.is_empty() {
            return Ok(false);
        }
        let place = |part: GuestRange| host.plus(part.start.since(range.start)).range(part.bytes);
        let page_span = self.state.read().tables.page_span();
        let _claim = self.claims.take(range);
        for piece in range.pieces(page_span) {
            if !self.attempt(|state| state.begin_pointing(piece.start, place(piece)))? {
                return Ok(false);
            }
            let mut state = self.state.write();
            let published = state.publish(&Place::whole(piece, place(piece).start), piece);
            if let Err(error) = published {
                // A refcount that cannot be taken back is a leak; the caller learns why the entries are not set.
                drop(state.drop_reference(place(piece)));
                return Err(error);
            }
        }
        Ok(true)
    }
}
