//! What stands in the file outside its blocks, and the order in which it changes.
//!
//! | step | written | why a cut may come behind it, or in it |
//! |---|---|---|
//! | 1 | *all guest data, the file's length, and what earlier entries say, is durable* | the log still says the same |
//! | 2 | an entry of the log with every changed page | a torn entry is none |
//! | | *durable* | from here on whoever opens the file puts the pages in their place |
//! | 3 | the pages, in their place | the entry says the same |
//!
//! An entry names itself as the oldest one that is needed, or the first since step 1. The log is not used as a ring:
//! when it is full, the header says durably that it is empty, and entries begin at its start under another GUID, which
//! the header names once the first of them is durable. So no reader, whatever it makes of what is left of older entries,
//! can take one for another. (qemu replays the first entry that it finds and any after it.)

use super::{
    bytes::Source,
    geometry::MIB,
    header::{Header, fresh_guid},
    log::{self, PAGE_BYTES, Page, Stamp, entry_bytes},
    region::Regions,
    replay::Replay,
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, units::count},
    io::File,
};
use uuid::Uuid;

/// The most pages in one entry that are put together in memory where they need not change together.
const PAGES_MAX: usize = 1024;
/// The most pages that change in one step: 64 MiB of them.
pub(super) const STEP_PAGES_MAX: usize = 16 << 10;

/// The header, and where the log goes on.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) header: Header,
    pub(super) regions: Regions,
    /// Whether the file's own GUID is another one than before the opening.
    is_begun: bool,
    /// Where in the log the next entry goes.
    at: u64,
    /// Where the oldest entry is whose pages may not be in their place durably.
    tail: u64,
    sequence: u64,
}

impl Session {
    /// Begins with what was read; nothing is written yet.
    pub(super) const fn new(header: Header, regions: Regions) -> Self {
        Self { header, regions, is_begun: false, at: 0, tail: 0, sequence: 1 }
    }

    /// Puts in its place what the log says, durably, and says that the log is empty.
    pub(super) fn recover(&mut self, file: &dyn File, replay: &Replay) -> Result<()> {
        self.begin(file)?;
        replay.apply(file)?;
        self.empty_log(file)
    }

    /// Goes before the first change of the file (MS-VHDX 2.2.2: `FileWriteGuid`).
    pub(super) fn begin(&mut self, file: &dyn File) -> Result<()> {
        if self.is_begun {
            return Ok(());
        }
        if self.header.log.is_empty() {
            return Err(Error::unsupported("has no log, so that it cannot be written safely"));
        }
        self.header.update(file, |header| header.file_guid = fresh_guid())?;
        self.is_begun = true;
        Ok(())
    }

    /// Goes before the first change of what the guest sees (`DataWriteGuid`).
    pub(super) fn begin_data(&mut self, file: &dyn File, data_guid: Uuid) -> Result<()> {
        if self.header.log.is_empty() {
            return Err(Error::unsupported("has no log, so that it cannot be written safely"));
        }
        let file_guid = if self.is_begun { self.header.file_guid } else { fresh_guid() };
        self.header.update(file, |header| (header.file_guid, header.data_guid) = (file_guid, data_guid))?;
        self.is_begun = true;
        Ok(())
    }

    /// Returns the most pages that one step can change.
    pub(super) fn pages_max(&self) -> usize {
        let fits = |pages: usize| entry_bytes(count(pages)) + PAGE_BYTES <= self.header.log.bytes;
        let most = self.header.log.bytes / PAGE_BYTES;
        let mut pages = usize::try_from(most).unwrap_or(STEP_PAGES_MAX).min(STEP_PAGES_MAX);
        while pages > 1 && !fits(pages) {
            pages -= 1;
        }
        pages
    }

    /// Refuses pages that are to change together and are too many for one entry.
    pub(super) fn check_step(&self, pages: usize) -> Result<()> {
        if pages <= self.pages_max() {
            return Ok(());
        }
        let what = format!("changes {pages} pages of 4 KiB in one step");
        Err(Error::unsupported(format!("{what}, and its log has room for {} (log_size)", self.pages_max())))
    }

    /// Returns how long a log has to be, in bytes, for one step that changes so many pages.
    pub(super) fn log_bytes_for(pages: usize) -> u64 {
        (entry_bytes(count(pages)) + PAGE_BYTES).next_multiple_of(MIB)
    }

