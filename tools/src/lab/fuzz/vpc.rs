//! Damages of VHDs: words of footers, header, locators and table, mostly with the sums put right behind them, and a sound child
//! to damage.

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

/// Bytes of a footer.
const FOOTER: u64 = 512;
/// Where a footer has its sum, and where its unique ID.
const FOOTER_SUM: u64 = 64;
const UNIQUE_ID: u64 = 68;
/// Bytes of a header, and where its sum is.
const HEADER: u64 = 1024;
const HEADER_SUM: u64 = 36;

/// Returns a child with two blocks that are held in part.
pub(super) fn child() -> Answer<Vec<u8>> {
    let file = Arc::new(MemoryFile::new("child"));
    let link = ParentName {
        identity: Some(Identity::Guid([7; 16])),
        ..ParentName::new(b"../base.vhd".to_vec(), Some("vpc".to_owned()))
    };
    let options = vec![("block_size".to_owned(), "64k".to_owned())];
    let creation = Creation { size: 1 << 20, parent: Some(link), options };
    let image = format::create(Format::Vpc, file.clone(), &creation, &NoParts)?;
    for at in [700, 300_000] {
        image.write(GuestOffset::new(at), &[3; 5000], &Nothing)?;
    }
    image.flush()?;
    let mut bytes = vec![0; index(file.bytes()?)];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    // The same bytes each time, so that what is found can be kept.
    for footer in [0, count(bytes.len()) - FOOTER] {
        for (at, length) in [(24, 4), (UNIQUE_ID, 16)] {
            let field = bytes.iter_mut().skip(index(footer + at)).take(length);
            field.for_each(|byte| *byte = 0x6d);
        }
        mend(&mut bytes, (footer, FOOTER), FOOTER_SUM);
    }
    Ok(bytes)
}

/// Puts the sum of a structure right; returns where, and what it was not.
fn mend(bytes: &mut [u8], (at, length): (u64, u64), sum_at: u64) -> Option<(u64, Vec<u8>)> {
    let structure = bytes.get(index(at)..index(at.checked_add(length)?))?;
    let own = index(sum_at)..index(sum_at) + 4;
    let others = (0..).zip(structure).filter(|(nth, _)| !own.contains(nth));
    let sum = !others.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    let place = bytes.get_mut(index(at + sum_at)..index(at + sum_at) + 4)?;
    (place != sum.to_be_bytes()).then(|| {
        place.copy_from_slice(&sum.to_be_bytes());
        (at + sum_at, sum.to_be_bytes().to_vec())
    })
}

fn word(bytes: &[u8], at: u64, width: u64) -> u64 {
    let part = bytes.get(index(at)..index(at.saturating_add(width))).unwrap_or_default();
    part.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Damages an image; mostly the sums are right again afterwards.
pub(super) fn damage(bytes: &[u8], recipe: &mut Recipe, seeded: &mut Seeded) {
    let mut damaged = bytes.to_vec();
    let end = count(bytes.len()).saturating_sub(FOOTER);
    let header = word(bytes, 16, 8);
    let table = word(bytes, header.saturating_add(16), 8);
    for _ in 0..=seeded.below(3) {
        let at = match seeded.below(5) {
            0 => end + 4 * seeded.below(22),
            1 => header.saturating_add(4 * seeded.below(36)),
            2 => header.saturating_add(576 + 4 * seeded.below(12)),
            _ => table.saturating_add(4 * seeded.below(18)),
        };
        let old = word(&damaged, at, 4);
        let sectors = end / FOOTER;
        let value = [
            0,
            u64::MAX,
            old + 1,
            old ^ 1 << seeded.below(32),
            seeded.below(sectors + 2),
            512,
            seeded.next(),
        ];
        let value = value.get(index(seeded.below(count(value.len())))).copied().unwrap_or_default();
        let new = value.to_be_bytes().into_iter().skip(4).collect::<Vec<_>>();
        // Both footers, or one.
        let twin = at.checked_sub(end).filter(|_| bytes.starts_with(b"conectix") && seeded.chance(3, 4));
        for at in [Some(at), twin].into_iter().flatten() {
            if let Some(place) = damaged.get_mut(index(at)..index(at.saturating_add(4))) {
                place.copy_from_slice(&new);
                recipe.edits.push((at, new.clone()));
            }
        }
    }
    if !seeded.chance(1, 8) {
        recipe.edits.extend(mend_all(&mut damaged, header));
    }
}

/// Puts the sums of footers and header right; returns where, and what they were not.
pub(super) fn mend_all(bytes: &mut [u8], header: u64) -> Vec<(u64, Vec<u8>)> {
    let end = count(bytes.len()).saturating_sub(FOOTER);
    let footers = [0, end].map(|at| ((at, FOOTER), FOOTER_SUM));
    let mut mended = Vec::new();
    for (place, sum_at) in footers.into_iter().chain([((header, HEADER), HEADER_SUM)]) {
        // What stands at the front of a fixed disk is its guest's.
        let is_there = |at: &[u8]| at.starts_with(b"conectix") || at.starts_with(b"cxsparse");
        if bytes.get(index(place.0)..).is_some_and(is_there) {
            mended.extend(mend(bytes, place, sum_at));
        }
    }
    mended
}

/// Returns where the header is, by the footer at the end.
pub(super) fn header_at(bytes: &[u8]) -> u64 {
    word(bytes, count(bytes.len()).saturating_sub(FOOTER) + 16, 8)
}
