//! Making a stream (streamOptimized): compressed grains one behind the other, each written once, in the disk's order, so
//! that programs that receive it can take it as it comes; then tables, directory and footer.
//!
//! ```text
//! | header | descriptor | ... | marker, grain | ... | marker, table | ... | marker, directory | marker, footer | end |
//! 0        1            128 (sectors)
//! ```
//! (Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents".) Nobody reads it before it has its footer, so
//! that no order is kept; the first flush writes that, and nothing can be written from there on.

use super::{
    create::{self, DESCRIPTOR, PER_TABLE},
    layout::{AT_END, Coding, FLAG_MARKERS, FLAG_NEWLINES, FLAG_PACKED, HOSTED_MAGIC, Hosted, Layout},
    options::Options,
    packing::{self, MARKER_BYTES, Packed},
};
use crate::{
    base::{
        Budget, Error, GuestOffset, GuestRange, HostOffset, Result,
        error::InFile,
        units::{SECTOR_BYTES, count, index},
    },
    format::{self, Below, Creation, Details, Format, Identity, Image, ParentName, Parts},
    io::{File, Kept, Moved},
    map::{self, Extent, State},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// Where grains begin.
const FIRST_BYTES: u64 = 128 * SECTOR_BYTES;

/// What a marker that is not a grain's says: what follows it.
#[derive(Clone, Copy)]
enum Marker {
    End = 0,
    Table = 1,
    Directory = 2,
    Footer = 3,
}

/// A stream in the making.
#[derive(Debug)]
pub(super) struct StreamImage {
    file: Arc<dyn File>,
    layout: Layout,
    budget: Budget,
    cid: u32,
    written: Mutex<Written>,
}

/// What was written so far.
#[derive(Debug)]
struct Written {
    /// Where the next grain goes.
    end: HostOffset,
    /// The first byte of the disk that can still be written.
    next: u64,
    /// Tables with something in them, by number.
    tables: BTreeMap<u64, Vec<u32>>,
    is_whole: bool,
}

impl StreamImage {
    /// Begins a stream in an empty file.
    pub(super) fn create(
        file: Arc<dyn File>,
        (options, creation): (&Options, &Creation),
        name: Vec<u8>,
        parts: &dyn Parts,
    ) -> Result<Self> {
        let text = create::descriptor(options, creation, &[(creation.size, name)])?;
        let layout = Layout {
            coding: Coding::Packed { has_zeros: false, has_markers: true },
            bytes: creation.size,
            grain: options.grain,
            per_table: PER_TABLE.into(),
            directory: HostOffset::new(0),
            twin: None,
            entries: creation.size.div_ceil(options.grain * u64::from(PER_TABLE)),
            overhead: FIRST_BYTES,
            descriptor: None,
            is_unclean: false,
        };
        file.write_at(HostOffset::new(0), &header(&layout, AT_END).to_bytes())?;
        file.write_at(HostOffset::new(DESCRIPTOR.0 * SECTOR_BYTES), &text)?;
        let cid = super::descriptor::Descriptor::parse(&text)?.cid()?;
        let written =
            Written { end: HostOffset::new(FIRST_BYTES), next: 0, tables: BTreeMap::new(), is_whole: false };
        Ok(Self { file, layout, budget: parts.budget(), cid, written: Mutex::new(written) })
    }

    fn refuse<T>(&self, what: &str) -> Result<T> {
        Err(Error::unsupported(format!("is a stream in the making, which {what}")).path(self.file.path()))
    }

    /// Returns where the grain of a guest byte is.
    fn place(&self, at: GuestOffset) -> Option<HostOffset> {
        let nth = at.bytes() / self.layout.grain;
        let written = self.written.lock();
        let sector =
            *written.tables.get(&(nth / u64::from(PER_TABLE)))?.get(index(nth % u64::from(PER_TABLE)))?;
        (sector != 0).then(|| HostOffset::new(u64::from(sector) * SECTOR_BYTES))
    }

    /// Appends a packed grain.
    fn append(&self, at: GuestOffset, packed: &[u8]) -> Result<()> {
        let mut written = self.written.lock();
        let grain = self.layout.grain;
        if written.is_whole
            || at.bytes() < written.next
            || at != at.floor(grain)
            || at.bytes() >= self.layout.bytes
        {
            return self.refuse("is written once, grain by grain, from its start to its end");
        }
        let size = u32::try_from(packed.len()).map_err(|_| Error::invalid("a grain of 4 GiB"))?;
        let full = |_| Error::invalid("the stream is full: no entry leads past 2 TiB");
        let sector = u32::try_from(written.end.bytes() / SECTOR_BYTES).map_err(full)?;
        let mut bytes = Vec::with_capacity(packed.len() + index(SECTOR_BYTES + MARKER_BYTES));
        bytes.extend_from_slice(&(at.bytes() / SECTOR_BYTES).to_le_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(packed);
        bytes.resize(bytes.len().next_multiple_of(index(SECTOR_BYTES)), 0);
        self.file.write_at(written.end, &bytes)?;
        written.end = written.end.plus(count(bytes.len()));
        written.next = at.bytes() + grain;
        let nth = at.bytes() / grain;
        let table = written
            .tables
            .entry(nth / u64::from(PER_TABLE))
            .or_insert_with(|| vec![0; index(PER_TABLE.into())]);
        if let Some(entry) = table.get_mut(index(nth % u64::from(PER_TABLE))) {
            *entry = sector;
        }
        Ok(())
    }

    /// Writes what comes behind the grains, once.
    fn finish(&self) -> Result<()> {
        let mut written = self.written.lock();
        if written.is_whole {
            return Ok(());
        }
        let mut at = written.end;
        let mut put = |marker: Marker, bytes: &[u8]| -> Result<HostOffset> {
            let sectors = count(bytes.len()).div_ceil(SECTOR_BYTES);
            let mut all = sectors.to_le_bytes().to_vec();
            all.extend_from_slice(&0_u32.to_le_bytes());
            all.extend_from_slice(&(marker as u32).to_le_bytes());
            all.resize(index(SECTOR_BYTES), 0);
            all.extend_from_slice(bytes);
            all.resize(index((1 + sectors) * SECTOR_BYTES), 0);
            self.file.write_at(at, &all)?;
            let place = at.plus(SECTOR_BYTES);
            at = at.plus(count(all.len()));
            Ok(place)
        };
        let mut directory = vec![0_u8; index(self.layout.entries * 4)];
        for (nth, table) in &written.tables {
            let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            let place = put(Marker::Table, &bytes)?.bytes() / SECTOR_BYTES;
            let full = |_| Error::invalid("the stream is full: no entry leads past 2 TiB");
            let place = u32::try_from(place).map_err(full)?;
            if let Some(entry) = directory.get_mut(index(nth * 4)..).and_then(|rest| rest.first_chunk_mut()) {
                *entry = place.to_le_bytes();
            }
        }
        let place = put(Marker::Directory, &directory)?;
        put(Marker::Footer, &header(&self.layout, place.bytes() / SECTOR_BYTES).to_bytes())?;
        put(Marker::End, &[])?;
        // A longer file that was there before would hide the footer.
        self.file.set_bytes(at.bytes())?;
        written.is_whole = true;
        Ok(())
    }

    fn read_piece(&self, piece: GuestRange, buf: &mut [u8]) -> Result<()> {
        let Some(host) = self.place(piece.start) else {
            buf.fill(0);
            return Ok(());
        };
        let start = piece.start.floor(self.layout.grain);
        let bytes = packing::read(self.file.as_ref(), host, (&self.layout, start.bytes()))?;
        Packed { start, grain: self.layout.grain, bytes }.unpack(piece, buf)
    }
}

/// Returns the header of a stream, or its footer, with the directory at that sector.
fn header(layout: &Layout, directory: u64) -> Hosted {
    Hosted {
        magic: HOSTED_MAGIC,
        version: 3,
        flags: FLAG_NEWLINES | FLAG_PACKED | FLAG_MARKERS,
        capacity: layout.bytes / SECTOR_BYTES,
        grain: layout.grain / SECTOR_BYTES,
        descriptor: DESCRIPTOR.0,
        descriptor_size: DESCRIPTOR.1,
        per_table: PER_TABLE,
        twin: 0,
        directory,
        overhead: FIRST_BYTES / SECTOR_BYTES,
        is_unclean: 0,
        newlines: *b"\n \r\n",
        compression: 1,
        pad: [0; 433],
    }
}

impl Image for StreamImage {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn size(&self) -> u64 {
        self.layout.bytes
    }

    fn unit(&self) -> u64 {
        self.layout.grain
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn parent(&self) -> Option<ParentName> {
        None
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::Cid(self.cid))
    }

    fn details(&self) -> Result<Details> {
        let cluster_bytes = Some(self.layout.grain);
        Ok(Details { cluster_bytes, is_stream: true, packs: true, ..Details::default() })
    }

    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![Arc::clone(&self.file)]
    }

    fn data_file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()> {
        for piece in range.pieces(self.layout.grain) {
            let state = if self.place(piece.start).is_some() { State::Packed } else { State::Absent };
            map::push(out, Extent::new(piece, state));
        }
        Ok(())
    }

    fn read(&self, at: GuestOffset, buf: &mut [u8], _below: &dyn Below) -> Result<()> {
        let range = at.range(count(buf.len()));
        for piece in range.pieces(self.layout.grain) {
            self.read_piece(piece, format::part::part(buf, range, piece)?).in_file(self.file.path())?;
        }
        Ok(())
    }

    fn write(&self, at: GuestOffset, buf: &[u8], _below: &dyn Below) -> Result<()> {
        for piece in at.range(count(buf.len())).pieces(self.layout.grain) {
            let from = index(piece.start.since(at));
            let bytes = buf.get(from..from + index(piece.bytes)).unwrap_or_default();
            let is_whole = piece.bytes == self.layout.grain || piece.end().bytes() == self.layout.bytes;
            match self.pack(bytes).filter(|_| is_whole) {
                Some(packed) => self.append(piece.start, &packed).in_file(self.file.path())?,
                None => return self.refuse("takes whole grains only"),
            }
        }
        Ok(())
    }

    fn write_from(
        &self,
        range: GuestRange,
        source: &dyn File,
        from: HostOffset,
        below: &dyn Below,
    ) -> Result<Moved> {
        for piece in range.pieces(self.layout.grain) {
            let mut bytes = vec![0; index(piece.bytes)];
            source.read_at(from.plus(piece.start.since(range.start)), &mut bytes)?;
            self.write(piece.start, &bytes, below)?;
        }
        Ok(Moved { shared_bytes: 0, copied_bytes: range.bytes })
    }

    fn pack(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        packing::pack(bytes, self.layout.grain)
    }

    fn write_packed(&self, at: GuestOffset, packed: &[u8]) -> Result<()> {
        self.append(at, packed).in_file(self.file.path())
    }

    fn zero(&self, range: GuestRange, _kept: Kept, _below: &dyn Below) -> Result<()> {
        if range.start.bytes() >= self.written.lock().next { Ok(()) } else { self.refuse("is written once") }
    }

    fn zeroes_fast(&self, _range: GuestRange, _kept: Kept) -> bool {
        true
    }

    fn flush(&self) -> Result<()> {
        self.finish().in_file(self.file.path())?;
        self.file.flush()
    }

    fn flush_with_time(&self) -> Result<()> {
        self.finish().in_file(self.file.path())?;
        self.file.flush_with_time()
    }

    fn release(&self) -> Result<u64> {
        Ok(0)
    }

    fn check_size(&self, _bytes: u64) -> Result<()> {
        self.refuse("keeps its size")
    }

    fn resize(&self, bytes: u64, _below: &dyn Below) -> Result<()> {
        self.check_size(bytes)
    }

    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()> {
        if parent.is_none() { Ok(()) } else { self.refuse("has no parent") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::seed::Seeded,
        format::{NoParts, Nothing, vmdk},
        io::memory::MemoryFile,
    };

    #[test]
    fn a_stream_is_written_once_in_order_and_read_afterwards() {
        let file = Arc::new(MemoryFile::new("disk.vmdk"));
        let options = vec![("subformat".to_owned(), "streamOptimized".to_owned())];
        let creation = Creation { size: (200 << 20) + 512, parent: None, options };
        let image = vmdk::create(file.clone(), &creation, &NoParts).unwrap();
        let mut bytes = vec![0; 3 << 16];
        Seeded::new(1).fill(&mut bytes[..100_000]);
        let at = [1 << 20, 150 << 20].map(GuestOffset::new);
        for at in at {
            image.write(at, &bytes, &Nothing).unwrap();
            let mut found = vec![1; bytes.len()];
            image.read(at, &mut found, &Nothing).unwrap();
            assert!(found == bytes);
        }
        // Before what is there, part of a grain, what is there.
        for (at, bytes) in [(0, 1 << 16), (160 << 20, 512), (150 << 20, 1 << 16)] {
            assert!(image.write(GuestOffset::new(at), &vec![7; bytes], &Nothing).is_err());
        }
        let last = GuestOffset::new(200 << 20);
        image.write(last, &[9; 512], &Nothing).unwrap();
        image.flush().unwrap();
        let length = file.bytes().unwrap();
        assert!(image.write(last, &[9; 512], &Nothing).is_err());
        image.flush().unwrap();
        assert_eq!(file.bytes().unwrap(), length);
        let again = vmdk::open(file.clone(), false, &NoParts).unwrap();
        assert_eq!((again.size(), again.identity()), (creation.size, image.identity()));
        let mut found = vec![1; bytes.len()];
        again.read(at[1], &mut found, &Nothing).unwrap();
        assert!(found == bytes);
        let mut found = [1; 512];
        again.read(last, &mut found, &Nothing).unwrap();
        assert_eq!(found, [9; 512]);
        let file: Arc<dyn File> = file;
        let checked = vmdk::check(&file, crate::format::Repair::Nothing, &NoParts).unwrap();
        assert_eq!((checked.corruptions, checked.compressed_units), (0, 7), "{:?}", checked.findings);
    }
}
