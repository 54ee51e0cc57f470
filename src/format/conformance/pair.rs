//! An image, and the disk that it should be.

use super::Kind;
use crate::{
    base::{
        Budget, GuestOffset, GuestRange, HostOffset, Result,
        seed::Seeded,
        units::{SECTOR_BYTES, count, index},
    },
    format::{self, Below, Creation, Format, Identity, Image, ParentName, Parts, Repair, qcow2},
    io::{File, Kept, Witness, memory::MemoryFile},
    map::{Extent, State},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// Bytes that lie below an image.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    /// Returns those of `range` that are there.
    fn part(&self, range: GuestRange) -> &[u8] {
        let end = index(range.end().bytes()).min(self.0.len());
        self.0.get(index(range.start.bytes())..end).unwrap_or_default()
    }
}

impl Below for Bytes {
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let from = self.part(at.range(count(buf.len())));
        buf[from.len()..].fill(0);
        buf[..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn is_zero(&self, range: GuestRange) -> Result<bool> {
        Ok(self.part(range).iter().all(|byte| *byte == 0))
    }
}

/// Further files in memory, made when they are asked for.
#[derive(Default)]
pub(crate) struct Beside(pub(crate) Mutex<BTreeMap<Vec<u8>, Arc<MemoryFile>>>);

impl Parts for Beside {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let mut files = self.0.lock();
        Ok(files.entry(name.to_vec()).or_insert_with(|| Arc::new(MemoryFile::new(&shown))).clone())
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

/// Returns bytes that belong to `seed`.
pub(crate) fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut buf = vec![0; index(bytes)];
    Seeded::new(seed).fill(&mut buf);
    buf
}

/// Names a parent as a child of that format does.
pub(crate) fn named(child: Format, parent: &str, format: Format) -> ParentName {
    let identity = match child {
        Format::Vhdx | Format::Vpc => Some(Identity::Guid([7; 16])),
        Format::Vmdk if format == Format::Vmdk => Some(Identity::Cid(0x0abc_def0)),
        _ => None,
    };
    ParentName { identity, ..ParentName::new(parent.into(), Some(format.name().to_owned())) }
}

/// What a header says of a parent, without the names that it has besides.
pub(crate) fn told(parent: Option<ParentName>) -> Option<ParentName> {
    parent.map(|parent| ParentName { others: Vec::new(), ..parent })
}

/// Returns what a file holds, in another one.
pub(crate) fn copied(file: &MemoryFile) -> Arc<MemoryFile> {
    let new = MemoryFile::new(file.path());
    let (mut at, end) = (HostOffset::new(0), file.bytes().unwrap());
    while at.bytes() < end {
        let run = file.run_at(at).unwrap();
        let range = at.range(run.range.end().since(at).min(end - at.bytes()));
        if run.is_data {
            let mut bytes = vec![0; index(range.bytes)];
            file.read_at(at, &mut bytes).unwrap();
            new.write_at(at, &bytes).unwrap();
        }
        at = range.end();
    }
    new.set_bytes(end).unwrap();
    Arc::new(new)
}

/// An image, the disk that it should be, and what lies below.
pub(crate) struct Pair {
    pub(crate) file: Arc<MemoryFile>,
    parts: Beside,
    format: Format,
    image: Option<Arc<dyn Image>>,
    pub(crate) disk: Vec<u8>,
    pub(crate) below: Bytes,
    writes: u64,
}

impl Pair {
    /// Makes a disk of that kind; a child's parent is shorter, and has zeros in its middle.
    pub(super) fn new(kind: &Kind) -> Self {
        let mut below = if kind.is_child { noise(99, kind.size() * 3 / 4) } else { Vec::new() };
        let third = below.len() / 3;
        below[third..2 * third].fill(0);
        Self::over(kind, below)
    }

    /// Makes a disk of that kind over those bytes.
    pub(super) fn over(kind: &Kind, below: Vec<u8>) -> Self {
        Self::made(kind.format, &kind.creation(kind.size()), below)
    }

    /// Makes a disk over those bytes.
    pub(crate) fn made(format: Format, creation: &Creation, below: Vec<u8>) -> Self {
        let file = Arc::new(MemoryFile::new(format!("image.{}", format.suffixes()[0])));
        let parts = Beside::default();
        let image = format::create(format, file.clone(), creation, &parts).unwrap();
        let mut disk = below.clone();
        disk.resize(index(creation.size), 0);
        Self { file, parts, format, image: Some(image), disk, below: Bytes(below), writes: 0 }
    }

