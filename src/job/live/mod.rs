//! Disks that guests use while their layers are reshaped: the one serialised path that every write takes.
//!
//! ```text
//!   guests ──► LiveDisk ──► current: the whole chain           readers see this one
//!                 └───────► leg: mirror ──► target, a layer of the chain   only while a fold runs
//! ```
//!
//! What stays true: each request sees one set of legs from its first byte to its last; the legs change only when no
//! request is under way, which takes as long as the longest one and no longer than a guest would notice.

mod disk;
mod fair;
mod hands;
mod latency;
mod leg;
pub mod mirror;
mod recorder;

pub use disk::{LiveDisk, Swapped};
pub use latency::{Felt, Latencies, Throttle};
pub use leg::{Advance, Buffers, Leg, Notes};
pub use recorder::Recorder;

#[cfg(test)]
mod tests;
