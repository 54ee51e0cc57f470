//! Guests of a served disk that remember what they wrote: clients of NBD with one request at a time.

use super::{Told, told};
use crate::mark::{self, Mark, SECTOR};
use deltachain::base::{
    seed::Seeded,
    units::{count, index},
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

/// Each guest owns every so-many-th piece of so many sectors: they share clusters, not sectors.
const PIECE_SECTORS: u64 = 8;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const EXPORT_NAME: u32 = 1;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
/// Durable before the answer.
const FUA: u16 = 1;

/// A connection to one export, after the handshake (`doc/proto.md` of the NBD project: the oldest way to ask for one).
pub(super) struct Client(UnixStream);

impl Client {
    pub(super) fn connect(socket: &Path, export: &str) -> Told<Self> {
        let mut stream = UnixStream::connect(socket).map_err(told)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
        stream.read_exact(&mut [0; 18]).map_err(told)?;
        let name = export.as_bytes();
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(EXPORT_NAME.to_be_bytes());
        hello.extend(u32::try_from(name.len()).map_err(told)?.to_be_bytes());
        hello.extend(name);
        stream.write_all(&hello).map_err(told)?;
        stream.read_exact(&mut [0; 10]).map_err(told)?;
        Ok(Self(stream))
    }

    fn request(&mut self, (command, flags): (u16, u16), at: u64, bytes: usize, payload: &[u8]) -> Told<()> {
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(u32::try_from(bytes).map_err(told)?.to_be_bytes());
        request.extend(payload);
        self.0.write_all(&request).map_err(told)?;
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).map_err(told)?;
        let expected = [&REPLY_MAGIC.to_be_bytes()[..], &[0; 4], &at.to_be_bytes()].concat();
        if reply == *expected { Ok(()) } else { Err(format!("request {command} at {at:#x}: {reply:?}")) }
    }

    pub(super) fn read(&mut self, at: u64, bytes: usize) -> Told<Vec<u8>> {
        self.request((READ, 0), at, bytes, &[])?;
        let mut read = vec![0; bytes];
        self.0.read_exact(&mut read).map_err(told)?;
        Ok(read)
    }
}

/// Sectors that were written, and by which write; 0 stands for zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) sector: u64,
    pub(super) sectors: u64,
    pub(super) mark: Mark,
    /// Its number among those of its guest.
    nth: u64,
}

impl Written {
    /// Puts into `disk` what it leaves there.
    pub(super) fn apply(self, disk: &mut [u8]) {
        let bytes = mark::sectors(self.mark, self.sector, self.sectors);
        let start = index(self.sector) * SECTOR;
        if let Some(there) = disk.get_mut(start..start + bytes.len()) {
            there.copy_from_slice(&bytes);
        }
    }
}

impl Done {
    /// Returns all that it wrote, in order.
    pub(super) fn all(&self) -> Vec<Written> {
        let mut all = [self.durable.as_slice(), &self.open].concat();
        all.sort_by_key(|written| written.nth);
        all
    }
}

/// What a guest did.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// What it was told is durable, in order.
    pub(super) durable: Vec<Written>,
    /// What it wrote after its last flush, in order.
    pub(super) open: Vec<Written>,
    /// Why it ended, if not by itself.
    pub(super) broke: Option<String>,
}

/// One of several guests of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    pub(super) number: u64,
    pub(super) of: u64,
    /// Sectors of the disk.
    pub(super) sectors: u64,
    /// The mark before its first.
    pub(super) after: Mark,
}

impl Guest {
    /// Writes until it is told to stop or the connection breaks, so many times at most.
    pub(super) fn run(
        self,
        client: &mut Client,
        seeded: &mut Seeded,
        (stop, most): (&AtomicBool, u64),
    ) -> Done {
        let mut done = Done::default();
        for nth in 1..=most {
            if stop.load(Relaxed) || done.broke.is_some() {
                break;
            }
            let (what, mut write) = (seeded.below(12), self.next(seeded, nth));
            if what == 0 {
                match client.request((FLUSH, 0), 0, 0, &[]) {
                    Ok(()) => done.durable.append(&mut done.open),
                    Err(wrong) => done.broke = Some(wrong),
                }
                continue;
            }
            let at = write.sector * count(SECTOR);
            let fua = if what == 1 { FUA } else { 0 };
            let asked = if what == 2 {
                write.mark = 0;
                client.request((WRITE_ZEROES, fua), at, index(write.sectors) * SECTOR, &[])
            } else {
                let bytes = mark::sectors(write.mark, write.sector, write.sectors);
                client.request((WRITE, fua), at, bytes.len(), &bytes)
            };
            let is_durable = fua != 0 && asked.is_ok();
            if is_durable { &mut done.durable } else { &mut done.open }.push(write);
            done.broke = asked.err();
        }
        // What was durable at once comes before what waited for a flush, and may be younger.
        done.durable.sort_by_key(|written| written.nth);
        done
    }

    /// Half of all writes go to a sixteenth of the disk.
    fn next(self, seeded: &mut Seeded, nth: u64) -> Written {
        let pieces = self.sectors / PIECE_SECTORS / self.of;
        let range = if seeded.chance(1, 2) { pieces } else { pieces.div_ceil(16) };
        let piece = seeded.below(range) * self.of + self.number;
        let first = seeded.below(PIECE_SECTORS);
        let sectors = 1 + seeded.below(PIECE_SECTORS - first);
        let mark = self.after + Mark::try_from(nth * self.of + self.number).unwrap_or(1);
        Written { sector: piece * PIECE_SECTORS + first, sectors, mark, nth }
    }
}
