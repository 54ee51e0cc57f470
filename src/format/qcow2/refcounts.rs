//! Refcounts of an open image, and which clusters are free (`qcow2.rst`, "Host cluster management").
//!
//! No cluster below the cursor is free. A refcount in memory counts what the file refers to *or will refer
//! to*: it goes up before the reference is written and down after the reference is durably gone, so a cut at
//! any time leaves at worst a cluster that is counted and not used.
//!
//! The end of the file is the one place whose clusters are known to hold nothing: what a first write leaves of them
//! need not be filled with zeros. Once counted or adopted they are like any other.

use super::{
    change, counter,
    flush::{Halt, Tried},
    header::{Geometry, Header, REFCOUNT_TABLE_BYTES_MAX},
    image::State,
    pages::{Kind, Sector},
    tables::words_sector,
};
use crate::{
    base::{
        Error, ErrorKind, Guard, HostOffset, HostRange, Result,
        units::{SECTOR_BYTES, count, index},
    },
    io::Kept,
};
use byteorder::{BigEndian, ByteOrder};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// Entries can hold no host offset from here on.
const HOST_END: u64 = 1 << 56;

/// A file that grows by a hole grows by up to so many clusters at once.
const GROWTH_CLUSTERS: u64 = 16;

/// The refcount table, and where to look for free clusters.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    /// The refcount table; fills whole clusters.
    table: Vec<u64>,
    /// Where it is.
    at: HostOffset,
    /// Entries that the file does not have yet: their blocks may not be in the file either.
    fresh: BTreeSet<u64>,
    /// The first cluster that may be free.
    cursor: u64,
    /// From this cluster on nothing was ever stored or counted: what is read there is zeros, whatever the length.
    pristine: u64,
    /// Where the next compressed cluster may start, inside the cluster that the last one ends in.
    packing: Option<HostOffset>,
    /// Clusters from (a key) to (its value) that were adopted and nothing refers to yet: they are free as far as the
    /// file says, and are not taken.
    adopted: BTreeMap<u64, u64>,
}

impl Refcounts {
    /// Begins with the table as it is in the file, past whose end, if it has one, nothing is stored.
    pub(super) fn new(geometry: Geometry, table: Vec<u64>, at: HostOffset, end: Option<u64>) -> Self {
        Self {
            geometry,
            table,
            at,
            fresh: BTreeSet::new(),
            cursor: 0,
            pristine: end.map_or(u64::MAX, |end| end.div_ceil(geometry.cluster_bytes())),
            packing: None,
            adopted: BTreeMap::new(),
        }
    }

    fn block(&self, cluster: u64) -> Result<Option<HostOffset>> {
        let nth = cluster / self.geometry.refcounts_per_block();
        let at = HostOffset::new(self.table.get(index(nth)).copied().unwrap_or(0) & !(SECTOR_BYTES - 1));
        if at != at.floor(self.geometry.cluster_bytes()) {
            let why = format!("refcount table entry {nth} points to 0x{at:x}, not the start of a cluster");
            return Err(Error::corrupt(why));
        }
        Ok(Some(at).filter(|at| at.bytes() != 0))
    }

    /// Where the byte of a refcount is in its block.
    fn byte(&self, cluster: u64) -> u64 {
        cluster % self.geometry.refcounts_per_block() * self.geometry.refcount_bits() / 8
    }

    /// Returns where the next compressed cluster may start.
    pub(super) const fn packing(&self) -> Option<HostOffset> {
        self.packing
    }

    /// Says where the next compressed cluster may start.
    pub(super) const fn set_packing(&mut self, at: Option<HostOffset>) {
        self.packing = at;
    }

