//! A fixed VHD: the disk's bytes as they are, then the footer.
//!
//! Whatever happens, a sound footer stands at the file's end, and what lies between the disk and it is nobody's. Where a host
//! makes a file's length durable before its bytes, a cut while the disk grows leaves the old footer and a hole behind it:
//! whoever is told the format finds it there.

use super::footer::{Footer, Footers};
use crate::{
    base::{
        Budget, Error, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        error::InFile,
        units::{SECTOR_BYTES, count},
    },
    format::{Below, Details, Format, Identity, Image, ParentName, Parts, check_on_disk},
    io::{self, File, Kept, Moved},
    map::{self, Extent, State},
};
use parking_lot::RwLock;
use std::sync::Arc;

/// An open fixed image.
#[derive(Debug)]
pub(super) struct FixedImage {
    file: Arc<dyn File>,
    is_writable: bool,
    /// Whether its footer is to be put right before anything is written.
    awaits_recovery: bool,
    budget: Budget,
    state: RwLock<Sized>,
}

/// What a change of size changes.
#[derive(Clone, Copy, Debug)]
struct Sized {
    bytes: u64,
    footer: Footer,
    /// Where the footer is.
    end_at: HostOffset,
}

/// Refuses a disk that reaches into the footer.
pub(super) fn check_size(size: u64, footers: &Footers) -> Result<()> {
    if size <= footers.end_at.bytes() {
        return Ok(());
    }
    let what =
        format!("footer: current size {size}: the file has {} bytes before it", footers.end_at.bytes());
    Err(Error::corrupt(what))
}

/// Guest and host offsets are equal in a fixed disk.
const fn host(range: GuestRange) -> HostRange {
    HostOffset::new(range.start.bytes()).range(range.bytes)
}

impl FixedImage {
    /// Opens the image in `file`, whose footer is the one given.
    pub(super) fn open(
        file: Arc<dyn File>,
        footers: &Footers,
        is_writable: bool,
        parts: &dyn Parts,
    ) -> Result<Self> {
        let bytes = footers.footer.disk_bytes()?;
        check_size(bytes, footers)?;
        if is_writable {
            footers.mend(&*file)?;
        }
        let state = RwLock::new(Sized { bytes, footer: footers.footer, end_at: footers.end_at });
        let awaits_recovery = !is_writable && footers.await_mending();
        Ok(Self { file, is_writable, awaits_recovery, budget: parts.budget(), state })
    }

    fn check_range(&self, range: GuestRange) -> Result<HostRange> {
        check_on_disk(range, self.size()).in_file(self.file.path()).map(|()| host(range))
    }

    fn check_write(&self, range: GuestRange) -> Result<HostRange> {
        if !self.is_writable {
            return Err(Error::invalid("is open for reading only").path(self.file.path()));
        }
        self.check_range(range)
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::unsupported(format!("fixed VHD images {what}")).path(self.file.path())
    }

    /// Changes the size; after each step the last sector is a sound footer.
    fn resize_to(&self, bytes: u64) -> Result<()> {
        let mut state = self.state.write();
        let (file, old) = (&*self.file, *state);
        let mut footer = old.footer;
        footer.set_size(bytes);
        let put = |at: HostOffset, footer: Footer| {
            file.write_at(at, &footer.signed())?;
            file.flush()
        };
        let end_at = HostOffset::new(bytes);
        if end_at > old.end_at {
            put(end_at, old.footer)?;
            state.end_at = end_at;
            // What the disk did not have shows zeros: the old footer, and what was between it and the disk.
            file.zero(
                HostRange::between(HostOffset::new(old.bytes), old.end_at.plus(SECTOR_BYTES).min(end_at)),
                Kept::Nothing,
            )?;
            file.flush()?;
            put(end_at, footer)?;
        } else {
            if bytes > old.bytes {
                file.zero(HostRange::between(HostOffset::new(old.bytes), end_at), Kept::Nothing)?;
                file.flush()?;
            }
            put(old.end_at, footer)?;
            // It has the new size. What is left to do gives back space: where that fails, either end has the new footer.
            *state = Sized { bytes, footer, end_at: old.end_at };
            if end_at < old.end_at {
                put(end_at, footer)?;
                file.set_bytes(end_at.plus(SECTOR_BYTES).bytes())?;
            }
        }
        *state = Sized { bytes, footer, end_at };
        Ok(())
    }
}

impl Image for FixedImage {
    fn format(&self) -> Format {
        Format::Vpc
    }

    fn size(&self) -> u64 {
        self.state.read().bytes
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
        Some(Identity::Guid(self.state.read().footer.unique_id))
    }

    fn details(&self) -> Result<Details> {
        Ok(super::details(&self.state.read().footer, None))
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![Arc::clone(&self.file)]
    }

    fn data_file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.check_range(range)?;
        let mut at = range.start;
        while at < range.end() {
            let place = HostOffset::new(at.bytes());
            let run = self.file.run_at(place)?;
            let state = if run.is_data { State::Data { host: place } } else { State::Zero { host: None } };
            let end = if run.range.is_empty() { range.end() } else { at.plus(run.range.bytes) };
            let part = GuestRange::between(at, end.min(range.end()));
            map::push(out, Extent::new(part, state));
            at = part.end();
        }
        Ok(())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], _below: &dyn Below) -> Result<()> {
        let range = self.check_range(at.range(count(buf.len())))?;
        self.file.read_at(range.start, buf)
    }

    fn write(&self, at: GuestOffset, buf: &[u8], _below: &dyn Below) -> Result<()> {
        let range = self.check_write(at.range(count(buf.len())))?;
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

    fn check_size(&self, bytes: u64) -> Result<()> {
        if self.file.is_device() {
            return Err(self.unsupported("on a block device cannot be resized"));
        }
        super::options::check_size(bytes).in_file(self.file.path())
    }

    fn resize(&self, bytes: u64, _below: &dyn Below) -> Result<()> {
        self.check_write(GuestRange::default())?;
        self.check_size(bytes)?;
        self.resize_to(bytes).in_file(self.file.path())
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        match parent {
            None => Ok(()),
            Some(_) => Err(self.unsupported("cannot have a parent")),
        }
    }

    fn awaits_recovery(&self) -> bool {
        self.awaits_recovery
    }

    fn set_identity(&self, identity: Identity) -> Result<()> {
        let Identity::Guid(id) = identity else { return Ok(()) };
        self.check_write(GuestRange::default())?;
        let mut state = self.state.write();
        let footer = Footer { unique_id: id, ..state.footer };
        self.file.flush()?;
        self.file.write_at(state.end_at, &footer.signed())?;
        self.file.flush()?;
        state.footer = footer;
        Ok(())
    }
}
