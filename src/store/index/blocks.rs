//! The bytes of an index in its file: blocks with a checksum each, behind a head that says in which boot they were written.
//!
//! What stays true: what is read is what was written, or the read fails, so that the engine above never follows a damaged
//! page. Nothing is made durable: after a power cut blocks of several moments may stand side by side, so a file of another
//! boot is not read at all.

use crate::{
    base::{
        Error, HostOffset, Result,
        units::{count, index},
    },
    io::File,
    record,
    store::place::os,
};
use parking_lot::Mutex;
use redb::StorageBackend;
use std::{collections::BTreeMap, io, sync::Arc};

const MAGIC: [u8; 16] = *b"dchain index\r\n\x1a\n";
const VERSION: u32 = 1;
const BLOCK_BYTES: usize = 4096;
const SUM_BYTES: usize = 4;
/// A block and its checksum in the file.
pub(super) const STRIDE_BYTES: u64 = 4100;
/// Where the first block is in the file.
const START: u64 = 4096;
/// CRC-32C of a block of zeros: sums are stored less this, so that a hole is a block of zeros.
const ZEROS_SUM: u32 = 0x98f9_4189;

record! {
    /// What stands before the blocks.
    struct Head: LittleEndian, 40 bytes {
        /// Tells the file from others, and notices that it went through a text editor.
        0 => magic: bytes 16,
        /// 1.
        16 => version: u32,
        /// The boot in which all of the file was written.
        20 => boot: bytes 16,
        /// CRC-32C of the bytes before it.
        36 => checksum: u32,
    }
}

impl Head {
    fn of(boot: u128) -> Self {
        let head = Self { magic: MAGIC, version: VERSION, boot: boot.to_le_bytes(), checksum: 0 };
        let [bytes @ .., _, _, _, _] = head.to_bytes();
        Self { checksum: crc32c::crc32c(&bytes), ..head }
    }
}

/// The blocks of an index, as its engine sees them.
#[derive(Debug)]
pub(super) struct Blocks {
    file: Arc<dyn File>,
    /// What is changed stays here, if the file is only read: the engine notes in it that it is open.
    aside: Option<Mutex<Aside>>,
}

#[derive(Debug)]
struct Aside {
    blocks: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

impl Blocks {
    /// Makes an empty index in an empty file.
    pub(super) fn create(file: Arc<dyn File>) -> Result<Self> {
        let mut start = vec![0; index(START)];
        let head = Head::of(file.witness()?.boot).to_bytes();
        start.iter_mut().zip(head).for_each(|(to, from)| *to = from);
        file.write_at(HostOffset::new(0), &start)?;
        Ok(Self { file, aside: None })
    }

    /// Takes the index in a file that is open for writing; `None` if it is none of this version and boot.
    pub(super) fn writing(file: Arc<dyn File>) -> Result<Option<Self>> {
        let mut head = [0; Head::SIZE];
        file.read_at(HostOffset::new(0), &mut head)?;
        let bytes = file.bytes()?;
        let is_whole = bytes > START && (bytes - START).is_multiple_of(STRIDE_BYTES);
        let is_known = is_whole && Head::parse(&head) == Head::of(file.witness()?.boot);
        Ok(is_known.then_some(Self { file, aside: None }))
    }

    /// The same, for a file that is only read.
    pub(super) fn reading(file: Arc<dyn File>) -> Result<Option<Self>> {
        let Some(blocks) = Self::writing(file)? else { return Ok(None) };
        let bytes = blocks.bytes()?;
        Ok(Some(Self { aside: Some(Mutex::new(Aside { blocks: BTreeMap::new(), bytes })), ..blocks }))
    }

    /// Returns how many bytes the blocks in the file have.
    fn bytes(&self) -> Result<u64> {
        Ok(self.file.bytes()?.saturating_sub(START) / STRIDE_BYTES * count(BLOCK_BYTES))
    }

    fn place(block: u64) -> io::Result<HostOffset> {
        let at = block.checked_mul(STRIDE_BYTES).and_then(|at| at.checked_add(START));
        at.map(HostOffset::new).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn block(&self, block: u64) -> io::Result<Vec<u8>> {
        let changed = self.aside.as_ref().and_then(|aside| aside.lock().blocks.get(&block).cloned());
        if let Some(changed) = changed {
            return Ok(changed);
        }
        let mut bytes = vec![0; BLOCK_BYTES + SUM_BYTES];
        self.file.read_at(Self::place(block)?, &mut bytes).map_err(|e| os(&e))?;
        let sum = bytes.split_off(BLOCK_BYTES);
        if sum != stored_sum(&bytes) {
            let what = Error::corrupt(format!("block {block} does not have its checksum"));
            return Err(os(&what.path(self.file.path())));
        }
        Ok(bytes)
    }

    fn set_block(&self, block: u64, mut bytes: Vec<u8>) -> io::Result<()> {
        if let Some(aside) = &self.aside {
            aside.lock().blocks.insert(block, bytes);
            return Ok(());
        }
        let sum = stored_sum(&bytes);
        bytes.extend(sum);
        self.file.write_at(Self::place(block)?, &bytes).map_err(|e| os(&e))
    }
}

fn stored_sum(block: &[u8]) -> [u8; SUM_BYTES] {
    (crc32c::crc32c(block) ^ ZEROS_SUM).to_le_bytes()
}

/// Returns the parts of a range: in which block, from where in it, and how many bytes.
fn parts(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let (mut at, mut left) = (offset, bytes);
    std::iter::from_fn(move || {
        let (block, from) = (at / count(BLOCK_BYTES), index(at % count(BLOCK_BYTES)));
        let length = left.min(BLOCK_BYTES - from);
        (at, left) = (at.saturating_add(count(length)), left - length);
        (length > 0).then_some((block, from, length))
    })
}

impl StorageBackend for Blocks {
    fn len(&self) -> io::Result<u64> {
        match &self.aside {
            Some(aside) => Ok(aside.lock().bytes),
            None => self.bytes().map_err(|e| os(&e)),
        }
    }

