//! Layer 2: bytes at offsets in one open object, and the names they are opened by.
//!
//! [`File`] is one open object; [`Host`] is the machine's names and files. Each has a real implementation
//! ([`real`]) and a simulated one ([`faulty`]: write-back cache, power cuts, torn writes, errors), so that
//! everything above can be tested against every crash point.

pub mod faulty;
pub mod memory;
pub mod real;

mod blocks;
mod file;
#[cfg(feature = "vhost-user")]
mod guest_memory;
mod host;
mod likeness;
mod mode;
mod moved;
mod pages;
mod process;
mod stamp;
mod window;

pub use blocks::Blocks;
pub use file::{Access, Descriptor, File, Kept, Run, Witness};
#[cfg(feature = "vhost-user")]
pub use guest_memory::Lent;
pub use host::{Entry, EntryKind, Host, Status};
pub use likeness::Likeness;
pub use mode::{born_ns, is_marked_read_only, names};
pub use moved::{Moved, begin_flush, copy, is_helped, may_share, share, stream};
pub use process::Process;
pub use stamp::settle;
pub use window::Window;

/// How the message of a lock that cannot be had ends if it is this process that holds it.
pub const THIS_PROCESS: &str = "this process itself";

#[cfg(test)]
mod tests;