    /// Returns whether sectors of the refcount table wait to be written.
    pub(super) fn is_table_changed(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Returns the adopted clusters around some, if all of those are.
    fn adopted_around(&self, clusters: &Range<u64>) -> Option<Range<u64>> {
        let (start, end) = self.adopted.range(..=clusters.start).next_back()?;
        (*end >= clusters.end).then_some(*start..*end)
    }

    /// Takes clusters out of those that were adopted; false if not all of them are.
    fn take_adopted(&mut self, clusters: &Range<u64>) -> bool {
        let Some(around) = self.adopted_around(clusters) else { return false };
        self.adopted.remove(&around.start);
        for rest in [around.start..clusters.start, clusters.end..around.end] {
            if !rest.is_empty() {
                self.adopted.insert(rest.start, rest.end);
            }
        }
        true
    }

    /// Takes a copy of the sectors of the refcount table that wait to be written.
    pub(super) fn take_table(&mut self) -> Vec<Sector> {
        let fresh = std::mem::take(&mut self.fresh);
        let sectors: BTreeSet<u64> = fresh.into_iter().map(|nth| nth * 8 / SECTOR_BYTES).collect();
        sectors.into_iter().map(|nth| words_sector(&self.table, self.at, nth)).collect()
    }
}

impl State {
    /// Brings in the page of the refcount of `cluster`; returns where the page is, or `None` if no block
    /// counts that cluster yet.
    fn load_count(&mut self, cluster: u64) -> Result<Option<HostOffset>> {
        let Some(block) = self.refcounts.block(cluster)? else { return Ok(None) };
        let at = block.plus(self.refcounts.byte(cluster)).floor(self.tables.pages.page());
        if self.tables.pages.has(at) {
            return Ok(Some(at));
        }
        if let Some(end) = self.tables.image.ends_before(block)? {
            let place = format!("refcount block for cluster {cluster} is past the file's end");
            return Err(Error::corrupt(format!("{place} (0x{block:x} of 0x{end:x})")));
        }
        let file = self.tables.image.file.clone();
        self.tables.pages.load(&*file, at, Kind::Refcounts)?;
        Ok(Some(at))
    }

    /// How many refcounts a page holds.
    fn counts_per_page(&self) -> u64 {
        self.tables.pages.page() * 8 / self.tables.shape.geometry.refcount_bits()
    }

    /// Returns the refcount of a cluster.
    pub(super) fn refcount(&mut self, cluster: u64) -> Result<u64> {
        let Some(page) = self.load_count(cluster)? else { return Ok(0) };
        let nth = cluster % self.counts_per_page();
        let bytes = self.tables.pages.bytes(page).unwrap_or_default();
        Ok(counter::read(bytes, self.tables.shape.geometry.refcount_order, nth).unwrap_or(0))
    }

    fn set_refcount(&mut self, cluster: u64, count: u64) -> Result<()> {
        self.refcounts.pristine = self.refcounts.pristine.max(cluster + 1);
        let missing = || Error::invalid(format!("cluster {cluster} has no refcount block"));
        let page = self.load_count(cluster)?.ok_or_else(missing)?;
        let nth = cluster % self.counts_per_page();
        let geometry = self.tables.shape.geometry;
        // The few bytes that hold this refcount, changed in place.
        let width = geometry.refcount_bits().div_ceil(8);
        let from = nth * geometry.refcount_bits() / 8;
        let mut bytes = [0; 8];
        let held = self.tables.pages.bytes(page.plus(from)).unwrap_or_default();
        bytes.iter_mut().zip(held).for_each(|(to, from)| *to = *from);
        let inside = nth % (8 >> geometry.refcount_order.min(3));
        counter::write(&mut bytes, geometry.refcount_order, inside, count);
        self.tables.pages.store(page.plus(from), bytes.get(..index(width)).unwrap_or_default())
    }

    /// Counts one more reference to each cluster that `range` touches; `false`, and nothing done, if a
    /// refcount has no room for it.
    pub(super) fn add_reference(&mut self, range: HostRange) -> Result<bool> {
        let clusters = self.clusters(range);
        for cluster in clusters.clone() {
            if self.refcount(cluster)? >= self.tables.shape.geometry.refcount_max() {
                return Ok(false);
            }
        }
        for cluster in clusters {
            let count = self.refcount(cluster)?;
            self.set_refcount(cluster, count + 1)?;
        }
        Ok(true)
    }

    /// Counts one reference less to each cluster that `range` touches. Whoever calls knows that no entry in
    /// the file and no reader uses that reference any more.
    pub(super) fn drop_reference(&mut self, range: HostRange) -> Result<()> {
        for cluster in self.clusters(range) {
            let at = HostOffset::new(cluster * self.cluster());
            let Some(left) = self.refcount(cluster)?.checked_sub(1) else {
                return Err(Error::corrupt(format!(
                    "refcount of the cluster at 0x{at:x} is 0, and it was used"
                )));
            };
            self.set_refcount(cluster, left)?;
            if left == 0 {
                self.refcounts.cursor = self.refcounts.cursor.min(cluster);
                self.stop_packing_in(at);
                self.tables.pages.forget(at, self.cluster());
            }
        }
        Ok(())
    }

