//! Changes of a header in place: at every moment it names a parent and bears a record that belonged together.

use super::{Scene, world::check};
use crate::foreign;
use deltachain::{
    base::{self, Error, seed::Seeded, units::index},
    format::{self, Creation, Format, Image, NoParts, ParentName},
    io::{Access, Host, faulty::SimHost},
};
use std::{fmt, path::Path, sync::Arc};

/// The image.
const IMAGE: &str = "/image";
/// Changes of one run.
const CHANGES: usize = 6;

/// What the header says beyond its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    parent: Option<ParentName>,
    /// The record, if it can be believed.
    record: Option<Vec<u8>>,
}

/// An image whose record a stranger's write has made worthless, and what is said next, one thing at a time.
struct Changing {
    host: SimHost,
    said: Vec<Said>,
}

impl fmt::Debug for Changing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changing").field("said", &self.said).finish_non_exhaustive()
    }
}

/// Makes up the scene that belongs to `seed`.
pub(super) fn scene(seed: u64) -> Result<Box<dyn Scene>, String> {
    Changing::new(&mut Seeded::new(seed)).map(|made| Box::new(made) as _).map_err(|e| e.to_string())
}

impl Changing {
    fn new(seed: &mut Seeded) -> base::Result<Self> {
        let host = SimHost::new();
        // The list of extensions ends in the first sector, or beyond it.
        let cluster = ["2k", "4k", "64k"].get(index(seed.below(3))).copied().unwrap_or_default();
        let parent = Some(parent(seed));
        let options = vec![("cluster_size".to_owned(), cluster.to_owned())];
        let creation = Creation { size: 1 << 20, parent: parent.clone(), options };
        let image = format::create(Format::Qcow2, host.create(Path::new(IMAGE))?, &creation, &NoParts)?;
        image.set_record(Some(&record(seed)))?;
        image.flush()?;
        drop(image);
        foreign::distrust(&*host.open(Path::new(IMAGE), Access::Write)?)?;
        let mut said = vec![Said { parent, record: None }];
        for n in 0..CHANGES {
            let mut next = said.last().cloned().unwrap_or_default();
            // To replace what a stranger left is the hardest.
            match if n == 0 { 3 + seed.below(3) } else { seed.below(5) } {
                0..2 => next.parent = Some(parent_or(seed, next.parent)),
                2 => next.parent = None,
                3 => next.record = None,
                _ => next.record = Some(record(seed)),
            }
            said.push(next);
        }
        Ok(Self { host: host.twin(), said })
    }

    fn say(image: &dyn Image, said: &Said) -> base::Result<()> {
        if image.parent() != said.parent {
            // Durable by itself: nothing follows that would make it so.
            return image.set_parent(said.parent.as_ref());
        }
        if image.set_record(said.record.as_deref())? {
            return image.flush_with_time();
        }
        Err(Error::invalid("has no room for a record").path(Path::new(IMAGE)))
    }
}

fn open(host: &SimHost, access: Access) -> base::Result<Arc<dyn Image>> {
    let is_writable = access == Access::Write;
    format::open(Format::Qcow2, host.open(Path::new(IMAGE), access)?, is_writable, &NoParts)
}

fn parent(seed: &mut Seeded) -> ParentName {
    let name = (0..=seed.below(300)).map(|_| b'a' + u8::try_from(seed.below(26)).unwrap_or_default());
    let name = name.collect();
    let format = if seed.chance(1, 2) { "raw" } else { "qcow2" };
    ParentName::new(name, Some(format.to_owned()))
}

/// Another parent, or the same one of another format.
fn parent_or(seed: &mut Seeded, now: Option<ParentName>) -> ParentName {
    let next = parent(seed);
    match now.filter(|_| seed.chance(1, 3)) {
        Some(now) => ParentName { format: next.format, ..now },
        None => next,
    }
}

fn record(seed: &mut Seeded) -> Vec<u8> {
    let filler = u8::try_from(seed.below(256)).unwrap_or_default();
    vec![filler; index(40 + seed.below(3) * 60)]
}

impl Scene for Changing {
    fn start(&self) -> &SimHost {
        &self.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        let image = open(host, Access::Write)?;
        self.said.iter().skip(1).try_for_each(|said| Self::say(&*image, said))
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        let image = open(host, Access::Read).map_err(|e| e.to_string())?;
        let record = image.record().map_err(|e| e.to_string())?;
        let record = record.filter(|record| record.is_untouched).map(|record| record.bytes);
        let found = Said { parent: image.parent(), record };
        // A record that is about to be replaced may be disowned first.
        let is_that = |said: &Said| {
            said.parent == found.parent && (found.record.is_none() || said.record == found.record)
        };
        let is_right = match self.said.last().filter(|_| is_done) {
            Some(last) => *last == found,
            None => self.said.iter().any(is_that),
        };
        if is_right { Ok(()) } else { Err(format!("its header says {found:?}")) }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        let last = self.said.last().cloned().unwrap_or_default();
        let again = || {
            let image = open(host, Access::Write)?;
            // What is believed belongs to the parent that it was said with.
            image.set_record(None)?;
            image.flush_with_time()?;
            image.set_parent(last.parent.as_ref())?;
            Self::say(&*image, &last)
        };
        again().map_err(|e| format!("saying it again failed: {e}"))?;
        self.judge(host, true)?;
        check(host, Path::new(IMAGE))
    }
}
