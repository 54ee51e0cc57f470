//! Layer 4: image formats, a folder each. A format sees its own files and never opens another image: a
//! parent is a *name* that it returns, and the bytes below it come through [`Below`].
//!
//! To add a format: one folder, one line in [`Format`], golden images in `testdata`, a CHANGELOG line. The
//! conformance suite (`conformance`) wants each of [`Format::ALL`] in its lists, and holds every rule against it.

mod bits;
mod carrier;
#[cfg(test)]
pub(crate) mod conformance;
mod facts;
mod foreign;
mod pages;
mod part;
pub mod qcow2;
pub mod raw;
mod source;
#[cfg(test)]
mod tape;
mod target;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

pub use crate::store::{Identity, StoredRecord};
pub use bits::Bits;
pub use facts::{Bitmap, BitmapEdit, Checked, Details, Measure, Repair, Snapshot};
pub use foreign::foreign;
pub use vmdk::is_piece;

use crate::{
    base::{Budget, Error, GuestOffset, GuestRange, HostOffset, HostRange, Result, units::SECTOR_BYTES},
    io::{File, Kept, Moved},
    map::Extent,
};
use std::{fmt, sync::Arc};

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU copy-on-write, versions 2 and 3.
    Qcow2,
    /// Hyper-V's virtual hard disk, version 2.
    Vhdx,
    /// Microsoft's virtual hard disk: fixed, dynamic, differencing.
    Vpc,
    /// VMware's disks.
    Vmdk,
}

impl Format {
    /// Every format, in the order in which headers are tried.
    pub const ALL: [Self; 5] = [Self::Qcow2, Self::Vhdx, Self::Vmdk, Self::Vpc, Self::Raw];

