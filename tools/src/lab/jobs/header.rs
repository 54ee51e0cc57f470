//! Changes of a header in place: at every moment it names a parent and bears a record that belonged together.

use super::{Scene, world::check};
use crate::{foreign, history::Beside};
use deltachain::{
    base::{
        self, Error, GuestOffset, HostOffset,
        seed::Seeded,
        units::{count, index},
    },
    format::{self, Creation, Format, Identity, Image, Nothing, ParentName},
    io::{Access, File, Host, faulty::SimHost},
};
use std::{collections::BTreeSet, fmt, path::Path, sync::Arc};

/// The image.
const IMAGE: &str = "/image";
/// Changes of one run.
const CHANGES: usize = 6;
/// What belongs to the lines that link a VMDK.
const LINK: &str = "ddb.dchain.parentFormat";
/// Facts in a descriptor that other programs have filled.
const FACTS: u64 = 12;

/// What the header says beyond its fields, and what stands at the disk's start: a write to it changes the header, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    parent: Option<ParentName>,
    /// The record, if it can be believed.
    record: Option<Vec<u8>>,
    written: u8,
}

impl Said {
    /// A record that is about to be replaced may be disowned first.
    fn disowned_for(&self, next: &Self) -> Option<Self> {
        (self.record != next.record).then(|| Self { record: None, ..self.clone() })
    }
}

/// An image, and what is said next, one thing at a time.
struct Changing {
    format: Format,
    host: SimHost,
    said: Vec<Said>,
    /// Lines that are nobody's to lose.
    facts: BTreeSet<String>,
}

impl fmt::Debug for Changing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changing").field("said", &self.said).finish_non_exhaustive()
    }
}

/// Makes up the scene of a qcow2 image that belongs to `seed`.
pub(super) fn qcow2(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(Format::Qcow2, seed)
}

/// The same of a VHDX child.
pub(super) fn vhdx(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(Format::Vhdx, seed)
}

/// The same of a VHD child, whose record lies beside it.
pub(super) fn vpc(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(Format::Vpc, seed)
}

/// The same of a VMDK child of either kind, as it was made or as others leave one.
pub(super) fn vmdk(seed: u64) -> Result<Box<dyn Scene>, String> {
    scene(Format::Vmdk, seed)
}

fn scene(format: Format, seed: u64) -> Result<Box<dyn Scene>, String> {
    Changing::new(format, &mut Seeded::new(seed)).map(|made| Box::new(made) as _).map_err(|e| e.to_string())
}

