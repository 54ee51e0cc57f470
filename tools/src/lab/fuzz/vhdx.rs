//! Damages of VHDX images: fields of their structures, with the sums put right behind them, and a sound image to damage.

use super::recipe::Recipe;
use deltachain::{
    base::{
        GuestOffset, HostOffset, Result as Answer,
        seed::Seeded,
        units::{count, index},
    },
    format::{self, Creation, Format, Identity, NoParts, Nothing, ParentName},
    io::{File, memory::MemoryFile},
};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
/// Where the headers are.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the first one says where the log is.
const LOG_FIELD: u64 = HEADERS[0] + 72;
/// Where a new image has the GUID of its disk, in the metadata region.
const PAGE_83: u64 = (64 << 10) + 128;
/// Structures whose second word is the CRC-32C of all of them: where, and how long.
const SUMMED: [(u64, u64); 4] =
    [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)];
/// Fields of a header, from its start: where, and how wide.
const HEADER: [(u64, u64); 8] = [(8, 8), (16, 8), (32, 8), (48, 8), (64, 2), (66, 2), (68, 4), (72, 8)];
/// Fields of a region table.
const REGIONS: [(u64, u64); 8] = [(8, 4), (16, 8), (32, 8), (40, 4), (44, 4), (48, 8), (64, 8), (72, 4)];
/// Fields of a log entry with its first two descriptors.
const ENTRY: [(u64, u64); 14] = [
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 4),
    (32, 8),
    (48, 8),
    (56, 8),
    (64, 4),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (112, 8),
    (120, 8),
];

/// Returns a child whose log is not in its place yet, as a power cut leaves it.
pub(super) fn dirty_child() -> Answer<Vec<u8>> {
    let file = Arc::new(MemoryFile::new("child"));
    let link = ParentName {
        identity: Some(Identity::Guid([7; 16])),
        ..ParentName::new(b"../base.vhdx".to_vec(), Some("vhdx".to_owned()))
    };
    let options = vec![("block_size".to_owned(), "1M".to_owned())];
    let creation = Creation { size: 3 * MIB, parent: Some(link), options };
    let image = format::create(Format::Vhdx, file.clone(), &creation, &NoParts)?;
    for at in [700, MIB + 4096, 2 * MIB] {
        image.write(GuestOffset::new(at), &[3; 5000], &Nothing)?;
        image.flush()?;
    }
    let mut bytes = vec![0; index(file.bytes()?)];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    // The same bytes each time, so that what is found can be kept.
    let log = word(&bytes, LOG_FIELD, 8);
    for at in
        [HEADERS[0] + 16, HEADERS[0] + 32, HEADERS[0] + 48, HEADERS[1] + 16, HEADERS[1] + 32, HEADERS[1] + 48]
    {
        fill(&mut bytes, at);
    }
    let mut entry = log;
    while bytes.get(index(entry)..).is_some_and(|rest| rest.starts_with(b"loge")) {
        fill(&mut bytes, entry + 32);
        let length = word(&bytes, entry + 8, 4);
        mend(&mut bytes, (entry, length));
        entry += length;
    }
    let page_83 = region(&bytes, 1) + PAGE_83;
    fill(&mut bytes, page_83);
    for at in HEADERS {
        mend(&mut bytes, (at, 4096));
    }
    Ok(bytes)
}

fn fill(bytes: &mut [u8], at: u64) {
    bytes.iter_mut().skip(index(at)).take(16).for_each(|byte| *byte = 0x6d);
}

/// Puts the sum of a structure right; returns where, and what it was not.
fn mend(bytes: &mut [u8], (at, length): (u64, u64)) -> Option<(u64, Vec<u8>)> {
    let structure = bytes.get(index(at)..index(at.saturating_add(length)))?;
    let (front, rest) = structure.split_at_checked(4)?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(front), &[0; 4]);
    let sum = crc32c::crc32c_append(sum, rest.get(4..)?).to_le_bytes();
    let place = bytes.get_mut(index(at) + 4..index(at) + 8)?;
    (place != sum).then(|| {
        place.copy_from_slice(&sum);
        (at + 4, sum.to_vec())
    })
}

