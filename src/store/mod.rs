//! Layer 3: places that hold images.
#![forbid(unsafe_code)]

mod draft;
mod journal;

pub use draft::{Draft, Publish};
pub use journal::{Fold, FoldMode, Journal, Position};

/// The folder, beside images, that holds what is known of them and has no place in them.
pub const FOLDER: &str = ".dchain";
