//! All that is read of a file before its blocks: headers, log, regions, metadata.

use super::{
    MAGIC,
    bytes::Source,
    header::Header,
    metadata::Metadata,
    region::{Regions, entries_in},
    replay::{Log, Replay},
};
use crate::{
    base::{Error, HostOffset, Result, error::InFile},
    io::File,
};

/// What a file says of itself, its log taken into account.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) header: Header,
    pub(super) regions: Regions,
    pub(super) metadata: Metadata,
    /// What the log still has to put in its place.
    pub(super) replay: Option<Replay>,
    /// Why what the log had to put in its place is not known.
    pub(super) lost: Option<String>,
}

impl Layout {
    /// Reads the file; nothing is written. `Corrupt` and `Unsupported` name the field; `Corrupt`, too, where what the log
    /// had to say is lost.
    pub(super) fn read(file: &dyn File) -> Result<Self> {
        let mut layout = Self::read_as_is(file)?;
        layout.lost.take().map_or(Ok(layout), |why| Err(Error::corrupt(why).path(file.path())))
    }

    /// The same, without what the log had to say where that is lost.
    pub(super) fn read_as_is(file: &dyn File) -> Result<Self> {
        Self::read_parts(file).in_file(file.path())
    }

    fn read_parts(file: &dyn File) -> Result<Self> {
        let mut magic = [0; MAGIC.len()];
        file.read_at(HostOffset::new(0), &mut magic)?;
        if magic != MAGIC {
            return Err(Error::corrupt("is no VHDX image: the signature at 0x0 is missing"));
        }
        let header = Header::read(file)?;
        let (replay, lost) = match Replay::find(file, &header)? {
            Log::Empty => (None, None),
            Log::Full(replay) => (Some(replay), None),
            Log::Lost(why) => (None, Some(why)),
        };
        let source = Source { file, replay: replay.as_ref() };
        let regions = Regions::read(source, header.log)?;
        let metadata = Metadata::read(source, regions.metadata)?;
        let entries = metadata.geometry.entries(metadata.size, metadata.has_parent());
        let held = entries_in(regions.bat.bytes);
        if entries > held {
            let what = format!("block allocation table: has room for {held} entries of {entries}");
            return Err(Error::corrupt(format!("{what} that a disk of 0x{:x} bytes needs", metadata.size)));
        }
        Ok(Self { header, regions, metadata, replay, lost })
    }
}
