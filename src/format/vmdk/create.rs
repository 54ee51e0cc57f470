//! Making a new disk, each part written once. Nobody knows its files yet, so no order is kept; one flush ends it.
//!
//! ```text
//! | header | descriptor | redundant directory, its tables | directory, its tables | grains ... |
//! 0        1            21 (sectors)
//! ```
//! Tables are holes before anything is written, and all are there: qemu adds none. What a change of the parent touches
//! stands in the descriptor's first sector, with room to spare.

use super::{
    descriptor::NO_PARENT,
    desk::{self, PARENT_FORMAT},
    layout::{
        COWD_BYTES, COWD_MAGIC, COWD_PER_TABLE, Cowd, FLAG_NEWLINES, FLAG_TWIN, FLAG_ZEROS, HOSTED_MAGIC,
        Hosted,
    },
    open,
    options::{Options, Subformat},
    stream::StreamImage,
};
use crate::{
    base::{
        Error, HostOffset, Result,
        error::InFile,
        seed,
        units::{SECTOR_BYTES, count},
    },
    format::{Creation, Format, Identity, Image, ParentName, Parts},
    io::File,
};
use std::{ffi::OsStr, fmt::Write as _, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

/// Where the descriptor is in a sparse file (qemu looks there, whatever the header says), and how long it is, in sectors.
pub(super) const DESCRIPTOR: (u64, u64) = (1, 20);
/// Entries in a table.
pub(super) const PER_TABLE: u32 = 512;
/// Sectors in a table.
const TABLE_SECTORS: u64 = PER_TABLE as u64 * 4 / SECTOR_BYTES;
/// The most that an extent of a disk in pieces holds: as VMware cuts them.
const PIECE_BYTES: u64 = 2047 << 20;

/// Where everything is in a new sparse file, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    twin: u64,
    directory: u64,
    entries: u64,
    /// Where grains begin.
    pub(super) overhead: u64,
}

impl Plan {
    /// Lays out a file for so many bytes, behind `first` sectors of something else.
    pub(super) const fn new(bytes: u64, grain: u64, first: u64) -> Self {
        let entries = bytes.div_ceil(grain * PER_TABLE as u64);
        let directory_sectors = (entries * 4).div_ceil(SECTOR_BYTES);
        let one = directory_sectors + entries * TABLE_SECTORS;
        let overhead = (first + 2 * one).next_multiple_of(grain / SECTOR_BYTES);
        Self { twin: first, directory: first + one, entries, overhead }
    }

    /// Returns a directory's bytes, which stands at `at` with its tables behind it.
    fn directory(self, at: u64) -> Result<Vec<u8>> {
        let first = at + (self.entries * 4).div_ceil(SECTOR_BYTES);
        let sector = |nth| u32::try_from(first + nth * TABLE_SECTORS);
        let full = |_| Error::invalid("the disk is too large for a sparse VMDK");
        let sectors: Vec<u32> =
            (0..self.entries).map(sector).collect::<std::result::Result<_, _>>().map_err(full)?;
        Ok(sectors.into_iter().flat_map(u32::to_le_bytes).collect())
    }
}

/// Makes a new disk in an empty file, and further ones that `parts` makes, and opens it for writing; durable once it is
/// flushed.
pub(super) fn create(file: Arc<dyn File>, creation: &Creation, parts: &dyn Parts) -> Result<Arc<dyn Image>> {
    let options = Options::parse(creation).in_file(file.path())?;
    if options.subformat == Subformat::StreamOptimized {
        let (path, name) = (file.path().to_path_buf(), plain_name(&own_name(file.as_ref(), parts)));
        let stream = StreamImage::create(file, (&options, creation), name, parts).in_file(&path)?;
        return Ok(Arc::new(stream));
    }
    write(file.as_ref(), (&options, creation), parts).in_file(file.path())?;
    Ok(Arc::new(open::open(file, true, parts)?.into_new()))
}

/// Returns what the image is going to be called.
fn own_name(file: &dyn File, parts: &dyn Parts) -> Vec<u8> {
    let own = || file.path().file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    parts.image_name().unwrap_or_else(own)
}

/// Returns a name that nobody looks for, since what follows is in the very file: as a descriptor can hold it.
fn plain_name(own: &[u8]) -> Vec<u8> {
    own.iter().map(|byte| if is_plain(*byte) { *byte } else { b'_' }).collect()
}