    /// Starts no further compressed cluster in the host cluster at `at`.
    pub(super) fn stop_packing_in(&mut self, at: HostOffset) {
        let cluster = self.cluster();
        if self.refcounts.packing.is_some_and(|p| p.floor(cluster) == at) {
            self.refcounts.packing = None;
        }
    }

    fn cluster(&self) -> u64 {
        self.tables.shape.cluster()
    }

    fn clusters(&self, range: HostRange) -> std::ops::Range<u64> {
        let outer = range.outer(self.cluster());
        outer.start.bytes() / self.cluster()..outer.end().bytes() / self.cluster()
    }

    /// Takes up to `wanted` free clusters in a row; their refcounts are 1 when this returns.
    pub(super) fn allocate(&mut self, wanted: u64) -> Tried<HostRange> {
        let run = loop {
            let run = self.find_run(wanted)?;
            if !run.is_empty() {
                break run;
            }
        };
        for cluster in run.clone() {
            if let Err(error) = self.set_refcount(cluster, 1) {
                // What was counted so far is free again; nobody has seen it.
                let taken = run.start..cluster;
                taken.for_each(|cluster| drop(self.set_refcount(cluster, 0)));
                return Err(error.into());
            }
        }
        self.refcounts.cursor = run.end;
        let clusters = HostOffset::new(run.start * self.cluster());
        let range = clusters.range((run.end - run.start) * self.cluster());
        if let Err(error) = self.check_free(range) {
            run.for_each(|cluster| drop(self.set_refcount(cluster, 0)));
            return Err(error.into());
        }
        Ok(range)
    }

    /// Returns from where on nothing was ever stored.
    pub(super) const fn pristine(&self) -> HostOffset {
        HostOffset::new(self.refcounts.pristine.saturating_mul(self.tables.shape.cluster()))
    }

    /// Returns whether clusters that were just taken read as zeros, being past what was `pristine` before; then the
    /// file reaches to their end.
    pub(super) fn reads_as_zeros(&self, taken: HostRange, pristine: HostOffset) -> Result<bool> {
        if Guard::PristineClusters.trips(taken.start < pristine) {
            return Ok(false);
        }
        // Nobody writes past what is pristine now: nothing is cut off.
        let end = self.pristine();
        if self.tables.image.ends_before(HostOffset::new(end.bytes().saturating_sub(1)))?.is_some() {
            let end = end.ceil(GROWTH_CLUSTERS * self.cluster());
            self.tables.image.file.set_bytes(end.bytes())?;
        }
        Ok(true)
    }

    /// Adopts up to `wanted` free clusters in a row that end before `end`, and not fewer than `least`: nothing
    /// counts them, and nobody takes them. `None` if there are none.
    pub(super) fn adopt(&mut self, wanted: u64, least: u64, end: HostOffset) -> Tried<Option<HostRange>> {
        let cursor = self.refcounts.cursor;
        // What was too short before is not looked at again.
        let last = self.refcounts.adopted.last_key_value().map_or(0, |(_, end)| *end);
        self.refcounts.cursor = cursor.max(last);
        let found = self.seek(wanted, least, end);
        // What was passed over is free.
        self.refcounts.cursor = cursor;
        let Some(range) = found? else { return Ok(None) };
        self.check_free(range)?;
        let clusters = self.clusters(range);
        self.refcounts.pristine = self.refcounts.pristine.max(clusters.end);
        self.refcounts.adopted.insert(clusters.start, clusters.end);
        Ok(Some(range))
    }

    /// Looks for free clusters from the cursor on, which it moves.
    fn seek(&mut self, wanted: u64, least: u64, end: HostOffset) -> Tried<Option<HostRange>> {
        let (cluster, before) = (self.cluster(), HostRange::between(HostOffset::new(0), end));
        while self.refcounts.cursor * cluster < end.bytes() {
            let run = self.find_run(wanted)?;
            let range = HostOffset::new(run.start * cluster).range((run.end - run.start) * cluster);
            let range = range.clip(before).inner(cluster);
            if range.bytes >= least * cluster {
                return Ok(Some(range));
            }
            self.refcounts.cursor = self.refcounts.cursor.max(run.end);
        }
        Ok(None)
    }

