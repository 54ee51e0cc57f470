//! Where a descriptor stands, and how it is changed in place so that a power cut leaves the old one or the new one.
//!
//! A disk writes one sector whole or not at all. Identities (`CID`) keep their length and are written where they are.
//! What the disk is linked to (`parentCID`, `parentFileNameHint`) stands in the first sector, and a change of it is one
//! write of that sector: lines that must give way move to the text's end first, durably, where they say the same. What
//! is ours (the record, with checksums of its own) is the last line, in one sector or from the start of one: a longer one than
//! that loses no more than its claim.

use super::{
    descriptor::{Descriptor, NO_PARENT, SIGNATURE, length_place, lines, split},
    space::FILES_MAX,
};
use crate::{
    base::{
        Error, HostOffset, HostRange, Result,
        units::{SECTOR_BYTES, count, index},
    },
    format::StoredRecord,
    io::File,
};
use std::{fmt::Write as _, ops::Range, sync::Arc};

/// The key of a parent's format, where that is not VMDK.
pub(super) const PARENT_FORMAT: &str = "ddb.dchain.parentFormat";
/// The key of the project's record, in hexadecimal digits: two CIDs under which it counts (the one that it was stored
/// under, and the one that our own next change brings; or none, of dashes), and the record.
const RECORD: &str = "ddb.dchain.record";
/// The key of the number of cylinders, which follows from the disk's size.
const CYLINDERS: &str = "ddb.geometry.cylinders";
/// Digits of a CID.
const CID_DIGITS: usize = 8;

/// The longest descriptor that is read: room for every extent.
const TEXT_BYTES_MAX: u64 = count(FILES_MAX) * 128;

/// A descriptor in its file.
#[derive(Debug)]
pub(super) struct Desk {
    file: Arc<dyn File>,
    at: HostOffset,
    /// How many bytes it may have.
    room: u64,
    /// Whether the file may say something else after a power cut.
    pub(super) is_changed: bool,
    /// What it says.
    pub(super) descriptor: Descriptor,
}

/// Reads the descriptor that stands in `place` of a sparse file.
pub(super) fn read_inside(file: &dyn File, place: HostRange) -> Result<Descriptor> {
    let held = file.bytes()?;
    if place.bytes > TEXT_BYTES_MAX || place.end().bytes() > held {
        let (at, bytes) = (place.start, place.bytes);
        let what = format!(
            "its descriptor of 0x{bytes:x} bytes at 0x{at:x} does not lie in the file (0x{held:x} bytes)"
        );
        return Err(Error::corrupt(what));
    }
    let mut bytes = vec![0; index(place.bytes)];
    file.read_at(place.start, &mut bytes)?;
    Descriptor::parse(&bytes)
}

/// Reads the descriptor that the file is.
pub(super) fn read_beside(file: &dyn File) -> Result<Descriptor> {
    let held = file.bytes()?;
    let mut start = vec![0; SIGNATURE.len()];
    file.read_at(HostOffset::new(0), &mut start)?;
    if start != SIGNATURE {
        return Err(Error::corrupt("has neither a header nor a descriptor of VMDK at its start"));
    }
    if held > TEXT_BYTES_MAX {
        return Err(Error::corrupt(format!("is a descriptor of {held} bytes, more than {TEXT_BYTES_MAX}")));
    }
    let mut bytes = vec![0; index(held)];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    Descriptor::parse(&bytes)
}

impl Desk {
    /// Takes the descriptor that stands in `place` of `file`; without a place it is all of it.
    pub(super) fn new(file: &Arc<dyn File>, place: Option<HostRange>, descriptor: Descriptor) -> Self {
        let (at, room) =
            place.map_or((HostOffset::new(0), TEXT_BYTES_MAX), |place| (place.start, place.bytes));
        Self { file: Arc::clone(file), at, room, is_changed: false, descriptor }
    }

    /// Writes bytes over those of the text from `from` on, which stay as long.
    fn overwrite(&mut self, from: usize, bytes: &[u8]) -> Result<()> {
        let mut text = self.descriptor.text().to_vec();
        let missing = || Error::invalid("a change reaches past the descriptor's end");
        text.get_mut(from..from + bytes.len()).ok_or_else(missing)?.copy_from_slice(bytes);
        self.file.write_at(self.at.plus(count(from)), bytes)?;
        self.descriptor = Descriptor::of(text);
        Ok(())
    }

