//! The commands, one file each: arguments -> library call -> print.

pub mod backup;
pub mod bitmap;
pub mod check;
pub mod compact;
pub mod compare;
pub mod completions;
pub mod consolidate;
pub mod convert;
pub mod copy;
pub mod create;
pub mod diff;
pub mod disk;
pub mod id;
pub mod info;
pub mod job;
pub mod lint;
pub mod man;
pub mod map;
pub mod measure;
pub mod rebase;
pub mod relink;
pub mod repair;
pub mod resize;
pub mod revert;
pub mod snapshot;
pub mod tree;
