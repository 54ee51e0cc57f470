//! Every integration test, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

mod chain;
mod check;
mod consolidate;
mod copy;
mod diff;
mod foreign;
mod lineage;
mod oracles;
mod qcow2_create;
mod reshape;