fn write(file: &dyn File, (options, creation): (&Options, &Creation), parts: &dyn Parts) -> Result<()> {
    if file.is_device() {
        return Err(Error::unsupported("a VMDK grows with what is written, and a device does not"));
    }
    file.set_bytes(0)?;
    let own = own_name(file, parts);
    let size = creation.size;
    if options.subformat == Subformat::MonolithicSparse {
        let text = descriptor(options, creation, &[(size, plain_name(&own))])?;
        return sparse(file, size, options, Some(&text));
    }
    let mut lines = Vec::new();
    let piece = if options.subformat.is_in_pieces() { PIECE_BYTES } else { u64::MAX };
    for (nth, part) in HostOffset::new(0).range(size).pieces(piece).enumerate() {
        let name = part_name(&own, options.subformat, nth + 1);
        if !name.iter().copied().all(is_plain) {
            return Err(Error::invalid(
                "a name with quotes or control characters: a descriptor cannot hold it",
            ));
        }
        let extent = parts.open_part(&name)?;
        match options.subformat {
            Subformat::VmfsSparse => cowd(extent.as_ref(), part.bytes, options.grain)?,
            kind if kind.is_flat() => extent.set_bytes(part.bytes)?,
            _ => sparse(extent.as_ref(), part.bytes, options, None)?,
        }
        lines.push((part.bytes, name));
    }
    file.write_at(HostOffset::new(0), &descriptor(options, creation, &lines)?)
}

const fn is_plain(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != 0x7f
}

/// Returns the name of an extent's file, as VMware gives it.
fn part_name(own: &[u8], subformat: Subformat, nth: usize) -> Vec<u8> {
    let path = Path::new(OsStr::from_bytes(own));
    let stem = match path.extension() {
        Some(ending) if ending.eq_ignore_ascii_case("vmdk") => path.file_stem().unwrap_or_default(),
        _ => path.as_os_str(),
    };
    let ending = match subformat {
        Subformat::MonolithicFlat => "-flat.vmdk".to_owned(),
        Subformat::VmfsSparse => "-delta.vmdk".to_owned(),
        Subformat::TwoGbMaxExtentFlat => format!("-f{nth:03}.vmdk"),
        _ => format!("-s{nth:03}.vmdk"),
    };
    [stem.as_bytes(), ending.as_bytes()].concat()
}

/// Makes a sparse file.
fn sparse(file: &dyn File, bytes: u64, options: &Options, text: Option<&[u8]>) -> Result<()> {
    let (descriptor, descriptor_size) = if text.is_some() { DESCRIPTOR } else { (0, 0) };
    let grain = options.grain;
    let plan = Plan::new(bytes, grain, descriptor + descriptor_size.max(1));
    let header = Hosted {
        magic: HOSTED_MAGIC,
        version: if options.marks_zeros { 2 } else { 1 },
        flags: FLAG_NEWLINES | FLAG_TWIN | if options.marks_zeros { FLAG_ZEROS } else { 0 },
        capacity: bytes / SECTOR_BYTES,
        grain: grain / SECTOR_BYTES,
        descriptor,
        descriptor_size,
        per_table: PER_TABLE,
        twin: plan.twin,
        directory: plan.directory,
        overhead: plan.overhead,
        is_unclean: 0,
        newlines: *b"\n \r\n",
        compression: 0,
        pad: [0; 433],
    };
    file.set_bytes(plan.overhead * SECTOR_BYTES)?;
    for at in [plan.twin, plan.directory] {
        file.write_at(HostOffset::new(at * SECTOR_BYTES), &plan.directory(at)?)?;
    }
    if let Some(text) = text {
        if count(text.len()) > DESCRIPTOR.1 * SECTOR_BYTES {
            return Err(Error::invalid("the parent's name is too long for a VMDK"));
        }
        file.write_at(HostOffset::new(DESCRIPTOR.0 * SECTOR_BYTES), text)?;
    }
    file.write_at(HostOffset::new(0), &header.to_bytes())
}