    /// Counts a first reference to adopted clusters; false, and nothing done, if some of them are not, or no more.
    pub(super) fn count_adopted(&mut self, range: HostRange) -> Result<bool> {
        let clusters = self.clusters(range);
        let is_adopted = self.refcounts.take_adopted(&clusters);
        if is_adopted {
            clusters.into_iter().try_for_each(|cluster| self.set_refcount(cluster, 1))?;
        }
        Ok(is_adopted)
    }

    /// Takes back the adoption of clusters: they are free.
    pub(super) fn disown(&mut self, range: HostRange) {
        let clusters = self.clusters(range);
        self.refcounts.take_adopted(&clusters);
        self.refcounts.cursor = self.refcounts.cursor.min(clusters.start);
    }

    /// Takes back all adoptions.
    pub(super) fn disown_all(&mut self) {
        let first = self.refcounts.adopted.first_key_value().map_or(u64::MAX, |(start, _)| *start);
        self.refcounts.cursor = self.refcounts.cursor.min(first);
        self.refcounts.adopted.clear();
    }

    /// Refuses clusters that refcounts call free and that hold the tables we know of.
    fn check_free(&self, range: HostRange) -> Result<()> {
        let tables = [
            ("header", HostOffset::new(0).range(self.cluster())),
            ("L1 table", self.tables.l1_at.range(count(self.tables.l1.words.len()) * 8)),
            ("refcount table", self.refcounts.at.range(count(self.refcounts.table.len()) * 8)),
        ];
        match tables.iter().find(|(_, table)| Guard::KnownTables.trips(table.overlaps(range))) {
            Some((what, table)) => {
                Err(Error::corrupt(format!("refcount of the {what} at 0x{:x} is 0", table.start)))
            }
            None => Ok(()),
        }
    }

    /// Finds a run of free clusters from the cursor on. Empty: a block was made, look again.
    fn find_run(&mut self, wanted: u64) -> Tried<std::ops::Range<u64>> {
        let order = self.tables.shape.geometry.refcount_order;
        let per_page = self.counts_per_page();
        let end = count(self.refcounts.table.len()) * self.tables.shape.geometry.refcounts_per_block();
        let mut run = self.refcounts.cursor..self.refcounts.cursor;
        while run.end < end {
            if run.end * self.cluster() >= HOST_END - self.cluster() {
                return Err(Error::new(ErrorKind::NoSpace, "has no place left below 64 PiB").into());
            }
            let Some(page) = self.load_count(run.end)? else {
                if run.is_empty() {
                    self.make_block(run.start)?;
                }
                return Ok(run);
            };
            let bytes = self.tables.pages.bytes(page).unwrap_or_default();
            let first = run.end % per_page;
            for nth in first..per_page {
                let is_free = counter::read(bytes, order, nth) == Some(0);
                if is_free && self.refcounts.adopted_around(&(run.end..run.end + 1)).is_none() {
                    run.end += 1;
                } else if run.is_empty() {
                    run = run.end + 1..run.end + 1;
                } else {
                    return Ok(run);
                }
                if run.end - run.start == wanted {
                    return Ok(run);
                }
            }
            if run.is_empty() {
                self.refcounts.cursor = run.start;
            }
        }
        if run.is_empty() { Err(Halt::TableFull) } else { Ok(run) }
    }

    /// Makes the refcount block that counts `cluster` out of that cluster itself.
    fn make_block(&mut self, cluster: u64) -> Result<()> {
        let at = HostOffset::new(cluster * self.cluster());
        self.check_free(at.range(self.cluster()))?;
        self.tables.image.file.zero(at.range(self.cluster()), Kept::Space)?;
        let nth = cluster / self.tables.shape.geometry.refcounts_per_block();
        let Some(entry) = self.refcounts.table.get_mut(index(nth)) else {
            return Err(Error::invalid(format!("cluster {cluster} is past the refcount table")));
        };
        *entry = at.bytes();
        if let Err(error) = self.set_refcount(cluster, 1) {
            if let Some(entry) = self.refcounts.table.get_mut(index(nth)) {
                *entry = 0;
            }
            return Err(error);
        }
        self.refcounts.fresh.insert(nth);
        self.refcounts.cursor = cluster + 1;
        Ok(())
    }

