//! Disks into a new OVA: each a streamOptimized VMDK, held by a manifest.
//!
//! ```text
//! | vm.ovf | vm.mf | vm-disk1.vmdk | vm-disk2.vmdk | ...      each behind a tar header, up to a whole block
//! ```
//! A disk is converted into a file of its own beside the archive, since its length stands in front of it; the digest is made
//! while it is brought in, and the manifest, whose length is known, is written last. What stays true: nothing has the
//! archive's name before it is whole and durable.

use crate::{
    base::{
        Error, ErrorKind, HostOffset, Result,
        error::InFile,
        units::{SECTOR_BYTES, count, index},
    },
    chain::View,
    format::{self, Creation, Format, NoParts},
    io::{File, Host},
    job::{
        Progress,
        convert::{Filling, fill},
    },
    store::{
        Draft, Publish,
        ova::{Algorithm, NewDisk, NewNames, ShownDigest, promise_line, tar_header},
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is brought in at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Files lie at multiples of it.
const BLOCK_BYTES: u64 = 512;
/// What an archive ends with: zeros.
const END_BYTES: u64 = 2 * BLOCK_BYTES;

/// An OVA that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// The archive.
    #[serde(serialize_with = "crate::base::name::serialize")]
    pub archive: PathBuf,
    /// Its disks.
    pub disks: Vec<NewDisk>,
}

/// A disk in a file of its own.
struct Part {
    draft: Draft,
    disk: NewDisk,
}

/// An archive in the making.
struct Archive<'a> {
    file: &'a dyn File,
    at: HostOffset,
}

impl Archive<'_> {
    /// Adds the header of a file, and room for it; returns where its bytes go.
    fn add(&mut self, name: &str, bytes: u64) -> Result<HostOffset> {
        self.file.write_at(self.at, &tar_header(name, bytes)?)?;
        let place = self.at.plus(BLOCK_BYTES);
        self.at = place.plus(bytes).ceil(BLOCK_BYTES);
        Ok(place)
    }

    /// Adds the file of a disk; returns its digest.
    fn bring(&mut self, part: &Part, progress: &Progress) -> Result<ShownDigest> {
        let to = self.add(&part.disk.file, part.disk.file_bytes)?;
        let from = part.draft.file();
        let mut hasher = Algorithm::Sha256.hasher();
        let mut bytes = vec![0; index(PIECE_BYTES.min(part.disk.file_bytes))];
        for piece in HostOffset::new(0).range(part.disk.file_bytes).pieces(PIECE_BYTES) {
            progress.checkpoint()?;
            let held = bytes.get_mut(..index(piece.bytes)).unwrap_or_default();
            from.read_at(piece.start, held)?;
            hasher.update(held);
            self.file.write_at(to.plus(piece.start.bytes()), held)?;
            progress.moved(piece.bytes);
        }
        Ok(hasher.finish())
    }
}

/// Makes an OVA at `path` with what each of `disks` shows; the machine in it is one that any importer takes, and is to be
/// set up there.
///
/// `Exists` if a file has the name; `Interrupted` when told to stop, and then nothing is left behind.
pub fn write(host: &Arc<dyn Host>, disks: &[View], path: &Path, progress: &Progress) -> Result<Written> {
    if host.is_taken(path)? {
        return Err(Error::new(ErrorKind::Exists, "is there already").path(path));
    }
    // What is left of an earlier run only takes space: it is in nobody's way if it cannot be removed.
    let _ = Draft::sweep(host.as_ref(), path);
    let names = NewNames::of(path);
    let parts = (1..).zip(disks).map(|(nth, view)| make_part(host, (view, names.disk(nth)), path, progress));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let all: Vec<NewDisk> = parts.iter().map(|part| part.disk.clone()).collect();
    let draft = Draft::new(host, path)?;
    let file = draft.file();
    progress.begin("pack", all.iter().map(|disk| disk.file_bytes).sum());
    pack(file.as_ref(), &names, &parts, &names.describe(&all).in_file(path)?, progress)
        .map_err(|e| e.renamed(file.path(), path))?;
    draft.publish(path, Publish::New)?;
    Ok(Written { archive: path.to_path_buf(), disks: all })
}

/// Converts one disk.
fn make_part(
    host: &Arc<dyn Host>,
    (view, file): (&View, String),
    path: &Path,
    progress: &Progress,
) -> Result<Part> {
    let draft = Draft::new(host, path)?;
    let size = view.size().next_multiple_of(SECTOR_BYTES);
    let options = vec![("subformat".to_owned(), "streamOptimized".to_owned())];
    let creation = Creation { size, parent: None, options };
    let make = || -> Result<u64> {
        let image = format::create(Format::Vmdk, draft.file(), &creation, &NoParts)?;
        let filling = Filling { is_blank: true, is_packed: true };
        let written_bytes = fill(view, image.as_ref(), filling, progress)?;
        image.flush()?;
        Ok(written_bytes)
    };
    let written_bytes = make().map_err(|e| e.renamed(draft.path(), path))?;
    let file_bytes = draft.file().bytes()?;
    Ok(Part { draft, disk: NewDisk { file, file_bytes, size, written_bytes } })
}

fn pack(
    file: &dyn File,
    names: &NewNames,
    parts: &[Part],
    descriptor: &str,
    progress: &Progress,
) -> Result<()> {
    let mut archive = Archive { file, at: HostOffset::new(0) };
    let at = archive.add(&names.descriptor(), count(descriptor.len()))?;
    file.write_at(at, descriptor.as_bytes())?;
    let mut hasher = Algorithm::Sha256.hasher();
    hasher.update(descriptor.as_bytes());
    let mut manifest = promise_line(&names.descriptor(), &hasher.finish());
    // All digests are of one length.
    let blank = Algorithm::Sha256.hasher().finish();
    let lines = parts.iter().map(|part| promise_line(&part.disk.file, &blank).len());
    let manifest_at = archive.add(&names.manifest(), count(manifest.len() + lines.sum::<usize>()))?;
    for part in parts {
        manifest += &promise_line(&part.disk.file, &archive.bring(part, progress)?);
    }
    file.write_at(manifest_at, manifest.as_bytes())?;
    file.set_bytes(archive.at.plus(END_BYTES).bytes())
}
