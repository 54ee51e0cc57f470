//! A simulated machine whose files have a write-back cache, lose power and fail.
