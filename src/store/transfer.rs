//! The note of a copy: what of it is at the target already, so that a copy that was cut off goes on, and one that is
//! asked for again when it is whole moves nothing.
//!
//! It is replaced whole, after the bytes that it speaks of are durable: it may promise too little, never too much.
//! It names files that go at the end of a move, so that nobody else's note is believed.

use super::{
    Draft, FOLDER, is_as_before,
    place::{self, Lasting, is_plain},
};
use crate::{
    base::{Error, ErrorKind, Guard, Result, name::FileName},
    io::{Host, Witness},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

const VERSION: u32 = 1;

/// How far one file of a copy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What the source looked like when it was begun: if it looks otherwise now, it is begun again.
    pub source: Witness,
    /// The same of the further files of an image that one file is made of.
    #[serde(default)]
    pub further: Vec<Witness>,
    /// The name that the file has until it is whole, in the target folder.
    pub temporary: FileName,
    /// Bytes before this place are durable at the target.
    pub done_bytes: u64,
    /// What the file looks like since it is whole, noted before it gets its name; `None` while it is filled.
    pub whole: Option<Witness>,
    /// What is made of the source: see [`Transfer::made_as`].
    #[serde(default)]
    pub form: String,
}

impl Part {
    /// Returns what all that it is made of looked like when it was begun.
    pub fn sources(&self) -> Vec<Witness> {
        std::iter::once(self.source).chain(self.further.iter().copied()).collect()
    }
}

/// A source of a whole copy that is to be removed: a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its format's name.
    pub format: String,
    /// Its files and what they looked like when they were copied, the one with the header first.
    pub files: Vec<(FileName, Witness)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    head: FileName,
    /// By name in the target folder.
    parts: BTreeMap<FileName, Part>,
    /// What is removed next, children first: everything before this is done.
    #[serde(default)]
    left: Vec<Left>,
}

/// The note of a copy under way.
#[derive(Debug)]
pub struct Transfer {
    host: Arc<dyn Host>,
    folder: PathBuf,
    name: PathBuf,
    /// What the note is called from the end of the copy on.
    ended: PathBuf,
    is_ended: bool,
    content: Content,
    form: String,
}

impl Transfer {
    /// Reads the note of the copy of `head` into `folder`, of one under way before that of one that ended; an empty one
    /// if there is none that can be relied on.
    ///
    /// `Corrupt`, with the field, for one that names files where no copy of `head` has any.
    pub fn open(host: &Arc<dyn Host>, folder: &Path, head: &Path) -> Result<Self> {
        let hash = blake3::hash(head.as_os_str().as_encoded_bytes()).to_hex();
        let called = |what| PathBuf::from(format!("{what}-{}.json", hash.get(..16).unwrap_or_default()));
        let (name, ended) = (called("copy"), called("copied"));
        let folder = folder.join(FOLDER);
        let read = |name: &Path| -> Result<Option<Content>> {
            let found: Option<Content> = place::read_own(host.as_ref(), &folder.join(name))?;
            Ok(found.filter(|content| content.version == VERSION && content.head.0 == head))
        };
        let under_way = read(&name)?;
        let is_ended = under_way.is_none();
        let found = if is_ended { read(&ended)? } else { under_way };
        let empty = || Content {
            version: VERSION,
            head: FileName(head.to_path_buf()),
            parts: BTreeMap::new(),
            left: Vec::new(),
        };
        let content = found.unwrap_or_else(empty);
        content.check().map_err(|e| e.path(folder.join(if is_ended { &ended } else { &name })))?;
        Ok(Self { host: Arc::clone(host), folder, name, ended, is_ended, content, form: String::new() })
    }

    /// Returns whether a path is that of a note, by its name.
    pub fn is_name(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ["copy-", "copied-"].iter().any(|start| name.starts_with(start)) && name.ends_with(".json")
    }

    /// Says what this run makes of the sources, in any words; without, they are copied byte by byte. What an earlier
    /// run made in another way is not gone on with.
    #[must_use]
    pub fn made_as(self, form: String) -> Self {
        Self { form, ..self }
    }

    /// Returns what this run makes of the sources.
    pub fn form(&self) -> &str {
        &self.form
    }

    /// Returns the folder that is copied into.
    pub fn target(&self) -> &Path {
        self.folder.parent().unwrap_or(Path::new("/"))
    }

    /// Returns whether an earlier run was cut off and left something.
    pub fn is_resumed(&self) -> bool {
        !self.is_ended && !self.content.parts.is_empty()
    }

    /// Returns how many files an earlier run that came to its end has copied.
    pub fn ended_files(&self) -> usize {
        if self.is_ended { self.content.parts.len() } else { 0 }
    }

    /// Returns whether neither side can have been written since the copy was whole without a sign: what was noted before
    /// the host was started proves nothing, nor do the times of a block device.
    pub fn is_vouched_for(&self) -> bool {
        let folder = self.target();
        self.content.parts.iter().all(|(name, part)| {
            let now = self.host.witness(&folder.join(&name.0)).ok();
            part.whole.is_some_and(|whole| Some(whole) == now && part.source.boot == whole.boot)
        })
    }

    /// Forgets a copy that ended, and is not what it was.
    #[must_use]
    pub fn without_ended(mut self) -> Self {
        if self.is_ended {
            self.content.parts.clear();
        }
        self
    }

    /// Returns how far the file of that name is, if it was begun in this form from sources that look as they do now.
    pub fn part(&self, name: &Path, sources: &[Witness]) -> Option<&Part> {
        let part =
            self.content.parts.get(&FileName(name.to_path_buf())).filter(|part| part.form == self.form);
        part.filter(|part| !Guard::ResumedSource.trips(!is_as_before(&part.sources(), sources)))
    }

