//! Chains that leave for another store, and arrive from one: as a stream (a file, a pipe, a carried disk), or in a session
//! with a peer, where only what the other side lacks goes over the wire.
//!
//! The sender tells of every layer what it will show, and sends what the layer holds; the receiver makes an image like it
//! over the parent that it has, and gives it its name when it shows just that. So neither side has to trust the other:
//! what is damaged, forged or cut short leaves nothing behind that has a name. What arrived in part is noted
//! ([`crate::store::Arrival`]), and gone on with.
//!
//! ```text
//!   Outgoing ── extents ── wire::Output ~~~ frames ~~~ wire::Input ── Incoming ── Growing ── the store
//! ```

mod agent;
mod client;
mod extents;
mod frame;
mod growing;
mod receive;
mod relative;
mod send;
mod session;
mod terms;
mod token;
mod wire;

pub use agent::serve;
pub use client::{Pull, Push, Pushed, RemotePlan, RemoteReport};
pub use frame::NO_STREAM;
pub use receive::{Arriving, Incoming, ReceivePlan, Received, WhatArrives, arriving};
pub use send::{Outgoing, SendPlan, SendRequest, Sent, SentLayer};
pub use session::Peer;
pub use terms::LayerHead;
pub use token::Token;

use crate::{chain::Opening, io::Host, store::Ledger};
use std::{path::PathBuf, sync::Arc};

/// The store that layers arrive in.
#[derive(Debug)]
struct Target {
    host: Arc<dyn Host>,
    ledger: Ledger,
    /// How its images are opened.
    opening: Opening,
    /// Its folder, without links.
    folder: PathBuf,
}

#[cfg(test)]
mod tests;
