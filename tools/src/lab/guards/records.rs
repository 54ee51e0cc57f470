//! Scenes about records, claims, witnesses and seals.

use crate::jobs::world::ledger;
use deltachain::{
    base::{GuestOffset, HostOffset, Result},
    content::Tree,
    format::{self, Creation, Format, Image, NoParts, Nothing},
    io::{Access, Host, Witness, faulty::SimHost},
    store::{
        Child, Claim, Epoch, Evidence, Identity, Known, LayerRecord, Lineage, Record, Seen, Trust, accept,
        trust,
    },
};
use std::{path::Path, sync::Arc};

const WITNESS: Witness = Witness { file_system: 1, inode: 2, bytes: 4096, modified_ns: 10, boot: 7 };

/// A witness with something changed.
pub(super) fn changed(mut witness: Witness, change: impl FnOnce(&mut Witness)) -> Witness {
    change(&mut witness);
    witness
}

/// How far a record is believed whose witness was noted at a time, when the files look like `now`.
fn believed(noted_ns: i128, is_untouched: bool, now: &[Witness]) -> Trust {
    let record = Record { epoch: Epoch::fresh(), sealed: None };
    let seen = Seen { epoch: record.epoch, files: vec![WITNESS], noted_ns };
    trust(&Evidence { record: Some(&record), is_untouched, seen: Some(&seen), now })
}

pub(super) fn doubts(now: impl Fn(Witness) -> Vec<Witness>) -> bool {
    matches!(believed(99, true, &now(WITNESS)), Trust::Doubted(_))
}

pub(super) fn doubts_a_strangers_mark() -> bool {
    matches!(believed(99, false, &[WITNESS]), Trust::Doubted(_))
}

pub(super) fn does_not_trust_another_boot() -> bool {
    believed(99, true, &[changed(WITNESS, |witness| witness.boot += 1)]) == Trust::Claimed
}

pub(super) fn does_not_trust_the_same_tick() -> bool {
    believed(WITNESS.modified_ns, true, &[WITNESS]) == Trust::Claimed
}

/// What becomes of a child that claims an epoch of the parent `base`, as its header's `name` has it.
fn accepted(name: &str, claimed: Epoch, found: Epoch, trust: Trust) -> Option<Lineage> {
    let claim = Claim { parent_epoch: claimed, parent_id: None, name: b"base".to_vec(), format: None };
    let layer = LayerRecord { frozen: Some(Record { epoch: found, sealed: None }), claim: None };
    let parent = Known { layer, trust, now: vec![WITNESS], identity: None };
    let child = Child { claim: Some(&claim), name: name.as_bytes(), format: None, identity: None };
    accept(&child, &parent, None).ok()
}

pub(super) fn voids_a_claim_about_another_name() -> bool {
    accepted("other", Epoch::fresh(), Epoch::fresh(), Trust::Claimed) == Some(Lineage::Unknown)
}

pub(super) fn refuses_another_epoch() -> bool {
    accepted("base", Epoch::fresh(), Epoch::fresh(), Trust::Trusted).is_none()
}

/// A child of another program's, on a parent that was written since.
pub(super) fn refuses_another_identity() -> bool {
    let layer = LayerRecord { frozen: None, claim: None };
    let identity = Some(Identity::Cid(7));
    let parent = Known { layer, trust: Trust::Unknown, now: vec![WITNESS], identity };
    let child = Child { claim: None, name: b"base", format: None, identity: Some(Identity::Cid(8)) };
    accept(&child, &parent, None).is_err()
}

pub(super) fn refuses_a_doubted_parent() -> bool {
    let epoch = Epoch::fresh();
    let doubt = deltachain::store::Doubt::Opened;
    accepted("base", epoch, epoch, Trust::Doubted(doubt)).is_none()
}

/// A frozen image, and the tree of what it shows.
fn frozen() -> Result<(SimHost, Arc<dyn Image>, Known, Tree)> {
    let host = SimHost::new();
    let creation = Creation { size: 65536, parent: None, options: Vec::new() };
    let image = format::create(Format::Qcow2, host.create(Path::new("/image"))?, &creation, &NoParts)?;
    let known = ledger(&host).freeze(image.as_ref())?;
    Ok((host, image, known, Tree::new(65536)))
}

/// A parent that a killed program left, noted by who only reads it: to open it for writing is no stranger's deed.
pub(super) fn does_not_doubt_what_a_writer_puts_right() -> Result<bool> {
    let (host, place) = (SimHost::new(), Path::new("/image"));
    let creation = Creation { size: 65536, parent: None, options: Vec::new() };
    format::create(Format::Qcow2, host.create(place)?, &creation, &NoParts)?.flush()?;
    let file = host.open(place, Access::Write)?;
    // An autoclear feature that nobody knows (byte 0x58).
    file.write_at(HostOffset::new(0x58), &[1])?;
    file.flush()?;
    drop(file);
    let open =
        |access| format::open(Format::Qcow2, host.open(place, access)?, access == Access::Write, &NoParts);
    ledger(&host).freeze(open(Access::Read)?.as_ref())?;
    drop(open(Access::Write)?);
    Ok(ledger(&host).look(open(Access::Read)?.as_ref())?.trust == Trust::Claimed)
}

pub(super) fn refuses_to_seal_what_was_written() -> Result<bool> {
    let (host, image, known, tree) = frozen()?;
    image.write(GuestOffset::new(0), &[1; 512], &Nothing)?;
    image.flush()?;
    Ok(ledger(&host).seal(image.as_ref(), &tree, &known).is_err())
}

pub(super) fn refuses_another_seal() -> Result<bool> {
    let (host, image, known, tree) = frozen()?;
    let known = ledger(&host).seal(image.as_ref(), &tree, &known)?;
    let other = Tree::new(1 << 20);
    Ok(ledger(&host).seal(image.as_ref(), &other, &known).is_err())
}

pub(super) fn refuses_a_tree_of_something_else() -> Result<bool> {
    let mut stored = Vec::new();
    Tree::new(1 << 20).write_to(&mut stored)?;
    Ok(Tree::read_from(&mut stored.as_slice(), &Tree::new(65536).id()).is_err())
}
