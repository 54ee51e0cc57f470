//! A tree as it is kept: a header, then the pages that hold a leaf.
//!
//! The form needs no checksum of its own: whoever reads it knows the content ID that it is kept for, and
//! a tree with another root is refused. Reading takes no more memory than the bytes that are there.

use super::{
    ContentId, Digest, Tree,
    hash::DIGEST_BYTES,
    tree::{PAGE_LEAVES, Page},
};
use crate::{
    base::{
        Error, Guard, Result,
        units::{count, index},
    },
    record,
};
use std::io::{Read, Write};

const MAGIC: [u8; 8] = *b"dchntree";
const VERSION: u32 = 1;

record! {
    /// The start of a stored tree.
    struct Header: LittleEndian, 28 bytes {
        /// `dchntree`.
        0 => magic: bytes 8,
        /// 1.
        8 => version: u32,
        /// Size of the view in bytes.
        12 => size: u64,
        /// Pages that follow, in order.
        20 => pages: u64,
    }
}

record! {
    /// The start of a page; the hashes of its held leaves follow.
    struct PageHeader: LittleEndian, 16 bytes {
        /// Its first leaf divided by 64.
        0 => at: u64,
        /// Bit i says that leaf i of the page is not zero.
        8 => held: u64,
    }
}

impl Tree {
    /// Writes the tree in its stored form.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<()> {
        let failed = |e| Error::io("write a tree", e);
        let pages = count(self.pages().len());
        let header = Header { magic: MAGIC, version: VERSION, size: self.size(), pages };
        out.write_all(&header.to_bytes()).map_err(failed)?;
        for (at, page) in self.pages() {
            let (held, hashes) = page.parts();
            out.write_all(&PageHeader { at: *at, held }.to_bytes()).map_err(failed)?;
            for hash in hashes {
                out.write_all(hash.bytes()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Reads the stored tree of the view whose content ID is `id`.
    ///
    /// `Corrupt` for anything but the whole tree that gives this ID.
    pub fn read_from(input: &mut dyn Read, id: &ContentId) -> Result<Self> {
        let header = Header::parse(&read(input)?);
        if header.magic != MAGIC || header.version != VERSION {
            return Err(Error::corrupt("no stored tree, or one of a later version"));
        }
        let mut tree = Self::new(header.size);
        for _ in 0..header.pages {
            let PageHeader { at, held } = PageHeader::parse(&read(input)?);
            let mut bytes = [0; DIGEST_BYTES * index(PAGE_LEAVES)];
            let filled =
                bytes.get_mut(..DIGEST_BYTES * index(u64::from(held.count_ones()))).unwrap_or_default();
            input.read_exact(filled).map_err(cut_short)?;
            let hashes = filled.as_chunks().0.iter().copied().map(Digest::new).collect();
            if !tree.push_page(at, Page::new(held, hashes)) {
                return Err(Error::corrupt(format!("stored tree: page {at} does not fit where it stands")));
            }
        }
        let found = tree.id();
        if Guard::TreeRoot.trips(found != *id) {
            return Err(Error::corrupt(format!("stored tree gives {found}, it is kept for {id}")));
        }
        Ok(tree)
    }
}

fn read<const N: usize>(input: &mut dyn Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(cut_short)?;
    Ok(bytes)
}

fn cut_short(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        Error::corrupt("stored tree ends too early")
    } else {
        Error::io("read a stored tree", error)
    }
}
