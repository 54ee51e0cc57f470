//! One file to the target folder: by runs, holes left out, going on where an earlier run stopped.

use super::Report;
use crate::{
    base::{Error, ErrorKind, HostOffset, HostRange, Result, name::FileName},
    io::{self, File, Host, Likeness, Moved, Witness},
    job::Progress,
    store::{Draft, Part, Publish, Transfer, is_as_before},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much is copied between two moments at which a stop is noticed, at most.
const PIECE_BYTES: u64 = if cfg!(test) { 4096 } else { 16 << 20 };

/// How much is copied again at most when a copy that was cut off goes on; small disks see it in tests, too.
const CHECKPOINT_BYTES: u64 = if cfg!(test) { 4096 } else { 512 << 20 };

/// A file whose bytes are at the target, under a temporary name.
pub(super) struct Copied {
    host: Arc<dyn Host>,
    draft: Draft,
    part: Part,
    moved: Moved,
    /// Whose the source is, and who may use it.
    likeness: Option<Likeness>,
}

impl Copied {
    fn new(host: &Arc<dyn Host>, source: &dyn File, (draft, part): (Draft, Part)) -> Self {
        let likeness = Likeness::of(source);
        if let Some(likeness) = likeness {
            likeness.at_work().give(draft.file().as_ref());
        }
        Self { host: Arc::clone(host), draft, part, moved: Moved::default(), likeness }
    }

    /// Begins a file that is made from `sources` in some other way than byte by byte, and always from its start.
    pub(super) fn begin_anew(
        host: &Arc<dyn Host>,
        sources: &[Arc<dyn File>],
        to: &Path,
        transfer: &mut Transfer,
    ) -> Result<Self> {
        let first = sources.first().ok_or_else(|| Error::invalid("an image without a file"))?;
        Ok(Self::new(host, first.as_ref(), begin_fresh(host, &witnesses(sources)?, to, transfer)?))
    }

    /// Counts bytes that were written.
    pub(super) fn wrote(&mut self, moved: Moved) {
        self.moved.copied_bytes += moved.copied_bytes;
        self.moved.shared_bytes += moved.shared_bytes;
    }

    pub(super) fn file(&self) -> Arc<dyn File> {
        self.draft.file()
    }

    /// Returns what was moved in this run.
    pub(super) const fn moved(&self) -> Moved {
        self.moved
    }

    /// Gives the file its name, durably.
    pub(super) fn finish(mut self, to: &Path, transfer: &mut Transfer, report: &mut Report) -> Result<()> {
        let file = self.draft.file();
        if let Some(likeness) = self.likeness {
            likeness.give(file.as_ref());
        }
        file.flush_with_time()?;
        // Noted first: whoever finds the name after a crash knows that it stands for this, whole.
        self.part.whole = Some(file.witness()?);
        transfer.note(&name(to), self.part)?;
        self.draft.publish_flushed(to, Publish::New)?;
        report.copied_bytes += self.moved.copied_bytes;
        report.shared_bytes += self.moved.shared_bytes;
        Ok(())
    }
}

/// Returns what the files of an image look like.
pub(super) fn witnesses(files: &[Arc<dyn File>]) -> Result<Vec<Witness>> {
    files.iter().map(|file| file.witness()).collect()
}

/// Returns whether an earlier run has given what is made of `sources` its name, and neither was changed since.
pub(super) fn is_done(host: &dyn Host, sources: &[Witness], to: &Path, transfer: &Transfer) -> Result<bool> {
    let whole = transfer.part(&name(to), sources).and_then(|part| part.whole);
    let Some(then) = whole.filter(|_| matches!(host.kind(to), Ok(Some(_)))) else { return Ok(false) };
    Ok(then.is_unchanged(&host.witness(to)?))
}

/// Removes what earlier runs left behind: of files that were linked in the end, and not copied, and of giving one its
/// name. Durable, as is any name that a killed run gave: the note may go then, and the sources.
pub(super) fn sweep(host: &dyn Host, folder: &Path, transfer: &Transfer) -> Result<()> {
    transfer.temporaries().try_for_each(|temporary| remove_if_there(host, &folder.join(temporary)))?;
    // What a killed run removed may come back with a power cut, too.
    if transfer.temporaries().next().is_some() { host.sync_folder(folder) } else { Ok(()) }
}

fn remove_if_there(host: &dyn Host, path: &Path) -> Result<()> {
    match host.remove(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn name(to: &Path) -> PathBuf {
    PathBuf::from(to.file_name().unwrap_or_default())
}

/// Copies the bytes of `source` into a temporary file beside `to`, which stays if this fails.
pub(super) fn copy(
    host: &Arc<dyn Host>,
    source: &dyn File,
    to: &Path,
    transfer: &mut Transfer,
    progress: &Progress,
) -> Result<Copied> {
    let mut copied = Copied::new(host, source, begin(host, source, to, transfer)?);
    io::stream(copied.file().as_ref());
    copied.fill(source, to, transfer, progress)?;
    Ok(copied)
}

fn begin(
    host: &Arc<dyn Host>,
    source: &dyn File,
    to: &Path,
    transfer: &mut Transfer,
) -> Result<(Draft, Part)> {
    let (name, sources) = (name(to), [source.witness()?]);
    if let Some(part) = transfer.part(&name, &sources) {
        match Draft::resume(host, &to.with_file_name(&part.temporary.0)) {
            // Whole or not: it was not given its name, so that what it stands on may have changed.
            Ok(draft) => return Ok((draft, Part { whole: None, ..part.clone() })),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    begin_fresh(host, &sources, to, transfer)
}

fn begin_fresh(
    host: &Arc<dyn Host>,
    sources: &[Witness],
    to: &Path,
    transfer: &mut Transfer,
) -> Result<(Draft, Part)> {
    let name = name(to);
    if let Some(stale) = transfer.temporary(&name) {
        // It was begun from a source that has changed since, or in another way.
        remove_if_there(host.as_ref(), &to.with_file_name(stale))?;
        // Its name is forgotten below: it must not come back.
        host.sync_folder(to.parent().unwrap_or(Path::new("/")))?;
    }
    let path = Draft::temporary_name(to);
    let temporary = FileName(PathBuf::from(path.file_name().unwrap_or_default()));
    let form = transfer.form().to_owned();
    let (source, further) = sources.split_first().ok_or_else(|| Error::invalid("an image without a file"))?;
    let (source, further) = (*source, further.to_vec());
    let part = Part { source, further, temporary, done_bytes: 0, whole: None, form };
    // Noted first: nothing is left behind that nobody knows of.
    transfer.note(&name, part.clone())?;
    Ok((Draft::noted(host, &path)?, part))
}

impl Copied {
    fn fill(
        &mut self,
        source: &dyn File,
        to: &Path,
        transfer: &mut Transfer,
        progress: &Progress,
    ) -> Result<()> {
        let target = self.draft.file();
        let end = HostOffset::new(source.bytes()?);
        let mut at = HostOffset::new(self.part.done_bytes);
        while at < end {
            let found = source.run_at(at)?;
            let run = HostRange::between(at, found.range.end().min(end));
            if run.is_empty() {
                break;
            }
            let mut rest = if found.is_data { run } else { HostRange::between(run.end(), run.end()) };
            while let Some(piece) = rest.pieces(progress.step_bytes(PIECE_BYTES)).next() {
                rest = HostRange::between(piece.end(), rest.end());
                if progress.is_cancelled() {
                    self.mark(piece.start, to, transfer)?;
                }
                progress.checkpoint()?;
                let moved = io::copy(source, piece.start, target.as_ref(), piece.start, piece.bytes);
                if moved.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
                    // What went before is gone on from once there is space: the failure is what the caller hears of.
                    let _ = self.mark(piece.start, to, transfer);
                }
                let moved = moved?;
                self.moved.copied_bytes += moved.copied_bytes;
                self.moved.shared_bytes += moved.shared_bytes;
                progress.moved(piece.bytes);
                if piece.end().bytes() - self.part.done_bytes >= CHECKPOINT_BYTES {
                    self.mark(piece.end(), to, transfer)?;
                }
            }
            at = run.end();
        }
        target.set_bytes(end.bytes())?;
        self.refuse_changed(source.path(), &[source.witness()?])
    }

    /// Bytes before `at` are made durable, and only then promised.
    fn mark(&mut self, at: HostOffset, to: &Path, transfer: &mut Transfer) -> Result<()> {
        self.draft.file().flush()?;
        // What is promised of the file is of use only if a power cut leaves its name.
        self.host.sync_folder(to.parent().unwrap_or(Path::new("/")))?;
        self.part.done_bytes = at.bytes();
        transfer.note(&name(to), self.part.clone())
    }

    /// Fails with `Busy` unless the sources, which the file called `path` stands for, look as they did when this was begun.
    pub(super) fn refuse_changed(&self, path: &Path, now: &[Witness]) -> Result<()> {
        if is_as_before(&self.part.sources(), now) {
            return Ok(());
        }
        Err(Error::busy("was written while it was copied").path(path))
    }
}
