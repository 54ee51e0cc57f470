//! Layer 3: places that hold images.
