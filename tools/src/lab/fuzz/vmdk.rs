//! Damages of VMDK disks: fields of headers, entries of directories and tables, digits and words of descriptors; and
//! sound disks to damage.

use super::recipe::Recipe;
use deltachain::{
    base::{
        GuestOffset, HostOffset, Result as Answer,
        seed::Seeded,
        units::{SECTOR_BYTES, count, index},
    },
    format::{self, Creation, Format, Identity, NoParts, Nothing, ParentName},
    io::{File, memory::MemoryFile},
};
use std::sync::Arc;

/// Fields of a hosted header: where, and how wide.
const HOSTED: [(u64, u64); 15] = [
    (0, 4),
    (4, 4),
    (8, 4),
    (12, 8),
    (20, 8),
    (28, 8),
    (36, 8),
    (44, 4),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 1),
    (73, 4),
    (77, 2),
    (512, 1),
];
/// Fields of a COWD header.
const COWD: [(u64, u64); 7] = [(4, 4), (8, 4), (12, 4), (16, 4), (20, 4), (24, 4), (28, 4)];

/// Returns a child of 300 KiB in small grains, its identities always the same.
pub(super) fn child() -> Answer<Vec<u8>> {
    let link = ParentName {
        identity: Some(Identity::Cid(7)),
        ..ParentName::new(b"../base.vmdk".to_vec(), Some("vmdk".to_owned()))
    };
    made(("cluster_size", "4k"), Some(link), (&[700, 100 << 10, 290 << 10], 5000))
}

/// Returns a stream of 300 KiB, which ends with its footer.
pub(super) fn stream() -> Answer<Vec<u8>> {
    made(("subformat", "streamOptimized"), None, (&[0, 128 << 10], 64 << 10))
}

/// Makes a disk with so many bytes at each of some places.
fn made(
    option: (&str, &str),
    parent: Option<ParentName>,
    (places, length): (&[u64], usize),
) -> Answer<Vec<u8>> {
    let file = Arc::new(MemoryFile::new("vm.vmdk"));
    let options = vec![(option.0.to_owned(), option.1.to_owned())];
    let is_child = parent.is_some();
    let image =
        format::create(Format::Vmdk, file.clone(), &Creation { size: 300 << 10, parent, options }, &NoParts)?;
    if is_child {
        image.set_record(Some(&[5; 90]))?;
    }
    for at in places {
        image.write(GuestOffset::new(*at), &vec![3; length], &Nothing)?;
    }
    image.flush()?;
    let mut bytes = vec![0; index(file.bytes()?)];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    let cid = Identity::to_string(&image.identity().unwrap_or(Identity::Cid(0))).into_bytes();
    // The same bytes each time, so that what is found can be kept.
    for at in 0..4096 {
        if let Some(place) = bytes.get_mut(at..at + cid.len()).filter(|place| *place == cid) {
            place.copy_from_slice(b"0badf00d");
        }
    }
    Ok(bytes)
}

/// Returns a descriptor of two flat extents in one file, and that file.
pub(super) fn flat() -> (Vec<u8>, Vec<u8>) {
    let text = "# Disk DescriptorFile\nversion=1\nCID=0badf00d\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                RW 8 FLAT \"data\" 8\nRW 8 ZERO\nRDONLY 8 VMFS \"data\"\nddb.adapterType = \"ide\"\n";
    (text.into(), vec![7; 8192])
}