    /// Makes what it says durable.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.is_changed {
            self.file.flush()?;
            self.is_changed = false;
        }
        Ok(())
    }

    /// Gives the disk another identity, durably: its bytes are about to change. What tracked changes (of which it is not
    /// told) is given up, and a record that was true stays so. `fresh`: bits for the longer identity.
    pub(super) fn change_cid(&mut self, cid: u32, fresh: u128) -> Result<()> {
        let short = format!("{cid:08x}");
        if let Some(line) = self.descriptor.place("changeTrackPath") {
            let text = self.descriptor.text().get(..line.start).unwrap_or_default();
            let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.overwrite(start, b"#")?;
        }
        if self.record().is_some_and(|record| record.is_untouched)
            && let Some(place) = self.record_place()
        {
            // The one that it counts under stays: a write may be torn.
            let now = self.descriptor.value("CID").unwrap_or_default();
            let first = self.descriptor.text().get(place.start..place.start + CID_DIGITS).unwrap_or_default();
            let is_first = first.eq_ignore_ascii_case(now);
            self.overwrite(place.start + if is_first { CID_DIGITS } else { 0 }, short.as_bytes())?;
            self.file.flush()?;
        }
        // Whoever has this line takes its end for the CID.
        if let Some(place) = self.descriptor.place("ddb.longContentID").filter(|place| place.len() == 32) {
            let digits = format!("{fresh:032x}");
            let (front, _) = digits.as_bytes().split_at(digits.len() - CID_DIGITS);
            self.overwrite(place.start, &[front, short.as_bytes()].concat())?;
        }
        match self.descriptor.place("CID") {
            Some(place) if place.len() == CID_DIGITS => {
                self.overwrite(place.start, short.as_bytes())?;
                self.file.flush()
            }
            _ => self.relink(&[("CID", Some(short))]),
        }
    }

    /// Changes or removes lines of the first sector, in one write of that sector; durable.
    ///
    /// `Invalid` where they have no room, or the text has them behind its first sector.
    pub(super) fn relink(&mut self, changes: &[(&str, Option<String>)]) -> Result<()> {
        let text = self.descriptor.text().to_vec();
        let sector = index(SECTOR_BYTES);
        let is_short = text.len() <= sector;
        let end = if is_short {
            text.len()
        } else {
            let first = text.get(..sector).unwrap_or_default();
            first.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
        };
        let (head, rest) = text.split_at(end);
        let is_behind = |key: &str| Descriptor::of(rest.to_vec()).place(key).is_some();
        if let Some((key, _)) = changes.iter().find(|(key, _)| is_behind(key)) {
            return Err(Error::invalid(format!(
                "its descriptor has the line '{key}' behind its first sector"
            )));
        }
        let room = if is_short { sector.min(index(self.room)) } else { end };
        let (mut new, moved) = make_room(edited(head, changes), room)?;
        let mut rest = rest.to_vec();
        if !moved.is_empty() {
            // They start on a line of their own.
            let is_open = !is_short && !text.ends_with(b"\n");
            let lines = if is_open { [b"\n", moved.as_slice()].concat() } else { moved.clone() };
            self.add(if is_short { sector } else { text.len() }, &lines)?;
            rest.extend_from_slice(&lines);
        }
        let full = if is_short && moved.is_empty() { new.len().max(text.len()) } else { room };
        new.extend(filler(full - new.len()));
        new.extend_from_slice(&rest);
        let first = new.get(..sector.min(new.len())).unwrap_or_default();
        self.file.write_at(self.at, first)?;
        self.file.flush()?;
        self.descriptor = Descriptor::of(new);
        Ok(())
    }

    /// Says how many sectors the disk's only extent has, in one write of the sector that has its line; durable.
    ///
    /// `Unsupported` where that line has no room in its sector.
    pub(super) fn set_length(&mut self, sectors: u64) -> Result<()> {
        let (place, new) = self.with_length(sectors)?;
        let text = self.descriptor.text();
        let (head, rest) = (text.get(..place.start), text.get(place.end..));
        let whole = [head.unwrap_or_default(), &new, rest.unwrap_or_default()].concat();
        self.file.write_at(self.at.plus(count(place.start)), &new)?;
        self.file.flush()?;
        self.descriptor = Descriptor::of(whole);
        Ok(())
    }

    /// Returns which lines of the text would then be others, all in one sector, and what they would say.
    pub(super) fn with_length(&self, sectors: u64) -> Result<(Range<usize>, Vec<u8>)> {
        let (text, sector) = (self.descriptor.text(), index(SECTOR_BYTES));
        let line = |place: &Range<usize>| text.get(place.clone()).unwrap_or_default();
        let end = |place: &Range<usize>| (place.end + 1).min(text.len());
        let found = lines(text).find(|place| length_place(line(place)).is_some());
        let found = found.ok_or_else(|| Error::corrupt("its descriptor has no extent"))?;
        let bound = found.start / sector * sector..(found.start / sector + 1) * sector;
        let inside: Vec<_> =
            lines(text).filter(|place| place.start >= bound.start && end(place) <= bound.end).collect();
        let refuse =
            || Error::unsupported("has no room for its size in the sector of its descriptor that says it");
        let [first, .., last] = inside.as_slice() else { return Err(refuse()) };
        if !inside.contains(&found) {
            return Err(refuse());
        }
        let place = first.start..end(last);
        let cylinders = self.cylinders(sectors);
        let mut new = Vec::new();
        for one in &inside {
            let old = line(one);
            let is_geometry =
                split(old).is_some_and(|(key, _)| key.eq_ignore_ascii_case(CYLINDERS.as_bytes()));
            let value = match (length_place(old), split(old)) {
                (Some(value), _) => Some((value, sectors)),
                (None, Some((_, value))) if is_geometry => cylinders.map(|cylinders| (value, cylinders)),
                _ => None,
            };
            match value {
                None => new.extend_from_slice(old),
                Some((value, number)) => {
                    new.extend_from_slice(old.get(..value.start).unwrap_or_default());
                    new.extend_from_slice(number.to_string().as_bytes());
                    new.extend_from_slice(old.get(value.end..).unwrap_or_default());
                }
            }
            new.push(b'\n');
        }
        let is_last = place.end == text.len();
        let most = bound.end.min(index(self.room.saturating_sub(1))).max(place.end);
        let room = if is_last { most - place.start } else { place.len() };
        let (mut new, moved) = make_room(new, room).map_err(|_| refuse())?;
        if !moved.is_empty() {
            return Err(refuse());
        }
        // What follows stays where it is, and nothing of the old text shows behind a shorter one.
        new.extend(filler(place.len().saturating_sub(new.len())));
        Ok((place, new))
    }

    /// Returns how many cylinders so many sectors have, where the descriptor has a geometry.
    fn cylinders(&self, sectors: u64) -> Option<u64> {
        let number = |key: &str| std::str::from_utf8(self.descriptor.value(key)?).ok()?.parse::<u64>().ok();
        let (heads, per_track) = (number("ddb.geometry.heads")?, number("ddb.geometry.sectors")?);
        sectors.checked_div(heads.checked_mul(per_track)?)
    }

    /// Writes lines behind the text, durably; a gap before them hides them.
    fn add(&mut self, at: usize, lines: &[u8]) -> Result<()> {
        self.check_room(at + lines.len())?;
        self.file.write_at(self.at.plus(count(at)), lines)?;
        self.file.flush()
    }

    fn check_room(&self, bytes: usize) -> Result<()> {
        if count(bytes) < self.room {
            return Ok(());
        }
        Err(Error::invalid(format!("its descriptor has room for 0x{:x} bytes only", self.room)))
    }

    /// Returns whether a parent is named.
    pub(super) fn has_parent(&self) -> bool {
        self.descriptor.parent_cid().is_ok_and(|cid| cid != NO_PARENT)
    }

    /// Returns the project's record; untouched if the disk's identity is one that it counts under.
    pub(super) fn record(&self) -> Option<StoredRecord> {
        let value = self.descriptor.text().get(self.record_place()?)?;
        let (cids, digits) = value.split_at_checked(2 * CID_DIGITS)?;
        let bytes = from_hex(digits);
        let now = self.descriptor.value("CID").unwrap_or_default();
        let is_untouched = cids.chunks(CID_DIGITS).any(|cid| cid.eq_ignore_ascii_case(now));
        Some(StoredRecord { bytes, is_untouched })
    }

    /// Returns where the record's value stands; a line that was torn has one quote.
    fn record_place(&self) -> Option<Range<usize>> {
        let place = self.descriptor.place(RECORD)?;
        let is_open = self.descriptor.text().get(place.start) == Some(&b'"');
        Some(place.start + usize::from(is_open)..place.end)
    }

    /// Has the project's record count under no identity; durable once the file is flushed.
    pub(super) fn void_record(&mut self) -> Result<()> {
        let counts = self.record().is_some_and(|record| record.is_untouched);
        let Some(place) = self.record_place().filter(|_| counts) else { return Ok(()) };
        self.is_changed = true;
        self.overwrite(place.start, &[b'-'; 2 * CID_DIGITS])
    }

    /// Stores or removes the project's record, as the last line; durable once the file is flushed. False, and nothing
    /// changed, where there is no room for it.
    pub(super) fn set_record(&mut self, record: Option<&[u8]>) -> Result<bool> {
        let cid = self.descriptor.value("CID").unwrap_or_default();
        if record.is_some() && cid.len() != CID_DIGITS {
            return Ok(false);
        }
        let line = record
            .map(|bytes| [RECORD.as_bytes(), b" = \"", cid, cid, to_hex(bytes).as_bytes(), b"\"\n"].concat());
        let (new, old_end) = with_record(self.descriptor.text(), &line.unwrap_or_default());
        if self.check_room(new.len()).is_err() {
            return Ok(false);
        }
        self.replace(new, old_end)?;
        Ok(true)
    }

    /// Makes `new` the text, in which the record's old line, up to `old_end`, is another one, or has given way to a later one:
    /// of two lines the first counts. So what comes behind the old one is durable first, and what counts changes with one
    /// sector.
    fn replace(&mut self, new: Vec<u8>, old_end: usize) -> Result<()> {
        let text = self.descriptor.text();
        // What was longer is covered: by NULs inside a sparse file, by empty lines where the text is all of the file.
        let is_inside = self.at.bytes() != 0;
        let mut shown = new.clone();
        shown.resize(new.len().max(text.len()), if is_inside { 0 } else { b'\n' });
        let same = shown.iter().zip(text).take_while(|(a, b)| a == b).count();
        let end =
            (same..shown.len()).rev().find(|at| shown.get(*at) != text.get(*at)).map_or(same, |at| at + 1);
        let sector_end = (same / index(SECTOR_BYTES) + 1) * index(SECTOR_BYTES);
        let old_end = if end <= sector_end { end } else { old_end.clamp(same, end) };
        let flip_end = sector_end.min(old_end);
        let mut is_begun = false;
        for part in [old_end..end, same..flip_end, flip_end..old_end] {
            let bytes = shown.get(part.clone()).unwrap_or_default();
            if bytes.is_empty() {
                continue;
            }
            if std::mem::replace(&mut is_begun, true) {
                self.flush()?;
            }
            self.is_changed = true;
            self.file.write_at(self.at.plus(count(part.start)), bytes)?;
        }
        self.descriptor = Descriptor::of(if is_inside { new } else { shown });
        Ok(())
    }
}

