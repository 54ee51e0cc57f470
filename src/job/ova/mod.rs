//! Disks out of an OVA, and an OVA of disks.

mod take;
mod write;

pub use take::{Outcome, Taken, Verdict, convert_disk, verify, verify_descriptor};
pub use write::{Written, write};
