//! VMDK: VMware's disks, of hosted products and of ESX (VMware, "Virtual Disk Format 5.0"; seSparse as qemu's
//! `block/vmdk.c` has it, since no specification is public).
//!
//! A disk is a *descriptor* (text: identities, what it lies on, its extents) and *extents*: flat ones are the disk's bytes
//! as they are, sparse ones have a directory, tables and grains. The descriptor stands inside the only extent, or is a
//! file of its own.

mod check;
mod create;
mod descriptor;
mod desk;
mod details;
mod flush;
mod image;
mod layout;
mod mark;
mod open;
mod options;
mod packing;
mod read;
mod resize;
mod space;
mod stream;
mod tables;
mod write;
mod zero;

pub use options::OPTIONS;

use super::{Checked, Creation, Image, Measure, Parts, Peek, Repair};
use crate::{
    base::{HostOffset, Result, error::InFile},
    io::File,
};
use open::Head;
use std::sync::Arc;

/// Returns whether the file starts as an extent or a descriptor does.
pub fn is_there(file: &dyn File) -> Result<bool> {
    let mut start = [0; 32];
    file.read_at(HostOffset::new(0), &mut start)?;
    Ok(layout::is_magic(&start) || start.starts_with(descriptor::SIGNATURE))
}

/// Returns whether the file is a piece of an image, and none itself: a sparse extent without a descriptor of its own. qemu
/// leaves room for one.
pub fn is_piece(file: &dyn File) -> Result<bool> {
    let Some(place) = layout::Layout::read(file)?.map(|layout| layout.descriptor) else { return Ok(false) };
    let mut first = [0];
    place.map_or(Ok(()), |place| file.read_at(place.start, &mut first))?;
    Ok(first == [0])
}

/// Opens a VMDK, with the files of its extents.
pub fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    Ok(Arc::new(open::open(file, is_writable, parts)?))
}

/// Makes a VMDK, and opens it for writing.
pub fn create(file: Arc<dyn File>, creation: &Creation, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    create::create(file, creation, parts)
}

/// Sums up what a new image needs.
pub fn measure(creation: &Creation) -> Result<Measure> {
    options::measure(creation)
}

/// Checks a VMDK, and repairs it as far as `repair` allows.
pub fn check(file: &Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    check::check(file, repair, parts)
}

/// Reads an image's header and descriptor.
pub fn peek(file: &dyn File) -> Result<Peek> {
    let peek = || {
        Ok(match Head::read(file)? {
            Head::Sparse(layout, text) => Peek {
                size: layout.bytes,
                parent: text.as_ref().and_then(open::parent),
                data_names: Vec::new(),
            },
            Head::Text(text) => {
                let extents = text.extents()?;
                let size = extents.iter().map(|extent| extent.bytes).sum();
                let names = extents.into_iter().map(|extent| extent.name).filter(|name| !name.is_empty());
                let data_names = names.flat_map(|name| [text.in_utf8(&name), Some(name)]).flatten().collect();
                Peek { size, parent: open::parent(&text), data_names }
            }
        })
    };
    peek().in_file(file.path())
}
