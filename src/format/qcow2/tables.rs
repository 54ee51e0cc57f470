//! The mapping tables of an open image: L1 in memory, L2 in pages.
//!
//! What is read here is checked where it is read: a table or a cluster that starts past the end of its file
//! is an error that names the guest byte and the host offset, never a read of zeros.

use super::{
    entry::{self, Cluster, Entry, Shape, Unit, wrong},
    header::Table,
    pages::{Kind, Pages, Sector},
};
use crate::{
    base::{
        Budget, Error, Guard, GuestOffset, GuestRange, HostOffset, HostRange, Result,
        budget::{Held, Part},
        units::SECTOR_BYTES,
        units::count,
        units::index,
    },
    format::target::Target,
    io::File,
    map::{self, Extent},
};
use byteorder::{BigEndian, ByteOrder};
use std::collections::{BTreeSet, HashSet};

/// Piece in which a table of words is read.
const PIECE_BYTES: u64 = 1 << 20;

/// The entries of an L1 table: in memory, or, of an image that is only read, in its file.
#[derive(Debug)]
pub(super) struct FirstLevel {
    /// The entries in memory.
    pub(super) words: Vec<u64>,
    /// How many there are in the file, if they are read there one by one.
    in_file: u64,
    _held: Option<Held>,
}

impl FirstLevel {
    /// Takes in the table at `table`, which must lie in the file; with a budget, only if there is room in it.
    pub(super) fn open(file: &dyn File, table: Table, budget: Option<&Budget>) -> Result<Self> {
        check_words(file, "L1 table", table.at, table.entries)?;
        if budget.is_some_and(|budget| !budget.has_room(Part::FirstLevels, table.entries * 8)) {
            return Ok(Self { words: Vec::new(), in_file: table.entries, _held: None });
        }
        let count = |budget: &Budget| budget.hold(Part::FirstLevels, table.entries * 8);
        Ok(Self { words: words(file, table.range(8))?, in_file: 0, _held: budget.map(count) })
    }

    /// Returns entry number `nth` of the table at `at`; zero past its end.
    fn get(&self, file: &dyn File, at: HostOffset, nth: u64) -> Result<u64> {
        if nth >= self.in_file {
            return Ok(self.words.get(index(nth)).copied().unwrap_or(0));
        }
        let mut word = [0; 8];
        file.read_at(at.plus(nth * 8), &mut word)?;
        Ok(u64::from_be_bytes(word))
    }
}

/// L1, and the pages of the L2 tables.
#[derive(Debug)]
pub(super) struct Tables {
    /// The tables' shape.
    pub(super) shape: Shape,
    /// The image file.
    pub(super) image: Target,
    /// The external data file, if there is one.
    pub(super) data: Option<Target>,
    /// L1 entries as stored.
    pub(super) l1: FirstLevel,
    /// Where the L1 table is.
    pub(super) l1_at: HostOffset,
    /// Sectors of the L1 table that the file does not have yet.
    pub(super) l1_changed: BTreeSet<u64>,
    /// L2 tables that no L1 entry in the file points to yet: they may be written in any order.
    pub(super) unreached: HashSet<HostOffset>,
    /// Pages of L2 tables and refcount blocks.
    pub(super) pages: Pages,
}

impl Tables {
    /// Returns the file that holds guest data.
    pub(super) fn data(&self) -> &Target {
        self.data.as_ref().unwrap_or(&self.image)
    }

    /// Returns the guest bytes that one page of an L2 table describes.
    pub(super) fn page_span(&self) -> u64 {
        self.pages.page() / self.shape.entry() * self.shape.cluster()
    }

    /// Returns the L2 table that describes `guest`, and whether it may be written in place.
    pub(super) fn table(&self, guest: GuestOffset) -> Result<Option<(HostOffset, bool)>> {
        let nth = guest.bytes() / self.shape.table_span();
        let word = self.l1.get(&*self.image.file, self.l1_at, nth)?;
        if word == 0 {
            return Ok(None);
        }
        let found = entry::table(self.shape, word, nth)?;
        if let Some((at, _)) = found
            && let Some(end) = self.image.ends_before(at)?
        {
            let why = format!("L1 entry {nth} for guest byte 0x{guest:x} points past the file's end");
            return Err(Error::corrupt(format!("{why} (0x{at:x} of 0x{end:x})")));
        }
        Ok(found)
    }

    /// Returns where the L2 entry for `guest` is; `None` without a table.
    pub(super) fn entry_at(&self, guest: GuestOffset) -> Result<Option<HostOffset>> {
        let nth = guest.bytes() % self.shape.table_span() / self.shape.cluster();
        Ok(self.table(guest)?.map(|(at, _)| at.plus(nth * self.shape.entry())))
    }

    /// Returns whether the entry for `guest` can be read without the file.
    pub(super) fn is_loaded(&self, guest: GuestOffset) -> Result<bool> {
        Ok(self.entry_at(guest)?.is_none_or(|at| self.pages.has(at)))
    }