    /// Returns the name used in options and in images (`-f`, `-F`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Vmdk => "vmdk",
        }
    }

    /// Returns how names of such images end, the usual ending first.
    pub const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Raw => &["raw"],
            Self::Qcow2 => &["qcow2"],
            // Those of Hyper-V's checkpoints begin with an a.
            Self::Vhdx => &["vhdx", "avhdx"],
            Self::Vpc => &["vhd", "avhd", "vpc"],
            Self::Vmdk => &["vmdk"],
        }
    }

    /// Returns the format of that name (as qemu spells it).
    pub fn parse(name: &str) -> Result<Self> {
        let name = if name == "vhd" { Self::Vpc.name() } else { name };
        let found = Self::ALL.into_iter().find(|f| f.name() == name);
        let known = "raw, qcow2, vhdx, vpc, vmdk";
        found.ok_or_else(|| Error::unsupported(format!("unknown image format '{name}' (known: {known})")))
    }

    /// Returns the options of new images: name, and what it does.
    pub const fn options(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Raw => raw::OPTIONS,
            Self::Qcow2 => qcow2::OPTIONS,
            Self::Vhdx => vhdx::OPTIONS,
            Self::Vpc => vpc::OPTIONS,
            Self::Vmdk => vmdk::OPTIONS,
        }
    }

    /// Returns the format whose header stands at the start of `file`; raw if none does.
    ///
    /// Only for files that a person named: a guest can write any header into a raw disk.
    pub fn recognise(file: &dyn File) -> Result<Self> {
        let mut start = [0; 8];
        file.read_at(HostOffset::new(0), &mut start)?;
        Ok(if start.starts_with(&qcow2::MAGIC) {
            Self::Qcow2
        } else if start == vhdx::MAGIC {
            Self::Vhdx
        } else if vmdk::is_there(file)? {
            Self::Vmdk
        } else if vpc::is_there(file)? {
            // A fixed one shows it at its end only, as a raw disk may whose guest wrote that there.
            Self::Vpc
        } else {
            Self::Raw
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The longest name of another file that a header may have, in bytes: what qcow2 has room for, in every format.
pub const NAME_BYTES_MAX: usize = 1023;

/// The parent as a child's header names it: untrusted bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParentName {
    /// The name, relative to the child's folder unless absolute.
    pub name: Vec<u8>,
    /// The format that the header states; `None` if it states none (then it is not opened without `-F`).
    pub format: Option<String>,
    /// Further names that the header has for it, tried in order where nothing is found at the first.
    pub others: Vec<Vec<u8>>,
    /// What the header says that the parent says of itself, where both formats have that.
    pub identity: Option<Identity>,
    /// Whether qemu reads that parent wrongly and says nothing: its children have to keep qemu away.
    pub is_misread: bool,
}

impl ParentName {
    /// Names `parent` as it is now.
    pub fn of(parent: &dyn Image, name: Vec<u8>) -> Self {
        Self {
            identity: parent.identity(),
            // Of a differencing VHD qemu leaves the parent out. What lies on one says so itself.
            is_misread: parent.format() == Format::Vpc && parent.parent().is_some(),
            ..Self::new(name, Some(parent.format().name().to_owned()))
        }
    }

    /// Returns whether both lead to the same name and format.
    pub fn leads_like(&self, other: &Self) -> bool {
        (&self.name, &self.format) == (&other.name, &other.format)
    }

    /// Names a parent in one way.
    pub const fn new(name: Vec<u8>, format: Option<String>) -> Self {
        Self { name, format, others: Vec::new(), identity: None, is_misread: false }
    }
}

/// The bytes below a layer, for what it does not hold itself.
pub trait Below: Send + Sync {
    /// Fills `buf` with what is read at `at` below the layer; zeros past the end of what is there.
    fn read(&self, at: GuestOffset, buf: &mut [u8]) -> Result<()>;

    /// Returns whether all of `range` is known to read as zeros (false if in doubt).
    fn is_zero(&self, range: GuestRange) -> Result<bool>;
}

/// Nothing below: all zeros.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Below for Nothing {
    fn read(&self, _at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn is_zero(&self, _range: GuestRange) -> Result<bool> {
        Ok(true)
    }
}

/// Opens the further files of an image (an external data file) under the caller's reference policy.
pub trait Parts {
    /// Opens the file that the image's header calls `name`, for writing if the image is.
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>>;

    /// Returns what the memory for the image's tables is taken from.
    fn budget(&self) -> Budget;

    /// Returns the name that a new image is going to have, where its file's is not that: its further files are called
    /// after it.
    fn image_name(&self) -> Option<Vec<u8>> {
        None
    }
}

/// Refuses every further file.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoParts;

impl Parts for NoParts {
    fn open_part(&self, name: &[u8]) -> Result<Arc<dyn File>> {
        Err(Error::policy(format!("refers to another file, '{}'", String::from_utf8_lossy(name))))
    }

    fn budget(&self) -> Budget {
        Budget::default()
    }
}

/// How an image is to be made.
#[derive(Clone, Debug, Default)]
pub struct Creation {
    /// Size of the disk in bytes; rounded up to 512 by the caller.
    pub size: u64,
    /// The parent to name, if it is to be a child.
    pub parent: Option<ParentName>,
    /// The format's own options (`-o key=value`), as written.
    pub options: Vec<(String, String)>,
}

/// Opens an image of a stated format in a file that is open already.
///
/// `is_writable` says whether the caller will write; opening for writing marks the image as its format asks.
///
/// ```
/// use deltachain::{
///     base::{GuestOffset, HostOffset},
///     format::{self, Format, NoParts, Nothing},
///     io::{File, memory::MemoryFile},
/// };
/// use std::sync::Arc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = Arc::new(MemoryFile::new("disk.raw"));
/// file.write_at(HostOffset::new(0), &[7; 512])?;
/// let image = format::open(Format::Raw, file, false, &NoParts)?;
/// let mut bytes = [0; 512];
/// image.read(GuestOffset::new(0), &mut bytes, &Nothing)?;
/// assert_eq!((image.size(), bytes), (512, [7; 512]));
/// # Ok(())
/// # }
/// ```
pub fn open(
    format: Format,
    file: Arc<dyn File>,
    is_writable: bool,
    parts: &dyn Parts,
) -> Result<Arc<dyn Image>> {
    match format {
        Format::Raw => raw::open(file, is_writable, parts),
        Format::Qcow2 => qcow2::open(file, is_writable, parts),
        Format::Vhdx => vhdx::open(file, is_writable, parts),
        Format::Vpc => vpc::open(file, is_writable, parts),
        Format::Vmdk => vmdk::open(file, is_writable, parts),
    }
}

/// Sums up what a new image needs; `Invalid` for unknown options.
pub fn measure(format: Format, creation: &Creation) -> Result<Measure> {
    match format {
        Format::Raw => raw::measure(creation),
        Format::Qcow2 => qcow2::measure(creation),
        Format::Vhdx => vhdx::measure(creation),
        Format::Vpc => vpc::measure(creation),
        Format::Vmdk => vmdk::measure(creation),
    }
}

/// Makes a new image in an empty file: durable after its [`Image::flush`]. Unknown options are `Invalid`.
///
/// ```
/// use deltachain::{
///     base::GuestOffset,
///     format::{self, Creation, Format, NoParts, Nothing},
///     io::memory::MemoryFile,
/// };
/// use std::sync::Arc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = Arc::new(MemoryFile::new("disk.qcow2"));
/// let options = vec![("cluster_size".to_owned(), "4k".to_owned())];
/// let creation = Creation { size: 1 << 20, parent: None, options };
/// let image = format::create(Format::Qcow2, file.clone(), &creation, &NoParts)?;
/// // Nothing lies below: what is not written reads as zeros.
/// image.write(GuestOffset::new(512), b"hello", &Nothing)?;
/// image.flush()?;
/// assert_eq!(Format::recognise(file.as_ref())?, Format::Qcow2);
/// # Ok(())
/// # }
/// ```
pub fn create(
    format: Format,
    file: Arc<dyn File>,
    creation: &Creation,
    parts: &dyn Parts,
) -> Result<Arc<dyn Image>> {
    match format {
        Format::Raw => raw::create(file, creation, parts),
        Format::Qcow2 => qcow2::create(file, creation, parts),
        Format::Vhdx => vhdx::create(file, creation, parts),
        Format::Vpc => vpc::create(file, creation, parts),
        Format::Vmdk => vmdk::create(file, creation, parts),
    }
}

/// What a header alone says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Size of the disk in bytes.
    pub size: u64,
    /// The parent that it names.
    pub parent: Option<ParentName>,
    /// The names of the further files that it keeps its bytes in: a data file, or extents.
    pub data_names: Vec<Vec<u8>>,
}

/// Reads an image's header and nothing else.
pub fn peek(format: Format, file: &dyn File) -> Result<Peek> {
    match format {
        Format::Raw => {
            let size = file.bytes()?.next_multiple_of(SECTOR_BYTES);
            Ok(Peek { size, parent: None, data_names: Vec::new() })
        }
        Format::Qcow2 => {
            let header = qcow2::Header::read(file)?;
            let names = header.data_file_name().filter(|_| header.has_data_file()).map(<[u8]>::to_vec);
            Ok(Peek { size: header.disk_bytes, parent: header.parent(), data_names: Vec::from_iter(names) })
        }
        Format::Vhdx => vhdx::peek(file),
        Format::Vpc => vpc::peek(file),
        Format::Vmdk => vmdk::peek(file),
    }
}

/// Marks an image as replaced, so that no program opens it any more, durably and in one step; `why` is for
/// whoever tries. False where the format has no such mark.
pub fn retire(format: Format, file: &dyn File, why: &str) -> Result<bool> {
    match format {
        Format::Raw | Format::Vhdx | Format::Vpc | Format::Vmdk => Ok(false),
        Format::Qcow2 => qcow2::retire(file, why),
    }
}

/// Returns whether the image in `file` has been retired.
pub fn is_retired(file: &dyn File) -> Result<bool> {
    match Format::recognise(file)? {
        Format::Raw | Format::Vhdx | Format::Vpc | Format::Vmdk => Ok(false),
        Format::Qcow2 => qcow2::is_retired(file),
    }
}

/// Looks at an image's metadata, and mends what `repair` allows (the file is open for writing then).
///
/// `Unsupported` for formats that have nothing to check.
pub fn check(format: Format, file: Arc<dyn File>, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    match format {
        Format::Raw => Err(Error::unsupported("raw images have no metadata to check").path(file.path())),
        Format::Qcow2 => qcow2::check(file, repair, parts),
        Format::Vhdx => vhdx::check(file, repair),
        Format::Vpc => vpc::check(&file, repair),
        Format::Vmdk => vmdk::check(&file, repair, parts),
    }
}

/// What [`Image::adopt`] took in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Where it is now.
    pub place: HostRange,
    /// How it came there.
    pub moved: Moved,
}

