//! Layer 3: places that hold images.
#![forbid(unsafe_code)]

mod draft;

pub use draft::{Draft, Publish};
