//! For tests: whether refcounts are what the tables refer to.

use super::{
    Header, counter,
    entry::{self, Cluster, Entry, Held, Shape},
    tables::read_words,
};
use crate::{
    base::{
        GuestOffset, HostOffset, HostRange, Result,
        units::{count, index},
    },
    io::File,
};
use std::collections::BTreeMap;

/// What an audit found.
#[derive(Debug, Default)]
pub(in crate::format) struct Audit {
    /// Clusters that are counted more often than used.
    pub(in crate::format) leaks: u64,
    /// Clusters that are used more often than counted, or COPIED without being alone.
    pub(in crate::format) corruptions: Vec<String>,
}

#[derive(Default)]
struct Uses {
    cluster: u64,
    times: BTreeMap<u64, u64>,
    own: Vec<u64>,
}

impl Uses {
    fn add(&mut self, range: HostRange) {
        let pieces = range.outer(self.cluster).pieces(self.cluster);
        pieces.for_each(|piece| *self.times.entry(piece.start.bytes() / self.cluster).or_default() += 1);
    }

    fn add_entry(&mut self, shape: Shape, cluster: Cluster) {
        match cluster.held {
            Held::Plain { host, is_own } if !shape.is_external => {
                self.add(host.range(self.cluster));
                self.own.extend(is_own.then_some(host.bytes() / self.cluster));
            }
            Held::Packed(range) => self.add(range),
            Held::Plain { .. } | Held::Nowhere => {}
        }
    }
}

/// Compares every refcount with what the active tables refer to (images without internal snapshots).
pub(in crate::format) fn audit(file: &dyn File) -> Result<Audit> {
    let header = Header::read(file)?;
    let shape = Shape { geometry: header.geometry, is_external: header.has_data_file() };
    let cluster = shape.cluster();
    let mut uses = Uses { cluster, ..Uses::default() };
    uses.add(HostOffset::new(0).range(cluster));
    uses.add(header.l1.range(8));
    uses.add(header.refcount_table);
    let l1 = read_words(file, "L1", header.l1.at, header.l1.entries)?;
    for (nth, word) in (0_u64..).zip(l1) {
        let Some((at, is_own)) = entry::table(shape, word, nth)? else { continue };
        uses.add(at.range(cluster));
        uses.own.extend(is_own.then_some(at.bytes() / cluster));
        let words = read_words(file, "L2", at, cluster / 8)?;
        let per = index(shape.entry() / 8);
        for (nth_entry, entry) in (0_u64..).zip(words.chunks(per)) {
            let guest = GuestOffset::new(nth * shape.table_span() + nth_entry * cluster);
            let entry = Entry { word: entry[0], bits: entry.get(1).copied().unwrap_or(0) };
            uses.add_entry(shape, Cluster::decode(shape, entry, guest)?);
        }
    }
    let table = read_words(file, "refcounts", header.refcount_table.start, header.refcount_table.bytes / 8)?;
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for (nth, at) in (0_u64..).zip(table).filter(|(_, at)| *at != 0) {
        uses.add(HostOffset::new(at).range(cluster));
        let mut block = vec![0; index(cluster)];
        file.read_at(HostOffset::new(at), &mut block)?;
        let per_block = header.geometry.refcounts_per_block();
        for inside in 0..per_block {
            let is = counter::read(&block, header.geometry.refcount_order, inside).unwrap_or(0);
            if is != 0 {
                counts.insert(nth * per_block + inside, is);
            }
        }
    }
    let mut audit = Audit::default();
    let is = |cluster: &u64| counts.get(cluster).copied().unwrap_or(0);
    let used = |cluster: &u64| uses.times.get(cluster).copied().unwrap_or(0);
    audit.leaks = count(counts.keys().filter(|c| is(c) > used(c)).count());
    for cluster in uses.times.keys().filter(|c| is(c) < used(c)) {
        audit.corruptions.push(format!("cluster {cluster}: count {}, uses {}", is(cluster), used(cluster)));
    }
    for cluster in uses.own.iter().filter(|c| used(c) != 1) {
        audit.corruptions.push(format!("cluster {cluster} is COPIED and used {} times", used(cluster)));
    }
    Ok(audit)
}
