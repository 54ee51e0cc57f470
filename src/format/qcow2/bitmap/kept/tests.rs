use crate::{
    base::{GuestOffset, seed::Seeded, units::index},
    format::{BitmapEdit, Bits, Creation, Image, NoParts, Nothing, qcow2},
    io::{
        Access, Host, Kept,
        faulty::{SimHost, crash_states},
    },
};
use std::{path::Path, sync::Arc};

const DISK: u64 = 8 << 20;
const REGION: u64 = 64 << 10;
const SECTOR: u64 = 512;
const NAMES: [&str; 2] = ["fine", "coarse"];

/// What is there before, so that a write changes it in place: part of two of the fine bitmap's clusters.
const THERE: u64 = 5 << 19;

/// A disk with two bitmaps that are to stay sound; the bits of the fine one have four clusters, none there yet.
fn image(host: &SimHost) -> Arc<dyn Image> {
    let options = vec![("cluster_size".to_owned(), "512".to_owned())];
    let creation = Creation { size: DISK, parent: None, options };
    let image = qcow2::create(host.create(Path::new("/image")).unwrap(), &creation, &NoParts).unwrap();
    image.write(GuestOffset::new(0), &vec![1; index(THERE)], &Nothing).unwrap();
    for (name, granularity) in NAMES.into_iter().zip([SECTOR, 1 << 20]) {
        let (name, granularity_bytes) = (name.to_owned(), Some(granularity));
        image.edit_bitmap(&BitmapEdit::Add { name, granularity_bytes }).unwrap();
    }
    image.flush().unwrap();
    host.sync_folder(Path::new("/")).unwrap();
    image.keep_bitmaps(REGION).unwrap();
    image
}

fn bits(image: &dyn Image) -> [Bits; 2] {
    assert!(image.details().unwrap().bitmaps.iter().all(|bitmap| !bitmap.is_in_use));
    NAMES.map(|name| image.bitmap(name).unwrap())
}

fn is_dirty(bits: &Bits, at: u64) -> bool {
    let granule = at / bits.granularity_bytes();
    bits.bytes()[index(granule / 8)] >> (granule % 8) & 1 == 1
}

#[test]
fn at_every_power_cut_a_bitmap_is_sound_and_names_every_change() {
    let host = SimHost::new();
    let image = image(&host);
    let (start, mut random, mut touched) = (host.events(), Seeded::new(7), Vec::new());
    for round in 0..9_u8 {
        let sectors = 1 + random.below(if round % 4 == 0 { 40 } else { 4 });
        let range = GuestOffset::new(random.below(THERE / SECTOR - sectors) * SECTOR).range(sectors * SECTOR);
        touched.push(range);
        match round % 3 {
            0 => image.zero(range, Kept::Nothing, &Nothing).unwrap(),
            1 => image.write(range.start, &vec![round + 2; index(range.bytes)], &Nothing).unwrap(),
            _ => {
                image.write(range.start, &vec![0xa0; index(range.bytes)], &Nothing).unwrap();
                image.flush().unwrap();
            }
        }
    }
    let all = bits(&*image);
    assert!(all[0].dirty_bytes() <= 18 * REGION && all[0].dirty_bytes().is_multiple_of(REGION), "{all:?}");
    let mut cuts = 0;
    for cut in crash_states(&host.trace(), 3, 1).filter(|cut| cut.after >= start) {
        let file = cut.host.open(Path::new("/image"), Access::Read).unwrap();
        let image = qcow2::open(file, false, &NoParts).unwrap();
        let all = bits(&*image);
        for piece in touched.iter().flat_map(|range| range.pieces(SECTOR)) {
            let mut shown = [0; 512];
            image.read(piece.start, &mut shown, &Nothing).unwrap();
            let is_named = all.iter().all(|bits| is_dirty(bits, piece.start.bytes()));
            let story = format!("cut after {}: nothing says that {:?} was written", cut.after, piece);
            assert!(shown == [1; 512] || is_named, "{story}");
        }
        cuts += 1;
    }
    assert!(cuts > 100, "{cuts}");
}

#[test]
fn a_failing_io_makes_the_write_fail_or_the_bitmap_stale_or_leaves_it_right() {
    let whole = SimHost::new();
    let image_of = |host: &SimHost| {
        let file = host.open(Path::new("/image"), Access::Write).unwrap();
        let image = qcow2::open(file, true, &NoParts).unwrap();
        image.keep_bitmaps(REGION).unwrap();
        image
    };
    drop(image(&whole));
    let mut stale = 0;
    for at in 0.. {
        let host = whole.twin();
        let image = image_of(&host);
        let first = host.ios();
        host.fail(Some(crate::io::faulty::Fault {
            at: first + at,
            is_lasting: false,
            failure: crate::io::faulty::Failure::NoSpace,
        }));
        let written = image.write(GuestOffset::new(DISK / 2), &[7; 512], &Nothing);
        let is_over = host.ios() <= first + at;
        host.fail(None);
        drop(image);
        let image = image_of(&host);
        let mut shown = [0; 512];
        image.read(GuestOffset::new(DISK / 2), &mut shown, &Nothing).unwrap();
        let is_stale = image.details().unwrap().bitmaps.iter().any(|bitmap| bitmap.is_in_use);
        stale += u32::from(is_stale && written.is_ok());
        if shown == [7; 512] && !is_stale {
            assert!(bits(&*image).iter().all(|bits| is_dirty(bits, DISK / 2)), "I/O {at} failed");
        }
        if is_over {
            break;
        }
    }
    assert!(stale > 0, "no failure of a mark was tried");
}

#[test]
fn a_bitmap_that_was_emptied_is_marked_again() {
    let host = SimHost::new();
    let image = image(&host);
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    for name in NAMES {
        image.edit_bitmap(&BitmapEdit::Clear { name: name.to_owned() }).unwrap();
    }
    assert!(bits(&*image).iter().all(|bits| bits.dirty_bytes() == 0));
    image.write(GuestOffset::new(0), &[2; 512], &Nothing).unwrap();
    assert_eq!(bits(&*image).map(|bits| bits.dirty_bytes()), [REGION, 1 << 20]);
}
