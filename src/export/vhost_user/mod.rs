//! Disks over vhost-user: a block device of virtio in this process, whose queues lie in the guest's memory.
//!
//! From the guest inwards: `server` (a socket for each disk, one virtual machine at a time on it), `device` (queues and
//! their threads), `request` (from descriptors to a task), `perform` (does it, between the guest's memory and the disk).
//! The vhost-user protocol itself and the rings are rust-vmm's crates.
//!
//! What stays true: whatever a guest writes into its memory, the device reads and writes only what its descriptors name
//! of that memory, and only whole sectors within the disk; it never reads a byte twice that it has checked; a thread
//! needs bounded memory. Who opens the socket is trusted with more: it hands over the memory as a file, and can take it
//! away again (that ends this process by a signal). Therefore only the server's own user can.

mod device;
mod perform;
mod request;
mod server;
mod wire;

pub use server::{Server, Socket};

#[cfg(test)]
mod tests;
