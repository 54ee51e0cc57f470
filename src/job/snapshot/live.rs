//! Snapshots of disks in use: of one or of several, all at one point in time.
//!
//! ```text
//!   intend ─► new heads, empty ─► record: the new heads are the disks' ─► guests go over, all at once ─► old heads settle
//! ```
//!
//! What stays true: a new head that nobody has written shows what its parent shows, so that the one durable record
//! may come *before* guests go over: a crash in between finds empty heads over everything that was written. Before
//! the record a crash leaves heads that nobody uses; [`forget_intended`] takes them away. Guests wait only while
//! pointers are changed.

use super::{Child, Taken, refuse_cut_off};
use crate::{
    base::{Error, ErrorKind, Result, clock},
    chain::{Chain, Layer, Opening, open_layer},
    format::Format,
    io::{Access, Host, Likeness},
    job::live::LiveDisk,
    store::{Draft, Epoch, Known, Ledger, Publish},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// One disk of a group, and its new head.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The disk.
    pub disk: Arc<LiveDisk>,
    /// The new head's name.
    pub new: PathBuf,
    /// Its format, one that knows parents.
    pub format: Format,
    /// Its options, as for a new image of that format.
    pub options: Vec<(String, String)>,
}

/// Where it is written down which image is the head of which disk.
pub trait Heads {
    /// Makes durable that these heads are about to be made: a crash before [`Heads::record`] forgets them.
    fn intend(&mut self, taken: &[Taken]) -> Result<()>;

    /// Makes durable, in one step, that these are the heads from now on.
    fn record(&mut self, taken: &[Taken]) -> Result<()>;

    /// Makes durable that the heads are what they were, whether or not [`Heads::record`] has failed halfway.
    fn take_back(&mut self) -> Result<()>;
}

/// What a snapshot of disks in use made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LiveTaken {
    /// Each disk's part.
    pub taken: Vec<Taken>,
    /// How long guests were held back, at most.
    #[serde(serialize_with = "clock::serialize_seconds")]
    pub pause: Duration,
}

/// A disk on its way.
struct Going<'a> {
    disk: &'a Disk,
    before: Arc<Chain>,
    ledger: Ledger,
    taken: Taken,
    thawed: Option<Known>,
}

/// Freezes what the disks show at one moment; from then on their guests write to new heads.
///
/// `Exists` if a new head is there; `Busy` while a disk is being folded. What fails before the record leaves the disks
/// as they were; what fails after it (the witness of a frozen layer) is said, and the snapshot stands.
pub fn snapshot_live(
    host: &Arc<dyn Host>,
    disks: &[Disk],
    opening: &Opening,
    heads: &mut dyn Heads,
) -> Result<LiveTaken> {
    let ledger = opening.ledger.clone().unwrap_or_else(|| Ledger::new(Arc::clone(host), None));
    let mut going =
        disks.iter().map(|disk| Going::prepare(host, disk, &ledger)).collect::<Result<Vec<_>>>()?;
    let taken: Vec<Taken> = going.iter().map(|one| one.taken.clone()).collect();
    heads.intend(&taken)?;
    let ready = going.iter_mut().map(|one| one.make(host, opening)).collect::<Result<Vec<_>>>();
    let ready = ready.and_then(|chains| heads.record(&taken).map(|()| chains));
    let chains = match ready {
        Ok(chains) => chains,
        Err(error) => {
            // A record that may have landed names the new heads: they stay, and show what the old ones show.
            if heads.take_back().is_ok() {
                forget_intended(host, &ledger, opening, &taken)?;
                going.iter().try_for_each(Going::release)?;
            }
            return Err(error);
        }
    };
    let over = disks.iter().zip(chains).map(|(disk, chain)| (disk.disk.as_ref(), chain)).collect();
    let pause = LiveDisk::swap_all(over).pause;
    going.iter().try_for_each(Going::settle)?;
    Ok(LiveTaken { taken, pause })
}

