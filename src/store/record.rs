//! What a layer says about itself and about its parent, as it is stored inside an image.
//!
//! Three parts, each with a checksum of its own, at places that depend on nothing but the claim's length:
//! a torn write that adds a seal leaves the epoch readable, so that children still find their parent. The
//! seal's checksum covers the epoch, so that no seal outlives the epoch that it was made for.

use crate::{
    base::{seed, units::index},
    content::ContentId,
    record,
};
use serde::{Deserialize, Serialize};
use std::fmt;

const VERSION: u16 = 1;
const NO_FORMAT: u16 = u16::MAX;

/// What an image says of itself in its format's own way, for the links of its children; it changes when the image is
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// 16 bytes, as they stand in the file (VHDX: the `DataWriteGuid`; VHD: the unique ID).
    Guid([u8; 16]),
    /// VMDK's content ID.
    Cid(u32),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guid(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Cid(cid) => write!(f, "{cid:08x}"),
        }
    }
}

/// 128 random bits that stand for "the bytes have not been changed since".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u128);

impl Epoch {
    /// Wraps the bits of an epoch.
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns an epoch that nobody has seen.
    pub fn fresh() -> Self {
        Self(seed::fresh())
    }

    pub(super) const fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    pub(super) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a frozen layer says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Changes before the layer's bytes do.
    pub epoch: Epoch,
    /// The content ID of the layer's view, if it has been computed in this epoch.
    pub sealed: Option<ContentId>,
}

/// What a child says about its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The parent's epoch when the child was made, or last joined to it.
    pub parent_epoch: Epoch,
    /// The parent's content ID, if it was known for certain.
    pub parent_id: Option<ContentId>,
    /// The parent's name as the child's header has it; the claim holds while it still has.
    pub name: Vec<u8>,
    /// The parent's format as the child's header has it; likewise.
    pub format: Option<String>,
}

/// All that is recorded of a layer: a frozen child has both parts, a head with no parent has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The layer's own record, if it is frozen.
    pub frozen: Option<Record>,
    /// The claim about its parent, if one was made.
    pub claim: Option<Claim>,
}

record! {
    /// Whether the layer is frozen, and its epoch.
    struct FrozenPart: LittleEndian, 24 bytes {
        /// 1.
        0 => version: u16,
        /// 1 if frozen.
        2 => is_frozen: u16,
        /// Zeros unless frozen.
        4 => epoch: bytes 16,
        /// CRC-32C of the bytes before it.
        20 => checksum: u32,
    }
}

record! {
    /// The seal; there even when the layer has none, so that adding it moves nothing.
    struct SealPart: LittleEndian, 40 bytes {
        /// 1 if sealed.
        0 => is_sealed: u32,
        /// Zeros unless sealed.
        4 => id: bytes 32,
        /// CRC-32C of the epoch and of the bytes before it.
        36 => checksum: u32,
    }
}

record! {
    /// The claim, if the layer has one; then the name, the format, and a CRC-32C of all that.
    struct ClaimPart: LittleEndian, 56 bytes {
        /// The parent's epoch.
        0 => epoch: bytes 16,
        /// 1 if the parent's ID is known.
        16 => has_id: u32,
        /// The parent's content ID, or zeros.
        20 => id: bytes 32,
        /// Length of the name.
        52 => name_bytes: u16,
        /// Length of the format's name; 0xffff if the header states none.
        54 => format_bytes: u16,
    }
}

impl LayerRecord {
    /// Returns whether there is nothing to store.
    pub const fn is_empty(&self) -> bool {
        self.frozen.is_none() && self.claim.is_none()
    }

    /// Returns the stored form; a claim whose name is longer than a format can hold is left out.
    pub fn encode(&self) -> Vec<u8> {
        let epoch = self.frozen.map_or([0; 16], |record| record.epoch.to_bytes());
        let is_frozen = u16::from(self.frozen.is_some());
        let frozen = FrozenPart { version: VERSION, is_frozen, epoch, checksum: 0 };
        let sealed = self.frozen.and_then(|record| record.sealed);
        let id = sealed.map_or([0; 32], |id| *id.bytes());
        let seal = SealPart { is_sealed: u32::from(sealed.is_some()), id, checksum: 0 };
        let mut out = FrozenPart { checksum: frozen.sum(), ..frozen }.to_bytes().to_vec();
        out.extend(SealPart { checksum: seal.sum(epoch), ..seal }.to_bytes());
        if let Some(claim) = self.claim.as_ref().and_then(encode_claim) {
            out.extend(&claim);
            out.extend(crc32c::crc32c(&claim).to_le_bytes());
        }
        out
    }

    /// Returns what can be read of a stored form; a part that was torn or is of a later version is absent.
    pub fn decode(bytes: &[u8]) -> Self {
        let Some((frozen, rest)) = bytes.split_first_chunk() else { return Self::default() };
        let frozen = FrozenPart::parse(frozen);
        let Some((seal, rest)) = rest.split_first_chunk() else { return Self::default() };
        let seal = SealPart::parse(seal);
        let is_frozen = frozen.version == VERSION && frozen.checksum == frozen.sum() && frozen.is_frozen == 1;
        let is_sealed = seal.checksum == seal.sum(frozen.epoch) && seal.is_sealed == 1;
        let record = Record {
            epoch: Epoch::from_bytes(frozen.epoch),
            sealed: is_sealed.then(|| ContentId::new(seal.id)),
        };
        Self { frozen: is_frozen.then_some(record), claim: decode_claim(rest) }
    }
}

