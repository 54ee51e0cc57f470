//! What a consolidation is: the part of its journal that stays the same while it runs, and its bytes.

use super::{Draft, Epoch, PLAN_AT, folder_of};
use crate::{
    base::{Error, Result, units::index},
    io::{File, Witness},
    record,
    store::place::is_plain,
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"dchnfold";
const VERSION: u32 = 3;

/// No journal is longer: 1,024 layers, and as many files to remove, with names of 4,096 bytes fit.
const BYTES_MAX: u64 = 16 << 20;

/// Longest chain that a journal describes.
const LAYERS_MAX: u32 = 1024;

record! {
    /// What stays the same while the job runs; the names follow, then a CRC32C of all.
    struct Plan: LittleEndian, 240 bytes {
        0 => magic: bytes 8,
        8 => version: u32,
        12 => mode: u32,
        16 => job: bytes 16,
        /// Zero if the target had no record.
        32 => old_epoch: bytes 16,
        48 => new_epoch: bytes 16,
        64 => head_file_system: bytes 16,
        80 => head_inode: u64,
        88 => head_bytes: u64,
        96 => head_modified_ns: bytes 16,
        112 => head_boot: bytes 16,
        /// Zero if the head had no record.
        128 => head_epoch: bytes 16,
        144 => list_digest: bytes 32,
        /// Zero unless the whole view was hashed before.
        176 => view_id: bytes 32,
        208 => size: u64,
        216 => list_bytes: u64,
        /// Layers of the run and the target. Names: theirs, the result's, its format's, the draft's; for each of
        /// the removed files its name and a [`FileMark`]; each option of a new image as KEY=VALUE; for each of the target's
        /// bitmaps a letter, the granularity as a power of two, and its name.
        224 => layers: u32,
        228 => names_bytes: u32,
        232 => removed: u32,
        236 => options: u32,
    }
}

record! {
    /// Which file a name stood for: a name alone could be another file's by now.
    struct FileMark: LittleEndian, 48 bytes {
        0 => file_system: bytes 16,
        16 => inode: u64,
        24 => bytes: u64,
        32 => modified_ns: bytes 16,
    }
}

/// A file that goes once the record is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its name, relative to TOP's folder.
    pub name: PathBuf,
    /// What it looked like from outside when the job was bound (its boot is not kept).
    pub file: Witness,
}

/// A bitmap of the target's own, as it was before the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Guest bytes that one bit stands for.
    pub granularity_bytes: u64,
    /// What it did.
    pub state: HeldState,
}

/// What a bitmap of the target's own did before the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldState {
    /// It recorded writes.
    Records,
    /// It stood still.
    Still,
    /// Its bits were not to be trusted.
    Stale,
}

impl HeldState {
    const ALL: [(Self, u8); 3] = [(Self::Records, b'r'), (Self::Still, b's'), (Self::Stale, b'x')];
}

/// How a consolidation's record is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoldMode {
    /// The target is renamed over TOP's name.
    TopName,
    /// The target keeps its name; TOP is retired and removed.
    TargetName,
    /// TOP stays as an empty delta over the target, which has another format.
    EmptyTop,
    /// The result is a new image; nothing is removed.
    NewImage,
    /// The result is a new image in another store, on what is there; TOP gives way.
    Move,
}

impl FoldMode {
    const ALL: [(Self, u32); 5] = [
        (Self::TopName, 1),
        (Self::TargetName, 2),
        (Self::EmptyTop, 3),
        (Self::NewImage, 4),
        (Self::Move, 5),
    ];

    /// Returns whether the result is a new image, and no layer of the chain.
    pub const fn makes_new(self) -> bool {
        matches!(self, Self::NewImage | Self::Move)
    }

    fn number(self) -> u32 {
        Self::ALL.iter().find(|(mode, _)| *mode == self).map_or(0, |(_, number)| *number)
    }

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == number).map(|(mode, _)| *mode)
    }
}

