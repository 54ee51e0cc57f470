//! Damages that mean something: words of tables and fields of headers become what a parser may stumble over.

use super::{
    recipe::Recipe,
    subject::{Parser, Subject},
    vhdx, vmdk, vpc,
};
use deltachain::base::{
    seed::Seeded,
    units::{count, index},
};

/// Fields of the header: where, and how wide.
const FIELDS: [(u64, u64); 20] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (79, 1),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
    (0, 4),
];
/// The bitmaps extension's kind.
const BITMAPS: u64 = 0x2385_2875;
/// What a table entry has of an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where an image's words are, by what they are: an empty kind is one that the image lacks.
#[derive(Debug, Default)]
struct Places {
    unit: u64,
    kinds: Vec<Vec<u64>>,
}

fn word(bytes: &[u8], at: u64, width: u64) -> u64 {
    let part = bytes.get(index(at)..index(at + width)).unwrap_or_default();
    part.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

impl Places {
    /// Finds them in a sound qcow2 image.
    fn find(image: &[u8]) -> Self {
        let unit = 1 << word(image, 20, 4);
        let words = |at: u64, n: u64| (0..n).map(move |nth| at + nth * 8);
        let is_used = |at: &u64| word(image, *at, 8) != 0;
        let pointed = |at: u64| word(image, at, 8) & OFFSET;
        let l1: Vec<u64> = words(word(image, 40, 8), word(image, 36, 4)).collect();
        let tables = l1.iter().map(|at| pointed(*at)).filter(|at| *at != 0);
        let l2: Vec<u64> = tables.flat_map(|at| words(at, unit / 8)).filter(is_used).collect();
        let refcounts: Vec<u64> = words(word(image, 48, 8), 2).collect();
        let blocks = refcounts.iter().map(|at| pointed(*at)).filter(|at| *at != 0);
        let blocks = blocks.flat_map(|at| words(at, 8)).collect();
        let packed = l2.iter().filter(|at| word(image, **at, 8) >> 62 & 1 == 1).copied();
        let at_bits = 62 - (word(image, 20, 4) - 8);
        let packed = packed.map(|at| word(image, at, 8) & ((1 << at_bits) - 1)).collect();
        let snapshots = match word(image, 60, 4) {
            0 => Vec::new(),
            _ => words(word(image, 64, 8), 9).collect(),
        };
        let header = if word(image, 4, 4) == 2 { 72 } else { word(image, 100, 4) };
        let list: Vec<u64> = words(header, 24).collect();
        let bitmaps = list.iter().find(|at| word(image, **at, 4) == BITMAPS);
        let bitmaps = bitmaps.map_or_else(Vec::new, |at| {
            let directory = word(image, at + 24, 8);
            let table = word(image, directory, 8);
            words(directory, 6).chain(words(table, 4)).collect()
        });
        Self { unit, kinds: vec![l1, l2, refcounts, blocks, packed, snapshots, bitmaps, list] }
    }

    fn pick(&self, seeded: &mut Seeded) -> Option<u64> {
        let kind = pick(&self.kinds, seeded)?;
        pick(kind, seeded).copied()
    }
}

fn pick<'a, T>(from: &'a [T], seeded: &mut Seeded) -> Option<&'a T> {
    from.get(index(seeded.below(count(from.len()))))
}

/// Chooses what to damage: mostly images, and of these mostly qcow2, where there are any.
fn choose<'a>(subjects: &'a [Subject], seeded: &mut Seeded) -> Option<&'a Subject> {
    let is_qcow2 = |subject: &&Subject| matches!(subject.parser, Parser::Qcow2(_));
    let chosen: Vec<_> = match seeded.below(40) {
        0..10 => subjects.iter().filter(|s| s.is_image() && !is_qcow2(s)).collect(),
        10..37 => subjects.iter().filter(is_qcow2).collect(),
        _ => Vec::new(),
    };
    if chosen.is_empty() { pick(subjects, seeded) } else { pick(&chosen, seeded).copied() }
}

/// Makes the damages that belong to a seed.
pub(super) fn recipe(subjects: &[Subject], seeded: &mut Seeded) -> Recipe {
    let Some(subject) = choose(subjects, seeded) else { return Recipe::default() };
    let mut recipe = Recipe { subject: subject.name.clone(), ..Recipe::default() };
    let bytes = &subject.bytes;
    match subject.parser {
        Parser::Vhdx if seeded.chance(7, 8) => vhdx::damage(bytes, &mut recipe, seeded),
        Parser::Vpc if seeded.chance(7, 8) => vpc::damage(bytes, &mut recipe, seeded),
        Parser::Vmdk(_) if seeded.chance(7, 8) => vmdk::damage(bytes, &mut recipe, seeded),
        _ => {
            let places = match subject.parser {
                Parser::Qcow2(_) => Places::find(bytes),
                _ => Places::default(),
            };
            for _ in 0..=seeded.below(3) {
                recipe.edits.extend(edit(subject, &places, subjects, seeded));
            }
        }
    }
    if seeded.chance(1, 16) {
        recipe.cut = Some(seeded.below(count(bytes.len()) + 1));
    }
    recipe
}

/// One damage.
fn edit(
    subject: &Subject,
    places: &Places,
    others: &[Subject],
    seeded: &mut Seeded,
) -> Option<(u64, Vec<u8>)> {
    let bytes = &subject.bytes;
    let anywhere = seeded.below(count(bytes.len()));
    match seeded.below(16) {
        0..3 if places.unit > 0 => {
            let (at, width) = *pick(&FIELDS, seeded)?;
            Some((at, value(bytes, (at, width), places, seeded)))
        }
        3..13 if places.unit > 0 => {
            let at = places.pick(seeded)?;
            let width = *pick(&[8, 8, 8, 4, 2], seeded)?;
            let at = at + seeded.below(8 / width) * width;
            Some((at, value(bytes, (at, width), places, seeded)))
        }
        13 => {
            // A piece of one file in another.
            let other = &pick(others, seeded)?.bytes;
            let from = index(seeded.below(count(other.len())) & !511);
            let rest = other.get(from..)?;
            let length = *pick(&[8, 64, 512, 1024], seeded)?;
            Some((anywhere & !7, rest.get(..length.min(rest.len()))?.to_vec()))
        }
        14 => {
            let mut noise = vec![0; 1 + index(seeded.below(16))];
            seeded.fill(&mut noise);
            Some((anywhere, noise))
        }
        _ => {
            let width = *pick(&[1, 2, 4, 8], seeded)?;
            let at = anywhere / width * width;
            Some((at, value(bytes, (at, width), places, seeded)))
        }
    }
}

/// A value for the field of `width` bytes at `at` that a parser may stumble over.
fn value(bytes: &[u8], (at, width): (u64, u64), places: &Places, seeded: &mut Seeded) -> Vec<u8> {
    let old = word(bytes, at, width);
    let unit = places.unit.max(512);
    let bits = width * 8;
    let end = count(bytes.len()).next_multiple_of(unit);
    let value = match seeded.below(14) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << seeded.below(bits),
        3 => old ^ 1 << seeded.below(bits),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old.wrapping_add(unit),
        7 => old.wrapping_add(512),
        8 => (end + (seeded.below(3) * unit)).wrapping_sub(unit) | 1 << 63,
        9 | 10 => places.pick(seeded).map_or(old, |other| word(bytes, other, width)),
        11 => seeded.below(end / unit) * unit,
        12 => u64::MAX >> (64 - bits) >> 1,
        _ => seeded.next(),
    };
    value.to_be_bytes().iter().skip(index(8 - width)).copied().collect()
}
