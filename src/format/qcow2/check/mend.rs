//! Putting metadata right, in steps that a power cut may end anywhere.

use super::{
    counts::Counts,
    survey::{COPIED, Kind, OFFSET, Survey, describe},
};
use crate::{
    base::{Error, HostOffset, Result, units},
    format::qcow2::{
        change, counter,
        header::{Header, REFCOUNT_TABLE_BYTES_MAX},
    },
    io::File,
};
use std::collections::{BTreeSet, HashSet};

/// Which wrong "refcount is one" flags are mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    /// Those that are set on a cluster with another number of references: harmless at any time.
    Clear,
    /// Those that are missing on a cluster with one reference and a refcount of one.
    Set,
}

/// Which refcounts are mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Those that are too low.
    Up,
    /// Those that are too high: leaks.
    Down,
}

/// Writes refcounts where they are; durable.
pub(super) fn refcounts(survey: &Survey<'_>, direction: Direction) -> Result<()> {
    let geometry = survey.header.geometry;
    let per_block = geometry.refcounts_per_block();
    let mut block = vec![0; units::index(geometry.cluster_bytes())];
    for (nth, at) in survey.blocks() {
        survey.file.read_at(at, &mut block)?;
        let mut is_changed = false;
        for index in 0..per_block {
            let cluster = nth * per_block + index;
            let (stored, counted) = (survey.stored.get(cluster), survey.counts.get(cluster));
            let is_wrong = match direction {
                Direction::Up => stored < counted,
                Direction::Down => stored > counted,
            };
            if is_wrong {
                counter::write(&mut block, geometry.refcount_order, index, counted);
                is_changed = true;
            }
        }
        if is_changed {
            survey.file.write_at(at, &block)?;
        }
    }
    survey.file.flush()
}

/// Sets or clears flags in the active tables; durable.
pub(super) fn flags(survey: &Survey<'_>, which: Flags) -> Result<()> {
    let (file, header) = (survey.file, survey.header);
    let unit = header.geometry.cluster_bytes();
    let in_file = file.bytes()?;
    let mut l1 = vec![0; units::index(header.l1.range(8).bytes.min(in_file))];
    file.read_at(header.l1.at, &mut l1)?;
    let mut table = vec![0; units::index(unit)];
    let mut is_changed = false;
    let mut seen = HashSet::new();
    for entry in l1.chunks_exact_mut(8) {
        let word = entry.first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
        let at = word & OFFSET;
        if at == 0 || !at.is_multiple_of(unit) || at >= in_file {
            continue;
        }
        is_changed |= mend_word(survey, entry, word, which, true);
        if !seen.insert(at) {
            continue;
        }
        file.read_at(HostOffset::new(at), &mut table)?;
        let width = units::index(header.geometry.l2_entry_bytes());
        let mut is_table_changed = false;
        for entry in table.chunks_exact_mut(width) {
            let word = entry.first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
            if word != 0 {
                is_table_changed |= mend_word(survey, entry, word, which, false);
            }
        }
        if is_table_changed {
            file.write_at(HostOffset::new(at), &table)?;
        }
    }
    if is_changed {
        file.write_at(header.l1.at, &l1)?;
    }
    file.flush()
}

/// Puts the flag of one entry right; returns whether it changed.
fn mend_word(survey: &Survey<'_>, entry: &mut [u8], word: u64, which: Flags, is_l1: bool) -> bool {
    let cluster = (word & OFFSET) >> survey.header.geometry.cluster_bits;
    let kind = if is_l1 { Kind::Placed } else { describe(survey.header, word) };
    let is_sole = match kind {
        Kind::Placed if !is_l1 && survey.header.has_data_file() => true,
        Kind::Placed => survey.counts.get(cluster) == 1,
        _ => false,
    };
    let wanted = match which {
        Flags::Clear if !is_sole => word & !COPIED,
        Flags::Set if is_sole && kind == Kind::Placed => word | COPIED,
        _ => word,
    };
    if let Some(place) = entry.first_chunk_mut() {
        *place = wanted.to_be_bytes();
    }
    wanted != word
}

/// Writes all refcounts anew behind everything that is in use, and makes them the image's; durable.
pub(super) fn rebuild(file: &dyn File, header: &mut Header) -> Result<()> {
    let geometry = header.geometry;
    let unit = geometry.cluster_bytes();
    // The old structures count for where the new ones go, and not for what they say.
    let taken = Survey::take(file, header, true)?.counts.used_end();
    let mut counts = Survey::take(file, header, false)?.counts;
    let (table_clusters, blocks) = room(header, &counts, taken)?;
    let structures = table_clusters + units::count(blocks.len());
    if file.is_device() && (taken + structures) * unit > file.bytes()? {
        return Err(Error::new(crate::base::ErrorKind::NoSpace, "no room for new refcounts on the device"));
    }
    (taken..taken + structures).for_each(|cluster| counts.set(cluster, 1));
    let mut table = vec![0_u8; units::index(table_clusters * unit)];
    let per_block = geometry.refcounts_per_block();
    for (n, nth) in (0..).zip(&blocks) {
        let at = (taken + table_clusters + n) * unit;
        let place = table.as_chunks_mut().0.get_mut(units::index(*nth));
        if let Some(place) = place {
            *place = at.to_be_bytes();
        }
        let mut block = vec![0; units::index(unit)];
        for index in 0..per_block.min(counts.end().saturating_sub(nth * per_block)) {
            let count = counts.get(nth * per_block + index);
            if count > 0 {
                counter::write(&mut block, geometry.refcount_order, index, count);
            }
        }
        file.write_at(HostOffset::new(at), &block)?;
    }
    let table_at = HostOffset::new(taken * unit);
    file.write_at(table_at, &table)?;
    file.flush()?;
    change::set_fields(file, header, |h| h.refcount_table = table_at.range(table_clusters * unit))
}

/// Returns the clusters of the new refcount table, and the numbers of the blocks that it needs, if they
/// start at cluster `from`.
fn room(header: &Header, counts: &Counts, from: u64) -> Result<(u64, BTreeSet<u64>)> {
    let geometry = header.geometry;
    let per_block = geometry.refcounts_per_block();
    let used = counts.used_end().div_ceil(per_block);
    let is_used = |nth: &u64| !counts.is_free(nth * per_block, (nth + 1) * per_block);
    let mut blocks: BTreeSet<u64> = (0..used).filter(is_used).collect();
    let mut table_clusters = 1;
    loop {
        let end = from + table_clusters + units::count(blocks.len());
        let before = (table_clusters, blocks.len());
        blocks.extend(from / per_block..end.div_ceil(per_block));
        table_clusters = geometry.clusters(end.div_ceil(per_block).max(used) * 8);
        if before == (table_clusters, blocks.len()) {
            break;
        }
    }
    if table_clusters * geometry.cluster_bytes() > REFCOUNT_TABLE_BYTES_MAX {
        return Err(Error::unsupported("the refcount table would be longer than any program opens"));
    }
    Ok((table_clusters, blocks))
}
