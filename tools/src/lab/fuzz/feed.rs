//! Having an input read by all that may meet it, and judging what comes of it.

use super::{
    bounded::{Bounded, Budget},
    subject::{HEAD, TARGET},
};
use deltachain::{
    base::{
        self, Error, ErrorKind, GuestOffset, GuestRange, HostOffset, Result as Answer,
        units::{SECTOR_BYTES, count, index},
    },
    content::{ContentId, Tree},
    format::{self, Checked, Format, Image, NoParts, Nothing, Parts, Repair, qcow2::Header},
    io::{File, Host, Kept, faulty::SimHost},
    map::{Extent, State},
    store::{Journal, LayerRecord, Transfer, vmware},
};
use std::{collections::BTreeSet, io::Cursor, path::Path, sync::Arc};

/// The longest part of a disk whose map is asked for at once, in guest bytes.
const MAP_BYTES: u64 = 1 << 30;
/// What is read of an image in all, in guest bytes.
const READ_BYTES: u64 = 64 << 20;
/// Piece in which it is read.
const PIECE_BYTES: u64 = 1 << 20;
/// What is written into an image at each place.
const MARK: [u8; 3000] = [0xd7; 3000];

/// How far an input came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Whether it passed the checks of its header (or is what its parser takes for one).
    pub is_past_header: bool,
    /// Whether it was opened for writing, and written.
    pub is_written: bool,
    /// Whether a repair brought it from damaged to clean.
    pub is_mended: bool,
}

/// What must not come of an input, in words.
pub type Wrong = String;

/// Checks an image, and repairs what it is allowed to.
type Check<'a> = &'a dyn Fn(&Arc<Bounded>, Repair) -> Result<Option<Checked>, Wrong>;

/// The data file of an image, whatever its name.
struct DataFile(Arc<Bounded>);

impl Parts for DataFile {
    fn open_part(&self, _name: &[u8]) -> Answer<Arc<dyn File>> {
        Ok(self.0.clone())
    }

    fn budget(&self) -> base::Budget {
        base::Budget::default()
    }
}

