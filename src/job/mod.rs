//! Layer 6: jobs that reshape chains.
