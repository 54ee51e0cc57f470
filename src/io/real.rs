//! The machine's own files.
