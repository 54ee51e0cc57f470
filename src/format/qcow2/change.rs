//! Changing a header in place so that a power cut at any moment leaves the old one or the new one.
//!
//! A disk writes one sector whole or not at all; any longer write may be torn. So every change ends in one
//! *flip*: a write within one sector before which the file still says the old thing and after which it says
//! the new one. What the new header needs outside that sector is written before, and made durable, to bytes
//! that the old header does not use.
//!
//! Where that cannot be done in place (the list of extensions passes the first sector and something is
//! inserted), the list moves: a copy with the change goes to free room of the first cluster, and the flip
//! sets `header_length` and the name's offset in the first sector. The same step again brings the list back
//! behind the header's fields. Between the two, the fields beyond those known are zero, which means "not
//! there", and a reader finds all it needs. Version 2 has no `header_length`: there the change is refused.

use super::{
    create::check_name,
    extension::{self, Extension},
    feature,
    header::{Header, V3_BYTES_MIN},
    layout::SECTOR,
};
use crate::{
    base::{Error, HostOffset, Result, error::InFile, units},
    format::{ParentName, StoredRecord},
    io::File,
};
use std::ops::Range;

/// Room left behind the extensions, so that a record can be added without moving anything.
pub(super) const GAP_BYTES: u64 = 1024;

/// Changes fields of fixed places (sizes, tables, feature bits): one write within the first sector, durable.
///
/// What the new fields rely on is durable already. The geometry, names and extensions stay as they are.
pub(super) fn set_fields(
    file: &dyn File,
    header: &mut Header,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    write_fields(file, header, change)?;
    file.flush()
}

/// As [`set_fields`], durable once the file is flushed; nothing that only the old fields tell of is given up before.
pub(super) fn write_fields(
    file: &dyn File,
    header: &mut Header,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut new = header.clone();
    change(&mut new);
    if commit(file, header, &new)? {
        return Ok(());
    }
    Err(Error::invalid("a change of fields reached beyond the first sector").path(file.path()))
}

/// Prepares an image that is about to be written: refuses one marked as corrupt, and clears the autoclear
/// bits of features that this build does not keep true.
pub(super) fn begin_writing(file: &dyn File, header: &mut Header) -> Result<()> {
    header.check_writable().in_file(file.path())?;
    if header.autoclear & !feature::KNOWN_AUTOCLEAR == 0 {
        return Ok(());
    }
    set_fields(file, header, |h| h.autoclear &= feature::KNOWN_AUTOCLEAR)
}

/// Names another parent, or none; durable, in one step.
///
/// `Invalid` for a name that no header can hold, for a raw data file, and where the first cluster has no room.
pub(super) fn set_parent(file: &dyn File, header: &mut Header, parent: Option<&ParentName>) -> Result<()> {
    let mut new = header.clone();
    if let Some(parent) = parent {
        check_name(&parent.name).in_file(file.path())?;
        if header.is_data_file_raw() {
            let why = "has a raw data file, which excludes a parent";
            return Err(Error::invalid(why).path(file.path()));
        }
    }
    let is_misread = parent.is_some_and(|parent| parent.is_misread);
    check_misread(is_misread, header.geometry.version).in_file(file.path())?;
    new.incompatible &= !feature::MISREAD_PARENT;
    new.incompatible |= if is_misread { feature::MISREAD_PARENT } else { 0 };
    new.parent_name = parent.map(|p| p.name.clone());
    let format = parent.and_then(|p| p.format.as_ref()).map(|f| f.clone().into_bytes());
    put(&mut new.extensions, extension::BACKING_FORMAT, format);
    if commit(file, header, &new)? {
        return file.flush();
    }
    let name_bytes = parent.map_or(0, |p| p.name.len());
    Err(Error::invalid(format!("the first cluster has no room for a parent's name of {name_bytes} bytes"))
        .path(file.path()))
}

/// Refuses a parent that others misread where nothing can be said of it.
pub(super) fn check_misread(is_misread: bool, version: u32) -> Result<()> {
    if is_misread && version == 2 {
        let what = "version 2 cannot say that its parent is a differencing VHD, which qemu would misread (compat=1.1 can)";
        return Err(Error::invalid(what));
    }
    Ok(())
}

