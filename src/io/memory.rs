//! A file in memory, for tests and for what needs no disk.