/// What a consolidation is, as its journal tells it. Names are relative to TOP's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// The job's own number.
    pub job: u128,
    /// How the record is made.
    pub mode: FoldMode,
    /// The target's epoch before the job; `None` if it had no record.
    pub old_epoch: Option<Epoch>,
    /// The target's epoch since.
    pub new_epoch: Epoch,
    /// What TOP looked like from outside when the list was made: the file with its header; lengths and times are those
    /// of all its files, summed up.
    pub head: Witness,
    /// TOP's own epoch then, if it had a record.
    pub head_epoch: Option<Epoch>,
    /// Digest of the work list.
    pub list_digest: [u8; 32],
    /// Listed bytes.
    pub list_bytes: u64,
    /// Content ID of TOP's view before, if it was asked for.
    pub view_id: Option<[u8; 32]>,
    /// Size of TOP's view in bytes.
    pub size: u64,
    /// The run, TOP first, then the target (a new image: the draft).
    pub layers: Vec<PathBuf>,
    /// The name that opens the result.
    pub result: PathBuf,
    /// The result's format.
    pub format: String,
    /// The file that gets the result's name, if it is not the target.
    pub draft: Option<PathBuf>,
    /// Files that go once the record is durable.
    pub removed: Vec<Removed>,
    /// The options that a new image was asked for with.
    pub options: Vec<(String, String)>,
    /// The target's bitmaps before the job.
    pub bitmaps: Vec<Held>,
}
pub(super) fn encode(fold: &Fold) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    let draft = fold.draft.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes();
    let layers = fold.layers.iter().map(|name| name.as_os_str().as_bytes().to_vec());
    let result = [fold.result.as_os_str().as_bytes(), fold.format.as_bytes(), draft].map(<[u8]>::to_vec);
    let mark = |file: &Witness| FileMark {
        file_system: file.file_system.to_le_bytes(),
        inode: file.inode,
        bytes: file.bytes,
        modified_ns: file.modified_ns.to_le_bytes(),
    };
    let removed = fold
        .removed
        .iter()
        .flat_map(|gone| [gone.name.as_os_str().as_bytes().to_vec(), mark(&gone.file).to_bytes().to_vec()]);
    let letter = |held: &Held| HeldState::ALL.iter().find(|(s, _)| *s == held.state).map_or(0, |(_, l)| *l);
    let shift = |held: &Held| held.granularity_bytes.trailing_zeros().to_le_bytes()[0];
    let bitmaps = fold.bitmaps.iter().map(|h| [&[letter(h), shift(h)], h.name.as_bytes()].concat());
    let options = fold.options.iter().map(|(key, value)| format!("{key}={value}").into_bytes());
    for bytes in layers.chain(result).chain(removed).chain(options).chain(bitmaps) {
        let length = u16::try_from(bytes.len()).map_err(|_| Error::invalid("a name of 64 KiB or more"))?;
        names.extend_from_slice(&length.to_le_bytes());
        names.extend_from_slice(&bytes);
    }
    let layers = u32::try_from(fold.layers.len()).ok().filter(|n| *n <= LAYERS_MAX);
    let epoch = |e: Option<Epoch>| e.map_or([0; 16], Epoch::to_bytes);
    let plan = Plan {
        magic: MAGIC,
        version: VERSION,
        mode: fold.mode.number(),
        job: fold.job.to_le_bytes(),
        old_epoch: epoch(fold.old_epoch),
        new_epoch: epoch(Some(fold.new_epoch)),
        head_file_system: fold.head.file_system.to_le_bytes(),
        head_inode: fold.head.inode,
        head_bytes: fold.head.bytes,
        head_modified_ns: fold.head.modified_ns.to_le_bytes(),
        head_boot: fold.head.boot.to_le_bytes(),
        head_epoch: epoch(fold.head_epoch),
        list_digest: fold.list_digest,
        view_id: fold.view_id.unwrap_or_default(),
        size: fold.size,
        list_bytes: fold.list_bytes,
        layers: layers.ok_or_else(|| Error::unsupported("a run of more than 1024 layers"))?,
        names_bytes: u32::try_from(names.len()).map_err(|_| Error::invalid("names of 4 GiB or more"))?,
        removed: u32::try_from(fold.removed.len()).unwrap_or(u32::MAX),
        options: u32::try_from(fold.options.len()).unwrap_or(u32::MAX),
    };
    let mut bytes = plan.to_bytes().to_vec();
    bytes.append(&mut names);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

