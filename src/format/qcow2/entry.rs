//! The words of the mapping tables, decoded once (`qcow2.rst`, "Cluster mapping" and "Extended L2 Entries").
//!
//! A normal entry and an extended one become the same [`Cluster`]: where its bytes are held, and one bit a
//! *unit* for "held" and one for "reads as zeros". A unit is the cluster itself, or one of its 32 subclusters
//! with extended L2 entries. Everything above works on [`Cluster`]s and never sees a raw word.

use super::header::Geometry;
use crate::base::{
    Error, Guard, GuestOffset, GuestRange, HostOffset, HostRange, Result, units::SECTOR_BYTES,
};

/// Bit 63: this table is the only one that refers to the cluster, which may be written in place.
const COPIED: u64 = 1 << 63;
/// Bit 62: a compressed cluster.
const PACKED: u64 = 1 << 62;
/// Bit 0 of a standard cluster descriptor: reads as zeros.
const ZERO: u64 = 1;
/// Bits 9 to 55: a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Units of a cluster with extended L2 entries.
const SUBCLUSTERS: u32 = 32;

/// What the header says about the shape of the tables; fixed while the image is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The sizes.
    pub(super) geometry: Geometry,
    /// Whether guest data is in an external data file, at the guest's own offsets.
    pub(super) is_external: bool,
}

impl Shape {
    /// Returns the bytes of a cluster.
    pub(super) const fn cluster(self) -> u64 {
        self.geometry.cluster_bytes()
    }

    /// Returns how many units a cluster has.
    pub(super) const fn units(self) -> u32 {
        if self.geometry.is_extended { SUBCLUSTERS } else { 1 }
    }

    /// Returns the bytes of a unit.
    pub(super) const fn unit(self) -> u64 {
        self.geometry.subcluster_bytes()
    }

    /// Returns the bytes of an L2 entry.
    pub(super) const fn entry(self) -> u64 {
        self.geometry.l2_entry_bytes()
    }

    /// Returns the guest bytes that one L2 table describes.
    pub(super) const fn table_span(self) -> u64 {
        self.geometry.l1_entry_covers()
    }

    /// Returns whether entries can say "reads as zeros".
    pub(super) const fn has_zero_flag(self) -> bool {
        self.geometry.version >= 3
    }

    /// Returns the mask of all units of a cluster.
    pub(super) const fn all(self) -> u32 {
        if self.geometry.is_extended { u32::MAX } else { 1 }
    }

    /// Returns the mask of the units that `range` touches in the cluster that holds its start.
    pub(super) fn mask(self, range: GuestRange) -> u32 {
        if !self.geometry.is_extended {
            return 1;
        }
        let from = range.start.bytes() % self.cluster();
        let units = range.outer(self.unit()).bytes / self.unit();
        let low = from / self.unit();
        let high = (low + units).min(u64::from(SUBCLUSTERS));
        let bits = ((1_u64 << high) - 1) & !((1_u64 << low) - 1);
        u32::try_from(bits).unwrap_or(u32::MAX)
    }

    /// Bits of a compressed descriptor that hold the offset.
    const fn packed_offset_bits(self) -> u32 {
        62 - (self.geometry.cluster_bits - 8)
    }

    /// Returns where a compressed cluster must end before: its descriptor has no more bits.
    pub(super) const fn packed_end(self) -> u64 {
        let bits = self.packed_offset_bits();
        1 << if bits < 56 { bits } else { 56 }
    }
}

/// One L2 entry as stored; `bits` is 0 in a normal one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The cluster descriptor.
    pub(super) word: u64,
    /// The subcluster allocation bitmap.
    pub(super) bits: u64,
}

impl Entry {
    /// Returns the host cluster of an entry that says no more than that: a whole cluster held as it is, in the
    /// image file. `None` says nothing: the entry must be decoded.
    pub(super) fn plain(self, shape: Shape) -> Option<HostOffset> {
        let host = self.word & OFFSET;
        let is_plain = self.word & (PACKED | ZERO) == 0 && host != 0 && host.is_multiple_of(shape.cluster());
        (is_plain && !shape.geometry.is_extended && !shape.is_external).then_some(HostOffset::new(host))
    }
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Nowhere.
    Nowhere,
    /// As they are, in a host cluster.
    Plain {
        /// The host cluster.
        host: HostOffset,
        /// Whether nothing else refers to it (COPIED): it may be written in place.
        is_own: bool,
    },
    /// Compressed, in whole sectors that other compressed clusters may share.
    Packed(HostRange),
}

