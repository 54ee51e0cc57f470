//! The three hashes of the tree: leaf, node and view, each under a context of its own.

use super::ContentId;
use blake3::{
    Hasher,
    hazmat::{ContextKey, HasherExt, hash_derive_key_context},
};
use std::sync::LazyLock;

/// Bytes of the view in one leaf.
pub const LEAF_BYTES: u64 = 65536;

/// Bytes in a hash.
pub(super) const DIGEST_BYTES: usize = 32;

static ZEROS: [u8; 65536] = [0; 65536];
const VERSION: u32 = 1;

// The contexts are hashed once, not for each leaf.
static LEAF: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("deltachain 2026-11-20 leaf v1"));
static NODE: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("deltachain 2026-11-20 node v1"));
static VIEW: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("deltachain 2026-11-20 view v1"));

/// The hash of a leaf or of a node of the tree; 32 zero bytes stand for "all below is zero".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; DIGEST_BYTES]);

impl Digest {
    /// What stands for zeros.
    pub const ZERO: Self = Self([0; DIGEST_BYTES]);

    /// Wraps the bytes of a hash.
    pub const fn new(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the hash.
    pub const fn bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }

    /// Returns its first 16 hex digits.
    pub fn short(&self) -> String {
        let start = self.0.first_chunk().map_or(0, |start| u64::from_be_bytes(*start));
        format!("{start:016x}")
    }

    /// Returns whether this stands for zeros.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// Returns the hash of one leaf: `bytes`, at most [`LEAF_BYTES`] of them, with zeros up to that.
pub fn leaf(bytes: &[u8]) -> Digest {
    let (missing, zeros) = match (ZEROS.get(bytes.len()..), ZEROS.get(..bytes.len())) {
        (Some(missing), Some(zeros)) => (missing, zeros),
        // Longer than a leaf: nothing the tree holds, so it must not pass for a zero leaf either.
        _ => (&[] as &[u8], &[] as &[u8]),
    };
    if bytes == zeros {
        return Digest::ZERO;
    }
    let mut hasher = Hasher::new_from_context_key(&LEAF);
    hasher.update(bytes).update(missing);
    Digest(*hasher.finalize().as_bytes())
}

/// Returns the hash of a node over two children.
pub(super) fn node(left: &Digest, right: &Digest) -> Digest {
    if left.is_zero() && right.is_zero() {
        return Digest::ZERO;
    }
    let mut hasher = Hasher::new_from_context_key(&NODE);
    hasher.update(&left.0).update(&right.0);
    Digest(*hasher.finalize().as_bytes())
}

/// Returns the content ID of a view of `size` bytes (a multiple of 512) with this root.
pub(super) fn view(size: u64, root: &Digest) -> ContentId {
    let mut hasher = Hasher::new_from_context_key(&VIEW);
    hasher.update(&VERSION.to_le_bytes()).update(&size.to_le_bytes()).update(&root.0);
    ContentId::new(*hasher.finalize().as_bytes())
}
