//! Where a stream that was cut off goes on: a layer's content ID, and how far it is.

use crate::{
    base::{Error, Result},
    content::{ContentId, LEAF_BYTES},
};
use std::{fmt, str::FromStr};

/// What the receiver of a stream that was cut off says to its sender; shown as `c1:...@LEAF`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What the layer will show.
    pub id: ContentId,
    /// The guest offset before which the receiver has all, a multiple of a leaf (64 KiB).
    pub from: u64,
}

impl Token {
    /// Says that all before `done_bytes` is there, in whole leaves.
    pub const fn new(id: ContentId, done_bytes: u64) -> Self {
        Self { id, from: done_bytes - done_bytes % LEAF_BYTES }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.from / LEAF_BYTES)
    }
}

impl serde::Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("'{text}' is no token of `dchain receive --state`"));
        let (id, leaf) = text.split_once('@').ok_or_else(wrong)?;
        let leaf: u64 = leaf.parse().map_err(|_| wrong())?;
        let from = leaf.checked_mul(LEAF_BYTES).ok_or_else(wrong)?;
        Ok(Self { id: id.parse()?, from })
    }
}
