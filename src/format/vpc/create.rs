//! Making a new image, each part written once. Nobody knows the file yet, so no order is kept; one flush ends it.

use super::{
    bat,
    footer::{FOOTER_BYTES, Footer, Kind},
    header::{HEADER_BYTES, Header, unique_id},
    options::Options,
    parent,
};
use crate::{
    base::{
        Error, HostOffset, Result,
        units::{count, index},
    },
    format::Creation,
    io::File,
};

/// What a table is written in.
const PIECE_BYTES: u64 = 1 << 20;
/// Room that a child leaves for another header, so that it can get another parent in place.
const ROOM_BYTES: u64 = 4096;

/// Makes a new image in an empty file; durable once that is flushed.
pub(super) fn create(file: &dyn File, creation: &Creation) -> Result<()> {
    let options = Options::parse(creation)?;
    if file.is_device() {
        return Err(Error::unsupported("a VHD ends with its footer, so that a device cannot be one"));
    }
    let mut footer = Footer::new(options.kind, creation.size);
    if options.is_by_geometry {
        // To readers that know this name the geometry is the size.
        footer.creator_app = *b"qemu";
    }
    file.set_bytes(0)?;
    if options.kind == Kind::Fixed {
        return file.write_at(HostOffset::new(creation.size), &footer.signed());
    }
    let header_at = HostOffset::new(FOOTER_BYTES);
    let names_at = header_at.plus(HEADER_BYTES);
    let names = creation.parent.as_ref().map(|name| parent::locators(name, names_at)).transpose()?;
    let table_at = names
        .as_ref()
        .map_or(names_at, |names| names_at.plus(count(names.bytes.len())).ceil(ROOM_BYTES).plus(ROOM_BYTES));
    let entries = options.shape.check_entries(creation.size)?;
    let mut fields = Header::new_fields(options.shape, entries, table_at);
    let mut bytes = Vec::new();
    if let Some(names) = names {
        (fields.parent_name, fields.locators) = (names.parent_name, names.locators);
        fields.parent_unique_id = unique_id(creation.parent.as_ref());
        bytes = names.bytes;
    }
    footer.data_offset = header_at.bytes();
    let table = table_at.range(bat::table_bytes(u64::from(entries)));
    let unused = vec![0xff; index(table.bytes.min(PIECE_BYTES))];
    for piece in table.pieces(PIECE_BYTES) {
        file.write_at(piece.start, unused.get(..index(piece.bytes)).unwrap_or_default())?;
    }
    file.write_at(table.end(), &footer.signed())?;
    file.write_at(HostOffset::new(0), &[footer.signed().as_slice(), &fields.signed(), &bytes].concat())
}
