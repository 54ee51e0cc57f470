//! Looking at everything: what each cluster is used for, against what the refcounts say.
//!
//! The references are counted first (header, tables, snapshots, bitmaps, guest clusters, and the refcounts'
//! own clusters), and each table is read once; flags are judged on the way, by the stored refcounts. The work
//! is bounded by the file's length, whatever the tables say.

use super::{
    counts::Counts,
    reached::{self, Reached},
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, units},
    format::{
        Checked,
        qcow2::{
            bitmap, counter,
            header::{Header, L1_BYTES_MAX, Table},
            snapshot, tables,
        },
    },
    io::File,
};

/// Bits of a table entry that hold an offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Refcount exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// Compressed cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Reads as zeros.
pub(super) const ZERO: u64 = 1;
/// Bits of an L1 entry that are always 0.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of a standard L2 entry that are always 0.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Bits of a refcount table entry that hold an offset.
pub(super) const BLOCK_OFFSET: u64 = !0x1ff;
/// Bits of a bitmap table entry that are always 0.
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// The most clusters that an image may have to be checked, as in qemu.
const CLUSTERS_MAX: u64 = i32::MAX as u64;
/// L1 and bitmap tables that are longer than so many files overlap, and are not looked at.
const FILES_OF_TABLES_MAX: u64 = 4;
/// What is skipped at once where a table is empty.
const STRIDE: usize = 4096;

/// What was found.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    pub(super) file: &'a dyn File,
    pub(super) header: &'a Header,
    pub(super) checked: Checked,
    /// References to each cluster.
    pub(super) counts: Counts,
    /// The refcounts that the image stores.
    pub(super) stored: Counts,
    /// The refcount table's words.
    pub(super) refcount_table: Vec<u64>,
    /// Whether the refcounts cannot be put right where they are.
    pub(super) must_rebuild: bool,
    /// Whether some references could not be counted.
    pub(super) is_blind: bool,
    file_bytes: u64,
    /// Bytes of the tables of tables that were read.
    tables_bytes: u64,
    /// Where the next guest cluster of the table would be if nothing were fragmented.
    next: Option<u64>,
}

/// What a standard L2 entry says (see [`describe`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unallocated,
    Compressed,
    /// Zeros, without a place.
    Zero,
    /// A place in the file, whether or not it reads as zeros.
    Placed,
}

/// Returns what an L2 entry says.
pub(super) fn describe(header: &Header, word: u64) -> Kind {
    let has_place = word & OFFSET != 0 || header.has_data_file() && word & COPIED != 0;
    if word & COMPRESSED != 0 {
        Kind::Compressed
    } else if has_place {
        Kind::Placed
    } else if word & ZERO != 0 && !header.geometry.is_extended {
        Kind::Zero
    } else {
        Kind::Unallocated
    }
}

impl<'a> Survey<'a> {
    /// Looks at the whole image, without its refcounts' own clusters if `has_refcounts` is false.
    pub(super) fn take(file: &'a dyn File, header: &'a Header, has_refcounts: bool) -> Result<Self> {
        let mut survey = Self {
            file,
            header,
            checked: Checked {
                total_units: header.geometry.clusters(header.disk_bytes),
                ..Checked::default()
            },
            counts: Counts::default(),
            stored: Counts::default(),
            refcount_table: Vec::new(),
            must_rebuild: false,
            is_blind: false,
            file_bytes: file.bytes()?,
            tables_bytes: 0,
            next: None,
        };
        if header.geometry.clusters(survey.file_bytes) > CLUSTERS_MAX {
            return Err(Error::unsupported("has too many clusters to be checked"));
        }
        survey.load_refcounts()?;
        survey.count("the header", HostOffset::new(0).range(header.geometry.cluster_bytes()));
        let mut reached = Reached::default();
        survey.first_level(header.l1, true, &mut reached)?;
        survey.snapshots(&mut reached)?;
        survey.second_level(reached)?;
        survey.bitmaps()?;
        if has_refcounts {
            let first = survey.cluster(header.refcount_table.start.bytes());
            let last = first + header.geometry.clusters(header.refcount_table.bytes);
            survey.must_rebuild |= !survey.counts.is_free(first, last);
            survey.count("the refcount table", header.refcount_table);
            survey.refcount_blocks();
            survey.compare();
        }
        Ok(survey)
    }

    /// Notes a contradiction that can lose data.
    fn corrupt(&mut self, what: impl FnOnce() -> String) {
        self.checked.corruptions += 1;
        self.say(what);
    }

    /// Notes references that could not be counted.
    fn error(&mut self, what: impl FnOnce() -> String) {
        self.checked.errors += 1;
        self.is_blind = true;
        self.say(what);
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.checked.findings.len() < Checked::FINDINGS_MAX {
            self.checked.findings.push(what());
        }
    }

