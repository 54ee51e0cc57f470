//! One open qcow2 image: what is kept of it in memory, and its face as an [`Image`].
//!
//! Locks, in the order in which they are taken: a *claim* on guest clusters (`claim.rs`), the header, the
//! state. The header's lock is also the right to write tables and the header into the file. The state's
//! shared side is held while data is read, or written in place; so whoever holds its exclusive side knows
//! that nobody uses a host offset that was looked up before.

use super::{
    change, details,
    entry::Shape,
    feature,
    header::{Compression, Header},
    pages::Pages,
    tables::{Tables, Target, read_words},
};
use crate::{
    base::{Error, GuestOffset, GuestRange, HostOffset, Result, error::InFile},
    format::{Below, Details, Format, Image, ParentName, Parts, StoredRecord},
    io::{File, Kept, Moved},
    map::Extent,
};
use parking_lot::{Mutex, RwLock};
use std::{collections::BTreeSet, collections::HashSet, sync::Arc};

/// How much of the L2 tables and refcount blocks is kept in memory.
const CACHE_BYTES: u64 = 32 << 20;

/// What changes while the image is open.
#[derive(Debug)]
pub(super) struct State {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// L1 and L2.
    pub(super) tables: Tables,
}

/// An open qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    pub(super) file: Arc<dyn File>,
    pub(super) data_file: Option<Arc<dyn File>>,
    pub(super) shape: Shape,
    pub(super) compression: Compression,
    pub(super) is_writable: bool,
    pub(super) header: Mutex<Header>,
    pub(super) state: RwLock<State>,
}

impl Qcow2Image {
    /// Opens the image in `file`, and its external data file through `parts`.
    pub(super) fn open(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Self> {
        let path = file.path().to_path_buf();
        Self::open_parts(file, is_writable, parts).in_file(&path)
    }

    fn open_parts(file: Arc<dyn File>, is_writable: bool, parts: &dyn Parts) -> Result<Self> {
        let header = Header::read(&*file)?;
        let shape = Shape { geometry: header.geometry, is_external: header.has(feature::EXTERNAL_DATA) };
        let data_file = if shape.is_external {
            let missing = || Error::corrupt("uses an external data file and does not name it");
            Some(parts.open_part(header.data_file_name().ok_or_else(missing)?)?)
        } else {
            None
        };
        let tables = Tables {
            shape,
            image: Target::new(file.clone())?,
            data: data_file.clone().map(Target::new).transpose()?,
            l1: read_words(&*file, "L1 table", header.l1.at, header.l1.entries)?,
            l1_at: header.l1.at,
            l1_changed: BTreeSet::new(),
            unreached: HashSet::new(),
            pages: Pages::new(shape.cluster(), CACHE_BYTES),
        };
        let state = RwLock::new(State { size: header.disk_bytes, tables });
        let compression = header.compression;
        Ok(Self { file, data_file, shape, compression, is_writable, header: Mutex::new(header), state })
    }

    /// Refuses a range that is not on the disk.
    pub(super) fn check_range(&self, range: GuestRange) -> Result<()> {
        let size = self.state.read().size;
        if range.start.bytes().checked_add(range.bytes).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let what = format!("{} bytes at 0x{:x}: past the disk's end (0x{size:x})", range.bytes, range.start);
        Err(Error::invalid(what))
    }

    /// Refuses to change an image that was opened for reading.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.is_writable { Ok(()) } else { Err(Error::invalid("is open for reading only")) }
    }
}

impl Image for Qcow2Image {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn size(&self) -> u64 {
        self.state.read().size
    }

    fn unit(&self) -> u64 {
        self.shape.unit()
    }

    fn parent(&self) -> Option<ParentName> {
        self.header.lock().parent()
    }

    fn details(&self) -> Result<Details> {
        details::read(&*self.file, &self.header.lock())
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        [Some(&self.file), self.data_file.as_ref()].into_iter().flatten().cloned().collect()
    }

    fn data_file(&self) -> Arc<dyn File> {
        self.data_file.as_ref().unwrap_or(&self.file).clone()
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        self.map_range(range, out).in_file(self.file.path())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        self.read_range(at, buf, below).in_file(self.file.path())
    }

    fn write(&self, _at: GuestOffset, _buf: &[u8], _below: &dyn Below) -> Result<()> {
        Err(Error::unsupported("writing is not built yet").path(self.file.path()))
    }

    fn write_from(
        &self,
        _range: GuestRange,
        _source: &dyn File,
        _from: HostOffset,
        _below: &dyn Below,
    ) -> Result<Moved> {
        Err(Error::unsupported("writing is not built yet").path(self.file.path()))
    }

    fn zero(&self, _range: GuestRange, _kept: Kept, _below: &dyn Below) -> Result<()> {
        Err(Error::unsupported("writing is not built yet").path(self.file.path()))
    }

    fn flush(&self) -> Result<()> {
        self.check_writable().in_file(self.file.path())
    }

    fn resize(&self, _bytes: u64, _below: &dyn Below) -> Result<()> {
        Err(Error::unsupported("writing is not built yet").path(self.file.path()))
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        self.check_writable().in_file(self.file.path())?;
        change::set_parent(&*self.file, &mut self.header.lock(), parent)
    }

    fn record(&self) -> Result<Option<StoredRecord>> {
        Ok(change::record(&self.header.lock()))
    }

    fn set_record(&self, record: Option<&[u8]>) -> Result<bool> {
        self.check_writable().in_file(self.file.path())?;
        change::set_record(&*self.file, &mut self.header.lock(), record)
    }
}