    /// Brings in the page with the entry for `guest`.
    pub(super) fn load(&mut self, guest: GuestOffset) -> Result<()> {
        match self.entry_at(guest)? {
            Some(at) => self.pages.load(&*self.image.file, at, Kind::Table),
            None => Ok(()),
        }
    }

    /// Returns the entry for `guest`, whose page is loaded.
    pub(super) fn cluster(&self, guest: GuestOffset) -> Result<Cluster> {
        let Some(at) = self.entry_at(guest)? else { return Ok(Cluster::ABSENT) };
        let bits = if self.shape.geometry.is_extended { self.pages.word(at.plus(8))? } else { 0 };
        let entry = Entry { word: self.pages.word(at)?, bits };
        self.decode(entry, guest.floor(self.shape.cluster()))
    }

    /// Decodes an entry, and checks that its bytes start before the end of their file.
    fn decode(&self, entry: Entry, guest: GuestOffset) -> Result<Cluster> {
        let cluster = Cluster::decode(self.shape, entry, guest)?;
        let (target, at) = match cluster.held {
            entry::Held::Plain { host, .. } if cluster.data != 0 => (self.data(), host),
            entry::Held::Packed(range) => (&self.image, range.start),
            _ => return Ok(cluster),
        };
        match target.ends_before(at)?.filter(|_| Guard::PastEnd.trips(true)) {
            Some(end) => Err(wrong(guest, &format!("points past the file's end (0x{at:x} of 0x{end:x})"))),
            None => Ok(cluster),
        }
    }

    /// Stores the entry for `guest`, whose page is loaded and whose table may be written in place.
    pub(super) fn store(&mut self, guest: GuestOffset, cluster: Cluster) -> Result<()> {
        let Some(at) = self.entry_at(guest)? else {
            return Err(Error::invalid(format!(
                "guest byte 0x{guest:x} has no L2 table to store an entry in"
            )));
        };
        let Entry { word, bits } = cluster.encode(self.shape);
        let mut bytes = [0; 16];
        let (first, second) = bytes.split_at_mut(8);
        BigEndian::write_u64(first, word);
        BigEndian::write_u64(second, bits);
        self.pages.store(at, bytes.get(..index(self.shape.entry())).unwrap_or_default())
    }

    /// Points the L1 entry for `guest` to another L2 table, or to none.
    pub(super) fn store_table(&mut self, guest: GuestOffset, word: u64) -> Result<()> {
        let nth = guest.bytes() / self.shape.table_span();
        let missing = || Error::invalid(format!("guest byte 0x{guest:x} is past the L1 table"));
        *self.l1.words.get_mut(index(nth)).ok_or_else(missing)? = word;
        self.l1_changed.insert(nth * 8 / SECTOR_BYTES);
        Ok(())
    }

    /// Appends what this layer says about `range`, which lies in the span of one loaded page.
    pub(super) fn extents(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        for piece in range.pieces(self.shape.cluster()) {
            let cluster = self.cluster(piece.start)?;
            push_cluster(self.shape, cluster, piece, out);
        }
        Ok(())
    }

    /// Appends what this layer says about `range`, which lies in the span of one L2 table: read from the
    /// file whole into `table`, under the pages that are here, without loading any.
    pub(super) fn table_extents(
        &self,
        range: GuestRange,
        table: &mut [u8],
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        let Some((at, _)) = self.table(range.start)? else {
            map::push(out, Extent::new(range, map::State::Absent));
            return Ok(());
        };
        let nth = |guest: u64| guest % self.shape.table_span() / self.shape.cluster();
        let (first, last) = (nth(range.start.bytes()), nth(range.end().bytes() - 1));
        let size = self.shape.entry();
        let from = HostOffset::new(first * size).floor(self.pages.page()).bytes();
        let to = HostOffset::new((last + 1) * size).ceil(self.pages.page()).bytes();
        let Some(part) = table.get_mut(index(from)..index(to)) else { return Ok(()) };
        self.image.file.read_at(at.plus(from), part)?;
        for (piece, nth) in part.chunks_mut(index(self.pages.page())).zip(0_u64..) {
            if let Some(page) = self.pages.bytes(at.plus(from + nth * self.pages.page())) {
                piece.copy_from_slice(page);
            }
        }
        let entries = table.get(index(first * size)..index((last + 1) * size)).unwrap_or_default();
        self.decode_all(entries, range, out)
    }