/// Stores, replaces or removes an extension, and sets or clears the autoclear bits that go with it: who reads the header
/// finds what it said before or what it is to say, or an extension that was not to be believed and still is not. Durable
/// once the file is flushed, before which no name or extension is changed again. False where the first cluster has no
/// room: the extensions are as they were.
pub(super) fn write_extension(
    file: &dyn File,
    header: &mut Header,
    extension: (u32, Option<&[u8]>),
    autoclear: u64,
) -> Result<bool> {
    let (kind, bytes) = extension;
    let mut list = header.clone();
    put(&mut list.extensions, kind, bytes.map(<[u8]>::to_vec));
    let mut both = list.clone();
    both.autoclear = if bytes.is_some() { both.autoclear | autoclear } else { both.autoclear & !autoclear };
    if in_place(file, header, &both)? {
        return Ok(true);
    }
    // The list may lie beyond the sector with the bits: one of both comes first, if neither says a thing alone.
    if let Some(half) = bytes.and_then(|_| half_way(header, &list, &both, kind))
        && in_place(file, header, &half)?
    {
        file.flush()?;
        if in_place(file, header, &both)? {
            return Ok(true);
        }
    }
    moved(file, header, &both)
}

/// Returns what the header may say between `header` and `both`, if there is such a thing. A bit without a record is nothing,
/// so that it comes before one that is added. A record without its bit is one that a foreign writer made worthless, which
/// what is noted beside the image may stand in for: neither another one nor its bit may come alone. Bitmaps without their
/// bit are none, and the bit must not be there without them.
fn half_way(header: &Header, list: &Header, both: &Header, kind: u32) -> Option<Header> {
    match (kind, header.extension(kind)) {
        (extension::RECORD, Some(_)) => None,
        (extension::RECORD, None) => Some(Header { autoclear: both.autoclear, ..header.clone() }),
        _ => Some(list.clone()),
    }
}

/// Returns the project's record; none in version 2, where no bit tells a foreign writer.
pub(super) fn record(header: &Header) -> Option<StoredRecord> {
    if header.geometry.version == 2 {
        return None;
    }
    let bytes = header.extension(extension::RECORD)?.to_vec();
    Some(StoredRecord { bytes, is_untouched: header.has_autoclear(feature::RECORD) })
}

/// Stores or removes the project's record, durably once the file is flushed, before which no name or extension is
/// changed again. False, and an older one as it was, where there is no place for it: version 2, or a first cluster without
/// room.
pub(super) fn set_record(file: &dyn File, header: &mut Header, record: Option<&[u8]>) -> Result<bool> {
    if header.geometry.version == 2 {
        return Ok(false);
    }
    if record == header.extension(extension::RECORD)
        && header.has_autoclear(feature::RECORD) == record.is_some()
    {
        return Ok(true);
    }
    write_extension(file, header, (extension::RECORD, record), feature::RECORD)
}

/// Clears the bit of the project's record, as a foreign writer does; durably once the file is flushed.
pub(super) fn void_record(file: &dyn File, header: &mut Header) -> Result<()> {
    if record(header).is_none_or(|record| !record.is_untouched) {
        return Ok(());
    }
    write_fields(file, header, |h| h.autoclear &= !feature::RECORD)
}

/// Replaces an extension's bytes where it stands, removes it, or adds it: the parent's format first, as qemu
/// does, others last.
fn put(list: &mut Vec<Extension>, kind: u32, bytes: Option<Vec<u8>>) {
    let place = list.iter().position(|e| e.kind == kind);
    match (place, bytes) {
        (Some(_), None) => list.retain(|e| e.kind != kind),
        (Some(place), Some(bytes)) => {
            list.iter_mut().skip(place).take(1).for_each(|e| e.bytes.clone_from(&bytes));
        }
        (None, Some(bytes)) if kind == extension::BACKING_FORMAT => list.insert(0, Extension { kind, bytes }),
        (None, Some(bytes)) => list.push(Extension { kind, bytes }),
        (None, None) => {}
    }
}

/// Makes `new` the header, durable once the file is flushed; false, and nothing changed, where the first cluster has no room.
fn commit(file: &dyn File, header: &mut Header, new: &Header) -> Result<bool> {
    Ok(in_place(file, header, new)? || moved(file, header, new)?)
}

