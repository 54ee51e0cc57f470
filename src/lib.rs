//! Virtual-machine disk images that form delta chains: formats, layers, content IDs, and the jobs that
//! reshape them.
//!
//! Rooms, lowest first; a room uses what stands above it in this list and nothing below:
//! [`base`], [`map`], [`content`], [`io`], [`store`], [`mod@format`], [`disk`], [`chain`], [`job`].

pub mod base;
pub mod chain;
pub mod content;
pub mod disk;
pub mod format;
pub mod io;
pub mod job;
pub mod map;
pub mod store;