    fn unit(&self) -> u64 {
        self.header.geometry.cluster_bytes()
    }

    const fn cluster(&self, at: u64) -> u64 {
        at >> self.header.geometry.cluster_bits
    }

    /// Counts a reference to each cluster of a range; one that passes the file's end is a corruption (the
    /// last cluster may be there in part).
    fn count(&mut self, what: &str, range: HostRange) {
        self.count_times(what, range, 1);
    }

    fn count_times(&mut self, what: &str, range: HostRange, times: u64) {
        let (from, end) = (range.start.bytes(), range.end().bytes());
        if range.is_empty() {
            return;
        }
        if end >= self.file_bytes.saturating_add(self.unit()) {
            let file_bytes = self.file_bytes;
            self.corrupt(|| {
                format!("{what} at {from:#x} passes the file's end ({end:#x} of {file_bytes:#x})")
            });
            return;
        }
        let max = self.header.geometry.refcount_max();
        for cluster in self.cluster(from)..=self.cluster(end - 1) {
            let now = self.counts.get(cluster).saturating_add(times);
            if now > max {
                let at = cluster * self.unit();
                self.corrupt(|| format!("cluster {at:#x} has more references than a refcount can hold"));
            }
            self.counts.set(cluster, now.min(max));
        }
    }

    /// Returns whether a table of tables may be looked at: together they are no longer than some files.
    fn may_read(&mut self, what: &str, table: Table) -> bool {
        self.tables_bytes += table.range(8).bytes.min(self.file_bytes);
        if self.tables_bytes <= self.file_bytes.saturating_mul(FILES_OF_TABLES_MAX) {
            return true;
        }
        self.is_blind = true;
        self.corrupt(|| format!("{what} at {:#x} overlaps others: not looked at", table.at));
        false
    }

    /// Reads a table of 8-byte words; what lies past the file's end reads as zeros.
    fn words(&self, table: Table) -> Result<Vec<u64>> {
        let range = table.range(8).clip(HostOffset::new(0).range(self.file_bytes));
        tables::words(self.file, range)
    }

    fn load_refcounts(&mut self) -> Result<()> {
        let table =
            Table { at: self.header.refcount_table.start, entries: self.header.refcount_table.bytes / 8 };
        self.refcount_table = self.words(table)?;
        let per_block = self.header.geometry.refcounts_per_block();
        let mut block = vec![0; units::index(self.unit())];
        for (nth, at) in self.blocks() {
            self.file.read_at(at, &mut block)?;
            if is_zero(&block) {
                continue;
            }
            for index in 0..per_block {
                match counter::read(&block, self.header.geometry.refcount_order, index) {
                    Some(0) | None => {}
                    Some(count) => self.stored.set(nth * per_block + index, count),
                }
            }
        }
        Ok(())
    }

    /// Returns the refcount blocks that can be read: number and place.
    pub(super) fn blocks(&self) -> Vec<(u64, HostOffset)> {
        let unit = self.unit();
        let is_sound = |word: u64| word != 0 && word.is_multiple_of(unit) && word < self.file_bytes;
        let words = self.refcount_table.iter().enumerate().filter(|(_, word)| is_sound(**word));
        // A file has no more clusters than this, whatever the table says.
        let last =
            self.header.geometry.clusters(self.file_bytes) / self.header.geometry.refcounts_per_block();
        let blocks = words.map(|(nth, word)| (units::count(nth), HostOffset::new(*word)));
        blocks.filter(|(nth, _)| *nth <= last).collect()
    }

    /// Counts the refcount blocks, which nothing else may use.
    fn refcount_blocks(&mut self) {
        let unit = self.unit();
        for (nth, word) in self.refcount_table.clone().into_iter().enumerate() {
            let at = word & BLOCK_OFFSET;
            if word == 0 {
                continue;
            }
            if word != at || !at.is_multiple_of(unit) {
                self.must_rebuild = true;
                self.corrupt(|| format!("refcount table entry {nth} is {word:#x}: within a cluster"));
                self.checked.errors += u64::from(word == at && self.has_clusters(nth));
                continue;
            }
            if at >= self.file_bytes.next_multiple_of(unit) {
                self.must_rebuild = true;
                self.corrupt(|| format!("refcount block {nth} at {at:#x} is outside the file"));
                self.checked.errors += u64::from(i64::try_from(at).is_err() && self.has_clusters(nth));
                continue;
            }
            self.must_rebuild |= self.counts.get(self.cluster(at)) > 0;
            self.count("a refcount block", HostOffset::new(at).range(unit));
            if self.counts.get(self.cluster(at)) != 1 {
                self.corrupt(|| format!("refcount block {nth} at {at:#x} is used for something else, too"));
            }
        }
    }

