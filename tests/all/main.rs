//! Tests over the library as a whole, in one binary.

mod tidy;