    /// Returns the image, which is open.
    pub(crate) fn image(&self) -> Arc<dyn Image> {
        self.image.clone().unwrap()
    }

    /// Returns the whole disk.
    pub(crate) fn whole(&self) -> GuestRange {
        GuestOffset::new(0).range(count(self.disk.len()))
    }

    /// Returns what the disk should show there.
    pub(super) fn shown(&mut self, range: GuestRange) -> &mut [u8] {
        &mut self.disk[index(range.start.bytes())..index(range.end().bytes())]
    }

    fn noise(&mut self, bytes: u64) -> Vec<u8> {
        self.writes += 1;
        noise(self.writes, bytes)
    }

    pub(crate) fn write(&mut self, range: GuestRange) {
        let bytes = self.noise(range.bytes);
        self.image().write(range.start, &bytes, &self.below).unwrap();
        self.shown(range).copy_from_slice(&bytes);
    }

    /// Writes from a file, of which the last `missing` bytes are not there.
    pub(super) fn write_from(&mut self, range: GuestRange, missing: u64) {
        let bytes = self.noise(range.bytes.saturating_sub(missing));
        let source = MemoryFile::new("source");
        source.write_at(HostOffset::new(77), &bytes).unwrap();
        let moved = self.image().write_from(range, &source, HostOffset::new(77), &self.below).unwrap();
        assert_eq!(moved.copied_bytes + moved.shared_bytes, range.bytes);
        self.shown(range).fill(0);
        self.shown(range)[..bytes.len()].copy_from_slice(&bytes);
    }

    pub(super) fn zero(&mut self, range: GuestRange, kept: Kept) {
        self.image().zero(range, kept, &self.below).unwrap();
        self.shown(range).fill(0);
    }

    /// Another file has whole clusters of `range` backwards. One of them is left out, and after half of them space is given
    /// back or all is flushed.
    pub(super) fn adopt(&mut self, range: GuestRange, is_released: bool) {
        let image = self.image();
        let Some(cluster) = image.details().unwrap().cluster_bytes else { return };
        let bytes = self.noise(range.inner(cluster).bytes);
        let source = MemoryFile::new("source");
        source.write_at(HostOffset::new(512), &bytes).unwrap();
        let from = HostOffset::new(512).range(count(bytes.len()));
        let Some(adopted) = image.adopt(&source, from).unwrap() else { return };
        assert!(adopted.place.bytes <= from.bytes && adopted.moved.copied_bytes == adopted.place.bytes);
        let ends: Vec<u64> = (1..=adopted.place.bytes / cluster).map(|nth| nth * cluster).collect();
        let mut is_there = true;
        for (nth, (guest, end)) in range.inner(cluster).pieces(cluster).zip(ends.iter().rev()).enumerate() {
            let place = adopted.place.start.plus(end - cluster);
            if nth == 1 {
                continue;
            }
            if nth == 3 && is_released {
                image.release().unwrap();
                is_there = false;
            } else if nth == 3 {
                image.flush().unwrap();
            }
            assert_eq!(image.point(guest, place).unwrap(), is_there);
            assert!(!image.point(guest, place).unwrap(), "one place for two");
            if is_there {
                self.shown(guest).copy_from_slice(&bytes[index(end - cluster)..index(*end)]);
            }
        }
    }

    /// Writes the cluster around the start of `range` compressed, if there is such a thing.
    pub(super) fn pack(&mut self, range: GuestRange) {
        let image = self.image();
        let Some(cluster) = image.details().unwrap().cluster_bytes else { return };
        let range = range.start.floor(cluster).range(cluster).clip(self.whole());
        let mut bytes = vec![7; index(range.bytes)];
        let third = self.noise(range.bytes / 3);
        bytes[..third.len()].copy_from_slice(&third);
        if let Some(packed) = image.pack(&bytes).filter(|_| !range.is_empty()) {
            image.write_packed(range.start, &packed).unwrap();
            self.shown(range).copy_from_slice(&bytes);
        }
    }

    pub(super) fn resize(&mut self, bytes: u64) {
        self.image().resize(bytes, &self.below).unwrap();
        self.disk.resize(index(bytes), 0);
    }

    /// Has the image lie on something else: what it does not hold changes.
    pub(super) fn lie_on(&mut self, below: Vec<u8>) {
        self.below = Bytes(below);
        for extent in self.map(self.whole()).into_iter().filter(|extent| extent.state == State::Absent) {
            let mut bytes = vec![0; index(extent.range.bytes)];
            self.below.read(extent.range.start, &mut bytes).unwrap();
            self.shown(extent.range).copy_from_slice(&bytes);
        }
    }

