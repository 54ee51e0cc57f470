//! Layer 6: jobs that reshape chains.
#![forbid(unsafe_code)]

mod progress;

pub use progress::{Progress, State};
