//! Layer 1: content IDs. Pure.
