//! Independent readers: other projects' code that reads what we write.