/// One open image: one layer, without what lies below it.
///
/// All methods take `&self`; several threads may read and write at once, a reader sees each write whole or
/// not per sector. Errors name the file. After a failed metadata write the image is *poisoned*: further
/// writes fail until it is opened again.
///
/// What only some formats have (clusters that can be taken over or packed, bitmaps, a place for a record) has a default
/// that says so. Nothing wraps an image: a wrapper would have to pass each of them on.
pub trait Image: Send + Sync + fmt::Debug {
    /// Returns the format.
    fn format(&self) -> Format;

    /// Returns the size of the disk in bytes.
    fn size(&self) -> u64;

    /// Returns the smallest run that the image allocates, in bytes: 1 for raw, else a power of two.
    fn unit(&self) -> u64;

    /// Returns the smallest unit in which the guest is to address the disk, in bytes: a power of two, 512 or more. 512 where
    /// the format has no place for another.
    fn sector_bytes(&self) -> u64 {
        SECTOR_BYTES
    }

    /// Returns what the memory for maps of this image is taken from.
    fn budget(&self) -> &Budget;

    /// Returns the parent that the header names.
    fn parent(&self) -> Option<ParentName>;

    /// Returns what the image says of itself in its format's own way, for the links of its children: as its header has
    /// it now. `None` where the format has nothing of the kind.
    fn identity(&self) -> Option<Identity>;

