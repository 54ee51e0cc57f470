//! What the log of a file still has to put in its place (MS-VHDX 2.3.2, 2.3.3): found, checked, laid over the file or
//! written into it.
//!
//! The log is a ring. An *active sequence* is a run of whole entries, each with the next number, whose last one says
//! that it begins inside the run; the one with the highest number counts. What it says is bounded by the log's length,
//! and pages stay in the log until they are asked for.

use super::{
    bytes::checksum,
    geometry::MIB,
    header::Header,
    log::{
        DATA_SIGNATURE, DataDescriptor, ENTRY_SIGNATURE, EntryHeader, PAGE, PAGE_BYTES, PAGE_SIGNATURE,
        ZERO_SIGNATURE, ZeroDescriptor, descriptor_pages,
    },
    region::{TABLE_BYTES, TABLES_AT},
};
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{count, index},
    },
    io::{File, Kept},
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Entries may lie over what is left of older ones; a log in which more is to be summed up is none.
const LAPS_MAX: u64 = 4;
/// No file of this format is longer: a disk of 64 TiB, its tables, and as much again.
const FILE_BYTES_MAX: u64 = 128 << 40;
/// Bytes in a descriptor of either kind.
const DESCRIPTOR_BYTES: u64 = count(DataDescriptor::SIZE);

/// A page whose new bytes are in the log.
#[derive(Clone, Copy, Debug)]
struct Logged {
    /// Where in the file its page of the log is.
    at: HostOffset,
    leading: [u8; 8],
    trailing: [u8; 4],
}

/// What the log has to put in its place.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Zeros that come before `pages`: in order, none touching the next.
    zeros: Vec<HostRange>,
    pages: BTreeMap<HostOffset, Logged>,
    /// How long the file is to be at least.
    pub(super) file_bytes: u64,
}

/// What is in a log.
#[derive(Debug)]
pub(super) enum Log {
    /// Nothing.
    Empty,
    /// What has to be put in its place.
    Full(Replay),
    /// Nothing that counts, although the header says that there is something: why.
    Lost(String),
}

/// The ring that the log is.
struct Ring<'a> {
    file: &'a dyn File,
    log: HostRange,
    log_guid: Uuid,
    /// How many bytes may still be summed up.
    left: u64,
}

/// A whole entry.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Where in the ring.
    at: u64,
    header: EntryHeader,
}

