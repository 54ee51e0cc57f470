//! Disks out of an OVA, and an OVA of disks.

mod take;

pub use take::{Outcome, Taken, Verdict, convert_disk, verify, verify_descriptor};