    /// Returns whether the refcounts of a block are asked for: if it cannot be read, they are unknown.
    fn has_clusters(&self, block: usize) -> bool {
        let per_block = self.header.geometry.refcounts_per_block();
        units::count(block) <= (self.header.geometry.clusters(self.file_bytes).max(1) - 1) / per_block
    }

    /// Counts an L1 table, and notes the L2 tables that it leads to; flags are judged in the active one.
    fn first_level(&mut self, l1: Table, is_active: bool, reached: &mut Reached) -> Result<()> {
        if !self.may_read("an L1 table", l1) {
            return Ok(());
        }
        self.count("an L1 table", l1.range(8));
        let unit = self.unit();
        for (nth, word) in self.words(l1)?.into_iter().enumerate() {
            if word == 0 {
                continue;
            }
            if word & L1_RESERVED != 0 {
                self.corrupt(|| format!("L1 entry {nth} is {word:#x}: reserved bits are set"));
            }
            let at = word & OFFSET;
            self.count("an L2 table", HostOffset::new(at).range(unit));
            if is_active && at != 0 {
                self.flag("L1 entry", word, self.stored.get(self.cluster(at)));
            }
            if !at.is_multiple_of(unit) {
                // What it refers to is not counted: nothing may be freed.
                self.is_blind = true;
                self.corrupt(|| format!("L1 entry {nth} is {word:#x}: its L2 table starts within a cluster"));
            } else if at < self.file_bytes {
                reached.add(HostOffset::new(at), is_active);
            }
        }
        Ok(())
    }

    /// Counts what the L2 tables lead to; flags are judged in those of the active L1 table.
    fn second_level(&mut self, reached: Reached) -> Result<()> {
        let mut bytes = vec![0; units::index(self.unit())];
        for table in reached.into_list() {
            self.file.read_at(table.at, &mut bytes)?;
            // As in qemu, the first cluster of a table follows nothing.
            self.next = None;
            self.table(table, &bytes);
        }
        Ok(())
    }

    /// Judges the "refcount is one" flag of an entry.
    fn flag(&mut self, what: &str, word: u64, refcount: u64) {
        if (refcount == 1) != (word & COPIED != 0) {
            self.corrupt(|| format!("{what} {word:#x} is flagged wrongly: the refcount is {refcount}"));
        }
    }

    fn table(&mut self, table: reached::Table, bytes: &[u8]) {
        let width = units::index(self.header.geometry.l2_entry_bytes());
        for (n, stride) in bytes.chunks(STRIDE).enumerate() {
            if is_zero(stride) {
                continue;
            }
            for (m, entry) in stride.chunks_exact(width).enumerate() {
                let word = entry.first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
                let bits = entry.get(8..).and_then(|rest| rest.first_chunk());
                let bits = bits.map_or(0, |bits| u64::from_be_bytes(*bits));
                if word != 0 || bits != 0 {
                    let place = table.at.plus(units::count(n * STRIDE + m * width));
                    self.entry(place, (word, bits), table);
                }
            }
        }
    }

    fn entry(&mut self, place: HostOffset, (word, bits): (u64, u64), table: reached::Table) {
        let wrong = |what: &str| format!("L2 entry at {place:#x} is {word:#x}: {what}");
        let kind = describe(self.header, word);
        if kind != Kind::Compressed && word & L2_RESERVED != 0 {
            self.corrupt(|| wrong("reserved bits are set"));
        }
        match kind {
            Kind::Zero => {}
            Kind::Unallocated => {
                if bits & u64::from(u32::MAX) != 0 {
                    self.corrupt(|| wrong("it has no place, but subclusters in use"));
                }
            }
            Kind::Compressed => self.compressed(place, (word, bits), table),
            Kind::Placed => self.placed(place, (word, bits), table),
        }
    }

    fn compressed(&mut self, place: HostOffset, (word, bits): (u64, u64), table: reached::Table) {
        let wrong = |what: &str| format!("L2 entry at {place:#x} is {word:#x}: {what}");
        if word & COPIED != 0 {
            self.corrupt(|| wrong("a compressed cluster has the flag of a refcount of one"));
        }
        if self.header.has_data_file() {
            self.corrupt(|| wrong("a compressed cluster in an image with a data file"));
            return;
        }
        if bits != 0 {
            self.corrupt(|| wrong("a compressed cluster with subclusters"));
            return;
        }
        let at = word & ((1 << (62 - (self.header.geometry.cluster_bits - 8))) - 1);
        let sectors = (word & (COMPRESSED - 1)) >> (62 - (self.header.geometry.cluster_bits - 8));
        // The first sector is the one that holds the offset.
        let bytes = (sectors + 1) * 512 - at % 512;
        self.count_times("a compressed cluster", HostOffset::new(at).range(bytes), table.times);
        if table.is_active {
            self.checked.allocated_units += 1;
            self.checked.compressed_units += 1;
            self.checked.fragmented_units += 1;
        }
    }

