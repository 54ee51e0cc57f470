//! Layer 3: places that hold images, and what is known of the layers there.
//!
//! A layer that something depends on is *frozen*: it carries a [`Record`], its children carry a [`Claim`].
//! Whether a record can be believed is decided ([`trust`], [`accept`]) from evidence that the [`Ledger`]
//! gathers: the record, the format's own sign of a foreign writer, and a witness noted outside the image.
//!
//! What stays true at every moment that a crash can show:
//! - a layer's new epoch is durable, and its seal gone, before the first byte of a change to it is;
//! - a witness is noted only after the bytes that it vouches for are durable, and is withdrawn before the
//!   record that it belongs to is written again;
//! - a stored tree is used only if its root gives the ID that it is stored for.
//!
//! So a crash can lose trust, or leave an epoch that nobody needed; it never leaves a trusted ID on other
//! bytes.
#![forbid(unsafe_code)]

mod arrival;
mod draft;
mod elsewhere;
mod index;
mod journal;
mod lease;
mod ledger;
mod note;
pub mod ova;
mod parting;
mod place;
mod record;
mod transfer;
mod trust;
mod turn;
pub mod vmware;

pub use arrival::Arrival;
pub use draft::{Draft, Publish};
pub use elsewhere::elsewhere;
pub use index::Index;
pub use journal::{Fold, FoldMode, Held, HeldState, Intent, Journal, Position, Removed};
pub use lease::{Lease, Purpose, Used, leases, refuse_leased};
pub use ledger::{Carrier, Known, Ledger, StoredRecord, is_as_before, noted_format};
pub use parting::Parting;
pub use place::NO_PLACE;
pub use record::{Claim, Epoch, Identity, LayerRecord, Record};
pub use transfer::{Left, Part, Transfer};
pub use trust::{Child, Differs, Doubt, Evidence, Lineage, Refusal, Seen, Trust, accept, trust};
pub use turn::Turn;

/// The folder, beside images, that holds what is known of them and has no place in them.
pub const FOLDER: &str = ".dchain";