pub(super) fn read(file: &dyn File) -> Result<Fold> {
    let bytes = file.bytes()?;
    if bytes > BYTES_MAX {
        return Err(Error::corrupt(format!("a journal of {bytes} bytes, more than any has")));
    }
    let mut all = vec![0; index(bytes.saturating_sub(PLAN_AT.bytes()))];
    file.read_at(PLAN_AT, &mut all)?;
    let cut = || Error::corrupt(format!("the plan at {PLAN_AT:#x} passes the file's end ({bytes:#x})"));
    let plan = Plan::parse_start(&all).ok_or_else(cut)?;
    if plan.magic != MAGIC {
        return Err(Error::corrupt(format!("no plan at {PLAN_AT:#x}: wrong magic")));
    }
    if plan.version != VERSION {
        return Err(Error::unsupported(format!(
            "journal version {}; this build knows {VERSION}",
            plan.version
        )));
    }
    let end = Plan::SIZE + index(u64::from(plan.names_bytes));
    let (body, rest) = all.split_at_checked(end).ok_or_else(cut)?;
    let checksum = rest.first_chunk().map(|b| u32::from_le_bytes(*b)).ok_or_else(cut)?;
    if checksum != crc32c::crc32c(body) {
        return Err(Error::corrupt(format!(
            "the plan's checksum at {:#x} is wrong",
            PLAN_AT.plus(end as u64)
        )));
    }
    let fold = decode(&plan, &read_names(body.get(Plan::SIZE..).unwrap_or_default())?)?;
    check(&fold)?;
    Ok(fold)
}

/// Refuses names that no job has: what a journal names is written and removed. Which folders other than TOP's they may
/// lead to is for the caller's policy.
fn check(fold: &Fold) -> Result<()> {
    let wrong = |field: &str, name: &Path, why: &str| {
        let name = name.as_os_str().to_string_lossy();
        Err(Error::corrupt(format!("the plan's {field} '{}' {why}", name.escape_debug())))
    };
    let (Some(top), Some(target)) = (fold.layers.first(), fold.layers.last()) else {
        return Err(Error::corrupt("the plan has no layers"));
    };
    if !is_plain(top) {
        return wrong("layer 0", top, "is not a plain name");
    }
    let (result, draft) = match fold.mode {
        FoldMode::TopName => (top, false),
        FoldMode::TargetName => (target, false),
        FoldMode::EmptyTop => (top, true),
        FoldMode::NewImage | FoldMode::Move => (&fold.result, true),
    };
    if fold.result != *result {
        return wrong("result", &fold.result, "is not the name that the job's kind gives it");
    }
    let is_draft = |name: &PathBuf| folder_of(name) == folder_of(result) && Draft::is_left_over(name);
    if fold.draft.is_some() != draft || fold.draft.as_ref().is_some_and(|name| !is_draft(name)) {
        let name = fold.draft.as_deref().unwrap_or(Path::new(""));
        return wrong("draft", name, "is not that of an image in the making beside the result");
    }
    let stays = |name: &&PathBuf| *name == result || *name == target || fold.mode == FoldMode::NewImage;
    match fold.removed.iter().map(|gone| &gone.name).find(stays) {
        Some(name) => wrong("removed", name, "is the result"),
        None => Ok(()),
    }
}

