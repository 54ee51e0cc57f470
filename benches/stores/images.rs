//! Folders of so many images that nobody waits for each to be created: copies of one family (a sealed base, and nine
//! deltas in chains of one to three on it), each with names, epochs and a content ID of its own.

use deltachain::{
    base::{Error, GuestOffset, Result, seed::Seeded},
    chain::{Chain, Opening, open_layer},
    content::ContentId,
    disk::Disk,
    format::Format,
    io::{Host, real::RealHost},
    job::{
        Progress,
        create::{NewImage, create},
        rebase::NewParent,
        seal,
    },
    store::{Carrier as _, Epoch, LayerRecord, Ledger},
};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Images of a family.
const FAMILY: u64 = 10;

/// Bytes of the images that are written each by itself: what is empty stays a hole.
const PIECE_BYTES: usize = 4096;

/// Returns the content ID that a member of a family has, if it has one: others lie on it. The base is member
/// 0; that of family 7 is what rows look for, `c1:0fcb433333e80767...`.
fn id(family: u64, member: u64) -> ContentId {
    let mut bytes = [0; 32];
    Seeded::new(family * FAMILY + member).fill(&mut bytes);
    ContentId::new(bytes)
}

/// Names of one length, so that one can take another's place.
fn name(family: u64, member: u64) -> String {
    format!("vm{family:06}-{member}.qcow2")
}

/// The member that one stands on: chains of two, three and four layers on the base.
fn parent(member: u64) -> Option<u64> {
    match member {
        0 => None,
        2 | 4 | 5 => Some(member - 1),
        _ => Some(0),
    }
}

/// Makes `folder` with `count` images, unless it is there.
pub(crate) fn make(folder: &Path, count: u64) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let failed = |e| Error::io("make images", e).path(folder);
    let template = tempfile::tempdir().map_err(failed)?;
    let members = templates(template.path())?;
    let part = folder.with_extension("part");
    // What was cut off is begun anew.
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(failed)?;
    for number in 0..count {
        let (family, member) = (number / FAMILY, number % FAMILY);
        for image in members.iter().filter(|image| image.member == member) {
            image.write(&part.join(name(family, member)), family).map_err(failed)?;
        }
    }
    fs::rename(&part, folder).map_err(failed)
}

/// An image of the family that all others are copies of.
struct Template {
    member: u64,
    bytes: u64,
    /// What is no hole: where, and the bytes.
    pieces: Vec<(u64, Vec<u8>)>,
    /// What is recorded of it, and the piece and the place in that where it stands.
    record: LayerRecord,
    at: (usize, usize),
}

/// Makes family 0 with the library.
fn templates(folder: &Path) -> Result<Vec<Template>> {
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let ledger = Ledger::new(Arc::clone(&host), None);
    let format = Format::Qcow2;
    let opening = Opening::reading().with_format(Some(format)).with_ledger(ledger.clone());
    let mut members = Vec::new();
    for member in 0..FAMILY {
        let path = folder.join(name(0, member));
        let on = |parent| NewParent { path: folder.join(name(0, parent)), format };
        let size = parent(member).is_none().then_some(64 << 20);
        create(
            &host,
            &path,
            &NewImage { format, size, parent: parent(member).map(on), options: Vec::new() },
            &opening,
        )?;
        let writing = opening.clone().with_access(deltachain::io::Access::Write);
        let chain = Chain::open(&host, &path, &writing)?;
        chain.write(GuestOffset::new(member << 20), &[7; 512])?;
        chain.flush()?;
        drop(chain);
        // What is noted beside an image does not go with it.
        if (0..FAMILY).any(|other| parent(other) == Some(member)) {
            seal::seal(&ledger, &seal::open_layers(&host, &path, &opening)?, &Progress::default())?;
        }
        members.push(path);
    }
    let stored = |path: &PathBuf| -> Result<LayerRecord> {
        let inside = open_layer(&host, path, &opening)?.image.stored()?;
        Ok(LayerRecord::decode(&inside.map(|stored| stored.bytes).unwrap_or_default()))
    };
    members.iter().zip(0..).map(|(path, member)| template(member, path, stored(path)?)).collect()
}

fn template(member: u64, path: &Path, record: LayerRecord) -> Result<Template> {
    let image = fs::read(path).map_err(|e| Error::io("read", e).path(path))?;
    let is_held = |piece: &&[u8]| piece.iter().any(|byte| *byte != 0);
    let pieces =
        image.chunks(PIECE_BYTES).zip((0..).step_by(PIECE_BYTES)).filter(|(piece, _)| is_held(piece));
    let pieces: Vec<(u64, Vec<u8>)> = pieces.map(|(piece, at)| (at, piece.to_vec())).collect();
    let bytes = u64::try_from(image.len()).unwrap_or_default();
    let stored = record.encode();
    let place = |piece: &[u8]| piece.windows(stored.len()).position(|part| part == stored);
    let at = pieces.iter().enumerate().find_map(|(nth, (_, piece))| Some((nth, place(piece)?)));
    let at = at.ok_or_else(|| Error::invalid("an image without its record").path(path))?;
    Ok(Template { member, bytes, pieces, record, at })
}

impl Template {
    /// What is recorded of the same member of another family.
    fn record(&self, family: u64) -> LayerRecord {
        let epoch = |member: u64| Epoch::new(u128::from(family) << 8 | u128::from(member));
        let mut record = self.record.clone();
        if let Some(frozen) = &mut record.frozen {
            frozen.epoch = epoch(self.member);
            frozen.sealed = frozen.sealed.map(|_| id(family, self.member));
        }
        if let (Some(claim), Some(parent)) = (&mut record.claim, parent(self.member)) {
            claim.parent_epoch = epoch(parent);
            claim.parent_id = claim.parent_id.map(|_| id(family, parent));
            claim.name = name(family, parent).into_bytes();
        }
        record
    }

    /// Writes the same member of another family.
    fn write(&self, path: &Path, family: u64) -> std::io::Result<()> {
        let file = fs::File::create(path)?;
        file.set_len(self.bytes)?;
        let new = self.record(family).encode();
        for (nth, (at, piece)) in self.pieces.iter().enumerate() {
            let mut piece = piece.clone();
            if let Some(own) = parent(self.member) {
                rename(&mut piece, name(0, own).as_bytes(), name(family, own).as_bytes());
            }
            if nth == self.at.0 && !self.record.is_empty() {
                piece.iter_mut().skip(self.at.1).zip(&new).for_each(|(to, from)| *to = *from);
            }
            file.write_all_at(&piece, *at)?;
        }
        Ok(())
    }
}

/// Puts one name in the place of another of the same length.
fn rename(piece: &mut [u8], old: &[u8], new: &[u8]) {
    while let Some(at) = piece.windows(old.len()).position(|part| part == old && old != new) {
        piece.iter_mut().skip(at).zip(new).for_each(|(to, from)| *to = *from);
    }
}