    /// Takes a free cluster and fills it with zeros.
    pub(super) fn allocate_zeroed(&mut self) -> Tried<HostRange> {
        let range = self.allocate(1)?;
        if let Err(error) = self.tables.image.file.zero(range, Kept::Space) {
            self.drop_reference(range)?;
            return Err(error.into());
        }
        Ok(range)
    }

    /// Takes exactly `clusters` free clusters in a row; their refcounts are 1 when this returns.
    pub(super) fn allocate_span(&mut self, clusters: u64) -> Tried<HostRange> {
        let range = self.allocate(clusters)?;
        if range.bytes == clusters * self.cluster() {
            return Ok(range);
        }
        self.drop_reference(range)?;
        // Past all that is counted, the blocks for the whole span before it: nothing can come between.
        let per_block = self.tables.shape.geometry.refcounts_per_block();
        let used = self.refcounts.table.iter().rposition(|entry| *entry != 0).map_or(0, |nth| nth + 1);
        let (first, blocks) = (count(used) * per_block, clusters.div_ceil(per_block - 1));
        if count(used) + blocks > count(self.refcounts.table.len()) {
            return Err(Halt::TableFull);
        }
        let at = |nth: u64| HostOffset::new((first + nth) * self.tables.shape.cluster());
        self.refcounts.pristine = self.refcounts.pristine.max(first + blocks + clusters);
        self.tables.image.file.zero(at(0).range(blocks * self.cluster()), Kept::Space)?;
        let span = at(blocks).range(clusters * self.cluster());
        for nth in 0..blocks {
            let block = at(nth).bytes();
            self.refcounts.table.get_mut(used + index(nth)).into_iter().for_each(|entry| *entry = block);
            self.refcounts.fresh.insert(count(used) + nth);
        }
        let counted =
            (first..first + blocks + clusters).try_for_each(|cluster| self.set_refcount(cluster, 1));
        // Blocks that do not count themselves must never reach the file.
        counted.inspect_err(|e| self.poison = Some(e.to_string()))?;
        Ok(span)
    }

    /// Gives the image a longer refcount table; durable when this returns. The caller holds the header.
    ///
    /// The new table and the blocks that count it lie past all that the old one counts. A cut before the
    /// header points there leaves the old table untouched.
    pub(super) fn grow_refcounts(&mut self, header: &mut Header) -> Result<()> {
        self.check_sound()?;
        let (geometry, file) = (self.tables.shape.geometry, self.tables.image.file.clone());
        let (cluster, per_block) = (self.cluster(), geometry.refcounts_per_block());
        let held = count(self.refcounts.table.len()) * 8 / cluster;
        let clusters = (held + held / 2 + 1).min(REFCOUNT_TABLE_BYTES_MAX / cluster);
        if clusters <= held {
            return Err(Error::new(ErrorKind::NoSpace, "has the longest refcount table that is allowed"));
        }
        let first = count(self.refcounts.table.len()) * per_block;
        let blocks = clusters.div_ceil(per_block - 1);
        let at = |nth: u64| HostOffset::new((first + nth) * cluster);
        self.refcounts.pristine = self.refcounts.pristine.max(first + blocks + clusters);
        for block in 0..blocks {
            let used = (blocks + clusters - block * per_block).min(per_block);
            let mut bytes = vec![0; index(cluster)];
            (0..used).for_each(|nth| counter::write(&mut bytes, geometry.refcount_order, nth, 1));
            file.write_at(at(block), &bytes)?;
        }
        let mut table = self.refcounts.table.clone();
        table.extend((0..blocks).map(|nth| at(nth).bytes()));
        table.resize(index(clusters * cluster / 8), 0);
        let mut stored = table.clone();
        // Blocks that are not in the file yet are not pointed to yet.
        for nth in &self.refcounts.fresh {
            stored.get_mut(index(*nth)).into_iter().for_each(|entry| *entry = 0);
        }
        let mut bytes = vec![0; stored.len() * 8];
        BigEndian::write_u64_into(&stored, &mut bytes);
        file.write_at(at(blocks), &bytes)?;
        file.flush()?;
        let place = at(blocks).range(clusters * cluster);
        let moved = change::set_fields(&*file, header, |h| h.refcount_table = place);
        moved.inspect_err(|e| self.poison = Some(e.to_string()))?;
        let old = self.refcounts.at.range(count(self.refcounts.table.len()) * 8);
        (self.refcounts.table, self.refcounts.at) = (table, at(blocks));
        self.drop_reference(old)
    }
}
