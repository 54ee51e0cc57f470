//! A disk of an OVA in an image of its own, held against the manifest.
//!
//! What stays true: an image whose bytes came from a file that is not what the manifest promises never gets its name. The
//! file is read once from its device: the digest is made while the disk is converted, from the same pages of the host.

use crate::{
    base::{Error, ErrorKind, HostOffset, Result, units::index},
    chain::{Chain, Package},
    format::Format,
    io::Host,
    job::{
        Progress,
        convert::{self, Converted},
    },
    store::ova::{Algorithm, Member, Ova, OvaDisk, Promise},
};
use std::{
    panic,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

/// Bytes that a digest takes in at once.
const PIECE_BYTES: u64 = 1 << 20;

/// How the manifest stands to what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The bytes are those that it promises.
    Verified,
    /// There is one, and it does not speak of the file.
    NotListed,
    /// There is none.
    NoManifest,
    /// It was not looked at.
    Skipped,
}

/// What came of holding a file against the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// How they stand.
    pub outcome: Outcome,
    /// How the promised digest is made, where there is one.
    pub algorithm: Option<Algorithm>,
}

/// A disk that became an image.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Taken {
    /// The new image.
    #[serde(flatten)]
    pub converted: Converted,
    /// What the descriptor calls the disk.
    pub disk: String,
    /// The file that it is in.
    pub file: String,
    /// The disk's size by the descriptor in bytes, where that is known.
    pub capacity: Option<u64>,
    /// What came of the manifest.
    pub manifest: Verdict,
    /// The file that signs the manifest, if there is one: it is not looked at.
    pub certificate: Option<String>,
}

/// Makes a new image at `path` that shows what a disk of an OVA shows, as [`convert::convert`] does.
///
/// With `is_verified` the descriptor and the disk's file are held against the manifest: `Corrupt`, and nothing is left
/// behind, if one of them is not what it promises.
pub fn convert_disk(
    host: &Arc<dyn Host>,
    (package, disk, is_verified): (&Package, &OvaDisk, bool),
    path: &Path,
    new: (Format, &[(String, String)], bool),
    progress: &Progress,
) -> Result<Taken> {
    let chain = Chain::of(vec![package.layer(disk)?], false);
    let view = chain.view(0);
    let make = || convert::make(host, &view, path, new, progress);
    let ova = package.ova();
    let (made, manifest) = if !is_verified {
        (make()?, Verdict { outcome: Outcome::Skipped, algorithm: None })
    } else if host.kind(path)?.is_some() {
        // A device is written to before anything could be taken back.
        let manifest = verify(ova, disk, &|| progress.checkpoint())?;
        (make()?, manifest)
    } else {
        hold(ova, ova.descriptor(), &|| progress.checkpoint())?;
        beside(make, |is_over| {
            let stopped = || Error::new(ErrorKind::Interrupted, "the image is not made");
            verify(ova, disk, &|| if is_over.load(Relaxed) { Err(stopped()) } else { progress.checkpoint() })
        })?
    };
    let converted = made.publish()?;
    Ok(Taken {
        converted,
        disk: disk.id.clone(),
        file: disk.name().to_owned(),
        capacity: disk.size,
        manifest,
        certificate: ova.certificate().map(|member| member.name.clone()),
    })
}

/// Makes and verifies at the same time. An image that cannot be made because its bytes make no sense is looked at to the
/// end all the same: that they are not what was promised says more.
fn beside<M>(
    make: impl FnOnce() -> Result<M>,
    verify: impl FnOnce(&AtomicBool) -> Result<Verdict> + Send,
) -> Result<(M, Verdict)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let verdict = scope.spawn(|| verify(&is_over));
        let made = make();
        let is_corrupt = made.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt);
        is_over.store(made.is_err() && !is_corrupt, Relaxed);
        let verdict = verdict.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
        match made {
            Ok(made) => Ok((made, verdict?)),
            Err(error) => Err(verdict.err().filter(|_| is_corrupt).unwrap_or(error)),
        }
    })
}

/// Holds the descriptor and the file of a disk against the manifest, in one pass; `Corrupt` for what is not as promised.
pub fn verify(ova: &Ova, disk: &OvaDisk, goes_on: &dyn Fn() -> Result<()>) -> Result<Verdict> {
    let none = |outcome| Ok(Verdict { outcome, algorithm: None });
    if ova.manifest().is_none() {
        return none(Outcome::NoManifest);
    }
    hold(ova, ova.descriptor(), goes_on)?;
    let promise = disk.member.as_ref().map(|member| hold(ova, member, goes_on)).transpose()?.flatten();
    match promise {
        None => none(Outcome::NotListed),
        Some(promise) => Ok(Verdict { outcome: Outcome::Verified, algorithm: Some(promise.algorithm) }),
    }
}

/// Holds the descriptor alone against the manifest; `Corrupt` if it is not as promised.
pub fn verify_descriptor(ova: &Ova) -> Result<Outcome> {
    Ok(match (ova.manifest(), hold(ova, ova.descriptor(), &|| Ok(()))?) {
        (None, _) => Outcome::NoManifest,
        (Some(_), None) => Outcome::NotListed,
        (Some(_), Some(_)) => Outcome::Verified,
    })
}

/// Holds one file against what is promised of it, if anything is.
fn hold<'o>(ova: &'o Ova, member: &Member, goes_on: &dyn Fn() -> Result<()>) -> Result<Option<&'o Promise>> {
    let Some(promise) = ova.promise(member) else { return Ok(None) };
    let file = ova.window(member);
    let mut hasher = promise.algorithm.hasher();
    let mut bytes = vec![0; index(PIECE_BYTES.min(member.range.bytes))];
    for piece in HostOffset::new(0).range(member.range.bytes).pieces(PIECE_BYTES) {
        goes_on()?;
        let part = bytes.get_mut(..index(piece.bytes)).unwrap_or_default();
        file.read_at(piece.start, part)?;
        hasher.update(part);
    }
    promise.hold(&hasher.finish()).map_err(|e| e.path(file.path()))?;
    Ok(Some(promise))
}