    /// Returns what another copy's note tells of the file of that name, if that is a whole copy of the same sources, and neither
    /// can have been written since; nor was, by all signs, where it `is_proved` before anything stands on it.
    pub fn twin(&self, name: &Path, sources: &[Witness], is_proved: bool) -> Result<Option<Part>> {
        let now = self.host.witness(&self.target().join(name))?;
        let notes = match self.host.list(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            notes => notes?,
        };
        for note in notes {
            if !Self::is_name(&note.path) || note.path.ends_with(&self.name) {
                continue;
            }
            let found: Option<Content> = place::read_own(self.host.as_ref(), &note.path)?;
            let sound = found.filter(|content| content.version == VERSION && content.check().is_ok());
            let part = sound.and_then(|mut content| content.parts.remove(&FileName(name.to_path_buf())));
            let is_whole = |part: &Part| {
                let Some(whole) = part.whole.filter(|_| part.form == self.form) else { return false };
                let is_sure = part.sources() == sources && whole == now;
                let is_alike = is_as_before(&part.sources(), sources) && whole.is_unchanged(&now);
                is_sure || (is_proved && is_alike)
            };
            if let Some(part) = part.filter(is_whole) {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Takes over what another copy has done.
    pub fn adopt(&mut self, parts: Vec<(PathBuf, Part)>) {
        self.content.parts.extend(parts.into_iter().map(|(name, part)| (FileName(name), part)));
    }

    /// Returns the temporary name of what was begun under that name, from whatever source.
    pub fn temporary(&self, name: &Path) -> Option<&Path> {
        self.content.parts.get(&FileName(name.to_path_buf())).map(|part| part.temporary.0.as_path())
    }

    /// Returns the temporary names of all that was begun.
    pub fn temporaries(&self) -> impl Iterator<Item = &Path> {
        self.content.parts.values().map(|part| part.temporary.0.as_path())
    }

    /// Notes, durably, how far the file of that name is.
    pub fn note(&mut self, name: &Path, part: Part) -> Result<()> {
        self.content.parts.insert(FileName(name.to_path_buf()), part);
        // A copy that goes on is not whole.
        self.content.left.clear();
        self.is_ended = false;
        self.write(&self.name)
    }

    /// Notes, durably, that the copy is whole, and which sources go.
    pub fn leave(&mut self, left: Vec<Left>) -> Result<()> {
        self.content.left = left;
        self.write(&self.name)
    }

    /// Returns the sources that go, if each has a copy, and the whole copy is still where it was made, and nobody wrote
    /// it since: what has its name may be something else by now, in the same file, even.
    pub fn left(&self) -> &[Left] {
        let folder = self.target();
        let parts = &self.content.parts;
        let is_there = |(name, part): (&FileName, &Part)| {
            let now = self.host.witness(&folder.join(&name.0));
            now.is_ok_and(|now| part.whole.is_some_and(|whole| whole.is_unchanged(&now)))
        };
        let has_copy = |(source, witness): &(FileName, Witness)| {
            let part = source.0.file_name().and_then(|name| parts.get(&FileName(PathBuf::from(name))));
            part.is_some_and(|part| part.source.same_file(witness))
        };
        let mut sources = self.content.left.iter().flat_map(|left| &left.files);
        if parts.iter().all(is_there) && sources.all(has_copy) { &self.content.left } else { &[] }
    }

    fn write(&self, name: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(&self.content).map_err(|e| Error::invalid(format!("a note: {e}")))?;
        let write =
            |out: &mut dyn std::io::Write| out.write_all(&bytes).map_err(|e| Error::io("write a note", e));
        let folders = std::slice::from_ref(&self.folder);
        place::replace_in_first(&self.host, folders, (name, Lasting::Now), &write).map(drop)
    }

    /// Notes that the copy is whole. A power cut may bring back that it is under way: it then finds everything done.
    pub fn end(self) -> Result<()> {
        if self.is_ended {
            return Ok(());
        }
        self.write(&self.ended)?;
        self.remove(&self.name)
    }

    /// Removes the note: the sources are gone. A power cut may bring it back: it then finds everything done.
    pub fn close(self) -> Result<()> {
        self.remove(&self.ended)?;
        self.remove(&self.name)
    }

    fn remove(&self, name: &Path) -> Result<()> {
        match self.host.remove(&self.folder.join(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

impl Content {
    /// Refuses names that lead elsewhere: what is a copy's own is removed, and so are the sources of a move.
    fn check(&self) -> Result<()> {
        let wrong = |field: &str, name: &Path, why: &str| {
            let name = name.as_os_str().to_string_lossy();
            Err(Error::corrupt(format!("{field}: '{}' {why}", name.escape_debug())))
        };
        for (name, part) in &self.parts {
            if !is_plain(name) {
                return wrong("parts", name, "is not a plain name in the folder");
            }
            if !is_plain(&part.temporary) || !Draft::is_left_over(&part.temporary) {
                return wrong("temporary", &part.temporary, "is not the name of a file in the making");
            }
        }
        let mut sources = self.left.iter().flat_map(|left| &left.files).map(|(source, _)| source);
        let is_beside = |source: &FileName| {
            source.parent() == self.head.parent()
                && source.file_name().is_some_and(|name| is_plain(name.as_ref()))
        };
        match sources.find(|source| !is_beside(source)) {
            Some(source) => wrong("left", source, "is not in the folder of the copied disk"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
