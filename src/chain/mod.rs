//! Layer 5: layers in order.