/// Passes an answer on, unless it is an error that says nothing.
pub(super) fn sane<T>(doing: &str, answer: Answer<T>) -> Result<Option<T>, Wrong> {
    let error = match answer {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    let is_apt = matches!(
        error.kind(),
        ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::Invalid
            | ErrorKind::Policy
            | ErrorKind::NoSpace
    );
    if !is_apt || error.file().is_none() || error.to_string().len() < 16 {
        return Err(format!("{doing}: the error says too little: {:?} '{error}'", error.kind()));
    }
    Ok(None)
}

pub(super) fn memory(e: &Error) -> Wrong {
    format!("the laboratory's own file: {e}")
}

/// Reads, checks, repairs and writes a qcow2 image.
pub(super) fn qcow2(input: &[u8], data: &[u8]) -> Result<Fed, Wrong> {
    let past_header = |file: &Bounded| Ok(sane("header", Header::read(file))?.is_some());
    image(Format::Qcow2, (input, data), past_header)
}

/// Reads, checks, repairs and writes a VHDX image.
pub(super) fn vhdx(input: &[u8]) -> Result<Fed, Wrong> {
    image(Format::Vhdx, (input, &[]), |file| Ok(sane("peek", format::peek(Format::Vhdx, file))?.is_some()))
}

/// Reads, checks, repairs and writes a VMDK disk; `data` is what its further file holds.
pub(super) fn vmdk(input: &[u8], data: &[u8]) -> Result<Fed, Wrong> {
    image(Format::Vmdk, (input, data), |file| Ok(sane("peek", format::peek(Format::Vmdk, file))?.is_some()))
}

/// Reads, checks, repairs and writes a VHD.
pub(super) fn vpc(input: &[u8]) -> Result<Fed, Wrong> {
    image(Format::Vpc, (input, &[]), |file| Ok(sane("peek", format::peek(Format::Vpc, file))?.is_some()))
}

fn image(
    format: Format,
    (input, data): (&[u8], &[u8]),
    past_header: impl Fn(&Bounded) -> Result<bool, Wrong>,
) -> Result<Fed, Wrong> {
    let budget = Budget::new();
    let new = |bytes: &[u8]| Bounded::new(bytes, &budget).map_err(|e| memory(&e));
    let (file, data) = (new(input)?, new(data)?);
    let is_past_header = past_header(&file)?;
    sane("peek", format::peek(format, &*file))?;
    let parts = DataFile(data);
    if let Some(image) = sane("open", format::open(format, file.clone(), false, &parts))? {
        look(image.as_ref())?;
    }
    let checked =
        |file: &Arc<Bounded>, repair| sane("check", format::check(format, file.clone(), repair, &parts));
    let before = checked(&file, Repair::Nothing)?;
    let copy = file.copy().map_err(|e| memory(&e))?;
    let is_written = write((format, &copy), &parts, before.as_ref().is_some_and(is_clean), &checked)?;
    let repaired = file.copy().map_err(|e| memory(&e))?;
    let left = checked(&repaired, Repair::All)?;
    let is_mended = left.as_ref().is_some_and(is_clean);
    if is_mended {
        let again = checked(&repaired, Repair::Nothing)?;
        if !again.as_ref().is_some_and(is_clean) {
            return Err(format!("clean after a repair, and then not: {again:?}"));
        }
        write((format, &repaired), &parts, true, &checked)?;
    }
    if budget.is_spent() {
        return Err("more I/O than any input is worth".to_owned());
    }
    let was_clean = before.as_ref().is_some_and(is_clean);
    Ok(Fed { is_past_header, is_written, is_mended: is_mended && !was_clean })
}

fn is_clean(checked: &Checked) -> bool {
    checked.corruptions == 0 && checked.leaks == 0 && checked.errors == 0
}

/// Whether nothing is wrong but, at worst, leaks, and missing flags on clusters that two entries shared before
/// one of them was written: the other one's is not looked for, in qemu neither.
fn is_sound(checked: &Checked) -> bool {
    // A finding that counts for nothing is a remark.
    is_clean(checked)
        || checked.errors == 0
            && checked.findings.iter().all(|said| said.contains("leaked") || said.ends_with(SOLE))
}

/// How `check` speaks of a missing flag.
const SOLE: &str = "is flagged wrongly: the refcount is 1";

/// Asks an image for all that it tells.
fn look(image: &dyn Image) -> Result<(), Wrong> {
    sane("details", image.details())?;
    if let Some(Some(record)) = sane("record", image.record())? {
        LayerRecord::decode(&record.bytes);
    }
    let size = image.size();
    let ends = [0, size.saturating_sub(MAP_BYTES).max(size.min(MAP_BYTES))];
    let mut left = READ_BYTES;
    for start in ends {
        let range = GuestOffset::new(start).range(MAP_BYTES.min(size - start));
        let mut extents = Vec::new();
        if sane("map", image.map(range, &mut extents))?.is_some() {
            covers(range, &extents)?;
        } else {
            extents = vec![Extent::new(range, State::Packed)];
        }
        let told = extents.iter().filter(|e| matches!(e.state, State::Data { .. } | State::Packed));
        for piece in told.flat_map(|e| e.range.pieces(PIECE_BYTES)) {
            if left < piece.bytes {
                break;
            }
            left -= piece.bytes;
            sane("read", image.read(piece.start, &mut vec![0; index(piece.bytes)], &Nothing))?;
        }
    }
    Ok(())
}

fn covers(range: GuestRange, extents: &[Extent]) -> Result<(), Wrong> {
    let mut at = range.start;
    for extent in extents {
        if extent.range.start != at || extent.range.is_empty() {
            return Err(format!("map of {range:?}: {:?} does not follow {at:?}", extent.range));
        }
        at = extent.range.end();
    }
    if at == range.end() { Ok(()) } else { Err(format!("map of {range:?} ends at {at:?}")) }
}

/// Opens for writing and writes; what was clean stays clean, and what was written is read.
fn write(
    (format, file): (Format, &Arc<Bounded>),
    parts: &dyn Parts,
    was_clean: bool,
    check: Check<'_>,
) -> Result<bool, Wrong> {
    let Some(image) = sane("open to write", format::open(format, file.clone(), true, parts))? else {
        return Ok(false);
    };
    let size = image.size();
    let mark = count(MARK.len());
    let mut written = Vec::new();
    for at in [0, size / 2 / SECTOR_BYTES * SECTOR_BYTES, size.saturating_sub(mark)] {
        let bytes = MARK.get(..index(size.min(mark))).unwrap_or_default();
        if sane("write", image.write(GuestOffset::new(at), bytes, &Nothing))?.is_some() {
            written.push((at, bytes));
        }
    }
    let zeros = GuestOffset::new(size / 4).range(size.min(100_000) / 4);
    sane("zero", image.zero(zeros, Kept::Nothing, &Nothing))?;
    let is_flushed = sane("flush", image.flush())?.is_some();
    for (at, bytes) in written.iter().filter(|(at, _)| was_clean && *at >= zeros.end().bytes()) {
        let mut now = vec![0; bytes.len()];
        let is_read = sane("read back", image.read(GuestOffset::new(*at), &mut now, &Nothing))?.is_some();
        if is_read && now != *bytes {
            return Err(format!("what was written at {at:#x} is not read"));
        }
    }
    drop(image);
    let after = check(file, Repair::Nothing)?;
    if was_clean && is_flushed && !after.as_ref().is_some_and(is_sound) {
        return Err(format!("clean, and after a write it is not: {after:?}"));
    }
    Ok(is_flushed && !written.is_empty())
}

/// Reads a raw disk.
pub(super) fn raw(input: &[u8]) -> Result<Fed, Wrong> {
    let budget = Budget::new();
    let file = Bounded::new(input, &budget).map_err(|e| memory(&e))?;
    sane("recognise", Format::recognise(&*file))?;
    if let Some(image) = sane("open", format::open(Format::Raw, file.clone(), false, &NoParts))? {
        look(image.as_ref())?;
    }
    if let Some(image) = sane("open to write", format::open(Format::Raw, file, true, &NoParts))? {
        sane("write", image.write(GuestOffset::new(image.size() / 2), &[], &Nothing))?;
        sane("flush", image.flush())?;
    }
    Ok(Fed { is_past_header: true, ..Fed::default() })
}

/// Reads a layer's record.
pub(super) fn record(input: &[u8]) -> Fed {
    let found = LayerRecord::decode(input);
    Fed { is_past_header: !found.is_empty(), ..Fed::default() }
}

/// Reads a stored tree.
pub(super) fn tree(input: &[u8], id: &ContentId) -> Result<Fed, Wrong> {
    let answer = Tree::read_from(&mut Cursor::new(input), id).map_err(|e| e.path("tree"));
    let found = sane("tree", answer)?;
    if found.as_ref().is_some_and(|tree| tree.id() != *id) {
        return Err("a tree of another ID was taken".to_owned());
    }
    Ok(Fed { is_past_header: found.is_some(), ..Fed::default() })
}

/// A machine with one file, and the folder of the note.
fn machine(input: &[u8], path: &Path) -> Result<Arc<dyn Host>, Wrong> {
    let host: Arc<dyn Host> = Arc::new(SimHost::new());
    let place = || -> Answer<()> {
        host.make_folder(path.parent().unwrap_or(path))?;
        host.create(path)?.write_at(HostOffset::new(0), input)
    };
    place().map_err(|e| memory(&e))?;
    Ok(host)
}

/// Reads what names the disks of a virtual machine: each once, and none without a name.
pub(super) fn machine_text(input: &[u8]) -> Result<Fed, Wrong> {
    let path = Path::new("/vm/vm.vmx");
    let host = machine(input, path)?;
    let Some(names) = sane("disks", vmware::disks(host.as_ref(), path))? else { return Ok(Fed::default()) };
    let once: BTreeSet<_> = names.iter().collect();
    if once.len() != names.len() || names.iter().any(|name| name.as_os_str().is_empty()) {
        return Err(format!("names {names:?}"));
    }
    Ok(Fed { is_past_header: !names.is_empty(), ..Fed::default() })
}

/// Reads a consolidation's journal.
pub(super) fn journal(input: &[u8], path: &Path) -> Result<Fed, Wrong> {
    let host = machine(input, path)?;
    let found = sane("journal", Journal::find(&host, Path::new(HEAD)))?;
    Ok(Fed { is_past_header: found.is_some(), ..Fed::default() })
}

/// Reads the note of a copy: one that cannot be read is none.
pub(super) fn note(input: &[u8], path: &Path) -> Result<Fed, Wrong> {
    let host = machine(input, path)?;
    let found = sane("note", Transfer::open(&host, Path::new(TARGET), Path::new(HEAD)))?;
    Ok(Fed { is_past_header: found.is_some_and(|note| note.is_resumed()), ..Fed::default() })
}
