//! VHD: fixed, dynamic and differencing (Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0). qemu
//! calls it vpc, after Virtual PC.
//!
//! The size of a disk is the footer's current size, or what the geometry gives where the program that made it goes by
//! that. What is made here is never rounded: both say the same, or the geometry says nothing.

mod bat;
mod check;
mod create;
mod fixed;
mod flush;
mod footer;
mod geometry;
mod header;
mod image;
mod locator;
mod marks;
mod options;
mod parent;
mod read;
mod resize;
mod write;
mod zero;

pub use options::OPTIONS;

use super::{Checked, Creation, Details, Format, Identity, Image, Measure, ParentName, Parts, Peek, Repair};
use crate::{
    base::{HostOffset, Result, error::InFile},
    io::File,
};
use footer::{Footer, Footers, Kind};
use header::{Header, Shape};
use std::sync::Arc;

/// Returns whether the file has a footer where a VHD has one.
pub fn is_there(file: &dyn File) -> Result<bool> {
    footer::is_there(file)
}

/// Opens a VHD.
pub fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    let path = file.path().to_path_buf();
    open_kind(file, is_writable, parts).in_file(&path)
}

fn open_kind(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    let footers = Footers::read(&*file)?;
    Ok(match footers.footer.kind()? {
        Kind::Fixed => Arc::new(fixed::FixedImage::open(file, &footers, is_writable, parts)?),
        Kind::Dynamic | Kind::Differencing => {
            Arc::new(image::SparseImage::open(file, &footers, is_writable, parts)?)
        }
    })
}

/// Makes a VHD, and opens it for writing.
pub fn create(file: Arc<dyn File>, creation: &Creation, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    create::create(&*file, creation).in_file(file.path())?;
    open(file, true, parts)
}

/// Sums up what a new image needs.
pub fn measure(creation: &Creation) -> Result<Measure> {
    options::measure(creation)
}

/// Reads an image's footers and header.
pub fn peek(file: &dyn File) -> Result<Peek> {
    let peek = || {
        let footers = Footers::read(file)?;
        let (kind, size) = (footers.footer.kind()?, footers.footer.disk_bytes()?);
        let at = HostOffset::new(footers.footer.data_offset);
        let parent = match kind {
            Kind::Differencing => parent_name(&Header::read(file, (at, size), kind, footers.is_unsigned)?),
            Kind::Fixed | Kind::Dynamic => None,
        };
        Ok(Peek { size, parent, data_names: Vec::new() })
    };
    peek().in_file(file.path())
}

/// Checks a VHD, and repairs it as far as `repair` allows.
pub fn check(file: &Arc<dyn File>, repair: Repair) -> Result<Checked> {
    check::check(file, repair).in_file(file.path())
}

/// Returns the parent that a header names.
fn parent_name(header: &Header) -> Option<ParentName> {
    let names = header.names.as_ref()?;
    let (first, others) = names.names.split_first()?;
    let format = names.format.as_deref().unwrap_or(Format::Vpc.name());
    let id = header.fields.parent_unique_id;
    Some(ParentName {
        others: others.to_vec(),
        identity: (id != [0; 16]).then_some(Identity::Guid(id)),
        ..ParentName::new(first.clone(), Some(format.to_owned()))
    })
}

/// Returns what `info` shows.
fn details(footer: &Footer, shape: Option<Shape>) -> Details {
    let kind = footer.kind().map_or("unknown", Kind::name);
    let creator = String::from_utf8_lossy(&footer.creator_app);
    let id = Identity::Guid(footer.unique_id).to_string();
    Details {
        cluster_bytes: shape.map(Shape::block),
        specific: vec![
            ("subformat".to_owned(), kind.into()),
            ("creator".to_owned(), creator.trim_end_matches(['\0', ' ']).into()),
            ("unique-id".to_owned(), id.into()),
        ],
        ..Details::default()
    }
}