    /// Returns what `info` shows.
    fn details(&self) -> Result<Details>;

    /// Returns the image's files, the one with the header first.
    fn files(&self) -> Vec<Arc<dyn File>>;

    /// Returns the file that the host offsets of [`Image::map`] point into.
    fn data_file(&self) -> Arc<dyn File>;

    /// Appends what this layer says about `range` (within the size): in order, covering it, joined.
    ///
    /// Host offsets stay true until the image is written.
    fn map(&self, range: GuestRange, out: &mut Vec<Extent>) -> Result<()>;

    /// Fills `buf` from `at`, taking from `below` what this layer does not hold.
    fn read(&self, at: GuestOffset, buf: &mut [u8], below: &dyn Below) -> Result<()>;

    /// Stores `buf` at `at`. What else a newly allocated unit shows comes from `below`.
    fn write(&self, at: GuestOffset, buf: &[u8], below: &dyn Below) -> Result<()>;

    /// Stores what `source` holds at `from`, `range.bytes` long, at `range`: shared with the host's help where
    /// that can be, copied otherwise.
    fn write_from(
        &self,
        range: GuestRange,
        source: &dyn File,
        from: HostOffset,
        below: &dyn Below,
    ) -> Result<Moved>;

    /// Takes in what `source` holds in whole clusters from the start of `range` on, shared with the host's help, at a
    /// place of [`Image::data_file`] that nothing refers to until [`Image::point`] does: as much as has room in a
    /// row. What is never pointed to is free again when the image is closed, and after a power cut.
    ///
    /// `None`, and nothing done, where the host cannot share it, or this image has no such places.
    fn adopt(&self, _source: &dyn File, _range: HostRange) -> Result<Option<Adopted>> {
        Ok(None)
    }

    /// Makes `range` show what was adopted at `host`; false if these are not whole clusters, or not adopted ones that
    /// nothing refers to yet: some of `range` may show it then.
    fn point(&self, _range: GuestRange, _host: HostOffset) -> Result<bool> {
        Ok(false)
    }