/// Makes a sparse file of ESX: tables come with what is written.
fn cowd(file: &dyn File, bytes: u64, grain: u64) -> Result<()> {
    let full = |_| Error::invalid("the disk is too large for a sparse file of ESX");
    let word = |number: u64| u32::try_from(number).map_err(full);
    let directory = COWD_BYTES / SECTOR_BYTES;
    let entries = bytes.div_ceil(grain * COWD_PER_TABLE);
    let free = directory + (entries * 4).div_ceil(SECTOR_BYTES);
    let header = Cowd {
        magic: COWD_MAGIC,
        version: 1,
        flags: 3,
        capacity: word(bytes / SECTOR_BYTES)?,
        grain: word(grain / SECTOR_BYTES)?,
        directory: word(directory)?,
        entries: word(entries)?,
        free: word(free)?,
    };
    file.set_bytes(free * SECTOR_BYTES)?;
    file.write_at(HostOffset::new(0), &header.to_bytes())
}

/// Returns the lines that link a disk to a parent, or to none: keys and values; `Invalid` for a name that no line can
/// hold. `fresh` stands for a parent that says nothing of itself.
pub(super) fn link(parent: Option<&ParentName>, fresh: u32) -> Result<[(&'static str, Option<String>); 3]> {
    let Some(parent) = parent else {
        let none = Some(format!("{NO_PARENT:08x}"));
        return Ok([("parentCID", none), ("parentFileNameHint", None), (PARENT_FORMAT, None)]);
    };
    let cid = match parent.identity {
        Some(Identity::Cid(cid)) => cid,
        _ => fresh,
    };
    let format = parent.format.clone().filter(|format| format != Format::Vmdk.name());
    let shown = || String::from_utf8_lossy(&parent.name).escape_debug().to_string();
    let name = std::str::from_utf8(&parent.name).ok().filter(|name| name.bytes().all(is_plain));
    let refusal = || Error::invalid(format!("the parent's name '{}' cannot stand in a descriptor", shown()));
    let name = name.filter(|name| !name.is_empty()).ok_or_else(refusal)?;
    // A name with no other slash would be one of Windows, in which this one leads into a folder.
    let here = if name.contains('\\') && !name.contains('/') { "./" } else { "" };
    Ok([
        ("parentCID", Some(format!("{cid:08x}"))),
        ("parentFileNameHint", Some(format!("{here}{name}"))),
        (PARENT_FORMAT, format),
    ])
}

/// Returns the descriptor of a new disk.
pub(super) fn descriptor(
    options: &Options,
    creation: &Creation,
    extents: &[(u64, Vec<u8>)],
) -> Result<Vec<u8>> {
    let mut text = String::from("# Disk DescriptorFile\nversion=1\n");
    let parent_name = creation.parent.iter().map(|parent| &parent.name);
    if !extents.iter().map(|(_, name)| name).chain(parent_name).all(|name| name.is_ascii()) {
        // Without it VMware on Windows reads what its own system writes.
        text.push_str("encoding=\"UTF-8\"\n");
    }
    let (cid, kind) = (desk::cid_of(seed::fresh()), options.subformat.name());
    let [(_, parent_cid), (_, hint), (_, format)] =
        link(creation.parent.as_ref(), desk::cid_of(seed::fresh()))?;
    let parent_cid = parent_cid.unwrap_or_default();
    let _ = write!(text, "CID={cid:08x}\nparentCID={parent_cid}\ncreateType=\"{kind}\"\n");
    if let Some(hint) = hint {
        let _ = writeln!(text, "parentFileNameHint=\"{hint}\"");
    }
    if let Some(format) = format {
        let _ = writeln!(text, "{PARENT_FORMAT} = \"{format}\"");
    }
    let mut text = desk::with_room(text.into_bytes())?;
    text.extend_from_slice(b"# Extent description\n");
    let (word, end) = match options.subformat {
        Subformat::VmfsSparse => ("VMFSSPARSE", "\"\n"),
        kind if kind.is_flat() => ("FLAT", "\" 0\n"),
        _ => ("SPARSE", "\"\n"),
    };
    for (bytes, name) in extents {
        text.extend(format!("RW {} {word} \"", bytes / SECTOR_BYTES).bytes());
        text.extend_from_slice(name);
        text.extend_from_slice(end.as_bytes());
    }
    let (heads, adapter) = (options.heads(), options.adapter);
    let cylinders = creation.size / (63 * heads * SECTOR_BYTES);
    let version = &options.hardware;
    text.extend(
        format!(
            "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{version}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\n\
             ddb.geometry.sectors = \"63\"\nddb.adapterType = \"{adapter}\"\n"
        )
        .bytes(),
    );
    Ok(text)
}