/// Returns `text` with `line` as that of its record, behind all others, and where the old one ends. It stands in one sector, or
/// begins with one: so the identities and all but the claim are never torn.
fn with_record(text: &[u8], line: &[u8]) -> (Vec<u8>, usize) {
    let is_record = |place: &Range<usize>| {
        let named = text.get(place.clone()).and_then(split);
        named.is_some_and(|(key, _)| key.eq_ignore_ascii_case(RECORD.as_bytes()))
    };
    let mut new = text.to_vec();
    let mut old = None;
    for place in lines(text).filter(is_record) {
        new.get_mut(place.clone()).unwrap_or_default().fill(b'\n');
        old = old.or(Some(place));
    }
    let others_end = new.iter().rposition(|byte| *byte != b'\n').map_or(0, |at| at + 2);
    let sector = index(SECTOR_BYTES);
    let fits = |at: usize, bytes: usize| at.is_multiple_of(sector) || at % sector + bytes <= sector;
    let stays = |old: &Range<usize>| {
        old.start >= others_end && fits(old.start, old.len() + 1) && fits(old.start, line.len())
    };
    let at = match &old {
        _ if line.is_empty() => others_end,
        Some(old) if stays(old) => old.start,
        Some(_) => text.len() + usize::from(!text.ends_with(b"\n")),
        None => others_end,
    };
    new.resize(if fits(at, line.len()) { at } else { at.next_multiple_of(sector) }, b'\n');
    new.extend_from_slice(line);
    (new, old.map_or(text.len(), |old| old.end))
}