fn read_names(mut bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let cut = || Error::corrupt(format!("name {} of the plan passes its end", names.len()));
        let (length, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
        let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or_else(cut)?;
        names.push(name);
        bytes = rest;
    }
    Ok(names)
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn read_option(bytes: &[u8]) -> Result<(String, String)> {
    let text = str::from_utf8(bytes).ok();
    let (key, value) = text
        .and_then(|text| text.split_once('='))
        .ok_or_else(|| Error::corrupt("the plan has an option that is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn decode(plan: &Plan, names: &[&[u8]]) -> Result<Fold> {
    let epoch = |bytes| Some(bytes).filter(|b| *b != [0; 16]).map(Epoch::from_bytes);
    let layers = plan.layers.min(LAYERS_MAX);
    let few = || Error::corrupt(format!("the plan has {} names for {layers} layers", names.len()));
    let (layers, rest) = names.split_at_checked(index(u64::from(layers))).ok_or_else(few)?;
    let ([result, format, draft], rest) = rest.split_first_chunk().ok_or_else(few)?;
    let (removed, rest) = rest.split_at_checked(index(u64::from(plan.removed) * 2)).ok_or_else(few)?;
    let (options, bitmaps) = rest.split_at_checked(index(u64::from(plan.options))).ok_or_else(few)?;
    Ok(Fold {
        job: u128::from_le_bytes(plan.job),
        mode: FoldMode::from_number(plan.mode)
            .ok_or_else(|| Error::corrupt(format!("the plan's mode is {}, which is none", plan.mode)))?,
        old_epoch: epoch(plan.old_epoch),
        new_epoch: Epoch::from_bytes(plan.new_epoch),
        head: Witness {
            file_system: u128::from_le_bytes(plan.head_file_system),
            inode: plan.head_inode,
            bytes: plan.head_bytes,
            modified_ns: i128::from_le_bytes(plan.head_modified_ns),
            boot: u128::from_le_bytes(plan.head_boot),
        },
        head_epoch: epoch(plan.head_epoch),
        list_digest: plan.list_digest,
        list_bytes: plan.list_bytes,
        view_id: Some(plan.view_id).filter(|id| *id != [0; 32]),
        size: plan.size,
        layers: layers.iter().map(|name| path(name)).collect(),
        result: path(result),
        format: String::from_utf8_lossy(format).into_owned(),
        draft: Some(path(draft)).filter(|name| !name.as_os_str().is_empty()),
        removed: removed.chunks(2).map(decode_removed).collect::<Result<_>>()?,
        options: options.iter().map(|option| read_option(option)).collect::<Result<_>>()?,
        bitmaps: bitmaps.iter().map(|bytes| decode_held(bytes)).collect::<Result<_>>()?,
    })
}

fn decode_removed(pair: &[&[u8]]) -> Result<Removed> {
    let [name, mark] = pair else { return Err(Error::corrupt("a removed file without its mark")) };
    let mark = FileMark::parse_start(mark).filter(|_| mark.len() == FileMark::SIZE);
    let mark = mark.ok_or_else(|| Error::corrupt("a removed file's mark has another length"))?;
    let file = Witness {
        file_system: u128::from_le_bytes(mark.file_system),
        inode: mark.inode,
        bytes: mark.bytes,
        modified_ns: i128::from_le_bytes(mark.modified_ns),
        boot: 0,
    };
    Ok(Removed { name: path(name), file })
}

fn decode_held(bytes: &[u8]) -> Result<Held> {
    let wrong = || Error::corrupt("a bitmap of the plan has no state, or no granularity, that is known");
    let ([letter, shift], name) = bytes.split_first_chunk().ok_or_else(wrong)?;
    let state = HeldState::ALL.iter().find(|(_, l)| l == letter).map(|(state, _)| *state);
    let granularity_bytes = 1_u64.checked_shl((*shift).into()).ok_or_else(wrong)?;
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(Held { name, granularity_bytes, state: state.ok_or_else(wrong)? })
}