    /// Closes the image, and opens it again.
    pub(crate) fn reopen(&mut self, is_writable: bool) {
        let (size, parent) = (self.image().size(), self.image().parent());
        self.image().flush().unwrap();
        self.image = None;
        self.open(is_writable);
        assert_eq!((self.image().size(), self.image().parent()), (size, parent));
        assert_eq!(size, count(self.disk.len()));
    }

    fn open(&mut self, is_writable: bool) {
        let opened = format::open(self.format, self.file.clone(), is_writable, &self.parts);
        self.image = Some(opened.unwrap());
    }

    /// Goes on with what a power cut leaves that loses nothing; who only reads it sees the same.
    pub(super) fn cut(&mut self) {
        self.image().flush().unwrap();
        let left: Vec<_> =
            self.parts.0.lock().iter().map(|(name, file)| (name.clone(), copied(file))).collect();
        let file = copied(&self.file);
        self.image = None;
        (self.file, self.parts) = (file, Beside(Mutex::new(left.into_iter().collect())));
        let before = self.witnesses();
        self.open(false);
        self.compare(self.whole());
        self.image = None;
        assert_eq!(self.witnesses(), before, "who only reads has changed the image");
        self.open(true);
    }

    /// Returns what changes with every change of one of the image's files.
    pub(super) fn witnesses(&self) -> Vec<Witness> {
        let parts = self.parts.0.lock();
        [&self.file].into_iter().chain(parts.values()).map(|file| file.witness().unwrap()).collect()
    }

    /// Returns how long the image's files are, all together.
    pub(super) fn bytes(&self) -> u64 {
        self.witnesses().iter().map(|witness| witness.bytes).sum()
    }

    pub(crate) fn compare(&self, range: GuestRange) {
        let mut found = vec![9; index(range.bytes)];
        self.image().read(range.start, &mut found, &self.below).unwrap();
        let expected = &self.disk[index(range.start.bytes())..index(range.end().bytes())];
        if found != expected {
            let wrong = found.iter().zip(expected).position(|(a, b)| a != b).unwrap();
            panic!("byte {:#x}, read in {range:x?}", range.start.bytes() + count(wrong));
        }
    }

    /// Returns what the image says about `range`, which its extents cover in order.
    pub(super) fn map(&self, range: GuestRange) -> Vec<Extent> {
        let mut extents = Vec::new();
        self.image().map(range, &mut extents).unwrap();
        let mut at = range.start;
        for extent in &extents {
            assert!(extent.range.start == at && !extent.range.is_empty(), "{extents:x?}");
            at = extent.range.end();
        }
        assert_eq!(at, range.end());
        extents
    }

    /// The map says of each byte what is read there.
    pub(crate) fn compare_map(&self) {
        for extent in self.map(self.whole()) {
            let range = extent.range;
            let mut found = vec![0; index(range.bytes)];
            match extent.state {
                State::Absent => self.below.read(range.start, &mut found).unwrap(),
                State::Data { host } => self.image().data_file().read_at(host, &mut found).unwrap(),
                State::Zero { .. } => {}
                State::Packed => continue,
            }
            let expected = &self.disk[index(range.start.bytes())..index(range.end().bytes())];
            assert!(found == expected, "the map is wrong: {extent:x?}");
        }
    }

    /// The image shows what it should, now and when it is opened again, and is sound.
    pub(crate) fn end(mut self) {
        for is_writable in [true, false] {
            self.compare(self.whole());
            self.compare_map();
            self.reopen(is_writable);
        }
        self.compare(self.whole());
        self.compare_map();
        self.image = None;
        self.check(false);
        self.open(true);
        self.image().release().unwrap();
        self.compare(self.whole());
        self.image = None;
        self.check(true);
    }

    /// A check finds nothing; free space at the file's end is no leak before it is released.
    fn check(&self, is_released: bool) {
        if self.format != Format::Raw {
            let checked =
                format::check(self.format, self.file.clone(), Repair::Nothing, &self.parts).unwrap();
            assert_eq!((checked.corruptions, checked.errors), (0, 0), "{:?}", checked.findings);
            assert!(checked.leaks == 0 || !is_released, "{:?}", checked.findings);
        }
        match self.format {
            // Refcounts, told by other code than that of the check.
            Format::Qcow2 => {
                let found = qcow2::audit::audit(&*self.file).unwrap();
                assert_eq!((found.leaks, found.corruptions), (0, Vec::new()));
            }
            Format::Vpc => assert_eq!(self.file.bytes().unwrap() % SECTOR_BYTES, 0),
            _ => {}
        }
    }
}