/// Returns lines filled up to the end of the first sector, so that what is changed there later has room.
pub(super) fn with_room(mut lines: Vec<u8>) -> Result<Vec<u8>> {
    let sector = index(SECTOR_BYTES);
    let Some(room) = sector.checked_sub(lines.len()) else {
        return Err(Error::invalid("the parent's name is too long for a VMDK"));
    };
    lines.extend(filler(room));
    Ok(lines)
}

/// Returns the identity that stands for fresh bits.
pub(super) const fn cid_of(fresh: u128) -> u32 {
    let [a, b, c, d, ..] = fresh.to_le_bytes();
    // 0xfffffffe and 0xffffffff have meanings of their own.
    u32::from_le_bytes([a, b, c, d]).saturating_sub(2)
}

/// Returns `head` with each key's line replaced, removed or, behind `createType`, added.
fn edited(head: &[u8], changes: &[(&str, Option<String>)]) -> Vec<u8> {
    let quoted = |key: &str, value: &str| match key {
        "CID" | "parentCID" => format!("{key}={value}\n"),
        _ if key.starts_with("ddb.") => format!("{key} = \"{value}\"\n"),
        _ => format!("{key}=\"{value}\"\n"),
    };
    let added = |key: &str, value: &Option<String>| {
        value.as_deref().map(|value| quoted(key, value)).unwrap_or_default()
    };
    let mut new = Vec::new();
    let has = |key: &str| Descriptor::of(head.to_vec()).place(key).is_some();
    let mut missing: String =
        changes.iter().filter(|(key, _)| !has(key)).map(|(key, value)| added(key, value)).collect();
    for place in lines(head) {
        let line = head.get(place).unwrap_or_default();
        let key = split(line).map(|(key, _)| key);
        let is_meant = |name: &str| key.is_some_and(|key| key.eq_ignore_ascii_case(name.as_bytes()));
        if let Some((key, value)) = changes.iter().find(|(name, _)| is_meant(name)) {
            new.extend_from_slice(added(key, value).as_bytes());
        } else {
            new.extend_from_slice(line);
            new.push(b'\n');
        }
        if key.is_some_and(|key| key.eq_ignore_ascii_case(b"createType")) {
            new.extend_from_slice(std::mem::take(&mut missing).as_bytes());
        }
    }
    new.extend_from_slice(missing.as_bytes());
    new
}

