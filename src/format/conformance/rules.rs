//! The rules, each a function of a kind.

use super::{Kind, Pair, noise};
use crate::{
    base::{ErrorKind, GuestOffset, GuestRange, HostOffset, units::index},
    format::{Format, StoredRecord, conformance::named},
    io::{File, Kept, memory::MemoryFile},
    map::{self, State},
};

const KEPT: [Kept; 2] = [Kept::Space, Kept::Nothing];

/// Makes changes at every place that is easily got wrong, and looks around each.
fn at_every_place(kind: &Kind, mut pair: Pair, change: impl Fn(&mut Pair, GuestRange)) {
    for range in kind.places(kind.size()) {
        change(&mut pair, range);
        pair.compare(range.outer(kind.block).clip(pair.whole()));
    }
    pair.end();
}

pub(super) fn a_new_disk_shows_nothing_of_its_own(kind: &Kind) {
    let pair = Pair::new(kind);
    let image = pair.image();
    assert_eq!((image.format(), image.size()), (kind.format, kind.size()));
    assert_eq!(image.sector_bytes(), kind.sector());
    assert_eq!(image.parent().is_some(), kind.is_child);
    drop(image);
    pair.end();
}

pub(super) fn what_is_written_is_read(kind: &Kind) {
    at_every_place(kind, Pair::new(kind), Pair::write);
}

pub(super) fn what_comes_from_a_file_is_read(kind: &Kind) {
    at_every_place(kind, Pair::new(kind), |pair, range| pair.write_from(range, 0));
    // A file that ends early goes on with zeros.
    at_every_place(kind, Pair::new(kind), |pair, range| pair.write_from(range, 400));
}

pub(super) fn zeros_are_read_where_they_were_put(kind: &Kind) {
    for kept in KEPT {
        at_every_place(kind, Pair::new(kind), |pair, range| pair.zero(range, kept));
        let mut pair = Pair::new(kind);
        pair.write(pair.whole());
        at_every_place(kind, pair, |pair, range| pair.zero(range, kept));
        let mut pair = Pair::new(kind);
        pair.write(GuestOffset::new(0).range(kind.size() / 2));
        pair.zero(pair.whole(), kept);
        pair.end();
    }
}

pub(super) fn what_passes_the_end_is_refused_and_changes_nothing(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let (image, size) = (pair.image(), kind.size());
    pair.write(GuestOffset::new(size - 512).range(512));
    image.flush().unwrap();
    let before = pair.witnesses();
    for (at, bytes) in [(size, 1), (size - 512, 1024), (size - 1, 2), (size + 4096, 512), (u64::MAX, 2)] {
        let range = GuestOffset::new(at).range(bytes);
        let mut buf = vec![1; index(bytes)];
        let source = MemoryFile::new("source");
        source.write_at(HostOffset::new(0), &buf).unwrap();
        let mut extents = Vec::new();
        for refused in [
            image.write(range.start, &buf, &pair.below),
            image.write_from(range, &source, HostOffset::new(0), &pair.below).map(drop),
            image.zero(range, Kept::Space, &pair.below),
            image.zero(range, Kept::Nothing, &pair.below),
            image.read(range.start, &mut buf, &pair.below),
            image.map(range, &mut extents),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("pass the disk's end"), "{error}");
        }
        assert_eq!(extents, []);
    }
    let past = GuestOffset::new(size).ceil(kind.block);
    if let Some(packed) = image.pack(&vec![1; index(kind.block)]) {
        image.write_packed(past, &packed).unwrap_err();
    }
    image.flush().unwrap();
    assert_eq!(pair.witnesses(), before);
    drop(image);
    pair.end();
}

pub(super) fn what_is_empty_or_of_no_size_changes_nothing(kind: &Kind) {
    let mut pair = Pair::new(kind);
    pair.reopen(true);
    let (image, before, source) = (pair.image(), pair.witnesses(), MemoryFile::new("source"));
    for at in [0, 700, kind.size()].map(GuestOffset::new) {
        image.write(at, &[], &pair.below).unwrap();
        image.write_from(at.range(0), &source, HostOffset::new(0), &pair.below).unwrap();
        image.zero(at.range(0), Kept::Space, &pair.below).unwrap();
        image.zero(at.range(0), Kept::Nothing, &pair.below).unwrap();
        image.read(at, &mut [], &pair.below).unwrap();
    }
    // Sizes that no such image has.
    for bytes in [kind.size() + 1, u64::MAX - 511] {
        if let Err(error) = image.check_size(bytes) {
            assert_eq!(image.resize(bytes, &pair.below).unwrap_err().kind(), error.kind());
        }
    }
    image.flush().unwrap();
    assert_eq!(pair.witnesses(), before);
    drop(image);
    pair.end();
}

