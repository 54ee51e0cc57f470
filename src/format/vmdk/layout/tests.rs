//! Kinds of extents that no tool here makes: of ESX, and space-efficient ones, put together by hand.

use super::*;
use crate::{
    base::{GuestOffset, units::count},
    format::{NoParts, Nothing, vmdk::open},
    io::memory::MemoryFile,
};
use std::sync::Arc;

fn put(file: &MemoryFile, sector: u64, bytes: &[u8]) {
    file.write_at(HostOffset::new(sector * SECTOR_BYTES), bytes).unwrap();
}

fn read(file: &Arc<MemoryFile>, at: u64) -> Result<[u8; 512]> {
    let mut found = [0xee; 512];
    open(file.clone(), false, &NoParts)?.read(GuestOffset::new(at), &mut found, &Nothing)?;
    Ok(found)
}

fn cowd_file() -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new("delta.vmdk"));
    let header = Cowd {
        magic: COWD_MAGIC,
        version: 1,
        flags: 3,
        capacity: 10_000,
        grain: 1,
        directory: 4,
        entries: 3,
        free: 100,
    };
    put(&file, 0, &header.to_bytes());
    let directory: Vec<u8> = [8_u32, 0, 40].iter().flat_map(|word| word.to_le_bytes()).collect();
    put(&file, 4, &directory);
    put(&file, 8, &[90_u32.to_le_bytes(), [0; 4], 91_u32.to_le_bytes()].concat());
    put(&file, 40, &92_u32.to_le_bytes());
    for nth in 0..3 {
        put(&file, 90 + nth, &[1 + u8::try_from(nth).unwrap(); 512]);
    }
    put(&file, 99, &[0; 512]);
    file
}

#[test]
fn esx_deltas_are_read() {
    let file = cowd_file();
    let first = [0, 512, 1024, 4096 * 512, 8192 * 512].map(|at| read(&file, at).unwrap()[7]);
    assert_eq!(first, [1, 0, 2, 0, 3]);
    put(&file, 0, &[b"COWD".as_slice(), &2_u32.to_le_bytes()].concat());
    assert!(read(&file, 0).unwrap_err().to_string().contains("version (0x4) is 2"));
}

fn space_efficient() -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new("sesparse.vmdk"));
    let header = Se {
        magic: SE_MAGIC,
        version: SE_VERSION,
        capacity: 100_000,
        grain: 8,
        table: 64,
        flags: 0,
        reserved: [0; 32],
        volatile_header: 1,
        volatile_header_size: 1,
        journal_header: 2,
        journal_header_size: 2,
        journal: 4,
        journal_size: 4,
        directory: 8,
        directory_size: 8,
        tables: 64,
        tables_size: 192,
        free_bitmap: 256,
        free_bitmap_size: 8,
        backmap: 264,
        backmap_size: 8,
        grains: 512,
        grains_size: 512,
    };
    put(&file, 0, &header.to_bytes());
    put(&file, 1, &0xcafe_cafe_u64.to_le_bytes());
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    // The first table is the second in the file; the directory has no more.
    put(&file, 8, &words(&[0x1000_0000_0000_0001, 0, 0, 0]));
    // A grain (number 3), nothing, unmapped, zeros, a grain with its high bits where they are kept (number 4096).
    let entries = [3 << 60 | 3 << 48, 0, 1 << 60 | 7, 2 << 60, 3 << 60 | 1].map(|word: u64| word);
    put(&file, 64 + 64, &words(&entries));
    put(&file, 512 + 3 * 8, &[0x33; 4096]);
    put(&file, 512 + 4096 * 8, &[0x44; 4096]);
    file
}

#[test]
fn space_efficient_deltas_are_read() {
    let file = space_efficient();
    let first = [0, 4096, 8192, 12288, 16384, 40 << 20].map(|at| read(&file, at).unwrap()[9]);
    assert_eq!(first, [0x33, 0, 0, 0, 0x44, 0]);
    let image = open(file.clone(), false, &NoParts).unwrap();
    let mut extents = Vec::new();
    image.map(GuestOffset::new(4096).range(12288), &mut extents).unwrap();
    let kinds: Vec<_> = extents.iter().map(|extent| (extent.range.bytes, extent.state)).collect();
    assert_eq!(kinds, [(4096, crate::map::State::Absent), (8192, crate::map::State::Zero { host: None })]);
    // A journal that was not replayed, and an entry of no known kind.
    put(&file, 1, &[0xcafe_cafe_u64, 0, 0, 1].map(u64::to_le_bytes).concat());
    assert!(read(&file, 0).unwrap_err().to_string().contains("journal was not replayed"));
    put(&file, 1, &[0xcafe_cafe_u64, 0, 0, 0].map(u64::to_le_bytes).concat());
    put(&file, 128, &(5_u64 << 60).to_le_bytes());
    assert!(read(&file, 0).unwrap_err().to_string().contains("of no known kind"));
    let error = open(file, true, &NoParts).unwrap_err();
    assert!(error.to_string().contains("without a descriptor"), "{error}");
}

#[test]
fn a_header_of_bytes_at_random_is_refused_or_within_its_file() {
    let mut random = crate::base::seed::Seeded::new(8);
    for file in [cowd_file(), space_efficient()] {
        let bytes = index(file.bytes().unwrap().min(4096));
        let mut start = vec![0; bytes];
        file.read_at(HostOffset::new(0), &mut start).unwrap();
        for _ in 0..2000 {
            let spoiled = Arc::new(MemoryFile::new("spoiled.vmdk"));
            let mut bytes = start.clone();
            for _ in 0..3 {
                let at = index(random.below(208));
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            put(&spoiled, 0, &bytes);
            spoiled.set_bytes(1 << 20).unwrap();
            let _ = read(&spoiled, random.below(count(usize::MAX) >> 40) * 512);
        }
    }
}