/// Returns an extent of ESX with two grains.
pub(super) fn cowd() -> Vec<u8> {
    let mut bytes = vec![0; 48 * 512];
    let words: [u32; 7] = [1, 3, 4000, 1, 4, 1, 48];
    let mut put = |at: usize, new: &[u8]| {
        bytes.iter_mut().skip(at).zip(new).for_each(|(to, from)| *to = *from);
    };
    put(0, b"COWD");
    put(4, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
    put(4 * 512, &8_u32.to_le_bytes());
    put(8 * 512, &[40_u32.to_le_bytes(), [0; 4], 41_u32.to_le_bytes()].concat());
    put(40 * 512, &[9; 1024]);
    bytes
}

/// Returns a space-efficient extent with two grains, one that is not mapped, and one of zeros.
pub(super) fn space_efficient() -> Vec<u8> {
    let mut bytes = vec![0; 544 * 512];
    let mut put = |sector: usize, words: &[u64]| {
        let new = words.iter().flat_map(|word| word.to_le_bytes());
        bytes.iter_mut().skip(sector * 512).zip(new).for_each(|(to, from)| *to = from);
    };
    let places = [1, 1, 2, 2, 4, 4, 8, 8, 64, 192, 256, 8, 264, 8, 512, 32];
    put(0, &[&[0xcafe_babe, 0x2_0000_0001, 100_000, 8, 64, 0, 0, 0, 0, 0][..], &places].concat());
    put(1, &[0xcafe_cafe]);
    // The first table is the second in the file.
    put(8, &[0x1000_0000_0000_0001]);
    put(128, &[3 << 60 | 3 << 48, 0, 1 << 60 | 7, 2 << 60, 3 << 60 | 1 << 48]);
    for (sector, byte) in [(520, 0x44), (536, 0x33)] {
        put(sector, &[u64::from_le_bytes([byte; 8]); 512]);
    }
    bytes
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
    let (fields, directory): (&[(u64, u64)], u64) = match bytes.first_chunk::<4>() {
        Some(b"KDMV") => {
            // Of a stream, the footer counts.
            let end = count(bytes.len()).saturating_sub(1024);
            let start = if word(bytes, 56, 8) == u64::MAX && seeded.chance(3, 4) { end } else { 0 };
            if seeded.chance(1, 3) {
                let (at, width) = pick(&HOSTED, seeded)?;
                return Some((start + at, width));
            }
            let field = if seeded.chance(1, 4) { 48 } else { 56 };
            (&HOSTED, word(bytes, start + field, 8))
        }
        Some(b"COWD") => (&COWD, word(bytes, 20, 4)),
        Some([0xbe, 0xba, 0xfe, 0xca]) => {
            // Header, volatile header, directory, the table.
            let at = match seeded.below(8) {
                0..3 => 8 * seeded.below(26),
                3 => SECTOR_BYTES + 8 * seeded.below(4),
                4 => 8 * SECTOR_BYTES + 8 * seeded.below(4),
                _ => 128 * SECTOR_BYTES + 8 * seeded.below(8),
            };
            return Some((at, pick(&[8, 8, 4], seeded)?));
        }
        // A descriptor: any byte.
        _ => return Some((seeded.below(count(bytes.len())), 1)),
    };
    let directory = directory.saturating_mul(SECTOR_BYTES);
    match seeded.below(8) {
        0 => pick(fields, seeded),
        1 => Some((SECTOR_BYTES + seeded.below(700), 1)),
        2 => Some((directory.saturating_add(seeded.below(3) * 4), 4)),
        _ => {
            let table = word(bytes, directory, 4) * SECTOR_BYTES;
            Some((table + seeded.below(80) * 4, 4))
        }
    }
}

fn value(bytes: &[u8], (at, width): (u64, u64), seeded: &mut Seeded) -> Vec<u8> {
    let (old, bits) = (word(bytes, at, width), width * 8);
    let end = count(bytes.len()) / SECTOR_BYTES;
    let value = match seeded.below(13) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << seeded.below(bits),
        3 => old ^ 1 << seeded.below(bits),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old.wrapping_add(8),
        7 => old.wrapping_sub(8),
        8 => end,
        9 => end.saturating_sub(1),
        10 => 1,
        11 => seeded.below(end + 1),
        _ => seeded.next(),
    };
    value.to_le_bytes().into_iter().take(index(width)).collect()
}

/// Damages a disk.
pub(super) fn damage(bytes: &[u8], recipe: &mut Recipe, seeded: &mut Seeded) {
    let mut damaged = bytes.to_vec();
    for _ in 0..=seeded.below(3) {
        let Some(place) = place(&damaged, seeded) else { continue };
        let new = value(&damaged, place, seeded);
        let range = index(place.0)..index(place.0.saturating_add(count(new.len())));
        if let Some(old) = damaged.get_mut(range) {
            old.copy_from_slice(&new);
            recipe.edits.push((place.0, new));
        }
    }
}