    /// Has the log be at `place`, which reads as zeros, from now on; returns where it was.
    pub(super) fn move_log(&mut self, file: &dyn File, place: HostRange) -> Result<HostRange> {
        self.empty_log(file)?;
        // The header may only lead to what the file has.
        file.flush()?;
        let old = self.header.log;
        self.header.update(file, |header| header.log = place)?;
        Ok(old)
    }

    /// Makes everything durable that was written, and then `pages`, by the log; in their order, if they are too many for
    /// one entry.
    pub(super) fn commit(&mut self, file: &dyn File, pages: &[Page]) -> Result<()> {
        self.commit_by(file, pages, self.pages_max().min(PAGES_MAX))
    }

    /// The same, all `pages` in one step ([`Session::check_step`]).
    pub(super) fn commit_step(&mut self, file: &dyn File, pages: &[Page]) -> Result<()> {
        self.check_step(pages.len())?;
        self.commit_by(file, pages, pages.len())
    }

    fn commit_by(&mut self, file: &dyn File, pages: &[Page], at_once: usize) -> Result<()> {
        // Writers go on meanwhile: a length that was looked at behind the flush need not be durable.
        let flushed_bytes = file.bytes()?;
        file.flush()?;
        self.tail = self.at;
        if pages.is_empty() {
            return Ok(());
        }
        self.begin(file)?;
        pages.chunks(at_once).try_for_each(|pages| self.step(file, flushed_bytes, pages))
    }

    fn step(&mut self, file: &dyn File, flushed_bytes: u64, pages: &[Page]) -> Result<()> {
        let bytes = entry_bytes(count(pages.len()));
        // The last page stays free: a reader that comes round to the start would find the first entry again.
        if !self.is_logged() || self.at + bytes + PAGE_BYTES > self.header.log.bytes {
            self.empty_log(file)?;
        }
        let log_guid = if self.is_logged() { self.header.log_guid } else { fresh_guid() };
        let Self { sequence, tail, .. } = *self;
        let stamp = Stamp { log_guid, sequence, tail, flushed_bytes, file_bytes: file.bytes()? };
        file.write_at(self.header.log.start.plus(self.at), &log::encode(pages, stamp))?;
        file.flush()?;
        if !self.is_logged() {
            self.header.update(file, |header| header.log_guid = log_guid)?;
        }
        self.at += bytes;
        self.sequence += 1;
        pages.iter().try_for_each(|page| file.write_at(page.at, &page.bytes))
    }

    const fn is_logged(&self) -> bool {
        !self.header.log_guid.is_nil()
    }

    /// Says that the log is empty, if it is not said: all that it says is in its place, durably.
    pub(super) fn empty_log(&mut self, file: &dyn File) -> Result<()> {
        if self.is_logged() {
            file.flush()?;
            self.header.update(file, |header| header.log_guid = Uuid::nil())?;
        }
        (self.at, self.tail, self.sequence) = (0, 0, 1);
        Ok(())
    }

    /// Puts both headers and both region tables right, where one of a pair is damaged; returns how many there were.
    pub(super) fn mend_twins(&mut self, file: &dyn File) -> Result<u64> {
        let mut mended = 0;
        if !self.header.is_twin_valid {
            self.header.update(file, |header| header.file_guid = fresh_guid())?;
            self.is_begun = true;
            mended += 1;
        }
        for (at, is_valid) in super::region::TABLES_AT.into_iter().zip(self.regions.valid) {
            if !is_valid {
                self.begin(file)?;
                file.write_at(at, &self.regions.to_bytes())?;
                file.flush()?;
                mended += 1;
            }
        }
        self.regions.valid = [true; 2];
        Ok(mended)
    }

    /// Returns the pages that say in both region tables where the block allocation table is.
    pub(super) fn region_pages(file: &dyn File, regions: &Regions) -> Result<Vec<Page>> {
        let bytes = regions.to_bytes();
        let (source, mut held, mut pages) = (Source::plain(file), vec![0; bytes.len()], Vec::new());
        for at in super::region::TABLES_AT {
            source.read_at(at, &mut held)?;
            let size = usize::try_from(PAGE_BYTES).unwrap_or(4096);
            for ((nth, new), old) in (0..).zip(bytes.chunks(size)).zip(held.chunks(size)) {
                if new != old {
                    pages.push(Page {
                        at: HostOffset::new(at.bytes() + nth * PAGE_BYTES),
                        bytes: new.to_vec(),
                    });
                }
            }
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests;