/// Brings a text down to `room` bytes: empty lines and remarks go, then facts of the disk database move away; returns those, too.
fn make_room(mut head: Vec<u8>, room: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut moved = Vec::new();
    let is_empty = |line: &[u8]| line.trim_ascii().is_empty();
    let is_fact = |line: &[u8]| line.starts_with(b"ddb.") && !line.starts_with(PARENT_FORMAT.as_bytes());
    let is_remark = |line: &[u8]| line.starts_with(b"#") && !line.starts_with(SIGNATURE);
    let may_go =
        |line: &[u8], kind| [is_empty(line), is_remark(line), is_fact(line)].get(kind) == Some(&true);
    for (kind, is_moved) in [(0, false), (1, false), (2, true)] {
        while head.len() > room {
            let goes = |place: &Range<usize>| head.get(place.clone()).is_some_and(|line| may_go(line, kind));
            let Some(place) = lines(&head).filter(goes).last() else { break };
            let line: Vec<u8> = head.drain(place.start..(place.end + 1).min(head.len())).collect();
            if is_moved {
                moved.extend_from_slice(&line);
            }
        }
    }
    if head.len() > room {
        let excess = head.len() - room;
        return Err(Error::invalid(format!(
            "its descriptor's first sector has no room: {excess} bytes too many"
        )));
    }
    Ok((head, moved))
}

/// Returns so many bytes of a remark that says nothing.
fn filler(bytes: usize) -> Vec<u8> {
    let mut line = vec![b' '; bytes];
    if let Some(first) = line.first_mut() {
        *first = b'#';
    }
    if let Some(last) = line.last_mut() {
        *last = b'\n';
    }
    line
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the bytes that stand in the digits, up to what is none: a line may be torn.
fn from_hex(digits: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs.map_while(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests;
