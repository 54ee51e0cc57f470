//! raw: the disk's bytes as they are, in a file or a block device.
//!
//! The view is the file's length rounded up to whole sectors: what lies past the end reads as zeros and
//! grows the file when it is written. A hole in the file is zeros, not silence: a raw layer hides all below
//! it, names no parent and has no place for a record.

use super::{Below, Creation, Details, Format, Identity, Image, Measure, ParentName, Parts, check_on_disk};
use crate::{
    base::{
        Budget, Error, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        error::InFile,
        units::{self, SECTOR_BYTES},
    },
    io::{self, File, Kept, Moved},
    map::{self, Extent, State},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The options of new raw images: name, and what it does.
pub const OPTIONS: &[(&str, &str)] =
    &[("preallocation", "what is reserved at once: off (default), falloc, full (zeros written)")];

/// An open raw image.
#[derive(Debug)]
struct RawImage {
    file: Arc<dyn File>,
    /// Whole sectors.
    size: AtomicU64,
    is_writable: bool,
    budget: Budget,
}

/// How much of a new file is reserved (`-o preallocation=`).
enum Preallocation {
    /// Nothing: one hole.
    Off,
    /// All of it, by the host.
    Falloc,
    /// All of it, by writing zeros.
    Full,
}

/// Opens a raw image: any file or device is one.
pub fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    let size = AtomicU64::new(whole_sectors(file.bytes()?));
    Ok(Arc::new(RawImage { file, size, is_writable, budget: parts.budget() }))
}

/// Makes a raw image in an empty file or a device that is large enough (whose bytes stay as they are).
///
/// Options: `preallocation` = `off`, `falloc` or `full`.
pub fn create(file: Arc<dyn File>, creation: &Creation, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    let in_file = |e: Error| e.path(file.path());
    if creation.parent.is_some() {
        return Err(in_file(Error::unsupported("a raw image cannot have a parent")));
    }
    let preallocation = preallocation(&creation.options).map_err(in_file)?;
    let all = HostOffset::new(0).range(creation.size);
    if file.is_device() {
        let held = file.bytes()?;
        if held < creation.size {
            let what = format!("the device has {held} bytes, too few for a disk of {}", creation.size);
            return Err(in_file(Error::invalid(what)));
        }
    } else {
        match preallocation {
            Preallocation::Off => file.set_bytes(creation.size)?,
            Preallocation::Falloc => file.allocate(all)?,
            Preallocation::Full => {
                let zeros = vec![0; 1 << 20];
                for piece in all.pieces(1 << 20) {
                    file.write_at(piece.start, zeros.get(..units::index(piece.bytes)).unwrap_or(&zeros))?;
                }
            }
        }
    }
    open(file, true, parts)
}

/// Sums up a new raw image: as large as its disk, holes included, as qemu counts.
pub fn measure(creation: &Creation) -> Result<Measure> {
    preallocation(&creation.options)?;
    let disk_bytes = whole_sectors(creation.size);
    Ok(Measure { unit: SECTOR_BYTES, disk_bytes, is_whole: true, can_be_layer: true, ..Measure::default() })
}

fn preallocation(options: &[(String, String)]) -> Result<Preallocation> {
    let mut found = Preallocation::Off;
    for (key, value) in options {
        found = match (key.as_str(), value.as_str()) {
            ("preallocation", "off") => Preallocation::Off,
            ("preallocation", "falloc") => Preallocation::Falloc,
            ("preallocation", "full") => Preallocation::Full,
            ("preallocation", _) => {
                let what = format!("preallocation={value}: raw images know off, falloc and full");
                return Err(Error::invalid(what));
            }
            _ => return Err(Error::invalid(format!("unknown option '{key}' of raw images"))),
        };
    }
    Ok(found)
}

const fn whole_sectors(bytes: u64) -> u64 {
    bytes.div_ceil(SECTOR_BYTES).saturating_mul(SECTOR_BYTES)
}

/// Guest and host offsets are equal in a raw image.
const fn host(at: GuestOffset) -> HostOffset {
    HostOffset::new(at.bytes())
}

const fn guest(at: HostOffset) -> GuestOffset {
    GuestOffset::new(at.bytes())
}

impl RawImage {
    fn check_range(&self, range: GuestRange) -> Result<HostRange> {
        check_on_disk(range, self.size())
            .in_file(self.file.path())
            .map(|()| host(range.start).range(range.bytes))
    }

    fn check_write(&self, range: GuestRange) -> Result<HostRange> {
        if !self.is_writable {
            return Err(Error::invalid("is open for reading only").path(self.file.path()));
        }
        self.check_range(range)
    }
}

impl Image for RawImage {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn unit(&self) -> u64 {
        1
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn parent(&self) -> Option<ParentName> {
        None
    }

    fn identity(&self) -> Option<Identity> {
        None
    }

    fn details(&self) -> Result<Details> {
        Ok(Details::default())
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![Arc::clone(&self.file)]
    }

    fn data_file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.check_range(range)?;
        let file_end = HostOffset::new(self.file.bytes()?);
        let mut at = range.start;
        while at < range.end() {
            let run = self.file.run_at(host(at))?;
            let state = if run.is_data { State::Data { host: host(at) } } else { State::Zero { host: None } };
            // The last run goes on to the end of the view: past its end the file reads as zeros.
            let is_last = run.range.is_empty() || run.range.end() >= file_end;
            let end = if is_last { range.end() } else { guest(run.range.end()) };
            let part = GuestRange::between(at, end.min(range.end()));
            map::push(out, Extent::new(part, state));
            at = part.end();
        }
        Ok(())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], _below: &dyn Below) -> Result<()> {
        let range = self.check_range(at.range(units::count(buf.len())))?;
        self.file.read_at(range.start, buf)
    }

    fn write(&self, at: GuestOffset, buf: &[u8], _below: &dyn Below) -> Result<()> {
        let range = self.check_write(at.range(units::count(buf.len())))?;
        self.file.write_at(range.start, buf)
    }

    fn write_from(
        &self,
        range: GuestRange,
        source: &dyn File,
        from: HostOffset,
        _below: &dyn Below,
    ) -> Result<Moved> {
        let range = self.check_write(range)?;
        io::copy(source, from, &*self.file, range.start, range.bytes)
    }

    fn zero(&self, range: GuestRange, kept: Kept, _below: &dyn Below) -> Result<()> {
        let range = self.check_write(range)?;
        self.file.zero(range, kept)
    }

    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool {
        range.is_empty() || self.file.zeroes_fast(kept)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn flush_with_time(&self) -> Result<()> {
        self.file.flush_with_time()
    }

    fn release(&self) -> Result<u64> {
        // Every byte of the file is a byte of the disk.
        Ok(0)
    }

    fn resize(&self, bytes: u64, _below: &dyn Below) -> Result<()> {
        self.check_write(GuestRange::default())?;
        if self.file.is_device() && bytes != self.size() {
            return Err(Error::unsupported("a block device cannot be resized").path(self.file.path()));
        }
        self.file.set_bytes(bytes)?;
        // The file has this length now, durably or not: no write may pass it.
        self.size.store(whole_sectors(bytes), Relaxed);
        self.file.flush()
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        match parent {
            None => Ok(()),
            Some(_) => Err(Error::unsupported("a raw image cannot have a parent").path(self.file.path())),
        }
    }
}

#[cfg(test)]
mod tests;
