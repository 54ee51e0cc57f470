//! Disks over NBD, the network block device protocol: fixed newstyle with structured replies and extended headers.
//!
//! From the wire inwards: `socket` (bytes; under TLS by `tls`), `haggle` (the handshake as a machine), `input` and `request` (from bytes
//! to a task), `perform` (does it), `reply`. `connection` has the threads of one client, `server` has the clients.
//!
//! What stays true: nothing that a client sends makes the server read or allocate beyond stated bounds, and no client
//! keeps another one from being served.

mod connection;
mod haggle;
mod input;
mod perform;
mod relief;
mod reply;
mod request;
mod server;
mod socket;
mod status;
mod tls;
mod wire;

pub use server::{Limits, Server};
pub use socket::Listener;
pub use tls::{Certificates, Tls};

#[cfg(test)]
pub(super) mod tests;
