//! Content IDs: the name of what a guest would read. Pure; no I/O.
//!
//! A [`Tree`] hashes a view in leaves of [`LEAF_BYTES`]; its root and the view's size give the
//! [`ContentId`]. Two views with the same size and bytes have the same ID, whatever the formats, cluster
//! sizes and chains behind them. Zero leaves cost nothing, so that empty space is free at any size, and a
//! child's tree is its parent's with the changed leaves replaced.
//!
//! Version 1 is fixed to the byte by `content-id` in ARCHITECTURE.md ("The tree"); the test vectors there
//! are tests here. A change of any byte of the encoding is a new version with new contexts.
#![forbid(unsafe_code)]

mod hash;
mod id;
mod stored;
mod tree;

pub use hash::{Digest, LEAF_BYTES, leaf};
pub use id::{ContentId, IdPrefix};
pub use tree::{Tree, diff};

#[cfg(test)]
mod tests;
