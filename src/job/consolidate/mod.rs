//! Consolidation: folds the layers above a target into it, in one pass.
//!
//! ```text
//!   TOP      ─┐                                       TOP's name
//!   middle    ├ the run: each block once, newest ──┐      │ the record: one rename
//!   middle   ─┘ layer first                        ▼      ▼
//!   target   ◄────────────────────────────────── target
//!   parents (never touched)                       parents
//! ```
//!
//! What stays true: until the record, the old chain is authoritative and TOP's view is right at every moment;
//! afterwards the target's is. The folded layers' own points in time are gone from the first byte written to
//! the target; the plan names them.

mod abandon;
mod adopt;
mod again;
mod bitmaps;
mod carry;
mod cut_off;
mod ending;
mod folding;
mod images;
mod live;
mod machine;
mod moving;
mod noting;
mod over;
mod plan;
mod proof;
mod run;
mod sides;
mod work;

pub use abandon::{Abandoned, Abandonment};
pub use cut_off::{CutOff, cut_off};
pub use folding::{Folding, is_live};
pub(super) use images::kept_options;
pub use live::{LiveConsolidation, LivePace, LiveReport, Patience};
pub use machine::{Found, Machine, Pace, Step};
pub use moving::{Move, aside, too_many_aside};
pub use plan::{Cost, Lost, NewImage, Plan, Request, Verify, estimate};
pub use run::{Consolidation, Report, has_landed};

#[cfg(test)]
mod tests;