impl Ring<'_> {
    /// Fills `buf` from a place in the ring, which it does not pass.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let first = index((self.log.bytes - at).min(count(buf.len())));
        let (front, rest) = buf.split_at_mut(first);
        self.file.read_at(self.log.start.plus(at), front)?;
        self.file.read_at(self.log.start, rest)
    }

    /// Returns where the run of the file ends that has the byte `at`, within the ring, and whether it is stored.
    fn run_at(&self, at: u64) -> Result<(u64, bool)> {
        let run = self.file.run_at(self.log.start.plus(at))?;
        let end = run.range.end().since(self.log.start);
        let end = if run.range.is_empty() { self.log.bytes } else { end.min(self.log.bytes) };
        Ok((end.max(at + 1), run.is_data))
    }

    /// Returns whether the host stores each page from `at` on: what is summed up is bounded by what a file has, however
    /// long its log claims to be.
    fn is_stored(&self, mut at: u64, bytes: u64) -> Result<bool> {
        let mut left = bytes;
        while left > 0 {
            let (end, is_data) = self.run_at(at)?;
            if !is_data {
                return Ok(false);
            }
            left = left.saturating_sub(end - at);
            at = end % self.log.bytes;
        }
        Ok(true)
    }

    /// Returns the entry at `at`, if there is a whole one.
    fn entry(&mut self, at: u64) -> Result<Option<Found>> {
        let mut page = [0; PAGE];
        self.read(at, &mut page)?;
        let Some(header) = EntryHeader::parse_start(&page) else { return Ok(None) };
        let bytes = u64::from(header.bytes);
        let needed = descriptor_pages(header.descriptors.into()) * PAGE_BYTES;
        let is_ours = header.signature == ENTRY_SIGNATURE
            && header.log_guid == self.log_guid.to_bytes_le()
            && header.sequence != 0
            && bytes.is_multiple_of(PAGE_BYTES)
            && (needed..=self.log.bytes).contains(&bytes);
        // No page of an entry is all zeros: each begins with a signature, or has descriptors.
        if !is_ours || !self.is_stored(at, bytes)? {
            return Ok(None);
        }
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            Error::corrupt(format!("log: entries lie over each other, the last one at 0x{at:x} of it"))
        })?;
        let sum = self.sum(at, bytes, &page)?;
        Ok((sum == header.checksum).then_some(Found { at, header }))
    }

    /// Returns the checksum of an entry whose first page is known.
    fn sum(&self, at: u64, bytes: u64, first: &[u8]) -> Result<u32> {
        let mut sum = checksum(first);
        let mut buf = vec![0; index(bytes.saturating_sub(PAGE_BYTES).min(MIB))];
        let mut done = PAGE_BYTES;
        while done < bytes {
            let piece = buf.get_mut(..index((bytes - done).min(MIB))).unwrap_or_default();
            self.read((at + done) % self.log.bytes, piece)?;
            sum = crc32c::crc32c_append(sum, piece);
            done += count(piece.len());
        }
        Ok(sum)
    }

    const fn after(&self, found: &Found) -> u64 {
        (found.at + found.header.bytes as u64) % self.log.bytes
    }

    /// Returns the run of entries that begins at `at`, each with the next number.
    fn run(&mut self, at: u64) -> Result<Vec<Found>> {
        let Some(first) = self.entry(at)? else { return Ok(Vec::new()) };
        let mut bytes = u64::from(first.header.bytes);
        let mut run = vec![first];
        let mut next = self.after(&first);
        // A run that comes round to its start ends there.
        while bytes < self.log.bytes {
            let last = run.last().map_or(0, |found| found.header.sequence);
            let Some(found) = self.entry(next)?.filter(|f| Some(f.header.sequence) == last.checked_add(1))
            else {
                break;
            };
            bytes += u64::from(found.header.bytes);
            next = self.after(&found);
            run.push(found);
        }
        Ok(run)
    }

    /// Returns the entries of the active sequence, the oldest one that is needed first; none if there is no such.
    fn active(&mut self) -> Result<Vec<Found>> {
        let mut best: Vec<Found> = Vec::new();
        let newest = |run: &[Found]| run.last().map_or(0, |found| found.header.sequence);
        let mut at = 0;
        while at < self.log.bytes {
            let run = self.run(at)?;
            let passed: u64 = run.iter().map(|found| u64::from(found.header.bytes)).sum();
            at += match self.run_at(at)? {
                (end, false) => (end - at).next_multiple_of(PAGE_BYTES),
                _ => passed.max(PAGE_BYTES),
            };
            let tail = run.last().map(|found| u64::from(found.header.tail));
            let begin = run.iter().position(|found| Some(found.at) == tail);
            if let Some(begin) = begin.filter(|_| newest(&run) > newest(&best)) {
                best = run.get(begin..).unwrap_or_default().to_vec();
            }
        }
        Ok(best)
    }
}

