//! Layer 0: the words every other room speaks.

pub mod budget;
mod claims;
pub mod clock;
pub mod error;
pub mod guard;
pub mod name;
pub mod record;
pub mod seed;
pub mod units;

pub use budget::Budget;
pub(crate) use claims::Claims;
pub use error::{Error, ErrorKind, Result};
pub use guard::Guard;
pub use units::{GuestOffset, GuestRange, HostOffset, HostRange};