/// One decoded L2 entry. `data` and `zero` never share a bit; a bit of `data` means that `held` says where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cluster {
    /// Where the bytes are.
    pub(super) held: Held,
    /// Units whose bytes are held.
    pub(super) data: u32,
    /// Units that read as zeros.
    pub(super) zero: u32,
}

/// What is read in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// What lies below.
    Absent,
    /// Zeros.
    Zero,
    /// The bytes held.
    Data,
}

impl Cluster {
    /// Nothing held, nothing said.
    pub(super) const ABSENT: Self = Self { held: Held::Nowhere, data: 0, zero: 0 };

    /// Decodes the entry for the cluster at `guest`.
    pub(super) fn decode(shape: Shape, entry: Entry, guest: GuestOffset) -> Result<Self> {
        if entry == Entry::default() {
            return Ok(Self::ABSENT);
        }
        if entry.word & PACKED != 0 {
            return Self::decode_packed(shape, entry, guest);
        }
        let host = HostOffset::new(entry.word & OFFSET);
        let is_own = !Guard::SharedCluster.trips(entry.word & COPIED == 0);
        let is_held = host.bytes() != 0 || (shape.is_external && is_own);
        let held = if is_held { Held::Plain { host, is_own } } else { Held::Nowhere };
        if !host.bytes().is_multiple_of(shape.cluster()) {
            return Err(wrong(guest, &format!("points to 0x{host:x}, not the start of a cluster")));
        }
        if shape.is_external && is_held && host.bytes() != guest.bytes() {
            return Err(wrong(guest, &format!("points to 0x{host:x} of the external data file")));
        }
        let (data, zero) = if shape.geometry.is_extended {
            (low(entry.bits), low(entry.bits >> 32))
        } else if entry.word & ZERO != 0 {
            (0, 1)
        } else {
            (u32::from(is_held), 0)
        };
        let why = match () {
            () if zero != 0 && !shape.has_zero_flag() => "has the zero flag, which version 2 lacks",
            () if data & zero != 0 => "says that a subcluster is both held and zero",
            () if data != 0 && !is_held => "says that a subcluster is held, and not where",
            () => return Ok(Self { held, data, zero }),
        };
        Err(wrong(guest, why))
    }

    fn decode_packed(shape: Shape, entry: Entry, guest: GuestOffset) -> Result<Self> {
        if shape.is_external {
            return Err(wrong(guest, "is compressed, which an image with an external data file cannot be"));
        }
        let bits = shape.packed_offset_bits();
        let at = entry.word & ((1 << bits) - 1);
        let more = (entry.word & (PACKED - 1)) >> bits;
        let sectors = HostOffset::new(at).floor(SECTOR_BYTES);
        let end = sectors.plus((more + 1) * SECTOR_BYTES);
        if at >= 1 << 56 {
            return Err(wrong(guest, &format!("points to compressed bytes at 0x{at:x}, past 64 PiB")));
        }
        let held = Held::Packed(HostRange::between(HostOffset::new(at), end));
        Ok(Self { held, data: shape.all(), zero: 0 })
    }

    /// Returns the entry as it is stored.
    pub(super) fn encode(self, shape: Shape) -> Entry {
        let word = match self.held {
            Held::Nowhere => 0,
            Held::Plain { host, is_own } => host.bytes() | if is_own { COPIED } else { 0 },
            Held::Packed(at) => {
                let more = (at.end().bytes() - 1) / SECTOR_BYTES - at.start.bytes() / SECTOR_BYTES;
                return Entry {
                    word: PACKED | more << shape.packed_offset_bits() | at.start.bytes(),
                    bits: 0,
                };
            }
        };
        if shape.geometry.is_extended {
            Entry { word, bits: u64::from(self.data) | u64::from(self.zero) << 32 }
        } else {
            Entry { word: word | u64::from(self.zero), bits: 0 }
        }
    }

    /// Returns what is read in unit `index`, and how many units from there on read alike.
    pub(super) fn run(self, shape: Shape, index: u32) -> (Unit, u32) {
        let (data, zero) = (self.data >> index, self.zero >> index);
        let (unit, alike) = match () {
            () if data & 1 != 0 => (Unit::Data, data.trailing_ones()),
            () if zero & 1 != 0 => (Unit::Zero, zero.trailing_ones()),
            () => (Unit::Absent, (data | zero).trailing_zeros()),
        };
        (unit, alike.min(shape.units() - index))
    }

