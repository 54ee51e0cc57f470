//! The journal of a fold of a disk in use, as the job and its second leg write it.
//!
//! What stays true: once this says that nothing is done, no later life of the job believes what the target holds.

use super::images::bears;
use crate::{
    base::{Error, ErrorKind, GuestOffset, Result},
    format::Image,
    io::Host,
    job::live::{Notes, mirror::Noted},
    store::{Epoch, Intent, Journal, Ledger, Position},
};
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};

/// The journal of a job, which its leg writes, too.
#[derive(Clone, Debug)]
pub(super) struct Noting {
    pub(super) kept: Arc<Mutex<Kept>>,
    region_bytes: u64,
    /// TOP, whose epoch the journal names, if guests write it; one that is frozen is never written past its target.
    head: Option<Arc<dyn Image>>,
    ledger: Ledger,
}

#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) journal: Option<Journal>,
    /// Whether the target misses writes: what the journal says then is not said again.
    is_given_up: bool,
    /// Whether the record may have landed: the target is the disk from there on.
    pub(super) is_recorded: bool,
}

impl Kept {
    /// Returns the journal of a job that still goes on.
    pub(super) fn going_on(&mut self) -> Result<&mut Journal> {
        if self.is_given_up {
            return Err(Error::new(ErrorKind::Interrupted, "went on without the target"));
        }
        self.journal.as_mut().ok_or_else(|| Error::invalid("the job is over"))
    }
}

impl Noting {
    pub(super) fn new(region_bytes: u64, head: Option<Arc<dyn Image>>, ledger: Ledger) -> Self {
        Self { kept: Arc::default(), region_bytes, head, ledger }
    }

    fn intent(&self, regions: Vec<u64>) -> Intent {
        Intent { region_bytes: self.region_bytes, regions }
    }

    /// Takes the head away from the journal: nobody goes on from the mark of one that names another epoch. One whose
    /// head bears no epoch is never gone on with.
    fn disown(&self, journal: &Journal) -> Result<()> {
        match &self.head {
            Some(head) if bears(head.as_ref(), journal.fold().head_epoch)? => {
                self.ledger.thaw(head.as_ref(), Epoch::fresh()).map(drop)
            }
            _ => Ok(()),
        }
    }
}

impl Notes for Noting {
    fn note(&mut self, said: &Noted) -> Result<()> {
        let intent = self.intent(said.regions.clone());
        let mut kept = self.kept.lock();
        let journal = kept.going_on()?;
        let position = Position { mark: said.mark, is_ready: journal.position().is_ready };
        journal.note_with(position, intent)
    }

    fn give_up(&mut self) -> Result<()> {
        let intent = self.intent(Vec::new());
        let mut kept = self.kept.lock();
        if kept.is_recorded {
            return Err(Error::invalid("the target is the disk by now"));
        }
        let journal = kept.going_on()?;
        let said = journal.note_with(Position { mark: GuestOffset::new(0), is_ready: false }, intent);
        // Of two ways one is enough: where the journal cannot be written, the head gets another epoch.
        said.or_else(|_| self.disown(journal))?;
        kept.is_given_up = true;
        Ok(())
    }
}

/// Guests write from here on what no leg notes: a journal that an earlier life of the job on `top` has left says so.
pub(super) fn forget_before(host: &Arc<dyn Host>, top: &Path, noting: &Noting) -> Result<()> {
    if noting.kept.lock().journal.is_none() {
        let journal = match Journal::resume(host, top) {
            Ok(Some(journal)) => journal,
            Ok(None) => return Ok(()),
            // Nobody goes on with it.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        noting.kept.lock().journal = Some(journal);
    }
    noting.clone().give_up()
}