pub(super) fn a_reader_changes_not_one_byte(kind: &Kind) {
    let mut pair = Pair::new(kind);
    pair.write(GuestOffset::new(300).range(kind.block));
    pair.reopen(false);
    let (image, before) = (pair.image(), pair.witnesses());
    pair.compare(pair.whole());
    pair.compare_map();
    image.details().unwrap();
    let (range, source) = (GuestOffset::new(0).range(512), MemoryFile::new("source"));
    for refused in [
        image.write(range.start, &[1; 512], &pair.below),
        image.write_from(range, &source, HostOffset::new(0), &pair.below).map(drop),
        image.zero(range, Kept::Space, &pair.below),
        image.zero(range, Kept::Nothing, &pair.below),
        image.resize(kind.size() + kind.sector(), &pair.below),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    }
    image.set_parent(Some(&named(kind.format, "other", kind.format))).unwrap_err();
    assert!(!image.set_record(Some(b"record")).unwrap());
    assert_eq!(image.release().unwrap_or_default(), 0);
    image.flush().unwrap();
    image.flush_with_time().unwrap();
    drop(image);
    pair.compare(pair.whole());
    assert_eq!(pair.witnesses(), before);
    pair.end();
}

pub(super) fn a_map_tells_what_is_held(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let block = |nth: u64| GuestOffset::new(nth * kind.block).range(kind.block);
    let states =
        |pair: &Pair, range| pair.map(range).into_iter().map(|extent| extent.state).collect::<Vec<_>>();
    let silent = |pair: &Pair, range| states(pair, range).iter().all(|state| !state.is_data());
    let lacks = |pair: &Pair, range| states(pair, range).iter().all(|state| *state == State::Absent);
    assert!(!kind.is_child || lacks(&pair, pair.whole()));
    pair.write(block(1));
    assert!(states(&pair, block(1)).iter().all(|state| matches!(state, State::Data { .. })));
    // Never written.
    assert!(if kind.is_child { lacks(&pair, block(0)) } else { silent(&pair, block(0)) || kind.is_whole() });
    // What was given up is held no longer; what is to hide the parent is.
    pair.zero(block(1), Kept::Nothing);
    pair.zero(block(0), Kept::Nothing);
    for nth in [0, 1] {
        let marks = pair.image().details().unwrap().marks_zeros;
        assert!(silent(&pair, block(nth)) || kind.is_whole() || kind.is_child && !marks, "{nth}");
        assert!(!(kind.is_child && lacks(&pair, block(nth))), "{nth}");
    }
    pair.end();
}

pub(super) fn a_part_of_a_map_is_the_map_of_that_part(kind: &Kind) {
    let mut pair = Pair::new(kind);
    for (nth, range) in kind.places(kind.size()).into_iter().enumerate() {
        if nth % 3 == 1 { pair.zero(range, Kept::Nothing) } else { pair.write(range) }
    }
    let whole = pair.map(pair.whole());
    for range in kind.places(kind.size()) {
        let mut parts = Vec::new();
        let touching = whole.iter().filter(|extent| extent.range.overlaps(range));
        touching.for_each(|extent| map::push(&mut parts, extent.clip(range)));
        assert_eq!(pair.map(range), parts, "{range:x?}");
    }
    pair.end();
}

pub(super) fn what_a_disk_had_no_room_for_is_zero(kind: &Kind) {
    // What lies below is longer: it does not come to light.
    let (size, sector) = (kind.size(), kind.sector());
    let mut pair = Pair::over(kind, if kind.is_child { noise(9, 2 * size) } else { Vec::new() });
    pair.write(GuestOffset::new(size - 700).range(700));
    for bytes in [size + 2 * kind.block + sector, size / 2 / sector * sector, size, size - sector] {
        let (image, before) = (pair.image(), pair.witnesses());
        let held = image.size();
        if image.check_size(bytes).is_err() {
            image.resize(bytes, &pair.below).unwrap_err();
            assert_eq!((image.size(), pair.witnesses()), (held, before));
            continue;
        }
        pair.resize(bytes);
        pair.compare(pair.whole());
        pair.write(GuestOffset::new(bytes - 100).range(100));
    }
    pair.end();
}