impl Changing {
    fn new(format: Format, seed: &mut Seeded) -> base::Result<Self> {
        let host = SimHost::new();
        let mut one_of = |all: &[&'static str]| all.get(index(seed.below(count(all.len())))).copied();
        let option = match format {
            // The list of extensions ends in the first sector, or beyond it.
            Format::Qcow2 => Some("cluster_size").zip(one_of(&["2k", "4k", "64k"])),
            Format::Vmdk => Some("subformat").zip(one_of(&["monolithicSparse", "vmfsSparse"])),
            Format::Vhdx => Some(("block_size", "1M")),
            _ => None,
        };
        let parent = Some(parent(format, seed));
        let options = option.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let creation = Creation { size: 1 << 20, parent: parent.clone(), options };
        let image = format::create(format, host.create(Path::new(IMAGE))?, &creation, &Beside(&host))?;
        let mut first = Said { parent, record: has_record(format).then(|| record(seed)), written: 0 };
        if let Some(record) = &first.record {
            image.set_record(Some(record))?;
        }
        image.flush()?;
        drop(image);
        let file = host.open(Path::new(IMAGE), Access::Write)?;
        if format == Format::Qcow2 {
            // To replace what a stranger left is the hardest.
            foreign::distrust(&*file)?;
            first.record = None;
        }
        if option == Some(("subformat", "vmfsSparse")) && seed.chance(1, 2) {
            fill_descriptor(&*file)?;
        }
        let facts = facts(&*file)?;
        drop(file);
        let mut said = vec![first];
        for n in 0..CHANGES {
            let mut next = said.last().cloned().unwrap_or_default();
            match if n == 0 { 3 + seed.below(3) } else { seed.below(7) } {
                0..2 => next.parent = Some(parent_or(format, seed, next.parent)),
                2 => next.parent = None,
                kind if kind > 4 || !has_record(format) => next.written += 1,
                3 => next.record = None,
                _ => next.record = Some(record(seed)),
            }
            said.push(next);
        }
        Ok(Self { format, host: host.twin(), said, facts })
    }

    fn open(&self, host: &SimHost, access: Access) -> base::Result<Arc<dyn Image>> {
        let file = host.open(Path::new(IMAGE), access)?;
        format::open(self.format, file, access == Access::Write, &Beside(host))
    }

    fn found(&self, host: &SimHost) -> base::Result<Said> {
        let image = self.open(host, Access::Read)?;
        let record = image.record()?.filter(|record| record.is_untouched).map(|record| record.bytes);
        // One that is written in place has sums of its own, and its reader believes it only if they are right.
        let record = record.filter(|bytes| self.format != Format::Vmdk || is_whole(bytes));
        let mut written = [0];
        image.read(GuestOffset::new(0), &mut written, &Nothing)?;
        let [written] = written;
        Ok(Said { parent: image.parent().map(told), record, written })
    }

    /// Says what comes next; a disk is opened anew to be written, since it gets its other identity once an opening.
    fn say(&self, host: &SimHost, said: &Said) -> base::Result<()> {
        let now = self.found(host)?;
        let image = self.open(host, Access::Write)?;
        if now.parent != said.parent {
            // Durable by itself: nothing follows that would make it so.
            return image.set_parent(said.parent.as_ref());
        }
        if now.written != said.written {
            image.write(GuestOffset::new(0), &[said.written; 512], &Nothing)?;
            return image.flush();
        }
        if image.set_record(said.record.as_deref())? || !has_record(self.format) {
            return image.flush_with_time();
        }
        Err(Error::invalid("has no room for a record").path(Path::new(IMAGE)))
    }
}

/// Whether the format has a place for a record.
fn has_record(format: Format) -> bool {
    format != Format::Vpc
}

fn parent(format: Format, seed: &mut Seeded) -> ParentName {
    let name = (0..=seed.below(300)).map(|_| b'a' + u8::try_from(seed.below(26)).unwrap_or_default());
    let name = name.collect();
    let is_own = !seed.chance(1, 2);
    let identity = match format {
        Format::Vhdx | Format::Vpc => Some(Identity::Guid([7; 16])),
        Format::Vmdk => Some(Identity::Cid(0x0abc_def0)),
        _ => None,
    };
    let stated = if is_own { format } else { Format::Raw };
    let named = ParentName::new(name, Some(stated.name().to_owned()));
    ParentName { identity: identity.filter(|_| is_own), ..named }
}

/// Another parent, or the same one of another format.
fn parent_or(format: Format, seed: &mut Seeded, now: Option<ParentName>) -> ParentName {
    let next = parent(format, seed);
    match now.filter(|_| seed.chance(1, 3)) {
        Some(now) => ParentName { name: now.name, ..next },
        None => next,
    }
}

/// What is said of a parent, without the names that it has besides.
fn told(parent: ParentName) -> ParentName {
    ParentName { others: Vec::new(), ..parent }
}

/// Begins with its length; all else is one byte.
fn record(seed: &mut Seeded) -> Vec<u8> {
    let filler = u8::try_from(seed.below(256)).unwrap_or_default();
    let bytes = 40 + u8::try_from(seed.below(3)).unwrap_or_default() * 60;
    let mut record = vec![filler; usize::from(bytes)];
    record.iter_mut().take(1).for_each(|first| *first = bytes);
    record
}

fn is_whole(record: &[u8]) -> bool {
    let Some((bytes, filler)) = record.split_first() else { return false };
    usize::from(*bytes) == record.len() && filler.windows(2).all(|pair| matches!(pair, [a, b] if a == b))
}

/// Makes a descriptor that is a file of its own as other programs leave one: facts where what links the disk stands, and no
/// room.
fn fill_descriptor(file: &dyn File) -> base::Result<()> {
    let text = text(file)?;
    let lines = text.lines().filter(|line| !line.starts_with("#  ")).map(str::to_owned);
    let (head, rest): (Vec<String>, Vec<String>) =
        lines.partition(|line| !line.starts_with("ddb.") || line.starts_with(LINK));
    let facts = (0..FACTS).map(|n| format!("ddb.fact{n:02} = \"{n}\""));
    // The record stays the last line.
    let whole: Vec<String> = head.into_iter().chain(facts).chain(rest).collect();
    file.set_bytes(0)?;
    file.write_at(HostOffset::new(0), format!("{}\n", whole.join("\n")).as_bytes())?;
    file.flush()
}

/// The text of a descriptor, which starts a file or its second sector.
fn text(file: &dyn File) -> base::Result<String> {
    let mut bytes = vec![0; index(file.bytes()?.min(8192))];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the facts of the disk database in a descriptor that are not the project's own.
fn facts(file: &dyn File) -> base::Result<BTreeSet<String>> {
    let text = text(file)?;
    let facts =
        text.split(['\n', '\0']).filter(|line| line.starts_with("ddb.") && !line.starts_with("ddb.dchain."));
    Ok(facts.map(str::to_owned).collect())
}

impl Scene for Changing {
    fn start(&self) -> &SimHost {
        &self.host
    }

    fn perform(&self, host: &SimHost) -> base::Result<()> {
        self.said.iter().skip(1).try_for_each(|said| self.say(host, said))
    }

    fn judge(&self, host: &SimHost, is_done: bool) -> Result<(), String> {
        let found = self.found(host).map_err(|e| e.to_string())?;
        let mut disowned =
            self.said.iter().zip(self.said.iter().skip(1)).filter_map(|(one, next)| one.disowned_for(next));
        let is_right = match self.said.last().filter(|_| is_done) {
            Some(last) => *last == found,
            None => self.said.contains(&found) || disowned.any(|said| said == found),
        };
        if !is_right {
            return Err(format!("its header says {found:?}"));
        }
        let now = host.open(Path::new(IMAGE), Access::Read).and_then(|file| facts(&*file));
        let now = now.map_err(|e| e.to_string())?;
        match self.facts.difference(&now).next() {
            None => Ok(()),
            Some(fact) => Err(format!("its descriptor has lost '{fact}'")),
        }
    }

    fn finish(&self, host: &SimHost) -> Result<(), String> {
        let again = || {
            let found = self.found(host)?;
            let is_there = |nth: &usize| {
                let (one, next) = (self.said.get(*nth), self.said.get(nth + 1));
                let disowned = one.zip(next).and_then(|(one, next)| one.disowned_for(next));
                [one, disowned.as_ref()].contains(&Some(&found))
            };
            let done = (0..self.said.len()).rfind(is_there).unwrap_or_default();
            self.said.iter().skip(done).try_for_each(|said| self.say(host, said))
        };
        again().map_err(|e| format!("saying it again failed: {e}"))?;
        self.judge(host, true)?;
        check(host, Path::new(IMAGE))
    }
}
