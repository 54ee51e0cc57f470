//! Every integration test, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

mod bad_input;
mod bitmap;
mod chain;
mod chain_commands;
mod check;
mod compact;
mod consolidate;
mod convert;
mod copy;
mod crash;
mod dchain;
mod diff;
mod foreign;
mod fuzz;
mod help;
mod hosts;
mod kill;
mod lineage;
mod lint;
mod locks;
mod manners;
mod matrix;
mod moves;
mod oracles;
mod owner;
mod qcow2_create;
mod qcow2_foreign;
mod raw;
mod relink;
mod repair;
mod reshape;
mod superset;
mod tree;
mod verify;
mod walk;