pub(super) fn many_writers_of_the_same_blocks_lose_nothing(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let (image, sectors) = (pair.image(), kind.size() / 512);
    // Each has sectors of its own beside those of the others, first ones of their blocks and later ones.
    let own =
        |writer| (0..sectors / 4).step_by(index(sectors.div_ceil(512))).map(move |four| four * 4 + writer);
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let (image, below) = (&image, &pair.below);
            scope.spawn(move || {
                for nth in own(writer) {
                    let at = GuestOffset::new(nth * 512);
                    let bytes = noise(nth, 512);
                    image.write(at, &bytes, below).unwrap();
                    let mut seen = vec![9; 512];
                    image.read(at, &mut seen, below).unwrap();
                    assert!(seen == bytes, "sector {nth}");
                    if nth % 64 == 5 * writer {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    drop(image);
    for nth in (0..4).flat_map(own) {
        pair.shown(GuestOffset::new(nth * 512).range(512)).copy_from_slice(&noise(nth, 512));
    }
    pair.end();
}

pub(super) fn what_is_given_up_is_used_again(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let (image, half) = (pair.image(), kind.size() / 2 / kind.block * kind.block);
    let blocks = GuestOffset::new(0).range(2 * half);
    pair.write(blocks);
    image.flush().unwrap();
    let bytes = pair.bytes();
    for _ in 0..3 {
        pair.zero(blocks, Kept::Nothing);
        image.flush().unwrap();
        // Nothing of what was there before, or somewhere else, comes to light around it.
        pair.write(GuestOffset::new(half + 100).range(200));
        pair.compare(blocks);
        pair.write(blocks);
        image.flush().unwrap();
        assert!(pair.bytes() <= bytes, "{} bytes after {bytes}", pair.bytes());
    }
    drop(image);
    pair.end();
}

pub(super) fn a_record_stays_until_it_is_taken_out(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let stored = StoredRecord { bytes: noise(3, 200), is_untouched: true };
    let has_place = pair.image().set_record(Some(&stored.bytes)).unwrap();
    let expected = has_place.then_some(stored);
    for _ in 0..2 {
        assert_eq!(pair.image().record().unwrap(), expected);
        pair.write(GuestOffset::new(300).range(kind.block));
        pair.reopen(true);
    }
    assert_eq!(pair.image().record().unwrap(), expected);
    assert_eq!(pair.image().set_record(None).unwrap(), has_place);
    pair.reopen(true);
    assert_eq!(pair.image().record().unwrap(), None);
    pair.end();
}

pub(super) fn a_parent_may_be_shorter_or_longer(kind: &Kind) {
    let (size, sector) = (kind.size(), kind.sector());
    for bytes in [sector, kind.block + sector, size - 2 * sector, size, size + kind.block + sector] {
        let mut pair = Pair::over(kind, noise(98, bytes));
        pair.compare(pair.whole());
        // Across the parent's end, and its own.
        let end = bytes.min(size);
        pair.write(GuestOffset::new(end - 100).range(200).clip(pair.whole()));
        pair.zero(GuestOffset::new(end.saturating_sub(kind.block + 300)).range(200), Kept::Nothing);
        pair.write(GuestOffset::new(size - 1).range(1));
        pair.end();
    }
}

pub(super) fn what_a_child_does_not_hold_is_its_parents(kind: &Kind) {
    let mut pair = Pair::new(kind);
    pair.write(GuestOffset::new(kind.block + 700).range(100));
    pair.zero(GuestOffset::new(2 * kind.block).range(kind.block), Kept::Nothing);
    let own =
        [GuestOffset::new(kind.block + 700).range(100), GuestOffset::new(2 * kind.block).range(kind.block)];
    let before = own.map(|range| pair.shown(range).to_vec());
    pair.lie_on(noise(97, kind.size()));
    assert_eq!(own.map(|range| pair.shown(range).to_vec()), before);
    // What was not touched is the new parent's, byte by byte.
    let first = GuestOffset::new(0).range(kind.block);
    let new = pair.below.0[..index(kind.block)].to_vec();
    assert!(pair.shown(first) == new);
    pair.end();
}

pub(super) fn a_child_that_loses_its_parent_keeps_what_it_holds(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let below = pair.below.0.clone();
    pair.write(GuestOffset::new(kind.block + 700).range(100));
    pair.zero(GuestOffset::new(2 * kind.block).range(kind.block), Kept::Nothing);
    pair.lie_on(Vec::new());
    pair.image().set_parent(None).unwrap();
    assert_eq!(pair.image().parent(), None);
    pair.compare(pair.whole());
    pair.reopen(true);
    pair.compare(pair.whole());
    pair.write(GuestOffset::new(kind.block + 512).range(100));
    let again = named(kind.format, "other", kind.format);
    pair.image().set_parent(Some(&again)).unwrap();
    pair.lie_on(below);
    let first = GuestOffset::new(0).range(kind.block);
    let old = pair.below.0[..index(kind.block)].to_vec();
    assert!(pair.shown(first) == old, "what it never held is its parent's");
    pair.end();
}

pub(super) fn an_identity_changes_with_the_first_write_unless_it_is_kept(kind: &Kind) {
    let mut pair = Pair::new(kind);
    let place = GuestOffset::new(0).range(kind.block);
    pair.write(place);
    pair.reopen(true);
    let then = pair.image().identity();
    assert_eq!(then.is_some(), !matches!(kind.format, Format::Raw | Format::Qcow2));
    pair.image().keep_identity(true);
    for step in 0..2 {
        pair.write(place);
        assert_eq!(pair.image().identity(), then, "in step {step}");
        pair.image().flush().unwrap();
    }
    pair.reopen(true);
    assert_eq!(pair.image().identity(), then);
    pair.image().keep_identity(true);
    pair.write(place);
    pair.image().keep_identity(false);
    pair.write(place);
    // What a VHD is known by stays as long as it does.
    assert_eq!(pair.image().identity() != then, matches!(kind.format, Format::Vhdx | Format::Vmdk));
    pair.end();
}