impl FrozenPart {
    fn sum(self) -> u32 {
        let [bytes @ .., _, _, _, _] = self.to_bytes();
        crc32c::crc32c(&bytes)
    }
}

impl SealPart {
    fn sum(self, epoch: [u8; 16]) -> u32 {
        let [bytes @ .., _, _, _, _] = self.to_bytes();
        crc32c::crc32c_append(crc32c::crc32c(&epoch), &bytes)
    }
}

fn encode_claim(claim: &Claim) -> Option<Vec<u8>> {
    let format = claim.format.as_deref().map(str::as_bytes);
    let part = ClaimPart {
        epoch: claim.parent_epoch.to_bytes(),
        has_id: u32::from(claim.parent_id.is_some()),
        id: claim.parent_id.map_or([0; 32], |id| *id.bytes()),
        name_bytes: u16::try_from(claim.name.len()).ok()?,
        format_bytes: format.map_or(Ok(NO_FORMAT), |f| u16::try_from(f.len())).ok()?,
    };
    Some([&part.to_bytes(), claim.name.as_slice(), format.unwrap_or_default()].concat())
}

fn decode_claim(bytes: &[u8]) -> Option<Claim> {
    let (part, names) = bytes.split_first_chunk()?;
    let part = ClaimPart::parse(part);
    let has_format = part.format_bytes != NO_FORMAT;
    let format_bytes = if has_format { index(u64::from(part.format_bytes)) } else { 0 };
    let (name, rest) = names.split_at_checked(index(u64::from(part.name_bytes)))?;
    let (format, rest) = rest.split_at_checked(format_bytes)?;
    let covered = bytes.get(..bytes.len() - rest.len())?;
    if rest.first_chunk().copied().map(u32::from_le_bytes) != Some(crc32c::crc32c(covered)) {
        return None;
    }
    Some(Claim {
        parent_epoch: Epoch::from_bytes(part.epoch),
        parent_id: (part.has_id == 1).then(|| ContentId::new(part.id)),
        name: name.to_vec(),
        format: if has_format { Some(String::from_utf8(format.to_vec()).ok()?) } else { None },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> impl Strategy<Value = Option<ContentId>> {
        prop::option::of(any::<[u8; 32]>().prop_map(ContentId::new))
    }

    prop_compose! {
        fn claims()(
            epoch in any::<u128>(), parent_id in id(),
            name in prop::collection::vec(any::<u8>(), 0..1024),
            format in prop::option::of("[a-z0-9]{0,8}"),
        ) -> Claim {
            Claim { parent_epoch: Epoch::new(epoch), parent_id, name, format }
        }
    }

    prop_compose! {
        fn layers()(
            frozen in prop::option::of((any::<u128>(), id())), claim in prop::option::of(claims()),
        ) -> LayerRecord {
            let frozen = frozen.map(|(epoch, sealed)| Record { epoch: Epoch::new(epoch), sealed });
            LayerRecord { frozen, claim }
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_stored(layer in layers()) {
            prop_assert_eq!(LayerRecord::decode(&layer.encode()), layer);
        }

        #[test]
        fn a_torn_record_shows_the_old_part_the_new_part_or_none(
            old in layers(), new in layers(), cut in any::<prop::sample::Index>(),
        ) {
            let (before, after) = (old.encode(), new.encode());
            let cut = cut.index(after.len());
            let mut torn = after[..cut].to_vec();
            torn.extend(before.get(cut..).unwrap_or_default());
            let seen = LayerRecord::decode(&torn);
            let epochs = [&old, &new].map(|l| l.frozen.map(|r| r.epoch));
            let epoch = seen.frozen.map(|r| r.epoch);
            prop_assert!(epoch.is_none() || epochs.contains(&epoch));
            if let Some(record) = seen.frozen.filter(|r| r.sealed.is_some()) {
                prop_assert!(old.frozen == Some(record) || new.frozen == Some(record), "a seal of another epoch");
            }
            prop_assert!(seen.claim.is_none() || seen.claim == old.claim || seen.claim == new.claim);
        }
    }

    #[test]
    fn a_torn_seal_leaves_the_epoch_and_the_claim() {
        let epoch = Epoch::new(7);
        let claim =
            Claim { parent_epoch: Epoch::new(9), parent_id: None, name: b"base".to_vec(), format: None };
        let record =
            |sealed| LayerRecord { frozen: Some(Record { epoch, sealed }), claim: Some(claim.clone()) };
        let (open, sealed) = (record(None), record(Some(ContentId::new([3; 32]))));
        let (before, after) = (open.encode(), sealed.encode());
        for cut in 0..=after.len() {
            let torn = [&after[..cut], &before[cut..]].concat();
            let seen = LayerRecord::decode(&torn);
            assert!(seen == open || seen == sealed, "cut at {cut}: {seen:?}");
        }
    }

    #[test]
    fn garbage_is_no_record() {
        for bytes in [&[][..], &[0; 23], &[0; 64], &[0xff; 200]] {
            assert!(LayerRecord::decode(bytes).is_empty());
        }
    }
}
