//! Whether a machine shows what it must.

use crate::{
    foreign,
    history::{BITMAP, Before, Beside, DATA, DISK, History, range},
    log::{Expected, Log},
    mark::{self, Mark, SECTOR},
};
use deltachain::{
    base::{
        HostOffset,
        units::{SECTOR_BYTES, count, index},
    },
    format::{self, Format, Image, NoParts, Repair},
    io::{Access, Host, faulty::SimHost},
};
use std::path::Path;

/// Either what each sector shows, or what is wrong, in words.
pub type Verdict = Result<Vec<Mark>, String>;

impl History {
    /// Opens the image on a machine whose power went behind `events` events, and compares all of it; checks
    /// its metadata, where only leaks are allowed.
    pub(crate) fn judge(&self, host: &SimHost, log: &Log, events: usize) -> Verdict {
        // Before the log is put in its place.
        let stamp =
            host.open(Path::new(DISK), Access::Read).ok().and_then(|file| self.stamp(host, file.as_ref()));
        let opened = self.open(host);
        if log.created().is_none_or(|end| end > events) {
            return Ok(Vec::new());
        }
        let image = opened.map_err(|error| format!("does not open: {error}"))?;
        let found = self.compare(&*image, &log.expected(events))?;
        self.judge_bitmap(&*image, &found)?;
        Self::judge_stamp(log, events, stamp.as_ref(), &found)?;
        drop(image);
        self.judge_data(host, log, (&log.expected(events), count(found.len())))?;
        self.judge_snapshot(host)?;
        self.check(host)?;
        Ok(found)
    }

    /// A bitmap that is not said to be stale tells of every change: it was made when nothing had changed.
    fn judge_bitmap(&self, image: &dyn Image, found: &[Mark]) -> Result<(), String> {
        if !self.has_bitmap() {
            return Ok(());
        }
        let details = image.details().map_err(|e| e.to_string())?;
        let bitmap = details.bitmaps.iter().find(|bitmap| bitmap.name == BITMAP);
        match bitmap {
            None => Err("its bitmap is gone".to_owned()),
            Some(bitmap) if bitmap.is_in_use => Ok(()),
            Some(_) => {
                let bits = image.bitmap(BITMAP).map_err(|e| e.to_string())?;
                let is_dirty = |sector: u64| {
                    let granule = sector * SECTOR_BYTES / bits.granularity_bytes();
                    bits.bytes().get(index(granule / 8)).is_some_and(|byte| byte >> (granule % 8) & 1 == 1)
                };
                let before = self.shown_before();
                let changed = (0..).zip(before.iter().zip(found)).filter(|(_, (then, now))| then != now);
                let missed = changed.map(|(sector, _)| sector).find(|sector| !is_dirty(*sector));
                missed.map_or(Ok(()), |sector| {
                    Err(format!("sector {sector} was written, and its bitmap says nothing of it"))
                })
            }
        }
    }

    /// A raw data file reads as the disk does, without the image. What was under way when the power went may be
    /// in the one and not in the other, until it is written again.
    fn judge_data(
        &self,
        host: &SimHost,
        log: &Log,
        (expected, size): (&Expected, u64),
    ) -> Result<(), String> {
        if !self.options.contains(&("data_file_raw", "on")) {
            return Ok(());
        }
        let file = host.open(Path::new(DATA), Access::Read).map_err(|e| e.to_string())?;
        let mut bytes = vec![0; index(file.bytes().map_err(|e| e.to_string())?)];
        file.read_at(HostOffset::new(0), &mut bytes).map_err(|e| e.to_string())?;
        // After a resize that failed it may be shorter: what is not there reads as zeros.
        if !log.has_failed() && count(bytes.len()) < size * SECTOR_BYTES {
            return Err(format!("its data file has {} bytes for {size} sectors", bytes.len()));
        }
        let mut sectors = (0..size).zip(bytes.chunks(SECTOR));
        let wrong = |(sector, found): &(u64, &[u8])| {
            (log.is_first_life() || expected.was_written(*sector))
                && !mark::read(*sector, found).is_some_and(|mark| expected.allows(*sector, mark))
        };
        match sectors.find(wrong) {
            Some((sector, found)) => {
                let (found, expected) = (mark::read(sector, found), expected.describe(sector));
                Err(format!("its data file shows {found:#x?} in sector {sector} instead of {expected}"))
            }
            None => Ok(()),
        }
    }

    /// What an internal snapshot shows does not change, whatever is written.
    fn judge_snapshot(&self, host: &SimHost) -> Result<(), String> {
        if !matches!(self.before, Before::Snapshot | Before::PackedSnapshot) {
            return Ok(());
        }
        let expected = self.shown_before();
        let apart = host.twin();
        let file = apart.open(Path::new(DISK), Access::Write).map_err(|e| e.to_string())?;
        foreign::go_to_snapshot(&*file).map_err(|e| e.to_string())?;
        let image =
            format::open(self.format, file, false, &NoParts).map_err(|e| format!("its snapshot: {e}"))?;
        let mut bytes = vec![0xee; index(image.size())];
        image.read(range(0, 0).start, &mut bytes, self).map_err(|e| format!("its snapshot: {e}"))?;
        let shown: Vec<_> = (0..).zip(bytes.chunks(SECTOR)).map(|(n, found)| mark::read(n, found)).collect();
        let is_same =
            shown.len() == expected.len() && shown.iter().zip(&expected).all(|(a, b)| *a == Some(*b));
        if is_same { Ok(()) } else { Err("its snapshot shows something else".to_owned()) }
    }

    /// Compares what an open image shows with what it may show.
    pub(crate) fn compare(&self, image: &dyn Image, expected: &Expected) -> Verdict {
        let size = image.size() / SECTOR_BYTES;
        if !expected.sizes.contains(&size) {
            return Err(format!("has {size} sectors instead of {:?}", expected.sizes));
        }
        let mut bytes = vec![0xee; usize::try_from(image.size()).unwrap_or_default()];
        image.read(range(0, 0).start, &mut bytes, self).map_err(|error| format!("does not read: {error}"))?;
        let mut marks = Vec::with_capacity(bytes.len() / SECTOR);
        for (sector, found) in (0..).zip(bytes.chunks(SECTOR)) {
            match mark::read(sector, found) {
                Some(mark) if expected.allows(sector, mark) => marks.push(mark),
                mark => {
                    let found =
                        mark.map_or_else(|| format!("{:02x?}...", found.get(..16)), |m| format!("{m:#x}"));
                    return Err(format!(
                        "sector {sector} shows {found} instead of {}",
                        expected.describe(sector)
                    ));
                }
            }
        }
        Ok(marks)
    }

    fn check(&self, host: &SimHost) -> Result<(), String> {
        if self.format == Format::Raw {
            return Ok(());
        }
        let file = host.open(Path::new(DISK), Access::Read).map_err(|error| error.to_string())?;
        match format::check(self.format, file, Repair::Nothing, &Beside(host)) {
            Ok(checked) if checked.corruptions == 0 && checked.errors == 0 => Ok(()),
            Ok(checked) => Err(format!("check: {:?}", checked.findings)),
            Err(error) => Err(format!("cannot be checked: {error}")),
        }
    }
}
