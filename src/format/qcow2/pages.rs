//! What is cached of a qcow2 image's tables.

use crate::format::pages;

pub(super) use pages::{Sector, WRITERS_LEAST, runs};

/// What a page is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An L2 table.
    Table,
    /// A refcount block.
    Refcounts,
}

/// Pages of L2 tables and refcount blocks.
pub(super) type Pages = pages::Pages<Kind>;
