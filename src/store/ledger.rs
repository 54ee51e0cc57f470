//! Gathers what is known of a layer, and writes it down in the order that keeps it true.

use super::{
    FOLDER, Index, Journal, LayerRecord, Parting, Record, elsewhere,
    note::{self, Header, Note},
    parting,
    place::{self, Lasting},
    record::{Claim, Epoch, Identity},
    trust::{Evidence, Seen, Trust, trust},
};
use crate::{
    base::{Error, ErrorKind, Guard, Result},
    content::{ContentId, Tree},
    io::{self, Access, File, Host, Witness},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What an image says inside about itself as a layer, and whether strangers left it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The record's bytes as stored.
    pub bytes: Vec<u8>,
    /// Whether the format's own sign of a foreign writer is absent (qcow2: our autoclear bit still stands).
    pub is_untouched: bool,
}

/// An image as far as its record is concerned.
pub trait Carrier {
    /// Returns the image's files, the one with the header first.
    fn files(&self) -> Vec<Arc<dyn File>>;

    /// Returns the record from inside the image; `None` if there is none, or no place for one.
    fn stored(&self) -> Result<Option<StoredRecord>>;

    /// Stores or removes the record inside the image, durably once [`Carrier::flush_with_time`] has returned, before
    /// which nothing else of the header is changed; false, and nothing changed, if there is no place for it, or the image
    /// is open for reading only.
    fn store(&self, record: Option<&[u8]>) -> Result<bool>;

    /// Has the record inside the image count no longer, as if a stranger had come, durably once
    /// [`Carrier::flush_with_time`] has returned. Nothing is done if the image is open for reading only.
    fn void(&self) -> Result<()>;

    /// Makes everything written before this call durable, and with it the files' times of change.
    fn flush_with_time(&self) -> Result<()>;

    /// Returns what the image says of itself in its format's own way, if it does.
    fn identity(&self) -> Option<Identity>;

    /// Has the image say that again of itself, durably, after what was written.
    fn set_identity(&self, identity: Identity) -> Result<()>;

    /// Has the image keep its identity while what is written leaves its view as it is, until that is taken back.
    fn keep_identity(&self, keeps: bool);

    /// Returns whether whoever opens the image for writing changes its files before anything is written.
    fn awaits_recovery(&self) -> bool;

    /// Returns the name of the image's format.
    fn format_name(&self) -> &'static str;

    /// Returns whether the bytes tell the format: those of a raw disk are its guest's, who may write any header.
    fn tells_format(&self) -> bool;
}

/// Returns the format, by its name, that is noted in `folders` of the image whose header is in `file`.
pub fn noted_format(host: &dyn Host, folders: &[PathBuf], file: &dyn File) -> Result<Option<String>> {
    Ok(note::read(host, folders, &Header::of(file)?)?.and_then(|note| note.format))
}

/// What is known of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its record and its claim.
    pub layer: LayerRecord,
    /// How far its own record can be believed; a chain lowers this by what lies below ([`Trust::over`]).
    pub trust: Trust,
    /// What its files look like now.
    pub now: Vec<Witness>,
    /// What it says of itself in its format's own way.
    pub identity: Option<Identity>,
}

impl Known {
    /// Returns the content ID that the layer's record says, whether or not it can be believed.
    pub fn sealed(&self) -> Option<ContentId> {
        self.layer.frozen.and_then(|record| record.sealed)
    }

    /// Returns the content ID of the layer's view, if that is certain.
    pub fn proven(&self) -> Option<ContentId> {
        self.sealed().filter(|_| self.trust == Trust::Trusted)
    }
}

/// Keeps records, claims and witnesses, and the trees of sealed layers.
///
/// Whoever writes through it holds the image's write lock, or is the only one to write notes of an image
/// that is open for reading.
#[derive(Clone, Debug)]
pub struct Ledger {
    host: Arc<dyn Host>,
    /// Where notes go whose image lies in a folder that cannot be written.
    state: Option<PathBuf>,
}

