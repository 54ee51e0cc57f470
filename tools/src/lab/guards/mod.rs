//! Guards taken away one at a time: for each the smallest scene that notices.
//!
//! A scene returns whether the guard did its work; without the guard it says no, fails or panics. All of it is for
//! builds with debug assertions: others have no way to take a guard away.

mod backups;
mod chains;
mod images;
mod live;
mod moves;
mod records;
mod streams;

use crate::mirror;
use deltachain::base::{Guard, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Writes in which the mirror's guards are missed when they are away: many times as many as it takes.
const MIRRORED_WRITES: u64 = 4_000;

/// What happens with and without one guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The guard.
    pub guard: Guard,
    /// Whether its scene is content with it.
    pub holds: bool,
    /// Whether its scene is not without it.
    pub is_noticed: bool,
}

/// Plays the scene of every guard with and without it. The whole process goes without a guard meanwhile.
pub fn search() -> Vec<Missing> {
    Guard::ALL.iter().map(|guard| one(*guard)).collect()
}

fn one(guard: Guard) -> Missing {
    let is_content = || matches!(catch_unwind(AssertUnwindSafe(|| play(guard))), Ok(Ok(true)));
    Missing { guard, holds: is_content(), is_noticed: guard.without(|| !is_content()) }
}

/// The scene of each guard.
fn play(guard: Guard) -> Result<bool> {
    match guard {
        Guard::StrangersBit => Ok(records::doubts_a_strangers_mark()),
        Guard::WitnessFiles => Ok(records::doubts(|w| vec![w, w])),
        Guard::WitnessInode => Ok(records::doubts(|w| vec![records::changed(w, |w| w.inode += 1)])),
        Guard::WitnessLength => Ok(records::doubts(|w| vec![records::changed(w, |w| w.bytes += 1)])),
        Guard::WitnessTime => Ok(records::doubts(|w| vec![records::changed(w, |w| w.modified_ns += 1)])),
        Guard::WitnessBoot => Ok(records::does_not_trust_another_boot()),
        Guard::WitnessTick => Ok(records::does_not_trust_the_same_tick()),
        Guard::WitnessRecovery => records::does_not_doubt_what_a_writer_puts_right(),
        Guard::WitnessWithdrawn => Ok(chains::job_holds("seal", 3)),
        Guard::ClaimName => Ok(records::voids_a_claim_about_another_name()),
        Guard::ParentIdentity => Ok(records::refuses_another_identity()),
        Guard::ClaimEpoch => Ok(records::refuses_another_epoch()),
        Guard::ClaimDoubt => Ok(records::refuses_a_doubted_parent()),
        Guard::SealUnchanged => records::refuses_to_seal_what_was_written(),
        Guard::SealSame => records::refuses_another_seal(),
        Guard::TreeRoot => records::refuses_a_tree_of_something_else(),
        Guard::HalfFolded => chains::refuses_a_half_folded_target(),
        Guard::CutOff => chains::refuses_a_snapshot_of_a_cut_off_fold(),
        Guard::Children => chains::refuses_to_resize_a_parent(),
        Guard::OutsideFolder => chains::refuses_a_parent_outside(),
        Guard::MatchHashed => chains::does_not_link_to_a_forged_match(),
        Guard::LookAgain => chains::looks_at_the_match_again(),
        Guard::ResumedSource => chains::copies_a_changed_source_again(),
        Guard::ArrivalProved => streams::gives_no_name_to_what_was_not_promised(),
        Guard::HeadWritten => chains::folds_what_was_written_meanwhile(),
        Guard::HeadEpoch => chains::folds_what_was_written_before_a_restart(),
        Guard::HeadTaken => live::folds_what_another_process_wrote(),
        Guard::MoveBelow => moves::moves_onto_nothing_else(),
        Guard::MoveAway => moves::serves_no_old_head_while_the_store_is_away(),
        Guard::MovedTop => moves::keeps_an_old_head_that_was_written(),
        Guard::MovingLook => live::reads_no_other_blocks_bytes(),
        Guard::Siblings => chains::refuses_to_fold_under_a_sibling(),
        Guard::Orphans => chains::keeps_what_a_late_child_lies_on(),
        Guard::FoldedLock => chains::refuses_to_fold_what_is_in_use(),
        Guard::SlotWhole => chains::refuses_a_damaged_mark(),
        Guard::JournalChain => chains::refuses_another_chain(),
        Guard::ShortLayer => images::hides_what_lies_below_a_short_layer(),
        Guard::SharedCluster | Guard::SharedTable => Ok(images::history_holds("qcow2-snapshot")),
        Guard::ZeroOverParent => Ok(images::history_holds("qcow2-parent")),
        Guard::UncoveredParent => Ok(images::history_holds("qcow2-resize")),
        Guard::PointBelow => backups::tells_no_increment_over_a_strangers_write(),
        Guard::BackupReads => backups::folds_nothing_under_a_backup(),
        Guard::StaleBitmaps => Ok(images::history_holds("qcow2-bitmap")),
        Guard::KeptBitmaps => Ok(images::history_holds("qcow2-kept-bitmap")),
        Guard::Poison => Ok(images::errors_are_survived("qcow2-512")),
        Guard::KnownTables => images::refuses_to_give_the_header_away(),
        Guard::PristineClusters => images::fills_what_a_first_write_leaves(),
        Guard::PastEnd => images::refuses_an_entry_past_the_end(),
        Guard::ZeroNotAbsent => chains::keeps_zeros_when_the_target_fails(),
        Guard::MirrorGivenUp => live::believes_no_target_that_misses_writes(),
        Guard::MirrorHand
        | Guard::MirrorFlight
        | Guard::MirrorTurns
        | Guard::MirrorRoute
        | Guard::MirrorTouched => Ok(mirror::search(1, MIRRORED_WRITES).is_ok()),
        Guard::MirrorIntent | Guard::MirrorTargetFlush | Guard::MirrorCurrentFlush => {
            Ok(chains::job_holds("live", 0))
        }
        Guard::ReleaseSound => images::releases_nothing_of_a_contradiction(),
    }
}
