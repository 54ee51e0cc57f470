//! One entry of the block allocation table (MS-VHDX 2.5.1).

use super::geometry::MIB;
use crate::base::HostOffset;

const STATE: u64 = 0b111;
/// The bits that hold a place, in MiB.
const PLACE: u64 = !(MIB - 1);

/// What is known of a payload block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Nothing: a parent has it, or it is zeros.
    Absent,
    /// Zeros, whatever lies below; also undefined and unmapped blocks, which may show anything.
    Zero,
    /// All of it is in the file.
    Full(HostOffset),
    /// The sectors whose bits are set are in the file; a parent has the others.
    Partial(HostOffset),
    /// A state that the specification does not know.
    Unknown(u64),
}

impl Block {
    /// Reads an entry.
    pub(super) const fn decode(word: u64) -> Self {
        let place = HostOffset::new(word & PLACE);
        match word & STATE {
            0 => Self::Absent,
            // 5 was "unmapped" in version 0.95 of the specification.
            1 | 2 | 3 | 5 => Self::Zero,
            6 => Self::Full(place),
            7 => Self::Partial(place),
            state => Self::Unknown(state),
        }
    }

    /// Returns the entry; its place is a multiple of 1 MiB.
    pub(super) const fn encode(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Zero => 2,
            Self::Full(place) => place.bytes() | 6,
            Self::Partial(place) => place.bytes() | 7,
            Self::Unknown(state) => state,
        }
    }

    /// Returns where the block is in the file.
    pub(super) const fn place(self) -> Option<HostOffset> {
        match self {
            Self::Full(place) | Self::Partial(place) => Some(place),
            _ => None,
        }
    }
}

/// Returns where a sector bitmap block is, by its entry; `Err` with the state for one that is unknown.
pub(super) const fn bitmap_place(word: u64) -> Result<Option<HostOffset>, u64> {
    match word & STATE {
        0 => Ok(None),
        6 => Ok(Some(HostOffset::new(word & PLACE))),
        state => Err(state),
    }
}
