//! Giving space back to the host that the image does not use.
//!
//! Refcounts say what is free. An image whose refcounts are too low would lose data here, so every reference is
//! counted first, and an image that contradicts itself is refused. No cluster is taken or given up meanwhile:
//! what is free stays free until its space is gone, and no durable table points there, because a refcount goes
//! down only after the reference is durably gone.

use super::{
    check,
    image::{Qcow2Image, State},
};
use crate::{
    base::{Error, Guard, HostOffset, HostRange, Result},
    io::Kept,
};

impl State {
    /// Returns the end of the last cluster that is in use, in a file of `file_bytes` bytes.
    fn used_end(&mut self, file_bytes: u64) -> Result<HostOffset> {
        let cluster = self.tables.shape.cluster();
        let mut end = file_bytes.div_ceil(cluster);
        while end > 0 && self.refcount(end - 1)? == 0 {
            end -= 1;
        }
        Ok(HostOffset::new(end * cluster))
    }

    /// Returns the free clusters that `run` touches, joined.
    fn free_in(&mut self, run: HostRange) -> Result<Vec<HostRange>> {
        let cluster = self.tables.shape.cluster();
        let mut free: Vec<HostRange> = Vec::new();
        for piece in run.outer(cluster).pieces(cluster) {
            if self.refcount(piece.start.bytes() / cluster)? != 0 {
                continue;
            }
            match free.last_mut() {
                Some(last) if last.end() == piece.start => last.bytes += cluster,
                _ => free.push(piece),
            }
        }
        Ok(free)
    }
}

impl Qcow2Image {
    /// Punches free clusters that hold blocks of the host, and cuts the free end off; returns the bytes given back.
    /// A power cut may take that back, or leave clusters that were cut off counted, which is a leak.
    ///
    /// `Corrupt`, and nothing done, if the refcounts are not what the tables refer to.
    pub(super) fn release_unused(&self) -> Result<u64> {
        self.check_writable()?;
        if self.file.is_device() {
            return Ok(0);
        }
        let mut header = self.header.lock();
        self.flush_under(&mut header)?;
        let found = check::look(&*self.file, &header)?;
        if Guard::ReleaseSound.trips(found.corruptions > 0 || found.errors > 0) {
            let first = found.findings.first().map_or("", String::as_str);
            return Err(Error::corrupt(format!("contradicts itself, so nothing is given back: {first}")));
        }
        let before = self.file.allocated_bytes()?;
        let mut state = self.state.write();
        state.check_sound()?;
        state.disown_all();
        let file_bytes = self.file.bytes()?;
        let end = state.used_end(file_bytes)?;
        if end.bytes() < file_bytes {
            self.file.set_bytes(end.bytes())?;
            state.tables.image.cut(end.bytes());
        }
        let mut at = HostOffset::new(0);
        while at < end {
            let run = self.file.run_at(at)?;
            if run.range.is_empty() {
                break;
            }
            if run.is_data {
                let free = state.free_in(run.range)?;
                free.into_iter().try_for_each(|range| self.file.zero(range, Kept::Nothing))?;
            }
            at = run.range.end();
        }
        drop(state);
        Ok(before.saturating_sub(self.file.allocated_bytes()?))
    }
}