/// What is found of one image before anything is decided.
#[derive(Clone)]
struct Found {
    inside: Option<StoredRecord>,
    note: Option<Note>,
    now: Vec<Witness>,
    header: Header,
    folders: Vec<PathBuf>,
    identity: Option<Identity>,
    format: &'static str,
    tells_format: bool,
}

impl Found {
    /// Returns the layer's record, and whether strangers left the image alone.
    fn layer(&self) -> (LayerRecord, bool) {
        if let Some((record, is_untouched)) =
            self.note.as_ref().and_then(|n| n.stands_for(self.inside.as_ref()))
        {
            return (record.clone(), is_untouched);
        }
        let inside = self.inside.as_ref();
        let layer = inside.map(|stored| LayerRecord::decode(&stored.bytes)).unwrap_or_default();
        (layer, inside.is_none_or(|stored| stored.is_untouched))
    }

    fn known(&self) -> Known {
        let (layer, is_untouched) = self.layer();
        let seen = self.note.as_ref().and_then(|note| note.seen.as_ref());
        let evidence = Evidence { record: layer.frozen.as_ref(), is_untouched, seen, now: &self.now };
        let trust = trust(&evidence);
        Known { layer, trust, now: self.now.clone(), identity: self.identity }
    }
}

impl Ledger {
    /// Keeps notes beside images, or in `state` where an image's folder cannot be written.
    ///
    /// ```
    /// # use deltachain::{format::Format, io::{Host, real::RealHost}, job::create::{NewImage, create}};
    /// # use std::sync::Arc;
    /// use deltachain::{chain::{Opening, open_layer}, store::{Ledger, Trust}};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let host: Arc<dyn Host> = Arc::new(RealHost::new());
    /// let base = folder.path().join("base.qcow2");
    /// let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: vec![] };
    /// create(&host, &base, &new, &Opening::reading())?;
    /// let ledger = Ledger::new(Arc::clone(&host), None);
    /// let layer = open_layer(&host, &base, &Opening::writing())?;
    /// // A head makes no claim about its bytes; a layer that something is about to depend on does.
    /// assert_eq!(ledger.look(layer.image.as_ref())?.trust, Trust::Unknown);
    /// assert_eq!(ledger.freeze(layer.image.as_ref())?.trust, Trust::Trusted);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(host: Arc<dyn Host>, state: Option<PathBuf>) -> Self {
        Self { host, state }
    }

    /// Returns what is known of a layer. Writes nothing.
    pub fn look(&self, image: &(impl Carrier + ?Sized)) -> Result<Known> {
        Ok(self.find(image)?.known())
    }

    /// Makes sure that the layer has a record that its bytes agree with, all durable: something is about to
    /// depend on it. The caller publishes the child after this returns.
    ///
    /// A record that is not in doubt stays; else the layer gets a new epoch, which earlier children refuse.
    pub fn freeze(&self, image: &(impl Carrier + ?Sized)) -> Result<Known> {
        let found = self.find(image)?;
        let known = found.known();
        if matches!(known.trust, Trust::Trusted | Trust::Claimed) {
            // The witness of what stands inside was noted when it was durable.
            if found.inside.is_none() || known.trust == Trust::Claimed {
                self.settle(image)?;
            }
            return Ok(known);
        }
        let frozen = Some(Record { epoch: Epoch::fresh(), sealed: None });
        self.put(image, &LayerRecord { frozen, ..known.layer }, Vouch::Yes)
    }

    /// Makes `epoch`, which nobody has seen, durable and drops the seal: the caller, who owns the frozen layer,
    /// may change its bytes after this returns.
    ///
    /// The caller chooses the epoch, so that a journal can name it first.
    pub fn thaw(&self, image: &(impl Carrier + ?Sized), epoch: Epoch) -> Result<Known> {
        let known = self.look(image)?;
        let frozen = Some(Record { epoch, sealed: None });
        self.put(image, &LayerRecord { frozen, ..known.layer }, Vouch::No)
    }

    /// Makes durable what is recorded of the layer: whoever wrote it may have been killed before it was.
    pub fn settle(&self, image: &(impl Carrier + ?Sized)) -> Result<()> {
        let found = self.find(image)?;
        if let Some(record) = found.note.as_ref().and_then(|note| note.supersedes(found.inside.as_ref())) {
            image.void()?;
            image.flush_with_time()?;
            return self.note(
                &Found { inside: image.stored()?, ..found.clone() },
                Some(record.clone()),
                None,
            );
        }
        if found.inside.is_some() {
            image.flush_with_time()?;
        }
        note::settle(self.host.as_ref(), &found.folders, &found.header)
    }

    /// Vouches for what the layer holds now: the caller thawed it, has held its write lock since, and is done.
    ///
    /// `Busy` if the layer has got another record meanwhile.
    pub fn refreeze(&self, image: &(impl Carrier + ?Sized), thawed: &Known) -> Result<Known> {
        let known = self.look(image)?;
        if known.layer.frozen != thawed.layer.frozen {
            return Err(Error::busy("got another record while it was changed").path(header_path(image)?));
        }
        self.put(image, &known.layer, Vouch::Yes)
    }

    /// Runs a change to the image's files that leaves its view as it is (its parent's name in other words, say):
    /// a layer that was trusted is so afterwards, one that was claimed is not in doubt; other programs' children know it
    /// by what they did.
    pub fn tend<T>(&self, image: &(impl Carrier + ?Sized), change: impl FnOnce() -> Result<T>) -> Result<T> {
        let found = self.find(image)?;
        let known = found.known();
        let change = || {
            image.keep_identity(true);
            let done = change();
            image.keep_identity(false);
            done
        };
        if !matches!(known.trust, Trust::Trusted | Trust::Claimed) {
            return change();
        }
        // A witness of an earlier boot proves nothing, and would contradict the change as well.
        self.withdraw(&found)?;
        let done = change()?;
        if known.trust == Trust::Trusted {
            self.put(image, &known.layer, Vouch::Yes)?;
        }
        Ok(done)
    }

    /// Drops the layer's record: nothing depends on it any more, it is a head.
    pub fn release(&self, image: &(impl Carrier + ?Sized)) -> Result<Known> {
        let known = self.look(image)?;
        self.put(image, &LayerRecord { frozen: None, ..known.layer }, Vouch::No)
    }

    /// Gives the layer a claim about its parent, or none; `Policy` if the layer's own record is in doubt.
    pub fn claim(&self, image: &(impl Carrier + ?Sized), claim: Option<Claim>) -> Result<Known> {
        let known = self.look(image)?;
        let vouch = match known.trust {
            Trust::Trusted => Vouch::Yes,
            Trust::Claimed | Trust::Unknown => Vouch::No,
            // Writing the record again would wipe out what speaks against it.
            Trust::Doubted(doubt) => {
                return Err(
                    Error::policy(format!("its record is in doubt: {doubt}")).path(header_path(image)?)
                );
            }
        };
        self.put(image, &LayerRecord { claim, ..known.layer }, vouch)
    }

    /// Seals the layer: `tree` was computed from its view after `before` was known and its times had settled
    /// ([`io::settle`]), and everything below is trusted. The layer is trusted afterwards, also if it was in doubt: the tree has proved its seal. A head is
    /// frozen with it.
    ///
    /// `Busy` if the layer was written, or got another epoch, since `before`; `Policy` if it shows something else
    /// than its record says.
    pub fn seal(&self, image: &(impl Carrier + ?Sized), tree: &Tree, before: &Known) -> Result<Known> {
        let path = header_path(image)?;
        let found = self.find(image)?;
        let (layer, _) = found.layer();
        let is_other = !is_as_before(&before.now, &found.now) || layer.frozen != before.layer.frozen;
        if Guard::SealUnchanged.trips(is_other) {
            return Err(Error::busy("was written while its content ID was computed").path(path));
        }
        let record = layer.frozen.unwrap_or_else(|| Record { epoch: Epoch::fresh(), sealed: None });
        let id = tree.id();
        match (record.sealed, before.trust) {
            (Some(sealed), _) if Guard::SealSame.trips(sealed != id) => {
                let (shown, sealed) = (id.short(), sealed.short());
                return Err(Error::policy(format!("shows {shown}, its record says {sealed}")).path(path));
            }
            // Without a seal there is nothing that the tree could prove.
            (None, Trust::Doubted(doubt)) => {
                return Err(Error::policy(format!("its record is in doubt: {doubt}")).path(path));
            }
            _ => {}
        }
        self.keep_tree(&found.folders, &id, tree)?;
        let frozen = Some(Record { sealed: Some(id), ..record });
        self.put(image, &LayerRecord { frozen, ..layer }, Vouch::Yes)
    }

    /// Returns the tree of the view with this ID, if it is kept near `image` and sound.
    pub fn tree(&self, image: &(impl Carrier + ?Sized), id: &ContentId) -> Result<Option<Tree>> {
        let (_, folders) = self.folders(image)?;
        for folder in folders {
            let path = folder.join("trees").join(id.hex());
            let Ok(file) = self.host.open(&path, Access::ReadShared) else { continue };
            // A damaged tree is as good as none: it can be computed again.
            if let Ok(tree) = Tree::read_from(&mut place::reader(file)?, id) {
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// Returns the index of a folder, which is a whole path without links.
    pub fn index(&self, folder: &Path) -> Index {
        Index::new(&self.host, folder, self.state.as_deref())
    }

    /// Returns the journal of the job on the layer at `top`, to look at; `None` if there is none.
    pub fn journal(&self, top: &Path) -> Result<Option<Journal>> {
        Journal::find(&self.host, top)
    }

    /// Returns the journal of a job that was cut off and that names the image, as its top or below it.
    pub fn journal_of_layer(
        &self,
        image: &Path,
        is_apart: &dyn Fn(&dyn Host, &Path) -> bool,
    ) -> Result<Option<Journal>> {
        Journal::of_layer(&self.host, image, &|top| is_apart(self.host.as_ref(), top))
    }

    /// Notes the format of an image whose bytes do not tell it: whatever its guest writes, it stays what it is.
    /// Where no note can be kept, it is recognised by its header as before.
    pub fn know(&self, image: &(impl Carrier + ?Sized)) -> Result<()> {
        let found = self.find(image)?;
        let is_device = image.files().iter().any(|file| file.is_device());
        let is_noted = found.note.as_ref().is_some_and(|note| note.format.as_deref() == Some(found.format));
        if found.tells_format || is_device || is_noted {
            return Ok(());
        }
        let (record, seen) = match &found.note {
            Some(note) => (note.record.clone(), note.seen.clone()),
            None => (None, None),
        };
        match self.note(&found, record, seen) {
            Err(error) if place::is_closed(&error) => Ok(()),
            noted => noted,
        }
    }

    /// Returns the format, by its name, that is noted of the image whose header is in `file`.
    pub fn format_of(&self, file: &dyn File) -> Result<Option<String>> {
        noted_format(self.host.as_ref(), &self.folders_of(file)?, file)
    }

    /// Notes beside `parent` in which other folder it has a child, so that whoever looks for its children looks there, too.
    /// A hint: where it cannot be kept, or one of both is a device, there is none.
    pub fn note_child(
        &self,
        parent: &(impl Carrier + ?Sized),
        child: &(impl Carrier + ?Sized),
    ) -> Result<()> {
        let folder = |file: &dyn File| -> Result<Option<PathBuf>> {
            let place = if file.is_device() { None } else { Some(self.host.opened_as(file)?) };
            Ok(place.and_then(|place| place.parent().map(Path::to_path_buf)))
        };
        let (Some(above), Some(below)) =
            (child.files().into_iter().next(), parent.files().into_iter().next())
        else {
            return Ok(());
        };
        match (folder(below.as_ref())?, folder(above.as_ref())?) {
            (Some(own), Some(other)) => elsewhere::note(&self.host, &own, &other),
            _ => Ok(()),
        }
    }

    /// Begins to remove an image, of which all that is noted stays as long as its file does ([`Parting::end`]).
    pub fn part(&self, image: &(impl Carrier + ?Sized)) -> Result<Parting> {
        let (header, folders) = self.folders(image)?;
        let place = self.host.opened_as(header.as_ref())?;
        let folder = place.parent().unwrap_or(Path::new("/"));
        Parting::begin(&self.host, (folder, folders), Header::of(header.as_ref())?)
    }

    /// Ends removals of images in `folder` that were cut off: what is noted of those that are gone goes, too.
    pub fn end_partings(&self, folder: &Path) -> Result<()> {
        parting::sweep(self.host.as_ref(), folder)
    }

    /// Removes what is noted of an image that gets other bytes, or that a journal says is going.
    pub fn forget(&self, image: &(impl Carrier + ?Sized)) -> Result<()> {
        let found = self.find(image)?;
        note::remove(self.host.as_ref(), &found.folders, &found.header)
    }

    /// Removes the tree with this ID that is kept near the place of an image.
    pub fn forget_tree(&self, path: &Path, id: &ContentId) -> Result<()> {
        for folder in self.folders_beside(path) {
            match self.host.remove(&folder.join("trees").join(id.hex())) {
                Err(error) if place::is_closed(&error) || error.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Removes what is noted of an image whose name, `path`, another file has got, so that it is not read as that of
    /// a later file in its place.
    pub fn forget_replaced(&self, path: &Path, image: &(impl Carrier + ?Sized)) -> Result<()> {
        let header = image.files().into_iter().next();
        let header = header.ok_or_else(|| Error::invalid("an image without a file").path(path))?;
        note::remove(self.host.as_ref(), &self.folders_beside(path), &Header::of(header.as_ref())?)
    }

    /// A tree that a power cut takes away, or a part of it, is computed again.
    fn keep_tree(&self, folders: &[PathBuf], id: &ContentId, tree: &Tree) -> Result<()> {
        let name = Path::new("trees").join(id.hex());
        let name = (name.as_path(), Lasting::Sometime);
        place::replace_in_first(&self.host, folders, name, &|out| tree.write_to(out)).map(drop)
    }

    /// Returns the image's header file, and the folders in which something may be noted of it.
    fn folders(&self, image: &(impl Carrier + ?Sized)) -> Result<(Arc<dyn File>, Vec<PathBuf>)> {
        let header = image.files().into_iter().next();
        let header = header.ok_or_else(|| Error::invalid("an image without a file"))?;
        let folders = self.folders_of(header.as_ref())?;
        Ok((header, folders))
    }

    fn folders_of(&self, header: &dyn File) -> Result<Vec<PathBuf>> {
        Ok(self.folders_beside(&self.host.opened_as(header)?))
    }

    fn folders_beside(&self, path: &Path) -> Vec<PathBuf> {
        let beside = path.parent().unwrap_or(Path::new("/")).join(FOLDER);
        std::iter::once(beside).chain(self.state.clone()).collect()
    }

    fn find(&self, image: &(impl Carrier + ?Sized)) -> Result<Found> {
        let (header, folders) = self.folders(image)?;
        let header = Header::of(header.as_ref())?;
        let note = note::read(self.host.as_ref(), &folders, &header)?;
        Ok(Found {
            inside: image.stored()?,
            note,
            now: witnesses(image)?,
            header,
            folders,
            identity: image.identity(),
            format: image.format_name(),
            tells_format: image.tells_format(),
        })
    }

    /// Writes a layer's record where there is a place for it, and says what the files look like with it if
    /// that is asked for.
    fn put(&self, image: &(impl Carrier + ?Sized), layer: &LayerRecord, vouch: Vouch) -> Result<Known> {
        let mut found = self.find(image)?;
        let epoch = layer.frozen.map(|record| record.epoch);
        let is_doubted = matches!(found.known().trust, Trust::Doubted(_));
        let misleads =
            |note: &Note| note.seen.as_ref().is_some_and(|seen| Some(seen.epoch) == epoch || !is_doubted);
        // A witness that speaks against the epoch before stays until the new one stands.
        let is_misleading = found.note.as_ref().is_some_and(misleads);
        if Guard::WitnessWithdrawn.trips(is_misleading) {
            self.withdraw(&found)?;
        } else if !is_misleading && found.layer().0.frozen.is_some() {
            // One that is gone may come back with the power: whoever withdrew it may have been killed meanwhile.
            note::settle(self.host.as_ref(), &found.folders, &found.header)?;
        }
        let encoded = layer.encode();
        let bytes = (!layer.is_empty()).then_some(encoded.as_slice());
        let is_inside = image.store(bytes)?;
        let is_superseded = !is_inside && self.supersede(image, &mut found, layer)?;
        let is_noted = !is_inside && (found.inside.is_some() || !layer.is_empty());
        let outside = is_noted.then(|| layer.clone());
        // What puts the files right before the next write is no stranger.
        let is_stable = !Guard::WitnessRecovery.trips(image.awaits_recovery());
        let vouches = vouch == Vouch::Yes && layer.frozen.is_some() && is_stable;
        if is_inside || is_superseded || vouches {
            image.flush_with_time()?;
        }
        let seen = match layer.frozen {
            Some(record) if vouches => {
                let files = witnesses(image)?;
                let noted_ns = io::settle(&image.files(), &files);
                Some(Seen { epoch: record.epoch, files, noted_ns })
            }
            _ => None,
        };
        let found = Found { inside: image.stored()?, ..found };
        self.note(&found, outside, seen)?;
        self.look(image)
    }

    /// Takes back what is inside the image and counts, as the layer's record has no place there: what is beside it comes
    /// first, and stands before and after. Returns whether there was such a thing.
    fn supersede(
        &self,
        image: &(impl Carrier + ?Sized),
        found: &mut Found,
        layer: &LayerRecord,
    ) -> Result<bool> {
        let Some(inside) = found.inside.as_mut().filter(|stored| stored.is_untouched) else {
            return Ok(false);
        };
        inside.is_untouched = false;
        self.note(found, Some(layer.clone()), None)?;
        image.void()?;
        Ok(true)
    }

    /// Drops the witness: what is written next would contradict it, and a crash in between must not look like
    /// a stranger's write.
    fn withdraw(&self, found: &Found) -> Result<()> {
        let standing = found.note.as_ref().and_then(|note| note.stands_for(found.inside.as_ref()));
        self.note(found, standing.map(|(record, _)| record.clone()), None)
    }

    /// Replaces the note of an image; one that says nothing is removed.
    fn note(&self, found: &Found, record: Option<LayerRecord>, seen: Option<Seen>) -> Result<()> {
        if record.is_none() && seen.is_none() && found.tells_format {
            return note::remove(self.host.as_ref(), &found.folders, &found.header);
        }
        let image = (found.format, &found.header);
        let note = Note::new(image, record, found.inside.as_ref(), seen);
        note::write(&self.host, &found.folders, &found.header, &note)
    }
}

fn header_path(image: &(impl Carrier + ?Sized)) -> Result<PathBuf> {
    let header = image.files().into_iter().next();
    header.map(|file| file.path().to_path_buf()).ok_or_else(|| Error::invalid("an image without a file"))
}

/// Returns whether the files look as they did; devices, whose times tell nothing, always do.
pub fn is_as_before(then: &[Witness], now: &[Witness]) -> bool {
    then.len() == now.len() && then.iter().zip(now).all(|(then, now)| then.is_unchanged(now))
}

/// Whether the layer's files are known to hold the bytes of its epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vouch {
    Yes,
    No,
}

fn witnesses(image: &(impl Carrier + ?Sized)) -> Result<Vec<Witness>> {
    image.files().iter().map(|file| file.witness()).collect()
}

#[cfg(test)]
mod tests;