    fn placed(&mut self, place: HostOffset, (word, bits): (u64, u64), table: reached::Table) {
        let wrong = |what: &str| format!("L2 entry at {place:#x} is {word:#x}: {what}");
        let unit = self.unit();
        let at = word & OFFSET;
        if (bits >> 32) & bits != 0 {
            self.corrupt(|| wrong("subclusters are both in use and zero"));
        }
        if !at.is_multiple_of(unit) {
            self.corrupt(|| wrong("it points within a cluster"));
        }
        if table.is_active {
            self.checked.allocated_units += 1;
            if self.next.is_some_and(|next| next != at) {
                self.checked.fragmented_units += 1;
            }
            self.next = Some(at + unit);
        }
        let is_external = self.header.has_data_file();
        if !is_external {
            self.count_times("a guest cluster", HostOffset::new(at).range(unit), table.times);
        }
        if table.is_active {
            let refcount = if is_external { 1 } else { self.stored.get(self.cluster(at)) };
            self.flag("L2 entry", word, refcount);
        }
    }

    fn snapshots(&mut self, reached: &mut Reached) -> Result<()> {
        let snapshots = match snapshot::read(self.file, self.header) {
            Ok(snapshots) => snapshots,
            Err(error) => {
                self.error(|| error.to_string());
                return Ok(());
            }
        };
        for stored in &snapshots.list {
            let (id, at) = (&stored.snapshot.id, stored.l1.at);
            if stored.is_incomplete && self.header.geometry.version > 2 {
                self.corrupt(|| format!("snapshot {id} lacks the sizes of its disk and machine state"));
            }
            if at != at.floor(self.unit()) || stored.l1.entries * 8 > L1_BYTES_MAX {
                self.corrupt(|| format!("snapshot {id} has an impossible L1 table at {at:#x}"));
                continue;
            }
            self.first_level(stored.l1, false, reached)?;
        }
        self.count("the snapshot table", self.header.snapshots.at.range(snapshots.table_bytes));
        Ok(())
    }

    fn bitmaps(&mut self) -> Result<()> {
        let listed = bitmap::directory(self.header)
            .and_then(|directory| Ok((directory, bitmap::read(self.file, self.header)?)));
        let (directory, list) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.error(|| error.to_string());
                return Ok(());
            }
        };
        if let Some((range, _)) = directory {
            self.count("the bitmap directory", range);
        }
        for stored in list {
            if !self.may_read("a bitmap table", stored.table) {
                continue;
            }
            self.count("a bitmap table", stored.table.range(8));
            for (nth, word) in self.words(stored.table)?.into_iter().enumerate() {
                let at = word & OFFSET;
                if word & BITMAP_RESERVED != 0 || !at.is_multiple_of(self.unit()) || at != 0 && word & 1 != 0
                {
                    self.error(|| format!("entry {nth} of bitmap '{}' is {word:#x}", stored.bitmap.name));
                } else if at != 0 {
                    self.count("bitmap data", HostOffset::new(at).range(self.unit()));
                }
            }
        }
        Ok(())
    }

    /// Compares what was counted with what is stored.
    fn compare(&mut self) {
        let clusters = self.header.geometry.clusters(self.file_bytes).max(self.counts.used_end());
        let mut end = 0;
        let last = clusters.min(self.counts.end().max(self.stored.end()));
        let mut next = 0;
        while next < last {
            let cluster = next;
            // Where both have nothing, nothing is looked at.
            next = if self.counts.is_empty_at(cluster) && self.stored.is_empty_at(cluster) {
                Counts::page_end(cluster)
            } else {
                cluster + 1
            };
            let (stored, counted) = (self.stored.get(cluster), self.counts.get(cluster));
            if stored > 0 || counted > 0 {
                end = cluster + 1;
            }
            if stored == counted {
                continue;
            }
            let at = cluster * self.unit();
            if stored < counted {
                self.corrupt(|| format!("cluster {at:#x} has refcount {stored} and {counted} references"));
            } else {
                self.checked.leaks += 1;
                self.say(|| format!("cluster {at:#x} is leaked: refcount {stored}, {counted} references"));
            }
        }
        self.checked.end = HostOffset::new(end * self.unit());
        let per_block = self.header.geometry.refcounts_per_block();
        let known = self.blocks();
        let is_known = |nth: u64| known.binary_search_by_key(&nth, |(n, _)| *n).is_ok();
        let used = self.counts.used_end().div_ceil(per_block);
        let is_missing =
            |nth: u64| !is_known(nth) && !self.counts.is_free(nth * per_block, (nth + 1) * per_block);
        self.must_rebuild |= (0..used).any(is_missing);
    }
}

/// Returns whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}