impl Replay {
    /// Finds what the log of the file with this header has to put in its place.
    ///
    /// `Corrupt` if an entry contradicts itself, or if the file was cut below what an entry knows of.
    pub(super) fn find(file: &dyn File, header: &Header) -> Result<Log> {
        if header.log_guid.is_nil() {
            return Ok(Log::Empty);
        }
        let (log, log_guid) = (header.log, header.log_guid);
        let left = log.bytes.saturating_mul(LAPS_MAX);
        let mut ring = Ring { file, log, log_guid, left };
        let active = ring.active()?;
        if active.is_empty() {
            let what = format!("log at 0x{:x}: no whole sequence of entries for {log_guid}", log.start);
            return Ok(Log::Lost(format!("{what}, which the header names")));
        }
        let mut replay = Self::default();
        let file_bytes = file.bytes()?;
        for found in &active {
            let EntryHeader { flushed_bytes, last_bytes, sequence, .. } = found.header;
            if flushed_bytes > file_bytes {
                let what = format!("log entry {sequence}: the file had 0x{flushed_bytes:x} bytes");
                return Err(Error::corrupt(format!("{what} and has 0x{file_bytes:x}: it was cut")));
            }
            if last_bytes > FILE_BYTES_MAX {
                let what = format!("log entry {sequence}: a file of 0x{last_bytes:x} bytes");
                return Err(Error::corrupt(format!("{what} is longer than any of this format")));
            }
            replay.file_bytes = replay.file_bytes.max(last_bytes);
        }
        replay.file_bytes = replay.file_bytes.max(file_bytes);
        active.iter().try_for_each(|found| replay.take(&ring, found))?;
        replay.join_zeros();
        Ok(Log::Full(replay))
    }

    /// Puts the zeros in order.
    fn join_zeros(&mut self) {
        self.zeros.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<HostRange> = Vec::new();
        for range in self.zeros.drain(..).filter(|range| !range.is_empty()) {
            match joined.last_mut() {
                Some(last) if last.end() >= range.start => {
                    *last = HostRange::between(last.start, last.end().max(range.end()));
                }
                _ => joined.push(range),
            }
        }
        self.zeros = joined;
    }

    /// Returns the zeros that touch `range`, which is not empty.
    fn zeros_in(&self, range: HostRange) -> impl Iterator<Item = HostRange> {
        let first = self.zeros.partition_point(|zeros| zeros.end() <= range.start);
        self.zeros.iter().skip(first).take_while(move |zeros| zeros.start < range.end()).copied()
    }

    /// Takes over what one entry says.
    fn take(&mut self, ring: &Ring<'_>, found: &Found) -> Result<()> {
        let descriptors = u64::from(found.header.descriptors);
        let area = descriptor_pages(descriptors) * PAGE_BYTES;
        let wrong = |nth: u64, why: &str| {
            let sequence = found.header.sequence;
            Error::corrupt(format!("log entry {sequence}: descriptor {nth} {why}"))
        };
        let (mut page, mut held) = (area, [0; PAGE]);
        for nth in 0..descriptors {
            let in_entry = 64 + nth * DESCRIPTOR_BYTES;
            if nth == 0 || in_entry.is_multiple_of(PAGE_BYTES) {
                let at = found.at + in_entry - in_entry % PAGE_BYTES;
                ring.read(at % ring.log.bytes, &mut held)?;
            }
            let bytes = held.get(index(in_entry % PAGE_BYTES)..).and_then(<[u8]>::first_chunk);
            let bytes = bytes.ok_or_else(|| wrong(nth, "is cut off"))?;
            let (data, zero) = (DataDescriptor::parse(bytes), ZeroDescriptor::parse(bytes));
            if data.sequence != found.header.sequence {
                return Err(wrong(nth, "has another sequence number"));
            }
            let range = match data.signature {
                DATA_SIGNATURE => HostOffset::new(data.at).range(PAGE_BYTES),
                ZERO_SIGNATURE => HostOffset::new(zero.at).range(zero.bytes),
                _ => return Err(wrong(nth, "is of no known kind")),
            };
            self.check_target(range, ring.log).map_err(|why| wrong(nth, &why))?;
            if data.signature == ZERO_SIGNATURE {
                self.zeros.push(range);
                // What came before is gone; from here on pages lie over these zeros.
                while let Some((at, _)) = self.pages.range(range.start..range.end()).next() {
                    let at = *at;
                    self.pages.remove(&at);
                }
                continue;
            }
            if page + PAGE_BYTES > u64::from(found.header.bytes) {
                return Err(wrong(nth, "has no page in the entry"));
            }
            let place = (found.at + page) % ring.log.bytes;
            if !is_page_of(ring, place, found.header.sequence)? {
                return Err(wrong(nth, "has a page of another entry"));
            }
            page += PAGE_BYTES;
            let at = ring.log.start.plus(place);
            self.pages.insert(range.start, Logged { at, leading: data.leading, trailing: data.trailing });
        }
        Ok(())
    }

