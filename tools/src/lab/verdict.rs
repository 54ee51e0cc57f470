//! Whether a machine shows what it must.

use crate::{
    history::{DISK, History, range},
    log::{Expected, Log},
    mark::{self, Mark, SECTOR},
};
use deltachain::{
    base::units::SECTOR_BYTES,
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
        let opened = self.open(host);
        if log.created().is_none_or(|end| end > events) {
            return Ok(Vec::new());
        }
        let image = opened.map_err(|error| format!("does not open: {error}"))?;
        let found = self.compare(&*image, &log.expected(events))?;
        drop(image);
        self.check(host)?;
        Ok(found)
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
        match format::check(self.format, file, Repair::Nothing, &NoParts) {
            Ok(checked) if checked.corruptions == 0 && checked.errors == 0 => Ok(()),
            Ok(checked) => Err(format!("check: {:?}", checked.findings)),
            Err(error) => Err(format!("cannot be checked: {error}")),
        }
    }
}
