//! The two headers (MS-VHDX 2.2.2). The current one is the valid one with the higher sequence number; a change goes
//! to the other place first, durably, so that a torn write leaves the old one.

use super::{
    bytes::{Source, checksum},
    geometry::MIB,
};
use crate::{
    base::{Error, HostOffset, HostRange, Result, seed},
    io::File,
    record,
};
use uuid::Uuid;

/// Where the headers are.
pub(super) const HEADERS_AT: [HostOffset; 2] = [HostOffset::new(64 << 10), HostOffset::new(128 << 10)];
/// Bytes in a header.
const HEADER_BYTES: usize = 4096;
const SIGNATURE: [u8; 4] = *b"head";

record! {
    /// The fields of a header; zeros follow up to 4 KiB.
    struct Fields: LittleEndian, 80 bytes {
        /// "head".
        0 => signature: bytes 4,
        /// CRC-32C of all 4 KiB, this field being zero.
        4 => checksum: u32,
        /// The higher one counts.
        8 => sequence: u64,
        /// Changes before the file does, once an open.
        16 => file_guid: bytes 16,
        /// Changes before what the guest sees does, once an open.
        32 => data_guid: bytes 16,
        /// The entries of the log that count bear it; zeros: the log is empty.
        48 => log_guid: bytes 16,
        /// 0.
        64 => log_version: u16,
        /// 1.
        66 => version: u16,
        /// Length of the log: whole MiB.
        68 => log_bytes: u32,
        /// Where the log is: whole MiB.
        72 => log_at: u64,
    }
}

/// The current header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Which of the two places it stands in.
    slot: usize,
    sequence: u64,
    /// The file's state.
    pub(super) file_guid: Uuid,
    /// The state of what the guest sees: children name their parent by it.
    pub(super) data_guid: Uuid,
    /// Which entries of the log count; nil for none.
    pub(super) log_guid: Uuid,
    /// Where the log is.
    pub(super) log: HostRange,
    /// Whether the other place holds a valid header, too.
    pub(super) is_twin_valid: bool,
    /// Whether a change failed: which of the two stands in the file is not known, so that neither is written over.
    is_broken: bool,
}

/// Returns a GUID that nobody has seen.
pub(super) fn fresh_guid() -> Uuid {
    uuid::Builder::from_random_bytes(seed::fresh().to_le_bytes()).into_uuid()
}

/// Reads one header; the failure says what is wrong with it.
fn read_one(source: Source<'_>, at: HostOffset) -> Result<std::result::Result<Fields, String>> {
    let mut bytes = [0; HEADER_BYTES];
    source.read_at(at, &mut bytes)?;
    let Some(fields) = Fields::parse_start(&bytes) else { return Ok(Err("is too short".to_owned())) };
    let sum = checksum(&bytes);
    Ok(if fields.signature != SIGNATURE {
        Err("has no signature".to_owned())
    } else if fields.checksum != sum {
        Err(format!("has the checksum 0x{:08x} where its bytes give 0x{sum:08x}", fields.checksum))
    } else {
        Ok(fields)
    })
}

impl Header {
    /// Makes the header of a new file, which stands nowhere yet.
    pub(super) fn new(log: HostRange) -> Self {
        Self {
            slot: 1,
            sequence: 0,
            file_guid: fresh_guid(),
            data_guid: fresh_guid(),
            log_guid: Uuid::nil(),
            log,
            is_twin_valid: true,
            is_broken: false,
        }
    }

    /// Finds the current header. The log cannot change headers, so they are read as they stand.
    pub(super) fn read(file: &dyn File) -> Result<Self> {
        let source = Source::plain(file);
        let [first, second] = HEADERS_AT.map(|at| read_one(source, at));
        let is_twin = |other: &std::result::Result<Fields, String>| other.is_ok();
        let (slot, fields, is_twin_valid) = match (first?, second?) {
            (Ok(first), Ok(second)) if first.sequence == second.sequence && first != second => {
                let what = format!("both headers have the sequence number {}", first.sequence);
                return Err(Error::corrupt(format!("{what} and differ, so that none is current")));
            }
            (Ok(first), Ok(second)) if second.sequence > first.sequence => (1, second, true),
            (Ok(first), other) => (0, first, is_twin(&other)),
            (Err(_), Ok(second)) => (1, second, false),
            (Err(first), Err(second)) => {
                let [at, then] = HEADERS_AT;
                let what = format!("the header at 0x{at:x} {first}, the one at 0x{then:x} {second}");
                return Err(Error::corrupt(what));
            }
        };
        Self::check(fields, file.bytes()?).map(|header| Self { slot, is_twin_valid, ..header })
    }