/// Tries the change with the list where it belongs and the name at one of the places that it can have.
fn in_place(file: &dyn File, header: &mut Header, new: &Header) -> Result<bool> {
    let mut new = new.clone();
    new.header_bytes = header.own_bytes();
    new.more_fields.truncate(units::index(new.header_bytes.saturating_sub(V3_BYTES_MIN)));
    let list_end = new.header_bytes + extension::list_bytes(&new.extensions);
    for at in name_places(header, &new, list_end) {
        new.parent_name_at = HostOffset::new(at);
        if fits(&new) && flip(file, header, &new)? {
            *header = new;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns where the parent's name may go, the best place first.
fn name_places(old: &Header, new: &Header, list_end: u64) -> Vec<u64> {
    if new.parent_name.is_none() {
        return vec![0];
    }
    let beyond = old.places_end().max(list_end).next_multiple_of(8);
    let mut places = vec![list_end + GAP_BYTES, list_end, beyond];
    let now = old.parent_name_at.bytes();
    let stays = old.header_bytes == new.header_bytes && old.parent_name == new.parent_name;
    if stays && now >= list_end {
        places.insert(0, now);
    }
    places
}

/// Puts the changed list and the name into free room, and then back to where they belong.
fn moved(file: &dyn File, header: &mut Header, new: &Header) -> Result<bool> {
    if header.geometry.version == 2 {
        return Ok(false);
    }
    let own = header.own_bytes();
    let list_bytes = extension::list_bytes(&new.extensions);
    let name_bytes = new.parent_name.as_ref().map_or(0, |name| units::count(name.len()));
    let home_end = own + list_bytes + name_bytes;
    let mut away = new.clone();
    away.header_bytes = header.places_end().max(home_end).max(units::count(SECTOR)).next_multiple_of(8);
    away.more_fields.truncate(units::index(own.saturating_sub(V3_BYTES_MIN)));
    let name_at = if name_bytes == 0 { 0 } else { away.header_bytes + list_bytes };
    away.parent_name_at = HostOffset::new(name_at);
    if !fits(&away) || !flip(file, header, &away)? {
        return Ok(false);
    }
    *header = away.clone();
    // Before the old list's place is written to.
    file.flush()?;
    // Already done; what follows only tidies up.
    in_place(file, header, &away)?;
    Ok(true)
}

/// Returns whether the pieces fit the first cluster (those of one header never overlap).
fn fits(header: &Header) -> bool {
    header.places_end() <= header.geometry.cluster_bytes()
}

/// Writes `new` over `old`, which is durable, with one flip; false, and nothing written, if one sector is not
/// enough.
fn flip(file: &dyn File, old: &Header, new: &Header) -> Result<bool> {
    let bytes = units::index(old.places_end().max(new.places_end())).next_multiple_of(SECTOR);
    let mut now = vec![0; bytes];
    file.read_at(HostOffset::new(0), &mut now)?;
    let mut wanted = now.clone();
    new.lay(&mut wanted);
    // What can be written without the old header noticing.
    let mut prepared = wanted.clone();
    for place in old.places() {
        if let (Some(to), Some(from)) = (prepared.get_mut(place.clone()), now.get(place)) {
            to.copy_from_slice(from);
        }
    }
    let last = changed(&prepared, &wanted);
    if last.start / SECTOR != last.end.saturating_sub(1).max(last.start) / SECTOR {
        return Ok(false);
    }
    let write = |span: Range<usize>, bytes: &[u8]| {
        let part = bytes.get(span.clone()).unwrap_or_default();
        file.write_at(HostOffset::new(units::count(span.start)), part)
    };
    let first = changed(&now, &prepared);
    if !first.is_empty() {
        write(first, &prepared)?;
        file.flush()?;
    }
    if !last.is_empty() {
        // The whole sector: a flip before it whose flush failed is in it, too, and the two never mix.
        let sector = last.start / SECTOR * SECTOR;
        write(sector..sector + SECTOR, &wanted)?;
    }
    Ok(true)
}

/// Returns the smallest span that holds every byte in which the two differ.
fn changed(a: &[u8], b: &[u8]) -> Range<usize> {
    let differs = |i: &usize| a.get(*i) != b.get(*i);
    let first = (0..a.len()).find(differs).unwrap_or(0);
    let end = (first..a.len()).rev().find(differs).map_or(first, |last| last + 1);
    first..end
}

#[cfg(test)]
mod tests;