fn word(bytes: &[u8], at: u64, width: u64) -> u64 {
    let part = bytes.get(index(at)..index(at.saturating_add(width))).unwrap_or_default();
    part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn pick<T: Copy>(from: &[T], seeded: &mut Seeded) -> Option<T> {
    from.get(index(seeded.below(count(from.len())))).copied()
}

/// Returns where something lies that is worth a damage.
fn place(bytes: &[u8], seeded: &mut Seeded) -> Option<(u64, u64)> {
    // What was damaged already may lead anywhere.
    let within = |start: u64, (at, width): (u64, u64)| (start.saturating_add(at), width);
    let (log, metadata, bat) = (word(bytes, LOG_FIELD, 8), region(bytes, 1), region(bytes, 0));
    match seeded.below(8) {
        0 => Some(within(pick(&HEADERS, seeded)?, pick(&HEADER, seeded)?)),
        1 => Some(within(pick(&[192 << 10, 256 << 10], seeded)?, pick(&REGIONS, seeded)?)),
        2 => Some(within(log, pick(&ENTRY, seeded)?)),
        3 => Some(within(metadata, (seeded.below(7 * 32 / 2) * 2, pick(&[2, 4, 8], seeded)?))),
        4 => Some(within(metadata, ((64 << 10) + seeded.below(512), pick(&[1, 2, 4, 8], seeded)?))),
        _ => Some(within(bat, (seeded.below(6) * 8, 8))),
    }
}

/// Returns where a region begins, by its entry's number.
fn region(bytes: &[u8], nth: u64) -> u64 {
    word(bytes, (192 << 10) + 16 + nth * 32 + 16, 8)
}

fn value(bytes: &[u8], (at, width): (u64, u64), seeded: &mut Seeded) -> Vec<u8> {
    let (old, bits) = (word(bytes, at, width), width * 8);
    let end = count(bytes.len());
    let state = old & 7;
    let value = match seeded.below(14) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << seeded.below(bits),
        3 => old ^ 1 << seeded.below(bits),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old.wrapping_add(MIB),
        7 => old.wrapping_sub(MIB),
        8 => end | state,
        9 => end.saturating_sub(MIB) | state,
        10 => (seeded.below(end / MIB + 1) * MIB) | seeded.below(8),
        11 => old & !7 | seeded.below(8),
        12 => 4096,
        _ => seeded.next(),
    };
    value.to_le_bytes().into_iter().take(index(width)).collect()
}

/// Damages an image; mostly the sums are right again afterwards.
pub(super) fn damage(bytes: &[u8], recipe: &mut Recipe, seeded: &mut Seeded) {
    let mut damaged = bytes.to_vec();
    let put = |damaged: &mut Vec<u8>, recipe: &mut Recipe, at: u64, new: Vec<u8>| {
        if let Some(place) = damaged.get_mut(index(at)..index(at.saturating_add(count(new.len())))) {
            place.copy_from_slice(&new);
            recipe.edits.push((at, new));
        }
    };
    for _ in 0..=seeded.below(3) {
        if let Some(place) = place(&damaged, seeded) {
            let new = value(&damaged, place, seeded);
            // Both headers, or both region tables, or one.
            let twin = match place.0 >> 16 {
                1 | 3 => Some(place.0.saturating_add(64 << 10)),
                _ => None,
            };
            if let Some(twin) = twin.filter(|_| seeded.chance(3, 4)) {
                put(&mut damaged, recipe, twin, new.clone());
            }
            put(&mut damaged, recipe, place.0, new);
        }
    }
    if !seeded.chance(1, 8) {
        recipe.edits.extend(mend_all(&mut damaged));
    }
}

/// Puts the sums of headers, region tables and the log's first entry right; returns where, and what they were not.
pub(super) fn mend_all(bytes: &mut [u8]) -> Vec<(u64, Vec<u8>)> {
    let log = word(bytes, LOG_FIELD, 8);
    let entry = (log, word(bytes, log.saturating_add(8), 4).min(MIB));
    let is_entry = bytes.get(index(log)..).is_some_and(|rest| rest.starts_with(b"loge"));
    SUMMED
        .into_iter()
        .chain(is_entry.then_some(entry))
        .filter_map(|structure| mend(bytes, structure))
        .collect()
}
