//! What is kept of a layer outside its files: a small file each, named after file system and inode.
//!
//! It holds the image's format, the witness, and the layer's record where the image has no place for one (or could
//! not be written). Such a record stands in for what is inside the image only as long as that stays what it was
//! when the note was made: the later of the two counts, without a clock.

use super::{LayerRecord, Seen, StoredRecord, place::Lasting};
use crate::{
    base::{Error, ErrorKind, HostOffset, Result, units::index},
    io::{Access, File, Host, Witness, born_ns},
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The folder of the notes.
pub(super) const NOTES: &str = "notes";
const VERSION: u32 = 1;
const BYTES_MAX: u64 = 1 << 20;

/// One layer's note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    version: u32,
    /// The image's format: what its file is opened as unless a person states another.
    #[serde(default)]
    pub(super) format: Option<String>,
    /// When the file was made, in nanoseconds since 1970, if that is known.
    #[serde(default)]
    born_ns: Option<i128>,
    /// The record, if it is not inside the image.
    pub(super) record: Option<LayerRecord>,
    /// What was stored inside the image when the note was made.
    pub(super) under: Option<Under>,
    /// What the files looked like.
    pub(super) seen: Option<Seen>,
    /// Orders the notes of one layer that lie in two folders: nanoseconds since 1970.
    noted_ns: i128,
}

/// A record inside an image, by its sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Under {
    sum: u32,
    /// Whether the format's own sign of a foreign writer was absent.
    pub(super) is_untouched: bool,
}

impl Under {
    fn of(stored: &StoredRecord) -> Self {
        Self { sum: crc32c::crc32c(&stored.bytes), is_untouched: stored.is_untouched }
    }
}

impl Note {
    /// Notes what is known of an image of `format` whose header is in this file.
    pub(super) fn new(
        (format, header): (&str, &Header),
        record: Option<LayerRecord>,
        inside: Option<&StoredRecord>,
        seen: Option<Seen>,
    ) -> Self {
        Self {
            version: VERSION,
            format: Some(format.to_owned()),
            born_ns: header.born_ns,
            record,
            under: inside.map(Under::of),
            seen,
            noted_ns: crate::base::clock::coarse_ns(),
        }
    }

    /// Returns the record of the note, and whether strangers left the image alone since, if the note is
    /// still the last word.
    pub(super) fn stands_for(&self, inside: Option<&StoredRecord>) -> Option<(&LayerRecord, bool)> {
        let record = self.record.as_ref()?;
        match (self.under, inside.map(Under::of)) {
            (None, None) => Some((record, true)),
            (Some(then), Some(now)) if then.sum == now.sum => {
                Some((record, now.is_untouched || !then.is_untouched))
            }
            _ => None,
        }
    }

    /// Returns the record of the note if it came while what is inside the image was to be taken back, which has not happened.
    pub(super) fn supersedes(&self, inside: Option<&StoredRecord>) -> Option<&LayerRecord> {
        let (then, now) = self.under.zip(inside.map(Under::of))?;
        let is_half_way = then.sum == now.sum && now.is_untouched && !then.is_untouched;
        self.record.as_ref().filter(|_| is_half_way && self.seen.is_none())
    }
}

/// The file with an image's header, as far as notes are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    file_system: u128,
    inode: u64,
    born_ns: Option<i128>,
}

impl Header {
    pub(super) fn of(file: &dyn File) -> Result<Self> {
        let Witness { file_system, inode, .. } = file.witness()?;
        Ok(Self { file_system, inode, born_ns: born_ns(file) })
    }

    /// Returns the name of the note.
    pub(super) fn name(&self) -> String {
        name(self.file_system, self.inode)
    }

    /// Returns whether the note is about this file, not about one that had its inode number before.
    fn is_meant(&self, note: &Note) -> bool {
        self.born_ns.is_none() || note.born_ns.is_none() || self.born_ns == note.born_ns
    }
}

/// Returns the name of the note of an image whose header's file was seen so.
pub(super) fn name_of(seen: &Witness) -> String {
    name(seen.file_system, seen.inode)
}

fn name(file_system: u128, inode: u64) -> String {
    format!("{file_system:032x}-{inode:x}")
}

/// Returns where an image's note is in `folder`.
pub(super) fn place(folder: &Path, header: &Header) -> PathBuf {
    folder.join(NOTES).join(header.name())
}

/// Reads the latest note in `folders`, if there is a sound one.
pub(super) fn read(host: &dyn Host, folders: &[PathBuf], header: &Header) -> Result<Option<Note>> {
    let mut found: Option<Note> = None;
    for folder in folders {
        let note = read_one(host, &place(folder, header))?;
        let note = note.filter(|note| header.is_meant(note));
        let later = note.filter(|n| found.as_ref().is_none_or(|other| other.noted_ns < n.noted_ns));
        found = later.or(found);
    }
    Ok(found)
}

fn read_one(host: &dyn Host, path: &Path) -> Result<Option<Note>> {
    let file = match host.open(path, Access::ReadShared) {
        Ok(file) => file,
        Err(error) if is_out_of_reach(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; index(file.bytes()?.min(BYTES_MAX))];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    let note: Option<Note> = serde_json::from_slice(&bytes).ok();
    Ok(note.filter(|note| note.version == VERSION))
}

/// Whether a folder of notes is not there or closed to us: then nothing is known, and nothing is wrong.
fn is_out_of_reach(error: &Error) -> bool {
    super::place::is_closed(error) || error.kind() == ErrorKind::NotFound
}

/// Stores a note in the first of `folders` that can be written, and removes it from the others: durably unless it is
/// there for the witness. A witness proves nothing after a power cut, so that it may get lost there.
pub(super) fn write(host: &Arc<dyn Host>, folders: &[PathBuf], header: &Header, note: &Note) -> Result<()> {
    let bytes = serde_json::to_vec(note).map_err(|e| Error::invalid(format!("a note: {e}")))?;
    let write =
        |out: &mut dyn std::io::Write| out.write_all(&bytes).map_err(|e| Error::io("write a note", e));
    let is_for_witness = note.record.is_none() && note.seen.is_some();
    let lasting = if is_for_witness { Lasting::Sometime } else { Lasting::Now };
    let name = Path::new(NOTES).join(header.name());
    let written = super::place::replace_in_first(host, folders, (&name, lasting), &write)?;
    let others: Vec<PathBuf> = folders.iter().filter(|folder| **folder != written).cloned().collect();
    remove(host.as_ref(), &others, header)
}

/// Makes an image's notes durable.
pub(super) fn settle(host: &dyn Host, folders: &[PathBuf], header: &Header) -> Result<()> {
    folders.iter().try_for_each(|folder| match super::place::settle(host, &place(folder, header)) {
        Err(error) if is_out_of_reach(&error) => Ok(()),
        settled => settled,
    })
}

/// Removes an image's notes durably, where there are any and they can be removed.
pub(super) fn remove(host: &dyn Host, folders: &[PathBuf], header: &Header) -> Result<()> {
    for folder in folders {
        let notes = folder.join(NOTES);
        match host.remove(&notes.join(header.name())) {
            Ok(()) => host.sync_folder(&notes)?,
            Err(error) if is_out_of_reach(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
