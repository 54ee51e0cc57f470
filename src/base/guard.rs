//! Guards: the checks without which a disk is lost or a lie believed, listed in one place.
//!
//! In builds with debug assertions the laboratory takes them away one at a time and expects to be caught; in others
//! asking a guard costs nothing, and there is no way to take one away.

macro_rules! guards {
    ($($(#[$what:meta])* $name:ident),* $(,)?) => {
        /// A check that must not be forgotten.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Guard { $($(#[$what])* $name),* }

        impl Guard {
            /// Every guard.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

guards! {
    /// A record is in doubt once a program that does not know it has opened the image for writing.
    StrangersBit,
    /// A record is in doubt once the image has other files.
    WitnessFiles,
    /// A record is in doubt once another file has the image's name.
    WitnessInode,
    /// A record is in doubt once a file has another length.
    WitnessLength,
    /// A record is in doubt once a file was written at another time.
    WitnessTime,
    /// A witness of an earlier boot proves nothing.
    WitnessBoot,
    /// A witness noted within the tick of the last write proves nothing.
    WitnessTick,
    /// No witness is noted of files that the next writer puts right first.
    WitnessRecovery,
    /// A witness goes before what it speaks of is changed.
    WitnessWithdrawn,
    /// A claim says nothing once the header names another parent.
    ClaimName,
    /// A child without a claim refuses a parent that is not what its format's own link says.
    ParentIdentity,
    /// A child refuses a parent of another epoch.
    ClaimEpoch,
    /// A child refuses a parent in doubt.
    ClaimDoubt,
    /// A layer that was written while it was hashed is not sealed.
    SealUnchanged,
    /// A layer that shows something else than its seal is not sealed again.
    SealSame,
    /// A stored tree is used only if its root gives the ID.
    TreeRoot,
    /// What a consolidation has changed in part is not opened.
    HalfFolded,
    /// Nothing is reshaped around a consolidation that was cut off.
    CutOff,
    /// An image that others lie on keeps its size and its bytes.
    Children,
    /// A header does not lead out of its folder.
    OutsideFolder,
    /// A match whose record is only claimed is hashed before anything is linked to it.
    MatchHashed,
    /// A match is what it was when a layer is published on it.
    LookAgain,
    /// A copy goes on only from the source that it was begun from.
    ResumedSource,
    /// A layer that arrives has its name only if it shows what was promised.
    ArrivalProved,
    /// A head that somebody wrote after a fold was cut off is copied again.
    HeadWritten,
    /// The same, noticed across a restart of the host by the head's epoch.
    HeadEpoch,
    /// The same of a head that was in use, which whoever opens it for writing takes from the fold.
    HeadTaken,
    /// A layer with another child is not folded.
    Siblings,
    /// A layer that got another child meanwhile is not removed.
    Orphans,
    /// A layer that somebody uses is not folded.
    FoldedLock,
    /// A journal's mark is believed only as a whole.
    SlotWhole,
    /// A journal goes on only with the chain that it was written for.
    JournalChain,
    /// Beyond a short layer's end are zeros that hide what lies below it.
    ShortLayer,
    /// A cluster that something else refers to is copied when it is written.
    SharedCluster,
    /// The same for a table.
    SharedTable,
    /// Zeros over a parent's bytes are said, not left unsaid.
    ZeroOverParent,
    /// What a longer parent holds does not come to light when an image grows.
    UncoveredParent,
    /// Tables that refcounts call free are not given away.
    KnownTables,
    /// What a first write leaves of a cluster is not left as it is, unless nothing was ever stored there.
    PristineClusters,
    /// An entry that points past the file's end is corrupt, not zeros.
    PastEnd,
    /// What changed is not told since a point below which another program wrote.
    PointBelow,
    /// The layers that an open backup reads are not changed.
    BackupReads,
    /// A bitmap that records is said to be stale before the first write.
    StaleBitmaps,
    /// A bitmap that stays sound knows of a change before it is made.
    KeptBitmaps,
    /// Nothing is written once tables could not be.
    Poison,
    /// An image that contradicts itself gives nothing back.
    ReleaseSound,
    /// A head goes to another store only onto what bears the content ID of what it lies on.
    MoveBelow,
    /// A disk whose move may have been recorded is not served from its old head while the other store is away.
    MoveAway,
    /// An old head that somebody may have written since is kept.
    MovedTop,
    /// Zeros of a guest are said over layers that a job writes, not left to what lies below.
    ZeroNotAbsent,
    /// What was read below the head of a disk whose layers are written is looked up again.
    MovingLook,
    /// A guest's write waits for what the copier has in hand.
    MirrorHand,
    /// The copier moves nothing that a write is in flight to.
    MirrorFlight,
    /// Writes that overlap take turns.
    MirrorTurns,
    /// A write's route is chosen when it is let in, not before.
    MirrorRoute,
    /// What is written while the work list is found is on the list.
    MirrorTouched,
    /// A region is noted durably before a write to both legs begins in it.
    MirrorIntent,
    /// A fold that goes on without its target says so durably before a write is acknowledged that misses it.
    MirrorGivenUp,
    /// The done-mark passes a byte only after a flush of the target.
    MirrorTargetFlush,
    /// The same of the current handle.
    MirrorCurrentFlush,
}

impl Guard {
    /// Returns what the guard found: whether to refuse, or to do the careful thing.
    #[inline]
    pub fn trips(self, found: bool) -> bool {
        found && !self.is_away()
    }

    #[cfg(not(debug_assertions))]
    const fn is_away(self) -> bool {
        false
    }

    #[cfg(debug_assertions)]
    fn is_away(self) -> bool {
        away::WHICH.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }

    /// Runs something without this guard. All threads of the process go without it meanwhile: for programs that do
    /// nothing else.
    #[cfg(debug_assertions)]
    pub fn without<T>(self, run: impl FnOnce() -> T) -> T {
        let _back = away::Away::new(self as u8);
        run()
    }
}

#[cfg(debug_assertions)]
mod away {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    /// No guard has this number.
    const NONE: u8 = u8::MAX;
    /// The guard that is taken away.
    pub(super) static WHICH: AtomicU8 = AtomicU8::new(NONE);

    /// Brings the guard back when it is dropped.
    pub(super) struct Away;

    impl Away {
        pub(super) fn new(guard: u8) -> Self {
            WHICH.store(guard, Relaxed);
            Self
        }
    }

    impl Drop for Away {
        fn drop(&mut self) {
            WHICH.store(NONE, Relaxed);
        }
    }
}
