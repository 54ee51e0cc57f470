//! Whether a layer's record can be believed, and whether a child may stand on its parent. Pure: the
//! [`Ledger`](super::Ledger) gathers the evidence.

use super::{Claim, Epoch, Identity, Known, Record};
use crate::{
    base::{Error, Guard, clock},
    content::ContentId,
    io::Witness,
};
use serde::{Deserialize, Serialize};
use std::path::Path;

const SECOND_NS: i128 = 1_000_000_000;

/// What a layer's files looked like when its bytes were known to be those of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The epoch that this vouches for.
    pub epoch: Epoch,
    /// Every file of the image, in the image's order.
    pub files: Vec<Witness>,
    /// When it was noted, by the clock that stamps files, in nanoseconds since 1970.
    pub noted_ns: i128,
}

/// What there is to judge a layer's record by.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The layer's record, if it has one.
    pub record: Option<&'a Record>,
    /// Whether the format's own sign of a foreign writer is absent.
    pub is_untouched: bool,
    /// What was noted of the files last.
    pub seen: Option<&'a Seen>,
    /// What the files look like now, in the image's order.
    pub now: &'a [Witness],
}

/// How far a frozen layer's record can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "trust", content = "doubt")]
pub enum Trust {
    /// Its witness holds in this boot, and every ancestor is trusted: good for everything.
    Trusted,
    /// Nothing contradicts the record and nothing proves it: good along a chain whose claims match.
    Claimed,
    /// Something contradicts the record: no child stands on it.
    Doubted(Doubt),
    /// It has no record: a head, or made by another program.
    Unknown,
}

/// What contradicts a record. Files are counted from 0, the one with the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doubt {
    /// The format's own sign: a program that does not know the record opened the image for writing.
    Opened,
    /// A file has another length, in bytes.
    Resized {
        /// Which file.
        file: usize,
        /// Then.
        was: u64,
        /// Now.
        is: u64,
    },
    /// A file was written at another time, in nanoseconds since 1970.
    Written {
        /// Which file.
        file: usize,
        /// Then.
        was_ns: i128,
        /// Now.
        is_ns: i128,
    },
    /// The image has other files than before.
    Replaced,
    /// A layer below is in doubt.
    Below,
}

impl Trust {
    /// Returns what remains of the trust in a layer when its parent has `parent`.
    #[must_use]
    pub const fn over(self, parent: Self) -> Self {
        match (self, parent) {
            (Self::Trusted | Self::Claimed, Self::Doubted(_)) => Self::Doubted(Doubt::Below),
            (Self::Trusted, Self::Claimed | Self::Unknown) => Self::Claimed,
            (own, _) => own,
        }
    }
}

/// Returns how far the layer's own record can be believed, whatever lies below.
///
/// A witness of an earlier boot can contradict, not prove; one of another epoch says nothing.
pub fn trust(evidence: &Evidence<'_>) -> Trust {
    let Some(record) = evidence.record else { return Trust::Unknown };
    if Guard::StrangersBit.trips(!evidence.is_untouched) {
        return Trust::Doubted(Doubt::Opened);
    }
    let Some(seen) = evidence.seen.filter(|seen| seen.epoch == record.epoch) else { return Trust::Claimed };
    if Guard::WitnessFiles.trips(seen.files.len() != evidence.now.len()) {
        return Trust::Doubted(Doubt::Replaced);
    }
    let pairs = || seen.files.iter().zip(evidence.now);
    if let Some(doubt) = pairs().enumerate().find_map(|(file, (then, now))| changed(file, then, now)) {
        return Trust::Doubted(doubt);
    }
    let vouches =
        pairs().all(|(then, now)| !Guard::WitnessBoot.trips(then != now) && is_settled(then, seen.noted_ns));
    if vouches && !seen.files.is_empty() { Trust::Trusted } else { Trust::Claimed }
}

fn changed(file: usize, then: &Witness, now: &Witness) -> Option<Doubt> {
    if Guard::WitnessInode.trips(!then.same_file(now)) {
        // Inode and device numbers are only names of one boot where a file system has no better.
        return (then.boot == now.boot).then_some(Doubt::Replaced);
    }
    if Guard::WitnessLength.trips(then.bytes != now.bytes) {
        return Some(Doubt::Resized { file, was: then.bytes, is: now.bytes });
    }
    let (was_ns, is_ns) = (then.modified_ns, now.modified_ns);
    Guard::WitnessTime.trips(was_ns != is_ns).then_some(Doubt::Written { file, was_ns, is_ns })
}

/// Returns whether a write after the witness was noted must have got another time stamp.
///
/// A write within the same tick of the file system's clock would not: the witness is then no proof.
fn is_settled(witness: &Witness, noted_ns: i128) -> bool {
    let tick = if witness.modified_ns % SECOND_NS == 0 { SECOND_NS } else { 1 };
    !Guard::WitnessTick.trips(noted_ns < witness.modified_ns + tick)
}

/// A layer as far as its parent is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Child<'a> {
    /// The claim that it carries, if any.
    pub claim: Option<&'a Claim>,
    /// The parent's name as its header has it now.
    pub name: &'a [u8],
    /// The parent's format as its header has it now.
    pub format: Option<&'a str>,
    /// What its header says that the parent says of itself.
    pub identity: Option<Identity>,
}

/// Why a child may stand on its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lineage {
    /// The epochs match and the parent is not doubted.
    Kept,
    /// The parent's bytes are proven to be those that the child was made on.
    Proven,
    /// The child makes no claim (another program made it, or gave it this parent).
    Unknown,
}

