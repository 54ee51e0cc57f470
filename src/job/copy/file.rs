//! One file to the target folder: by runs, holes left out, going on where an earlier run stopped.

use super::Report;
use crate::{
    base::{ErrorKind, HostOffset, HostRange, Result},
    io::{self, File, Host, Moved},
    job::Progress,
    store::{Draft, Part, Publish, Transfer},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much is copied between two moments at which a stop is noticed.
const PIECE_BYTES: u64 = 16 << 20;

/// How much is copied again at most when a copy that was cut off goes on.
pub(super) const CHECKPOINT_BYTES: u64 = 512 << 20;

/// A file whose bytes are at the target, under a temporary name.
pub(super) struct Copied {
    draft: Draft,
    part: Part,
    moved: Moved,
}

impl Copied {
    pub(super) fn file(&self) -> Arc<dyn File> {
        self.draft.file()
    }

    /// Gives the file its name, durably, and notes that it is whole.
    pub(super) fn finish(mut self, to: &Path, transfer: &mut Transfer, report: &mut Report) -> Result<()> {
        let file = self.draft.file();
        self.draft.publish(to, Publish::New)?;
        self.part.published = Some(file.witness()?);
        transfer.note(&name(to), self.part)?;
        report.copied_bytes += self.moved.copied_bytes;
        report.shared_bytes += self.moved.shared_bytes;
        Ok(())
    }
}

fn name(to: &Path) -> PathBuf {
    PathBuf::from(to.file_name().unwrap_or_default())
}

/// Copies the bytes of `source` into a temporary file beside `to`, which is kept if this fails.
pub(super) fn copy(
    host: &Arc<dyn Host>,
    source: &dyn File,
    to: &Path,
    transfer: &mut Transfer,
    progress: &Progress,
) -> Result<Copied> {
    let (draft, part) = begin(host, source, to, transfer)?;
    let mut copied = Copied { draft, part, moved: Moved::default() };
    match copied.fill(source, to, transfer, progress) {
        Ok(()) => Ok(copied),
        Err(error) => {
            copied.draft.keep();
            Err(error)
        }
    }
}

fn begin(
    host: &Arc<dyn Host>,
    source: &dyn File,
    to: &Path,
    transfer: &mut Transfer,
) -> Result<(Draft, Part)> {
    let (name, witness) = (name(to), source.witness()?);
    if let Some(part) = transfer.part(&name, &witness).filter(|part| part.published.is_none()) {
        match Draft::resume(host, &to.with_file_name(&part.temporary)) {
            Ok(draft) => return Ok((draft, part.clone())),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    if let Some(stale) = transfer.left_over(&name) {
        // It was begun from a source that has changed since; that it is gone already is as good.
        let _ = host.remove(&to.with_file_name(stale));
    }
    let draft = Draft::new(host, to)?;
    let temporary = PathBuf::from(draft.path().file_name().unwrap_or_default());
    let part = Part { source: witness, temporary, done_bytes: 0, published: None };
    transfer.note(&name, part.clone())?;
    Ok((draft, part))
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
        progress.moved(self.part.done_bytes);
        while at < end {
            let found = source.run_at(at)?;
            let run = HostRange::between(at, found.range.end().min(end));
            if run.is_empty() {
                break;
            }
            for piece in run.pieces(PIECE_BYTES).filter(|_| found.is_data) {
                if progress.is_cancelled() {
                    self.mark(piece.start, to, transfer)?;
                }
                progress.checkpoint()?;
                let moved = io::copy(source, piece.start, target.as_ref(), piece.start, piece.bytes)?;
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
        self.refuse_changed(source)
    }

    /// Bytes before `at` are made durable, and only then promised.
    fn mark(&mut self, at: HostOffset, to: &Path, transfer: &mut Transfer) -> Result<()> {
        self.draft.file().flush()?;
        self.part.done_bytes = at.bytes();
        transfer.note(&name(to), self.part.clone())
    }

    fn refuse_changed(&self, source: &dyn File) -> Result<()> {
        let (then, now) = (self.part.source, source.witness()?);
        if (then.bytes, then.modified_ns) == (now.bytes, now.modified_ns) {
            return Ok(());
        }
        Err(crate::base::Error::busy("was written while it was copied").path(source.path()))
    }
}