    /// Refuses what no log may change: headers, the log itself, what is outside the file.
    fn check_target(&self, range: HostRange, log: HostRange) -> std::result::Result<(), String> {
        let [tables, _] = TABLES_AT;
        let is_whole =
            range.start.bytes().is_multiple_of(PAGE_BYTES) && range.bytes.is_multiple_of(PAGE_BYTES);
        let end = range.start.bytes().checked_add(range.bytes);
        if !is_whole || end.is_none_or(|end| end > self.file_bytes) {
            return Err(format!("leads outside the file (0x{:x} bytes at 0x{:x})", range.bytes, range.start));
        }
        if range.start < tables || range.overlaps(log) {
            return Err(format!("leads into the header or the log (0x{:x})", range.start));
        }
        Ok(())
    }

    /// Fills `buf` from `at`, as the file is once all is in its place.
    pub(super) fn read_at(&self, file: &dyn File, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        file.read_at(at, buf)?;
        let range = at.range(count(buf.len()));
        for zeros in self.zeros_in(range) {
            part(buf, range, zeros.clip(range)).fill(0);
        }
        for (page, logged) in self.pages.range(at.floor(PAGE_BYTES)..range.end()) {
            let bytes = logged.read(file)?;
            let shown = page.range(PAGE_BYTES).clip(range);
            let from = index(shown.start.since(*page));
            let source = bytes.get(from..from + index(shown.bytes)).unwrap_or_default();
            part(buf, range, shown).copy_from_slice(source);
        }
        Ok(())
    }

    /// Returns whether anything of `range` is not what the file says.
    pub(super) fn touches(&self, range: HostRange) -> bool {
        let is_page = self.pages.range(range.start.floor(PAGE_BYTES)..range.end()).next().is_some();
        is_page || self.zeros_in(range).next().is_some()
    }

    /// Puts all in its place. Cut off, it can be done again.
    pub(super) fn apply(&self, file: &dyn File) -> Result<()> {
        if !file.is_device() && file.bytes()? < self.file_bytes {
            file.set_bytes(self.file_bytes)?;
        }
        self.zeros.iter().try_for_each(|range| file.zero(*range, Kept::Space))?;
        self.pages.iter().try_for_each(|(at, logged)| file.write_at(*at, &logged.read(file)?))
    }
}

impl Logged {
    fn read(&self, file: &dyn File) -> Result<[u8; PAGE]> {
        let mut bytes = [0; PAGE];
        file.read_at(self.at, &mut bytes)?;
        let last = bytes.len() - self.trailing.len();
        bytes.iter_mut().zip(self.leading).for_each(|(to, from)| *to = from);
        bytes.iter_mut().skip(last).zip(self.trailing).for_each(|(to, from)| *to = from);
        Ok(bytes)
    }
}

/// Returns whether the page of the log at `place` bears the number of its entry.
fn is_page_of(ring: &Ring<'_>, place: u64, sequence: u64) -> Result<bool> {
    let mut bytes = [0; PAGE];
    ring.read(place, &mut bytes)?;
    let high = bytes.get(4..8).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b));
    let low = bytes.last_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    Ok(bytes.starts_with(&PAGE_SIGNATURE) && u64::from(high) << 32 | u64::from(low) == sequence)
}

/// Returns the part of `buf`, which stands for `whole`, that stands for `range`, which lies in it.
fn part(buf: &mut [u8], whole: HostRange, range: HostRange) -> &mut [u8] {
    let from = index(range.start.since(whole.start));
    buf.get_mut(from..from + index(range.bytes)).unwrap_or_default()
}

const _: () = assert!(TABLE_BYTES.is_multiple_of(PAGE));