    /// Returns the host cluster if it may be written in place.
    pub(super) const fn own(self) -> Option<HostOffset> {
        match self.held {
            Held::Plain { host, is_own: true } => Some(host),
            _ => None,
        }
    }
}

const fn low(bits: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
    {
        bits as u32
    }
}

/// Reports what is wrong with the L2 entry of a guest cluster.
pub(super) fn wrong(guest: GuestOffset, why: &str) -> Error {
    Error::corrupt(format!("L2 entry for guest byte 0x{guest:x} {why}"))
}

/// Returns where the L2 table of L1 entry number `index` is, and whether it may be written in place.
pub(super) fn table(shape: Shape, word: u64, index: u64) -> Result<Option<(HostOffset, bool)>> {
    let at = HostOffset::new(word & OFFSET);
    if at.bytes() == 0 {
        return Ok(None);
    }
    if !at.bytes().is_multiple_of(shape.cluster()) {
        let why = format!("L1 entry {index} points to 0x{at:x}, not the start of a cluster");
        return Err(Error::corrupt(why));
    }
    Ok(Some((at, !Guard::SharedTable.trips(word & COPIED == 0))))
}

/// Returns the L1 entry for an L2 table that nothing else refers to.
pub(super) const fn own_table(at: HostOffset) -> u64 {
    at.bytes() | COPIED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(is_extended: bool) -> Shape {
        let geometry = Geometry { version: 3, cluster_bits: 16, refcount_order: 4, is_extended };
        Shape { geometry, is_external: false }
    }

    fn guest(at: u64) -> GuestOffset {
        GuestOffset::new(at)
    }

    #[test]
    fn an_entry_survives_a_round_trip() {
        let packed = HostRange::between(HostOffset::new(0x5_0234), HostOffset::new(0x5_0e00));
        let own = Held::Plain { host: HostOffset::new(0x7_0000), is_own: true };
        for extended in [false, true] {
            let shape = shape(extended);
            for cluster in [
                Cluster::ABSENT,
                Cluster { held: Held::Nowhere, data: 0, zero: 1 },
                Cluster { held: own, data: 0, zero: shape.all() },
                Cluster { held: own, data: shape.all(), zero: 0 },
                Cluster { held: Held::Packed(packed), data: shape.all(), zero: 0 },
            ] {
                let entry = cluster.encode(shape);
                assert_eq!(Cluster::decode(shape, entry, guest(0)).unwrap(), cluster, "{entry:x?}");
            }
        }
    }

    #[test]
    fn subclusters_run_as_their_bits_say() {
        let host = HostOffset::new(0x1_0000);
        let cluster = Cluster { held: Held::Plain { host, is_own: true }, data: 0xff00, zero: 0xf0 };
        let runs: Vec<_> = [0, 4, 8, 12, 16, 31].map(|i| cluster.run(shape(true), i)).into();
        let (absent, zero, data) = (Unit::Absent, Unit::Zero, Unit::Data);
        assert_eq!(runs, [(absent, 4), (zero, 4), (data, 8), (data, 4), (absent, 16), (absent, 1)]);
        assert_eq!(shape(true).mask(guest(0x1_0800).range(0x800)), 0b10);
        assert_eq!(shape(true).mask(guest(0x1_0000).range(0x1_0000)), u32::MAX);
        assert_eq!(shape(true).mask(guest(0x1_f7ff).range(2)), 0xc000_0000);
    }

    #[test]
    fn a_contradiction_is_corrupt() {
        let old = Geometry { version: 2, ..shape(false).geometry };
        let v2 = Shape { geometry: old, is_external: false };
        let external = Shape { is_external: true, ..shape(false) };
        let word = |word| Entry { word, bits: 0 };
        for (shape, entry) in [
            (shape(false), word(0x1_0200)),
            (v2, word(1)),
            (external, word(COPIED | 0x1_0000)),
            (external, word(PACKED | 0x1_0000)),
            (shape(true), Entry { word: 0, bits: 1 }),
            (shape(true), Entry { word: 0x1_0000, bits: 1 << 32 | 1 }),
        ] {
            let error = Cluster::decode(shape, entry, guest(0x2_0000)).unwrap_err();
            assert!(error.to_string().contains("guest byte 0x20000"), "{error}");
        }
        assert!(table(shape(false), 0x1_0200, 3).unwrap_err().to_string().contains("L1 entry 3"));
    }
}