/// Why a child must not be read on its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What differs.
    pub differs: Differs,
    /// The content ID that the child wants below, if it knows one.
    pub wanted: Option<ContentId>,
    /// The content ID that the parent is proven to have, if it is.
    pub proven: Option<ContentId>,
    /// When the parent's file was last written, in nanoseconds since 1970.
    pub written_ns: Option<i128>,
}

/// How a parent differs from what its child claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// The parent's record is in doubt.
    Doubted(Doubt),
    /// The parent has another epoch: it was changed on purpose, or is another image.
    Epoch {
        /// The child's claim.
        claimed: Epoch,
        /// The parent's record.
        found: Epoch,
    },
    /// The parent has no record: it was copied without one, or is another image.
    NoRecord,
    /// The parent's own format says that it is not what the child was made on, and the child makes no claim.
    Identity {
        /// The child's header.
        claimed: Identity,
        /// The parent's header.
        found: Identity,
    },
}

/// Decides whether `child` may be read on `parent`.
///
/// `proven` is the content ID of the parent's view if it has just been computed; a trusted parent's seal
/// counts as that. The parent's trust is that over all its ancestors.
pub fn accept(child: &Child<'_>, parent: &Known, proven: Option<ContentId>) -> Result<Lineage, Box<Refusal>> {
    let is_other = |claim: &Claim| claim.name != child.name || claim.format.as_deref() != child.format;
    let holds = |claim: &&Claim| !Guard::ClaimName.trips(is_other(claim));
    let written_ns = parent.now.iter().map(|witness| witness.modified_ns).max();
    // A claim that holds goes over what the formats say: a fold gives its result another identity, not another epoch.
    let Some(claim) = child.claim.filter(holds) else {
        return match child.identity.zip(parent.identity) {
            Some((claimed, found)) if Guard::ParentIdentity.trips(claimed != found) => {
                let differs = Differs::Identity { claimed, found };
                Err(Box::new(Refusal { differs, wanted: None, proven, written_ns }))
            }
            _ => Ok(Lineage::Unknown),
        };
    };
    let record = parent.layer.frozen;
    let sealed = record.and_then(|r| r.sealed).filter(|_| parent.trust == Trust::Trusted);
    let proven = proven.or(sealed);
    if claim.parent_id.is_some() && claim.parent_id == proven {
        return Ok(Lineage::Proven);
    }
    let differs = match (record, parent.trust) {
        (None, _) => Differs::NoRecord,
        (Some(found), _) if Guard::ClaimEpoch.trips(found.epoch != claim.parent_epoch) => {
            Differs::Epoch { claimed: claim.parent_epoch, found: found.epoch }
        }
        (Some(_), Trust::Doubted(doubt)) if Guard::ClaimDoubt.trips(true) => Differs::Doubted(doubt),
        (Some(_), _) => return Ok(Lineage::Kept),
    };
    Err(Box::new(Refusal { differs, wanted: claim.parent_id, proven, written_ns }))
}

impl Refusal {
    /// Returns the refusal for a person: what differs, since when, what to do.
    pub fn error(&self, child: &Path, parent: &Path) -> Error {
        let differs = match self.differs {
            Differs::Doubted(doubt) => doubt.to_string(),
            Differs::Epoch { claimed, found } => {
                format!("its epoch is {found}, this layer was made on {claimed}")
            }
            Differs::NoRecord => "it has no record of being this layer's parent".to_owned(),
            Differs::Identity { claimed, found } => {
                format!("its header says {found}, this layer was made on {claimed}")
            }
        };
        let since =
            self.written_ns.map_or_else(String::new, |ns| format!(" (last written {})", clock::utc(ns)));
        let ids = match (self.wanted, self.proven) {
            (Some(wanted), Some(found)) => {
                format!("; it shows {}, wanted is {}", found.short(), wanted.short())
            }
            (Some(wanted), None) => format!("; wanted is content ID {}", wanted.short()),
            (None, _) => String::new(),
        };
        let todo = self.todo(child, parent);
        let what =
            format!("its parent {} is not what it was: {differs}{since}{ids}; {todo}", parent.display());
        Error::policy(what).path(child)
    }

    /// Says what can be done: commands as they are typed.
    fn todo(&self, child: &Path, parent: &Path) -> String {
        let (name, folder) = (child.display(), parent.parent().unwrap_or(Path::new("/")).display());
        let accept = format!("`dchain relink --accept {name}` takes it as it is");
        let search = if child.parent() == parent.parent() {
            format!("`dchain relink {folder}`")
        } else {
            format!("`dchain relink {folder} {name}`")
        };
        match (self.differs, self.wanted, self.proven) {
            (Differs::Doubted(_), Some(_), _) => format!(
                "{search} proves it if nothing differs, or finds another one, `dchain repair {} --from COPY` puts back \
                 what differs, {accept}",
                parent.display()
            ),
            (_, Some(_), None) => format!(
                "{search} proves it by its bytes, or finds the right one, and mends the link; {accept}"
            ),
            (Differs::NoRecord, None, _) => format!(
                "a copy made by other programs leaves the record of a raw parent behind, and this one had no content \
                 ID that could prove it (`dchain id seal` before copying, or `dchain copy`): if you know that it is \
                 unchanged, {accept}"
            ),
            (_, None, _) | (_, Some(_), Some(_)) => format!("{search} can find the right one, {accept}"),
        }
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Opened => f.write_str("another program opened it for writing"),
            Self::Resized { was, is, .. } => write!(f, "it was {was} bytes long, now it is {is}"),
            Self::Written { was_ns, .. } => {
                write!(f, "it was written after {}", clock::utc(*was_ns))
            }
            Self::Replaced => f.write_str("it has other files than before"),
            Self::Below => f.write_str("a layer below it was changed"),
        }
    }
}

#[cfg(test)]
mod tests;
