//! The footer (VHD specification 1.0, "Hard Disk Footer Format"): the last sector of every VHD, and its copy, the first
//! sector of all but fixed ones.
//!
//! Whoever reads takes the one at the end, or the copy where that one is damaged: a cut between the two writes of a
//! change leaves the old one or the new one.

use super::geometry::Geometry;
use crate::{
    base::{Error, HostOffset, HostRange, Result, units::SECTOR_BYTES},
    io::File,
    record,
};

/// The first eight bytes of every footer.
pub(super) const COOKIE: [u8; 8] = *b"conectix";
/// How long a footer is, and how far from the end it starts.
pub(super) const FOOTER_BYTES: u64 = 512;
/// Before 2004, Virtual PC left the last byte out ("Implementing a VHD", footer of 511 bytes).
const SHORT_BYTES: u64 = 511;
/// What stands for "nothing" in 64-bit offsets.
pub(super) const NOWHERE: u64 = u64::MAX;
/// Major version 1, minor 0: of the file format, and of the dynamic header.
pub(super) const VERSION: u32 = 0x0001_0000;
/// Who makes images here, as qemu calls itself where the size is the footer's and not the geometry's: readers that know
/// no such name go by the geometry, which says the same, or that the size is the footer's.
const CREATOR: [u8; 4] = *b"qem2";
/// Programs whose disks end where the geometry ends (qemu, `vpc_open`): Virtual PC, and qemu before it learned better.
const BY_GEOMETRY: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];
/// The longest page of a host.
const PAGE_BYTES_MAX: u64 = 64 << 10;
/// Seconds from 1970 to 2000, where the time stamps start.
const EPOCH_SECONDS: u64 = 946_684_800;

record! {
    /// The footer ("Hard Disk Footer Format").
    pub(super) struct Footer: BigEndian, 512 bytes {
        /// `conectix`.
        0 => cookie: bytes 8,
        /// Bit 1 is always set; bit 0: temporary.
        8 => features: u32,
        /// 1.0.
        12 => version: u32,
        /// Where the dynamic header is; all ones for fixed disks.
        16 => data_offset: u64,
        /// When it was made, in seconds since 2000.
        24 => timestamp: u32,
        /// Which program made it.
        28 => creator_app: bytes 4,
        /// Of which version.
        32 => creator_version: u32,
        /// On which system.
        36 => creator_os: bytes 4,
        /// Size when it was made, in bytes.
        40 => original_size: u64,
        /// Size in bytes.
        48 => current_size: u64,
        /// Geometry: cylinders.
        56 => cylinders: u16,
        /// Geometry: heads.
        58 => heads: u8,
        /// Geometry: sectors in a track.
        59 => sectors: u8,
        /// 2 fixed, 3 dynamic, 4 differencing.
        60 => disk_type: u32,
        /// One's complement of the sum of all other bytes.
        64 => checksum: u32,
        /// What children call the image.
        68 => unique_id: bytes 16,
        /// 1 if a machine is saved with it.
        84 => saved_state: u8,
        /// Zeros.
        85 => reserved: bytes 427,
    }
}

/// What kind of disk a footer is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The disk's bytes as they are, then the footer.
    Fixed,
    /// Blocks.
    Dynamic,
    /// Blocks over a parent.
    Differencing,
}

impl Kind {
    /// Returns the number that stands for it.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }

    /// Returns the name that options have for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

/// Returns the one's complement of the sum of `bytes`, the checksum of footer and header (where its place holds zeros).
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Returns the seconds since 2000, now.
pub(super) fn now() -> u32 {
    let seconds = crate::base::clock::since_epoch().as_secs().saturating_sub(EPOCH_SECONDS);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl Footer {
    /// Returns the footer of a new image with an ID that nobody has seen.
    pub(super) fn new(kind: Kind, size: u64) -> Self {
        let mut footer = Self {
            cookie: COOKIE,
            features: 2,
            version: VERSION,
            data_offset: NOWHERE,
            timestamp: now(),
            creator_app: CREATOR,
            creator_version: VERSION,
            creator_os: *b"Wi2k",
            original_size: size,
            current_size: 0,
            cylinders: 0,
            heads: 0,
            sectors: 0,
            disk_type: kind.number(),
            checksum: 0,
            unique_id: crate::base::seed::fresh().to_be_bytes(),
            saved_state: 0,
            reserved: [0; 427],
        };
        footer.set_size(size);
        footer
    }

    /// States another size. The geometry says the same, or, where none can, that it says nothing.
    pub(super) fn set_size(&mut self, size: u64) {
        let Geometry { cylinders, heads, sectors } = Geometry::exact(size).unwrap_or(Geometry::NONE);
        (self.current_size, self.cylinders, self.heads, self.sectors) = (size, cylinders, heads, sectors);
    }

    /// Returns the footer's bytes, with their checksum.
    pub(super) fn signed(self) -> [u8; 512] {
        Self { checksum: self.sum(), ..self }.to_bytes()
    }

    fn sum(self) -> u32 {
        checksum(&Self { checksum: 0, ..self }.to_bytes())
    }

    /// Returns the sum that leaves out what tells a child from its parent.
    fn sum_without_identity(self) -> u32 {
        Self { unique_id: [0; 16], disk_type: Kind::Dynamic.number(), ..self }.sum()
    }

    /// Returns the kind of disk; `Unsupported` for numbers that the specification keeps for others.
    pub(super) fn kind(&self) -> Result<Kind> {
        let known = [Kind::Fixed, Kind::Dynamic, Kind::Differencing];
        known.into_iter().find(|kind| kind.number() == self.disk_type).ok_or_else(|| {
            Error::unsupported(format!("footer: disk type {} (known: 2, 3, 4)", self.disk_type))
        })
    }

    /// Returns the size of the disk in bytes: the current size, or the geometry's where the creator goes by that.
    pub(super) fn disk_bytes(&self) -> Result<u64> {
        let geometry = Geometry { cylinders: self.cylinders, heads: self.heads, sectors: self.sectors };
        let by_geometry = Some(geometry.bytes()).filter(|bytes| {
            BY_GEOMETRY.contains(&self.creator_app) && geometry != Geometry::NONE && *bytes > 0
        });
        let bytes = by_geometry.unwrap_or(u64::MAX).min(self.current_size);
        if bytes.is_multiple_of(SECTOR_BYTES) {
            return Ok(bytes);
        }
        Err(Error::corrupt(format!("footer: current size {bytes} is not a multiple of 512")))
    }
}

/// What one place of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No footer.
    Nothing,
    /// One whose checksum is not that of its bytes.
    Damaged(Footer),
    /// A sound one.
    Sound(Footer),
}

/// Both footers of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footers {
    /// The one that counts.
    pub(super) footer: Footer,
    /// What the first sector says; what stands there in a fixed disk is the guest's.
    pub(super) front: Found,
    /// What the end says.
    pub(super) end: Found,
    /// Where the one at the end is, or has to be.
    pub(super) end_at: HostOffset,
    /// Whether the checksum is that of the footer as it was before its identity was put in (see [`Footers::read`]).
    pub(super) is_unsigned: bool,
    /// Whether only zeros follow that are not the disk's: a cut came while the disk was growing.
    pub(super) is_stranded: bool,
}

impl Footers {
    /// Reads both; `Corrupt` if neither is sound.
    ///
    /// There are images whose checksums were made before the unique ID and the link to the parent were filled in (qemu
    /// 0.x, and who changes those by hand): two copies that are equal and right but for that are not damaged. They can
    /// be read.
    pub(super) fn read(file: &dyn File) -> Result<Self> {
        let bytes = file.bytes()?;
        let front = found(file, HostOffset::new(0), bytes)?;
        let at = |footer: u64| HostOffset::new(bytes.saturating_sub(footer));
        let (mut end_at, mut end) = (at(FOOTER_BYTES), found(file, at(FOOTER_BYTES), bytes)?);
        let is_fixed = !matches!(front, Found::Sound(footer) if footer.disk_type != Kind::Fixed.number());
        if let Some((end_at, footer)) =
            if end == Found::Nothing && is_fixed { stranded(file, bytes)? } else { None }
        {
            let end = Found::Sound(footer);
            return Ok(Self { footer, front, end, end_at, is_unsigned: false, is_stranded: true });
        }
        if end == Found::Nothing {
            // A place past the end is where a lost one is written anew.
            end_at = HostOffset::new(bytes).ceil(SECTOR_BYTES);
            if bytes % SECTOR_BYTES == SHORT_BYTES {
                end = found(file, at(SHORT_BYTES), bytes)?;
                end_at = if end == Found::Nothing { end_at } else { at(SHORT_BYTES) };
            }
        }
        let (footer, is_unsigned) = match (front, end) {
            (_, Found::Sound(footer)) => (footer, false),
            (Found::Sound(footer), _) if footer.disk_type != Kind::Fixed.number() => (footer, false),
            (Found::Damaged(front), Found::Damaged(end))
                if front == end && end.sum_without_identity() == end.checksum =>
            {
                (end, true)
            }
            (_, Found::Damaged(footer)) => return Err(damaged(&footer, end_at)),
            (Found::Damaged(footer), _) => return Err(damaged(&footer, HostOffset::new(0))),
            _ => return Err(Error::corrupt("footer: the last 512 bytes have no 'conectix'")),
        };
        if footer.version >> 16 != VERSION >> 16 {
            return Err(Error::unsupported(format!("footer: file format version {:#x}", footer.version)));
        }
        Ok(Self { footer, front, end, end_at, is_unsigned, is_stranded: false })
    }
}