/// Takes heads away that were intended and are not recorded: nobody has written them. The old heads, where nobody has
/// them open, are heads again.
pub fn forget_intended(
    host: &Arc<dyn Host>,
    ledger: &Ledger,
    opening: &Opening,
    taken: &[Taken],
) -> Result<()> {
    for one in taken {
        let writing = opening.clone().with_access(Access::Write).with_format(None);
        match open_layer(host, &one.frozen, &writing) {
            Ok(layer) => drop(ledger.release(layer.image.as_ref())?),
            Err(error) if error.kind() == ErrorKind::Busy => {}
            Err(error) => return Err(error),
        }
        Draft::sweep(host.as_ref(), &one.head)?;
        if host.kind(&one.head)?.is_none() {
            continue;
        }
        let how = opening.clone().with_access(Access::ReadShared).with_format(None);
        let layer = open_layer(host, &one.head, &how)?;
        // A name alone may be another image's by now.
        let is_ours = layer.image.parent().is_some_and(|parent| parent.name == one.name.as_bytes());
        if is_ours {
            ledger.forget(layer.image.as_ref())?;
            drop(layer);
            host.remove(&one.head)?;
            host.sync_folder(one.head.parent().unwrap_or(Path::new(".")))?;
        }
    }
    Ok(())
}

impl<'a> Going<'a> {
    fn prepare(host: &Arc<dyn Host>, disk: &'a Disk, ledger: &Ledger) -> Result<Self> {
        if host.is_taken(&disk.new)? {
            return Err(Error::new(ErrorKind::Exists, "is there already").path(&disk.new));
        }
        let before = disk.disk.chain();
        let head = before.head()?;
        if disk.disk.is_folding() {
            return Err(Error::busy("is being consolidated: its layers change").path(&head.path));
        }
        refuse_cut_off(ledger, &head.path)?;
        // Most of it is durable before anybody waits.
        head.image.flush()?;
        let folder =
            disk.new.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = String::from_utf8_lossy(&head.name_in(&host.canonical(folder)?).name).into_owned();
        let taken = Taken { frozen: head.path.clone(), head: disk.new.clone(), name, size: head.size() };
        Ok(Self { disk, ledger: ledger.clone(), taken, thawed: None, before })
    }

    /// Makes the new head, which shows what the old one shows; returns the chain with it.
    fn make(&mut self, host: &Arc<dyn Host>, opening: &Opening) -> Result<Chain> {
        let head = self.before.head()?;
        let likeness = head.likeness().map(Likeness::at_work);
        let Disk { new, format, options, .. } = self.disk;
        let child = Child { target: new, format: *format, options, how: Publish::New, likeness };
        // The child names the identity that the old head has: no write that comes before the swap may change it.
        head.image.begin_writing()?;
        let (ledger, thawed) = (&self.ledger, &mut self.thawed);
        child.publish(host, self.before.layers(), || {
            // Guests go on writing it until they go over: no witness can stand for its bytes yet.
            let known = ledger.thaw(head.image.as_ref(), Epoch::fresh())?;
            *thawed = Some(known.clone());
            Ok(Some((ledger.clone(), known)))
        })?;
        let writing = opening.clone().with_access(Access::Write).with_format(None);
        let top = open_layer(host, new, &writing)?;
        let layers: Vec<Layer> = std::iter::once(top).chain(self.before.layers().iter().cloned()).collect();
        Ok(Chain::of(layers, true))
    }

    /// Nothing lies on the old head: it is one again.
    fn release(&self) -> Result<()> {
        let Some(thawed) = &self.thawed else { return Ok(()) };
        let head = self.before.head()?;
        let now = self.ledger.look(head.image.as_ref())?.layer.frozen;
        if now == thawed.layer.frozen { self.ledger.release(head.image.as_ref()).map(drop) } else { Ok(()) }
    }

    /// Guests have gone over: what they gave the old head is made durable, and vouched for.
    fn settle(&self) -> Result<()> {
        let head = self.before.head()?;
        self.disk.disk.settle_before()?;
        if let Some(thawed) = &self.thawed {
            self.ledger.refreeze(head.image.as_ref(), thawed)?;
        }
        head.image.files().iter().try_for_each(|file| file.set_access(Access::ReadToWrite))
    }
}

#[cfg(test)]
mod tests;
