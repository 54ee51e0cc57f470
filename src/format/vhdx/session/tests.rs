use super::{
    super::{create, layout::Layout},
    *,
};
use crate::{
    base::HostRange,
    format::{Creation, NoParts},
    io::{Access, Descriptor, Kept, Run, Witness, memory::MemoryFile},
};
use std::{path::Path, sync::Arc};

/// A file that a writer makes longer whenever it has just been flushed.
#[derive(Debug)]
struct Growing(Arc<MemoryFile>);

impl File for Growing {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn bytes(&self) -> Result<u64> {
        self.0.bytes()
    }
    fn read_at(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(at, buf)
    }
    fn write_at(&self, at: HostOffset, buf: &[u8]) -> Result<()> {
        self.0.write_at(at, buf)
    }
    fn zero(&self, range: HostRange, kept: Kept) -> Result<()> {
        self.0.zero(range, kept)
    }
    fn zeroes_fast(&self, kept: Kept) -> bool {
        self.0.zeroes_fast(kept)
    }
    fn allocate(&self, range: HostRange) -> Result<()> {
        self.0.allocate(range)
    }
    fn set_bytes(&self, bytes: u64) -> Result<()> {
        self.0.set_bytes(bytes)
    }
    fn flush(&self) -> Result<()> {
        self.0.flush()?;
        self.0.set_bytes(self.0.bytes()? + (32 << 20))
    }
    fn flush_with_time(&self) -> Result<()> {
        self.flush()
    }
    fn run_at(&self, at: HostOffset) -> Result<Run> {
        self.0.run_at(at)
    }
    fn witness(&self) -> Result<Witness> {
        self.0.witness()
    }
    fn allocated_bytes(&self) -> Result<u64> {
        self.0.allocated_bytes()
    }
    fn descriptor(&self) -> Option<Descriptor> {
        None
    }
    fn is_device(&self) -> bool {
        false
    }
    fn set_access(&self, _access: Access) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_entry_relies_on_no_length_that_came_behind_the_flush_before_it() {
    let file = Arc::new(MemoryFile::new("image"));
    drop(create(file.clone(), &Creation { size: 1 << 30, ..Creation::default() }, &NoParts).unwrap());
    let layout = Layout::read(&*file).unwrap();
    let (mut session, durable) = (Session::new(layout.header, layout.regions), file.bytes().unwrap());
    let page = Page { at: session.regions.bat.start, bytes: vec![0; 4096] };
    session.commit(&Growing(file.clone()), &[page]).unwrap();
    // What a power cut may leave: the entry, and the length as it was.
    file.set_bytes(durable).unwrap();
    let replay = Layout::read(&*file).unwrap().replay;
    assert!(replay.is_some_and(|replay| replay.file_bytes > durable));
}
