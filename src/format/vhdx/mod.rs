//! VHDX, version 1: fixed, dynamic and differencing disks of Hyper-V ([MS-VHDX] is the specification; its sections are
//! named where a fact comes from one).
//!
//! ```text
//! | header section | log | metadata | block allocation table | payload and sector bitmap blocks ... |
//! 0                1 MiB              each in whole MiB, in any order
//! ```
//! Metadata changes go through the log (`session.rs`), which any program replays that knows the format; for who only
//! reads, it is replayed in memory (`replayed.rs`).

mod bits;
mod bytes;
mod change;
mod check;
mod create;
mod details;
mod entry;
mod flush;
mod geometry;
mod header;
mod image;
mod layout;
mod locator;
mod log;
mod metadata;
mod options;
mod read;
mod region;
mod replay;
mod replayed;
mod resize;
mod session;
mod space;
mod state;
mod write;

pub use options::OPTIONS;

/// What every VHDX file begins with (MS-VHDX 2.2.1).
pub const MAGIC: [u8; 8] = *b"vhdxfile";

use super::{Checked, Creation, Image, Measure, Parts, Peek, Repair};
use crate::{
    base::{Result, error::InFile},
    io::File,
};
use layout::Layout;
use locator::Locator;
use std::sync::Arc;

/// Opens a VHDX image.
pub fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    Ok(Arc::new(image::VhdxImage::open(file, is_writable, parts.budget())?))
}

/// Makes a VHDX image, and opens it for writing.
pub fn create(file: Arc<dyn File>, creation: &Creation, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    create::create(&*file, creation).in_file(file.path())?;
    open(file, true, parts)
}

/// Sums up what a new image needs.
pub fn measure(creation: &Creation) -> Result<Measure> {
    create::measure(creation)
}

/// Checks a VHDX image, and repairs it as far as `repair` allows.
pub fn check(file: Arc<dyn File>, repair: Repair) -> Result<Checked> {
    check::check(file, repair)
}

/// Reads what stands before the blocks.
pub fn peek(file: &dyn File) -> Result<Peek> {
    let Layout { metadata, .. } = Layout::read(file)?;
    let parent = metadata.locator.as_ref().map(Locator::parent).transpose().in_file(file.path())?;
    Ok(Peek { size: metadata.size, parent, data_names: Vec::new() })
}