impl Footers {
    /// Puts right what a cut left of them: the one that counts is in both places then, in a fixed disk at the end.
    pub(super) fn mend(&self, file: &dyn File) -> Result<()> {
        if self.is_stranded {
            file.set_bytes(self.end_at.plus(FOOTER_BYTES).bytes())?;
            return file.flush();
        }
        for at in self.wrong() {
            file.write_at(at, &self.footer.signed())?;
            file.flush()?;
        }
        Ok(())
    }

    /// Returns whether [`Footers::mend`] changes the file.
    pub(super) fn await_mending(&self) -> bool {
        self.is_stranded || self.wrong().next().is_some()
    }

    /// Returns where the footer that counts is not, and belongs.
    fn wrong(&self) -> impl Iterator<Item = HostOffset> {
        let has_copy = self.footer.disk_type != Kind::Fixed.number();
        let places = [(self.end, self.end_at, true), (self.front, HostOffset::new(0), has_copy)];
        let own = Found::Sound(self.footer);
        places
            .into_iter()
            .filter(move |(found, _, is_wanted)| *is_wanted && *found != own)
            .map(|(_, at, _)| at)
    }
}

/// Finds the footer of a fixed disk at the end of what the host stores of the file, where only a hole follows: a cut came
/// when the file had its new length and not yet its new footer.
fn stranded(file: &dyn File, file_bytes: u64) -> Result<Option<(HostOffset, Footer)>> {
    let (mut at, mut stored) = (HostOffset::new(0), HostOffset::new(0));
    while at.bytes() < file_bytes {
        let run = file.run_at(at)?;
        if run.range.is_empty() {
            break;
        }
        at = run.range.end();
        stored = if run.is_data { at } else { stored };
    }
    // A run may have more than its last bytes: whole pages of the host.
    let pages = HostRange::between(HostOffset::new(stored.bytes().saturating_sub(PAGE_BYTES_MAX)), stored);
    let pages = pages.outer(SECTOR_BYTES).clip(HostOffset::new(0).range(file_bytes));
    let mut sectors: Vec<HostRange> = pages.pieces(SECTOR_BYTES).collect();
    while let Some(sector) = sectors.pop() {
        if let Found::Sound(footer) = found(file, sector.start, file_bytes)? {
            let is_its = footer.kind()? == Kind::Fixed && footer.disk_bytes()? <= sector.start.bytes();
            return Ok(is_its.then_some((sector.start, footer)));
        }
    }
    Ok(None)
}

fn damaged(footer: &Footer, at: HostOffset) -> Error {
    let (stored, sum) = (footer.checksum, footer.sum());
    Error::corrupt(format!("footer at {at:#x}: checksum is {stored:#010x}, its bytes give {sum:#010x}"))
}

/// Reads what is at `at`; what is cut off by the file's end is zero.
fn found(file: &dyn File, at: HostOffset, file_bytes: u64) -> Result<Found> {
    let mut bytes = [0; 512];
    if at.bytes() < file_bytes {
        file.read_at(at, &mut bytes)?;
    }
    let footer = Footer::parse(&bytes);
    Ok(match footer.cookie == COOKIE {
        false => Found::Nothing,
        true if footer.sum() == footer.checksum => Found::Sound(footer),
        true => Found::Damaged(footer),
    })
}

/// Returns whether the file has a footer, sound or not, where a VHD has one.
pub(super) fn is_there(file: &dyn File) -> Result<bool> {
    let bytes = file.bytes()?;
    let places = [Some(0), bytes.checked_sub(FOOTER_BYTES), bytes.checked_sub(SHORT_BYTES)];
    for at in places.into_iter().flatten() {
        let mut cookie = [0; 8];
        file.read_at(HostOffset::new(at), &mut cookie)?;
        if cookie == COOKIE {
            return Ok(true);
        }
    }
    Ok(false)
}
