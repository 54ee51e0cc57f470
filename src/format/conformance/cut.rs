//! What was flushed is there after a power cut; `dchain-lab crash` searches the same for longer, along longer histories.

use super::{Kind, noise};
use crate::{
    base::{Budget, GuestOffset, Result, units::index},
    format::{self, Below, Format, Parts, Repair, conformance::Bytes},
    io::{
        Access, File, Host, Kept,
        faulty::{SimHost, crash_states},
    },
};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

const IMAGE: &str = "/image";

/// Opens, or makes, an image's further files.
pub(crate) struct OnHost<'a>(pub(crate) &'a SimHost);

impl Parts for OnHost<'_> {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let path = Path::new("/").join(OsStr::from_bytes(name));
        match self.0.kind(&path)? {
            None => self.0.create(&path),
            Some(_) => self.0.open(&path, Access::Write),
        }
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

pub(super) fn what_was_flushed_outlives_a_power_cut(kind: &Kind) {
    let (host, size) = (SimHost::new(), kind.size());
    let file = host.create(Path::new(IMAGE)).unwrap();
    let image = format::create(kind.format, file, &kind.creation(size), &OnHost(&host)).unwrap();
    image.flush().unwrap();
    host.sync_folder(Path::new("/")).unwrap();
    let below = Bytes(if kind.is_child { noise(99, size) } else { Vec::new() });
    let mut disk = vec![0; index(size)];
    below.read(GuestOffset::new(0), &mut disk).unwrap();
    // What was sure after how many events.
    let mut sure = vec![(host.events(), disk.clone())];
    let places = kind.places(size);
    for (nth, range) in (1..).zip(&places) {
        let part = index(range.start.bytes())..index(range.end().bytes());
        if nth % 3 == 0 {
            image.zero(*range, Kept::Nothing, &below).unwrap();
            disk[part].fill(0);
        } else {
            disk[part.clone()].copy_from_slice(&noise(nth, range.bytes));
            image.write(range.start, &disk[part], &below).unwrap();
        }
        image.flush().unwrap();
        sure.push((host.events(), disk.clone()));
    }
    // Behind each flush, and at some places in between.
    let (start, stride) = (sure[0].0, (host.events() - sure[0].0) / 32 + 1);
    let is_tried = |after| after % stride == 0 || sure.iter().any(|(events, _)| *events == after);
    let mut cuts = 0;
    for crash in
        crash_states(&host.trace(), 1, 1).filter(|crash| crash.after >= start && is_tried(crash.after))
    {
        let what = format!("cut behind event {}, {:?}", crash.after, crash.landing);
        let last = sure.iter().rposition(|(events, _)| *events <= crash.after).unwrap();
        let (old, new) = (&sure[last].1, &sure[(last + 1).min(sure.len() - 1)].1);
        let file = crash.host.open(Path::new(IMAGE), Access::Write).unwrap();
        let open =
            |is_writable| format::open(kind.format, file.clone(), is_writable, &OnHost(&crash.host)).unwrap();
        // Who only reads sees the same as who puts right what the cut left.
        for is_writable in [false, true] {
            let left = open(is_writable);
            for range in &places {
                let part = index(range.start.bytes())..index(range.end().bytes());
                let (old, new) = (&old[part.clone()], &new[part]);
                let mut found = vec![9; old.len()];
                left.read(range.start, &mut found, &below).unwrap();
                // A step that was under way is there in part.
                let mut bytes = found.iter().zip(old.iter().zip(new));
                let is_right = found == old || bytes.all(|(byte, (old, new))| byte == old || byte == new);
                assert!(is_right, "{what}: {range:x?}");
            }
        }
        if kind.format != Format::Raw {
            let found = format::check(kind.format, file, Repair::Nothing, &OnHost(&crash.host)).unwrap();
            assert_eq!((found.corruptions, found.errors), (0, 0), "{what}: {:?}", found.findings);
        }
        cuts += 1;
    }
    assert!(cuts > 2 * places.len(), "{cuts}");
}