    fn read(&self, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(count(out.len())).is_none_or(|end| self.len().is_ok_and(|bytes| end > bytes)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (block, from, length) in parts(offset, out.len()) {
            let bytes = self.block(block)?;
            let Some((now, later)) = std::mem::take(&mut out).split_at_mut_checked(length) else { break };
            now.copy_from_slice(bytes.get(from..from + length).unwrap_or_default());
            out = later;
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        if !bytes.is_multiple_of(count(BLOCK_BYTES)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let blocks = bytes / count(BLOCK_BYTES);
        match &self.aside {
            Some(aside) => {
                let mut aside = aside.lock();
                aside.blocks.retain(|block, _| *block < blocks);
                aside.bytes = bytes;
                Ok(())
            }
            None => self.file.set_bytes(Self::place(blocks)?.bytes()).map_err(|e| os(&e)),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        for (block, from, length) in parts(offset, data.len()) {
            let Some((now, later)) = data.split_at_checked(length) else { break };
            let mut bytes = if length == BLOCK_BYTES { vec![0; BLOCK_BYTES] } else { self.block(block)? };
            if let Some(part) = bytes.get_mut(from..from + length) {
                part.copy_from_slice(now);
            }
            self.set_block(block, bytes)?;
            data = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryFile;

    fn made() -> (Arc<MemoryFile>, Blocks) {
        let file = Arc::new(MemoryFile::new("index"));
        let blocks = Blocks::create(file.clone()).unwrap();
        blocks.set_len(3 * 4096).unwrap();
        (file, blocks)
    }

    #[test]
    fn blocks_are_read_as_they_were_written_and_a_hole_is_zeros() {
        let (file, blocks) = made();
        blocks.write(4000, &[7; 200]).unwrap();
        let mut bytes = [1; 300];
        blocks.read(3950, &mut bytes).unwrap();
        assert_eq!(bytes[..50], [0; 50]);
        assert_eq!(bytes[50..250], [7; 200]);
        assert_eq!(bytes[250..], [0; 50]);
        assert_eq!(stored_sum(&[0; BLOCK_BYTES]), [0; 4]);
        assert!(blocks.read(3 * 4096 - 1, &mut [0; 2]).is_err());
        assert_eq!(Blocks::writing(file).unwrap().unwrap().len().unwrap(), 3 * 4096);
    }

    #[test]
    fn a_reader_changes_nothing_in_the_file_and_sees_its_own_changes() {
        let (file, blocks) = made();
        blocks.write(0, &[7; 4096]).unwrap();
        let reader = Blocks::reading(file).unwrap().unwrap();
        reader.write(1, &[9]).unwrap();
        reader.set_len(4 * 4096).unwrap();
        let mut bytes = [0; 3];
        reader.read(0, &mut bytes).unwrap();
        assert_eq!((bytes, reader.len().unwrap()), ([7, 9, 7], 4 * 4096));
        blocks.read(0, &mut bytes).unwrap();
        assert_eq!((bytes, blocks.len().unwrap()), ([7; 3], 3 * 4096));
    }

    /// Each bit counts: of the head, of blocks, of checksums.
    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is_read() {
        let (file, blocks) = made();
        blocks.write(0, &[7; 3 * 4096]).unwrap();
        let is_read = || match Blocks::reading(file.clone()).unwrap() {
            Some(blocks) => blocks.read(0, &mut vec![0; 3 * 4096]).is_ok(),
            None => false,
        };
        assert!(is_read());
        let places = (0..count(Head::SIZE)).chain((START..START + 3 * STRIDE_BYTES).step_by(61));
        for at in places.chain([START + 4096, START + 4099]) {
            let mut byte = [0];
            let at = HostOffset::new(at);
            file.read_at(at, &mut byte).unwrap();
            file.write_at(at, &[byte[0] ^ 0x10]).unwrap();
            assert!(!is_read(), "at {at:#x}");
            file.write_at(at, &byte).unwrap();
        }
        assert!(is_read());
    }
}
