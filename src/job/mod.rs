//! Layer 6: jobs that reshape chains.
#![forbid(unsafe_code)]

mod progress;
pub mod rebase;

pub use progress::{Progress, State};