    /// Appends what the entries of the clusters around `range` say about it.
    fn decode_all(&self, entries: &[u8], range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        let (cluster, size) = (self.shape.cluster(), index(self.shape.entry()));
        let start = range.start.floor(cluster);
        let run =
            |from: u64, to: u64| GuestRange::between(start.plus(from * cluster), start.plus(to * cluster));
        let silent = |from, to| Extent::new(run(from, to).clip(range), map::State::Absent);
        // Most words of a sparse table are zero: they are skipped by the line, and a run of them is one extent.
        let (mut nth, mut told) = (0, 0);
        for line in entries.chunks(64) {
            if line.iter().fold(0, |any, byte| any | byte) == 0 {
                nth += count(line.len() / size);
                continue;
            }
            for bytes in line.chunks_exact(size) {
                let word = bytes.get(..8).map_or(0, BigEndian::read_u64);
                let bits = bytes.get(8..16).map_or(0, BigEndian::read_u64);
                if word | bits != 0 {
                    if told < nth {
                        map::push(out, silent(told, nth));
                    }
                    told = nth + 1;
                    self.push_entry(Entry { word, bits }, run(nth, told), range, out)?;
                }
                nth += 1;
            }
        }
        map::push(out, silent(told, nth));
        Ok(())
    }

    /// Appends what the entry of the cluster at `guest` says about the part of it in `range`.
    fn push_entry(
        &self,
        entry: Entry,
        guest: GuestRange,
        range: GuestRange,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        // Nearly all entries are of this kind; the longer way says the same of them.
        if let Some(host) = entry.plain(self.shape)
            && self.data().ends_before(host)?.is_none()
        {
            map::push(out, Extent::new(guest, map::State::Data { host }).clip(range));
            return Ok(());
        }
        let decoded = self.decode(entry, guest.start)?;
        push_cluster(self.shape, decoded, guest.clip(range), out);
        Ok(())
    }

    /// Takes a copy of the sectors of L1 that wait to be written.
    pub(super) fn take_l1(&mut self) -> Vec<Sector> {
        let sectors = std::mem::take(&mut self.l1_changed);
        sectors.into_iter().map(|nth| words_sector(&self.l1.words, self.l1_at, nth)).collect()
    }
}

/// Returns sector number `nth` of a table of words at `at`; past the table's end it is zero.
pub(super) fn words_sector(words: &[u64], at: HostOffset, nth: u64) -> Sector {
    let from = index(nth * SECTOR_BYTES / 8);
    let mut bytes = vec![0; index(SECTOR_BYTES)];
    let part = words.iter().skip(from).zip(bytes.chunks_exact_mut(8));
    part.for_each(|(word, to)| BigEndian::write_u64(to, *word));
    Sector { at: at.plus(nth * SECTOR_BYTES), bytes }
}

/// Appends what `cluster` says about `range`, which lies in it.
fn push_cluster(shape: Shape, cluster: Cluster, range: GuestRange, out: &mut Vec<Extent>) {
    let start = range.start.floor(shape.cluster());
    let mut unit = 0;
    while unit < shape.units() {
        let (kind, alike) = cluster.run(shape, unit);
        let from = u64::from(unit) * shape.unit();
        let state = match (kind, cluster.held) {
            (Unit::Absent, _) | (Unit::Data, entry::Held::Nowhere) => map::State::Absent,
            (Unit::Zero, entry::Held::Plain { host, .. }) => map::State::Zero { host: Some(host.plus(from)) },
            (Unit::Zero, _) => map::State::Zero { host: None },
            (Unit::Data, entry::Held::Plain { host, .. }) => map::State::Data { host: host.plus(from) },
            (Unit::Data, entry::Held::Packed(_)) => map::State::Packed,
        };
        let run = Extent::new(start.plus(from).range(u64::from(alike) * shape.unit()), state);
        if run.range.overlaps(range) {
            map::push(out, run.clip(range));
        }
        unit += alike;
    }
}

/// Reads a table of `entries` words at `at`, which must lie inside the file.
pub(super) fn read_words(file: &dyn File, what: &str, at: HostOffset, entries: u64) -> Result<Vec<u64>> {
    check_words(file, what, at, entries)?;
    words(file, at.range(entries * 8))
}

fn check_words(file: &dyn File, what: &str, at: HostOffset, entries: u64) -> Result<()> {
    let end = entries.checked_mul(8).and_then(|bytes| at.bytes().checked_add(bytes));
    let bytes = file.bytes()?;
    if end.is_none_or(|end| end > bytes) {
        let why = format!("{what} of {entries} entries at 0x{at:x} passes the file's end (0x{bytes:x})");
        return Err(Error::corrupt(why));
    }
    Ok(())
}

/// Reads the words in `range`, by the piece: a table takes its memory once.
pub(super) fn words(file: &dyn File, range: HostRange) -> Result<Vec<u64>> {
    let mut words = Vec::with_capacity(index(range.bytes / 8));
    let mut raw = vec![0; index(range.bytes.min(PIECE_BYTES))];
    for piece in range.start.range(range.bytes / 8 * 8).pieces(PIECE_BYTES) {
        let raw = raw.get_mut(..index(piece.bytes)).unwrap_or_default();
        file.read_at(piece.start, raw)?;
        words.extend(raw.chunks_exact(8).map(BigEndian::read_u64));
    }
    Ok(words)
}
