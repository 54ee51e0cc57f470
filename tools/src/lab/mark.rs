//! What is written into a sector, so that a reader can tell who wrote it and where it belongs.

use deltachain::base::units::SECTOR_BYTES;

/// Who wrote a sector: 0 nobody (zeros), else a number of the history's.
pub(crate) type Mark = u32;

/// What the parent shows.
pub(crate) const PARENT: Mark = Mark::MAX;

/// Length of a sector in memory.
pub(crate) const SECTOR: usize = 512;

const _: () = assert!(SECTOR as u64 == SECTOR_BYTES);

/// Fills a sector with what `mark` writes at `sector`.
pub(crate) fn put(mark: Mark, sector: u64, to: &mut [u8]) {
    let [filler, ..] = mark.to_le_bytes();
    to.fill(if mark == 0 { 0 } else { filler | 0x80 });
    if let Some((head, _)) = to.split_first_chunk_mut::<12>().filter(|_| mark != 0) {
        let (who, place) = head.split_at_mut(4);
        who.copy_from_slice(&mark.to_le_bytes());
        place.copy_from_slice(&sector.to_le_bytes());
    }
}

/// Returns who wrote a sector; `None` if it holds what nobody ever wrote there.
pub(crate) fn read(sector: u64, from: &[u8]) -> Option<Mark> {
    let mark = Mark::from_le_bytes(*from.first_chunk()?);
    let mut expected = [0; SECTOR];
    put(mark, sector, &mut expected);
    (from == expected).then_some(mark)
}

/// Returns what `mark` writes into `count` sectors from `sector` on.
pub(crate) fn sectors(mark: Mark, sector: u64, count: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(count).unwrap_or_default() * SECTOR];
    bytes.chunks_mut(SECTOR).zip(sector..).for_each(|(to, sector)| put(mark, sector, to));
    bytes
}
