//! Layer 6: jobs that reshape chains. Each folder is a pure machine that decides (`machine.rs`) and a runner
//! that performs (`run.rs`).
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod compact;
pub mod consolidate;
pub mod convert;
pub mod copy;
pub mod create;
#[cfg(test)]
mod cuts;
pub mod diff;
pub mod find;
pub mod lint;
pub mod live;
pub mod measure;
pub mod migrate;
pub mod ova;
pub mod overwrite;
mod own;
mod progress;
pub mod rebase;
pub mod relink;
pub mod remove;
pub mod repair;
pub mod resize;
pub mod seal;
pub mod snapshot;
pub mod stream;
pub mod unshare;
pub mod verify;

pub use progress::{Manners, Progress, Recently, State};