    fn check(fields: Fields, file_bytes: u64) -> Result<Self> {
        if fields.version != 1 {
            return Err(Error::unsupported(format!("has VHDX version {}: only 1 is known", fields.version)));
        }
        if fields.log_version != 0 {
            let what = format!("has a log of version {}: only 0 is known", fields.log_version);
            return Err(Error::unsupported(what));
        }
        let log = HostOffset::new(fields.log_at).range(fields.log_bytes.into());
        let is_placed = fields.log_at >= MIB && log.start.bytes().is_multiple_of(MIB);
        let is_sized = log.bytes.is_multiple_of(MIB);
        let log_guid = Uuid::from_bytes_le(fields.log_guid);
        let is_there = is_placed && is_sized && log.end().bytes() <= file_bytes;
        if log.bytes > 0 && !is_there || log.bytes == 0 && !log_guid.is_nil() {
            let what = format!("header: a log of 0x{:x} bytes at 0x{:x}", log.bytes, log.start);
            return Err(Error::corrupt(format!("{what} is not in whole MiB inside the file")));
        }
        Ok(Self {
            slot: 0,
            sequence: fields.sequence,
            file_guid: Uuid::from_bytes_le(fields.file_guid),
            data_guid: Uuid::from_bytes_le(fields.data_guid),
            log_guid,
            log,
            is_twin_valid: true,
            is_broken: false,
        })
    }

    fn to_bytes(self) -> Vec<u8> {
        let fields = Fields {
            signature: SIGNATURE,
            checksum: 0,
            sequence: self.sequence,
            file_guid: self.file_guid.to_bytes_le(),
            data_guid: self.data_guid.to_bytes_le(),
            log_guid: self.log_guid.to_bytes_le(),
            log_version: 0,
            version: 1,
            // At most what such a field held, or an option that was checked.
            log_bytes: u32::try_from(self.log.bytes).unwrap_or(u32::MAX),
            log_at: self.log.start.bytes(),
        };
        let whole = |fields: Fields| {
            let mut bytes = fields.to_bytes().to_vec();
            bytes.resize(HEADER_BYTES, 0);
            bytes
        };
        let checksum = checksum(&whole(fields));
        whole(Fields { checksum, ..fields })
    }

    /// Writes both headers of a new file, which nobody knows yet: in no order, not durably.
    pub(super) fn write_new(self, file: &dyn File) -> Result<()> {
        for ((slot, at), sequence) in HEADERS_AT.into_iter().enumerate().zip(1..) {
            file.write_at(at, &Self { slot, sequence, ..self }.to_bytes())?;
        }
        Ok(())
    }

    /// Changes the header durably: in the other place, then in the one that was current (MS-VHDX 2.2.2.1).
    ///
    /// Where it fails, the file may have either; no further change is made then.
    pub(super) fn update(&mut self, file: &dyn File, change: impl FnOnce(&mut Self)) -> Result<()> {
        if self.is_broken {
            return Err(Error::invalid("is not written to since its header could not be"));
        }
        let mut new = *self;
        change(&mut new);
        self.is_broken = true;
        for _ in HEADERS_AT {
            new.slot = 1 - new.slot;
            new.sequence = new.sequence.wrapping_add(1);
            let at = HEADERS_AT.get(new.slot).copied().unwrap_or_default();
            file.write_at(at, &new.to_bytes())?;
            file.flush()?;
        }
        *self = Self { is_twin_valid: true, ..new };
        Ok(())
    }
}