    /// Returns one cluster's bytes in the shape in which [`Image::write_packed`] stores them; `None` if the format
    /// cannot or nothing is saved. Fewer bytes than a cluster stand for the disk's end. Pure: call it from many
    /// threads.
    fn pack(&self, _bytes: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Stores what [`Image::pack`] returned as the cluster ([`Details::cluster_bytes`]) at `at`.
    fn write_packed(&self, _at: GuestOffset, _packed: &[u8]) -> Result<()> {
        Err(lacks(self, "compressed clusters"))
    }

    /// Makes exactly the bytes of `range` read as zeros; [`Kept::Nothing`] gives whole units back.
    fn zero(&self, range: GuestRange, kept: Kept, below: &dyn Below) -> Result<()>;

    /// Returns whether [`Image::zero`] is known to store no zeros for this range.
    fn zeroes_fast(&self, range: GuestRange, kept: Kept) -> bool;

    /// Gives the disk now the identity that the first write of this opening brings: a child may name it from here on.
    fn begin_writing(&self) -> Result<()> {
        Ok(())
    }

    /// Makes everything before this call durable, in an order that leaves at worst leaks after a cut.
    fn flush(&self) -> Result<()>;

    /// The same, and with it the times at which the image's files were changed.
    fn flush_with_time(&self) -> Result<()>;

    /// Returns the bits of a persistent bitmap; `NotFound` if there is none of that name.
    fn bitmap(&self, _name: &str) -> Result<Bits> {
        Err(lacks(self, "bitmaps"))
    }

    /// Changes the persistent bitmaps, durably; a cut leaves the old ones or the new ones.
    ///
    /// `NotFound`, `Exists`, `Invalid` as the name and the bitmap's state ask; `Unsupported` where there are none.
    fn edit_bitmap(&self, _edit: &BitmapEdit) -> Result<()> {
        Err(lacks(self, "bitmaps"))
    }

    /// Has the bitmaps that record stay sound while the disk is written from here on, also over a crash: the first change in
    /// each `region_bytes` of it marks all of them there, durably, before it is made. Without this they are marked as in
    /// use before the first change. A change of size still does that.
    ///
    /// Whoever takes bits away sees to it that nobody changes the disk meanwhile.
    fn keep_bitmaps(&self, _region_bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Gives back to the host what space of the image's file holds nothing: free clusters, the free end. Everything
    /// before this call is durable first. Returns the bytes given back.
    ///
    /// `Corrupt`, and nothing done, if what is free cannot be told for sure.
    fn release(&self) -> Result<u64>;

    /// Fails with `Policy` if a part of the disk is never written, whoever writes.
    fn check_fillable(&self) -> Result<()> {
        Ok(())
    }

    /// Fails where [`Image::resize`] would because no such image has that size, or this one keeps its own; as far as that is
    /// known without trying.
    fn check_size(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Changes the size. Growth reads as zeros whatever lies below; what is cut off is gone. Durable.
    fn resize(&self, bytes: u64, below: &dyn Below) -> Result<()>;

    /// Names another parent, or none. Durable; one step that every reader sees whole.
    fn set_parent(&self, parent: Option<&ParentName>) -> Result<()>;

    /// Returns the project's record from inside the file; `None` if there is none or no place for one.
    fn record(&self) -> Result<Option<StoredRecord>> {
        Ok(None)
    }

    /// Stores or removes the project's record inside the file, durably once the image is flushed, before which nothing
    /// else of the header is changed; false, and nothing changed, if there is no place for it, or the image is open for
    /// reading only.
    fn set_record(&self, _record: Option<&[u8]>) -> Result<bool> {
        Ok(false)
    }

    /// Has the project's record inside the file count no longer, as if another program had written the image; durably once
    /// the image is flushed. Nothing is done if it is open for reading only.
    fn void_record(&self) -> Result<()> {
        Ok(())
    }

    /// Has the image keep what it says of itself while what is written leaves its view as it is, until that is taken back.
    fn keep_identity(&self, _keeps: bool) {}

    /// Returns whether whoever opens the image for writing changes its files before anything is written, as a cut or a killed
    /// program left something to be put right.
    fn awaits_recovery(&self) -> bool {
        false
    }

    /// Has the image say of itself what another one said that showed the same, durably, after all that was written: children
    /// know it by that. The next write changes it again where the format wants that; without such identities nothing is done.
    fn set_identity(&self, _identity: Identity) -> Result<()> {
        Ok(())
    }
}

/// Refuses a range that is not on a disk of `size` bytes.
fn check_on_disk(range: GuestRange, size: u64) -> Result<()> {
    if range.start.bytes().checked_add(range.bytes).is_some_and(|end| end <= size) {
        return Ok(());
    }
    let what = format!("{} bytes at {:#x} pass the disk's end at {size:#x}", range.bytes, range.start);
    Err(Error::invalid(what))
}

/// Refuses what a format does not have.
fn lacks<I: Image + ?Sized>(image: &I, what: &str) -> Error {
    let path = image.data_file().path().to_path_buf();
    Error::unsupported(format!("{} images have no {what}", image.format())).path(path)
}
