//! Virtual-machine disk images that form delta chains: formats, layers, content IDs, and the jobs that
//! reshape them.
//!
//! Rooms, lowest first; a room uses what stands above it in this list and nothing below:
//! [`base`], [`map`], [`content`], [`io`], [`store`], [`mod@format`], [`disk`], [`chain`], [`job`], [`export`],
//! [`service`].
//!
//! # A base, a delta on it, and a fold
//!
//! ```
//! use deltachain::{
//!     base::GuestOffset,
//!     chain::{Chain, Opening},
//!     disk::Disk,
//!     format::Format,
//!     io::{Host, real::RealHost},
//!     job::{
//!         Progress,
//!         consolidate::{Consolidation, Pace, Request},
//!         create::{NewImage, create},
//!         snapshot::snapshot,
//!     },
//!     store::Ledger,
//! };
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
//! let host: Arc<dyn Host> = Arc::new(RealHost::new());
//! let ledger = Ledger::new(Arc::clone(&host), None);
//! let reading = Opening::reading().with_format(Some(Format::Qcow2)).with_ledger(ledger.clone());
//! let writing = Opening::writing().with_format(Some(Format::Qcow2)).with_ledger(ledger);
//!
//! let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options: Vec::new() };
//! create(&host, &base, &new, &reading)?;
//! snapshot(&host, &base, &top, &[], &writing)?;
//!
//! let head = Chain::open(&host, &top, &writing)?;
//! head.write(GuestOffset::new(4096), b"hello")?;
//! head.flush()?;
//! drop(head);
//!
//! let fold = Consolidation::prepare(&host, &top, &reading, &Request::default())?;
//! assert_eq!(fold.plan().folded.len(), 1);
//! fold.run(Pace::USUAL, &Progress::default())?;
//!
//! let disk = Chain::open(&host, &top, &reading)?;
//! assert_eq!(disk.layers().len(), 1);
//! let mut bytes = [0; 5];
//! disk.read(GuestOffset::new(4096), &mut bytes)?;
//! assert_eq!(&bytes, b"hello");
//! # Ok(())
//! # }
//! ```

pub mod base;
pub mod chain;
pub mod content;
pub mod disk;
pub mod export;
pub mod format;
pub mod io;
pub mod job;
pub mod map;
pub mod service;
pub mod store;
