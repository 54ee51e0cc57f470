use super::*;
use crate::{
    base::GuestOffset,
    format::{BitmapEdit, Bits, Creation, Image, NoParts, Nothing, Repair, qcow2},
    io::{
        Access, Host,
        faulty::{SimHost, crash_states},
    },
};
use std::{path::Path, sync::Arc};

const DISK: u64 = 8 << 20;

fn bits(first: u8) -> Bits {
    let mut bits = Bits::new(DISK, 512);
    bits.bytes_mut().iter_mut().step_by(97).for_each(|byte| *byte = first);
    bits
}

fn edits() -> Vec<BitmapEdit> {
    let name = |name: &str| name.to_owned();
    vec![
        BitmapEdit::Add { name: name("a"), granularity_bytes: Some(512) },
        BitmapEdit::Union { name: name("a"), bits: bits(1) },
        BitmapEdit::Add { name: name("b"), granularity_bytes: None },
        BitmapEdit::Union { name: name("b"), bits: bits(128) },
        BitmapEdit::Record { name: name("a"), is_auto: false },
        BitmapEdit::Clear { name: name("b") },
        BitmapEdit::Remove { name: name("a") },
        BitmapEdit::Remove { name: name("b") },
    ]
}

/// What a reader sees of all bitmaps.
fn seen(image: &dyn Image) -> Vec<(Bitmap, Bits)> {
    let list = image.details().unwrap().bitmaps;
    list.into_iter().map(|bitmap| (bitmap.clone(), image.bitmap(&bitmap.name).unwrap())).collect()
}

#[test]
fn a_cut_leaves_the_old_bitmaps_or_the_new_ones() {
    let (host, path) = (SimHost::new(), Path::new("/image"));
    let options = vec![("cluster_size".to_owned(), "512".to_owned())];
    let creation = Creation { size: DISK, parent: None, options };
    let image = qcow2::create(host.create(path).unwrap(), &creation, &NoParts).unwrap();
    image.flush().unwrap();
    host.sync_folder(Path::new("/")).unwrap();
    // How many events had happened when each state was reached.
    let mut states = vec![(host.events(), seen(&*image))];
    for edit in edits() {
        image.edit_bitmap(&edit).unwrap();
        states.push((host.events(), seen(&*image)));
    }
    assert!(states.last().unwrap().1.is_empty());
    let mut crashes = 0;
    for crash in crash_states(&host.trace(), 5, 2).filter(|crash| crash.after >= states[0].0) {
        let file = crash.host.open(path, Access::Write).unwrap();
        let found = qcow2::check(Arc::clone(&file), Repair::Nothing, &NoParts).unwrap();
        assert_eq!((found.corruptions, found.errors), (0, 0), "{:?}", found.findings);
        let now = seen(&*qcow2::open(file, false, &NoParts).unwrap());
        let sure = states.iter().rposition(|(events, _)| *events <= crash.after).unwrap();
        let allowed = states.iter().skip(sure).take(2);
        assert!(allowed.into_iter().any(|(_, state)| *state == now), "cut behind event {}", crash.after);
        crashes += 1;
    }
    assert!(crashes > 100, "{crashes}");
}

#[test]
fn a_write_after_an_edit_marks_the_new_bitmap_as_stale() {
    let file = Arc::new(crate::io::memory::MemoryFile::new("image"));
    let creation = Creation { size: DISK, parent: None, options: Vec::new() };
    let image = qcow2::create(file, &creation, &NoParts).unwrap();
    image.write(GuestOffset::new(0), &[1; 512], &Nothing).unwrap();
    image.edit_bitmap(&edits()[0]).unwrap();
    assert!(!image.details().unwrap().bitmaps[0].is_in_use);
    image.write(GuestOffset::new(0), &[2; 512], &Nothing).unwrap();
    assert!(image.details().unwrap().bitmaps[0].is_in_use);
    assert!(image.bitmap("a").is_err(), "its bits are not to be trusted");
    image.edit_bitmap(&BitmapEdit::Remove { name: "a".to_owned() }).unwrap();
}
